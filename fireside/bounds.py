"""How well the simulation keeps its promise that each level lies beyond those below it."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from brainlib import lowlevel
from brainlib.encoding import RidgeEncoder
from brainlib.timing import downsample

from .levels import LEVELS, log_rank, word_vectors
from .simulation import level_features

PURE = 0.97  # voxels count as a level's where it has at least this share of the signal
LONG = "word vectors, 0 to 20 s"
RATES = ("wordrate", "phonemerate")
SOUNDS = ("mel", "articulation", "phonemes")


def bounds(ds, subject: str) -> pd.DataFrame:
    """Noise-free responses of the voxels of one level, predicted by features of others on stories not fitted on.

    Parameters
    ----------
    ds : Dataset
        fireside.
    subject : str

    Returns
    -------
    table : DataFrame
        One row per kind of `voxels` (a level that the subject has) and of `features` ("rates", "all lower levels",
        "meaning", "context", `LONG`, "its own"): `n_voxels`, `r` (Pearson correlation over the validation and test stories; mean over voxels of its
        size, of its value where the features are its own),
        `limit`: what `r` must stay below, or reach where the features are its own.

    Notes
    -----
    A `RidgeEncoder` with delays of 1 to 4 TRs (`LONG`: 0 to 10), fitted on the training stories. Lower levels of phonetic voxels are the
    mel spectrum; of meaning and context the mel spectrum, phonemes and their articulation, rates of words and phonemes,
    and length, duration and frequency of words.
    """
    truth = ds.truth(subject)
    low = ["mel", *SOUNDS[1:], *RATES, "word form"]
    questions = [
        ("acoustic", "rates", RATES, 0.60),
        ("phonetic", "all lower levels", ["mel"], 0.45),
        ("meaning", "all lower levels", low, 0.10),
        ("meaning", "context", ["context"], 0.45),
        ("context", "all lower levels", low, 0.10),
        ("context", "meaning", ["meaning"], 0.45),
        ("context", LONG, ["word vectors"], 0.20),
        *((level, "its own", [level], 0.90) for level in LEVELS),
    ]
    rows = []
    for level, name, parts, limit in questions:
        voxels = np.flatnonzero((truth[level] > PURE) & (truth.snr > 0))
        if not len(voxels):  # of a subject made to fool
            continue
        x = {s: _features(ds.story(s), parts, subject) for s in ds.stories}
        y = {s: ds.responses(subject, s, voxels=voxels, noise_free=True) for s in ds.stories}
        train, held_out = ds.split["train"], ds.split["val"] + ds.split["test"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without noise the smallest penalty is often right
            delays = range(11) if name == LONG else (1, 2, 3, 4)
            model = RidgeEncoder(delays=delays).fit([x[s] for s in train], [y[s] for s in train])
        r = model.score([x[s] for s in held_out], [y[s] for s in held_out])
        r = r if name == "its own" else np.abs(r)
        rows.append((level, name, len(voxels), float(r.mean()), limit))
    return pd.DataFrame(rows, columns=["voxels", "features", "n_voxels", "r", "limit"])


def _features(story, parts, subject):
    """Features of a story at TRs, side by side: (n_trs, n_features)."""
    out = []
    for part in parts:
        if part in LEVELS:
            out.append(level_features(story, part, subject=subject))
        elif part == "word vectors":
            both = [word_vectors(story, which) for which in ("planted", "other")]
            out += [downsample(values, times, story.tr_times) for values, times in both]
        elif part == "word form":
            words = story.words
            form = [
                words.end - words.start,
                words.text.str.len(),
                np.nan_to_num(log_rank(words.text)),
            ]
            out.append(downsample(np.column_stack(form), lowlevel.middles(words), story.tr_times))
        else:
            out.append(lowlevel.feature_space(story, part))
    return np.hstack(out)
