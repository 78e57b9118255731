"""Numbers and tables of the page *The data* that have to be computed: the split, dimensions, word vectors, bounds.

    python tools/fireside_facts.py       # prints them

Computing takes a minute, most of it one subject's build and the bounds. The answer is stored under a hash of the data set
and of the code that it depends on.
"""

from __future__ import annotations

import itertools
import json
import zlib
from pathlib import Path

import numpy as np
from mdtable import table

import fireside
from brainlib import datasets, lowlevel
from brainlib.encoding import RidgeEncoder
from brainlib.runtime import atomic, cache_dir
from fireside import levels, simulation, topography
from fireside.bounds import PURE

ROOT = Path(__file__).resolve().parents[1]
SUBJECT = fireside.SUBJECTS[0]
PARTS = {"train": "training", "val": "validation", "test": "test"}


def facts() -> dict[str, str]:
    """What the page names as @@NAME@@, by name; computed once for each state of the data set and the code."""
    path = cache_dir("book") / f"fireside-{fingerprint()}.json"
    if not path.exists():
        computed = compute(datasets.load("fireside", subjects=SUBJECT))
        with atomic(path) as part:
            part.write_text(json.dumps(computed, indent=1))
    return json.loads(path.read_text())


def fingerprint() -> str:
    """Hash of fireside with its assets, of brainlib's code and of this file."""
    files = [*ROOT.glob("fireside/**/*"), *ROOT.glob("brainlib/*.py"), Path(__file__)]
    total = 0
    for path in sorted(p for p in files if p.is_file() and p.suffix != ".pyc"):
        total = zlib.crc32(path.read_bytes(), zlib.crc32(path.name.encode(), total))
    return f"{total:08x}"


def compute(ds) -> dict[str, str]:
    numbers = of_stories(ds) | of_levels() | of_vectors() | of_probe_set() | of_subjects(ds)
    return {name: str(value) for name, value in numbers.items()}


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


# ------------------------------------------------------------------ stories and words
def of_stories(ds) -> dict:
    rows = []
    for part, names in ds.split.items():
        stories = [ds.story(name) for name in names]
        minutes = sum(story.duration for story in stories) / 60
        words = sum(len(story.words) for story in stories)
        unheard = percent(fireside.unheard_share(names)) if part != "train" else ""
        repeats = {simulation.REPEATS.get(name, 1) for name in names}
        rows.append([PARTS[part], len(names), f"{minutes:.0f}", words, *repeats, unheard])
    header = ["part", "stories", "minutes", "words", "repeats of each", "unheard content words"]
    return {
        "SPLIT_TABLE": table(header, rows),
        "TEST_STORIES": ", ".join(f"`{name}`" for name in ds.split["test"]),
        "VAL_STORIES": ", ".join(f"`{name}`" for name in ds.split["val"]),
    }


def of_levels() -> dict:
    numbers = {
        "SENTENCES": levels.SENTENCES,
        "SHIFT_S": f"{max(levels.SHIFTS_S):g}",
        "PURE": percent(PURE),
        "SHIFT_MM": f"{topography.SHIFT_MM:g}",
        "SCALE": percent(np.exp(topography.SCALE) - 1),
        "FOOLING_TABLE": table(
            ["subject", "what drives it"], [[f"`{k}`", v] for k, v in fireside.FOOLING.items()]
        ),
    }
    for level in fireside.LEVELS:
        name = level.upper()
        numbers[f"{name}_COMMON"] = levels.N_SHARED[level]
        numbers[f"{name}_OWN"] = levels.N_PRIVATE[level]
        numbers[f"{name}_SHARED"] = percent(simulation.SHARED[level])
    for noise in ("clean", "scanner"):
        low, high = simulation.NOISE[noise]
        numbers[f"{noise.upper()}_SIGNAL"] = f"{100 * low:.0f} to {100 * high:.0f} %"
    return numbers


def of_vectors() -> dict:
    """How the word vectors that drive subjects and the others go together, over tokens and over types."""
    tokens = [w.lower() for s in levels.story_names() for w in levels.embedded_story(s).words.text]
    types = sorted(set(tokens))
    probe = sorted(set(fireside.probe_set()[1].word))
    driving, other = both_vectors(types)
    r_types = correlations(driving, other)
    folds = np.arange(len(types)) % 10
    predicted = np.zeros_like(other)
    for fold in range(10):
        fit = folds != fold
        predicted[~fit] = ridge(driving[fit], other[fit]).predict(driving[~fit])
    found = np.diagonal(correlations(predicted, other))
    driving_probe, other_probe = both_vectors(probe)
    predicted = ridge(driving, other).predict(driving_probe)
    found_probe = np.diagonal(correlations(predicted, other_probe))
    return {
        "N_DRIVING": driving.shape[1],
        "N_OTHER": other.shape[1],
        "N_TYPES": f"{len(types):,}",
        "VECTORS_TOKENS": f"{np.abs(correlations(*both_vectors(tokens))).max():.4f}",
        "VECTORS_TYPES": f"{np.abs(r_types).max():.2f}",
        "VECTORS_RIDGE": f"{found.mean():.2f}",
        "VECTORS_RIDGE_MAX": f"{found.max():.2f}",
        "VECTORS_PROBE": f"{found_probe.mean():.2f}",
        "VECTORS_PROBE_MAX": f"{found_probe.max():.2f}",
    }


def both_vectors(words) -> tuple[np.ndarray, np.ndarray]:
    """(n_words, 26) that drive subjects, (n_words, 17) that do not; zeros for unknown words."""
    return np.nan_to_num(fireside.vectors(words)), np.nan_to_num(fireside.vectors(words, "other"))


def correlations(x, y) -> np.ndarray:
    """Pearson r of each column of x with each of y."""
    return np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :]


def ridge(x, y):
    from sklearn.linear_model import RidgeCV

    return RidgeCV(np.logspace(-2, 5, 15)).fit(x, y)


def of_probe_set() -> dict:
    stories, words = fireside.probe_set()
    return {
        "PROBE_SENTENCES": words.sentence.nunique(),
        "PROBE_WORDS": words.word.nunique(),
        "PROBE_CATEGORIES": words.category.nunique(),
        "PROBE_VOICES": len(stories),
        "PROBE_MINUTES": f"{sum(story.duration for story in stories.values()) / 60:.0f}",
    }


# ------------------------------------------------------------------ subjects
def of_subjects(ds) -> dict:
    truth = ds.truth(SUBJECT)
    code = datasets.load("fireside", root=ds.root, subjects="SIMCODE")
    driven = truth.snr > 0
    best = np.sqrt(truth.shared[driven]).groupby(truth.level[driven]).mean()
    return {
        "DRIVEN": percent(driven.mean()),
        "VOXELS": f"{len(truth):,}",
        "SAME_LEVEL": percent(same_level()),
        "BEST_TRANSFER": ", ".join(f"{best[level]:.2f} ({level})" for level in fireside.LEVELS),
        "BOUNDS_TABLE": bounds_table(fireside.bounds(ds, SUBJECT)),
        "GROUPS_MEANING": f"{r_of_phoneme_groups(ds, SUBJECT):.2f}",
        "GROUPS_CODE": f"{r_of_phoneme_groups(code, 'SIMCODE'):.2f}",
    }


def same_level() -> float:
    """Share of the voxels driven in both of two subjects that the same level drives most, mean over pairs of subjects."""
    maps = []
    for subject in fireside.SUBJECTS:
        place = simulation._topography(subject, "clean")
        maps.append(np.where(place["snr"] > 0, place["shares"].argmax(0), -1))
    pairs = itertools.combinations(maps, 2)
    return float(np.mean([np.mean((a == b)[(a >= 0) & (b >= 0)]) for a, b in pairs]))


def r_of_phoneme_groups(ds, subject: str) -> float:
    """Mean r of pairs and triples of phonemes with noise-free voxels of meaning, on stories not fitted on."""
    truth = ds.truth(subject)
    voxels = np.flatnonzero((truth.meaning > PURE) & (truth.snr > 0))
    names = ("diphones", "triphones")
    x = {s: lowlevel.low_level(ds.story(s), names) for s in ds.stories}
    y = {s: ds.responses(subject, s, voxels=voxels, noise_free=True) for s in ds.stories}
    train, held_out = ds.split["train"], ds.split["val"] + ds.split["test"]
    model = RidgeEncoder().fit([x[s] for s in train], [y[s] for s in train])
    return float(model.score([x[s] for s in held_out], [y[s] for s in held_out]).mean())


def bounds_table(bounds) -> str:
    rows = []
    for row in bounds.itertuples():
        own = row.features == "its own"
        limit = f"at least {row.limit:.2f}" if own else f"below {row.limit:.2f}"
        rows.append([row.voxels, row.features, row.n_voxels, f"{row.r:.2f}", limit])
    return table(["voxels of", "features", "number of voxels", "$r$", "required"], rows)


if __name__ == "__main__":
    for name, value in facts().items():
        print(name, value, sep="\n" if "\n" in value else ": ")
