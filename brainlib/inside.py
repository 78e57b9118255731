"""What tuning changed inside a model: its parameters, by layer and by kind."""

from __future__ import annotations

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
        rows.append([name, _layer(name, base), _kind(name), change, norm, relative])
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
    sums = squares.groupby([table[column] for column in np.atleast_1d(by)]).sum()
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


def _layer(name: str, encoder: SpeechEncoder) -> int:
    """Number of the hidden state that a parameter makes."""
    block = block_number(name)
    if block is not None:
        return block + 1
    last = encoder.family.pre_norm and re.search(r"(^|encoder\.)layer_norm\.", name)
    return encoder.layers - 1 if last else 0


def _kind(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")
