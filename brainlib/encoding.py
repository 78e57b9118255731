"""Encoding models: ridge regression from delayed features to voxels, its scores, ceilings and significance."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin

from .runtime import pick_device, require
from .timing import fir

BATCH_VOXELS = 4_000  # on the device at a time
NEGLIGIBLE = 1e-3  # of a prediction: directions below this are left out of the search for penalties (`_rank`)


class RidgeEncoder(RegressorMixin, BaseEstimator):
    """Linear encoding model: one ridge penalty per voxel, chosen by cross-validation over whole stories.

    Features are z-scored with training statistics, then delayed within each story. Each fold is decomposed once, in the
    primal or the kernel form, whichever costs less; responses stay in main memory and pass the device once, in batches.

    Parameters
    ----------
    alphas : array of shape (n_alphas,), optional
        Penalties, in himalaya's convention ``||Xb - y||^2 + alpha ||b||^2``; the field's older code squares its alphas.
        If left out, 13 values from 1e-5 to 10 times the largest eigenvalue of X'X.
    delays : sequence of int
        In TRs (see `timing.fir`).
    n_folds : int
        Groups of stories that are held out in turn; no more than there are stories.
    groups : sequence of int, optional
        Widths of groups of columns that weigh alike, whatever their widths: each z-scored column is divided by the square
        root of its group's width. If left out, all columns weigh alike.
    weights : sequence of float, optional
        Of the groups, by which their columns are then multiplied: a banded ridge, whose heavier group is shrunk less.
    device : str, optional
        "cpu", "cuda", ...; the best there is if left out.

    Attributes
    ----------
    best_alphas_ : array of shape (n_voxels,)
    cv_scores_ : array of shape (n_voxels,)
        Mean cross-validated R2 at the chosen penalty; NaN where `alphas` is a single value, which is not searched, and
        in voxels that never change.
    coef_ : array of shape (n_delays * n_features, n_voxels)
        Block d holds the weights at ``delays[d]``. In the kernel form it is computed when asked for.
    edges_ : tuple of two floats
        Shares of voxels at the lower and upper edge of the grid. A largest penalty ten times the largest eigenvalue
        shrinks every prediction to nothing, so voxels up there are unpredictable rather than cut short: then they are
        not counted.

    Notes
    -----
    The search is that of himalaya (Dupre la Tour et al. 2022), and a test holds it to the same penalties and scores.
    himalaya's own solvers decompose again for every batch of voxels, or hold all voxels on the device; here each fold is
    decomposed once. Directions that a penalty shrinks to nothing are left out (`_rank`). benchmarks/README.md has times.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.standard_normal((80, 5)) for _ in range(4)]
    >>> Y = [fir(x, (1, 2)) @ np.ones((10, 3)) for x in X]
    >>> model = RidgeEncoder(delays=(1, 2)).fit(X[:3], Y[:3])
    >>> bool((model.score(X[3], Y[3]) > 0.99).all())
    True
    """

    def __init__(
        self, alphas=None, *, delays=(1, 2, 3, 4), n_folds=5, groups=None, weights=None, device=None
    ):
        self.alphas = alphas
        self.delays = delays
        self.n_folds = n_folds
        self.groups = groups
        self.weights = weights
        self.device = device

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
        self._learn_scales(X, Y)
        design = np.concatenate([self._delayed(x) for x in X])  # (n, p)
        design = torch.from_numpy(design).to(pick_device(self.device))
        folds = story_folds([len(x) for x in X], self.n_folds)
        n_alphas = 13 if self.alphas is None else np.size(self.alphas)
        self.kernel_ = _kernel_is_cheaper(*design.shape, folds=folds, n_alphas=n_alphas)
        gram = design @ design.T if self.kernel_ else design.T @ design
        values, vectors = _eigh(gram)
        top = float(values[0])
        alphas = top * np.logspace(-5, 1, 13)
        if self.alphas is not None:
            alphas = np.sort(np.asarray(self.alphas, float).ravel())
        held_out = []
        if len(alphas) > 1:  # else there is nothing to choose
            held_out = [
                _HeldOut.of(design, gram, train, test, alphas, kernel=self.kernel_)
                for train, test in folds
            ]
        del gram
        self._train = design.cpu().numpy() if self.kernel_ else None
        project = vectors if self.kernel_ else design @ vectors  # (n, k)
        self._fit_batches(Y, alphas, held_out, project, values, vectors)
        self.n_features_in_ = X[0].shape[1]
        self._warn_at_edges(alphas, top)
        return self

    def _learn_scales(self, X, Y):
        stacked = np.concatenate(X)
        self.mean_, self.scale_ = stacked.mean(0), stacked.std(0)
        constant = self.scale_ < 1e-6 * max(self.scale_.max(), 1e-12)
        self.scale_[constant] = 1.0  # a constant feature stays zero
        if self.groups is not None:
            self.scale_ *= np.sqrt(np.repeat(self.groups, self.groups))
        if self.weights is not None:
            self.scale_ /= np.repeat(self.weights, self.groups)
        total = sum(y.sum(0, dtype=np.float64) for y in Y)
        self.y_mean_ = (total / len(stacked)).astype(np.float32)

    def _fit_batches(self, Y, alphas, held_out, project, values, vectors):
        """Choose each voxel's penalty and solve for it, one batch of voxels on the device at a time."""
        import torch

        n_voxels = Y[0].shape[1]
        self.best_alphas_ = np.full(n_voxels, alphas[0])
        self.cv_scores_ = np.full(n_voxels, np.nan, np.float32)
        self._solution = np.empty((len(vectors), n_voxels), np.float32)
        for start in range(0, n_voxels, BATCH_VOXELS):
            batch = slice(start, start + BATCH_VOXELS)
            y = np.concatenate([y[:, batch] for y in Y]).astype(np.float32, copy=False)
            y -= self.y_mean_[batch]
            y = torch.from_numpy(y).to(project.device)  # (n, n_batch)
            if held_out:
                losses = sum(fold.losses(y, alphas) for fold in held_out) / len(held_out)
                loss, best = losses.min(0)
                self.best_alphas_[batch] = alphas[best.cpu().numpy()]
                variance = y.var(0, correction=0)
                variance[variance < 1e-12] = torch.nan  # nothing to predict
                self.cv_scores_[batch] = (1 - loss / variance).cpu().numpy()
            chosen = torch.from_numpy(self.best_alphas_[batch]).to(values)
            shrunk = (project.T @ y).div_(values[:, None] + chosen)
            self._solution[:, batch] = (vectors @ shrunk).cpu().numpy()

    def _warn_at_edges(self, alphas, top):
        searched = np.isfinite(self.cv_scores_)
        lower, upper = (
            float(np.mean(searched & np.isclose(self.best_alphas_, alphas[end]))) for end in (0, -1)
        )
        if alphas[-1] >= 9.99 * top:
            upper = 0.0
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
        require(
            x.ndim == 2 and x.shape[1] == self.n_features_in_,
            f"features of shape {x.shape}; expected (n_trs, {self.n_features_in_}), as in fit",
        )
        design = self._delayed(x)
        rows = design @ self._train.T if self.kernel_ else design
        return rows @ self._solution + self.y_mean_

    def score(self, X, Y):
        """Pearson r of each voxel over one story, or over a list of stories put end to end: (n_voxels,)."""
        X, Y = _check_lists(X, Y) if isinstance(X, (list, tuple)) else _check_lists([X], [Y])
        return correlation(np.concatenate(Y), np.concatenate(self.predict(X)))


def _check_lists(X, Y):
    require(
        len(X) == len(Y) and len(X),
        f"{len(X)} stories of features but {len(Y)} of responses: one array a story in each list",
    )
    for i, (x, y) in enumerate(zip(X, Y)):
        require(
            np.ndim(x) == np.ndim(y) == 2 and len(x) == len(y),
            f"story {i}: features {np.shape(x)} and responses {np.shape(y)}; expected (n_trs, n_features) and (n_trs, n_voxels)",
        )
        require(
            np.isfinite(x).all() and np.isfinite(y).all(),
            f"story {i}: NaN or infinite values; Dataset.responses fills and counts them",
        )
    return [np.asarray(x) for x in X], [np.asarray(y) for y in Y]


def _kernel_is_cheaper(n, p, *, folds, n_alphas):
    """Whether the products of the kernel form, all per voxel, are fewer than those of the primal form."""
    kernel, primal = 2 * n * n, n * p + p * p  # the refit
    for train, test in folds:
        rows = len(train) + n_alphas * len(test)
        kernel += rows * len(train)
        primal += rows * p
    return kernel < primal


def _eigh(gram):
    """Eigenvalues, largest first and none below zero, and eigenvectors of a symmetric matrix; computed in float64."""
    import torch

    exact = gram.cpu() if gram.device.type == "mps" else gram  # MPS has no float64
    exact = exact.double()
    values, vectors = torch.linalg.eigh((exact + exact.T) / 2)
    return values.flip(0).clamp(min=0).to(gram), vectors.flip(1).to(gram)


@dataclass
class _HeldOut:
    """One fold of the search, in the eigenvectors of its training rows: ``prediction = rows / (values + alpha) @ project' y``."""

    train: np.ndarray  # row numbers, as those of the whole design
    test: np.ndarray
    project: object  # tensor (n_train, k)
    rows: object  # tensor (n_test, k)
    values: object  # tensor (k,), largest first
    ranks: list  # how many of the k directions each penalty leaves

    @classmethod
    def of(cls, design, gram, train, test, alphas, *, kernel):
        if kernel:
            values, project = _eigh(gram[train][:, train])
            rows = gram[test][:, train] @ project
        else:
            held_out = design[test]
            values, vectors = _eigh(gram - held_out.T @ held_out)
            project, rows = design[train] @ vectors, held_out @ vectors
        size = rows.square().sum(0) * project.square().sum(0)
        ranks = [
            _rank(size / (values + alpha).square(), len(test) / len(train)) for alpha in alphas
        ]
        k = max(ranks)
        return cls(train, test, project[:, :k].contiguous(), rows[:, :k], values[:k], ranks)

    def losses(self, y, alphas):
        """Mean squared error of the held-out rows, (n_alphas, n_voxels), for centred targets (n, n_voxels)."""
        projected, y = self.project.T @ y[self.train], y[self.test]
        losses = y.new_empty(len(alphas), y.shape[1])
        for i, (alpha, k) in enumerate(zip(alphas, self.ranks)):
            rows = self.rows[:, :k] / (self.values[:k] + alpha)
            residual = y.addmm(rows, projected[:k], alpha=-1)
            losses[i] = residual.square_().mean(0)
        return losses


def _rank(power, share):
    """Directions that matter: what the others may add to a prediction is below `NEGLIGIBLE` of the targets' own size.

    `power` (k,) bounds each direction's squared contribution to the held-out rows per squared size of the training rows;
    `share` is held-out rows per training row.
    """
    rest = power.double().flip(0).cumsum(0).flip(0)  # of this and all later directions
    return max(int((rest > NEGLIGIBLE**2 * share).sum()), 1)


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
        0 where either is constant, NaN where either holds something that is no number.
    """
    y, y_hat = (np.asarray(a, np.float64) for a in (y, y_hat))
    y, y_hat = y - y.mean(0), y_hat - y_hat.mean(0)
    size = np.sqrt((y**2).sum(0) * (y_hat**2).sum(0))
    constant = size <= 1e-12
    return np.where(constant, 0.0, (y * y_hat).sum(0) / np.where(constant, 1.0, size))


def noise_ceiling(repeats) -> np.ndarray:
    """CC_max: the highest correlation with the mean over repeats that a perfect model could reach.

    Parameters
    ----------
    repeats : array of shape (n_repeats, n_trs, n_voxels), or several of them
        Several stories are those of a correlation over stories end to end, each z-scored.

    Returns
    -------
    cc_max : array of shape (n_voxels,)
        ``sqrt(SP / Var(mean))`` in [0, 1], 0 where the signal power SP is not above zero (Sahani & Linden 2003;
        Schoppe et al. 2016). SP = (R Var(mean) - mean Var(repeat)) / (R - 1). The shares ``SP / Var(mean)`` of several
        stories are averaged, weighted by their TRs, before anything is cut off at zero: a mean of the stories' own
        ceilings would be too high in weak voxels.

    Raises
    ------
    ValueError
        If there are fewer than two repeats.
    """
    stories = [repeats] if isinstance(repeats, np.ndarray) else repeats
    n_trs, share = 0, 0.0
    for story in stories:
        require(
            np.ndim(story) == 3 and len(story) >= 2,
            f"repeats of shape {np.shape(story)}; expected (n_repeats, n_trs, n_voxels) with at least two repeats",
        )
        n = len(story)
        of_mean = story.mean(0, dtype=np.float64).var(0)
        of_one = sum(one.var(0, dtype=np.float64) for one in story) / n
        power = (n * of_mean - of_one) / (n - 1)
        of_story = np.divide(power, of_mean, out=np.zeros_like(power), where=of_mean > 0)
        share = share + story.shape[1] * of_story
        n_trs += story.shape[1]
    return np.sqrt(np.clip(share / n_trs, 0, 1))


# ------------------------------------------------------------------ significance
def story_blocks(n_trs: int, *, lengths=None, block: int = 10) -> list[list[np.ndarray]]:
    """Rows cut into blocks of at least `block` TRs, none across the border of two stories.

    Parameters
    ----------
    n_trs : int
    lengths : sequence of int, optional
        TRs of each story, where several lie end to end.

    Returns
    -------
    blocks : list, by story, of lists of index arrays
    """
    lengths = [n_trs] if lengths is None else list(lengths)
    require(
        sum(lengths) == n_trs and min(lengths) >= 2 * block,
        f"{n_trs} TRs in stories of {lengths}; expected as many in all, and in each at least two blocks of {block}",
    )
    stories = np.split(np.arange(n_trs), np.cumsum(lengths)[:-1])
    return [np.array_split(rows, len(rows) // block) for rows in stories]


def permutation_test(
    y, y_hat, *, lengths=None, block: int = 10, n: int = 1000, seed: int = 0
) -> np.ndarray:
    """Is a voxel's correlation above chance? Blocks of the prediction change places, without replacement.

    Parameters
    ----------
    y, y_hat : arrays of shape (n_trs, n_voxels)
    lengths : sequence of int, optional
        TRs of each story, where several lie end to end: blocks then change places within their story.
    block : int
        TRs that stay together, so that the null keeps the signal's autocorrelation.
    n : int
        Permutations; the same for all voxels, so that the spatial structure of the null is kept.

    Returns
    -------
    p : array of shape (n_voxels,)
        One-sided, ``(1 + hits) / (1 + n)`` (Phipson & Smyth 2010), so never 0.
    """
    y, y_hat = np.asarray(y, np.float64), np.asarray(y_hat, np.float64)
    require(
        y.shape == y_hat.shape,
        f"shapes {y.shape} and {y_hat.shape}; expected equal ones",
    )
    stories = story_blocks(len(y), lengths=lengths, block=block)
    if math.prod(math.factorial(len(blocks)) for blocks in stories) < math.factorial(7):
        warnings.warn(
            f"{len(y)} TRs are {sum(map(len, stories))} blocks: with fewer than seven in a story, even a perfect "
            "prediction has no small p value; test a longer story, or several end to end",
            stacklevel=2,
        )
    y, y_hat = ((a - a.mean(0)) / np.maximum(a.std(0), 1e-12) for a in (y, y_hat))
    y, y_hat = y.astype(np.float32), y_hat.astype(np.float32)
    observed = np.einsum("tv,tv->v", y, y_hat)
    rng = np.random.default_rng(seed)
    hits = np.zeros(y.shape[1], int)
    for _ in range(n):
        order = np.concatenate(
            [blocks[i] for blocks in stories for i in rng.permutation(len(blocks))]
        )
        hits += np.einsum("tv,tv->v", y, y_hat[order]) >= observed
    return (1 + hits) / (1 + n)


def fdr(p) -> np.ndarray:
    """p values adjusted for the false discovery rate (Benjamini & Hochberg 1995): declare ``fdr(p) <= q``."""
    from scipy.stats import false_discovery_control

    return false_discovery_control(np.asarray(p))
