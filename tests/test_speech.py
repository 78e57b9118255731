import hashlib
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    HubertConfig,
    HubertModel,
    UniSpeechConfig,
    UniSpeechModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from brainlib import families, speech, timing
from brainlib.adapters import check_adapters_act, fuse_attention
from brainlib.runtime import cache_dir
from brainlib.speech import ConvolutionalCache, SpeechEncoder, features_at_trs

SMALL = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    conv_dim=(8,) * 7,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
    apply_spec_augment=False,
)


WHISPER = dict(
    d_model=24,
    encoder_layers=2,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    vocab_size=50,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
)
KINDS = {
    "wavlm": (WavLMModel, WavLMConfig),
    "wav2vec2": (Wav2Vec2Model, Wav2Vec2Config),
    "hubert": (HubertModel, HubertConfig),
}
FOLDERS = [(k, n, s) for k in KINDS for n, s in (("group", False), ("layer", True))] + [
    ("hubert", "layer", False),
    ("whisper", "", True),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a small model of each configuration, random weights, as a reader would have it from the hub."""

    def make(kind, norm, stable):
        path = tmp_path_factory.getbasetemp() / f"{kind}-{norm}-{stable}"
        if not path.exists():
            torch.manual_seed(0)
            if kind == "whisper":
                WhisperModel(WhisperConfig(**WHISPER)).save_pretrained(path)
                WhisperFeatureExtractor(feature_size=80).save_pretrained(path)
            else:
                model, config = KINDS[kind]
                model(
                    config(**SMALL, feat_extract_norm=norm, do_stable_layer_norm=stable)
                ).save_pretrained(path)
                Wav2Vec2FeatureExtractor(do_normalize=stable).save_pretrained(path)
        return path

    return make


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pico():
    return SpeechEncoder.from_pretrained("wavlm-pico", device="cpu")


@pytest.fixture(scope="module")
def whisper():
    return SpeechEncoder.from_pretrained("whisper-tiny.en", device="cpu")


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(
        np.float32
    )


def test_pico_is_small_and_says_what_it_is():
    folder = speech.ASSETS / "wavlm-pico"
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 12e6
    card = (folder / "README.md").read_text()
    for said in ("Whisper", "synthetic", "not self-supervised", "MIT", "research toy"):
        assert said in card
    log = json.loads((folder / "training.json").read_text())
    assert log["curve"][-1]["held_out"] < log["curve"][0]["held_out"]
    assert log["curve"][-1]["minutes"] >= 40


def test_pico_does_on_fireside_what_is_asked_of_it(pico, whisper, ds):
    """The evaluation beside it (tools/check_pico.py) is of these models and this simulation, on validation stories."""
    import check_pico

    folder = speech.ASSETS / "wavlm-pico"
    kept = json.loads((folder / "evaluation.json").read_text())
    assert kept["model"] == pico.fingerprint() and kept["whisper"] == whisper.fingerprint()
    assert kept["simulation"] == ds.description["SimulationVersion"]
    assert kept["data"].endswith("validation stories")
    card = (folder / "README.md").read_text()
    assert check_pico.section(kept) in card and "knows little of meaning" in card
    scores, accuracy = kept["models"], kept["phoneme_accuracy"].values()
    assert min(accuracy) >= 0.6 and min(accuracy) >= 0.8 * max(accuracy) and len(accuracy) == 4
    trained, fresh = (scores[name]["noise_free"] for name in ("wavlm-pico", "random weights"))
    for level in ("phonetic", "meaning"):
        assert trained[level][-1] > trained[level][2] > trained[level][0]
        assert max(fresh[level]) < max(trained[level]) / 2
    assert max(trained["phonetic"]) >= 0.5


def test_pico_knows_little_of_meaning_and_whisper_more():
    """Beyond low-level features, in noise-free responses: what the card says."""
    kept = json.loads((speech.ASSETS / "wavlm-pico" / "evaluation.json").read_text())
    pico, whisper, fresh = (
        kept["models"][name]["beyond_low_level"]["meaning"]
        for name in ("wavlm-pico", "whisper-tiny.en", "random weights")
    )
    assert max(fresh) < max(pico) < max(whisper) / 2
    assert whisper.index(max(whisper)) == len(whisper) - 1


def test_the_code_on_pico_s_card_runs_in_stock_transformers():
    """First in single precision, then in half, with the extractor's output brought to the model's."""
    folder = speech.ASSETS / "wavlm-pico"
    code = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
    imports, single, half = code.replace('"wavlm-pico"', repr(str(folder))).split("\n\n")
    variables = {"sound": noise(1)}
    exec(imports + "\n" + single, variables)
    assert variables["states"].dtype == torch.float32
    exec(half, variables)
    assert variables["states"].dtype == torch.float16


@pytest.mark.parametrize("dtype, closeness", [(torch.float16, 0.9999), (torch.bfloat16, 0.999)])
def test_pico_runs_in_half_precision_in_stock_transformers(dtype, closeness):
    """Padded clips too; the same states up to rounding."""
    folder = speech.ASSETS / "wavlm-pico"
    extract = AutoFeatureExtractor.from_pretrained(folder)
    inputs = extract(
        [noise(3), noise(2, 1)],
        sampling_rate=16_000,
        return_tensors="pt",
        padding=True,
        return_attention_mask=True,
    )
    single = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    half = AutoModel.from_pretrained(folder, dtype=dtype).eval()
    with torch.inference_mode():
        expected = single(**inputs, output_hidden_states=True).hidden_states
        states = half(**inputs.to(dtype), output_hidden_states=True).hidden_states
    for x, y in zip(states, expected, strict=True):
        assert x.dtype == dtype and torch.isfinite(x).all()
        assert np.corrcoef(x[0].float().flatten(), y[0].flatten())[0, 1] > closeness


@pytest.mark.parametrize("padded", [False, True])
def test_the_fused_attention_changes_no_output(pico, padded):
    stock = AutoModel.from_pretrained(speech.ASSETS / "wavlm-pico", dtype=torch.float32).eval()
    clips = torch.from_numpy(np.stack([noise(3), noise(3, 1)]))
    mask = torch.ones(clips.shape, dtype=torch.long)
    mask[1, 30_000:] = 0
    options = {"attention_mask": mask} if padded else {}
    with torch.inference_mode():
        a = stock(clips, output_hidden_states=True, **options).hidden_states
        b = pico.model(clips, output_hidden_states=True, **options).hidden_states
    assert max(float((x - y).abs().max()) for x, y in zip(a, b)) < 1e-5


def lora(model, **options):
    torch.manual_seed(0)
    return get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj"], **options),
    )


def test_stock_wavlm_with_lora_is_caught_and_ours_is_not(folder):
    stock = lora(AutoModel.from_pretrained(folder("wavlm", "group", False)))
    with pytest.raises(
        RuntimeError, match="12 of 12 adapter tensors change nothing.*fuse_attention"
    ):
        check_adapters_act(stock, noise(1))
    assert fuse_attention(stock) == 2
    assert check_adapters_act(stock, noise(1)) == 12


@pytest.mark.parametrize("kind, norm, stable", FOLDERS)
def test_stock_peft_acts_on_every_family(folder, kind, norm, stable):
    encoder = SpeechEncoder.from_pretrained(str(folder(kind, norm, stable)), device="cpu")
    clips = torch.from_numpy(noise(1))[None]
    plain, name = encoder.hidden_states(clips)[-1].detach(), encoder.fingerprint()
    lora(encoder.model)
    states = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    assert check_adapters_act(encoder, noise(1)) == 12
    assert (
        all(torch.equal(v, states[k]) for k, v in encoder.model.state_dict().items())
        and not encoder.model.training
    )
    torch.testing.assert_close(
        encoder.hidden_states(clips)[-1].detach(), plain
    )  # a new LoRA adds nothing yet
    assert encoder.fingerprint() != name


def test_adapters_that_are_off_or_not_there_are_told(folder):
    model = WavLMModel(WavLMConfig(**SMALL))
    with pytest.raises(ValueError, match="no adapters"):
        check_adapters_act(model, noise(1))
    fuse_attention(model)
    adapted = lora(model)
    with adapted.disable_adapter(), pytest.raises(RuntimeError, match="or they are disabled"):
        check_adapters_act(adapted, noise(1))


def test_merging_an_adapter_gives_the_adapted_model(folder):
    encoder = SpeechEncoder.from_pretrained(str(folder("wavlm", "layer", True)), device="cpu")
    clips = torch.from_numpy(noise(1))[None]
    plain = encoder.hidden_states(clips)[-1].detach()
    adapted = lora(encoder.model, init_lora_weights=False)
    tuned = encoder.hidden_states(clips)[-1].detach()
    encoder.model = adapted.merge_and_unload()
    torch.testing.assert_close(
        encoder.hidden_states(clips)[-1].detach(), tuned, atol=1e-5, rtol=1e-4
    )
    assert float((tuned - plain).abs().max()) > 0.01


def test_attention_dropout_is_honoured_in_training_alone():
    none = dict.fromkeys(
        ("hidden_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop"), 0.0
    )
    torch.manual_seed(0)
    model = WavLMModel(WavLMConfig(**SMALL, **none, attention_dropout=0.5))
    fuse_attention(model)
    clips = torch.from_numpy(noise(1))[None]
    a, b = (model.train()(clips).last_hidden_state for _ in range(2))
    c, d = (model.eval()(clips).last_hidden_state for _ in range(2))
    assert not torch.equal(a, b) and torch.equal(c, d)


def test_one_window_gives_what_the_model_gives(pico):
    audio = noise(4)
    states, times = pico.features(audio, window=10, hop=10)
    with torch.inference_mode():
        direct = pico.hidden_states(
            torch.from_numpy(audio[: pico.family.n_samples(len(times))])[None]
        )
    for layer in range(pico.layers):
        np.testing.assert_allclose(states[layer], direct[layer][0].numpy(), atol=1e-5)
    assert len(times) == len(states[0]) == 199
    np.testing.assert_allclose(np.diff(times), 0.02)


def test_frames_depend_on_their_window_alone(pico):
    audio = noise(9)
    states, times = pico.features(audio, layers=[6], window=4, hop=2)
    changed = audio.copy()
    changed[: 16_000 * 1] = noise(1, 5)  # the first second
    moved, _ = pico.features(changed, layers=[6], window=4, hop=2)
    late = times > 6.02  # windows that begin at 2 s or later
    np.testing.assert_array_equal(states[6][late], moved[6][late])
    assert np.abs(states[6][times < 1] - moved[6][times < 1]).max() > 0.01
    future = audio.copy()
    future[16_000 * 8 + 80 :] = noise(1, 6)[80:]  # the last frame before 8 s sees 5 ms more
    np.testing.assert_array_equal(
        pico.features(future, layers=[6], window=4, hop=2)[0][6][times < 7.9],
        states[6][times < 7.9],
    )


def test_windows_cover_every_frame_once_whatever_the_batch(pico):
    audio = noise(7.3)
    one, times = pico.features(audio, layers=[2], window=3, hop=1, batch_size=1)
    many, _ = pico.features(audio, layers=[2], window=3, hop=1, batch_size=16)
    np.testing.assert_allclose(one[2], many[2], atol=1e-4)
    assert np.isfinite(one[2]).all() and len(times) == (len(audio) - 80) // 320


def test_loudness_does_not_matter(pico):
    a, _ = pico.features(noise(2), layers=[3])
    b, _ = pico.features(7 * noise(2), layers=[3])
    np.testing.assert_allclose(a[3], b[3], atol=1e-3)


def test_pico_is_the_model_of_the_precomputed_results_and_its_control_is_rounded_alike(pico):
    """Both in half precision: a control differs from the model in what training gave, and in nothing else."""
    control = SpeechEncoder.from_pretrained("wavlm-pico", device="cpu", random_weights=True)
    assert pico.fingerprint() == "48fb5c390e1df4f2"
    for encoder in (pico, control):
        assert all(torch.equal(p, p.half().float()) for p in encoder.model.parameters())


def test_random_weights_are_another_model_and_repeatable(pico):
    one = SpeechEncoder.from_pretrained("wavlm-pico", device="cpu", random_weights=True, seed=1)
    same = SpeechEncoder.from_pretrained("wavlm-pico", device="cpu", random_weights=True, seed=1)
    assert one.fingerprint() == same.fingerprint() != pico.fingerprint()
    assert one.name == "wavlm-pico-random1"


@pytest.mark.parametrize("kind, norm, stable", FOLDERS)
def test_hidden_states_are_those_of_the_stock_model(folder, kind, norm, stable):
    """Base and large, post- and pre-norm; with the normalisation that the folder's own feature extractor does."""
    path = folder(kind, norm, stable)
    encoder = SpeechEncoder.from_pretrained(str(path), device="cpu")
    stock = AutoModel.from_pretrained(path).eval()
    sound = noise(30 if kind == "whisper" else 2)
    with torch.inference_mode():
        if kind == "whisper":
            wanted = stock.encoder(
                WhisperFeatureExtractor()(
                    sound, sampling_rate=16_000, return_tensors="pt"
                ).input_features,
                output_hidden_states=True,
            )
        else:
            extract = Wav2Vec2FeatureExtractor.from_pretrained(path)
            wanted = stock(
                extract(sound, sampling_rate=16_000, return_tensors="pt").input_values,
                output_hidden_states=True,
            )
        found = encoder.hidden_states(torch.from_numpy(sound)[None])
        some = encoder.hidden_states(torch.from_numpy(sound)[None], layers=[1])
    # the last one after the final norm of a pre-norm model, whatever the version of transformers puts last into hidden_states
    assert len(found) == len(wanted.hidden_states) == encoder.layers
    for ours, theirs in zip(found, (*wanted.hidden_states[:-1], wanted.last_hidden_state)):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(some[0], found[1])


def test_whisper_hears_short_windows_without_padding(folder):
    encoder = SpeechEncoder.from_pretrained(str(folder("whisper", "", True)), device="cpu")
    audio = noise(7.3)
    states, times = encoder.features(audio, window=4, hop=2)
    assert len(times) == len(states[2]) == int(7.3 * 50) and times[-1] < 7.3
    np.testing.assert_allclose(np.diff(times), 0.02)
    longer = np.concatenate([audio, noise(3, 9)])  # what comes after a window cannot reach it
    np.testing.assert_array_equal(
        encoder.features(longer, window=4, hop=2)[0][2][:300], states[2][:300]
    )
    with pytest.raises(ValueError, match="window 40.*positions for 30 s"):
        encoder.features(audio, window=40, hop=2)
    encoder.model.save_pretrained(cache_dir("encoder-alone"))
    alone = SpeechEncoder.from_pretrained(str(cache_dir("encoder-alone")), device="cpu")
    np.testing.assert_array_equal(alone.features(audio, [2], window=4, hop=2)[0][2], states[2])
    fresh = SpeechEncoder.from_pretrained(
        str(folder("whisper", "", True)), random_weights=True, seed=3, device="cpu"
    )
    assert fresh.fingerprint() != alone.fingerprint()


def test_the_embedded_whisper_is_small_licensed_and_what_was_checked(whisper):
    """`tools/make_whisper.py check` compared this very file with the whole model."""
    folder = speech.ASSETS / "whisper-tiny.en"
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 17e6
    assert "Copyright (c) 2022 OpenAI" in (folder / "LICENSE").read_text()
    checked = json.loads((folder / "check.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    assert checked["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert checked["model"] == whisper.fingerprint()
    largest = checked["largest_difference_by_layer"], checked["largest_state_by_layer"]
    assert len(largest[0]) == len(largest[1]) == whisper.layers
    half = np.finfo(np.float16).eps
    assert all(difference <= half * size for difference, size in zip(*largest))
    assert min(checked["share_of_words_transcribed"].values()) > 0.9
    card = (folder / "README.md").read_text()
    for said in ("OpenAI", "Radford et al. 2023", "MIT", checked["source_sha256"]):
        assert said in card


def test_the_embedded_whisper_runs_on_a_cpu_in_single_precision(whisper):
    assert (whisper.layers, whisper.width, whisper.frame_rate) == (5, 384, 50)
    assert all(p.dtype == torch.float32 for p in whisper.model.parameters())
    again = SpeechEncoder.from_pretrained("whisper-tiny.en", device="cpu")
    states, times = whisper.features(noise(5), window=4, hop=2, cache=False)
    same, _ = again.features(noise(5), window=4, hop=2, cache=False)
    assert list(states) == [0, 1, 2, 3, 4] and len(times) == 250
    for layer, x in states.items():
        assert x.shape == (250, 384) and np.isfinite(x).all() and x.std() > 0.1
        np.testing.assert_array_equal(x, same[layer])


def test_whisper_s_control_is_rounded_as_it_is_and_another_model(whisper):
    control = SpeechEncoder.from_pretrained("whisper-tiny.en", device="cpu", random_weights=True)
    assert control.fingerprint() != whisper.fingerprint()
    for encoder in (whisper, control):
        assert all(torch.equal(p, p.half().float()) for p in encoder.model.parameters())


def test_the_code_on_the_embedded_whisper_s_card_gives_the_states_of_the_padded_encoder():
    folder = speech.ASSETS / "whisper-tiny.en"
    code = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
    first, second = code.replace('"whisper-tiny.en"', repr(str(folder))).split(
        "\nfrom transformers.m"
    )
    variables, sound = {"sound": noise(3)}, torch.from_numpy(noise(3))[None]
    padded = SpeechEncoder.from_pretrained("whisper-tiny.en", device="cpu", padded=True)
    expected = padded.hidden_states(sound)[-1]
    for part in (first, "from transformers.m" + second):
        exec(part, variables)
        states = variables.pop("states")
        torch.testing.assert_close(states[:, :150], expected, atol=1e-4, rtol=1e-4)


def test_padding_is_whisper_s_own_and_only_frames_with_sound_are_kept(folder):
    """Each window of `features` is what stock Whisper makes of it, padded to 30 s, cut to the window's sound."""
    path, sound = str(folder("whisper", "", True)), noise(7.3)
    encoder = SpeechEncoder.from_pretrained(path, device="cpu", padded=True)
    unpadded = SpeechEncoder.from_pretrained(path, device="cpu")
    states, times = encoder.features(sound, window=4, hop=2, batch_size=1)
    stock, extract = AutoModel.from_pretrained(path).eval().encoder, WhisperFeatureExtractor()
    for last in (2, 4, 6, 7.3):
        start = max(last - 4, 0)
        clip = sound[int(start * 16_000) : int(last * 16_000)]
        inputs = extract(clip, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.inference_mode():
            expected = stock(inputs).last_hidden_state[0]
        hop = 2 if last < 7 else 1.3
        kept = slice(round((last - hop - start) * 50), round((last - start) * 50))
        ours = states[2][round((last - hop) * 50) : round(last * 50)]
        np.testing.assert_allclose(ours, expected[kept], atol=1e-4)
    assert len(times) == int(7.3 * 50)
    clips = torch.from_numpy(sound)[None]
    assert encoder.hidden_states(clips)[-1].shape == unpadded.hidden_states(clips)[-1].shape
    pooled, at = encoder.features(sound, [2], window=4, hop=2, pool=0.1)
    assert len(at) == 73
    means = states[2].reshape(73, 5, -1).mean(1)
    np.testing.assert_allclose(pooled[2], means, atol=1e-5)


def test_a_padded_model_is_another_one_to_the_cache(folder):
    path = str(folder("whisper", "", True))
    encoders = [SpeechEncoder.from_pretrained(path, "cpu", padded=p) for p in (False, True)]
    assert encoders[0].fingerprint() != encoders[1].fingerprint()
    plain, padded = (encoder.features(noise(2), [2])[0][2] for encoder in encoders)
    assert plain.shape == padded.shape and np.abs(plain - padded).max() > 0.01
    assert "padded" in repr(encoders[1]) and "padded" not in repr(encoders[0])
    with pytest.raises(ValueError, match="padded=True, but .* hears clips of any length"):
        SpeechEncoder.from_pretrained("wavlm-pico", "cpu", padded=True)


def plain_protocol(path, sound, window=1.6, stride=0.1):
    """One window per call, whole model, last frame: the field's protocol with nothing clever in it."""
    extract = Wav2Vec2FeatureExtractor.from_pretrained(path)
    model, rows = AutoModel.from_pretrained(path).eval(), []
    for k in range(1, round(len(sound) / 16_000 / stride) + 1):
        end = round(k * stride * 16_000)
        clip = sound[max(0, end - round(window * 16_000)) : end]
        with torch.inference_mode():
            out = model(
                extract(clip, sampling_rate=16_000, return_tensors="pt").input_values,
                output_hidden_states=True,
            )
        rows.append([h[0, -1].numpy() for h in (*out.hidden_states[:-1], out.last_hidden_state)])
    return np.array(rows).transpose(1, 0, 2)


@pytest.mark.parametrize("kind, norm, stable", [f for f in FOLDERS if f[0] != "whisper"])
def test_exact_is_the_field_s_protocol(folder, kind, norm, stable):
    path, sound = folder(kind, norm, stable), noise(4)
    encoder = SpeechEncoder.from_pretrained(str(path), device="cpu")
    states, times = encoder.features(sound, window=1.6, exact=True)
    for layer, expected in enumerate(plain_protocol(path, sound)):
        np.testing.assert_allclose(states[layer], expected, atol=1e-4)
    np.testing.assert_allclose(times, np.arange(1, 41) / 10)


def last_touched_frame(model, mel_mask):
    """The last frame that sound reaches: ones and zeros for sound and silence through both convolutions."""
    reached = mel_mask[:, None].float()  # (1, 1, n_mel_frames)
    for layer in (model.conv1, model.conv2):
        ones = torch.ones(1, 1, *layer.kernel_size)
        reached = torch.nn.functional.conv1d(
            reached, ones, stride=layer.stride, padding=layer.padding
        )
    return int(reached[0, 0].nonzero().max())


def plain_whisper_protocol(path, sound, window, stride):
    """Each window padded to 30 s by the stock extractor, through the stock encoder, last frame that sound touches."""
    extract = WhisperFeatureExtractor.from_pretrained(path)
    model, rows, numbers = WhisperModel.from_pretrained(path).eval().encoder, [], []
    for k in range(1, round(len(sound) / 16_000 / stride) + 1):
        end = round(k * stride * 16_000)
        clip = sound[max(0, end - round(window * 16_000)) : end]
        inputs = extract(
            clip, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
        )
        with torch.inference_mode():
            out = model(inputs.input_features, output_hidden_states=True)
        numbers.append(last_touched_frame(model, inputs.attention_mask))
        states = (*out.hidden_states[:-1], out.last_hidden_state)
        rows.append([h[0, numbers[-1]].numpy() for h in states])
    return np.array(rows).transpose(1, 0, 2), numbers


@pytest.mark.parametrize(
    "window, stride, seconds", [(1.6, 0.3, 3), (16.1, 4.025, 16.1), (30, 15, 30)]
)
def test_exact_is_the_field_s_protocol_for_whisper_too(folder, window, stride, seconds):
    path, sound = folder("whisper", "", True), noise(seconds)
    encoder = SpeechEncoder.from_pretrained(str(path), device="cpu")
    states, _ = encoder.features(sound, window=window, hop=stride, exact=True, cache=False)
    expected, numbers = plain_whisper_protocol(path, sound, window, stride)
    assert {16.1: 805, 30: 1499}.get(window, numbers[-1]) == numbers[-1]
    for layer in range(encoder.layers):
        np.testing.assert_allclose(states[layer], expected[layer], atol=1e-4)


def test_whispers_cheap_default_is_not_padded_and_so_not_the_field_s_protocol(folder):
    encoder = SpeechEncoder.from_pretrained(str(folder("whisper", "", True)), device="cpu")
    sound = noise(1.6)
    padded, _ = encoder.features(sound, [2], window=1.6, hop=1.6, exact=True)
    unpadded, times = encoder.features(sound, [2], window=1.6, hop=1.6)
    assert len(times) == 80 and encoder.family.exact_window(len(sound))[1] == 80
    assert np.abs(padded[2][0] - unpadded[2][-1]).max() > 0.01


def test_no_block_above_the_highest_layer_is_run(pico, monkeypatch):
    ran = []
    hooks = [
        b.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, b in enumerate(pico.model.encoder.layers)
    ]
    pico.features(noise(2), layers=[0, 2], cache=False)
    for hook in hooks:
        hook.remove()
    assert set(ran) == {0, 1}


def test_pooled_features_are_means_of_frames(pico):
    audio = noise(5.27)
    fine, at = pico.features(audio, [3], window=4, hop=2)
    coarse, times = pico.features(audio, [3], window=4, hop=2, pool=0.1)
    n = len(at) // 5
    np.testing.assert_allclose(coarse[3], fine[3][: n * 5].reshape(n, 5, -1).mean(1), atol=1e-5)
    np.testing.assert_allclose(times, at[: n * 5].reshape(n, 5).mean(1))


def test_features_are_kept_and_read_back(pico, monkeypatch):
    audio = noise(3)
    first, _ = pico.features(audio, [1, 4], window=2, hop=1)
    files = sorted(p.name for p in cache_dir("features").rglob("*.npz"))
    assert files == ["layer1.npz", "layer4.npz"] and not list(cache_dir("features").rglob("*.part"))
    with monkeypatch.context() as m:
        m.setattr(pico, "transformer_states", None)  # cannot be called
        again, _ = pico.features(audio, [4, 1], window=2, hop=1)
    np.testing.assert_array_equal(again[4], first[4])
    next(cache_dir("features").rglob("layer1.npz")).write_bytes(b"half a file")
    np.testing.assert_array_equal(pico.features(audio, [1], window=2, hop=1)[0][1], first[1])
    for other in (dict(audio=noise(3, 1)), dict(hop=0.5), dict(pool=0.1)):
        given = dict(audio=audio, layers=[1], window=2, hop=1) | other
        assert (
            pico.features(**given)[0][1].shape != first[1].shape
            or np.abs(pico.features(**given)[0][1] - first[1]).max() > 0
        )


def test_a_changed_weight_or_adapter_is_another_model(folder):
    encoder = SpeechEncoder.from_pretrained(str(folder("wavlm", "group", False)), device="cpu")
    before, _ = encoder.features(noise(1), [2])
    lora(encoder.model, init_lora_weights=False)
    after, _ = encoder.features(noise(1), [2])
    assert np.abs(after[2] - before[2]).max() > 0.01


def test_a_batch_that_does_not_fit_is_halved(pico, monkeypatch):
    sizes, real = [], pico.convolutional_features

    def convolutional_features(clips):
        sizes.append(len(clips))
        if len(clips) > 2:
            raise torch.cuda.OutOfMemoryError("no room")
        return real(clips)

    audio = noise(9)
    expected, _ = pico.features(audio, [1], window=2, hop=1, cache=False)
    monkeypatch.setattr(pico, "convolutional_features", convolutional_features)
    states, _ = pico.features(audio, [1], window=2, hop=1, batch_size=8, cache=False)
    assert max(sizes) == 8 and sizes.count(2) >= 2
    np.testing.assert_allclose(states[1], expected[1], atol=1e-4)


def test_convolutional_features_are_computed_once_within_their_memory(pico, monkeypatch):
    audio, starts, second = torch.from_numpy(noise(5)), [0, 16_000, 40_000], 16_000
    cache, tight = ConvolutionalCache(pico), ConvolutionalCache(pico, max_gb=1e-6)
    first = cache("a", audio, starts=starts, n_samples=2 * second)
    clips = torch.stack([audio[s : s + 2 * second] for s in starts])
    torch.testing.assert_close(pico.transformer_states(first)[6], pico.hidden_states(clips)[6])
    torch.testing.assert_close(tight("a", audio, starts=starts, n_samples=2 * second), first)
    monkeypatch.setattr(pico, "convolutional_features", None)  # cannot be called
    kept = cache("a", audio, starts=starts[1:], n_samples=2 * second)
    assert torch.equal(kept, first[1:])
    for other_cache, story in ((tight, "a"), (cache, "b")):
        with pytest.raises(TypeError):  # not kept: has to be computed
            other_cache(story, audio, starts=starts, n_samples=2 * second)


def test_a_model_that_is_not_there_or_not_of_a_family_is_refused(tmp_path):
    with pytest.raises(OSError, match="nowhere: no model there.*offline, give a folder"):
        SpeechEncoder.from_pretrained("nowhere")
    WavLMConfig(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no model there.*offline, give a folder"):  # no weights
        SpeechEncoder.from_pretrained(str(tmp_path))
    Wav2Vec2Model(Wav2Vec2Config(**SMALL)).save_pretrained(tmp_path / "w")
    WavLMConfig(**SMALL).save_pretrained(tmp_path / "w")
    with pytest.raises(ValueError, match="lacks .* of the encoder's weights"):
        SpeechEncoder.from_pretrained(str(tmp_path / "w"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert' model; expected one of"):
        SpeechEncoder.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    "audio, options, message",
    [
        (np.zeros((2, 16_000), np.float32), {}, "one channel"),
        (np.zeros(100, np.float32), {}, "at least 400"),
        (np.full(16_000, np.nan, np.float32), {}, "finite: False"),
        (np.zeros(16_000, np.float32), {"hop": 20.0}, "0 < hop <= window"),
        (np.zeros(16_000, np.float32), {"layers": [9]}, "no layers"),
        (np.zeros(16_000, np.float32), {"hop": 0.02, "exact": True}, "hop >= 0.025"),
    ],
)
def test_bad_input_is_refused(pico, audio, options, message):
    with pytest.raises(ValueError, match=message):
        pico.features(audio, **options)


def test_features_at_trs_are_pooled_states_resampled_to_the_story_s_trs(pico, ds):
    story = ds.story(ds.split["test"][0])
    at_trs = features_at_trs(pico, story, [2, 5], window=4, hop=4)
    states, times = pico.features(story.audio, [2, 5], window=4, hop=4, pool=0.1)
    assert list(at_trs) == [2, 5]
    for layer, x in at_trs.items():
        expected = timing.downsample(states[layer], times, story.tr_times)
        assert x.shape == (len(story.tr_times), pico.width)
        np.testing.assert_array_equal(x, expected)
    past = features_at_trs(pico, story, [2], window=4, hop=4, kernel="past")[2]
    expected = timing.downsample(states[2], times, story.tr_times, kernel="past")
    np.testing.assert_array_equal(past, expected)


def test_a_new_family_like_wav2vec_2_is_one_entry(tmp_path, monkeypatch):
    """UniSpeech is built like wav2vec 2.0: a name is all it needs."""
    torch.manual_seed(0)
    stock = UniSpeechModel(UniSpeechConfig(**SMALL)).eval()
    stock.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'unispeech' model; expected one of"):
        SpeechEncoder.from_pretrained(str(tmp_path))
    monkeypatch.setitem(families.FAMILIES, "unispeech", families.WaveformFamily)
    encoder = SpeechEncoder.from_pretrained(str(tmp_path), device="cpu")
    sound = noise(1)
    sound = (sound - sound.mean()) / sound.std()
    with torch.inference_mode():
        clips = torch.from_numpy(sound)[None]
        expected = stock(clips).last_hidden_state
        torch.testing.assert_close(encoder.hidden_states(clips)[-1], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind, norm, stable", FOLDERS)
def test_what_a_family_freezes_is_its_front_end(folder, kind, norm, stable):
    """Convolutional features carry no gradient, so what makes them must not be in an optimizer; all else must get one."""
    encoder = SpeechEncoder.from_pretrained(str(folder(kind, norm, stable)), device="cpu")
    encoder.model.requires_grad_(True)
    encoder.hidden_states(torch.from_numpy(noise(1))[None])[-1].square().mean().backward()
    for name, parameter in encoder.model.named_parameters():
        frozen = name.startswith(encoder.family.frozen)
        in_table = name.startswith("embed_positions.")  # frozen, though it would get a gradient
        assert frozen == (parameter.grad is None) or in_table, name
