"""Train what notebook 3 compares and cannot train while you read: one small JSON per run in ``results/tuning``.

    python tools/tune_grid.py [--only NAME] [--part 0/2] [--model whisper-tiny.en] [--subject SIM01] [--out results/tuning]

A run that is there and still matches (recipe, data, model, stories) is not run again. Every run is evaluated alike: weights
frozen, features taken anew, ridge refitted on all training stories, scored on the test stories. Adapters that later notebooks
need lie beside the numbers.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import fireside
from brainlib import datasets, evaluation, results, runtime
from brainlib.recipes import RECIPES, Recipe
from brainlib.scores import FLOOR
from brainlib.speech import SpeechEncoder
from brainlib.tuning import BrainTuner

OUT = Path(__file__).resolve().parents[1] / "results" / "tuning"
STORIES = 8  # training stories
VOXEL_STEP = 4  # one voxel in four
BASE = "crossfit-quick"  # the recipe that most runs share


@dataclass(frozen=True)
class Condition:
    """A run: recipe, a control instead of the subject's responses, whether the adapter is kept."""

    recipe: Recipe
    control: str | None = None
    keep_adapter: bool = False


def conditions() -> dict[str, Condition]:
    """Every run by its name."""
    base = RECIPES[BASE]
    runs = {
        "pretrained": Condition(base.with_(adapter="none")),
        "whole cortex": Condition(base, keep_adapter=True),
    }
    for name in ("brainwavlm-quick", "braintuning-quick"):
        runs[name] = Condition(RECIPES[name])
    for name in ("shuffled responses", "other story"):
        runs[f"control: {name}"] = Condition(base, control=name)
    for seed in (1, 2):  # seed 0 is "whole cortex"
        runs[f"LoRA, seed {seed}"] = Condition(base.with_(seed=seed))
    return runs


def voxels_to_tune(ds, subject, rule):
    """Every fourth voxel whose ceiling (validation stories) the recipe asks for."""
    return evaluation.pick_voxels(ds, subject, rule=rule)[::VOXEL_STEP]


def run(name, ds, subject, model, out):
    """Train, evaluate and record a condition, unless its result is there and matches."""
    condition = conditions()[name]
    recipe = condition.recipe
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
        "control": condition.control,
        "seed": recipe.seed,
    }
    if path.exists() and results.matches(path, dataset=ds, **about):
        print("there:", name, flush=True)
        return
    tuner = BrainTuner(encoder, recipe)
    if recipe.adapter != "none":
        tune(tuner, ds, subject, condition)
    numbers = scores(encoder, ds, subject, recipe)
    numbers["history"] = tuner.history
    numbers["best_epoch"] = tuner.kept_epoch or 0
    if condition.keep_adapter:
        with runtime.atomic(out.parent / "adapters" / path.stem) as part:
            tuner.adapted.save_pretrained(part, save_embedding_layers=False)
            (part / "README.md").unlink()  # an empty form; results/README.md says what this is
    seconds = round(time.perf_counter() - start)
    results.record(path, numbers, dataset=ds, **about, seconds=seconds)
    print(f"{name}: {numbers['all']:.4f}, epoch {numbers['best_epoch']}, {seconds} s", flush=True)


def tune(tuner, ds, subject, condition):
    """Fit on eight stories; a control has no validation score of its own that means anything, so its last epoch counts."""
    instead = condition.control and evaluation.CONTROLS[condition.control](ds)
    tuner.fit(
        ds,
        subject,
        voxels=voxels_to_tune(ds, subject, tuner.recipe.voxels),
        responses=instead,
        stories=ds.split["train"][:STORIES],
        keep="last" if instead else "best",
        quiet=True,
    )


def scores(encoder, ds, subject, recipe):
    """What `evaluate` says of the test stories: noisy, and of simulated subjects noise-free; alone, and beyond low-level features."""
    what = {"subjects": subject, "layers": recipe.layer % encoder.layers}
    what |= {"voxels": f"ceiling > {FLOOR}", "beyond_low_level": True}
    windows = {"window": recipe.window, "hop": recipe.hop, "cache": True}
    table = evaluation.evaluate(encoder, ds, **what, **windows)
    numbers = summary(table)
    if ds.simulated:
        numbers["noise_free"] = summary(
            evaluation.evaluate(encoder, ds, **what, **windows, noise_free=True)
        )
    return numbers


def summary(table):
    """Numbers of a table of `evaluate`: normalised over all voxels, by region and by level, its margin, and beyond low level."""
    table = table.set_index("region")
    levels = [name for name in table.index if name.removesuffix(" voxels") in fireside.LEVELS]
    regions = table.index.drop(["all voxels", *levels])
    of_level = table.loc[levels].rename(lambda name: name.removesuffix(" voxels"))
    everywhere = table.loc["all voxels"]
    return {
        "all": everywhere.normalised,
        "margin": everywhere.normalised_margin,
        "r": everywhere.r,
        "voxels": int(everywhere.n_kept),
        "regions": table.normalised[regions].dropna().to_dict(),
        "levels": of_level.normalised.to_dict(),
        "beyond": {"all": everywhere.beyond_low_level} | of_level.beyond_low_level.to_dict(),
        "beyond_margin": everywhere.beyond_margin,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--dataset", default="fireside")
    parser.add_argument("--subject", default="SIM01")
    parser.add_argument("--model", default="whisper-tiny.en")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    mine, of = map(int, options.part.split("/"))
    data = datasets.load(options.dataset)
    for number, condition in enumerate(conditions()):
        if options.only in condition and number % of == mine:
            run(condition, data, options.subject, options.model, options.out)
