"""Around a tuning run: which voxels, the same judge for every model, and controls that differ in the brain data alone."""

from __future__ import annotations

import warnings

import numpy as np

from .encoding import RidgeEncoder, correlation
from .timing import downsample, fir


def pick_voxels(ds, subject, rule: str = "all") -> np.ndarray:
    """Indices of the voxels that a rule names: "all", a region of ``ds.rois``, or "ceiling > 0.4" (and the like).

    The ceiling is of the validation stories: voxels are not chosen by what they are scored on. Where only the test story
    was heard more than once, it is of every second repeat of it, with a warning: score on those of `held_out_repeats`.
    """
    if rule == "all":
        return np.arange(ds.responses(subject, ds.split["train"][0]).shape[1])
    if rule.startswith("ceiling >"):
        if _repeated(ds, subject, "val"):
            ceiling = ds.noise_ceiling(subject, "val")
        else:
            warnings.warn(
                "voxels chosen by every second repeat of the test story: score on the others (evaluation.held_out_repeats)",
                stacklevel=2,
            )
            ceiling = ds.noise_ceiling(subject, repeats=slice(None, None, 2))
        return np.flatnonzero(ceiling > float(rule.split(">")[1]))
    regions = ds.rois(subject)
    if rule not in regions:
        raise ValueError(
            f"no voxels {rule!r}; expected 'all', 'ceiling > 0.4' (and the like), or one of {sorted(regions)}"
        )
    return np.flatnonzero(regions[rule])


def held_out_repeats(ds, subject, rule: str):
    """Hearings of the test story that a choice of voxels by this rule has left, for `judge` and ``ds.responses``.

    Every second one where `pick_voxels` had to choose by the others; None, for all, where it had not (or where fewer than
    four repeats cannot be shared out: scores are then a little too good).
    """
    chosen_on_test = rule.startswith("ceiling >") and not _repeated(ds, subject, "val")
    return slice(1, None, 2) if chosen_on_test and _repeated(ds, subject, "test", 4) else None


def _repeated(ds, subject, split, least=2):
    return all(ds.n_repeats(subject, s) >= least for s in ds.split[split])


def regions(ds, subject) -> dict[str, np.ndarray]:
    """Masks of ``ds.rois``; for a listener without anatomy a single one, of voxels with a ceiling above 0.4 (`pick_voxels`)."""
    masks = ds.rois(subject)
    if not masks:
        masks = {"ceiling > 0.4": np.zeros(len(ds.noise_ceiling(subject)), bool)}
        masks["ceiling > 0.4"][pick_voxels(ds, subject, "ceiling > 0.4")] = True
    return masks


def judge(
    encoder,
    ds,
    subject,
    layers,
    voxels=slice(None),
    train=None,
    on="test",
    window=None,
    hop=None,
    cache=True,
    predictions=False,
    repeats=None,
):
    """Encoding scores of a speech model, tuned or not, all by the same rule: {layer: Pearson r of each voxel}.

    The model is frozen, its features are brought to TRs, and a ridge is fitted anew on the training stories; the
    read-out that a model was tuned with is never used.

    Parameters
    ----------
    encoder : SpeechEncoder
    layers : sequence of int
    voxels : indices, optional
    train : list of str, optional
        Training stories; all of the split if left out.
    on : {"test", "val"}
    window, hop, cache
        See `SpeechEncoder.features`.
    repeats : indices or slice, optional
        Of the test stories, score the mean of these repeats (see `held_out_repeats`).
    predictions : bool
        Return also {layer: predicted responses (n_trs, n_voxels)}, the stories end to end.
    """
    train, held = list(train or ds.split["train"]), ds.split[on]
    ds.fetch([subject], [*train, *held], ["stimuli", "responses"])
    data = {s: ds.responses(subject, s, voxels) for s in train}
    data |= {s: ds.responses(subject, s, voxels, repeats if on == "test" else None) for s in held}
    features = {}
    for s in data:
        states, times = encoder.features(
            ds.story(s).audio, layers, window, hop, pool=0.1, cache=cache
        )
        features[s] = {k: downsample(x, times, ds.story(s).tr_times) for k, x in states.items()}
    scores, predicted = {}, {}
    for layer in layers:
        model = RidgeEncoder().fit([features[s][layer] for s in train], [data[s] for s in train])
        predicted[layer] = np.concatenate(model.predict([features[s][layer] for s in held]))
        scores[layer] = correlation(np.concatenate([data[s] for s in held]), predicted[layer])
    return (scores, predicted) if predictions else scores


# ------------------------------------------------------------------ controls
def block_shuffled(ds, block: int = 10, seed: int = 0):
    """Responses of the same story with its blocks of TRs in another order, none in its own place, for `BrainTuner.fit`."""

    def responses(subject, story):
        y = ds.responses(subject, story)
        pieces, rng = (
            np.array_split(np.arange(len(y)), max(len(y) // block, 3)),
            np.random.default_rng([seed, ds.stories.index(story)]),
        )
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
        group = group if len(group) > 1 else [*group, *ds.split["train"], *ds.split["val"]]
        group = list(dict.fromkeys(group))
        if len(group) < 2:
            raise ValueError(f"{ds.name} has no other story than {story!r} to take responses from")
        y = ds.responses(subject, group[(group.index(story) + 1) % len(group)])
        return np.resize(y, (ds.responses(subject, story).shape[0], y.shape[1]))

    return responses


def from_features(ds, features, seed: int = 0):
    """Targets made from features of the stories instead of brains: delayed as blood is, mixed at random to as many columns.

    Parameters
    ----------
    features : callable
        Story to array (n_trs, n_features): its own mel spectrum, word vectors, states of a larger model.
    """
    width = features(ds.story(ds.stories[0])).shape[1]

    def responses(subject, story):
        n = ds.responses(subject, story).shape[1]
        mix = np.random.default_rng(seed).standard_normal((width, n)).astype(np.float32)
        x = (
            fir(np.asarray(features(ds.story(story)), np.float32), (1, 2, 3))
            .reshape(-1, 3, width)
            .mean(1)
        )
        y = x @ mix
        return (y - y.mean(0)) / np.maximum(y.std(0), 1e-6)

    return responses
