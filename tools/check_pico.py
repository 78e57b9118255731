"""What do the embedded models know? Scores of `wavlm-pico` on fireside, beside Whisper tiny.en and random weights.

    python tools/check_pico.py

Writes ``evaluation.json`` beside the model and the table on its card; the book's page on the data shows the same. For each
layer, by the level that drives a voxel (simulated subject SIM01; fitted on all training stories, scored on the validation
stories): noise-ceiling-normalised correlation; the correlation with noise-free responses; and what the layer adds to
low-level features there, the joint model less the low-level one. And a linear probe for the phoneme of a frame: fitted on
two training stories per voice, the layer chosen on a third, scored on the validation story of each voice. No test story is
read.
"""

from __future__ import annotations

import json
import re

import numpy as np
from build_book import best_beyond, level_table
from make_fireside import ASSETS, read_text
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from train_pico import OUT

import fireside
from brainlib import datasets, evaluation, scores
from brainlib.speech import SpeechEncoder

SUBJECT, KEPT = "SIM01", f"ceiling > {scores.FLOOR}"
MODELS = {
    "wavlm-pico": {},
    "whisper-tiny.en": {},
    "random weights": {"name": "wavlm-pico", "random_weights": True},
}
SECTION = """Pearson correlation with *noise-free* responses to the validation stories of *fireside* (simulated subject SIM01), by
what drives a voxel. In the last two columns: what a layer adds there to low-level features (spectrum, articulation, rates,
length and duration of words), the joint model less that of low-level features alone.

{table}

**It knows little of meaning.** Beyond low-level features its best layer adds {pico:.2f} in meaning voxels; that of its
teacher, Whisper tiny.en, adds {whisper:.2f}. Use it to see how a method runs, and Whisper to ask about meaning.

Phoneme of a frame (linear probe, layer {layer}, the validation story of each voice): {phonemes}.
"""


def by_level(encoder, ds) -> dict:
    """{score: {level: [one number per layer]}}: with noise, without, low-level features alone, and beyond these."""
    noisy, clean = (
        evaluation.evaluate(encoder, ds, subjects=SUBJECT, voxels=KEPT, on="val", **options)
        for options in ({}, {"noise_free": True, "beyond_low_level": True})
    )
    columns = {
        "noisy": (noisy, "normalised"),
        "noise_free": (clean, "normalised"),
        "low_level": (clean, "low_level"),
        "beyond_low_level": (clean, "beyond_low_level"),
    }
    return {
        score: {
            level: table[column][table.region == f"{level} voxels"].round(4).tolist()
            for level in fireside.LEVELS
        }
        for score, (table, column) in columns.items()
    }


def frames(encoder, story, layer, *, step=2):
    """States and phonemes of every second frame that lies within a phoneme."""
    states, times = encoder.features(story.audio)  # all layers; cached after the first
    phoneme = np.searchsorted(story.phonemes.start, times, side="right") - 1
    inside = (phoneme >= 0) & (times < story.phonemes.end.to_numpy()[phoneme])
    rows = np.flatnonzero(inside)[::step]
    return states[layer][rows], story.phonemes.text.to_numpy()[phoneme[rows]]


def stories_by_voice(names) -> dict[str, list[str]]:
    voices = {}
    for name in names:
        voice = read_text(ASSETS / "stories" / f"{name}.txt")[0]["voice"]
        voices.setdefault(voice, []).append(name)
    return voices


def probe(encoder, ds):
    """-> layer, {voice: accuracy on its validation story}."""
    train, held_out = (stories_by_voice(ds.split[part]) for part in ("train", "val"))
    fit = [names[i] for names in train.values() for i in (0, 1)]
    choose = [names[2] for names in train.values()]
    models = {}
    accuracy = {}
    for layer in range(1, encoder.layers):
        x, y = (np.concatenate(p) for p in zip(*(frames(encoder, ds.story(s), layer) for s in fit)))
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=60, C=0.1)).fit(x, y)
        models[layer] = model
        accuracy[layer] = np.mean(
            [model.score(*frames(encoder, ds.story(s), layer)) for s in choose]
        )
    best = max(accuracy, key=accuracy.get)
    scores = {
        voice: models[best].score(*frames(encoder, ds.story(names[0]), best))
        for voice, names in held_out.items()
    }
    return best, scores


def section(kept: dict) -> str:
    """What the card says of an evaluation."""
    phonemes = [f"{voice} {v:.2f}" for voice, v in kept["phoneme_accuracy"].items()]
    return SECTION.format(
        table=level_table(kept["models"]),
        pico=best_beyond(kept, "wavlm-pico"),
        whisper=best_beyond(kept, "whisper-tiny.en"),
        layer=kept["probe_layer"],
        phonemes=", ".join(phonemes),
    )


def write_card(kept: dict):
    """Put the section between its two marks."""
    card = OUT / "README.md"
    marks = "<!-- evaluation -->\n", "<!-- end of evaluation -->"
    text = re.sub(
        f"{marks[0]}.*?{marks[1]}",
        lambda _: marks[0] + section(kept) + marks[1],
        card.read_text(),
        flags=re.DOTALL,
    )
    card.write_text(text)


def main():
    ds = datasets.load("fireside")
    pico = SpeechEncoder.from_pretrained("wavlm-pico")
    layer, accuracy = probe(pico, ds)
    print("phoneme of a frame, validation stories, layer", layer, accuracy, flush=True)
    models = {}
    for name, options in MODELS.items():
        encoder = SpeechEncoder.from_pretrained(**{"name": name} | options)
        models[name] = by_level(encoder, ds)
        print(name, json.dumps(models[name]), flush=True)
    kept = {
        "model": pico.fingerprint(),
        "whisper": SpeechEncoder.from_pretrained("whisper-tiny.en").fingerprint(),
        "simulation": ds.description["SimulationVersion"],
        "data": f"fireside, simulated subject {SUBJECT}, validation stories",
        "probe_layer": layer,
        "phoneme_accuracy": {k: round(v, 4) for k, v in accuracy.items()},
        "models": models,
    }
    (OUT / "evaluation.json").write_text(json.dumps(kept, indent=1) + "\n")
    write_card(kept)


if __name__ == "__main__":
    main()
