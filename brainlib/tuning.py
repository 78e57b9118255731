"""Brain-tuning: a speech encoder and a recipe, tuned on brain responses; saved, and loaded again."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from .adapters import adapter_parameters, pass_over_old_torchao
from .datasets import chosen
from .evaluation import pick_voxels
from .network import Step, StoryFeatures, TuningNetwork, block_number
from .recipes import RECIPES, Recipe, get_recipe
from .runtime import cache_dir, require, seed_everything
from .saving import load_tuned, save_tuned
from .speech import ConvolutionalCache, SpeechEncoder
from .training import (
    Progress,
    TuningTrainer,
    best_epoch,
    check_arguments,
    last_checkpoint,
    should_stop,
    training_arguments,
)

__all__ = ["RECIPES", "BrainTuner", "Recipe", "get_recipe"]
pass_over_old_torchao()


def n_steps(n_trs: int, trs_per_step: int) -> int:
    """How many steps a story of so many TRs is cut into, none of more than `trs_per_step`."""
    return -(-n_trs // trs_per_step)


@dataclass
class TuningData:
    """What a run is tuned on.

    Attributes
    ----------
    subjects, train, validation : list of str
        Subjects, and the stories of both kinds.
    voxels : dict
        Subject to mask or indices.
    responses : dict
        (subject, story) to a tensor (n_trs, n_voxels).
    """

    subjects: list[str]
    train: list[str]
    validation: list[str]
    voxels: dict[str, np.ndarray]
    responses: dict[tuple[str, str], torch.Tensor]

    def steps(self, trs_per_step: int) -> list[Step]:
        """Every training story of every subject who has it, cut into stretches of about equal length."""
        steps = []
        for subject, story in self.responses:
            if story in self.validation:
                continue
            n_trs = len(self.responses[subject, story])
            edges = np.linspace(0, n_trs, n_steps(n_trs, trs_per_step) + 1).astype(int)
            for first, end in zip(edges.tolist(), edges[1:].tolist()):
                steps.append(Step(subject, story, first, end))
        return steps

    def digest(self) -> str:
        """Hash of responses and voxels, 16 hex digits."""
        shapes = repr([(key, y.shape) for key, y in self.responses.items()])
        total = hashlib.blake2b(shapes.encode(), digest_size=8)
        for (subject, _), y in self.responses.items():
            total.update(y.numpy())
            total.update(np.ascontiguousarray(self.voxels[subject]))
        return total.hexdigest()


def read_data(ds, subjects, *, recipe: Recipe, voxels=None, responses=None, stories=None):
    """The `TuningData` that `BrainTuner.fit` asks for, whose arguments these are."""
    subjects = chosen(subjects, ds.subjects, what="subject", of=ds.name)
    stories = stories if isinstance(stories, dict) else dict.fromkeys(subjects, stories)
    require(
        set(stories) == set(subjects),
        f"stories of {sorted(stories)}, but subjects {sorted(subjects)}; give each subject its stories",
    )
    own = {subject: ds.training_stories(stories[subject]) for subject in subjects}
    train = list(dict.fromkeys(story for names in own.values() for story in names))
    validation = list(ds.split["val"])
    require(
        recipe.cross_fit <= len(train),
        f"recipe {recipe.name!r}: {recipe.cross_fit} folds but {len(train)} training stories",
    )
    if voxels is None:
        voxels = {s: pick_voxels(ds, s, rule=recipe.voxels) for s in subjects}
    elif not isinstance(voxels, dict):
        voxels = {s: np.asarray(voxels) for s in subjects}
    ds.fetch(subjects, train + validation, what=["stimuli", "responses"])

    def read(subject, story):
        if responses is None:
            return ds.responses(subject, story, voxels=voxels[subject])
        return responses(subject, story)[:, voxels[subject]]

    tensors = {
        (subject, story): torch.from_numpy(np.ascontiguousarray(read(subject, story), np.float32))
        for subject in subjects
        for story in own[subject] + validation
    }
    require(
        all(y.numel() for y in tensors.values()),
        f"{ds.name}: no voxel of one of {subjects} is {recipe.voxels!r}, or none was given; expected voxels to "
        "tune on: change the rule of the recipe",
    )
    return TuningData(subjects, train, validation, voxels, tensors)


def add_lora(encoder: SpeechEncoder, recipe: Recipe):
    """Put a recipe's adapters into an encoder, the same for the same seed; PEFT's model around the encoder's."""
    targets = list(recipe.targets)
    if recipe.tuned_layers is not None:
        names = [name for name, _ in encoder.model.named_modules()]
        targets = [
            name[name.index("layers.") :]
            for name in names
            if block_number(name) in recipe.tuned_layers and name.endswith(recipe.targets)
        ]
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, target_modules=targets
    )
    torch.manual_seed(recipe.seed)
    adapted = get_peft_model(encoder.model, config)
    adapted.peft_config["default"].base_model_name_or_path = encoder.name  # no path of this machine
    return adapted


def restore_weights(network, state: dict):
    """Put what was trained back; the frozen rest of the network is not in `state`."""
    own = network.state_dict()
    wrong = [name for name in network.tuned_state() if name not in state]
    for name, x in state.items():
        if name not in own or own[name].shape != x.shape or not x.isfinite().all():
            wrong.append(name)
    require(
        not wrong,
        f"weights of another network, or broken ones: {len(wrong)} lost, unknown or not finite ({wrong[:2]}); "
        "remove the folder of the run to start anew",
    )
    network.load_state_dict(state, strict=False)


class BrainTuner:
    """Tune a speech encoder on brain responses by a recipe.

    Parameters
    ----------
    encoder : SpeechEncoder
        Changed in place: after `fit` it is the tuned model.
    recipe : Recipe or str
        Or what `get_recipe` takes: a name, or the path of a JSON file.

    Attributes
    ----------
    history : list of dict
        One entry per epoch, 0 before training: `validation` (mean encoding score of the tuned voxels on the validation
        stories, ridge fitted anew; no test story is read), training `loss`, and that ridge's `penalty` per subject.
    best_epoch, kept_epoch : int
        The best on validation, and the one whose weights the encoder holds.
    base_fingerprint : str
        Of the encoder before tuning (see `SpeechEncoder.fingerprint`); a saved model is refused on another one.
    run_hash : str
        12 hex digits of recipe, data, model and training arguments; known once `fit` has begun.
    adapted : PeftModel or None
        With the recipe's adapters in it.
    """

    def __init__(self, encoder: SpeechEncoder, recipe: Recipe | str):
        self.encoder, self.base, self.base_as_named = encoder, encoder.name, encoder.as_named
        self.recipe = recipe if isinstance(recipe, Recipe) else get_recipe(recipe)
        self.base_fingerprint = encoder.fingerprint()
        self.history, self.readouts, self.about = [], {}, {}
        self.kept_epoch = self.run_hash = None
        require(
            self.recipe.adapter == "none" or not adapter_parameters(encoder.model),
            f"{encoder.name} holds adapters of an earlier tuning, which new ones would erase: "
            "merge them first (`tuner.adapted.merge_and_unload()`), or load the model anew",
        )
        self.adapted = add_lora(encoder, self.recipe) if self.recipe.adapter == "lora" else None

    @property
    def best_epoch(self) -> int:
        return best_epoch(self.history)

    def fit(
        self,
        ds,
        subjects,
        *,
        voxels=None,
        responses: Callable | None = None,
        stories=None,
        folder: str | Path | bool | None = None,
        keep: str = "best",
        quiet: bool = False,
        callbacks=(),
        **training,
    ) -> BrainTuner:
        """Train; the encoder then holds the weights of the best epoch on the validation stories (or of the last).

        Parameters
        ----------
        ds : Dataset
        subjects : str or list of str
            Several: one read-out each, and each step is on one of them.
        voxels : array or dict of arrays, optional
            Mask or indices per subject; by the recipe's rule if left out (`pick_voxels`).
        responses : callable, optional
            ``(subject, story) -> (n_trs, n)`` in place of ``ds.responses``: a control (see `evaluation`).
        stories : list of str, or dict of such lists by subject, optional
            Training stories; ``ds.split["train"]`` if left out.
        folder : path or True, optional
            Keeps checkpoints (True: in the cache folder, under this run's own hash). If it holds whole ones of the same
            run, training goes on from the last, to the same weights.
        keep : {"best", "last"}
        quiet : bool
            No progress bar.
        callbacks : sequence of TrainerCallback
            Of transformers' Trainer; `on_evaluate` is told ``eval_score``, `on_log` also the training loss.
        **training
            For transformers' TrainingArguments: ``bf16=True``, ``report_to="tensorboard"``, ... (those named in
            `training.PASSED_ON`). Several GPUs by ``accelerate launch``.

        Raises
        ------
        RuntimeError
            If it diverges; the best epoch so far stays in `folder`.
        ValueError
            If the recipe trains nothing or holds one of the arguments in `training`, a checkpoint is broken, or `folder`
            belongs to another run.
        """
        self._check(keep, training)
        recipe = self.recipe
        seed_everything(recipe.seed)
        data = read_data(
            ds, subjects, recipe=recipe, voxels=voxels, responses=responses, stories=stories
        )
        network = self._network(ds, data)
        run = self._describe(ds, data, training)
        self.run_hash = run_hash(run | {"keep": keep})
        if folder is True:
            folder = cache_dir("tuning", run_hash(run))
        progress = Progress(None if folder is None else Path(folder))
        self.history = progress.history
        self._train(network, data, progress, run, quiet=quiet, callbacks=callbacks, more=training)
        if keep == "best":
            restore_weights(network, progress.best_state)
        network.eval().requires_grad_(False)
        self.encoder.as_named = False
        self.readouts = network.readouts
        self.kept_epoch = self.best_epoch if keep == "best" else self.history[-1]["epoch"]
        self.about = {
            "data": ds.name,
            "simulated": ds.simulated,
            "licence": ds.description.get("License"),
            "subjects": data.subjects,
            "stories": data.train,
            "training": {name: repr(value) for name, value in training.items()},
        }
        return self

    def _check(self, keep, training):
        check_arguments(training)
        require(
            keep in ("best", "last"),
            f"keep={keep!r}; expected 'best' or 'last'",
        )
        require(
            self.recipe.adapter != "none" or self.recipe.readout != "ridge",
            f"recipe {self.recipe.name!r} trains nothing: neither the speech model nor the read-out",
        )

    def _network(self, ds, data: TuningData) -> TuningNetwork:
        cache = ConvolutionalCache(self.encoder)
        features = {
            story: StoryFeatures(self.encoder, self.recipe, ds.story(story), cache)
            for story in data.train + data.validation
        }
        return TuningNetwork(self.encoder, self.recipe, features, data.responses, train=data.train)

    def _describe(self, ds, data: TuningData, training: dict) -> dict:
        """What tells this run from any other, for checkpoints."""
        return {
            "recipe": self.recipe.hash(),
            "subjects": data.subjects,
            "stories": data.train,
            "validation": data.validation,
            "model": self.encoder.fingerprint(),
            "data": f"{ds.name} {data.digest()}",
            "training": repr(sorted(training.items())),
        }

    def _train(self, network, data, progress, run, *, quiet, callbacks, more):
        """From the start or from the last checkpoint to the last epoch, or to where patience ends."""
        recipe, folder = self.recipe, progress.folder
        last = None if folder is None else last_checkpoint(folder, run)
        with tempfile.TemporaryDirectory() as scratch:
            arguments = training_arguments(
                recipe,
                folder=folder / "checkpoints" if folder else scratch,
                checkpoints=folder is not None,
                resumed=last is not None,
                use_cpu=self.encoder.device == "cpu",
                disable_tqdm=quiet,
                **more,
            )
            steps = data.steps(recipe.trs_per_step)
            trainer = TuningTrainer(network, steps, data.validation, progress, arguments, callbacks)
            if last:
                progress.restore(last)
            if last and should_stop(progress.history, recipe):  # had stopped by itself
                restore_weights(network, load_file(Path(last) / "model.safetensors"))
            else:
                trainer.train(resume_from_checkpoint=last)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write adapters (PEFT's format) or weights, read-outs, recipe and card; see `saving.save_tuned`.

        Parameters
        ----------
        folder : path, optional
            An earlier saved model there is replaced; any other folder that holds something is refused. If left out,
            ``cache_dir("models", run_hash)``, so that two runs never overwrite each other.

        Returns
        -------
        folder : Path
        """
        require(
            self.run_hash is not None,
            "nothing to save yet: call fit first",
            kind=RuntimeError,
        )
        folder = cache_dir("models", self.run_hash) if folder is None else Path(folder)
        save_tuned(folder, self)
        return folder

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> BrainTuner:
        """A tuned model from `save`; its base is loaded by name where the folder holds an adapter."""
        tuner = cls.__new__(cls)  # not by __init__: the adapters are in the encoder already
        vars(tuner).update(load_tuned(folder, device=device))
        return tuner


def run_hash(run: dict) -> str:
    """Twelve hex digits of what `BrainTuner` says about a run."""
    return hashlib.blake2b(repr(sorted(run.items())).encode(), digest_size=6).hexdigest()
