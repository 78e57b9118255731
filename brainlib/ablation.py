"""How much of a model's alignment with the brain is low-level: residualising, its impact, and variance partition.

Features, nuisance and responses are dictionaries of arrays by story, each of shape (n_trs, ...). Whatever is fitted is
fitted on the stories that are named for it; the others are only predicted.
"""

import numpy as np

from .encoding import RidgeEncoder
from .runtime import require

LEFT = 0.01  # of a dimension's variance: with less left than this, nothing is
RATIOS = (0.1, 1.0, 10.0)  # of the two bands' weights, in `partition`


# ------------------------------------------------------------------ residualising
def residualize(
    features,
    nuisance,
    stories,
    *,
    delays=(0,),
    n_components: int = 0,
    left: float = LEFT,
    seed: int = 0,
) -> dict:
    """Features less what a ridge predicts of them from low-level features of the same story.

    Parameters
    ----------
    features : dict of arrays of shape (n_trs, width), by story
        Of a speech model; of several layers or models side by side just so, as each dimension has its own ridge.
    nuisance : dict of arrays of shape (n_trs, n_features), by story
        Low-level features of the same stories, one family or several side by side.
    stories : list of str
        Training stories: the ridge, its penalties and all scales come from them alone.
    delays : sequence of int
        TRs by which the nuisance is delayed. (0,), the same TR, is what Brain-tuning's released code does (Moussa et al.
        2025; the method is that of Oota et al. 2024). An encoding model combines several TRs, so what one TR leaves, its
        neighbours can bring back; delays of both signs take that away too.
    n_components : int
        Of a non-linear map beside the linear one: so many Gaussian kernels around training rows (Nystroem); 0 for none.
    left : float
        Share of a dimension's training variance. Where less is left, the residual is set to zero: an encoding model scales
        all dimensions alike and would blow the rest up to full size.
    seed : int
        Of the choice of the rows.

    Returns
    -------
    residuals : dict of arrays of shape (n_trs, width), float32, by story
        Of every story of `features`.

    Raises
    ------
    ValueError
        If a story has no nuisance, or if lengths do not match.
    """
    missing = sorted((set(features) | set(stories)) - set(nuisance))
    require(not missing, f"no nuisance for the stories {missing}; give it for every story")
    if n_components:
        nuisance = _with_kernels(nuisance, stories, n_components, seed)
    x, y = ([part[s] for s in stories] for part in (nuisance, features))
    ridge = RidgeEncoder(delays=delays).fit(x, y)
    residuals = {s: (features[s] - ridge.predict(nuisance[s])).astype(np.float32) for s in features}
    variance, rest = (
        np.concatenate([part[s] for s in stories]).var(0) for part in (features, residuals)
    )
    keep = rest > left * variance
    return {s: residual * keep for s, residual in residuals.items()}


def _with_kernels(nuisance, stories, n_components, seed):
    """Nuisance and, beside it, its Gaussian kernels: (n_trs, n_features + n_components), by story."""
    from sklearn.kernel_approximation import Nystroem
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.concatenate([nuisance[s] for s in stories])
    kernels = Nystroem(n_components=min(n_components, len(rows)), random_state=seed)
    transform = make_pipeline(StandardScaler(), kernels).fit(rows)
    return {s: np.hstack([x, transform.transform(x)]) for s, x in nuisance.items()}


def impact(r_full, r_residual, *, floor: float = 0.0) -> np.ndarray:
    """Low-level impact: the percentage of the alignment that is lost with the low-level features (Moussa et al. 2025).

    Parameters
    ----------
    r_full, r_residual : arrays of any one shape
        Score of the model's features, and of their residuals: of voxels, or means of regions. The mean of a region before
        the ratio is steadier than the mean of ratios, which explode near zero.
    floor : float
        Not below zero.

    Returns
    -------
    impact : array
        ``100 (r_full - r_residual) / r_full``; NaN where `r_full` is not above `floor`. Above 100 where residuals predict
        the wrong way round, below 0 where they predict better.

    Raises
    ------
    ValueError
        If shapes differ or the floor is below zero.
    """
    r_full, r_residual = np.asarray(r_full, float), np.asarray(r_residual, float)
    require(
        r_full.shape == r_residual.shape and floor >= 0,
        f"scores {r_full.shape} and {r_residual.shape}, floor {floor}; expected equal shapes, a floor of at least 0",
    )
    lost = 100 * (r_full - r_residual)
    return np.divide(lost, r_full, out=np.full(r_full.shape, np.nan), where=r_full > floor)


# ------------------------------------------------------------------ variance partition
def partition(
    features,
    nuisance,
    responses,
    *,
    train,
    test,
    delays=(1, 2, 3, 4),
    ratios=RATIOS,
) -> dict:
    """Unique and shared variance of low-level features and of a model's, by banded ridge.

    Parameters
    ----------
    features, nuisance : dicts of arrays of shape (n_trs, n_features), by story
        Of the model, and low-level.
    responses : dict of arrays of shape (n_trs, n_voxels), by story
    train, test : lists of str
        Stories to fit on, and to score.
    delays : sequence of int
        In TRs, of both.
    ratios : sequence of float
        Weights of the model's band beside that of the low-level one, both scaled by their widths first. Each voxel takes
        the ratio of the best cross-validated R2 over the training stories (Dupre la Tour et al. 2022).

    Returns
    -------
    variance : dict of arrays of shape (n_stories, n_voxels)
        Of each test story, R2: `low_level`, `features` and `joint`, of a ridge each; from these `unique_low_level` and
        `unique_features` (joint less the other one) and `shared` (the rest of joint; de Heer et al. 2017). And the
        product measure, whose two parts `product_low_level` and `product_features` add up to joint.

    Raises
    ------
    ValueError
        If a story is in both lists.
    """
    both = sorted(set(train) & set(test))
    require(not both, f"stories {both} are both fitted on and scored")
    y = [responses[s] for s in test]
    joint = _fit_bands(
        [nuisance, features], responses, train=train, test=test, delays=delays, ratios=ratios
    )
    alone = [
        _fit_bands([band], responses, train=train, test=test, delays=delays, ratios=(1.0,))
        for band in (nuisance, features)
    ]
    low, model = (_by_story(y, split).sum(0) for split in alone)  # (n_stories, n_voxels)
    products = _by_story(y, joint)
    total = products.sum(0)
    return {
        "low_level": low,
        "features": model,
        "joint": total,
        "unique_low_level": total - model,
        "unique_features": total - low,
        "shared": low + model - total,
        "product_low_level": products[0],
        "product_features": products[1],
    }


def _by_story(y, split):
    """R2 of each story, shared out among the bands: (n_bands, n_stories, n_voxels); 0 in voxels that never change."""
    from himalaya.scoring import r2_score_split

    parts = []
    for true, bands in zip(y, split):
        true = np.asarray(true, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = r2_score_split(true - true.mean(0), np.asarray(bands, np.float64))
        parts.append(np.where(np.ptp(true, axis=0) == 0, 0.0, shares))
    return np.stack(parts, axis=1)


def _fit_bands(bands, responses, *, train, test, delays, ratios):
    """Predictions of the test stories, each (n_bands, n_trs, n_voxels), at each voxel's best ratio of the last band."""
    widths = [band[train[0]].shape[1] for band in bands]
    X = {s: np.hstack([band[s] for band in bands]) for s in [*train, *test]}
    n_voxels = responses[train[0]].shape[1]
    best = np.full(n_voxels, -np.inf)
    chosen = [np.zeros((len(bands), len(X[s]), n_voxels), np.float32) for s in test]
    for ratio in ratios:
        weights = [1.0] * (len(bands) - 1) + [ratio]
        ridge = RidgeEncoder(delays=delays, groups=widths, weights=weights)
        ridge.fit([X[s] for s in train], [responses[s] for s in train])
        better = np.nan_to_num(ridge.cv_scores_, nan=-1e9) > best
        best = np.where(better, ridge.cv_scores_, best)
        for parts, s in zip(chosen, test):
            np.copyto(parts, _split(ridge, X[s], widths), where=better)
    return chosen


def _split(ridge, x, widths):
    """The part of each band in a prediction, less the mean: (n_bands, n_trs, n_voxels)."""
    band = np.repeat(np.arange(len(widths)), widths)
    parts = [np.where(band == i, x, ridge.mean_) for i in range(len(widths))]
    return np.stack([ridge.predict(part) - ridge.y_mean_ for part in parts])
