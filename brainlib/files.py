"""The files of the layout, read with care: what is missing, cut, or a stand-in for itself is refused with its remedy."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

BLOCK_BYTES = 64_000_000  # of a response file read at a time
RATE = 16_000  # Hz, of all audio in brainlib
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
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path}: a link to git-annex content that is not here; expected {what}: run `git annex get` or fetch the file again"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; expected {what}")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(200)
    if b"annex/objects" in head:
        raise ValueError(
            f"{path}: a git-annex pointer of {size} bytes, not its content; expected {what}: run `git annex get` or fetch the file again"
        )
    if size < smallest:
        raise ValueError(f"{path}: {size} bytes; expected {what}: fetch the file again")


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
    try:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False)
    except Exception as error:  # praatio raises many kinds; all mean that the text is no TextGrid
        raise ValueError(
            f"{path}: not a TextGrid that can be read ({type(error).__name__}: {error}); expected Praat's long or short text form"
        ) from error
    names = [n.lower() for n in grid.tierNames]
    out = {}
    for what, position in (("phonemes", 0), ("words", 1)):  # ds003020: phones first, words second
        named = [i for i, n in enumerate(names) if n.startswith(what[:4])]
        if not named and len(names) <= position:
            raise ValueError(
                f"{path}: tiers {list(grid.tierNames)}; expected a phone tier and a word tier"
            )
        entries = grid.getTier(grid.tierNames[named[0] if named else position]).entries
        kept = [
            (float(e.start), float(e.end), e.label.strip())
            for e in entries
            if e.label.strip().strip("{}").strip().lower() not in FILLERS
        ]
        out[what] = pd.DataFrame(kept, columns=["start", "end", "text"])
    return out


def read_hf5(path: Path, key: str, *, columns=slice(None)) -> np.ndarray:
    """One array of a response file as float32: `data` or `noise_free` (n_trs, n_voxels), `individual_repeats` (n_repeats, n_trs, n_voxels).

    Of these `columns` (a slice or indices) alone; rows are read a few at a time, so the others never are in memory.
    """
    with _opened(path) as file:
        if key not in file:
            why = "presented once" if key == "individual_repeats" else f"keys {list(file)}"
            raise ValueError(
                f"{path}: {why}; expected {key!r} of shape ([n_repeats,] n_trs, n_voxels)"
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
    try:
        with h5py.File(path, "r") as file:
            if "data" not in file:
                raise ValueError(
                    f"{path}: keys {list(file)}; expected 'data' of shape (n_trs, n_voxels)"
                )
            yield file
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); truncated? expected hf5 with 'data': build or fetch it again"
        ) from error


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
            spread[spread <= 1e-6 * np.abs(mean)] = np.nan  # a constant, but for rounding
            one -= mean
            one /= spread
        np.nan_to_num(one, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        bad, dead = bad + int(lost.sum()), dead + int(lost.all(0).sum())
    return bad, dead, float(far)
