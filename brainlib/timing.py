"""Time: TR centres, Lanczos resampling to TRs, and delays. Everything is per story; nothing crosses a story's border."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from .runtime import require


@dataclass(frozen=True)
class Clock:
    """When the rows of a response file were recorded; the defaults are those of ds003020 (LeBel et al. 2023).

    Attributes
    ----------
    tr : float
        Seconds from one row to the next.
    first : float
        Centre of the first row, seconds after sound onset.
    trimmed : tuple of two ints
        Volumes of the scan that the response file lacks at its start and at its end.
    """

    tr: float = 2.0
    first: float = 11.0
    trimmed: tuple[int, int] = (10, 10)


DS003020 = Clock()
LEAD_IN_S = 10.0  # silence before sound onset in ds003020, ibid.


def scan_trs(duration: float) -> int:
    """Number of volumes of ds003020's scan that plays `duration` seconds of sound: 10 s before, at least 8 s after."""
    return int((duration + 20) // DS003020.tr)


def tr_centres(
    n_rows: int, *, tr: float = DS003020.tr, first: float = DS003020.first
) -> np.ndarray:
    """Centres of the response rows in seconds after sound onset: 11, 13, 15, ... in ds003020.

    Parameters
    ----------
    n_rows : int
        Rows of the response file.
    tr : float
        Seconds from one row to the next.
    first : float
        Centre of row 0, seconds after sound onset.

    Returns
    -------
    times : array of shape (n_rows,)

    Notes
    -----
    ds003020's scan starts 10 s before the sound, so volume k is centred at 2k - 9 s; its response files lack ten volumes
    at each end, so row 0 is volume 10 (LeBel et al. 2023; the features' cut [10:-5] of the grid 2k - 9 in the authors'
    code gives the same rows).
    """
    return first + tr * np.arange(n_rows)


def lanczos_matrix(times, tr_times, *, lobes: int = 3) -> sparse.csr_matrix:
    """Weights that resample a signal at `times` to `tr_times` with a Lanczos kernel.

    Parameters
    ----------
    times : array of shape (n,)
        Times of the samples, seconds.
    tr_times : array of shape (t,)
        Times wanted, seconds, evenly spaced.
    lobes : int
        Half-width of the kernel in TRs; with 3 lobes and a TR of 2 s it reaches 6 s back *and 6 s ahead*.

    Returns
    -------
    weights : sparse matrix of shape (t, n)
        Not normalised, as in the field's code: a constant at 10 Hz comes out near 20 (samples per TR), a word becomes
        words per TR (Huth et al. 2016; Lanczos window after Duchon 1979).
    """
    tr = _spacing(times, tr_times)
    rows, columns = _samples_between(times, tr_times - lobes * tr, tr_times + lobes * tr)
    x = (tr_times[rows] - times[columns]) / tr
    weights = np.where(np.abs(x) > lobes, 0.0, np.sinc(x) * np.sinc(x / lobes))
    return sparse.csr_matrix((weights, (rows, columns)), shape=(len(tr_times), len(times)))


def past_matrix(times, tr_times) -> sparse.csr_matrix:
    """Weights that sum the samples of each TR's own past: those at most one TR before its time, none after it.

    Parameters as in `lanczos_matrix`, and the scale is the same: a constant at 10 Hz comes out at 20 (samples per TR), a
    word counts one in the TR that it falls into. What falls into a TR is on average half a TR older than its time.
    """
    tr = _spacing(times, tr_times)
    rows, columns = _samples_between(times, tr_times - tr + 2e-9, tr_times)
    return sparse.csr_matrix(
        (np.ones(len(rows)), (rows, columns)), shape=(len(tr_times), len(times))
    )


KERNELS = {"lanczos": lanczos_matrix, "past": past_matrix}


def _spacing(times, tr_times) -> float:
    """Seconds from one TR to the next."""
    require(
        np.ndim(times) == np.ndim(tr_times) == 1 and len(tr_times) >= 2,
        f"expected two lists of times, at least two TRs; found shapes {np.shape(times)} and {np.shape(tr_times)}",
    )
    return float(np.mean(np.diff(tr_times)))


def _samples_between(times, start, end):
    """Pairs (row, sample) of the samples that lie between the start and the end of each row, rounding allowed for."""
    order = np.argsort(times, kind="stable")
    first = np.searchsorted(times[order], start - 1e-9)
    last = np.searchsorted(times[order], end + 1e-9, side="right")
    rows = np.repeat(np.arange(len(start)), last - first)
    places = [np.arange(a, b) for a, b in zip(first, last)]
    return rows, order[np.concatenate(places).astype(int)]


def downsample(x, times, tr_times, *, kernel: str = "lanczos"):
    """Resample features to TR times.

    Parameters
    ----------
    x : array or torch tensor of shape (n, f)
        One row per sample; times need not be regular (words are fine).
    times : array of shape (n,)
        Seconds after sound onset.
    tr_times : array of shape (t,)
        Seconds after sound onset.
    kernel : {"lanczos", "past"}
        The field's filter, which reaches 6 s ahead (see `lanczos_matrix`), or the strictly causal sum over the TR's own
        past (see `past_matrix`).

    Returns
    -------
    y : array or tensor of shape (t, f)
        Of the kind and dtype of `x`; gradients flow through a tensor.

    Raises
    ------
    ValueError
        If `x` and `times` differ in length, or there is no such kernel.
    """
    require(
        len(x) == len(times),
        f"{len(x)} feature rows but {len(times)} times: each row needs its time",
    )
    require(
        kernel in KERNELS,
        f"kernel {kernel!r}; expected one of {sorted(KERNELS)}",
    )
    weights = KERNELS[kernel](np.asarray(times, float), np.asarray(tr_times, float))
    if isinstance(x, np.ndarray):
        return np.asarray(weights @ x).astype(np.result_type(x.dtype, np.float32), copy=False)
    import torch

    coo = weights.tocoo()
    indices = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    matrix = torch.sparse_coo_tensor(
        indices,
        torch.from_numpy(coo.data),
        coo.shape,
        dtype=x.dtype,
        device=x.device,
        check_invariants=False,
    )
    return torch.sparse.mm(matrix, x)


def fir(x, delays=(1, 2, 3, 4)):
    """Copies of one story's features, each shifted down by a delay (finite impulse response model).

    Parameters
    ----------
    x : array or torch tensor of shape (t, f)
        Features of **one** story, one row per TR.
    delays : sequence of int
        In TRs, whatever the TR is; at 2 s, 1 to 4 covers 2 to 8 s, where the haemodynamic response lives (at 1.5 s, 1 to 5
        does). Negative delays look ahead.

    Returns
    -------
    y : array or tensor of shape (t, f * len(delays))
        Block d holds the features delayed by ``delays[d]``, zeros where the story has no earlier row.
    """
    t, f = x.shape
    out = (
        x.new_zeros((t, f * len(delays)))
        if hasattr(x, "new_zeros")
        else np.zeros((t, f * len(delays)), x.dtype)
    )
    for i, d in enumerate(delays):
        block = slice(i * f, (i + 1) * f)
        if abs(d) < t:
            out[max(d, 0) : t + min(d, 0), block] = x[max(-d, 0) : t - max(d, 0)]
    return out
