import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, HubertConfig, HubertModel, Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

from brainlib import speech
from brainlib.speech import SpeechEncoder

SMALL = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_dim=(8,) * 7, num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2, apply_spec_augment=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def pico():
    return SpeechEncoder.from_pretrained("wavlm-pico", device="cpu")


def noise(seconds, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(np.float32)


def test_pico_is_small_and_says_what_it_is():
    folder = speech.ASSETS / "wavlm-pico"
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 12e6
    card = (folder / "README.md").read_text()
    for said in ("Whisper", "synthetic", "not self-supervised", "MIT", "research toy"):
        assert said in card
    log = json.loads((folder / "training.json").read_text())
    assert log["curve"][-1]["held_out"] < log["curve"][0]["held_out"]
    assert log["curve"][-1]["minutes"] >= 40


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


def test_an_adapter_around_a_projection_acts_and_gets_a_gradient():
    """In transformers' own attention the wrapped projection is never called; here it is."""

    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.weight, self.bias = base, base.weight, base.bias
            self.delta = torch.nn.Parameter(torch.zeros(base.out_features, base.in_features))

        def forward(self, x):
            return self.base(x) + x @ self.delta.T

    torch.manual_seed(0)
    model = WavLMModel(WavLMConfig(**SMALL)).eval()
    assert speech.fuse_attention(model) == 2
    adapters = []
    for layer in model.encoder.layers:
        for name in ("q_proj", "k_proj", "v_proj"):
            adapters.append(Adapter(getattr(layer.attention, name)))
            setattr(layer.attention, name, adapters[-1])
    out = model(torch.from_numpy(noise(1))[None]).last_hidden_state
    (out * torch.randn_like(out)).sum().backward()
    assert all(float(a.delta.grad.abs().max()) > 0 for a in adapters)


def test_one_window_gives_what_the_model_gives(pico):
    audio = noise(4)
    states, times = pico.features(audio, window=10, hop=10)
    with torch.inference_mode():
        direct = pico.hidden_states(torch.from_numpy(audio[: len(times) * pico.stride + 80])[None])
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
    np.testing.assert_array_equal(pico.features(future, layers=[6], window=4, hop=2)[0][6][times < 7.9], states[6][times < 7.9])


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


def test_random_weights_are_another_model_and_repeatable(pico):
    one = SpeechEncoder.from_pretrained("wavlm-pico", device="cpu", random_weights=True, seed=1)
    same = SpeechEncoder.from_pretrained("wavlm-pico", device="cpu", random_weights=True, seed=1)
    assert one.fingerprint() == same.fingerprint() != pico.fingerprint()
    assert one.name == "wavlm-pico-random1"


@pytest.mark.parametrize("kind, config", [(WavLMModel, WavLMConfig), (Wav2Vec2Model, Wav2Vec2Config), (HubertModel, HubertConfig)])
@pytest.mark.parametrize("norm, stable", [("group", False), ("layer", True)])
def test_folders_of_each_family_are_read(tmp_path, kind, config, norm, stable):
    torch.manual_seed(0)
    kind(config(**SMALL, feat_extract_norm=norm, do_stable_layer_norm=stable)).save_pretrained(tmp_path)
    encoder = SpeechEncoder.from_pretrained(str(tmp_path), device="cpu")
    states, times = encoder.features(noise(1.5), window=1, hop=0.5)
    assert sorted(states) == [0, 1, 2] and states[2].shape == (len(times), 24) and np.isfinite(states[2]).all()


def test_a_model_that_is_not_there_or_not_of_a_family_is_refused(tmp_path):
    with pytest.raises(OSError, match="nowhere: no model there.*offline, give a folder"):
        SpeechEncoder.from_pretrained("nowhere")
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
    ],
)
def test_bad_input_is_refused(pico, audio, options, message):
    with pytest.raises(ValueError, match=message):
        pico.features(audio, **options)
