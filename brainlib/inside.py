"""What tuning changed inside a model: parameters by layer and kind, similarity and dimension of hidden states."""

import re

import numpy as np
import pandas as pd

from .network import block_number
from .runtime import require
from .speech import SpeechEncoder

KINDS = {  # of a parameter, by its name in transformers; the first that fits
    "position": r"rel_attn|rel_pos|embed_positions|pos_conv",
    "convolution": r"^conv\d|^feature_extractor|masked_spec_embed",
    "q": r"q_proj",
    "k": r"k_proj",
    "v": r"v_proj",
    "out": r"out_proj",
    "norm": r"norm",
    "feed-forward": r"fc\d|feed_forward",
    "projection": r"feature_projection",
}
CHANGE_COLUMNS = ["parameter", "layer", "kind", "change", "norm", "relative"]


def parameter_change(base: SpeechEncoder, tuned: SpeechEncoder) -> pd.DataFrame:
    """How far each parameter moved: ``||W' - W||`` and, relative, ``||W' - W|| / ||W||`` (Frobenius norms).

    Adapters count as merged: what ``(alpha / rank) B A`` adds to the weight that it adapts. Neither model is changed.

    Parameters
    ----------
    base, tuned : SpeechEncoder
        The same architecture.

    Returns
    -------
    table : DataFrame
        A row per parameter: ``parameter`` (its name in `base`), ``layer`` (of the hidden state that it makes: 0 for all
        before the first block, the last for the norm after the last block), ``kind`` (a key of `KINDS`, or "other"),
        ``change``, ``norm`` (of the parameter in `base`) and ``relative``, NaN where the norm is 0. ``to_dict("list")``
        goes into a JSON.

    Raises
    ------
    ValueError
        If the parameters differ in name or shape.
    """
    before, after = merged_parameters(base.model), merged_parameters(tuned.model)
    shapes = [{name: tuple(w.shape) for name, w in state.items()} for state in (before, after)]
    differing = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
    require(
        not differing,
        f"{base.name} and {tuned.name}: parameters {differing[:2]} are in one of them alone; expected two models of "
        "one architecture",
    )
    rows = []
    for name, w in before.items():
        change, norm = float((after[name] - w).norm()), float(w.norm())
        relative = change / norm if norm else np.nan
        kind = next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")
        rows.append([name, _layer(name, base), kind, change, norm, relative])
    return pd.DataFrame(rows, columns=CHANGE_COLUMNS)


def relative_change(table: pd.DataFrame, by) -> pd.Series:
    """Relative change of several parameters taken as one long vector: root of summed squares over the same of the base.

    Parameters
    ----------
    table : DataFrame
        Of `parameter_change`.
    by : str or list of str
        Columns to group by, such as ``["layer", "kind"]``.

    Returns
    -------
    relative : Series
        Indexed by the groups; NaN where the base is all zero.
    """
    squares = table[["change", "norm"]].astype(float) ** 2
    by = [table[column] for column in np.atleast_1d(by)]
    sums = squares.groupby(by).agg(lambda x: x.sum(skipna=False))  # NaN: training diverged
    return (sums.change / sums.norm.where(sums.norm > 0)) ** 0.5


def merged_parameters(model) -> dict:
    """{name without PEFT's additions: tensor in double precision}, with what adapters add to it."""
    parameters = {
        name.replace(".base_layer.", "."): value.detach().cpu().double()
        for name, value in model.named_parameters()
        if ".lora_" not in name
    }
    for path, module in model.named_modules():
        if getattr(module, "adapter_layer_names", ()) and not module.merged:
            for adapter in module.active_adapters:
                added = module.get_delta_weight(adapter).detach().cpu().double()
                parameters[f"{path}.weight"] = parameters[f"{path}.weight"] + added
    return parameters


# ------------------------------------------------------------------ hidden states
def centred_kernel_alignment(x, y) -> float:
    """Linear centred kernel alignment of two representations of the same samples (Kornblith et al. 2019).

    1 for representations that are equal but for a rotation, a shift and one factor. With few samples, or many features,
    unrelated ones are above 0, too: take many more samples than features.

    Parameters
    ----------
    x, y : arrays of shape (n_samples, width_x), (n_samples, width_y)
        Centred here. NaN if one is constant.
    """
    require(
        len(x) == len(y),
        f"{len(x)} and {len(y)} samples; expected the same sound through both models",
    )
    x, y = (_centred(z) for z in (x, y))
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / own) if own > 0 else np.nan


def _centred(x):
    """Columns less their means; exactly zero in columns that never change."""
    x = np.asarray(x, float)
    return np.where(np.ptp(x, axis=0) > 0, x - x.mean(0), 0.0)


def effective_dimension(x) -> float:
    """Participation ratio of the principal components' variances: ``(sum of them)^2 / sum of their squares``.

    The number of directions along which samples vary, if all varied alike; a few strong ones make it small, however many
    weak ones there are.

    Parameters
    ----------
    x : array of shape (n_samples, width)
        NaN if it is constant.
    """
    x = _centred(x)
    covariance = x.T @ x
    squares = np.square(covariance).sum()
    return float(np.trace(covariance) ** 2 / squares) if squares > 0 else np.nan


def intrinsic_dimension(x, *, k: int = 1) -> float:
    """Dimension of the manifold on which samples lie, from distances to their k-th and 2k-th neighbours.

    The maximum-likelihood estimate of GRIDE (Denti et al. 2022); with ``k=1`` that of TwoNN (Facco et al. 2017),
    ``1 / mean(log(r_2 / r_1))``. A larger `k` looks at a larger scale, where noise counts for less and curvature for more.

    Parameters
    ----------
    x : array of shape (n_samples, width)
        Neither repeated nor neighbouring in time: the neighbours of a frame would be the frames before and after it.
    k : int

    Raises
    ------
    ValueError
        If there are too few samples, or some are equal.
    """
    from scipy.optimize import minimize_scalar
    from sklearn.neighbors import NearestNeighbors

    require(len(x) > 2 * k + 1, f"{len(x)} samples; expected more than {2 * k + 1} for k={k}")
    distances = NearestNeighbors(n_neighbors=2 * k).fit(np.asarray(x, float)).kneighbors()[0]
    require(distances.min() > 0, "some samples are equal; expected each one once")
    near, far = distances[:, k - 1], distances[:, 2 * k - 1]
    logs = np.log(far / near)  # of the ratios mu

    def cost(d):  # minus the mean log likelihood: concave in d, so there is one maximum
        chord = np.log(-np.expm1(-d * logs)) if k > 1 else 0.0
        return np.mean(k * d * logs - (k - 1) * chord) - np.log(d)

    return float(minimize_scalar(cost, bounds=(1e-3, 10 * x.shape[1]), method="bounded").x)


def _layer(name: str, encoder: SpeechEncoder) -> int:
    """Number of the hidden state that a parameter makes."""
    block = block_number(name)
    if block is not None:
        return block + 1
    last = encoder.family.pre_norm and re.search(r"(^|encoder\.)layer_norm\.", name)
    return encoder.layers - 1 if last else 0
