"""How good is wavlm-pico on fireside? Writes ``evaluation.json`` beside the model; the book's page on the data shows it.

    python tools/check_pico.py

For each layer, and for random weights of the same architecture: noise-ceiling-normalised correlation on the test stories, by
the level that drives a voxel (simulated subject SIM01, 21 training stories). And a linear probe for the phoneme of a frame:
fitted on two stories per voice, scored on another story of each voice, the best layer chosen on a third.
"""

from __future__ import annotations

import json

import numpy as np
from make_fireside import ASSETS, read_text
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from train_pico import OUT

import fireside
from brainlib import datasets, evaluation, scores
from brainlib.speech import SpeechEncoder

WINDOWS = {"window": 16.0, "hop": 2.0}
KEPT = f"ceiling > {scores.FLOOR}"


def by_level(encoder, ds, subject="SIM01"):
    """DataFrame, one row per layer and one column per simulated level: mean normalised correlation of the voxels it drives."""
    table = evaluation.evaluate(encoder, ds, subjects=subject, voxels=KEPT, **WINDOWS)
    table = table.pivot(index="layer", columns="region", values="normalised")
    return table[[f"{level} voxels" for level in fireside.LEVELS]].set_axis(
        list(fireside.LEVELS), axis=1
    )


def frames(encoder, story, layer, *, step=2):
    """States and phonemes of every second frame that lies within a phoneme."""
    states, times = encoder.features(story.audio, **WINDOWS)  # all layers; cached after the first
    phoneme = np.searchsorted(story.phonemes.start, times, side="right") - 1
    inside = (phoneme >= 0) & (times < story.phonemes.end.to_numpy()[phoneme])
    rows = np.flatnonzero(inside)[::step]
    return states[layer][rows], story.phonemes.text.to_numpy()[phoneme[rows]]


def probe(encoder, ds):
    """-> layer, {voice: accuracy on an unseen story}."""
    voices = {}
    for s in ds.stories:
        voice = read_text(ASSETS / "stories" / f"{s}.txt")[0]["voice"]
        voices.setdefault(voice, []).append(s)
    fit = [names[i] for names in voices.values() for i in (0, 1)]
    choose = [names[2] for names in voices.values()]
    test = [names[3] for names in voices.values()]
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
    return best, {
        voice: models[best].score(*frames(encoder, ds.story(s), best))
        for voice, s in zip(voices, test)
    }


if __name__ == "__main__":
    ds = datasets.load("fireside")
    pico = SpeechEncoder.from_pretrained("wavlm-pico")
    layer, accuracy = probe(pico, ds)
    print("phoneme of a frame, unseen stories, layer", layer, accuracy, flush=True)
    trained = by_level(pico, ds)
    print(trained.round(3), flush=True)
    fresh = by_level(SpeechEncoder.from_pretrained("wavlm-pico", random_weights=True), ds).max()
    print(fresh.round(3))
    summary = {
        "model": pico.fingerprint(),
        **WINDOWS,
        "data": "fireside, simulated subject SIM01, test stories",
        "probe_layer": layer,
        "phoneme_accuracy": {k: round(v, 4) for k, v in accuracy.items()},
        "share_of_ceiling": {k: [round(v, 4) for v in trained[k]] for k in trained},
        "random_weights_best_layer": {k: round(v, 4) for k, v in fresh.items()},
    }
    (OUT / "evaluation.json").write_text(json.dumps(summary, indent=1) + "\n")
