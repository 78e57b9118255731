"""Linear probes of a speech model's hidden states, and how similar the states of two words are.

Rows are words or phonemes with their time in a recording; `interval_means` gives the states of each. Every score is one
number per row, so that scores can be averaged over any unit, and paired between models.
"""

import numpy as np
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import GroupKFold

from .encoding import RidgeEncoder, correlation
from .runtime import require

ALPHAS = 10.0 ** np.arange(-3, 4)  # penalties per row of unit variance


# ------------------------------------------------------------------ hidden states of words
def interval_means(states, times, *, start, end) -> np.ndarray:
    """Mean of the frames in each interval.

    Parameters
    ----------
    states : array of shape (n_frames, width)
    times : array of shape (n_frames,)
        Centres of the frames in seconds, increasing.
    start, end : arrays of shape (n,)
        Of words, phonemes or parts of them, in seconds. An interval without a frame takes the frame nearest to its middle.

    Returns
    -------
    means : array of shape (n, width), float32

    Raises
    ------
    ValueError
        If an interval ends before it starts, or lies outside the recording.
    """
    start, end, times = (np.asarray(x, float) for x in (start, end, times))
    middle = (start + end) / 2
    step = times[-1] - times[-2] if len(times) > 1 else np.inf
    inside = (middle >= times[0] - step) & (middle <= times[-1] + step)
    wrong = np.flatnonzero((end < start) | ~inside)
    require(
        not len(wrong),
        f"{len(wrong)} intervals end before they start or lie outside {times[0]:.2f} to {times[-1]:.2f} s, "
        f"the first from {start[wrong[:1]]} to {end[wrong[:1]]}; are they of this recording?",
    )
    total = np.vstack([np.zeros((1, states.shape[1])), np.cumsum(states, 0, dtype=np.float64)])
    first, last = np.searchsorted(times, start), np.searchsorted(times, end)
    for i in np.flatnonzero(last <= first):  # no frame
        first[i] = np.abs(times - middle[i]).argmin()
        last[i] = first[i] + 1
    return ((total[last] - total[first]) / (last - first)[:, None]).astype(np.float32)


# ------------------------------------------------------------------ splits
def folds(groups, n_folds: int = 5) -> list:
    """Train and test rows, whole groups apart: a list of (train, test) index arrays.

    Parameters
    ----------
    groups : array of shape (n,)
        Story, sentence or word type of each row.
    n_folds : int
        At most; no more than there are groups.
    """
    groups = np.asarray(groups)
    n_folds = min(n_folds, len(np.unique(groups)))
    return list(GroupKFold(n_folds).split(groups, groups=groups))


def crossed_folds(groups, types, *, n_folds: int = 3) -> list:
    """As `folds`, but neither a group nor a word type is in both parts; every row is tested once.

    Parameters
    ----------
    groups, types : arrays of shape (n,)
    n_folds : int
        Of groups and, crossed with them, of types.
    """
    require(
        len(groups) == len(types), f"{len(groups)} groups, {len(types)} types; expected as many"
    )
    pairs = [(a, b) for a in folds(groups, n_folds) for b in folds(types, n_folds)]
    split = [(np.intersect1d(a[0], b[0]), np.intersect1d(a[1], b[1])) for a, b in pairs]
    return [(train, test) for train, test in split if len(test)]


# ------------------------------------------------------------------ the probe
class LinearProbe(RegressorMixin, BaseEstimator):
    """Ridge regression from hidden states to targets; a penalty per target, chosen by cross-validation over groups.

    The search is that of `encoding.RidgeEncoder`, without delays.

    Parameters
    ----------
    alphas : array of shape (n_alphas,)
        Penalties per row: of ``n * alpha`` for n rows, states being z-scored on the rows that are fitted.
    n_folds : int

    Attributes
    ----------
    ridge_ : RidgeEncoder

    Notes
    -----
    Classes are fitted as columns of zeros and ones (`one_hot`), and the largest prediction wins. With logistic regression
    in its place a search of penalties for every layer and model would take hours.
    """

    def __init__(self, alphas=ALPHAS, *, n_folds=3):
        self.alphas = alphas
        self.n_folds = n_folds

    def fit(self, X, Y, *, groups=None):
        """Fit on rows.

        Parameters
        ----------
        X : array of shape (n, width)
        Y : array of shape (n, n_targets)
        groups : array of shape (n,), optional
            Rows of a group are never on both sides of a fold; each row is a group of its own if left out.

        Raises
        ------
        ValueError
            If rows do not match, or there is but one group.
        """
        X, Y = np.asarray(X, np.float32), np.asarray(Y, np.float32)
        groups = np.arange(len(X)) if groups is None else np.asarray(groups)
        require(
            X.ndim == Y.ndim == 2 and len(X) == len(Y) == len(groups),
            f"states {X.shape}, targets {Y.shape}, groups {groups.shape}; expected a row for each word",
        )
        n_groups = len(np.unique(groups))
        require(n_groups > 1, f"{n_groups} group; expected two or more, to choose a penalty")
        parts = [test for _, test in folds(groups, self.n_folds)]
        penalties = len(X) * np.asarray(self.alphas)
        self.ridge_ = RidgeEncoder(penalties, delays=(0,), n_folds=len(parts), device="cpu")
        self.ridge_.fit([X[rows] for rows in parts], [Y[rows] for rows in parts])
        return self

    def predict(self, X):
        """Predicted targets of rows: (n, n_targets)."""
        return self.ridge_.predict(np.asarray(X, np.float32))


def held_out(X, Y, splits, *, groups) -> np.ndarray:
    """Predictions of each row by probes that were fitted without it.

    Parameters
    ----------
    X : array of shape (n, width)
    Y : array of shape (n, n_targets), or one such array per split
        The latter for residuals of another probe, which differ from split to split.
    splits : list of (train, test)
    groups : array of shape (n,)
        For the choice of penalties, within the training rows.

    Returns
    -------
    predictions : array of shape (n, n_targets)
        NaN for a row that is never tested.

    Notes
    -----
    The mean of the training rows lies on the other side of the overall mean than that of the held-out rows, so a probe
    that finds nothing would rank the true vector *below* chance. Its constant is therefore the mean of all rows.
    """
    groups = np.asarray(groups)
    targets = Y if isinstance(Y, list) else [Y] * len(splits)
    predictions = np.full(np.shape(targets[0]), np.nan)
    for (train, test), target in zip(splits, targets, strict=True):
        probe = LinearProbe().fit(X[train], target[train], groups=groups[train])
        centre = target.mean(0) - target[train].mean(0)
        predictions[test] = probe.predict(X[test]) + centre
    return predictions


def residual_targets(X, Y, splits, *, groups) -> list:
    """Targets less what a probe of X, fitted on the training rows of each split, predicts of them: a list for `held_out`.

    Only training rows hold residuals. The others hold their mean, so that `held_out` adds no constant: the predictions of
    the residuals are to be added to those of X, which have one.
    """
    groups, residuals = np.asarray(groups), []
    for train, _ in splits:
        probe = LinearProbe().fit(X[train], Y[train], groups=groups[train])
        rest = Y[train] - probe.predict(X[train])
        residuals.append(np.tile(rest.mean(0), (len(Y), 1)))
        residuals[-1][train] = rest
    return residuals


def one_hot(labels, classes=None) -> np.ndarray:
    """Columns of zeros and ones, one per class in sorted order: (n, n_classes), float32."""
    labels = np.asarray(labels)
    classes = np.unique(labels) if classes is None else np.asarray(classes)
    return (labels[:, None] == classes).astype(np.float32)


def permuted_over_types(values, types, *, seed: int = 0) -> np.ndarray:
    """A control task: each word type gets the target of another one, the same for all its tokens (Hewitt and Liang 2019).

    Parameters
    ----------
    values : array of shape (n, ...)
        Targets; all tokens of a type have the same.
    types : array of shape (n,)
    seed : int

    Returns
    -------
    permuted : array of the shape of `values`
    """
    _, first, number = np.unique(np.asarray(types), return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    return np.asarray(values)[first[order]][number]


# ------------------------------------------------------------------ scores, one number per row
def r2_rows(Y, predictions) -> np.ndarray:
    """R² of several targets together, row by row: their mean is the variance-weighted R² (scikit-learn's `r2_score`).

    Parameters
    ----------
    Y, predictions : arrays of shape (n, n_targets)

    Returns
    -------
    rows : array of shape (n,)
        ``1 - e_i / mean(v)``, of the squared error e_i and the squared distance v from the mean; zero for a probe that
        always predicts the mean.
    """
    Y, predictions = np.asarray(Y, float), np.asarray(predictions, float)
    variance = np.square(Y - Y.mean(0)).sum(1).mean()
    require(variance > 0, "targets that never change; expected some variance")
    return 1 - np.square(Y - predictions).sum(1) / variance


def accuracy_rows(classes, predictions) -> np.ndarray:
    """Balanced accuracy, row by row: right or wrong, weighted so that all classes count alike; chance is 1 / n_classes.

    Parameters
    ----------
    classes : array of shape (n, n_classes)
        Of zeros and ones.
    predictions : array of shape (n, n_classes)
        The largest wins.
    """
    truth = np.argmax(classes, 1)
    count = np.asarray(classes).sum(0)
    weights = len(truth) / (np.count_nonzero(count) * count[truth])
    return weights * (np.argmax(predictions, 1) == truth)


def rank_rows(Y, predictions, *, types) -> np.ndarray:
    """Cosine rank of each row: the share of other word types whose vector is farther from the prediction than the true one.

    Parameters
    ----------
    Y, predictions : arrays of shape (n, n_targets)
        True and predicted vectors; all tokens of a type have the same true one. Both are taken from the mean of Y.
    types : array of shape (n,)

    Returns
    -------
    ranks : array of shape (n,)
        1: nearest of all; chance is 0.5. Ties count half.
    """
    _, first, own = np.unique(np.asarray(types), return_index=True, return_inverse=True)
    require(len(first) > 1, "one word type; expected two or more to rank")
    mean = np.mean(Y, axis=0)
    cosine = cosines(predictions - mean, np.asarray(Y)[first] - mean)  # (n, n_types)
    true = cosine[np.arange(len(own)), own][:, None]
    farther = (cosine < true).sum(1) + ((cosine == true).sum(1) - 1) / 2
    return farther / (len(first) - 1)


def selectivity(rows, control_rows) -> np.ndarray:
    """Score of a task less that of its control task, row by row (Hewitt and Liang 2019): what is not mere memory of types.

    Parameters
    ----------
    rows : array of shape (n,)
    control_rows : array of shape (n,) or (n_controls, n)
        Of one or several `permuted_over_types`.
    """
    return np.asarray(rows) - np.atleast_2d(control_rows).mean(0)


# ------------------------------------------------------------------ similarity
def cosines(A, B) -> np.ndarray:
    """Cosine of every row of A with every row of B: (n_a, n_b); 0 where one is zero but for rounding."""
    sizes = [np.linalg.norm(x, axis=1, keepdims=True) for x in (A, B)]
    A, B = (x / np.where(size > 1e-6, size, np.inf) for x, size in zip((A, B), sizes))
    return A @ B.T


def phoneme_distance(a, b) -> float:
    """Levenshtein distance of two sequences of phonemes over the length of the longer one, 0 to 1."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_distance(a, b)


def representational_similarity(similarity, reference, *, n_permutations=200, seed=0) -> tuple:
    """Spearman correlation of two similarity matrices over all pairs of words, and its null (Kriegeskorte et al. 2008).

    Parameters
    ----------
    similarity, reference : arrays of shape (n_types, n_types)
        Symmetric; the diagonal does not count.
    n_permutations : int
        Words of `reference` are permuted so often (Mantel 1967).
    seed : int

    Returns
    -------
    rho : float
    null : array of shape (n_permutations,)
    """
    require(
        np.shape(similarity) == np.shape(reference) and np.ndim(reference) == 2,
        f"matrices of shape {np.shape(similarity)} and {np.shape(reference)}; expected the same words",
    )
    n = len(reference)
    upper = np.triu_indices(n, 1)
    one, other = (rankdata(x[upper]).astype(np.float32) for x in (similarity, reference))
    ranks = np.zeros((n, n), np.float32)
    ranks[upper] = other
    ranks += ranks.T
    rng, null = np.random.default_rng(seed), np.empty(n_permutations)
    for i in range(n_permutations):
        order = rng.permutation(n)
        null[i] = correlation(one[:, None], ranks[np.ix_(order, order)][upper][:, None])[0]
    return float(correlation(one[:, None], other[:, None])[0]), null


def preference(meaning, sound, *, n_permutations=1000, seed=0) -> tuple:
    """How much more similar words that mean alike are than words that sound alike, and its null.

    Parameters
    ----------
    meaning, sound : arrays of shape (n_meaning,), (n_sound,)
        Similarity of the hidden states of each pair (Choi et al. 2024).
    n_permutations : int
        Pairs are dealt out anew to the two kinds so often.
    seed : int

    Returns
    -------
    difference : float
        Above zero: semantic; below: phonetic.
    null : array of shape (n_permutations,)
    """
    together = np.concatenate([meaning, sound]).astype(float)
    rng, n = np.random.default_rng(seed), len(meaning)
    null = np.empty(n_permutations)
    for i in range(n_permutations):
        x = rng.permutation(together)
        null[i] = x[:n].mean() - x[n:].mean()
    return float(np.mean(meaning) - np.mean(sound)), null


def p_value(value, null) -> float:
    """Two-sided: twice the share of a null at least as far out on the value's side, with the value itself; at most 1."""
    null, tiny = np.asarray(null), 1e-9
    hits = min(np.sum(null >= value - tiny), np.sum(null <= value + tiny))
    return float(min(1.0, 2 * (1 + hits) / (1 + len(null))))
