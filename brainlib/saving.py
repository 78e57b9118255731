"""Tuned models in folders that open in stock transformers and PEFT, each with a card that says how."""

import hashlib
import json
import re
from copy import deepcopy
from pathlib import Path
from shutil import copy2, copytree

from huggingface_hub import ModelCardData
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from .network import ReadOut
from .recipes import Recipe, get_recipe
from .runtime import atomic, read_json, reading, require
from .speech import EMBEDDED, SpeechEncoder

FACTS = (
    "base",
    "base_fingerprint",
    "run_hash",
    "history",
    "kept_epoch",
)  # of a BrainTuner, in tuning.json
# Files of an earlier saved model that a new one does not have; all others in its folder are kept
OURS = ("adapter_*", "model*.safetensors*", "*config.json")
LICENCES = {  # of the base models, as their pages on the hub say or link
    "wavlm-pico": "mit",
    "whisper-tiny.en": "mit",
    "microsoft/wavlm": "cc-by-sa-3.0",
    "facebook/wav2vec2": "apache-2.0",
    "facebook/hubert": "apache-2.0",
    "openai/whisper": "apache-2.0",
}
DATA_LICENCES = {"fireside": "CC BY 4.0", "lebel2023": "CC0 (OpenNeuro ds003020)"}
CARD = """---
{metadata}
---
# {base}, brain-tuned by the recipe "{recipe}"

{what} Tuned on {kind} (`{data}`; subjects: {subjects}). Mean encoding score on the validation stories: {before:.4f}
before tuning, {after:.4f} at the epoch kept.

| | | licence |
|---|---|---|
| base model | `{base}` | {base_licence} |
| data | `{data}` | {data_licence} |

## Open it without brainlib

```python
{code}
```

{note}Sound is mono at 16 kHz, normalised as the base model's feature extractor does{padding}. `recipe.json` holds every setting,
`tuning.json` the learning curve, the training stories and the run's hash, `readouts.safetensors` the read-outs to voxels.
`brainlib.tuning.BrainTuner.load` opens all of it.
"""
NOTE = "WavLM's own attention reads past adapters: they act only when merged, as above. "
ADAPTER_CODE = """\
from peft import PeftModel
from transformers import AutoModel

{base}
model = AutoModel.from_pretrained(base).float()  # or AutoModelForCTC, AutoModelForSpeechSeq2Seq, ...
tuned = PeftModel.from_pretrained({encoder}, ".")  # "." is this folder; or its name on the hub
tuned.merge_and_unload()  # in place: `model` is now the tuned model"""
WHOLE_CODE = """\
from transformers import AutoModel

model = AutoModel.from_pretrained(".")  # or AutoModelForCTC, ...; "." is this folder; or its name on the hub"""
WHISPER_CODE = """\
from transformers import AutoModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

{base}
model = AutoModel.from_pretrained(base).float()  # or AutoModelForSpeechSeq2Seq, ...
tuned = WhisperEncoder.from_pretrained(".")  # "." is this folder; or its name on the hub
model.get_encoder().load_state_dict(tuned.state_dict())"""


def save_tuned(folder: str | Path, tuner):
    """Write adapters (PEFT's format) or weights, read-outs, recipe and card into a folder, whole or not at all.

    Parameters
    ----------
    folder : path
    tuner : BrainTuner
        After `fit`.

    Raises
    ------
    FileExistsError
        If the folder holds something, but no earlier saved model, whose own files are replaced.

    Notes
    -----
    Adapters whose base cannot be loaded by its name, as its weights are random or tuned themselves, are merged into it.
    """
    folder = Path(folder)
    present = list(folder.iterdir()) if folder.exists() else []
    require(
        (folder / "tuning.json").exists() or not present,
        f"{folder} holds something else than a saved model: give a folder of its own",
        kind=FileExistsError,
    )
    merged = tuner.adapted is not None and not tuner.base_as_named
    facts = {name: getattr(tuner, name) for name in FACTS} | {"padded": tuner.encoder.padded}
    state = {k: v.detach().cpu().contiguous() for k, v in tuner.readouts.state_dict().items()}
    with atomic(folder) as part:
        part.mkdir()
        if tuner.adapted is not None and not merged:
            tuner.adapted.save_pretrained(part, save_embedding_layers=False)
        else:
            whole = deepcopy(tuner.adapted).merge_and_unload() if merged else tuner.encoder.model
            whole.save_pretrained(part)
            tuner.encoder.family.extractor.save_pretrained(part)
        save_file(state, part / "readouts.safetensors")
        facts["merged"] = merged
        written = [path for path in part.iterdir() if path.suffix in (".json", ".safetensors")]
        facts["digests"] = {path.name: digest(path) for path in sorted(written)}
        (part / "recipe.json").write_text(tuner.recipe.to_json())
        (part / "tuning.json").write_text(json.dumps(facts | tuner.about, indent=1))
        (part / "README.md").write_text(card(tuner, lora=tuner.adapted is not None and not merged))
        for path in present:
            if not (part / path.name).exists() and not any(map(path.match, OURS)):
                (copytree if path.is_dir() else copy2)(path, part / path.name)


def digest(path: Path) -> str:
    """Hash of a file."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def check_digests(folder: Path, digests: dict, *, remedy: str) -> None:
    """Raise ValueError unless the files of a folder are those whose `digest` was kept."""
    require(isinstance(digests, dict), f"{folder}: digests {digests!r}; expected a dict; {remedy}")
    for name, kept in digests.items():
        require(
            (folder / name).is_file() and digest(folder / name) == kept,
            f"{folder / name}: lost, or not the file that was saved; {remedy}",
        )


def load_tuned(folder: str | Path, *, device: str | None = None) -> dict:
    """What `save_tuned` wrote, as the attributes of a BrainTuner; an adapter's base is loaded by name.

    Raises
    ------
    FileNotFoundError
        If the folder holds no saved model.
    ValueError
        If the base model is no longer the one that was tuned.
    """
    folder = Path(folder)
    expected = ("recipe.json", "tuning.json", "readouts.safetensors")
    missing = [name for name in expected if not (folder / name).exists()]
    require(
        not missing,
        f"{folder}: no tuned model: {missing} not found; expected a folder written by BrainTuner.save",
        kind=FileNotFoundError,
    )
    recipe = get_recipe(folder / "recipe.json")
    about = read_json(folder / "tuning.json", "a tuned model's history")
    with reading(folder / "tuning.json", "a tuned model's history"):
        facts = {name: about.pop(name) for name in FACTS}
    check_digests(folder, about.pop("digests", {}), remedy="copy it again")
    lora = recipe.adapter == "lora" and not about.pop("merged", False)
    padded = about.pop("padded", False)
    encoder = SpeechEncoder.from_pretrained(
        facts["base"] if lora else str(folder), device, padded=padded
    )
    adapted = load_adapter(encoder, folder, base=facts["base_fingerprint"]) if lora else None
    encoder.name, encoder.as_named = f"{facts['base']}+{recipe.name}", False
    encoder.model.eval().requires_grad_(False)
    readouts = load_readouts(folder / "readouts.safetensors", recipe, width=encoder.width)
    made = {"encoder": encoder, "adapted": adapted, "readouts": readouts, "base_as_named": lora}
    return {**facts, **made, "recipe": recipe, "about": about}


def load_adapter(
    encoder: SpeechEncoder, folder: Path, *, base: str, remedy: str = "load that one, or tune anew"
) -> PeftModel:
    """Put the adapter of a folder into an encoder, frozen.

    ValueError unless the encoder has the fingerprint `base`, and the adapter just the tensors that it says, all finite.
    """
    here = encoder.fingerprint()
    require(
        here == base,
        f"{folder}: tuned on another {encoder.name!r} (fingerprint {base}, here {here}); "
        f"adapters fit their own base alone: {remedy}",
    )
    path = folder / "adapter_model.safetensors"
    with reading(folder, "an adapter in PEFT's form"):
        state = load_file(path)
        adapted = PeftModel.from_pretrained(encoder.model, folder)
    differing = sorted(set(state) ^ set(get_peft_model_state_dict(adapted)))
    broken = [name for name, x in state.items() if not x.isfinite().all()]
    require(
        not differing and not broken,
        f"{path}: tensors lost or foreign {differing[:2]}, not finite {broken[:2]}; copy or tune it again",
    )
    encoder.model.eval().requires_grad_(False)
    encoder.as_named = False
    return adapted


def load_readouts(path: Path, recipe: Recipe, *, width: int) -> nn.ModuleDict:
    """The subjects' read-outs from a safetensors file."""
    state, readouts = load_file(path), nn.ModuleDict()
    bias = ".map.1.bias" if recipe.readout == "lowrank" else ".map.bias"
    for name in [name for name in state if name.endswith(bias)]:
        readouts[name.removesuffix(bias)] = ReadOut(width, len(state[name]), recipe)
    readouts.load_state_dict(state)
    return readouts


# ------------------------------------------------------------------ the card
def card(tuner, *, lora: bool) -> str:
    """The README of a saved model, with metadata for the hub and code that opens it in stock transformers and PEFT."""
    about, base = tuner.about, tuner.base
    return CARD.format(
        metadata=metadata(base, lora=lora, simulated=about["simulated"]),
        what="LoRA adapters of a speech model." if lora else "The weights of a speech model.",
        kind="*simulated* participants" if about["simulated"] else "fMRI recordings",
        base=base,
        recipe=tuner.recipe.name,
        data=about["data"],
        subjects=", ".join(about["subjects"]),
        before=tuner.history[0]["validation"],
        after=tuner.history[tuner.kept_epoch]["validation"],
        base_licence=base_licence(base) or "see the base model's page",
        data_licence=about["licence"] or DATA_LICENCES.get(about["data"], "not stated"),
        code=usage(base, lora=lora, whisper=tuner.encoder.family.name == "whisper"),
        note=NOTE if lora and tuner.encoder.family.name == "wavlm" else "",
        padding=", each clip padded with silence to 30 s" if tuner.encoder.padded else "",
    )


def metadata(base: str, *, lora: bool, simulated: bool) -> str:
    """YAML for the hub; a base that is not on the hub (embedded, or a folder) is not named there."""
    on_hub = bool(re.fullmatch(r"[\w.-]+/[\w.-]+", base)) and not Path(base).exists()
    tags = ["speech", "fmri", "brain-tuning", *["simulated"] * simulated]
    data = ModelCardData(
        language="en",
        license=base_licence(base),
        library_name="peft" if lora else "transformers",
        base_model=base if on_hub else None,
        pipeline_tag="feature-extraction",
        tags=tags,
    )
    return data.to_yaml()


def usage(base: str, *, lora: bool, whisper: bool) -> str:
    """Code that opens a saved model in stock transformers, run from within its folder.

    Of Whisper only the encoder is tuned, so the whole model comes from the base; elsewhere ``base_model`` is the part
    that was tuned, also in a model with a head.
    """
    line = f"base = {base!r}"
    if base in EMBEDDED:  # not on the hub
        line = f'from importlib.resources import files\n\nbase = files("brainlib") / "assets" / {base!r}'
    if lora:
        encoder = "model.get_encoder()" if whisper else "model.base_model"
        return ADAPTER_CODE.format(base=line, encoder=encoder)
    return WHISPER_CODE.format(base=line) if whisper else WHOLE_CODE


def base_licence(base: str) -> str | None:
    """The hub's name of a base model's licence, where it is known."""
    return next((licence for name, licence in LICENCES.items() if base.startswith(name)), None)
