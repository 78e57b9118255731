"""The loop around a training step: transformers' Trainer, an evaluation of the features per epoch, and checkpoints."""

import json
import math
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from .encoding import RidgeEncoder
from .evaluation import fresh_ridge, shared_alpha
from .network import Step, TuningNetwork
from .recipes import Recipe
from .runtime import atomic, read_json, reading, require

# To transformers' TrainingArguments; every other one is the recipe's, has no effect here, or breaks training.
PASSED_ON = frozenset(
    [
        "bf16",
        "fp16",
        "tf32",
        "full_determinism",
        "gradient_accumulation_steps",
        "report_to",
        "run_name",
        "logging_dir",
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "project",
        "trackio_space_id",
        "log_level",
        "save_total_limit",
        "dataloader_num_workers",
        "ddp_backend",
        "ddp_timeout",
        "ddp_find_unused_parameters",
    ]
)
ANEW = "remove the folder of the run to start anew"
IN_THE_RECIPE = {
    "learning_rate": "lr and lr_readout",
    "weight_decay": "weight_decay",
    "num_train_epochs": "stages",
    "max_steps": "stages",
    "lr_scheduler_type": "schedule",
    "lr_scheduler_kwargs": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "max_grad_norm": "clip_norm",
    "seed": "seed",
    "data_seed": "seed",
    "per_device_train_batch_size": "trs_per_step",
    "auto_find_batch_size": "trs_per_step",
}


def training_arguments(recipe: Recipe, *, folder, checkpoints: bool, resumed: bool, **more):
    """Transformers' TrainingArguments for a recipe.

    Parameters
    ----------
    folder : path
        For checkpoints.
    checkpoints : bool
        Whether to write one per epoch.
    resumed : bool
        Whether the untuned model has been evaluated before.
    **more
        Arguments of TrainingArguments that are named in PASSED_ON.

    Raises
    ------
    ValueError
        For an argument that the recipe holds, or that has no effect or breaks training here.
    """

    arguments = {
        "output_dir": str(folder),
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": 1,
        "max_grad_norm": recipe.clip_norm,
        "eval_strategy": "epoch",
        "eval_on_start": not resumed,
        "save_strategy": "epoch" if checkpoints else "no",
        "save_total_limit": 2,
        "logging_strategy": "no",
        "report_to": "none",
        "seed": recipe.seed,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": True,
    }
    made = TrainingArguments(**arguments | more)
    made._n_gpu = min(made.n_gpu, 1)  # one card per process; several by accelerate launch
    return made


def check_arguments(arguments: dict):
    """ValueError for arguments of `BrainTuner.fit` that would be ignored, contradict the recipe or break training."""
    for name in arguments:
        require(
            name not in IN_THE_RECIPE,
            f"fit({name}=...): a recipe holds this; change {IN_THE_RECIPE.get(name)} by recipe.with_(...)",
        )
        require(
            name in PASSED_ON,
            f"fit({name}=...) would be ignored or break training here; of transformers' TrainingArguments "
            f"it takes {', '.join(sorted(PASSED_ON))}",
        )


# ------------------------------------------------------------------ progress and checkpoints
def best_epoch(history: list[dict]) -> int:
    """Epoch with the best validation score; the last of equals, as a read-out may have learnt meanwhile."""
    scores = [entry["validation"] for entry in history]
    return len(scores) - 1 - int(np.argmax(scores[::-1]))


def should_stop(history: list[dict], recipe: Recipe) -> bool:
    """Whether `patience` epochs have passed without a better score, counted from where the features may change."""
    stages = [recipe.stage(epoch) for epoch in range(recipe.epochs)]
    first = stages.index("all") if "all" in stages else recipe.epochs
    scores = [entry["validation"] for entry in history[first:]]
    return bool(scores) and 0 < recipe.patience <= len(scores) - 1 - int(np.argmax(scores))


@dataclass
class Progress:
    """History and best weights of a run; in `folder` as well, where one is given."""

    folder: Path | None = None
    history: list[dict] = field(default_factory=list)
    best_state: dict = field(default_factory=dict)

    def add(self, entry: dict, network: TuningNetwork, *, write: bool):
        """Note an epoch, and keep the weights if it is the best so far."""
        self.history.append(entry)
        best = best_epoch(self.history) == entry["epoch"]
        if best:
            self.best_state = network.tuned_state()
        if self.folder is None or not write:
            return
        if best:
            with atomic(self.folder / "best.safetensors") as part:
                save_file(self.best_state, part)
        with atomic(self.folder / "history.json") as part:
            part.write_text(json.dumps({"history": self.history}))

    def restore(self, checkpoint: str):
        """Go back to the epoch of a checkpoint, which holds the weights of that epoch itself."""
        epoch = round(json.loads((Path(checkpoint) / "trainer_state.json").read_text())["epoch"])
        path, best = self.folder / "history.json", self.folder / "best.safetensors"
        with reading(path, "the scores of a run", remedy=ANEW):
            saved = json.loads(path.read_text())
            self.history[:] = [entry for entry in saved["history"] if entry["epoch"] <= epoch]
        with reading(best, "the best weights of a run", remedy=ANEW):
            self.best_state = load_file(best)

    def advice(self) -> str:
        """What to do where training diverges."""
        kept = f"the best epoch so far lies in {self.folder}"
        return "try a smaller learning rate; " + (
            kept if self.folder else "give a folder to keep the best epoch"
        )


def last_checkpoint(folder: Path, run: dict) -> str | None:
    """The last checkpoint of this very run in a folder, or None.

    Raises
    ------
    ValueError
        If the folder belongs to another run, or the checkpoint is broken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "run.json"
    present = [name for name in ("checkpoints", "history.json") if (folder / name).exists()]
    require(
        stamp.exists() or not present,
        f"{folder} holds {present} but no run.json, which says of what run: give another folder, or remove it",
    )
    earlier = read_json(stamp, "what tells a run", remedy=ANEW) if stamp.exists() else run
    differs = [name for name in earlier if run.get(name) != earlier[name]]
    require(
        earlier == run,
        f"{folder} holds another run (different: {', '.join(differs)}): give another folder, or remove it",
    )
    with atomic(stamp) as part:
        part.write_text(json.dumps(run))
    found = [p for p in (folder / "checkpoints").glob("checkpoint-*") if p.name[11:].isdigit()]
    problem = None
    for checkpoint in sorted(found, key=lambda p: int(p.name[11:]), reverse=True):
        problem = broken_part(checkpoint)
        if problem is None:
            return str(checkpoint)
        warnings.warn(f"broken checkpoint, going on from the one before: {problem}", stacklevel=2)
    require(
        not problem,
        f"broken checkpoint, and none before it: {problem}",
    )


def broken_part(checkpoint: Path) -> str | None:
    """What cannot be read of a checkpoint, or None. Nothing is unpickled: the archives hold checksums."""
    random = [p.name for p in checkpoint.glob("rng_state*.pth")] or ["rng_state.pth"]
    zipped = dict.fromkeys(["optimizer.pt", "scheduler.pt", *random], _check_zip)
    readers = {
        "model.safetensors": load_file,
        "trainer_state.json": lambda path: read_json(path, "epochs"),
    } | zipped
    for name, read in readers.items():
        try:
            with reading(checkpoint / name, "a part of a checkpoint", remedy=ANEW):
                read(checkpoint / name)
        except (ValueError, FileNotFoundError) as error:
            return str(error)


def _check_zip(path):
    with zipfile.ZipFile(path) as file:
        require(
            not file.testzip(),
            "another checksum than the archive says",
        )


# ------------------------------------------------------------------ the Trainer
def one_step(batch: list[Step]) -> dict:
    """A batch is a single step, whose TRs come from one stretch of one story."""
    return {"step": batch[0]}


class Stages(TrainerCallback):
    """At the start of an epoch, what is trained in it."""

    def __init__(self, network: TuningNetwork):
        self.network = network

    def on_epoch_begin(self, args, state, control, **_):
        self.network.unfreeze(self.network.recipe.stage(round(state.epoch)))


class TuningTrainer(Trainer):
    """Transformers' Trainer with a recipe's optimiser and schedule, and ridge anew at the end of each epoch.

    `evaluate` is ours, and brings the score to TensorBoard, W&B and the callbacks. ``load_best_model_at_end`` and
    EarlyStoppingCallback do not serve: they know only epochs with a checkpoint, and here the untuned model is a candidate
    and epochs that train the read-out alone do not count as patience; see `Progress` and `should_stop`.
    """

    def __init__(self, network: TuningNetwork, steps, validation, progress, arguments, callbacks):
        super().__init__(
            network,
            arguments,
            data_collator=one_step,
            train_dataset=steps,
            eval_dataset=validation,
            callbacks=[Stages(network), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.network, self.recipe, self.progress = network, network.recipe, progress
        self.step_losses = []

    def create_optimizer(self, model=None):
        tuned, recipe = self.network.tuned, self.recipe
        backbone = [p for name, p in self.network.backbone.named_parameters() if name in tuned]
        groups = [
            {"params": backbone, "lr": recipe.lr},
            {"params": list(self.network.readouts.parameters()), "lr": recipe.lr_readout},
        ]  # what is frozen has no gradient, and stays
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], weight_decay=recipe.weight_decay
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        recipe = self.recipe
        alone = sum(recipe.stage(epoch) == "readout" for epoch in range(recipe.epochs))
        unfrozen = num_training_steps // recipe.epochs * alone
        starts = [unfrozen, 0][-len(self.optimizer.param_groups) :]  # speech model, read-outs
        factors = [
            lambda step, start=start: schedule_factor(
                recipe, step - start, n_steps=num_training_steps - start
            )
            for start in starts
        ]
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factors)
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        loss = model(inputs["step"])
        value = float(loss.detach())
        require(
            math.isfinite(value),
            f"{self.recipe.name}: the loss is {value} at step {self.state.global_step}; "
            f"{self.progress.advice()}",
            kind=RuntimeError,
        )
        self.step_losses.append(value)
        return (loss, {"loss": loss}) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Score the features as they are now on the validation stories, refit read-outs, and stop if it is time."""
        epoch = round(self.state.epoch or 0)
        with self.compute_loss_context_manager():  # in mixed precision too, where training is
            features = self.network.frozen_features()
        require(
            all(np.isfinite(x).all() for x in features.values()),
            f"{self.recipe.name}: the features are not finite after epoch {epoch}; {self.progress.advice()}",
            kind=RuntimeError,
        )
        found = {s: self.evaluate_subject(s, features, epoch=epoch) for s in self.network.readouts}
        score = float(np.mean([score for score, _ in found.values()]))
        self.check_readouts(score, epoch)
        loss = float(np.mean(self.step_losses)) if self.step_losses else None
        self.step_losses = []
        penalties = {subject: penalty for subject, (_, penalty) in found.items()}
        entry = {"epoch": epoch, "validation": score, "loss": loss, "penalty": penalties}
        self.progress.add(entry, self.network, write=self.is_world_process_zero())
        metrics = {f"{metric_key_prefix}_score": score}
        self.log(metrics if loss is None else {"loss": loss, **metrics})
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, dict(metrics)
        )
        if should_stop(self.progress.history, self.recipe):
            self.control.should_training_stop = True
        return metrics

    def evaluate_subject(self, subject: str, features: dict, *, epoch: int) -> tuple[float, float]:
        """Mean validation score of a subject's voxels, by the ridge of `evaluation` with one penalty for all; and that penalty.

        It is searched anew in each epoch, as features that were turned up or down want another one.
        """
        recipe, validation, responses = self.recipe, self.eval_dataset, self.responses(subject)
        fit = {"stories": self.network.stories_of(subject), "delays": recipe.delays}
        penalty = shared_alpha(fresh_ridge(features, responses, **fit))
        ridge = fresh_ridge(features, responses, **fit, alpha=penalty)
        if epoch == 0 or recipe.readout == "ridge":
            self.refit_readouts(subject, features, ridge=ridge, penalty=penalty)
        scores = ridge.score([features[s] for s in validation], [responses[s] for s in validation])
        return float(scores.mean()), penalty

    def refit_readouts(self, subject: str, features: dict, *, ridge: RidgeEncoder, penalty: float):
        """Load ridge into a closed-form or warm-started read-out, its own into each fold; into others only its scaling."""
        recipe, n_train = self.recipe, len(self.network.stories_of(subject))
        alpha = recipe.ridge_scale * penalty
        for readout, stories in self.network.fitted_on(subject):
            own = ridge
            if recipe.ridge_scale != 1 or len(stories) < n_train:
                responses = self.responses(subject)
                own = fresh_ridge(
                    features, responses, stories=stories, delays=recipe.delays, alpha=alpha
                )
            readout.load_ridge(own, weights=recipe.readout == "ridge" or recipe.warm_start)

    def responses(self, subject: str) -> dict[str, np.ndarray]:
        """A subject's responses by story, (n_trs, n_voxels) each."""
        return {s: y.numpy() for (who, s), y in self.network.responses.items() if who == subject}

    def check_readouts(self, score: float, epoch: int):
        """RuntimeError if training has diverged."""
        largest = max(float(p.detach().abs().max()) for p in self.network.readouts.parameters())
        require(
            np.isfinite([largest, score]).all(),
            f"{self.recipe.name}: diverged in epoch {epoch} (largest read-out weight {largest:.3g}); "
            f"{self.progress.advice()}",
            kind=RuntimeError,
        )


def schedule_factor(recipe: Recipe, step: int, *, n_steps: int) -> float:
    """What the learning rate is multiplied by at a step of `n_steps`; before step 0 the warm-up's first value."""
    if recipe.schedule == "constant":
        return 1.0
    done, warm = max(step, 0), recipe.warmup * n_steps
    rise, left = (done + 1) / max(warm, 1), (n_steps - done) / max(n_steps - warm, 1)
    if recipe.schedule == "linear" or left >= 1:
        return min(1.0, rise, left)
    return min(rise, (1 - math.cos(math.pi * left)) / 2)
