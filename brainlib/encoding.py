"""Encoding models: ridge regression from delayed features to voxels, its scores, ceilings and significance."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin

from .timing import fir

BATCH_VOXELS = 10_000  # on the device at a time


class RidgeEncoder(RegressorMixin, BaseEstimator):
    """Linear encoding model: one ridge penalty a voxel, chosen by cross-validation over whole stories.

    Features are z-scored with training statistics, then delayed within each story; himalaya (Dupre la Tour et al.
    2022) searches the penalties, in the primal or the kernel form, whichever matrix is smaller.

    Parameters
    ----------
    alphas : array of shape (n_alphas,), optional
        Penalties, in himalaya's convention ``||Xb - y||^2 + alpha ||b||^2``; the field's older code squares its alphas.
        If left out, 13 values from 1e-5 to 10 times the largest eigenvalue of X'X.
    delays : sequence of int
        In TRs (see `timing.fir`).
    n_folds : int
        Groups of stories that are held out in turn; no more than there are stories.
    device : str, optional
        "cpu", "cuda", ...; the best there is if left out.

    Attributes
    ----------
    best_alphas_ : array of shape (n_voxels,)
    cv_scores_ : array of shape (n_voxels,)
        Mean cross-validated R2 at the chosen penalty; NaN where `alphas` is a single value, which is not searched.
    coef_ : array of shape (n_delays * n_features, n_voxels)
        Block d holds the weights at ``delays[d]``. In the kernel form it is computed when asked for.
    edges_ : tuple of two floats
        Shares of voxels at the lower and upper edge of the grid. A largest penalty ten times the largest eigenvalue
        shrinks every prediction to nothing, so voxels up there are unpredictable rather than cut short: then they are
        not counted.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.standard_normal((80, 5)) for _ in range(4)]
    >>> Y = [fir(x, (1, 2)) @ np.ones((10, 3)) for x in X]
    >>> model = RidgeEncoder(delays=(1, 2)).fit(X[:3], Y[:3])
    >>> bool((model.score(X[3], Y[3]) > 0.99).all())
    True
    """

    def __init__(self, alphas=None, *, delays=(1, 2, 3, 4), n_folds=5, device=None):
        self.alphas, self.delays, self.n_folds, self.device = alphas, delays, n_folds, device

    def fit(self, X, Y):
        """Fit on lists of stories.

        Parameters
        ----------
        X : list of arrays of shape (n_trs, n_features)
        Y : list of arrays of shape (n_trs, n_voxels)

        Raises
        ------
        ValueError
            If lists or rows do not match, or a value is not finite.
        """
        import torch

        X, Y = _check_lists(X, Y)
        stacked = np.concatenate(X)
        self.mean_, self.scale_ = stacked.mean(0), stacked.std(0)
        self.scale_[self.scale_ < 1e-6 * max(self.scale_.max(), 1e-12)] = (
            1.0  # a constant feature stays zero
        )
        self.y_mean_ = sum(y.sum(0, dtype=np.float64) for y in Y).astype(np.float32) / len(stacked)
        backend = _backend(self.device)
        design = backend.asarray(
            np.concatenate([self._delayed(x) for x in X]), dtype="float32"
        )  # (n, p)
        n, p = design.shape
        self.kernel_ = p > n
        gram = (design @ design.T if self.kernel_ else design.T @ design).double()
        gram = (gram + gram.T) / 2
        values, vectors = torch.linalg.eigh(gram.cpu() if gram.device.type == "mps" else gram)
        values, vectors = values.clamp(min=0), vectors.to(design)  # values stay float64
        top = float(values.max())
        alphas = (
            top * np.logspace(-5, 1, 13)
            if self.alphas is None
            else np.sort(np.asarray(self.alphas, float))
        )
        folds = story_folds([len(x) for x in X], self.n_folds)
        n_voxels = Y[0].shape[1]
        self.best_alphas_, self.cv_scores_ = np.empty(n_voxels), np.empty(n_voxels, np.float32)
        solution = np.empty((n if self.kernel_ else p, n_voxels), np.float32)
        searched = gram.to(design) if self.kernel_ else design
        for start in range(0, n_voxels, BATCH_VOXELS):
            batch = slice(start, start + BATCH_VOXELS)
            target = np.concatenate([y[:, batch] for y in Y]).astype(np.float32, copy=False)
            target -= self.y_mean_[batch]
            target = backend.asarray(target, dtype="float32")
            if len(alphas) > 1:
                chosen, self.cv_scores_[batch] = _search(
                    searched, target, alphas, folds, self.kernel_
                )
            else:  # nothing to choose
                chosen, self.cv_scores_[batch] = np.full(target.shape[1], alphas[0]), np.nan
            self.best_alphas_[batch] = chosen
            projected = vectors.T @ (target if self.kernel_ else design.T @ target)
            for alpha in np.unique(chosen):  # one shrinkage for all voxels that share a penalty
                where = np.flatnonzero(chosen == alpha)
                shrunk = projected[:, where] / (values + alpha).to(design)[:, None]
                solution[:, start + where] = (vectors @ shrunk).cpu().numpy()
        self.n_features_in_ = X[0].shape[1]
        self._train = design.cpu().numpy() if self.kernel_ else None
        self._solution = solution
        self._warn_at_edges(alphas, top)
        return self

    def _warn_at_edges(self, alphas, top):
        lower = float(np.mean(np.isclose(self.best_alphas_, alphas[0])))
        upper = (
            float(np.mean(np.isclose(self.best_alphas_, alphas[-1])))
            if alphas[-1] < 9.99 * top
            else 0.0
        )
        if len(alphas) == 1:
            lower = upper = 0.0
        self.edges_ = (lower, upper)
        for share, which, remedy in ((lower, "smallest", "smaller"), (upper, "largest", "larger")):
            if share > 0.05:
                message = f"{share:.0%} of voxels chose the {which} alpha of the grid ({alphas[0]:.3g} to {alphas[-1]:.3g}): offer {remedy} ones"
                warnings.warn(message, stacklevel=3)

    @property
    def coef_(self):
        return self._train.T @ self._solution if self.kernel_ else self._solution

    def _delayed(self, x):
        return fir(((np.asarray(x) - self.mean_) / self.scale_).astype(np.float32), self.delays)

    def predict(self, X):
        """Predicted responses to one story, (n_trs, n_voxels), or to a list of stories, a list of them."""
        if isinstance(X, (list, tuple)):
            return [self.predict(x) for x in X]
        x = np.asarray(X)
        if x.ndim != 2 or x.shape[1] != self.n_features_in_:
            raise ValueError(
                f"features of shape {x.shape}; expected (n_trs, {self.n_features_in_}), as in fit"
            )
        design = self._delayed(x)
        rows = design @ self._train.T if self.kernel_ else design
        return rows @ self._solution + self.y_mean_

    def score(self, X, Y):
        """Pearson r of each voxel over one story, or over a list of stories put end to end: (n_voxels,)."""
        X, Y = _check_lists(X, Y) if isinstance(X, (list, tuple)) else _check_lists([X], [Y])
        return correlation(np.concatenate(Y), np.concatenate(self.predict(X)))


def _check_lists(X, Y):
    if len(X) != len(Y) or not len(X):
        raise ValueError(
            f"{len(X)} stories of features but {len(Y)} of responses: one array a story in each list"
        )
    for i, (x, y) in enumerate(zip(X, Y)):
        if np.ndim(x) != 2 or np.ndim(y) != 2 or len(x) != len(y):
            raise ValueError(
                f"story {i}: features {np.shape(x)} and responses {np.shape(y)}; expected (n_trs, n_features) and (n_trs, n_voxels)"
            )
        if not np.isfinite(x).all() or not np.isfinite(y).all():
            raise ValueError(
                f"story {i}: NaN or infinite values; Dataset.responses fills and counts them"
            )
    return [np.asarray(x) for x in X], [np.asarray(y) for y in Y]


def _backend(device):
    from himalaya.backend import set_backend

    from .runtime import pick_device

    kind = pick_device(device).split(":")[0]
    return set_backend({"cpu": "torch", "cuda": "torch_cuda", "mps": "torch_mps"}[kind])


def _search(matrix, target, alphas, folds, kernel):
    """himalaya's grid search without its refit: chosen alpha and cross-validated R2 of each target."""
    from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search
    from himalaya.ridge import solve_group_ridge_random_search
    from himalaya.scoring import l2_neg_loss
    from sklearn.model_selection import check_cv

    search = (
        solve_multiple_kernel_ridge_random_search if kernel else solve_group_ridge_random_search
    )
    options = {"return_weights": None} if kernel else {"return_weights": False, "warn": False}
    one = np.ones((1, 1), np.float32)  # a single feature space: nothing is random in this search
    deltas, _, scores = search(
        matrix[None] if kernel else [matrix],
        target,
        n_iter=_as(matrix, one),
        alphas=_as(matrix, alphas),
        cv=check_cv(folds),
        score_func=l2_neg_loss,
        n_targets_batch=1000,
        n_alphas_batch=5,
        progress_bar=False,
        jitter_alphas=False,
        **options,
    )
    chosen = np.exp(-deltas[0].double().cpu().numpy())
    nearest = np.abs(np.log(alphas)[:, None] - np.log(chosen)).argmin(0)  # undo float32 rounding
    loss = -scores.cpu().numpy().reshape(-1, len(nearest))[-1]
    return alphas[nearest], 1 - loss / np.maximum(target.var(0, correction=0).cpu().numpy(), 1e-12)


def _as(like, values):
    import torch

    return torch.as_tensor(np.asarray(values, np.float32), device=like.device)


def story_folds(lengths, n_folds: int = 5):
    """Train and validation rows for cross-validation over whole stories: list of (train, validation) index arrays.

    Stories go to folds in turn, so that folds differ little in length; with a single story, its rows are cut into blocks.
    """
    story = np.repeat(np.arange(len(lengths)), lengths)
    group = (
        story % min(n_folds, len(lengths))
        if len(lengths) > 1
        else np.arange(len(story)) * n_folds // len(story)
    )
    return [(np.flatnonzero(group != g), np.flatnonzero(group == g)) for g in np.unique(group)]


# ------------------------------------------------------------------ scores
def correlation(y, y_hat) -> np.ndarray:
    """Pearson correlation over time of each voxel.

    Parameters
    ----------
    y, y_hat : arrays of shape (n_trs, n_voxels)

    Returns
    -------
    r : array of shape (n_voxels,)
        0 where either is constant.
    """
    y, y_hat = (np.asarray(a, np.float64) for a in (y, y_hat))
    y, y_hat = y - y.mean(0), y_hat - y_hat.mean(0)
    size = np.sqrt((y**2).sum(0) * (y_hat**2).sum(0))
    return np.divide((y * y_hat).sum(0), size, out=np.zeros(y.shape[1:]), where=size > 1e-12)


def noise_ceiling(repeats) -> np.ndarray:
    """CC_max: the highest correlation with the mean over repeats that a perfect model could reach.

    Parameters
    ----------
    repeats : array of shape (n_repeats, n_trs, n_voxels)

    Returns
    -------
    cc_max : array of shape (n_voxels,)
        ``sqrt(SP / Var(mean))`` in [0, 1], 0 where the signal power SP is not above zero (Sahani & Linden 2003;
        Schoppe et al. 2016). SP = (R Var(mean) - mean Var(repeat)) / (R - 1).

    Raises
    ------
    ValueError
        If there are fewer than two repeats.
    """
    repeats = np.asarray(repeats)
    if repeats.ndim != 3 or len(repeats) < 2:
        raise ValueError(
            f"repeats of shape {repeats.shape}; expected (n_repeats, n_trs, n_voxels) with at least two repeats"
        )
    n = len(repeats)
    of_mean = repeats.mean(0, dtype=np.float64).var(0)
    power = (n * of_mean - repeats.var(1, dtype=np.float64).mean(0)) / (n - 1)
    share = np.divide(power, of_mean, out=np.zeros_like(power), where=(power > 0) & (of_mean > 0))
    return np.sqrt(np.clip(share, 0, 1))


# ------------------------------------------------------------------ significance
def permutation_test(y, y_hat, *, block: int = 10, n: int = 1000, seed: int = 0) -> np.ndarray:
    """Is a voxel's correlation above chance? Blocks of the prediction change places, without replacement.

    Parameters
    ----------
    y, y_hat : arrays of shape (n_trs, n_voxels)
    block : int
        TRs that stay together, so that the null keeps the signal's autocorrelation; a shorter last block moves too.
    n : int
        Permutations; the same for all voxels, so that the spatial structure of the null is kept.

    Returns
    -------
    p : array of shape (n_voxels,)
        One-sided, ``(1 + hits) / (1 + n)`` (Phipson & Smyth 2010), so never 0.
    """
    y, y_hat = np.asarray(y, np.float64), np.asarray(y_hat, np.float64)
    if y.shape != y_hat.shape or len(y) < 2 * block:
        raise ValueError(
            f"shapes {y.shape} and {y_hat.shape}; expected equal ones with at least two blocks of {block} TRs"
        )
    y, y_hat = ((a - a.mean(0)) / np.maximum(a.std(0), 1e-12) for a in (y, y_hat))
    y, y_hat = y.astype(np.float32), y_hat.astype(np.float32)
    observed = np.einsum("tv,tv->v", y, y_hat)
    pieces = np.split(np.arange(len(y)), np.arange(block, len(y), block))
    rng = np.random.default_rng(seed)
    hits = np.zeros(y.shape[1], int)
    for _ in range(n):
        order = np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])
        hits += np.einsum("tv,tv->v", y, y_hat[order]) >= observed
    return (1 + hits) / (1 + n)


def fdr(p) -> np.ndarray:
    """p values adjusted for the false discovery rate (Benjamini & Hochberg 1995): declare ``fdr(p) <= q``."""
    from scipy.stats import false_discovery_control

    return false_discovery_control(np.asarray(p))
