"""Scores beyond one correlation per voxel: relative to the noise ceiling, by region and level, and with their spread."""

import numpy as np
import pandas as pd
from scipy.stats import t

from .encoding import correlation
from .runtime import require

# Of the noise ceiling: only voxels above it have a normalised score. The ceiling of the validation stories decides, so
# that the voxels are the same for every model, and none is kept by the repeats that it is scored on.
FLOOR = 0.5


def normalised(r, ceiling, *, kept=None) -> np.ndarray:
    """Noise-ceiling-normalised correlation of each voxel.

    Parameters
    ----------
    r : array of shape (..., n_voxels)
        Pearson correlation with the mean over repeats; of one model, or a row per story.
    ceiling : array of shape (n_voxels,)
        CC_max of the same mean (see `encoding.noise_ceiling`).
    kept : boolean array of shape (n_voxels,), optional
        Voxels that have a score (`evaluation.kept_voxels`); those with a ceiling above `FLOOR` if left out.

    Returns
    -------
    normalised : array of shape (..., n_voxels)
        ``r / max(ceiling, FLOOR)``, because the ratio explodes near a ceiling of zero; NaN for all other voxels
        (Schoppe et al. 2016, eq. 14).
    """
    r, ceiling = np.asarray(r, float), np.asarray(ceiling, float)
    kept = ceiling > FLOOR if kept is None else np.asarray(kept)
    require(
        r.shape[-1:] == ceiling.shape == kept.shape,
        f"scores {r.shape}, ceilings {ceiling.shape} and mask {kept.shape}: give the same voxels",
    )
    return np.where(kept, r / np.maximum(ceiling, FLOOR), np.nan)


def by_region(values, regions):
    """Mean of each region over the voxels that have a number.

    Parameters
    ----------
    values : array of shape (n_voxels,) or (n, n_voxels)
        NaN where a voxel has none. A row per story, seed or model.
    regions : dict of boolean arrays of shape (n_voxels,)
        Regions of ``ds.rois``, or `levels` of a simulated subject.

    Returns
    -------
    means : Series indexed by region, or DataFrame of shape (n, n_regions)
        NaN for a region without a number.
    """
    values = np.asarray(values, float)
    table = pd.DataFrame(np.atleast_2d(values))
    means = {name: table.loc[:, np.asarray(mask)].mean(axis=1) for name, mask in regions.items()}
    means = pd.DataFrame(means, index=table.index, dtype=float)
    return means if values.ndim > 1 else means.iloc[0].rename(None)


def levels(truth) -> dict[str, np.ndarray]:
    """The voxels that each level drives most, masks for `by_region`, from the ground truth of a simulated subject.

    Parameters
    ----------
    truth : DataFrame
        ``ds.truth(subject)``, or some of its rows.
    """
    masks = {level: (truth.level == level).to_numpy() for level in truth.columns}
    return {level: mask for level, mask in masks.items() if mask.any()}


def by_story(y, predictions) -> np.ndarray:
    """Pearson correlation of each voxel within each story: (n_stories, n_voxels).

    Parameters
    ----------
    y, predictions : lists of arrays of shape (n_trs, n_voxels), one per story
    """
    return np.stack([correlation(*pair) for pair in zip(y, predictions, strict=True)])


def interval(values, *, level: float = 0.95) -> pd.DataFrame:
    """Mean and confidence interval over stories, each of which gives one number; over seeds or subjects just so.

    Parameters
    ----------
    values : DataFrame or array of shape (n_stories,) or (n_stories, n)
        A score of each story, or its difference between two models: the unit is the row.
    level : float
        Confidence.

    Returns
    -------
    table : DataFrame with columns `mean`, `low`, `high`
        One row per column of `values`. Student's t, so that few stories give a wide interval; NaN for a single one.
    """
    values = pd.DataFrame(values)
    margin = t.ppf((1 + level) / 2, values.count() - 1) * values.sem()
    return pd.DataFrame(
        {"mean": values.mean(), "low": values.mean() - margin, "high": values.mean() + margin}
    )


def crossed_interval(table, *, level: float = 0.95) -> pd.Series:
    """Mean and confidence interval of a two-way table, for other rows and other columns of their kind at once.

    Parameters
    ----------
    table : DataFrame or array of shape (n_rows, n_columns)
        Of subjects (or seeds) by stories, say, without gaps; at least two of each.

    Returns
    -------
    row : Series with `mean`, `low`, `high`

    Notes
    -----
    Rows and columns are random and crossed, one value per cell: the variance of the mean is
    ``(MS_rows + MS_columns - MS_residual) / (n_rows n_columns)``, and no less than that of either alone; degrees of freedom
    after Satterthwaite (1946).
    """
    x = np.asarray(table, float)
    require(
        x.ndim == 2 and min(x.shape) > 1 and np.isfinite(x).all(),
        f"a table of shape {x.shape}, finite: {np.isfinite(x).all()}; expected at least 2 by 2 without gaps",
    )
    n_rows, n_columns = x.shape
    by_row, by_column = x.mean(1), x.mean(0)
    squares = np.array([n_columns * by_row.var(ddof=1), n_rows * by_column.var(ddof=1)])
    freedom = np.array([n_rows - 1, n_columns - 1])
    residual = x - by_row[:, None] - by_column + x.mean()
    rest = np.square(residual).sum() / freedom.prod()
    mean_square = max(squares.sum() - rest, squares.max())
    parts = np.square([*squares, rest]) / [*freedom, freedom.prod()]
    df = max(mean_square**2 / max(parts.sum(), 1e-300), 1.0)
    margin = t.ppf((1 + level) / 2, df) * np.sqrt(mean_square / x.size)
    return pd.Series({"mean": x.mean(), "low": x.mean() - margin, "high": x.mean() + margin})


def seed_spread(table, *, level: float = 0.95) -> pd.Series:
    """Standard deviation between seeds, and how far one seed may lie from the mean of all.

    Parameters
    ----------
    table : DataFrame or array of shape (n_subjects, n_seeds)
        A score of each run, NaN where there is none. A subject with one seed says nothing.

    Returns
    -------
    row : Series with `std`, pooled within subjects, and `bound`
        `bound` is ``std`` times Student's t. Models that share one seed may share all of what it adds, which then does not
        average out over them. Both are NaN if no subject has two seeds.
    """
    table = pd.DataFrame(table)
    freedom = (table.count(axis=1) - 1).clip(lower=0).sum()
    squares = table.sub(table.mean(axis=1), axis=0).pow(2).sum().sum()
    std = np.sqrt(squares / freedom) if freedom else np.nan
    return pd.Series({"std": std, "bound": t.ppf((1 + level) / 2, freedom) * std})
