"""fireside: spoken stories written for this book, and *simulated* subjects who were presented them.

The stories, their sound and their times are real (text to speech); the brains are not. Each subject's cortex is driven
by four known levels of the speech (`levels`), in regions placed by published coordinates (`topography`), through a
haemodynamic response and under autocorrelated, spatially smooth noise, so that every method in the book can be compared
with a ground truth, and caught out by it.
"""

from __future__ import annotations

import json
import shutil
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock
from scipy import signal

from brainlib.datasets import DERIVATIVE, RESPONSES, Dataset, as_list
from brainlib.encoding import correlation
from brainlib.runtime import atomic, cache_dir, read_json
from brainlib.timing import downsample, scan_trs

from .levels import (
    ASSETS,
    HRF_PEAKS_S,
    LEVELS,
    N_PRIVATE,
    N_SHARED,
    N_SUBJECTS,
    RATE_HZ,
    TEST,
    VALIDATION,
    driving_features,
    embedded_story,
    story_names,
    through_hrf,
    training_stories,
)
from .topography import REGIONS, RIGHT, field, nearest_region, region_distances, rois, vertices

SUBJECTS = tuple(f"SIM{i:02d}" for i in range(1, N_SUBJECTS + 1))
FOOLING = {  # subjects that a sound method must not be taken in by
    "SIMCODE": "meaning and context are of an arbitrary code: word vectors dealt out anew among the words",
    "SIMLOW": "acoustic and phonetic features alone, also where meaning and context drive the others",
    "SIMNOISE": "noise alone",
}
PROJECT = "SIMX"  # of the closing project: one level is stronger in it than in the others
EXTRA = (*FOOLING, PROJECT)  # only where they are asked for
REPEATS = dict.fromkeys(VALIDATION, 5) | dict.fromkeys(TEST, 6)
TABLES = ("truth", "rois", "fsaverage5")  # of each subject, one row per voxel
VERSION = 3  # of the simulation: raise it when what is simulated changes
# share of a level's drive that comes from dimensions common to all subjects
SHARED = {"acoustic": 0.9, "phonetic": 0.8, "meaning": 0.7, "context": 0.6}
# share of one repeat's variance that is signal: (weakest, strongest driven voxel)
NOISE = {"clean": (0.10, 0.50), "scanner": (0.01, 0.12), "null": (0.0, 0.0)}


def open_dataset(root: str | Path | None = None, *, noise: str = "clean", **options) -> Dataset:
    """The tree of fireside with its stories; subjects are simulated when first read. See `datasets.load`."""
    root = build([], noise=noise, root=root)
    asked = options.get("subjects") or ()
    extra = [s for s in EXTRA if s in ([asked] if isinstance(asked, str) else asked)]
    return Dataset(
        root,
        prepare=lambda subjects, stories, what: build(subjects, noise=noise, root=root),
        description={"Subjects": [*SUBJECTS, *extra]},
        **options,
    )


def build(subjects=SUBJECTS, *, noise: str = "clean", root: str | Path | None = None) -> Path:
    """Simulate subjects into the layout of ds003020; what is whole already is left as it is.

    Parameters
    ----------
    subjects : sequence of str
        Of SIM01 to SIM08, those made to fool (`FOOLING`) and that of the closing project (`PROJECT`).
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
    Each file is written under another name and renamed when it is whole, and a subject's stamp, of the version and of
    its files' sizes, comes last: a killed build, a lost file or another version is built anew. A lock keeps two processes
    from building at a time. Two builds give the same bytes on one machine. Responses hold checksums that are compared when
    they are read; files of an older cache, which lack them, are taken as they are.
    """
    if noise not in NOISE:
        raise ValueError(f"noise level {noise!r}; expected one of {sorted(NOISE)}")
    subjects = as_list(subjects)
    for subject in subjects:
        _check_subject(subject)
    root = Path(root) if root else cache_dir("fireside", noise)
    if not _is_laid_out(root, noise) or not all(_is_whole(root, s) for s in subjects):
        _refuse_other_data(root, noise)
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".build.lock"):
            if not _is_laid_out(root, noise):
                _lay_out(root, noise)
            for subject in subjects:
                if not _is_whole(root, subject):
                    _build_subject(root, subject, noise)
    return root


def _files_of(root, subject) -> list[Path]:
    """Every file of a subject."""
    folder = root / DERIVATIVE
    tables = [folder / part / f"{subject}.npz" for part in TABLES]
    return tables + [folder / RESPONSES / subject / f"{name}.hf5" for name in story_names()]


def _stamp(root, subject) -> Path:
    return root / DERIVATIVE / RESPONSES / subject / ".stamp.json"


def _state(root, subject) -> dict:
    """What a subject's stamp says: the version of the simulation, and the sizes of the files."""
    sizes = {str(p.relative_to(root)): p.stat().st_size for p in _files_of(root, subject)}
    return {"SimulationVersion": version(), "sizes": sizes}


def _is_whole(root, subject) -> bool:
    """Whether all files of a subject are there, and of this version."""
    try:
        return json.loads(_stamp(root, subject).read_text()) == _state(root, subject)
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=1)
def _assets_hash() -> str:
    """Of what the simulation reads: stories, their sound and times, and the word vectors."""
    total = 0
    files = [ASSETS / "glove.npz"]
    for folder in ("audio", "stories", "TextGrids"):
        files += sorted((ASSETS / folder).iterdir())
    for path in files:
        total = zlib.crc32(path.read_bytes(), zlib.crc32(path.name.encode(), total))
    return f"{total:08x}"


def version() -> str:
    """Of the simulation and of what it reads: responses of another version are other data."""
    return f"{VERSION}-{_assets_hash()}"


def _refuse_other_data(root: Path, noise: str):
    """ValueError for a folder that holds anything but fireside at this noise level."""
    path = root / "dataset_description.json"
    present = read_json(path, "what fireside says of itself") if path.exists() else {}
    name, level = present.get("Name"), present.get("NoiseLevel")
    others = [p.name for p in root.glob("[!.]*")] if not present else []
    if others or (present and (name, level) != ("fireside", noise)):
        raise ValueError(
            f"{root} holds {name!r} at noise {level!r} {others[:3]}; expected an empty folder or "
            f"fireside at {noise!r}"
        )


def _layout(root: Path) -> dict[Path, Path]:
    """Where sounds and TextGrids go, and where they come from."""
    stories = [embedded_story(name) for name in story_names()]
    sounds = {root / "stimuli" / s.audio_path.name: s.audio_path for s in stories}
    grids = {root / DERIVATIVE / "TextGrids" / s.grid_path.name: s.grid_path for s in stories}
    return sounds | grids


def _is_laid_out(root, noise) -> bool:
    """Whether description, scan lengths, sounds and TextGrids are there and of this version."""
    try:
        present = json.loads((root / "dataset_description.json").read_text())
        volumes = json.loads((root / DERIVATIVE / "respdict.json").read_text())
        sizes = [(p.stat().st_size, source.stat().st_size) for p, source in _layout(root).items()]
    except (OSError, ValueError):
        return False
    alike = all(size == wanted for size, wanted in sizes)
    return alike and (present, volumes) == (_description(noise), _volumes())


@lru_cache(maxsize=1)
def _volumes() -> dict[str, int]:
    return {name: scan_trs(embedded_story(name).duration) for name in story_names()}


def _lay_out(root: Path, noise: str):
    """Description, sound, TextGrids and scan lengths; of other versions, what this one lacks is removed."""
    _write_json(root / "dataset_description.json", _description(noise))  # whose folder this is
    wanted = _layout(root)
    for folder in (root / "stimuli", root / DERIVATIVE / "TextGrids"):
        for path in set(folder.glob("[!.]*")) - set(wanted):
            path.unlink()
    for target, source in wanted.items():
        _copy(source, target.parent)
    _write_json(root / DERIVATIVE / "respdict.json", _volumes())


def _description(noise: str) -> dict:
    """What ``dataset_description.json`` says: split, version and noise level."""
    return {
        "Name": "fireside",
        "BIDSVersion": "1.8.0",
        "DatasetType": "derivative",
        "License": "CC BY 4.0",
        "Simulated": True,
        "SimulationVersion": version(),
        "NoiseLevel": noise,
        "Subjects": list(SUBJECTS),
        "Split": {"train": training_stories(), "val": list(VALIDATION), "test": list(TEST)},
    }


def _copy(source: Path, folder: Path):
    with atomic(folder / source.name) as part:
        shutil.copyfile(source, part)


def _write_json(path, content):
    with atomic(path) as part:
        part.write_text(json.dumps(content, indent=1))


# ------------------------------------------------------------------ what drives a subject
def _seed(*words) -> np.random.Generator:
    return np.random.default_rng(
        [zlib.crc32(str(w).encode()) for w in ("fireside", VERSION, *words)]
    )


def _check_subject(subject):
    if subject not in (*SUBJECTS, *EXTRA):
        raise KeyError(f"fireside has no subject {subject!r}; it has {[*SUBJECTS, *EXTRA]}")


def dimensions(level: str, subject: str | None = None) -> list[int]:
    """Which dimensions of a level drive a subject: those common to all, then its own; of all subjects if left out.

    The subjects that were made to fool, and that of the closing project, have none of their own.
    """
    if level not in LEVELS:
        raise KeyError(f"no level {level!r}; expected one of {list(LEVELS)}")
    shared, private = N_SHARED[level], N_PRIVATE[level]
    if subject is None:
        return list(range(shared + N_SUBJECTS * private))
    _check_subject(subject)
    first = shared + SUBJECTS.index(subject) * private if subject in SUBJECTS else shared
    return [*range(shared), *range(first, first + private * (subject in SUBJECTS))]


def level_features(story, level: str, *, subject: str | None = None) -> np.ndarray:
    """What drives a simulated voxel of a level, before the haemodynamic response, at TRs.

    Parameters
    ----------
    story : Story
    level : {"acoustic", "phonetic", "meaning", "context"}
    subject : str, optional
        Only the dimensions that drive this subject (see `dimensions`); SIMCODE's meaning and context are its code's.

    Returns
    -------
    features : array of shape (n_trs, n_dimensions)
    """
    chosen = dimensions(level, subject)
    values = driving_features(subject == "SIMCODE")[level][story.name][:, chosen]
    return downsample(values, np.arange(len(values)) / RATE_HZ, story.tr_times)


def _topography(subject: str, noise: str) -> dict:
    """Where a subject is driven by what: regions, shares of the levels, snr, peak of the response (each per voxel)."""
    own = _seed("listener", subject)  # the word is part of the seed
    distances = region_distances(own)
    n_left = vertices()[1]
    shares = np.zeros((len(LEVELS), distances.shape[1]))
    strength = np.zeros(distances.shape[1])
    for distance, (_, _, peak, levels, roi) in zip(distances, REGIONS.values()):
        of_region = peak * own.uniform(0.85, 1.0) * np.exp(-0.5 * distance**2)
        of_region[n_left:] *= 1.0 if roi.startswith("auditory") else RIGHT
        # the nearest region decides, its neighbours blend in
        shares += of_region**6 * np.array(levels)[:, None]
        strength = np.maximum(strength, of_region)
    if subject == PROJECT:
        shares[_seed("stronger", subject).integers(len(LEVELS))] *= 4
    if subject == "SIMLOW":  # half of what was meaning or context is acoustic, half phonetic
        shares[:2], shares[2:] = shares[:2] + shares[2:].sum(0) / 2, 0
    shares /= np.maximum(shares.sum(0), 1e-9)
    shares[shares < 0.02] = 0.0
    shares /= np.maximum(shares.sum(0), 1e-9)
    null_regions = [i for i, r in enumerate(REGIONS.values()) if r[2] == 0]
    strength[np.isin(nearest_region(distances), null_regions)] = 0.0
    low, high = NOISE[noise] if subject != "SIMNOISE" else NOISE["null"]
    driven = (strength > 0.08) & (high > 0)
    gain = own.uniform(0.85, 1.0) * np.exp(0.15 * field(own, 1, passes=3)[0])
    level = np.clip(np.clip((strength - 0.08) / 0.8, 0, 1) * gain, 0, 1)
    peak = 5.3 + 0.5 * field(own, 1, passes=3)[0]
    return {
        "rois": rois(distances),
        "shares": shares * driven,
        "snr": np.where(driven, low + (high - low) * level, 0.0),
        "hrf_peak": np.clip(peak, HRF_PEAKS_S[0], HRF_PEAKS_S[-1]),
    }


@lru_cache(maxsize=4)
def _driven(level: str, code: bool) -> np.ndarray:
    """A level's features through each haemodynamic response, all stories end to end: (n_peaks, n_trs, n_dimensions)."""
    features = driving_features(code)[level]
    return np.concatenate([through_hrf(features[s], s) for s in story_names()], axis=1)


def _level_drive(
    subject: str, level: str, hrf_peak, voxels=slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """The common and the private part of a level's drive of each voxel, each of unit variance: (n_trs, n_voxels)."""
    chosen, n_shared = dimensions(level, subject), N_SHARED[level]
    own = _seed("weights", level, subject)
    common = field(_seed("shared", level), n_shared, passes=2)
    # the topography of the common part is shared, its weights differ a little
    weights = np.sqrt(0.7) * common + np.sqrt(0.3) * field(own, n_shared, passes=2)
    weights = np.concatenate([weights, field(own, N_PRIVATE[level], passes=2)])[: len(chosen)]
    hrf_peak, weights = hrf_peak[voxels], weights[:, voxels]
    features = _driven(level, subject == "SIMCODE")[:, :, chosen]
    parts = []
    for dims in (slice(n_shared), slice(n_shared, None)):
        drive = np.zeros((features.shape[1], len(hrf_peak)), np.float32)
        for peak, responses in zip(HRF_PEAKS_S, features):
            near = 1 - np.abs(hrf_peak - peak)  # between the two nearest haemodynamic responses
            these = near > 0
            drive[:, these] += responses[:, dims] @ (near * weights[dims])[:, these].astype(
                np.float32
            )
        parts.append(_zscore(drive))
    return tuple(parts)


def level_parts(subject: str, voxels) -> dict[str, dict[str, np.ndarray]]:
    """What each level adds to the noise-free responses: the exact ground truth, level by level.

    Parameters
    ----------
    subject : str
    voxels : array of int
        Of all voxels of the subject, whatever a data set's `voxel_step`.

    Returns
    -------
    parts : dict by level of dicts by story of arrays of shape (n_trs, n_voxels)
        Their sum has unit variance over all stories end to end, less its mean and z-scored within each story it is
        ``ds.responses(..., noise_free=True)``. One presentation is sqrt(snr) times the sum, plus noise (`ds.truth`).
    """
    _check_subject(subject)
    truth = _topography(subject, "clean")
    voxels = np.asarray(voxels)
    lengths = [len(embedded_story(name).tr_times) for name in story_names()]
    parts, own = {}, SHARED if subject in SUBJECTS else dict.fromkeys(LEVELS, 1.0)
    for level, share in zip(LEVELS, truth["shares"][:, voxels]):
        shared, private = _level_drive(subject, level, truth["hrf_peak"], voxels)
        drive = np.sqrt(own[level]) * shared + np.sqrt(1 - own[level]) * private
        parts[level] = np.sqrt(share) * drive
    scale = np.maximum(sum(parts.values()).std(0), 1e-9)
    ends = np.cumsum(lengths)[:-1]
    return {k: dict(zip(story_names(), np.split(x / scale, ends))) for k, x in parts.items()}


def without_levels(
    subject: str, voxels, *, levels, stories, noise_free: bool = False, noise: str = "clean"
) -> dict[str, np.ndarray]:
    """Responses as they would be if some levels did not drive the voxels, and all else, noise and scale too, were the same.

    Parameters
    ----------
    subject : str
    voxels : array of int
        Of all voxels of the subject, whatever a data set's `voxel_step`.
    levels : sequence of str
        To switch off.
    stories : sequence of str
        Of one presentation, as all training stories are.
    noise_free : bool
        Of the responses without noise.
    noise : {"clean", "scanner", "null"}
        As `load` was given it.

    Returns
    -------
    responses : dict by story of arrays of shape (n_trs, n_voxels)
        With no level switched off, those of `ds.responses`.

    Raises
    ------
    KeyError
        For an unknown level.
    ValueError
        For a story of several presentations.
    """
    unknown = sorted(set(levels) - set(LEVELS))
    if unknown:
        raise KeyError(f"no levels {unknown}; there are {LEVELS}")
    several = sorted(set(stories) & set(REPEATS))
    if several:
        raise ValueError(f"{several} are repeated; expected stories of one presentation")
    parts, snr = level_parts(subject, voxels), _topography(subject, noise)["snr"]
    responses = {}
    for name in stories:
        off = sum((parts[level][name] for level in levels), np.float32(0))
        whole = sum(part[name] for part in parts.values()) * (snr[voxels] > 0)
        if not noise_free:
            nothing = np.zeros((len(whole), len(snr)), np.float32)
            (pure_noise,) = _presentations(subject, name, nothing, snr=snr, noise=noise)
            whole = np.sqrt(snr[voxels]) * whole + pure_noise[:, voxels]
            off = np.sqrt(snr[voxels]) * off
        rest = whole - off
        scale = np.maximum(whole.std(0), 1e-9)  # that of the story as it was
        responses[name] = ((rest - rest.mean(0)) / scale).astype(np.float32)
    return responses


@lru_cache(maxsize=2)
def _signals(subject: str, foreign: frozenset):
    """Noise-free responses to all stories end to end, and the part of them that others share: two of (n_trs, n_voxels).

    `foreign`: levels of which nothing counts as shared.
    """
    parts = _topography(subject, "clean")
    n_trs = _driven(LEVELS[0], False).shape[1]
    total, common = np.zeros((2, n_trs, len(parts["snr"])), np.float32)
    for share, level in zip(parts["shares"], LEVELS):
        voxels = share > 0
        own_share = 1 - SHARED[level] if subject in SUBJECTS else 0.0
        drives = _level_drive(subject, level, parts["hrf_peak"])
        shared, private = (drive[:, voxels] * np.sqrt(share[voxels]) for drive in drives)
        shared *= np.sqrt(1 - own_share)
        total[:, voxels] += shared + np.sqrt(own_share) * private
        if level not in foreign:
            common[:, voxels] += shared
    return _zscore(total), common


def best_transfer(source: str, target: str) -> np.ndarray:
    """The correlation with a subject's noise-free responses that the features of another allow, as they are dealt out.

    Parameters
    ----------
    source, target : str
        Subjects of fireside: whose features are known, and whose responses are predicted by them.

    Returns
    -------
    r : array of shape (n_voxels,)
        Of the target's voxels, over all stories; 0 where nothing drives them. Features in common are the dimensions that
        all subjects share; meaning and context of SIMCODE, and those that SIMLOW and SIMNOISE lack, are nobody else's.
        Nominal: dimensions of one's own that happen to be alike can add a hundredth or two.
    """
    for subject in (source, target):
        _check_subject(subject)
    if source == target:
        return (_topography(target, "clean")["snr"] > 0).astype(float)
    lacking = {"SIMCODE": LEVELS[2:], "SIMLOW": LEVELS[2:], "SIMNOISE": LEVELS}
    foreign = frozenset(lacking.get(source, ())) | frozenset(lacking.get(target, ()))
    total, common = _signals(target, foreign)
    if foreign == set(LEVELS):
        return np.zeros(total.shape[1])
    return correlation(total, common)


# ------------------------------------------------------------------ responses
def _build_subject(root: Path, subject: str, noise: str):
    folder = _stamp(root, subject).parent
    _stamp(root, subject).unlink(missing_ok=True)  # from here on nothing is whole
    for path in set(folder.glob("[!.]*")) - set(_files_of(root, subject)):  # another version's
        path.unlink()
    parts = _topography(subject, noise)
    snr = parts["snr"]
    shared = np.zeros(len(snr))
    if snr.any():
        shared = best_transfer("SIM01" if subject != "SIM01" else "SIM02", subject) ** 2
    of_levels = dict(zip(LEVELS, parts["shares"]))
    table = {"snr": snr, "hrf_peak": parts["hrf_peak"], "shared": shared}
    _save(root / DERIVATIVE / "truth" / f"{subject}.npz", **of_levels, **table)
    _save(root / DERIVATIVE / "rois" / f"{subject}.npz", **parts["rois"])
    _save(root / DERIVATIVE / "fsaverage5" / f"{subject}.npz", vertices=vertices()[0])
    total, start = _signals(subject, frozenset())[0], 0
    for name in story_names():
        clean = total[start : start + len(embedded_story(name).tr_times)] * (snr > 0)
        start += len(clean)
        presentations = _presentations(subject, name, clean, snr=snr, noise=noise)
        repeats = np.stack([_zscore(y) for y in presentations]).astype(np.float32)
        _write_responses(folder / f"{name}.hf5", repeats, _zscore(clean))
    _write_json(_stamp(root, subject), _state(root, subject))


def _presentations(subject, name, clean, *, snr, noise):
    """Signal and noise of each presentation of a story, before it is z-scored: (n_trs, n_voxels) each."""
    rng = _seed(noise, subject, name)
    for _ in range(REPEATS.get(name, 1)):
        yield np.sqrt(snr) * clean + np.sqrt(1 - snr) * _noise(rng, len(clean))


def _write_responses(path, repeats, noise_free):
    import h5py

    arrays = {"data": repeats[0], "noise_free": noise_free}
    if len(repeats) > 1:
        arrays |= {"data": _zscore(repeats.mean(0)), "individual_repeats": repeats}
    with atomic(path) as part, h5py.File(part, "w") as file:
        # one checksum per repeat, which HDF5 compares when it reads
        for key, values in arrays.items():
            chunks = (1,) * (values.ndim - 2) + values.shape[-2:]
            file.create_dataset(key, data=values, chunks=chunks, fletcher32=True)


def _save(path, **arrays):
    with atomic(path) as part, part.open("wb") as file:
        np.savez(
            file,
            **{
                k: np.asarray(v, np.float32 if np.asarray(v).dtype.kind == "f" else None)
                for k, v in arrays.items()
            },
        )


def _noise(rng, n_trs: int) -> np.ndarray:
    """Noise of unit variance, (n_trs, n_voxels): half smooth and autocorrelated (.5 per TR), 42 % white, 8 % slow drift."""
    slow = signal.lfilter([np.sqrt(1 - 0.5**2)], [1, -0.5], field(rng, n_trs + 20), axis=0)[20:]
    white = rng.standard_normal(slow.shape, dtype=np.float32)
    t = np.arange(n_trs)[:, None] / n_trs
    drift = sum(np.cos(np.pi * k * t) * field(rng, 1, passes=3) for k in (1, 2))
    return np.sqrt(0.5) * slow + np.sqrt(0.42) * white + np.sqrt(0.08) * drift


def _zscore(x):
    return (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
