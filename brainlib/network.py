"""One training step of brain-tuning: sound, convolutional features, transformer, resampling to TRs, delays, read-out, loss."""

import re
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from torch import nn

from . import recipes
from .encoding import RidgeEncoder
from .recipes import Recipe
from .runtime import require
from .speech import RATE, ConvolutionalCache, SpeechEncoder
from .timing import fir, lanczos_matrix
from .windows import by_length, plan_windows

POOL_S = 0.1  # seconds per row where a clip gives its frames
CLIPS_AT_ONCE_S = 33  # seconds of sound that go through the transformer together


class StoryFeatures:
    """A story's features at TRs as a recipe wants them, differentiable.

    ``features(a, b)`` is a tensor (b - a, width) for TRs a to b; gradients flow through the resampling to the transformer.

    Parameters
    ----------
    encoder : SpeechEncoder
    recipe : Recipe
    story : Story
    cache : ConvolutionalCache
        The convolutions are frozen, so their output is computed once.

    Raises
    ------
    ValueError
        If the encoder lacks the recipe's layer.
    """

    def __init__(self, encoder: SpeechEncoder, recipe: Recipe, story, cache: ConvolutionalCache):
        self.encoder, self.cache = encoder, cache
        self.name, self.audio = story.name, torch.from_numpy(story.audio)
        self.layer = readout_layer(encoder, recipe)
        self.clips, times = clips_of_story(encoder, recipe, n_samples=len(story.audio))
        if recipe.resampling == "lanczos":
            weights = lanczos_matrix(times, story.tr_times)
        else:
            weights = last_clip_matrix(times, story.tr_times)
        self.weights = weights.astype(np.float32)  # sparse (n_trs, n_rows)

    def __call__(self, first_tr: int, end_tr: int):
        weights = self.weights[first_tr:end_tr]
        needed = np.unique(weights.indices)
        first_row, end_row = needed[0], needed[-1] + 1
        pooled = self.pooled_states(first_row, end_row)  # (n_rows, width)
        dense = torch.from_numpy(weights[:, first_row:end_row].toarray()).to(pooled.device)
        with torch.autocast(pooled.device.type, enabled=False):  # responses stay in full precision
            return dense @ pooled  # (n_trs, n_rows) @ (n_rows, width)

    def pooled_states(self, first_row: int, end_row: int):
        """Hidden states of the recipe's layer, pooled over time: (end_row - first_row, width)."""
        pooled = torch.zeros(end_row - first_row, self.encoder.width, device=self.encoder.device)
        for batch in self.batches(first_row, end_row):
            starts, n_samples = [clip.start for clip in batch], batch[0].n_samples
            convolved = self.cache(self.name, self.audio, starts=starts, n_samples=n_samples)
            # (n_clips, n_frames, channels) to (n_clips, n_frames, width)
            states = self.encoder.transformer_states(convolved, [self.layer])[self.layer]
            for clip, clip_states in zip(batch, states):
                rows = clip.rows - first_row
                inside = np.flatnonzero((rows >= 0) & (rows < len(pooled)))
                kept = clip_states[clip.first_frame : clip.end_frame][inside].float()
                index = torch.from_numpy(rows[inside]).to(pooled.device)
                pooled = pooled.index_add(0, index, kept / clip.frames_per_row)
        return pooled

    def batches(self, first_row: int, end_row: int):
        """Lists of clips of one length that together give these rows, half a minute of sound each."""
        needed = [c for c in self.clips if c.rows[0] < end_row and c.rows[-1] >= first_row]
        for n_samples, clips in sorted(by_length(needed).items()):
            size = max(CLIPS_AT_ONCE_S * RATE // n_samples, 1)
            for start in range(0, len(clips), size):
                yield clips[start : start + size]


def clips_of_story(encoder: SpeechEncoder, recipe: Recipe, *, n_samples: int):
    """The clips (`windows.Window`) of a story, and the times (n_rows,) of the rows that they give, in seconds."""
    by_frames = recipe.pooling == "frames"
    windows, times = plan_windows(
        encoder.family,
        n_samples,
        window=recipe.window,
        hop=recipe.hop,
        exact=not by_frames,
        pool=POOL_S if by_frames else None,
    )
    if by_frames:
        return windows, times
    clips = []
    for window in windows:
        n = encoder.family.n_frames(window.n_samples)
        kept = {
            "first": {"first_frame": 0, "end_frame": 1},
            "last": {"first_frame": n - 1, "end_frame": n},
            "mean": {
                "row": window.row * n,
                "first_frame": 0,
                "end_frame": n,
                "frames_per_row": n,
            },
        }
        clips.append(replace(window, padding=0, **kept[recipe.pooling]))
    return clips, times


def last_clip_matrix(times, tr_times) -> sparse.csr_matrix:
    """Weights (n_trs, n_clips) that give each TR the clip that ends where the TR ends, or as near as there is one."""
    tr_ends = tr_times + np.diff(tr_times).mean() / 2
    nearest = np.abs(times[None] - tr_ends[:, None]).argmin(1)
    return sparse.identity(len(times), format="csr")[nearest]


def readout_layer(encoder: SpeechEncoder, recipe: Recipe) -> int:
    """The recipe's layer, counted from 0; ValueError where the encoder lacks it, or where a tuned block lies above it."""
    require(
        -encoder.layers <= recipe.layer < encoder.layers,
        f"recipe {recipe.name!r} asks for layer {recipe.layer}; {encoder.name} has 0 to {encoder.layers - 1}",
    )
    layer = recipe.layer % encoder.layers
    above = [block for block in recipe.tuned_layers or () if not 0 <= block < layer]
    require(
        not above,
        f"recipe {recipe.name!r} tunes blocks {above}, which cannot change layer {layer}; expected blocks "
        f"from 0 to {layer - 1}",
    )
    return layer


def tuned_parameters(encoder: SpeechEncoder, recipe: Recipe) -> set[str]:
    """Names of the encoder's parameters that a recipe tunes; the convolutions, and positions, are always frozen."""
    names = {name for name, _ in encoder.model.named_parameters()}
    if recipe.adapter == "none":
        return set()
    if recipe.adapter == "lora":  # put only into the blocks that are tuned
        return {name for name in names if "lora_" in name}
    names = {name for name in names if not name.startswith(encoder.family.frozen)}
    if recipe.tuned_layers is None:
        return names
    return {name for name in names if block_number(name) in recipe.tuned_layers}


def block_number(name: str) -> int | None:
    """Number of the transformer block that a parameter or module belongs to, or None."""
    match = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return int(match[1]) if match else None


class ReadOut(nn.Module):
    """Delayed, z-scored features to voxels: one matrix, or two with a bottleneck.

    Parameters
    ----------
    width : int
        Of the features; their mean and scale are buffers, (width,).
    n_voxels : int
    recipe : Recipe
    """

    def __init__(self, width: int, n_voxels: int, recipe: Recipe):
        super().__init__()
        self.delays, n_inputs = recipe.delays, width * len(recipe.delays)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        if recipe.readout == "lowrank":
            down = nn.Linear(n_inputs, recipe.bottleneck)
            up = nn.Linear(recipe.bottleneck, n_voxels)
            self.map = nn.Sequential(down, up)
            for part in self.map:
                nn.init.xavier_uniform_(part.weight)
        else:
            self.map = nn.Linear(n_inputs, n_voxels)

    def forward(self, features, skip: int = 0):
        """Features (n_trs, width) to responses (n_trs - skip, n_voxels); the first `skip` rows only feed the delays."""
        delayed = fir((features - self.mean) / self.scale, self.delays)  # (n_trs, n_delays * width)
        return self.map(delayed[skip:])

    @torch.no_grad()
    def load_ridge(self, ridge: RidgeEncoder, *, weights: bool = True):
        """Take the scaling of the features from a fitted ridge, and its weights (or their best low-rank form)."""
        self.mean.copy_(torch.from_numpy(ridge.mean_))
        self.scale.copy_(torch.from_numpy(ridge.scale_))
        if not weights:
            return
        coef = torch.from_numpy(np.ascontiguousarray(ridge.coef_.T))  # (n_voxels, n_delays * width)
        bias = torch.from_numpy(ridge.y_mean_)
        if isinstance(self.map, nn.Linear):
            self.map.weight.copy_(coef)
            self.map.bias.copy_(bias)
            return
        down, up = self.map
        rank = min(down.out_features, *coef.shape)
        u, s, v = torch.svd_lowrank(coef, q=rank, niter=4)
        down.weight.zero_()[:rank] = s.sqrt()[:, None] * v.T
        up.weight.zero_()[:, :rank] = u * s.sqrt()
        down.bias.zero_()
        up.bias.copy_(bias)


@dataclass(frozen=True)
class Step:
    """What one gradient step is on: TRs `first_tr` to `end_tr` of a subject's responses to a story."""

    subject: str
    story: str
    first_tr: int
    end_tr: int


class TuningNetwork(nn.Module):
    """Speech model, read-outs and loss: ``network(step)`` is the loss of one training step.

    Parameters
    ----------
    encoder : SpeechEncoder
    recipe : Recipe
    features : dict of StoryFeatures
        By story.
    responses : dict of tensors of shape (n_trs, n_voxels)
        By (subject, story).
    train : list of str
        Training stories.

    Attributes
    ----------
    readouts : ModuleDict
        One per subject.
    fold : dict
        Story to fold, where the recipe cross-fits; `folds` then holds a read-out per subject and fold, "UTS01 0".
    """

    def __init__(self, encoder: SpeechEncoder, recipe: Recipe, features, responses, *, train):
        super().__init__()
        self.backbone, self.encoder, self.recipe = encoder.model, encoder, recipe
        self.features, self.responses, self.train_stories = features, responses, list(train)
        self.loss = getattr(recipes, f"{recipe.loss}_loss")
        self.tuned = tuned_parameters(encoder, recipe)
        self.fold = {s: i % recipe.cross_fit for i, s in enumerate(train) if recipe.cross_fit}
        widths = {subject: y.shape[1] for (subject, _), y in responses.items()}
        self.readouts, self.folds = nn.ModuleDict(), nn.ModuleDict()
        for subject, n_voxels in widths.items():
            self.readouts[subject] = ReadOut(encoder.width, n_voxels, recipe)
        for subject, n_voxels in widths.items():
            for k in range(recipe.cross_fit):
                self.folds[f"{subject} {k}"] = ReadOut(encoder.width, n_voxels, recipe)
        self.unfreeze("all")

    def forward(self, step: Step):
        """Loss of a step, from sound to voxels."""
        # TRs before the step's own, which only the delays look at
        context = min(step.first_tr, max(self.recipe.delays))
        # convolutional features, transformer, resampling: (context + n_trs, width)
        features = self.features[step.story](step.first_tr - context, step.end_tr)
        # delays and read-out: (n_trs, n_voxels)
        prediction = self.readout(step.subject, step.story)(features, skip=context)
        responses = self.responses[step.subject, step.story][step.first_tr : step.end_tr]
        loss = self.loss(prediction, responses.to(features))
        if self.recipe.l2:
            trained = [p for p in self.parameters() if p.requires_grad]
            loss = loss + self.recipe.l2 * sum(p.square().sum() for p in trained)
        return loss

    def readout(self, subject: str, story: str) -> ReadOut:
        """The read-out that a story is tuned against; where the recipe cross-fits, one that was fitted without it."""
        if self.fold:
            return self.folds[f"{subject} {self.fold[story]}"]
        return self.readouts[subject]

    def stories_of(self, subject: str) -> list[str]:
        """The training stories of which there are responses of a subject."""
        return [story for story in self.train_stories if (subject, story) in self.responses]

    def fitted_on(self, subject: str):
        """Pairs of a read-out and the training stories that it may be fitted on."""
        stories = self.stories_of(subject)
        yield self.readouts[subject], stories
        for k in sorted(set(self.fold.values())):
            others = [story for story in stories if self.fold[story] != k]
            yield self.folds[f"{subject} {k}"], others

    def frozen_features(self) -> dict[str, np.ndarray]:
        """Every story's features at all TRs as they are now, without gradients and dropout: {story: (n_trs, width)}."""
        mode = self.training
        self.eval()
        with torch.no_grad():
            frozen = {
                name: story(0, story.weights.shape[0]).cpu().numpy()
                for name, story in self.features.items()
            }
        self.train(mode)
        return frozen

    def tuned_state(self) -> dict:
        """A copy of what training changes: tuned parameters and the subjects' read-outs."""
        tuned = {f"backbone.{name}" for name in self.tuned}
        return {
            name: value.detach().cpu().clone()
            for name, value in self.state_dict().items()
            if name in tuned or name.startswith("readouts.")
        }

    def train(self, mode=True):
        super().train(mode)
        if mode and not self.recipe.backbone_dropout:  # the adapters' own dropout stays on
            self.backbone.eval()
            for name, module in self.backbone.named_modules():
                if "lora_dropout" in name:
                    module.train()
        return self

    def unfreeze(self, stage: str):
        """Set what is trained in a stage ("readout" or "all"); a closed-form read-out never is."""
        for name, p in self.backbone.named_parameters():
            p.requires_grad_(stage == "all" and name in self.tuned)
        for p in [*self.readouts.parameters(), *self.folds.parameters()]:
            p.requires_grad_(self.recipe.readout != "ridge")
