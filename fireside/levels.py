"""What drives a simulated cortex: four levels of the speech, each of them what the levels below cannot explain.

acoustic: spectral shape and envelope; phonetic: articulation beyond acoustics; meaning: word vectors beyond acoustics,
articulation, rates, and the length, duration and frequency of words; context: how far each word agrees with what the last
sentences were about, beyond all of these. "Beyond" is linear: a regression on the lower levels, as they look after the haemodynamic response, is taken
away. It is fitted on the training stories alone, so the other stories can show whether it holds.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from scipy import fft
from scipy.stats import gamma

from brainlib import lowlevel
from brainlib.stories import Story
from brainlib.timing import DS003020, LEAD_IN_S, scan_trs

# another folder of the same layout: a simulation of its own, see tools/long_listening.py
ASSETS = Path(os.environ.get("FIRESIDE_ASSETS", Path(__file__).parent / "assets"))
LEVELS = ("acoustic", "phonetic", "meaning", "context")
VALIDATION = ("elevenbridges", "lastferry", "nightdriver", "pianotuner")
TEST = ("deepend", "examday", "roofgoat", "sourbread")  # the four with the most words of their own
RATE_HZ = 10  # of the levels' features, before the haemodynamic response
HRF_PEAKS_S = (4.0, 5.0, 6.0, 7.0)  # voxels lie between these (Handwerker et al. 2004)
SOUND_DB = (-65.0, -35.0)  # mean log mel energy of a frame: silence, and fully counted as sound
SENTENCES = 2  # before the present one, that context remembers
SHIFTS_S = (-1.5, 0.0, 1.5)  # of the lower levels, when their part of a level is taken away
PENALTY = 0.1  # of that regression, per row and unit variance

# Dimensions of each level: the first are common to all subjects, of the rest each subject has some of its own.
N_SHARED = {"acoustic": 8, "phonetic": 8, "meaning": 10, "context": 10}
N_PRIVATE = {"acoustic": 2, "phonetic": 1, "meaning": 2, "context": 2}
N_SUBJECTS = 8
# Principal components of GloVe that drive subjects, and those that do not.
PLANTED = tuple(i for i in range(43) if i % 5 not in (1, 3))
OTHER = tuple(i for i in range(43) if i % 5 in (1, 3))


# ------------------------------------------------------------------ stories and words
@lru_cache(maxsize=1)
def story_names() -> list[str]:
    """All stories, sorted."""
    return sorted(p.stem for p in (ASSETS / "stories").glob("*.txt"))


def training_stories() -> list[str]:
    """The stories that are neither for validation nor for test."""
    return [s for s in story_names() if s not in VALIDATION + TEST]


@cache
def embedded_story(name: str) -> Story:
    """A story straight from the package's assets, without any tree."""
    grid = ASSETS / "TextGrids" / f"{name}.TextGrid"
    return Story(name, ASSETS / "audio" / f"{name}.ogg", grid_path=grid)


@lru_cache(maxsize=1)
def _glove():
    """{word: row}, (n, 50) principal components in order of variance, (n,) log rank of frequency."""
    with np.load(ASSETS / "glove.npz") as file:
        rows = {word: i for i, word in enumerate(file["vocabulary"])}
        return rows, file["vectors"].astype(np.float32), file["log_rank"].astype(np.float32)


def vectors(words, which: str = "planted") -> np.ndarray:
    """Principal components of GloVe vectors (Pennington et al. 2014) of words.

    Parameters
    ----------
    words : sequence of str
        Case does not count.
    which : {"planted", "other"}
        The 26 components that drive simulated subjects, or 17 that drive none. Over the words as they are spoken in
        the stories the two are uncorrelated.

    Returns
    -------
    vectors : array of shape (n_words, n_components), float32
        NaN for a word that neither the stories nor the probe set has.
    """
    if which not in ("planted", "other"):
        raise ValueError(f"word vectors {which!r}; expected 'planted' or 'other'")
    rows, components, _ = _glove()
    found = [rows.get(str(word).lower(), -1) for word in words]
    padded = np.vstack([components, np.full((1, components.shape[1]), np.nan, np.float32)])
    return padded[found][:, list(PLANTED if which == "planted" else OTHER)]


def log_rank(words) -> np.ndarray:
    """Natural log of each word's rank by frequency in GloVe's corpus, (n_words,): 0 for "the"; NaN for unknown words."""
    rows, _, ranks = _glove()
    return np.append(ranks, np.nan)[[rows.get(str(word).lower(), -1) for word in words]]


def word_vectors(story, which: str = "planted"):
    """`vectors` of a story's words at their middles: (n_words, n_components) with zeros for unknown words, (n_words,) seconds."""
    return np.nan_to_num(vectors(story.words.text, which)), lowlevel.middles(story.words)


@lru_cache(maxsize=2)
def arbitrary_code(seed=(3, 1)) -> dict[str, np.ndarray]:
    """The driving vectors of the stories' word types, dealt out anew among these types: SIMCODE's, or another by the seed."""
    types = sorted({w.lower() for s in story_names() for w in embedded_story(s).words.text})
    order = np.random.default_rng(seed).permutation(len(types))
    return dict(zip(types, np.nan_to_num(vectors(types))[order]))


# ------------------------------------------------------------------ features at 10 Hz
def _n_times(story) -> int:
    """From sound onset to the end of the scan."""
    return int((scan_trs(story.duration) * DS003020.tr - LEAD_IN_S) * RATE_HZ)


def _on_grid(values, times, n) -> np.ndarray:
    """Events (n_events, n_features) added up on the 10 Hz grid: (n, n_features)."""
    grid = np.zeros((n, values.shape[1]), np.float32)
    np.add.at(grid, np.minimum((np.asarray(times) * RATE_HZ).astype(int), n - 1), values)
    return grid


def _frames(values, n) -> np.ndarray:
    """Means of 100 Hz frames over 0.1 s, zeros after the sound: (n, n_features)."""
    steps = lowlevel.RATE_HZ // RATE_HZ
    means = values[: len(values) // steps * steps].reshape(-1, steps, values.shape[1]).mean(1)
    grid = np.zeros((n, values.shape[1]), np.float32)
    grid[: len(means)] = means[:n]
    return grid


@cache
def _raw(name: str) -> dict[str, np.ndarray]:
    """What a story holds before anything is taken away, each (n_times, n_features)."""
    story = embedded_story(name)
    n = _n_times(story)
    mel, _ = lowlevel.mel(story)
    loudness = mel.mean(1, keepdims=True)
    low, high = SOUND_DB
    sound = np.clip((loudness - low) / (high - low), 0, 1)
    words = story.words
    form = [words.end - words.start, words.text.str.len(), log_rank(words.text)]
    articulation, times = lowlevel.articulation(story)
    phonemes, _ = lowlevel.phonemes(story)
    at_word = lowlevel.middles(words)
    return {
        "mel": _frames(mel / 80 + 1, n),
        "sound": _frames(sound, n),
        "shape": _frames((mel - loudness) * sound, n),
        "articulation": _on_grid(articulation, times, n),
        "phonemes": _on_grid(phonemes, times, n),
        "rates": np.hstack(
            [
                _on_grid(np.ones((len(at_word), 1)), at_word, n),
                _on_grid(np.ones((len(times), 1)), times, n),
            ]
        ),
        "word form": _on_grid(np.nan_to_num(np.column_stack(form)), at_word, n),
    }


def sentence_of_words(name: str) -> np.ndarray:
    """Number of the sentence that each word of a story is in, counted from 0: (n_words,).

    Raises
    ------
    ValueError
        If text and TextGrid differ in their number of words.
    """
    text = (ASSETS / "stories" / f"{name}.txt").read_text(encoding="utf-8").split("\n\n", 1)[1]
    sentences = re.split(r"(?<=[.!?])[\"'”’)]*\s+", " ".join(text.split()))
    lengths = [len([t for t in s.split() if re.search(r"\w", t)]) for s in sentences]
    n_words = len(embedded_story(name).words)
    if sum(lengths) != n_words:
        raise ValueError(f"{name}: {sum(lengths)} words in the text, {n_words} in the TextGrid")
    return np.repeat(np.arange(len(lengths)), lengths)


def _agreement(name: str, values) -> np.ndarray:
    """Word vectors times the mean vector of the last sentences, dimension by dimension: (n_words, k).

    Large where a word goes on with what was talked of, negative where it turns away; zero in the first sentence. A product,
    so no linear filter of the word vectors gives it.
    """
    sentence = sentence_of_words(name)
    before = np.zeros_like(values)
    for i in range(1, sentence[-1] + 1):
        before[sentence == i] = values[(sentence >= i - SENTENCES) & (sentence < i)].mean(0)
    return values * before


# ------------------------------------------------------------------ what lies beyond the lower levels
def hrf(peak: float, rate: float = RATE_HZ) -> np.ndarray:
    """Double-gamma haemodynamic response (Friston et al. 1998) peaking at `peak` seconds, 32 s long, unit area."""
    t = np.arange(0, 32, 1 / rate)
    shape = gamma.pdf(t, peak + 1) - gamma.pdf(t, peak + 11) / 6
    return (shape / shape.sum()).astype(np.float32)


def through_hrf(values, name: str, *, shift: float = 0.0) -> np.ndarray:
    """Features at 10 Hz, `shift` seconds later, through each haemodynamic response, at a story's TRs: (n_peaks, n_trs, n_features)."""
    at = ((embedded_story(name).tr_times - shift) * RATE_HZ).astype(int)
    kernels = np.stack([hrf(peak) for peak in HRF_PEAKS_S])
    size = fft.next_fast_len(len(values) + kernels.shape[1], real=True)
    spectrum = fft.rfft(values, size, axis=0)
    at = np.clip(at, 0, len(values) - 1)
    return np.stack(
        [
            fft.irfft(spectrum * fft.rfft(kernel, size)[:, None], size, axis=0)[at]
            for kernel in kernels
        ]
    )


def _shifted(values, seconds: float) -> np.ndarray:
    """(n_times, n_features) later by some seconds, or earlier if negative; zeros where there was nothing."""
    step = int(seconds * RATE_HZ)
    moved = np.zeros_like(values)
    moved[max(step, 0) : len(values) + min(step, 0)] = values[
        max(-step, 0) : len(values) - max(step, 0)
    ]
    return moved


def _beyond(features: dict, lower: dict) -> dict[str, np.ndarray]:
    """Features less what lower ones explain of them after the haemodynamic response; both (n_times, n_features) by story."""
    x, y = [], []
    for s in training_stories():
        shifted = [through_hrf(lower[s], s, shift=shift) for shift in SHIFTS_S]
        x += list(np.concatenate(shifted, axis=2))
        y += list(through_hrf(features[s], s))
    x, y = np.concatenate(x), np.concatenate(y)
    scale = x.std(0) + 1e-6
    x = (x - x.mean(0)) / scale
    gram = (x.T @ x).astype(np.float64) + PENALTY * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (y - y.mean(0))) / scale[:, None]
    weights = np.split(weights.astype(np.float32), len(SHIFTS_S))
    return {
        s: features[s] - sum(_shifted(lower[s], t) @ w for t, w in zip(SHIFTS_S, weights))
        for s in features
    }


def _rotated(values: dict, n: int) -> dict[str, np.ndarray]:
    """The first n principal components over the training stories, in order of variance, by story."""
    together = np.concatenate([values[s] for s in training_stories()]).astype(np.float64)
    _, axes = np.linalg.eigh(together.T @ together)
    axes = axes[:, ::-1][:, :n].astype(np.float32)
    return {s: v @ axes for s, v in values.items()}


def _less_mean(values: dict, counts: dict) -> dict[str, np.ndarray]:
    """Sums of events less the mean event of the training stories times the number of events, so that no rate is left."""
    total = sum(values[s].sum(0) for s in training_stories())
    number = sum(counts[s].sum() for s in training_stories())
    return {s: values[s] - counts[s] * (total / number) for s in values}


def _n_dimensions(level: str) -> int:
    return N_SHARED[level] + N_SUBJECTS * N_PRIVATE[level]


@lru_cache(maxsize=1)
def _sounds() -> dict[str, dict[str, np.ndarray]]:
    """{level: {story: (n_times, n_dimensions)}} of the levels that need no meaning, and what lies below meaning."""
    # in threads, because decoding and Fourier transforms free Python's lock
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        raw = dict(zip(story_names(), pool.map(_raw, story_names())))

    def part(name):
        return {s: r[name] for s, r in raw.items()}

    shape = _rotated(_less_mean(part("shape"), part("sound")), _n_dimensions("acoustic") - 1)
    acoustic = {s: np.hstack([raw[s]["sound"] - raw[s]["sound"].mean(), shape[s]]) for s in raw}
    articulation = _less_mean(part("articulation"), {s: r["rates"][:, 1:] for s, r in raw.items()})
    articulation = _rotated(articulation, _n_dimensions("phonetic"))
    below = ("mel", "phonemes", "rates", "word form")
    return {
        "acoustic": acoustic,
        "phonetic": _beyond(articulation, part("mel")),
        "below meaning": {s: np.hstack([r[k] for k in below]) for s, r in raw.items()},
    }


@lru_cache(maxsize=2)
def driving_features(code: bool = False) -> dict[str, dict[str, np.ndarray]]:
    """Features of the four levels at 10 Hz from sound onset, scaled to unit variance after the haemodynamic response.

    Parameters
    ----------
    code : bool
        Meaning and context of the arbitrary code: word vectors dealt out anew among the word types.

    Returns
    -------
    features : dict by level of dicts by story of arrays of shape (n_times, n_dimensions)
    """
    sounds, below = _sounds(), {}
    meaning, context = {}, {}
    for name in story_names():
        story = embedded_story(name)
        values, times = word_vectors(story)
        below[name] = [sounds["below meaning"][name]]
        if code:
            # of the true vectors nothing must be left in it, however often a few words are said
            true = np.hstack([values, word_vectors(story, "other")[0]])
            below[name].append(_on_grid(true, times, _n_times(story)))
            values = np.stack([arbitrary_code()[w.lower()] for w in story.words.text])
        below[name] = np.hstack(below[name])
        meaning[name] = _on_grid(values, times, _n_times(story))
        context[name] = _on_grid(_agreement(name, values), times, _n_times(story))
    rates = {s: _raw(s)["rates"][:, :1] for s in meaning}
    meaning, context = _less_mean(meaning, rates), _less_mean(context, rates)
    features = {
        "acoustic": sounds["acoustic"],
        "phonetic": sounds["phonetic"],
        "meaning": _beyond(meaning, below),
        "context": _beyond(context, {s: np.hstack([below[s], meaning[s]]) for s in context}),
    }
    return {level: _unit_variance(by_story) for level, by_story in features.items()}


def _unit_variance(values: dict) -> dict[str, np.ndarray]:
    """Scaled so that the training stories' variance is one after the haemodynamic response; not to be written to."""
    driven = np.concatenate([through_hrf(values[s], s).mean(0) for s in training_stories()])
    scaled = {s: v / driven.std(0) for s, v in values.items()}
    for array in scaled.values():
        array.setflags(write=False)
    return scaled


def unheard_share(stories) -> float:
    """Share of the content-word tokens of some stories whose type no training story has.

    A content word has a letter and is none of scikit-learn's English stop words; case does not count.
    """
    heard = {w for s in training_stories() for w in content_words(s)}
    tokens = [w for s in stories for w in content_words(s)]
    return float(np.mean([w not in heard for w in tokens]))


def content_words(name: str) -> list[str]:
    """The content words of a story in order, lower case (see `unheard_share`)."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = [w.lower() for w in embedded_story(name).words.text]
    return [
        w
        for w in words
        if w not in ENGLISH_STOP_WORDS and w.split("'")[0] not in ENGLISH_STOP_WORDS
    ]
