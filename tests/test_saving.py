"""Saved models: whole or not at all, and open in stock transformers and PEFT."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from test_speech import KINDS, SMALL, WHISPER
from tiny import TINY, changed, encoder, tuned
from transformers import (
    AutoModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from brainlib import saving
from brainlib.speech import SpeechEncoder
from brainlib.tuning import BrainTuner


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))


def test_saving_never_eats_another_folder(model_folder, data, tmp_path):
    tuner = tuned(
        model_folder, data, TINY.with_(stages=(("all", 1),)), folder=tmp_path / "run", keep="last"
    )
    with pytest.raises(FileExistsError, match="something else"):
        tuner.save(tmp_path / "run")
    assert (tmp_path / "run/history.json").exists()
    for _ in range(2):  # its own folder it may replace
        tuner.save(tmp_path / "out")
    assert json.loads((tmp_path / "out/tuning.json").read_text())["kept_epoch"] == 1


def test_adapters_are_refused_on_another_base_and_never_erased(model_folder, data, tmp_path):
    tuner = tuned(model_folder, data, TINY.with_(stages=(("all", 1),)), keep="last")
    tuner.save(tmp_path / "out")
    with pytest.raises(ValueError, match="merge them first"):
        BrainTuner(tuner.encoder, TINY)
    facts = json.loads((tmp_path / "out/tuning.json").read_text())
    assert facts["base_fingerprint"] == encoder(model_folder).fingerprint()
    facts["base_fingerprint"] = "0" * 16
    (tmp_path / "out/tuning.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="their own base alone"):
        BrainTuner.load(tmp_path / "out", device="cpu")


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_tuned_model_is_saved_and_loaded(model_folder, data, tmp_path, adapter):
    tuner = tuned(model_folder, data, TINY.with_(adapter=adapter), keep="last")
    tuner.save(tmp_path / "out")
    again = BrainTuner.load(tmp_path / "out", device="cpu")
    clips = torch.from_numpy(data.story("a").audio[:32_000])[None]
    with torch.no_grad():
        a, b = (t.encoder.hidden_states(clips)[-1] for t in (tuner, again))
        plain = encoder(model_folder).hidden_states(clips)[-1]
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert float((a - plain).abs().max()) > 1e-3
    assert again.recipe == tuner.recipe and again.history == tuner.history
    assert not changed(dict(tuner.readouts.state_dict()), dict(again.readouts.state_dict()))
    card = (tmp_path / "out/README.md").read_text()
    assert "recordings" in card and "UTS01" in card
    if adapter == "lora":  # opens without brainlib
        from peft import PeftModel

        merged = (
            PeftModel.from_pretrained(AutoModel.from_pretrained(model_folder), tmp_path / "out")
            .merge_and_unload()
            .eval()
        )
        torch.testing.assert_close(merged(clips).last_hidden_state, a, atol=1e-4, rtol=1e-3)
    (tmp_path / "out/readouts.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="readouts.safetensors"):
        BrainTuner.load(tmp_path / "out")


def base_model(family, folder):
    """A small model with random weights, as it would come from the hub."""
    torch.manual_seed(0)
    if family == "whisper":
        WhisperModel(WhisperConfig(**WHISPER)).save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    else:
        model, config = KINDS[family]
        model(config(**SMALL)).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("family", ["wavlm", "wav2vec2", "hubert", "whisper"])
def test_the_code_on_the_card_opens_the_tuned_model_in_stock_libraries(
    data, tmp_path, monkeypatch, family, adapter
):
    base = base_model(family, tmp_path / "base")
    tuner = tuned(base, data, TINY.with_(adapter=adapter, stages=(("all", 1),)), keep="last")
    monkeypatch.chdir(tuner.save())
    code = re.search(r"```python\n(.*?)```", Path("README.md").read_text(), re.S)[1]
    with_head = "AutoModelForSpeechSeq2Seq" if family == "whisper" else "AutoModelForCTC"
    assert "brainlib" not in code and with_head in code + "AutoModelForCTC"
    expected = weights_of(tuner, adapter)
    plain = AutoModel.from_pretrained(base).state_dict()
    for kind in ("AutoModel", with_head):
        names = {}
        exec(re.sub(r"\bAutoModel\b", kind, code), names)
        model = names["model"].eval()
        part = model.get_encoder() if family == "whisper" else model.base_model
        opened = part.state_dict()
        assert set(expected) == {n for n in opened if "masked_spec_embed" not in n}
        for name, value in expected.items():
            torch.testing.assert_close(opened[name], value, atol=1e-6, rtol=0)
        prefix = "encoder." if family == "whisper" else ""
        assert any(not torch.equal(plain[prefix + n], opened[n]) for n in expected)


def weights_of(tuner, adapter):
    """The tuned model's weights as the stock model names them, adapters merged."""
    model = tuner.adapted.merge_and_unload() if adapter == "lora" else tuner.encoder.model
    state = model.state_dict()
    return {n: v.clone() for n, v in state.items() if "masked_spec_embed" not in n}


def test_a_card_names_base_data_and_licences_and_its_metadata_is_for_the_hub(
    model_folder, data, tmp_path
):
    tuner = tuned(model_folder, data, TINY.with_(stages=(("all", 1),)))
    tuner.base = "microsoft/wavlm-base-plus"
    tuner.about |= {"data": "fireside", "simulated": True, "licence": "CC BY 4.0"}
    card = ModelCard.load(tuner.save() / "README.md")
    assert card.data.base_model == "microsoft/wavlm-base-plus" and card.data.library_name == "peft"
    assert card.data.license == "cc-by-sa-3.0" and {"brain-tuning", "simulated"} <= set(
        card.data.tags
    )
    assert "CC BY 4.0" in card.text and "*simulated*" in card.text and "UTS01" in card.text
    assert 'base = "microsoft/wavlm-base-plus"' in card.text.replace("'", '"')


def test_an_embedded_base_is_not_looked_for_on_the_hub():
    names = {}
    exec(saving.usage("wavlm-pico", lora=True, whisper=False).split("tuned =")[0], names)
    assert names["model"].config.model_type == "wavlm"
    exec(saving.usage("whisper-tiny.en", lora=True, whisper=True).split("tuned =")[0], names)
    ours = SpeechEncoder.from_pretrained("whisper-tiny.en", device="cpu").model.state_dict()
    for name, value in names["model"].get_encoder().state_dict().items():
        torch.testing.assert_close(
            value, ours[name], atol=0, rtol=0
        )  # in single precision, as sound is
    assert "base_model" not in saving.metadata("wavlm-pico", lora=True, simulated=True)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_model_that_was_tuned_on_padded_clips_is_opened_so(data, tmp_path, adapter):
    base = base_model("whisper", tmp_path / "base")
    recipe = TINY.with_(adapter=adapter, stages=(("all", 1),))
    tuners = [
        BrainTuner(SpeechEncoder.from_pretrained(base, "cpu", padded=padded), recipe)
        for padded in (False, True)
    ]
    names = []
    for tuner in tuners:
        tuner.fit(data, ["UTS01"], quiet=True, keep="last")
        again = BrainTuner.load(tuner.save(), device="cpu")
        assert again.encoder.padded == tuner.encoder.padded
        assert again.encoder.fingerprint() == tuner.encoder.fingerprint()
        names.append(again.encoder.fingerprint())
    assert len({t.run_hash for t in tuners}) == len(set(names)) == 2
    cards = [(t.save() / "README.md").read_text() for t in tuners]
    assert ["padded with silence" in text for text in cards] == [False, True]


def test_two_runs_are_saved_side_by_side(model_folder, data):
    short = TINY.with_(stages=(("all", 1),))
    tuners = [tuned(model_folder, data, short.with_(seed=seed)) for seed in (0, 1)]
    folders = [tuner.save() for tuner in tuners]
    assert [f.name for f in folders] == [t.run_hash for t in tuners]
    assert len(set(folders)) == 2 and tuners[0].save() == folders[0]
    again = BrainTuner.load(folders[1], device="cpu")
    assert again.run_hash == tuners[1].run_hash and again.recipe.seed == 1


def test_what_was_passed_to_training_is_saved_with_the_model(model_folder, data):
    tuner = tuned(model_folder, data, gradient_accumulation_steps=2)
    about = json.loads((tuner.save() / "tuning.json").read_text())
    assert about["training"] == {"gradient_accumulation_steps": "2"}
