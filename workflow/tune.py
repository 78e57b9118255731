"""One run of the zoo: tune, evaluate, and write one small JSON; the workflow calls it once per run.

    accelerate launch workflow/tune.py NAME [--grid workflow/zoo.yaml] [--out results/zoo]

Every run is evaluated alike: weights frozen, features taken anew, ridge refitted on all training stories, a row per test story
and region. A run that was killed goes on from its last whole epoch (one on masked sound begins anew).
"""

from __future__ import annotations

import argparse
import shutil
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import stimulus
from zoo import HERE, Run, read_grid

import fireside
from brainlib import datasets, evaluation, inside, lowlevel, results, runtime
from brainlib.network import readout_layer
from brainlib.saving import digest
from brainlib.scores import FLOOR
from brainlib.speech import SpeechEncoder, features_at_trs
from brainlib.timing import downsample
from brainlib.tuning import BrainTuner
from fireside.levels import arbitrary_code

OUT = HERE.parent / "results" / "zoo"


# ------------------------------------------------------------------ targets
def own_sound(story):
    """Mel spectrum of the story itself, (n_trs, n_mels)."""
    return lowlevel.feature_space(story, "mel")


def word_vectors(story):
    """Word vectors that drive the simulated subjects, summed within TRs: (n_trs, n_components)."""
    vectors, middles = fireside.word_vectors(story)
    return downsample(vectors, middles, story.tr_times, kernel="past")


def permuted_vectors(story):
    """The same vectors, dealt out anew among the word types (not as in SIMCODE): no meaning."""
    code = arbitrary_code(seed=11)
    vectors = np.stack([code[word.lower()] for word in story.words.text])
    return downsample(vectors, lowlevel.middles(story.words), story.tr_times, kernel="past")


def average_response(ds, subjects):
    """Responses averaged over subjects, voxel by voxel: they must correspond, as those of simulated subjects do."""

    def responses(_, story):
        return np.mean([ds.responses(subject, story) for subject in subjects], axis=0)

    return responses


def noise_free(ds):
    """Responses as they would be after endless repeats: what a better scanner could give at most."""
    return partial(ds.responses, noise_free=True)


FEATURES = {
    "own sound": own_sound,
    "word vectors": word_vectors,
    "permuted vectors": permuted_vectors,
}
RESPONSES = evaluation.CONTROLS | {"noise-free responses": noise_free}
AVERAGE = "average response"
STIMULUS = "masked sound"  # no responses at all: see `stimulus`
STATES = "states of "  # and the name, or the folder, of a speech model: those of its last layer
TARGETS = ("responses", AVERAGE, STIMULUS, *RESPONSES, *FEATURES)


def states_of(model: str, recipe):
    """Story to the states of a speech model's last layer at TRs, each z-scored: (n_trs, width).

    `model` is what `SpeechEncoder.from_pretrained` takes, or a folder that `tools/make_whisper.py` made.
    """
    made = runtime.cache_dir("models") / model
    encoder = SpeechEncoder.from_pretrained(str(made) if made.exists() else model)

    def states(story):
        layer, windows = encoder.layers - 1, {"window": recipe.window, "hop": recipe.hop}
        found = features_at_trs(encoder, story, layers=[layer], **windows)[layer]
        if not np.isfinite(found).all():
            raise ValueError(
                f"states of {model}: NaN or Inf in {story.name}; are its weights whole?"
            )
        return (found - found.mean(0)) / np.maximum(found.std(0), 1e-6)

    return states


def target(run: Run, ds):
    """What `BrainTuner.fit` is given in place of the subject's responses; None for those themselves."""
    features = FEATURES.get(run.target)
    if run.target.startswith(STATES):
        features = states_of(run.target.removeprefix(STATES), run.tuned_recipe())
    elif run.target not in TARGETS:
        expected = (*TARGETS, f"{STATES}MODEL")
        raise ValueError(f"run {run.name}: target {run.target!r}; expected one of {expected}")
    if features is not None:
        return evaluation.from_features(ds, features, noisy=True, seed=run.seed)
    if run.target == AVERAGE:
        return average_response(ds, run.subjects)
    return RESPONSES[run.target](ds) if run.target in RESPONSES else None


# ------------------------------------------------------------------ a run
def tune(run: Run, ds, encoder: SpeechEncoder, checkpoints: Path, out: Path) -> BrainTuner:
    """The tuner after `fit`: the last epoch of all runs, as a control has no validation score that means anything.

    How many there are is the recipe's business.
    """
    tuner = BrainTuner(encoder, run.tuned_recipe())
    if tuner.recipe.adapter == "none":
        return tuner
    if run.adapter_of is not None:
        tuner.encoder = tuned_before(run, out)
        return tuner
    if run.target == STIMULUS:
        stimulus.tune(tuner, ds, tuning_stories(run, ds))
        return tuner
    subjects = run.subjects[:1] if run.target == AVERAGE else run.subjects
    tuner.fit(
        ds,
        subjects,
        voxels={s: tuned_voxels(run, ds, s) for s in subjects},
        responses=target(run, ds),
        stories=tuning_stories(run, ds),
        keep="last",
        folder=checkpoints,
        quiet=True,
        bf16=in_bf16(run),
    )
    return tuner


def tuned_before(run: Run, out: Path) -> SpeechEncoder:
    """The speech model of another run, which must have been tuned as this one says."""
    encoder, about = results.load_tuned(run.adapter_of, out)
    own = run.settings() | {"tree": run.dataset}
    may = ("evaluate_on", "adapter_of", "bf16")
    differ = [k for k in own if k not in may and k in about and own[k] != about[k]]
    if differ:
        raise ValueError(
            f"run {run.name}: its {differ} are not those of {run.adapter_of}, whose adapter it takes"
        )
    return encoder


def in_bf16(run: Run) -> bool:
    """Whether a run trains in bfloat16."""
    if run.target == STIMULUS or run.adapter_of is not None:  # its own loop, or no training
        return False
    return runtime.fast_bf16() if run.bf16 is None else run.bf16


def tuning_stories(run: Run, ds):
    """Training stories of a run; by subject where they are dealt out among several."""
    stories, n = ds.split["train"][: run.stories], len(run.subjects)
    if len(stories) < (run.stories or 1):
        raise ValueError(
            f"run {run.name}: {run.stories} stories; {ds.name} has {len(stories)} to train on"
        )
    return {s: stories[i::n] for i, s in enumerate(run.subjects)} if run.dealt else stories


def tuned_voxels(run: Run, ds, subject) -> np.ndarray:
    """Indices of the voxels that a run tunes on, as many as it asks for, evenly spread over those of its rule."""
    voxels = evaluation.pick_voxels(ds, subject, rule=run.voxels)
    if run.region is not None:
        voxels = voxels[ds.rois(subject)[run.region][voxels]]
    if run.n_voxels is not None and run.n_voxels > len(voxels):
        raise ValueError(
            f"run {run.name}: asks for {run.n_voxels} voxels of {subject}, but only {len(voxels)} are "
            f"{run.voxels!r}{f' in {run.region}' if run.region else ''}; ask for fewer"
        )
    return evaluation.evenly(voxels, run.n_voxels)


def scores(run: Run, ds, tuner: BrainTuner) -> dict:
    """Scores of the test stories by subject and kind of response: {region: {score: [a number per story]}}."""
    if not run.evaluate_on:
        return {}
    recipe, encoder = tuner.recipe, tuner.encoder
    options = {
        "subjects": run.evaluate_on,
        "layers": readout_layer(encoder, recipe),
        "voxels": f"ceiling > {FLOOR}",
        "window": recipe.window,
        "hop": recipe.hop,
        "each_story": True,
        "beyond_low_level": True,
        "transform": transform(run, ds),
    }
    found = {subject: {} for subject in run.evaluate_on}
    kinds = {"noisy": False, "noise_free": True} if ds.simulated else {"noisy": False}
    for (kind, noise_free), (suffix, train) in product(kinds.items(), fits(run, ds).items()):
        table = evaluation.evaluate(encoder, ds, noise_free=noise_free, train=train, **options)
        for subject, rows in table.groupby("subject", sort=False):
            found[subject][kind + suffix] = by_region(rows)
    return found


def fits(run: Run, ds) -> dict:
    """{suffix of the kind of response: training stories of the ridge that evaluates}."""
    train = ds.split["train"]
    others = train[run.stories :] if run.fit_apart else []
    if run.fit_apart and not 0 < len(others) <= run.stories:
        raise ValueError(
            f"run {run.name}: fit_apart with {run.stories} of {len(train)} training stories leaves {len(others)}; "
            "expected at least one, and no more than were tuned on"
        )
    apart = {", other stories": others, ", same stories": train[: len(others)]}
    return {"": train} | (apart if run.fit_apart else {})


def transform(run: Run, ds):
    """What `evaluate` does to features before the ridge: nothing, or a linear map of the first subject's responses."""
    if not run.linear_map:
        return None
    stories, subject = tuning_stories(run, ds), run.subjects[0]
    voxels = tuned_voxels(run, ds, subject)
    responses = {story: ds.responses(subject, story, voxels=voxels) for story in stories}
    return partial(evaluation.linear_map, responses=responses, stories=stories)


def by_region(table) -> dict:
    """{region: {score: [a number per story]}}, for the regions that have numbers."""
    names = [name for name in results.SCORES if name in table]
    return {
        region: part[names].round(5).to_dict("list")
        for region, part in table.groupby("region", sort=False)
        if part[names].notna().all(axis=None)
    }


def perform(run: Run, out: Path) -> dict:
    """Tune, evaluate and record; the JSON appears whole or not at all, the adapter before it."""
    start = time.perf_counter()
    ds = datasets.load(run.dataset, subjects=sorted({*run.subjects, *run.evaluate_on}))
    encoder = SpeechEncoder.from_pretrained(run.model)
    tuning_stories(run, ds), fits(run, ds)  # what does not fit is refused before, not after, tuning
    checkpoints = runtime.cache_dir("zoo") / run.stem
    tuner = tune(run, ds, encoder, checkpoints, out)
    numbers = {"history": tuner.history, "kept_epoch": tuner.kept_epoch}
    numbers |= {"stories": ds.split["test"], "scores": scores(run, ds, tuner)}
    if tuner.recipe.adapter == "full":  # whose weights are too large to keep
        untuned = SpeechEncoder.from_pretrained(run.model)
        change = inside.parameter_change(untuned, encoder)
        numbers["parameter_change"] = change.to_dict("list")
    saved = {}
    if run.keep_model:
        with runtime.atomic(out / "adapters" / run.stem) as part:
            tuner.adapted.half().save_pretrained(part, save_embedding_layers=False)
            (part / "README.md").unlink(missing_ok=True)  # PEFT's empty form
            saved = {path.name: digest(path) for path in sorted(part.iterdir())}
    about = run.settings() | {"run": run.name, "group": run.group, "key": run.key}
    about["tree"] = about.pop("dataset")  # as `datasets.load` takes it
    about |= {"adapter": saved, "base_fingerprint": tuner.base_fingerprint, "bf16": in_bf16(run)}
    about |= {"seconds": round(time.perf_counter() - start)}
    about |= {"peak_mb": round(runtime.peak_memory_mb())}
    entry = results.record(out / f"{run.stem}.json", numbers, dataset=ds, **about)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return entry


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--grid", type=Path, default=HERE / "zoo.yaml")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    runs = {run.name: run for run in read_grid(options.grid)}
    if options.name not in runs:
        raise SystemExit(f"no run {options.name!r} in {options.grid}; it has {', '.join(runs)}")
    entry = perform(runs[options.name], options.out)
    print(f"{options.name}: {entry['about']['seconds']} s")


if __name__ == "__main__":
    main()
