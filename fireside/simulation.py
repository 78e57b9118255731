"""fireside: spoken stories written for this book, and *simulated* subjects who were presented them.

The stories, their sound and their times are real (text to speech); the brains are not. Each subject's cortex is driven
by four known levels of the speech, in regions placed by published coordinates, through a haemodynamic response and
under autocorrelated, spatially smooth noise, so that every method in the book can be compared with a ground truth.
"""

from __future__ import annotations

import json
import shutil
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy import signal

from brainlib import lowlevel
from brainlib.datasets import DERIVATIVE, RESPONSES, Dataset
from brainlib.runtime import atomic, cache_dir
from brainlib.stories import Story
from brainlib.timing import DS003020, LEAD_IN_S, downsample, scan_trs

from .topography import REGIONS, RIGHT, cortex, field, nearest_region, rois

ASSETS = Path(__file__).parent / "assets"
SUBJECTS = tuple(f"SIM{i:02d}" for i in range(1, 9))
REPEATS = {"lastferry": 10, "elevenbridges": 5, "secondopinion": 5}  # of test, validation stories
LEVELS = ("acoustic", "phonetic", "meaning", "context")
VERSION = 2  # of the simulation: raise it when what is simulated changes
RATE_HZ = 10  # of the levels' features, before the haemodynamic response
CONTEXT_S = 6.0  # time over which context integrates word meaning
HRF_PEAKS_S = (4.0, 5.0, 6.0, 7.0)  # voxels lie between these (Handwerker et al. 2004)
# share of one repeat's variance that is signal: (weakest, strongest driven voxel)
NOISE = {"clean": (0.10, 0.50), "scanner": (0.01, 0.12), "null": (0.0, 0.0)}


def open_dataset(root: str | Path | None = None, *, noise: str = "clean", **options) -> Dataset:
    """The tree of fireside with its stories; subjects are simulated when first read. See `datasets.load`."""
    root = build([], noise=noise, root=root)
    return Dataset(
        root,
        prepare=lambda subjects, stories, what: build(subjects, noise=noise, root=root),
        **options,
    )


def build(subjects=SUBJECTS, *, noise: str = "clean", root: str | Path | None = None) -> Path:
    """Simulate subjects into the layout of ds003020; what is whole already is left as it is.

    Parameters
    ----------
    subjects : sequence of str
        Of SIM01 to SIM08.
    noise : {"clean", "scanner", "null"}
        "clean": 10 to 50 % of a single repeat's variance is signal in driven voxels, so that an hour suffices to
        learn from; "scanner": ceilings as in real recordings; "null": noise only.
    root : path, optional
        The tree; ``cache_dir("fireside", noise)`` if left out.

    Returns
    -------
    root : Path

    Notes
    -----
    A subject's folder is written under another name and renamed when it is whole, so a killed build leaves nothing
    that could be taken for data. Two builds give the same bytes on one machine.
    """
    if noise not in NOISE:
        raise ValueError(f"noise level {noise!r}; expected one of {sorted(NOISE)}")
    root = Path(root) if root else cache_dir("fireside", noise)
    _lay_out(root, noise)
    for subject in subjects:
        if subject not in SUBJECTS:
            raise KeyError(f"fireside has no subject {subject!r}; it has {list(SUBJECTS)}")
        target = root / DERIVATIVE / RESPONSES / subject
        if not target.is_dir():  # written last of a subject's files, and by one rename
            _build_subject(root, subject, noise, target)
    return root


def _stories() -> list[str]:
    return sorted(p.stem for p in (ASSETS / "stories").glob("*.txt"))


def embedded_story(name: str) -> Story:
    """A story straight from the package's assets, without any tree."""
    grid = ASSETS / "TextGrids" / f"{name}.TextGrid"
    return Story(name, ASSETS / "audio" / f"{name}.ogg", grid_path=grid)


@lru_cache(maxsize=1)
def _assets_hash() -> str:
    total = 0
    for path in sorted(p for p in ASSETS.rglob("*") if p.is_file()):
        total = zlib.crc32(path.read_bytes(), zlib.crc32(path.name.encode(), total))
    return f"{total:08x}"


def _lay_out(root: Path, noise: str):
    """Sound, TextGrids, scan lengths and description; responses of another version are removed, another data set is refused."""
    path = root / "dataset_description.json"
    description = _description(noise)
    present = json.loads(path.read_text()) if path.exists() else {}
    if present == description:
        return
    name, level = present.get("Name"), present.get("NoiseLevel")
    if path.exists() and (name, level) != ("fireside", noise):
        raise ValueError(
            f"{root} holds {name!r} at noise {level!r}; expected an empty folder or fireside at {noise!r}"
        )
    for folder in (RESPONSES, "truth", "rois", "fsaverage5") if present else ():  # older version
        shutil.rmtree(root / DERIVATIVE / folder, ignore_errors=True)
    stories = [embedded_story(name) for name in _stories()]
    for story in stories:
        _copy(story.audio_path, root / "stimuli")
        _copy(story.grid_path, root / DERIVATIVE / "TextGrids")
    volumes = {story.name: scan_trs(story.duration) for story in stories}
    _write_json(root / DERIVATIVE / "respdict.json", volumes)
    _write_json(path, description)


def _description(noise: str) -> dict:
    """What ``dataset_description.json`` says: split, version and noise level."""
    most = max(REPEATS.values())
    return {
        "Name": "fireside",
        "BIDSVersion": "1.8.0",
        "DatasetType": "derivative",
        "License": "CC BY 4.0",
        "Simulated": True,
        "SimulationVersion": f"{VERSION}-{_assets_hash()}",
        "NoiseLevel": noise,
        "Subjects": list(SUBJECTS),
        "Split": {
            "train": [s for s in _stories() if s not in REPEATS],
            "val": [s for s, n in REPEATS.items() if n < most],
            "test": [s for s, n in REPEATS.items() if n == most],
        },
    }


def _copy(source: Path, folder: Path):
    with atomic(folder / source.name) as part:
        shutil.copyfile(source, part)


def _write_json(path, content):
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=1))


# ------------------------------------------------------------------ levels of the speech
@lru_cache(maxsize=1)
def _token_means():
    """Mean articulation over all phonemes and mean word vector over all words, so that features of levels carry no rate."""
    stories = [embedded_story(s) for s in _stories()]
    return (
        np.concatenate([lowlevel.articulation(s)[0] for s in stories]).mean(0),
        np.concatenate([word_vectors(s)[0] for s in stories]).mean(0),
    )


@lru_cache(maxsize=1)
def _glove():
    with np.load(ASSETS / "glove.npz") as file:
        return {w: v[:20].astype(np.float32) for w, v in zip(file["vocabulary"], file["vectors"])}


def word_vectors(story):
    """Principal components of GloVe vectors (Pennington et al. 2014) at the middle of each word: (n_words, 20), times.

    Only the words of fireside's stories ship with the package; any other word is a row of zeros.
    """
    table = _glove()
    width = len(next(iter(table.values())))
    rows = [table.get(w.lower(), np.zeros(width, np.float32)) for w in story.words.text]
    return np.array(rows, np.float32).reshape(-1, width), lowlevel.middles(story.words)


@lru_cache(maxsize=64)
def _levels(name: str) -> dict[str, np.ndarray]:
    """Features of the four levels at 10 Hz from sound onset to the end of the scan, each (n_times, n_features)."""
    story = embedded_story(name)
    n = int((scan_trs(story.duration) * DS003020.tr - LEAD_IN_S) * RATE_HZ)
    loud, _ = lowlevel.mel(story)
    acoustic = np.zeros((n, loud.shape[1]), np.float32)
    steps = lowlevel.RATE_HZ // RATE_HZ
    frames = loud[: len(loud) // steps * steps].reshape(-1, steps, loud.shape[1]).mean(1) / 80 + 1
    acoustic[: len(frames)] = frames[:n]
    levels = {"acoustic": acoustic}
    for level, (values, times), mean in zip(
        LEVELS[1:3], (lowlevel.articulation(story), word_vectors(story)), _token_means()
    ):
        levels[level] = np.zeros((n, values.shape[1]), np.float32)
        np.add.at(levels[level], np.minimum((times * RATE_HZ).astype(int), n - 1), values - mean)
    kernel = np.exp(-np.arange(0, 4 * CONTEXT_S, 1 / RATE_HZ) / CONTEXT_S)
    context = signal.fftconvolve(levels["meaning"], kernel[:, None], axes=0)[:n]
    return levels | {"context": context.astype(np.float32)}


def level_features(story, level: str) -> np.ndarray:
    """What drives a simulated voxel of that level, before the haemodynamic response: (n_trs, n_features), at TRs."""
    if level not in LEVELS:
        raise KeyError(f"no level {level!r}; expected one of {list(LEVELS)}")
    values = _levels(story.name)[level]
    return downsample(values, np.arange(len(values)) / RATE_HZ, story.tr_times)


def hrf(peak: float, rate: float = RATE_HZ) -> np.ndarray:
    """Double-gamma haemodynamic response (Friston et al. 1998) peaking at `peak` seconds, 32 s long, unit area."""
    from scipy.stats import gamma

    t = np.arange(0, 32, 1 / rate)
    shape = gamma.pdf(t, peak + 1) - gamma.pdf(t, peak + 11) / 6
    return (shape / shape.sum()).astype(np.float32)


@lru_cache(maxsize=1)
def _driven() -> dict[str, list[np.ndarray]]:
    """For each level a list over stories of (n_peaks, n_trs, n_features): features through each haemodynamic response, z-scored over all."""
    driven = {}
    for level in LEVELS:
        stories = []
        for name in _stories():
            values = _levels(name)[level]
            at = (embedded_story(name).tr_times * RATE_HZ).astype(int)
            convolved = [
                signal.fftconvolve(values, hrf(p)[:, None], axes=0)[: len(values)][at]
                for p in HRF_PEAKS_S
            ]
            stories.append(np.stack(convolved).astype(np.float32))
        everything = np.concatenate(stories, axis=1)
        mean, scale = everything.mean(1, keepdims=True), everything.std((0, 1))
        if level != "acoustic":
            scale = scale.mean()
        driven[level] = [(s - mean) / scale for s in stories]
    return driven


# ------------------------------------------------------------------ subjects
def _seed(*words) -> np.random.Generator:
    return np.random.default_rng(
        [zlib.crc32(str(w).encode()) for w in ("fireside", VERSION, *words)]
    )


def _topography(subject: str, noise: str) -> dict[str, np.ndarray]:
    """What drives each voxel of a subject: shares of the levels, snr, peak of the response, weights of each level's features."""
    distance, n_left = cortex()[2], cortex()[3]
    own = _seed("listener", subject)  # the word is part of the seed
    shares = np.zeros((len(LEVELS), distance.shape[1]))
    strength = np.zeros(distance.shape[1])
    for d, (_, reach, peak, levels, roi) in zip(distance, REGIONS.values()):
        of_region = peak * own.uniform(0.85, 1.0) * np.exp(-0.5 * (d / reach) ** 2)
        of_region[n_left:] *= 1.0 if roi.startswith("auditory") else RIGHT
        # the nearest region decides, its neighbours blend in
        shares += of_region**3 * np.array(levels)[:, None]
        strength = np.maximum(strength, of_region)
    shares /= np.maximum(shares.sum(0), 1e-9)
    null_regions = [i for i, r in enumerate(REGIONS.values()) if r[2] == 0]
    strength[np.isin(nearest_region(), null_regions)] = 0.0
    low, high = NOISE[noise]
    driven = strength > 0.08
    gain = own.uniform(0.85, 1.0) * np.exp(0.15 * field(own, 1, passes=3)[0])
    level = np.clip((strength - 0.08) / 0.8, 0, 1) * gain
    snr = np.where(driven, low + (high - low) * np.clip(level, 0, 1), 0.0)
    parts = {
        "shares": shares,
        "snr": snr,
        "hrf_peak": np.clip(
            5.3 + 0.7 * field(own, 1, passes=3)[0], HRF_PEAKS_S[0], HRF_PEAKS_S[-1]
        ),
    }
    for name in LEVELS:
        n_features = _driven()[name][0].shape[2]
        common = field(_seed("shared", name), n_features, passes=2)
        # topography is shared, weights differ
        weights = np.sqrt(0.7) * common + np.sqrt(0.3) * field(own, n_features, passes=2)
        if name == "acoustic":  # tonotopy: each voxel prefers a band, which drifts over cortex
            centre = n_features * (0.5 + 0.25 * np.clip(weights[0], -1.8, 1.8))
            weights = np.exp(-0.5 * ((np.arange(n_features)[:, None] - centre) / 5) ** 2)
        parts[name] = weights.astype(np.float32)
    return parts


# ------------------------------------------------------------------ responses
def _build_subject(root: Path, subject: str, noise: str, target: Path):
    import h5py

    parts = _topography(subject, noise)
    levels = {name: parts["shares"][i] * (parts["snr"] > 0) for i, name in enumerate(LEVELS)}
    _save(
        root / DERIVATIVE / "truth" / f"{subject}.npz",
        **levels,
        snr=parts["snr"],
        hrf_peak=parts["hrf_peak"],
    )
    _save(root / DERIVATIVE / "rois" / f"{subject}.npz", **rois())
    _save(root / DERIVATIVE / "fsaverage5" / f"{subject}.npz", vertices=cortex()[0])
    with atomic(target) as folder:
        folder.mkdir()
        for name, clean in zip(_stories(), _signals(parts)):
            rng = _seed(noise, subject, name)
            repeats = [
                np.sqrt(parts["snr"]) * clean + np.sqrt(1 - parts["snr"]) * _noise(rng, len(clean))
                for _ in range(REPEATS.get(name, 1))
            ]
            repeats = np.stack([_zscore(y) for y in repeats]).astype(np.float32)
            with h5py.File(folder / f"{name}.hf5", "w") as file:
                file["data"] = _zscore(repeats.mean(0)) if len(repeats) > 1 else repeats[0]
                if len(repeats) > 1:
                    file["individual_repeats"] = repeats


def _save(path, **arrays):
    with atomic(path) as part, part.open("wb") as file:
        np.savez(
            file,
            **{
                k: np.asarray(v, np.float32 if np.asarray(v).dtype.kind == "f" else None)
                for k, v in arrays.items()
            },
        )


def _signals(parts) -> list[np.ndarray]:
    """Noise-free responses, a list over stories of (n_trs, n_voxels) of unit variance over all stories where driven."""
    peaks = np.array(HRF_PEAKS_S)
    between = np.maximum(1 - np.abs(parts["hrf_peak"] - peaks[:, None]), 0)  # two nearest peaks
    mix = between.astype(np.float32)
    lengths = [s.shape[1] for s in _driven()[LEVELS[0]]]
    total = np.zeros((sum(lengths), mix.shape[1]), np.float32)
    for share, level in zip(parts["shares"], LEVELS):
        features = np.concatenate(_driven()[level], axis=1)
        drive = sum(m * (f @ parts[level]) for m, f in zip(mix, features))
        total += np.sqrt(share).astype(np.float32) * _zscore(drive)
    return np.split(_zscore(total), np.cumsum(lengths)[:-1])


def _noise(rng, n_trs: int) -> np.ndarray:
    """Noise of unit variance, (n_trs, n_voxels): half smooth and autocorrelated (.5 per TR), 42 % white, 8 % slow drift."""
    slow = signal.lfilter([np.sqrt(1 - 0.5**2)], [1, -0.5], field(rng, n_trs + 20), axis=0)[20:]
    white = rng.standard_normal(slow.shape, dtype=np.float32)
    t = np.arange(n_trs)[:, None] / n_trs
    drift = sum(np.cos(np.pi * k * t) * field(rng, 1, passes=3) for k in (1, 2))
    return np.sqrt(0.5) * slow + np.sqrt(0.42) * white + np.sqrt(0.08) * drift


def _zscore(x):
    return (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
