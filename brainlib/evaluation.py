"""The same evaluation for every speech model, the choice of voxels, and controls that differ in the brain data alone."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd

from .encoding import RidgeEncoder, correlation
from .scores import by_region, normalised
from .speech import features_at_trs
from .timing import fir


# ------------------------------------------------------------------ voxels
def pick_voxels(ds, subject, *, rule: str = "all") -> np.ndarray:
    """Indices of the voxels that a rule names.

    Parameters
    ----------
    rule : str
        "all", a region of ``ds.rois``, or "ceiling > 0.4" (any number from 0 to 1). The ceiling is that of the
        validation stories: voxels are not chosen by what they are scored on. Where only the test story has repeats, the
        ceiling is that of every second repeat of it, with a warning: score on the others (`scored_repeats`).

    Returns
    -------
    voxels : array of int

    Raises
    ------
    ValueError
        If the rule is none of these, or if it needs repeats and the data set has none.
    """
    if rule == "all":
        return np.arange(ds.n_voxels(subject))
    threshold = _ceiling_threshold(rule)
    if threshold is not None:
        return np.flatnonzero(_choosing_ceiling(ds, subject) > threshold)
    masks = ds.rois(subject)
    if rule not in masks:
        raise ValueError(
            f"no voxels {rule!r}; expected 'all', 'ceiling > 0.4' (and the like), or one of {sorted(masks)}"
        )
    return np.flatnonzero(masks[rule])


def scored_repeats(ds, subject, *, rule: str):
    """Repeats of the test stories that a choice of voxels has left to be scored on.

    Returns
    -------
    repeats : slice or None
        Every second repeat where `pick_voxels` had to choose by the others. None, for all, where it had not, or where
        fewer than four repeats cannot be shared out: scores are then a little too good.
    """
    chosen_on_test = _ceiling_threshold(rule) is not None and not _repeated(ds, subject, "val")
    return slice(1, None, 2) if chosen_on_test and _repeated(ds, subject, "test", 4) else None


def regions(ds, subject) -> dict[str, np.ndarray]:
    """Masks of ``ds.rois``.

    A subject without anatomy has a single one, of voxels with a ceiling above 0.4 (see `pick_voxels`). Where no
    validation story has repeats, and the test stories fewer than three, that of all voxels.
    """
    masks = ds.rois(subject)
    if masks:
        return masks
    n_voxels = ds.n_voxels(subject)
    if not _repeated(ds, subject, "val") and not _repeated(ds, subject, "test", 3):
        return {"all voxels": np.ones(n_voxels, bool)}
    chosen = pick_voxels(ds, subject, rule="ceiling > 0.4")
    return {"ceiling > 0.4": np.isin(np.arange(n_voxels), chosen)}


def regions_and_repeats(ds, subject, *, rule: str = "all"):
    """The masks of `regions`, and the repeats that they and a rule of `pick_voxels` have left to be scored on.

    Returns
    -------
    masks : dict of boolean arrays of shape (n_voxels,)
    repeats : slice or None
        See `scored_repeats`.
    """
    masks = regions(ds, subject)
    left = [scored_repeats(ds, subject, rule=name) for name in (rule, *masks)]
    return masks, next((repeats for repeats in left if repeats is not None), None)


def _ceiling_threshold(rule):
    """The number of a rule "ceiling > number", None for a rule of another kind."""
    if not rule.startswith("ceiling"):
        return None
    number = re.fullmatch(r"ceiling\s*>\s*(0?\.\d+|[01](?:\.\d*)?)\s*", rule)
    if number is None or float(number[1]) >= 1:
        raise ValueError(
            f"rule {rule!r} cannot be read; expected 'ceiling > ' and a number from 0 to 1, as in 'ceiling > 0.4'"
        )
    return float(number[1])


def _choosing_ceiling(ds, subject):
    """Noise ceiling to choose voxels by: of the validation stories, else of every second repeat of the test stories."""
    if _repeated(ds, subject, "val"):
        return ds.noise_ceiling(subject, split="val")
    if not _repeated(ds, subject, "test", 3):
        raise ValueError(
            f"{ds.name}: no repeats to choose voxels of {subject} by: none of a validation story, and too few of the "
            "test story to share between choosing and scoring; expected a region or 'all' instead of a ceiling"
        )
    warnings.warn(
        "voxels chosen by every second repeat of the test story: score on the others (evaluation.scored_repeats)",
        stacklevel=3,
    )
    return ds.noise_ceiling(subject, repeats=slice(None, None, 2))


def _repeated(ds, subject, split, at_least=2):
    return all(ds.n_repeats(subject, story) >= at_least for story in ds.split[split])


# ------------------------------------------------------------------ scores
def fresh_ridge(features, responses, *, stories, delays=(1, 2, 3, 4), alpha=None) -> RidgeEncoder:
    """The rule by which every model is evaluated: a ridge fitted anew on frozen features.

    Parameters
    ----------
    features : dict of arrays of shape (n_trs, width), by story
    responses : dict of arrays of shape (n_trs, n_voxels), by story
    stories : list of str
        To fit on.
    alpha : float, optional
        One penalty for all voxels (see `shared_alpha`); searched per voxel if left out.
    """
    ridge = RidgeEncoder(None if alpha is None else [alpha], delays=delays)
    return ridge.fit([features[s] for s in stories], [responses[s] for s in stories])


def shared_alpha(ridge) -> float:
    """One penalty for all voxels of a searched ridge: the median over those that it predicts in cross-validation.

    Where most voxels cannot be predicted, their penalties say nothing; where most can, all count.
    """
    predictable = ridge.cv_scores_ > 0
    if not 0 < predictable.mean() < 0.5:
        predictable = slice(None)
    return float(np.median(ridge.best_alphas_[predictable]))


def measured(ds, subject, *, on: str = "test", voxels=None, repeats=None) -> np.ndarray:
    """Responses to the stories of a split, end to end: (n_trs, n_voxels), each story z-scored.

    `repeats` (indices or slice) takes the mean of these; it is for the test stories (see `scored_repeats`).
    """
    repeats = repeats if on == "test" else None
    return np.concatenate(
        [ds.responses(subject, s, voxels=voxels, repeats=repeats) for s in ds.split[on]]
    )


def voxelwise_predictions(
    encoder,
    ds,
    *,
    subject,
    layers,
    voxels=None,
    train=None,
    on: str = "test",
    window=None,
    hop=None,
    cache: bool = True,
) -> dict[int, np.ndarray]:
    """Predicted responses from a speech model, tuned or not, all by the same rule.

    The model is frozen, its features are brought to TRs, and a ridge is fitted anew on the training stories; the
    read-out that a model was tuned with is never used.

    Parameters
    ----------
    encoder : SpeechEncoder
    layers : sequence of int
    voxels : indices or mask, optional
    train : list of str, optional
        Training stories; all of the split if left out.
    on : {"test", "val"}
    window, hop, cache
        See `SpeechEncoder.features`.

    Returns
    -------
    predictions : dict of arrays of shape (n_trs, n_voxels), by layer
        The stories of the split end to end, as `measured` has them.
    """
    train, scored = list(train or ds.split["train"]), ds.split[on]
    ds.fetch([subject], [*train, *scored], what=["stimuli", "responses"])
    responses = {s: ds.responses(subject, s, voxels=voxels) for s in train}
    features = {
        s: features_at_trs(encoder, ds.story(s), layers, window=window, hop=hop, cache=cache)
        for s in dict.fromkeys([*train, *scored])
    }
    predictions = {}
    for layer in layers:
        states = {s: features[s][layer] for s in features}
        ridge = fresh_ridge(states, responses, stories=train)
        predictions[layer] = np.concatenate(ridge.predict([states[s] for s in scored]))
    return predictions


def voxelwise_scores(
    encoder, ds, *, subject, layers, voxels=None, on: str = "test", repeats=None, **settings
) -> dict[int, np.ndarray]:
    """Encoding scores of a speech model: {layer: Pearson r of each voxel (n_voxels,)}.

    Parameters
    ----------
    repeats : indices or slice, optional
        Of the test stories, score the mean of these repeats (see `scored_repeats`).
    **settings
        `train`, `window`, `hop`, `cache`: see `voxelwise_predictions`, which has the other parameters too.
    """
    predictions = voxelwise_predictions(
        encoder, ds, subject=subject, layers=layers, voxels=voxels, on=on, **settings
    )
    y = measured(ds, subject, on=on, voxels=voxels, repeats=repeats)
    return {layer: correlation(y, predicted) for layer, predicted in predictions.items()}


def evaluate(
    encoder,
    ds,
    *,
    subjects=None,
    layers=None,
    voxels="all",
    floor: float = 0.2,
    on: str = "test",
    repeats=None,
    **settings,
) -> pd.DataFrame:
    """Encoding scores of a speech model, one row per subject, layer and region.

    Parameters
    ----------
    encoder : SpeechEncoder
    subjects : str or list of str, optional
        All of the data set if left out.
    layers : int or sequence of int, optional
        All if left out.
    voxels : str, indices, or dict of indices by subject
        What is scored; a str is a rule of `pick_voxels`. Where the rule, or the choice of a region, used half of the
        test story's repeats, the others are scored (`scored_repeats`), unless `repeats` is given.
    floor : float
        See `scores.normalised`.
    **settings
        `train`, `window`, `hop`, `cache`: see `voxelwise_predictions`.

    Returns
    -------
    scores : DataFrame
        `subject`, `layer`, `region` ("all voxels" first, then those of `regions`), `n_voxels` (scored), `r` (mean Pearson
        correlation), `normalised` (mean noise-ceiling-normalised correlation; NaN without repeats), `n_below_floor`
        (voxels that `normalised` leaves out).
    """
    subjects = [subjects] if isinstance(subjects, str) else list(subjects or ds.subjects)
    layers = range(encoder.layers) if layers is None else np.atleast_1d(layers).tolist()
    rows = []
    for subject in subjects:
        columns, masks, kept = _scored_voxels(ds, subject, voxels)
        kept = kept if repeats is None else repeats
        options = {"on": on, "voxels": columns, "repeats": kept}
        scores = voxelwise_scores(
            encoder, ds, subject=subject, layers=layers, **options, **settings
        )
        ceiling = np.full(len(columns), np.nan)
        if _repeated(ds, subject, on):
            kept = kept if on == "test" else None
            ceiling = ds.noise_ceiling(subject, split=on, repeats=kept)[columns]
        for layer, r in scores.items():
            table = pd.DataFrame({"n_voxels": {name: int(m.sum()) for name, m in masks.items()}})
            table["r"] = by_region(r, masks)
            table["normalised"] = by_region(normalised(r, ceiling, floor=floor), masks)
            table["n_below_floor"] = [int((~(ceiling[m] > floor)).sum()) for m in masks.values()]
            table = table.rename_axis("region").reset_index()
            table.insert(0, "subject", subject)
            table.insert(1, "layer", layer)
            rows.append(table)
    return pd.concat(rows, ignore_index=True)


def _scored_voxels(ds, subject, voxels):
    """Indices of the voxels, {region: mask over them}, and the repeats that choosing voxels and regions left."""
    voxels = voxels[subject] if isinstance(voxels, dict) else voxels
    rule = voxels if isinstance(voxels, str) else "all"
    columns = pick_voxels(ds, subject, rule=rule)
    if not isinstance(voxels, str):
        columns = columns[voxels]
    named, repeats = regions_and_repeats(ds, subject, rule=rule)
    masks = {"all voxels": np.ones(len(columns), bool)}
    masks |= {name: mask[columns] for name, mask in named.items()}
    return columns, masks, repeats


# ------------------------------------------------------------------ controls
def shuffled_responses(ds, *, block: int = 10, seed: int = 0):
    """Responses of the same story with its blocks of TRs in another order, none in its own place.

    Returns
    -------
    responses : callable
        ``(subject, story) -> (n_trs, n_voxels)``, for `BrainTuner.fit`.
    """

    def responses(subject, story):
        y = ds.responses(subject, story)
        pieces = np.array_split(np.arange(len(y)), max(len(y) // block, 3))
        rng = np.random.default_rng([seed, ds.stories.index(story)])
        order = rng.permutation(len(pieces))
        while (order == np.arange(len(pieces))).any():
            order = rng.permutation(len(pieces))
        return y[np.concatenate([pieces[i] for i in order])]

    return responses


def other_story(ds):
    """Responses to the next story of the same split, cut or repeated to this one's length, for `BrainTuner.fit`.

    A split of one story borrows from the training stories.
    """

    def responses(subject, story):
        group = next(names for names in ds.split.values() if story in names)
        if len(group) == 1:
            group = list(dict.fromkeys([*group, *ds.split["train"], *ds.split["val"]]))
        if len(group) < 2:
            raise ValueError(f"{ds.name} has no other story than {story!r} to take responses from")
        y = ds.responses(subject, group[(group.index(story) + 1) % len(group)])
        return np.resize(y, (len(ds.story(story).tr_times), y.shape[1]))

    return responses


def from_features(ds, features, *, seed: int = 0):
    """Targets made from features of the stories instead of brains: delayed as blood is, mixed at random to as many columns.

    Parameters
    ----------
    features : callable
        Story to array (n_trs, n_features): its own mel spectrum, word vectors, states of a larger model.
    """
    width = features(ds.story(ds.stories[0])).shape[1]

    def responses(subject, story):
        n_voxels = ds.n_voxels(subject)
        mix = np.random.default_rng(seed).standard_normal((width, n_voxels)).astype(np.float32)
        delayed = fir(np.asarray(features(ds.story(story)), np.float32), (1, 2, 3))
        y = delayed.reshape(-1, 3, width).mean(1) @ mix
        return (y - y.mean(0)) / np.maximum(y.std(0), 1e-6)

    return responses


CONTROLS = {"shuffled responses": shuffled_responses, "other story": other_story}
