"""The same evaluation for every speech model, the choice of voxels, and controls that differ in the brain data alone."""

import re
import warnings
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import pandas as pd

from . import lowlevel
from .datasets import chosen
from .encoding import RidgeEncoder
from .runtime import require
from .scores import FLOOR, by_region, by_story, interval, levels, normalised
from .speech import features_at_trs
from .timing import fir

# Scores whose interval over stories `evaluate` gives, and the name of its column
MARGINS = {"normalised": "normalised_margin", "beyond_low_level": "beyond_margin"}


# ------------------------------------------------------------------ voxels
def pick_voxels(ds, subject, *, rule: str = "all") -> np.ndarray:
    """Indices of the voxels that a rule names.

    Parameters
    ----------
    rule : str
        "all", a region of ``ds.rois``, or "ceiling > 0.5" (any number from 0 to 1). The ceiling is that of the
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
    require(
        rule in masks,
        f"no voxels {rule!r}; expected 'all', 'ceiling > {FLOOR}' (and the like), or one of {sorted(masks)}",
    )
    return np.flatnonzero(masks[rule])


def evenly(voxels, n: int | None) -> np.ndarray:
    """So many of some voxels, (n,), evenly spread over them; all of them for None."""
    if n is None:
        return voxels
    return voxels[np.linspace(0, len(voxels) - 1, n).round().astype(int)]


def kept_voxels(ds, subject) -> np.ndarray:
    """The voxels that have a normalised score, the same for every model: mask of shape (n_voxels,).

    Those with a ceiling above `scores.FLOOR`, by the repeats that `pick_voxels` chooses by; all where it has none.
    """
    if not ds.has_repeats(subject, split="val") and not ds.has_repeats(subject, at_least=3):
        return np.ones(ds.n_voxels(subject), bool)
    return _choosing_ceiling(ds, subject) > FLOOR


def scored_repeats(ds, subject):
    """Repeats of the test stories that the choice of voxels has left to be scored on.

    Returns
    -------
    repeats : slice or None
        Every second repeat where no validation story has repeats, so that voxels are chosen by the others. None, for all,
        where voxels are chosen on validation stories, or where fewer than four repeats cannot be shared out: scores are
        then a little too good.
    """
    alone = ds.has_repeats(subject, at_least=4) and not ds.has_repeats(subject, split="val")
    return slice(1, None, 2) if alone else None


def regions(ds, subject) -> dict[str, np.ndarray]:
    """Masks of ``ds.rois``; a subject without anatomy has a single one, of `kept_voxels`."""
    masks = ds.rois(subject)
    if masks:
        return masks
    kept = kept_voxels(ds, subject)
    return {"all voxels" if kept.all() else f"ceiling > {FLOOR}": kept}


def _ceiling_threshold(rule):
    """The number of a rule "ceiling > number", None for a rule of another kind."""
    if not rule.startswith("ceiling"):
        return None
    number = re.fullmatch(r"ceiling\s*>\s*(0?\.\d+|[01](?:\.\d*)?)\s*", rule)
    require(
        number is not None and float(number[1]) < 1,
        f"rule {rule!r} cannot be read; expected 'ceiling > ' and a number from 0 to 1, as in 'ceiling > {FLOOR}'",
    )
    return float(number[1])


def _choosing_ceiling(ds, subject):
    """Noise ceiling to choose voxels by: of the validation stories, else of every second repeat of the test stories."""
    if ds.has_repeats(subject, split="val"):
        return ds.noise_ceiling(subject, split="val")
    require(
        ds.has_repeats(subject, at_least=3),
        f"{ds.name}: no repeats to choose voxels of {subject} by: none of a validation story, and too few of the "
        "test story to share between choosing and scoring; expected a region or 'all' instead of a ceiling",
    )
    warnings.warn(
        "voxels chosen by every second repeat of the test story: score on the others (evaluation.scored_repeats)",
        stacklevel=3,
    )
    return ds.noise_ceiling(subject, repeats=slice(None, None, 2))


# ------------------------------------------------------------------ scores
def fresh_ridge(
    features, responses, *, stories, delays=(1, 2, 3, 4), alpha=None, groups=None
) -> RidgeEncoder:
    """The rule by which every model is evaluated: a ridge fitted anew on frozen features.

    Parameters
    ----------
    features : dict of arrays of shape (n_trs, width), by story
    responses : dict of arrays of shape (n_trs, n_voxels), by story
    stories : list of str
        To fit on.
    alpha : float, optional
        One penalty for all voxels (see `shared_alpha`); searched per voxel if left out.
    groups : sequence of int, optional
        Widths of groups of features that weigh alike (see `RidgeEncoder`).
    """
    ridge = RidgeEncoder(None if alpha is None else [alpha], delays=delays, groups=groups)
    return ridge.fit([features[s] for s in stories], [responses[s] for s in stories])


def linear_map(features, responses, *, stories) -> dict:
    """Features after an invertible map that makes these responses easier to read: linearly they tell no more than before.

    The yardstick for tuning: what such a map gains is readability. With ``W = U S V'`` the weights (width, n_delays *
    n_voxels) of a ridge from features to responses, the map is ``U S^(1/2) U'``; no S is below 1e-4 of the largest.

    Parameters
    ----------
    features : dict of arrays of shape (n_trs, width), by story
    responses : dict of arrays of shape (n_trs, n_voxels), by story
    stories : list of str
        To make the map from.

    Returns
    -------
    mapped : dict of arrays of shape (n_trs, width), by story
    """
    ridge = fresh_ridge(features, responses, stories=stories)
    width = len(ridge.mean_)
    weights = np.hstack(list(ridge.coef_.reshape(len(ridge.delays), width, -1)))
    squares, directions = np.linalg.eigh(weights @ weights.T)
    require(
        np.isfinite(squares).all() and squares[-1] > 0,
        "a linear map of features or responses that are constant or not finite; expected both to vary",
    )
    sizes = np.sqrt(np.maximum(squares / squares[-1], 1e-8))
    mapping = (directions * np.sqrt(sizes)) @ directions.T  # (width, width)
    return {s: ((x - ridge.mean_) / ridge.scale_) @ mapping for s, x in features.items()}


def shared_alpha(ridge) -> float:
    """One penalty for all voxels of a searched ridge: the median over those that it predicts in cross-validation.

    Where most voxels cannot be predicted, their penalties say nothing; where most can, all count.
    """
    predictable = ridge.cv_scores_ > 0
    if not 0 < predictable.mean() < 0.5:
        predictable = slice(None)
    return float(np.median(ridge.best_alphas_[predictable]))


def _states(encoder, ds, *, stories, layers, **settings):
    """Hidden states at TRs: {layer: {story: (n_trs, width)}}."""
    states = {layer: {} for layer in layers}
    for story in dict.fromkeys(stories):
        of_story = features_at_trs(encoder, ds.story(story), layers, **settings)
        for layer in layers:
            states[layer][story] = of_story[layer]
    return states


def _predict(features, responses, stories, *, groups=None):
    """Predictions for stories, a list, by a ridge fitted anew on all stories of the responses; its cross-validated scores."""
    ridge = fresh_ridge(features, responses, stories=list(responses), groups=groups)
    return ridge.predict([features[s] for s in stories]), ridge.cv_scores_


def evaluate(
    encoder,
    ds,
    *,
    subjects=None,
    layers=None,
    voxels="all",
    train=None,
    on: str = "test",
    repeats=None,
    noise_free: bool = False,
    beyond_low_level: bool = False,
    each_story: bool = False,
    transform=None,
    **settings,
) -> pd.DataFrame:
    """Encoding scores of a speech model, one row per subject, layer and region.

    The model is frozen, its features are brought to TRs, and a ridge is fitted anew on the training stories; the
    read-out that a model was tuned with is never used.

    Parameters
    ----------
    encoder : SpeechEncoder
    subjects : str or list of str, optional
        All of the data set if left out.
    layers : int or sequence of int, optional
        All if left out.
    voxels : str, indices, or dict of indices by subject
        What is scored; a str is a rule of `pick_voxels`.
    train : list of str, optional
        Training stories; all of the split if left out.
    on : {"test", "val"}
    repeats : indices or slice, optional
        Of the test stories; those of `scored_repeats` if left out.
    noise_free : bool
        Fit to and score on noise-free responses (simulated subjects only), whose ceiling is one: what the features tell,
        however noisy the responses. The voxels kept are the same.
    beyond_low_level : bool
        Also a model of low-level features alone (`lowlevel.low_level`, or mel where stories have no words), and a joint
        one with the states, in which both groups weigh alike. A voxel takes the joint one where it is the better in
        cross-validation over the training stories: states that are of no use do no harm either.
    each_story : bool
        A row per `story` too, so that two models can be compared story by story; without numbers of voxels and margins.
    transform : callable, optional
        Takes and gives a layer's features by story, {story: (n_trs, width)}: `linear_map`, say.
    **settings
        `window`, `hop`, `cache`, `kernel`: see `features_at_trs`.

    Returns
    -------
    table : DataFrame
        `subject`, `layer`, `region` ("all voxels" first, then those of `regions`, then of simulated subjects the voxels of
        each level, "meaning voxels"), `n_voxels` and their mean correlation `r`; `n_kept` (voxels above the floor, see
        `kept_voxels`) and their mean noise-ceiling-normalised correlation `normalised` (NaN without repeats), with
        `normalised_margin`, half of its 95 % interval over the stories (NaN for one story). With `beyond_low_level` also
        `low_level` (normalised, those features alone), `beyond_low_level` (joint less low-level) and `beyond_margin`.
    """
    subjects = chosen(subjects, ds.subjects, what="subject", of=ds.name)
    train = ds.training_stories(train, apart_from=[on])
    layers = range(encoder.layers) if layers is None else np.atleast_1d(layers).tolist()
    stories = [*train, *ds.split[on]]
    ds.fetch(subjects, stories, what=["stimuli", "responses"])
    states = _states(encoder, ds, stories=stories, layers=layers, **settings)
    if transform is not None:
        states = {layer: transform(x) for layer, x in states.items()}
    low = None
    if beyond_low_level:
        names = lowlevel.LOW_LEVEL if all(ds.has_words(s) for s in stories) else ("mel",)
        kernel = {"kernel": settings.get("kernel", "lanczos")}
        low = {s: lowlevel.low_level(ds.story(s), names, **kernel) for s in dict.fromkeys(stories)}
    tables = {}
    options = {"on": on, "repeats": repeats, "noise_free": noise_free, "train": train}
    for group in _ridge_groups(ds, subjects):
        targets = {s: _Target.of(ds, s, voxels, **options) for s in group}
        responses = {
            story: np.hstack([target.responses[story] for target in targets.values()])
            for story in train
        }
        alone = _predict(low, responses, ds.split[on]) if low else None
        for layer in layers:
            predicted = _predictions(states[layer], low, alone, responses, ds.split[on])
            first = 0
            for subject, target in targets.items():
                columns = slice(first, first := first + len(target.ceiling))
                own = {name: [y[:, columns] for y in part] for name, part in predicted.items()}
                tables[subject, layer] = _rows(target, own, each_story)
    names = ["subject", "layer", "region", *["story"] * each_story]
    return pd.concat(tables, names=names).reset_index()


def _ridge_groups(ds, subjects, most: int = 50_000) -> list[list[str]]:
    """Subjects that share one ridge, as they were presented the same stories: so many that their voxels fit into memory."""
    groups, n_voxels = [[]], 0
    for subject in subjects:
        n_voxels += ds.n_voxels(subject)
        if groups[-1] and n_voxels > most:
            groups.append([])
            n_voxels = ds.n_voxels(subject)
        groups[-1].append(subject)
    return groups


def _predictions(states, low, alone, responses, stories) -> dict:
    """Lists of arrays, one per story: by the states, by the low-level features `low` (that is, `alone`), and by both."""
    found = {"states": _predict(states, responses, stories)[0]}
    if low is not None:
        groups = [next(iter(x.values())).shape[1] for x in (states, low)]
        joint = {s: np.hstack([states[s], low[s]]) for s in states}
        both, cv_score = _predict(joint, responses, stories, groups=groups)
        found["low"] = alone[0]
        found["both"] = [np.where(cv_score > alone[1], *pair) for pair in zip(both, alone[0])]
    return found


def _rows(target, predicted, each_story):
    """The rows of `evaluate` for a subject and a layer."""
    r, score = target.score(predicted["states"])
    parts = {"r": r, "normalised": score}  # each of shape (n_stories, n_regions)
    if "low" in predicted:
        parts["low_level"] = target.score(predicted["low"])[1]
        parts["beyond_low_level"] = target.score(predicted["both"])[1] - parts["low_level"]
    if each_story:
        return pd.DataFrame(
            {name: x.set_axis(target.stories).unstack() for name, x in parts.items()}
        )
    table = pd.DataFrame({name: int(m.sum()) for name, m in target.masks.items()}, ["n_voxels"]).T
    table["n_kept"] = [int((mask & target.kept).sum()) for mask in target.masks.values()]
    for name, x in parts.items():
        table[name] = x.mean()
        if name in MARGINS:
            spread = interval(x)
            table[MARGINS[name]] = spread["high"] - spread["mean"]
    return table


@dataclass
class _Target:
    """What predictions of one subject are fitted to and compared with; all arrays hold the scored voxels alone."""

    responses: dict  # story to (n_trs, n_voxels), to fit to
    stories: list  # to score on
    y: list  # their responses, (n_trs, n_voxels)
    ceiling: np.ndarray  # (n_voxels,)
    kept: np.ndarray  # mask of those with a normalised score
    masks: dict  # by region

    @classmethod
    def of(cls, ds, subject, voxels, *, train, on, repeats, noise_free):
        voxels = voxels[subject] if isinstance(voxels, dict) else voxels
        if isinstance(voxels, str):
            voxels = pick_voxels(ds, subject, rule=voxels)
        columns = np.arange(ds.n_voxels(subject))[voxels]
        repeats = scored_repeats(ds, subject) if repeats is None else repeats
        scored = repeats if on == "test" else None
        options = {"voxels": columns, "noise_free": noise_free}
        ceiling = np.full(len(columns), 1.0 if noise_free else np.nan)
        if not noise_free and ds.has_repeats(subject, split=on):
            ceiling = ds.noise_ceiling(subject, split=on, repeats=scored)[columns]
        masks = regions(ds, subject)
        if ds.simulated:
            driven = levels(ds.truth(subject))
            masks = masks | {f"{level} voxels": mask for level, mask in driven.items()}
        return cls(
            {s: ds.responses(subject, s, **options) for s in train},
            ds.split[on],
            [ds.responses(subject, s, repeats=scored, **options) for s in ds.split[on]],
            ceiling,
            kept_voxels(ds, subject)[columns],
            {"all voxels": np.ones(len(columns), bool)}
            | {name: mask[columns] for name, mask in masks.items()},
        )

    def score(self, predicted):
        """Means by region of r and of the normalised correlation, a row per story."""
        r = by_story(self.y, predicted)
        scaled = normalised(r, self.ceiling, kept=self.kept)
        return by_region(r, self.masks), by_region(scaled, self.masks)


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
        require(
            len(group) >= 2,
            f"{ds.name} has no other story than {story!r} to take responses from",
        )
        y = ds.responses(subject, group[(group.index(story) + 1) % len(group)])
        return np.resize(y, (len(ds.story(story).tr_times), y.shape[1]))

    return responses


def from_features(ds, features, *, noisy: bool = False, seed: int = 0):
    """Targets made from features of the stories instead of brains: delayed as blood is, mixed at random to as many columns.

    Parameters
    ----------
    features : callable
        Story to array (n_trs, n_features): its own mel spectrum, word vectors, states of a larger model.
    noisy : bool
        In each voxel add the subject's own responses to the story in another order (`shuffled_responses`), so that the
        target is about as hard to predict as the responses: their share of the variance is that of the noise
        (`explainable_variance`, of the validation stories: of other stories it may be some tenths more or less).
    """
    width = features(ds.story(ds.stories[0])).shape[1]
    noise = shuffled_responses(ds, seed=seed)
    share = lru_cache(partial(explainable_variance, ds))

    def responses(subject, story):
        n_voxels = ds.n_voxels(subject)
        mix = np.random.default_rng(seed).standard_normal((width, n_voxels)).astype(np.float32)
        delayed = fir(np.asarray(features(ds.story(story)), np.float32), (1, 2, 3))
        y = delayed.reshape(-1, 3, width).mean(1) @ mix
        y = (y - y.mean(0)) / np.maximum(y.std(0), 1e-6)
        if not noisy:
            return y
        signal = share(subject)
        return np.float32(np.sqrt(signal) * y + np.sqrt(1 - signal) * noise(subject, story))

    return responses


def explainable_variance(ds, subject) -> np.ndarray:
    """Share of the variance of a single presentation that is signal, by the repeats of the validation stories: (n_voxels,).

    With `CC_max` of the mean of n repeats, ``CC_max^2 / (n - (n - 1) CC_max^2)``.
    """
    n_repeats = min(ds.n_repeats(subject, story) for story in ds.split["val"])
    squared = ds.noise_ceiling(subject, split="val") ** 2
    return squared / (n_repeats - (n_repeats - 1) * squared)


CONTROLS = {"shuffled responses": shuffled_responses, "other story": other_story}
