"""Train what notebook 3 compares and cannot train while you read: one small JSON a run in ``results/tuning``.

    python tools/tune_grid.py [--only NAME] [--part 0/2] [--model wavlm-pico] [--subject SIM01] [--out results/tuning]

A run that is there and still fits (recipe, data, model, stories) is not run again. Every run is judged like every other:
weights frozen, features taken anew, ridge refitted on all training stories, scored on the test story (``evaluation.voxelwise_scores``).
Adapters that later notebooks need are kept beside the numbers.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

import fireside
from brainlib import datasets, evaluation, lowlevel, results, runtime, timing
from brainlib.recipes import RECIPES
from brainlib.speech import SpeechEncoder
from brainlib.tuning import BrainTuner

OUT = Path(__file__).resolve().parents[1] / "results" / "tuning"
STORIES, EVERY, BASE = (
    8,
    4,
    "crossfit-quick",
)  # training stories; one voxel in four; the recipe that most runs share


def conditions():
    """{name: (recipe, voxels, control, keep the adapter)}."""
    base, full = (
        RECIPES[BASE],
        RECIPES[BASE].with_(adapter="full", lr=RECIPES["braintuning-quick"].lr),
    )
    found = {"pretrained": (base.with_(adapter="none"), "all", None, False)}
    for name, voxels in (
        ("whole cortex", "all"),
        ("auditory only", "auditory"),
        ("left hemisphere", "left_hemisphere"),
        ("right hemisphere", "right_hemisphere"),
    ):
        found[name] = (base, voxels, None, name in ("whole cortex", "auditory only"))
    for seed in (0, 1, 2):
        if seed:
            found[f"LoRA, seed {seed}"] = (base.with_(seed=seed), "all", None, False)
        found[f"full, seed {seed}"] = (full.with_(seed=seed), "all", None, False)
    for name in ("brainwavlm-quick", "braintuning-quick", "refine-quick", "pinned-quick"):
        found[name] = (RECIPES[name], "all", None, False)
    for name in ("shuffled responses", "other story", "own sound", "word vectors"):
        found[f"control: {name}"] = (base, "all", name, False)
    return found


def control(ds, name):
    """Responses to tune on instead of the listener's."""
    if name == "shuffled responses":
        return evaluation.shuffled_responses(ds)
    if name == "other story":
        return evaluation.other_story(ds)
    if name == "own sound":
        return evaluation.from_features(ds, lambda story: lowlevel.feature_space(story, "mel"))
    return evaluation.from_features(
        ds, lambda story: timing.downsample(*fireside.word_vectors(story), story.tr_times)
    )


def chosen(ds, subject, rule, voxels):
    """Every fourth voxel whose ceiling (validation stories) the recipe asks for, in a region or all."""
    picked = evaluation.pick_voxels(ds, subject, rule=rule)[::EVERY]
    return (
        picked
        if voxels == "all"
        else np.intersect1d(picked, evaluation.pick_voxels(ds, subject, rule=voxels))
    )


def summary(ds, subject, r, voxels):
    """Mean share of the ceiling by region and by what was planted, over judged voxels with a ceiling above 0.2."""
    ceiling = ds.noise_ceiling(subject)[voxels]
    usable, share = ceiling > 0.2, r / np.maximum(ceiling, 0.2)
    regions = {
        k: share[usable & v[voxels]].mean()
        for k, v in ds.rois(subject).items()
        if (usable & v[voxels]).any()
    }
    out = {
        "all": share[usable].mean(),
        "r": r.mean(),
        "regions": regions,
        "voxels": int(usable.sum()),
    }
    if ds.simulated:
        out["levels"] = (
            pd.Series(share)
            .groupby(np.where(usable, ds.truth(subject).level.to_numpy()[voxels], "none"))
            .mean()
            .drop("none", errors="ignore")
            .to_dict()
        )
    return out


def run(name, ds, subject, model, out):
    recipe, where, which, keep_adapter = conditions()[name]
    path = out / f"{name.replace(':', '').replace(',', '').replace(' ', '-')}.json"
    encoder, start = SpeechEncoder.from_pretrained(model), time.perf_counter()
    about = {
        "condition": name,
        "recipe": recipe.name,
        "recipe_hash": recipe.hash(),
        "recipe_base_hash": RECIPES[recipe.name].hash(),
        "model": encoder.fingerprint(),
        "subject": subject,
        "stories": STORIES,
        "tuned_voxels": where,
        "control": which,
        "seed": recipe.seed,
    }
    if path.exists() and results.fits(path, ds, **about):
        return print("there:", name, flush=True)
    tuner = BrainTuner(encoder, recipe)
    if recipe.adapter != "none":
        voxels = chosen(ds, subject, recipe.voxels, where)
        tuner.fit(
            ds,
            subject,
            voxels,
            control(ds, which) if which else None,
            ds.split["train"][:STORIES],
            keep="last" if which else "best",
            quiet=True,
        )
    judged = np.flatnonzero(ds.noise_ceiling(subject, split="val") > 0.2)
    layer = recipe.layer % encoder.layers
    options = {"window": recipe.window, "hop": recipe.hop, "cache": recipe.adapter == "none"}
    r = evaluation.voxelwise_scores(
        encoder, ds, subject=subject, layers=[layer], voxels=judged, **options
    )[layer]
    numbers = summary(ds, subject, r, judged) | {
        "history": tuner.history,
        "best_epoch": tuner.kept_epoch if tuner.history else 0,
    }
    if keep_adapter:
        with runtime.atomic(out.parent / "adapters" / path.stem) as part:
            tuner.adapted.save_pretrained(part, save_embedding_layers=False)
            (part / "README.md").unlink()  # an empty form; results/README.md says what this is
    results.record(path, numbers, ds, **about, seconds=round(time.perf_counter() - start))
    print(
        f"{name}: {numbers['all']:.4f} of the ceiling, epoch {numbers['best_epoch']}, {time.perf_counter() - start:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--dataset", default="fireside")
    parser.add_argument("--subject", default="SIM01")
    parser.add_argument("--model", default="wavlm-pico")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    mine, of = map(int, given.part.split("/"))
    data = datasets.load(given.dataset)
    for number, condition in enumerate(conditions()):
        if given.only in condition and number % of == mine:
            run(condition, data, given.subject, given.model, given.out)
