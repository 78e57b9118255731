"""The files of the layout, read with care: what is missing, cut, or a stand-in for itself is refused with its remedy."""

import contextlib
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from .runtime import reading, require

BLOCK_BYTES = 64_000_000  # of a response file read at a time
RATE = 16_000  # Hz, of all audio in brainlib
SMALLEST_SPREAD = 1e-12  # of a voxel that varies
# How tiers are called: ds003020, MFA ("Anna - words"), WebMAUS ("ORT-MAU", "MAU")
TIERS = {"phonemes": r"\bphon|^mau\b", "words": r"\bword|^ort\b"}
# What a TextGrid says of the entries of a tier, in its long and in its short form
TIER_SIZE = (
    r'(?:intervals|points): size\s*=\s*(\d+)|"(?:Interval|Text)Tier"\s+"[^"]*"\s+\S+\s+\S+\s+(\d+)'
)
# Labels that are no word or phoneme, matched whole, in any case, with or without braces: those that the authors' code
# drops from words, {CG} and {IG} of its later list, and silences. That code keeps `sp` among phonemes; here it is dropped.
FILLERS = {
    "",
    "sp",
    "ns",
    "br",
    "lg",
    "ls",
    "sl",
    "cg",
    "ig",
    "sil",
    "sentence_start",
    "sentence_end",
}


def check_file(path: Path, what: str, *, smallest: int = 1):
    """Refuse a missing file, a git-annex pointer and an empty file, each with its remedy."""
    require(
        path.exists() or not path.is_symlink(),
        f"{path}: a link to git-annex content that is not here; expected {what}: run `git annex get` or fetch the file again",
        kind=FileNotFoundError,
    )
    require(
        path.exists(),
        f"{path}: missing; expected {what}",
        kind=FileNotFoundError,
    )
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(200)
    require(
        b"annex/objects" not in head,
        f"{path}: a git-annex pointer of {size} bytes, not its content; expected {what}: run `git annex get` or fetch the file again",
    )
    require(
        size >= smallest,
        f"{path}: {size} bytes; expected {what}: fetch the file again",
    )


def read_audio(path: Path) -> np.ndarray:
    """Any file that soundfile reads, as (n_samples,) float32 mono at 16 kHz; channels are averaged, rates converted."""
    import soundfile

    check_file(path, "a story's sound", smallest=100)
    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{path}: no sound in it ({error}); expected wav, flac, ogg or mp3"
        ) from error
    require(
        len(audio) and np.isfinite(audio).all(),
        f"{path}: {len(audio)} samples, or some that are no number; expected sound: fetch or make it again",
    )
    audio = audio.mean(1)
    if rate != RATE:
        from scipy.signal import resample_poly

        divisor = np.gcd(rate, RATE)
        audio = resample_poly(audio, RATE // divisor, rate // divisor)
    return np.ascontiguousarray(audio, np.float32)


def read_textgrid(path: Path) -> dict[str, pd.DataFrame]:
    """Words and phonemes of a Praat TextGrid (long or short form, UTF-8 or UTF-16): `start`, `end` in seconds, `text`.

    Fillers and silences are dropped from both, `sp` too, which the authors' code keeps among phonemes (`FILLERS`).
    """
    from praatio import textgrid

    check_file(path, "a TextGrid with a phone and a word tier", smallest=20)
    out = {}
    with reading(path, "a TextGrid in Praat's long or short text form, with tiers of intervals"):
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True)
        _check_whole(path, grid)
        for what, name in _tiers(path, list(grid.tierNames)).items():
            kept = [
                (float(e.start), float(e.end), e.label.strip())
                for e in grid.getTier(name).entries
                if e.label.strip().strip("{}").strip().lower() not in FILLERS
            ]
            out[what] = pd.DataFrame(kept, columns=["start", "end", "text"])
    require(
        len(out["phonemes"]) >= len(out["words"]),
        f"{path}: {len(out['phonemes'])} phonemes but {len(out['words'])} words; expected at least as many: "
        "are the tiers in the other order? Name them phone and word",
    )
    return out


def _check_whole(path, grid):
    """Refuse a TextGrid with fewer entries than it says: praatio reads as far as a cut file goes."""
    content = path.read_bytes()
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    stated = [int(a or b) for a, b in re.findall(TIER_SIZE, text)]
    found = [len(grid.getTier(name).entries) for name in grid.tierNames]
    require(
        stated == found,
        f"{path}: {found} entries in its tiers, {stated} stated; cut? Fetch or export it again",
    )


def _tiers(path, names) -> dict[str, str]:
    """Names of the phone and the word tier: by their names, else by their order in ds003020, phones first."""
    found = {
        what: name
        for what, pattern in TIERS.items()
        for name in names[::-1]  # the first counts
        if re.search(pattern, name.lower())
    }
    if not found and len(names) == 2:
        return dict(zip(TIERS, names))
    require(
        len(found) == 2,
        f"{path}: tiers {names}; expected a phone tier and a word tier of these names, or two tiers in this order",
    )
    return found


def read_hf5(path: Path, key: str, *, columns=slice(None)) -> np.ndarray:
    """One array of a response file as float32: `data` or `noise_free` (n_trs, n_voxels), `individual_repeats` (n_repeats, n_trs, n_voxels).

    Of these `columns` (a slice or indices) alone; rows are read a few at a time, so the others never are in memory.
    """
    with _opened(path) as file:
        why = "presented once" if key == "individual_repeats" else f"keys {list(file)}"
        require(
            key in file, f"{path}: {why}; expected {key!r} of shape ([n_repeats,] n_trs, n_voxels)"
        )
        stored = file[key]
        width = stored.shape[-1]
        columns = np.arange(width)[columns]
        out = np.empty((*stored.shape[:-1], len(columns)), np.float32)
        step = max(1, BLOCK_BYTES // (8 * max(width, 1)))
        for outer in np.ndindex(stored.shape[:-2]):
            for start in range(0, stored.shape[-2], step):
                block = (*outer, slice(start, start + step))
                out[block] = stored[block] if len(columns) == width else stored[block][:, columns]
        return out


@contextlib.contextmanager
def _opened(path: Path):
    import h5py

    check_file(path, "an hf5 file of responses", smallest=8)
    remedy = "truncated or damaged? Delete it, and build or fetch it again"
    with reading(path, "hf5 with 'data'", remedy=remedy), h5py.File(path, "r") as file:
        require(
            "data" in file,
            f"{path}: keys {list(file)}; expected 'data' of shape (n_trs, n_voxels)",
        )
        for key, n_axes in (("data", 2), ("noise_free", 2), ("individual_repeats", 3)):
            _check_stored(path, file, key, n_axes)
        yield file


def _check_stored(path, file, key, n_axes):
    """Refuse what is no array of numbers, has other axes than it should, or other voxels than `data`."""
    stored = file.get(key, file["data"])
    shape, kind = getattr(stored, "shape", ()), getattr(stored, "dtype", np.dtype(object)).kind
    n_axes = n_axes if key in file else 2
    require(
        kind in "fiu"
        and len(shape) == n_axes
        and 0 not in shape
        and shape[-1] == file["data"].shape[-1],
        f"{path}: {key!r} is {stored}; expected numbers of shape ([n_repeats,] n_trs, n_voxels), as many "
        "voxels in all of its arrays: write it again",
    )


def hf5_shape(path: Path) -> tuple[int, int, int]:
    """Repeats, TRs and voxels of a response file; reads no responses."""
    with _opened(path) as file:
        n_repeats = file["individual_repeats"].shape[0] if "individual_repeats" in file else 1
        return n_repeats, *file["data"].shape


def zscore(data: np.ndarray) -> tuple[int, int, float]:
    """z-score responses over TRs, in place, each repeat by itself; what has no number or no variance becomes 0.

    Returns how many values had no number, how many voxels had none at all, and by how much the typical voxel's mean and
    spread were off 0 and 1.
    """
    bad, dead, far = 0, 0, 0.0
    for one in data if data.ndim == 3 else data[None]:
        lost = ~np.isfinite(one)
        one[lost] = np.nan
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            mean, spread = np.nanmean(one, axis=0), np.nanstd(one, axis=0)
            far = np.nanmax(
                [far, np.nanmedian(np.abs(mean)), np.nanmedian(np.abs(spread[spread > 0] - 1))]
            )
            smallest = np.maximum(1e-6 * np.abs(mean), SMALLEST_SPREAD)
            spread[spread <= smallest] = np.nan  # a constant, but for rounding
            one -= mean
            one /= spread
        np.nan_to_num(one, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        bad, dead = bad + int(lost.sum()), dead + int(lost.all(0).sum())
    return bad, dead, float(far)
