"""Scores beyond one correlation per voxel: relative to the noise ceiling, by region, and with their spread."""

from __future__ import annotations

import numpy as np
import pandas as pd


def normalised(r, ceiling, *, floor: float = 0.2) -> np.ndarray:
    """Noise-ceiling-normalised correlation of each voxel.

    Parameters
    ----------
    r : array of shape (n_voxels,)
        Pearson correlation with the mean over repeats.
    ceiling : array of shape (n_voxels,)
        CC_max of the same mean (see `encoding.noise_ceiling`).
    floor : float
        The ratio explodes near a ceiling of zero: voxels with a ceiling at or below this have none.

    Returns
    -------
    normalised : array of shape (n_voxels,)
        ``r / ceiling``; NaN at or below the floor (Schoppe et al. 2016, eq. 14).
    """
    r, ceiling = np.asarray(r, float), np.asarray(ceiling, float)
    if r.shape != ceiling.shape:
        raise ValueError(f"scores {r.shape} but ceilings {ceiling.shape}: give the same voxels")
    return np.divide(r, ceiling, out=np.full(r.shape, np.nan), where=ceiling > floor)


def by_region(values, regions) -> pd.Series:
    """Mean of each region over the voxels that have a number.

    Parameters
    ----------
    values : array of shape (n_voxels,)
        NaN where a voxel has none.
    regions : dict of boolean arrays of shape (n_voxels,)

    Returns
    -------
    means : Series indexed by region
        NaN for a region without a number.
    """
    values = pd.Series(np.asarray(values, float))
    return pd.Series({name: values[mask].mean() for name, mask in regions.items()}, dtype=float)


def bootstrap_blocks(
    y, predictions, statistic, *, block: int = 10, n: int = 200, seed: int = 0
) -> np.ndarray:
    """Draws of a statistic when blocks of TRs are resampled with replacement.

    The spread is that within the given rows; it is no interval over stories.

    Parameters
    ----------
    y : array of shape (n_trs, n_voxels)
        Measured responses.
    predictions : array of shape (n_trs, n_voxels), or list of them
        Of one model or of several that are compared: all get the same rows.
    statistic : callable
        ``statistic(y, predicted)``, or ``statistic(y, predicted_1, predicted_2, ...)`` for a list; a number or an array.
    block : int
        TRs that stay together, so that the signal's autocorrelation is kept.
    n : int
        Draws.

    Returns
    -------
    draws : array of shape (n, ...)
    """
    several = predictions if isinstance(predictions, (list, tuple)) else [predictions]
    if len(y) < 2 * block or any(len(p) != len(y) for p in several):
        raise ValueError(
            f"{len(y)} measured and {[len(p) for p in several]} predicted TRs; expected equal "
            f"numbers of at least two blocks of {block}"
        )
    blocks = np.array_split(np.arange(len(y)), len(y) // block)
    rng, draws = np.random.default_rng(seed), []
    for _ in range(n):
        rows = np.concatenate([blocks[i] for i in rng.integers(0, len(blocks), len(blocks))])
        draws.append(statistic(y[rows], *(p[rows] for p in several)))
    return np.array(draws)
