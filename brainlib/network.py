"""What a brain-tuning run computes: features at TRs with gradients, read-outs, loss."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import nn

from . import recipes
from .encoding import RidgeEncoder
from .recipes import Recipe
from .speech import RATE, ConvolutionalCache, SpeechEncoder
from .timing import fir, lanczos_matrix
from .windows import plan_windows


class StoryFeatures:
    """A story's features at TRs as a recipe wants them, differentiable, from convolutional features that are kept.

    ``features(a, b)`` is a tensor (b - a, width) for TRs a to b; gradients flow through resampling to the transformer.
    """

    def __init__(self, encoder: SpeechEncoder, recipe: Recipe, story, cache: ConvolutionalCache):
        self.encoder, self.recipe, self.cache = encoder, recipe, cache
        self.name, self.audio = story.name, torch.from_numpy(story.audio)
        self.layer = (
            recipe.layer % encoder.layers
            if -encoder.layers <= recipe.layer < encoder.layers
            else None
        )
        if self.layer is None:
            raise ValueError(
                f"recipe {recipe.name!r} taps layer {recipe.layer}; {encoder.name} has 0 to {encoder.layers - 1}"
            )
        frames = recipe.pooling == "frames"
        plan = plan_windows(
            encoder.family,
            len(story.audio),
            window=recipe.window,
            hop=recipe.hop,
            exact=not frames,
            pool=0.1 if frames else None,
        )
        times = plan.times
        self.clips = []  # (its first frame's number, first sample, samples, frames to keep: from, to, frames a row)
        for w in plan.windows:
            n = encoder.family.n_frames(w.n_samples)
            keep = {
                "frames": (w.first_frame, w.end_frame, plan.frames_per_row),
                "first": (0, 1, 1),
                "last": (n - 1, n, 1),
                "mean": (0, n, n),
            }[recipe.pooling]
            self.clips.append((w.row if frames else w.row * keep[2], w.start, w.n_samples, *keep))
        self.clips.sort()
        if recipe.resampling == "lanczos":
            self.weights = lanczos_matrix(times, story.tr_times).astype(np.float32)
        else:
            ends = story.tr_times + np.diff(story.tr_times).mean() / 2
            nearest = np.abs(times[None] - ends[:, None]).argmin(1)
            n = len(nearest)
            self.weights = sparse.csr_matrix(
                (np.ones(n, np.float32), (np.arange(n), nearest)), shape=(n, len(times))
            )

    def __call__(self, a: int, b: int):
        weights = self.weights[a:b]
        needed = np.unique(weights.indices)
        first, last = needed[0], needed[-1] + 1
        wanted = [
            c
            for c in self.clips
            if c[0] // c[5] < last and (c[0] + c[4] - c[3] - 1) // c[5] >= first
        ]
        rows = torch.zeros(last - first, self.encoder.width, device=self.encoder.device)
        for length in sorted({c[2] for c in wanted}):
            group = [c for c in wanted if c[2] == length]
            size = max(33 * RATE // length, 1)  # half a minute at a time
            for at in range(0, len(group), size):
                part = group[at : at + size]
                features = self.cache(
                    self.name, self.audio, starts=[c[1] for c in part], n_samples=length
                )
                hidden = self.encoder.transformer_states(features, [self.layer])[self.layer]
                for (number, _, _, begin, end, per), states in zip(part, hidden):
                    place = (number + np.arange(end - begin)) // per - first
                    inside = np.flatnonzero((place >= 0) & (place < len(rows)))
                    index = torch.from_numpy(place[inside]).to(rows.device)
                    rows = rows.index_add(0, index, states[begin:end][inside].float() / per)
        dense = torch.from_numpy(weights[:, first:last].toarray()).to(rows.device)
        with torch.autocast(
            rows.device.type, enabled=False
        ):  # times and responses stay in full precision
            return dense @ rows


class ReadOut(nn.Module):
    """Delayed, z-scored features to voxels: one matrix, or two with a bottleneck; buffers hold the scaling."""

    def __init__(self, width, n_voxels, recipe: Recipe):
        super().__init__()
        self.delays, wide = recipe.delays, width * len(recipe.delays)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        if recipe.readout == "lowrank":
            self.map = nn.Sequential(
                nn.Linear(wide, recipe.bottleneck), nn.Linear(recipe.bottleneck, n_voxels)
            )
            for part in self.map:
                nn.init.xavier_uniform_(part.weight)
        else:
            self.map = nn.Linear(wide, n_voxels)

    def forward(self, x, skip=0):
        """(t, width) to (t - skip, n_voxels); the first `skip` rows are there for the delays alone."""
        return self.map(fir((x - self.mean) / self.scale, self.delays)[skip:])

    @torch.no_grad()
    def take(self, ridge: RidgeEncoder, weights: bool):
        """Scaling, and with `weights` the map (its best low-rank form), from a fitted ridge."""
        (
            self.mean.copy_(torch.from_numpy(ridge.mean_)),
            self.scale.copy_(torch.from_numpy(ridge.scale_)),
        )
        if not weights:
            return
        coef, bias = (
            torch.from_numpy(np.ascontiguousarray(ridge.coef_.T)),
            torch.from_numpy(ridge.y_mean_),
        )
        if isinstance(self.map, nn.Linear):
            self.map.weight.copy_(coef), self.map.bias.copy_(bias)
        else:
            rank = self.map[0].out_features
            u, s, v = torch.svd_lowrank(coef, q=min(rank, *coef.shape), niter=4)
            root = s.sqrt()
            self.map[0].weight.zero_()[: len(s)] = root[:, None] * v.T
            self.map[1].weight.zero_()[:, : len(s)] = u * root
            self.map[0].bias.zero_(), self.map[1].bias.copy_(bias)


class TuningNet(nn.Module):
    """What the Trainer sees: item number in, loss out."""

    def __init__(self, encoder, recipe, stories, targets, items):
        super().__init__()
        self.backbone, self.encoder, self.recipe, self.stories, self.targets, self.items = (
            encoder.model,
            encoder,
            recipe,
            stories,
            targets,
            items,
        )
        widths = {subject: y.shape[1] for (subject, _), y in targets.items()}
        self.readouts = nn.ModuleDict(
            {s: ReadOut(encoder.width, n, recipe) for s, n in widths.items()}
        )
        k = recipe.cross_fit if recipe.readout == "ridge" else 0
        train = list(dict.fromkeys(story for _, story, _, _ in items))
        self.fold = {story: i % k for i, story in enumerate(train)} if k else {}
        self.folds = nn.ModuleDict(
            {
                f"{s} {i}": ReadOut(encoder.width, n, recipe)
                for s, n in widths.items()
                for i in range(k)
            }
        )
        self.loss = {
            "spatial": recipes.spatial_loss,
            "temporal": recipes.temporal_loss,
            "mse": recipes.mse_loss,
        }[recipe.loss]

    def forward(self, item):
        subject, story, a, b = self.items[int(item)]
        skip = min(a, max(self.recipe.delays))
        x = self.stories[story](a - skip, b)
        target = self.targets[subject, story][a:b].to(x)
        readout = (
            self.folds[f"{subject} {self.fold[story]}"] if self.fold else self.readouts[subject]
        )
        loss = self.loss(readout(x, skip), target)
        if self.recipe.l2:
            loss = loss + self.recipe.l2 * sum(
                p.square().sum() for p in self.parameters() if p.requires_grad
            )
        return {"loss": loss}

    def train(self, mode=True):
        super().train(mode)
        if mode and not self.recipe.backbone_dropout:  # the adapters' own dropout stays on
            self.backbone.eval()
            for name, module in self.backbone.named_modules():
                if "lora_dropout" in name:
                    module.train()
        return self

    def unfreeze(self, stage):
        """Set what is trained in a stage; the convolutional front and pinned read-outs never are."""
        for name, p in self.backbone.named_parameters():
            p.requires_grad_(stage == "all" and name in self.trained)
        for p in [*self.readouts.parameters(), *self.folds.parameters()]:
            p.requires_grad_(self.recipe.readout != "ridge")
