"""Brain-tuning: one trainer for all recipes, on transformers' Trainer."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from .adapters import pass_over_old_torchao
from .encoding import RidgeEncoder
from .evaluation import pick_voxels
from .network import ReadOut, StoryFeatures, TuningNet
from .recipes import RECIPES, Recipe
from .runtime import atomic, cache_dir, seed_everything
from .speech import ConvolutionalCache, SpeechEncoder

__all__ = ["RECIPES", "BrainTuner", "Recipe"]
pass_over_old_torchao()
CARD = """---
library_name: peft
tags: [speech, fmri, brain-tuning]
---
# {base}, brain-tuned by the recipe "{recipe}"

Tuned on {kind} ({data}; {subjects}). Mean encoding score on the validation stories: {before:.4f} before, {after:.4f} at the
epoch kept. `recipe.json` holds every setting, `tuning.json` the learning curve and the training stories.

An adapter for WavLM acts only where the attention calls its projections as modules: open it with `brainlib`, or merge it
(`PeftModel.from_pretrained(...).merge_and_unload()`) before stock transformers runs the model.
"""


class _Judge(TrainerCallback):
    """Once an epoch: ridge anew on the training stories' features, score on the validation stories, best weights kept."""

    def __init__(self, net, tuner, train, val, folder):
        self.net, self.tuner, self.train, self.val, self.folder = net, tuner, train, val, folder
        self.alphas, self.best, self.loss = {}, None, []

    def recall(self, epoch):
        """History and best weights of a run that stopped at this epoch; the last weights are in its checkpoint."""
        kept = json.loads((self.folder / "history.json").read_text())
        self.tuner.history, self.alphas = (
            [h for h in kept["history"] if h["epoch"] <= epoch],
            kept["alphas"],
        )
        self.best = load_file(self.folder / "best.safetensors")

    def on_train_begin(self, args, state, control, **_):
        if not state.epoch:
            self.note(0, state.is_world_process_zero, first=True)

    def on_epoch_begin(self, args, state, control, **_):
        self.net.unfreeze(self.net.recipe.stage(round(state.epoch)))

    def on_epoch_end(self, args, state, control, **_):
        self.note(round(state.epoch), state.is_world_process_zero)
        control.should_training_stop = self.tired() or control.should_training_stop

    def tired(self):
        recipe = self.net.recipe
        alone = next(
            (e for e in range(recipe.epochs) if recipe.stage(e) == "all"), recipe.epochs
        )  # till then features cannot move
        later = [h["validation"] for h in self.tuner.history][alone:]
        return bool(later) and 0 < recipe.patience <= len(later) - 1 - int(np.argmax(later))

    def note(self, epoch, writes, first=False):
        net, recipe, scores = self.net, self.net.recipe, []
        mode = net.training
        net.eval()
        with torch.no_grad():
            x = {
                s: net.stories[s](0, net.stories[s].weights.shape[0]).cpu().numpy()
                for s in self.train + self.val
            }
        net.train(mode)
        if not all(np.isfinite(v).all() for v in x.values()):
            raise RuntimeError(
                f"{recipe.name}: the features are not finite after epoch {epoch}; {self.told()}"
            )
        for subject, readout in net.readouts.items():
            data = {s: net.targets[subject, s].numpy() for s in x}
            fit = [x[s] for s in self.train], [data[s] for s in self.train]
            if subject not in self.alphas:
                searched = RidgeEncoder(delays=recipe.delays).fit(*fit)
                some = (
                    searched.cv_scores_ > 0
                )  # where most voxels cannot be predicted, their penalties say nothing
                some = some if 0 < some.mean() < 0.5 else slice(None)
                self.alphas[subject] = float(np.median(searched.best_alphas_[some]))
            plain = RidgeEncoder([self.alphas[subject]], delays=recipe.delays).fit(*fit)
            scores.append(plain.score([x[s] for s in self.val], [data[s] for s in self.val]).mean())
            if first or recipe.readout == "ridge":
                jobs = [(readout, self.train)]
                jobs += [
                    (net.folds[f"{subject} {k}"], [s for s in self.train if net.fold[s] != k])
                    for k in sorted(set(net.fold.values()))
                ]
                for module, names in jobs:
                    ridge = plain  # the very fit that was scored, unless its penalty or its stories are others
                    if recipe.ridge_scale != 1 or module is not readout:
                        ridge = RidgeEncoder(
                            [recipe.ridge_scale * self.alphas[subject]], delays=recipe.delays
                        )
                        ridge.fit([x[s] for s in names], [data[s] for s in names])
                    module.take(ridge, recipe.readout == "ridge" or recipe.warm_start)
        size = max(float(p.detach().abs().max()) for p in net.readouts.parameters())
        if not np.isfinite(size) or not np.isfinite(scores).all():
            raise RuntimeError(
                f"{recipe.name}: diverged in epoch {epoch} (largest read-out weight {size:.3g}); {self.told()}"
            )
        loss = float(np.mean(self.loss)) if self.loss else None
        self.tuner.history.append(
            {"epoch": epoch, "validation": float(np.mean(scores)), "loss": loss}
        )
        self.loss = []
        if self.tuner.best_epoch == epoch:
            self.best = {
                k: v.detach().cpu().clone() for k, v in net.state_dict().items() if k in net.kept
            }
            if self.folder and writes:
                with atomic(self.folder / "best.safetensors") as part:
                    save_file(self.best, part)
        if self.folder and writes:
            with atomic(self.folder / "history.json") as part:
                part.write_text(json.dumps({"history": self.tuner.history, "alphas": self.alphas}))

    def told(self):
        kept = (
            f"the best epoch so far lies in {self.folder}"
            if self.folder
            else "give a folder to keep the best epoch"
        )
        return f"try a smaller learning rate; {kept}"


class _Trainer(Trainer):
    def create_optimizer(self, model=None):
        net, recipe = self.model, self.model.recipe
        backbone = [p for n, p in net.backbone.named_parameters() if n in net.trained]
        groups = [
            {"params": backbone, "lr": recipe.lr},
            {"params": list(net.readouts.parameters()), "lr": recipe.lr_readout},
        ]
        self.optimizer = torch.optim.Adam(
            [g for g in groups if g["params"]]
        )  # what is frozen has no gradient, and stays
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        recipe, groups = self.model.recipe, len(self.optimizer.param_groups)
        alone = sum(recipe.stage(e) == "readout" for e in range(recipe.epochs))

        def ramp(step, start):
            done, total = max(step - start, 0), num_training_steps - start
            warm = recipe.warmup * total
            return (
                min(1.0, (done + 1) / max(warm, 1), (total - done) / max(total - warm, 1))
                if recipe.schedule == "linear"
                else 1.0
            )

        starts = [num_training_steps // recipe.epochs * alone, 0][
            -groups:
        ]  # the speech model's ramp begins when it is let loose
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, [lambda step, s=s: ramp(step, s) for s in starts]
        )
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        out = model(**inputs)
        judge = next(c for c in self.callback_handler.callbacks if isinstance(c, _Judge))
        if not torch.isfinite(out["loss"]):
            raise RuntimeError(
                f"{self.model.recipe.name}: the loss is {float(out['loss'])} at step {self.state.global_step}; {judge.told()}"
            )
        judge.loss.append(float(out["loss"].detach()))
        return (out["loss"], out) if return_outputs else out["loss"]


class BrainTuner:
    """Tune a speech encoder on brain responses by a recipe.

    Parameters
    ----------
    encoder : SpeechEncoder
        Changed in place: after `fit` it is the tuned model.
    recipe : Recipe or str
        Or the name of one in RECIPES.

    Attributes
    ----------
    history : list of dict
        One entry an epoch, 0 before training: `validation` (mean test-free encoding score of the tuned voxels on the
        validation stories, ridge fitted anew) and training `loss`.
    best_epoch, kept_epoch : int
        The best on validation, and the one whose weights the encoder holds.
    """

    def __init__(self, encoder: SpeechEncoder, recipe: Recipe | str):
        self.encoder, self.recipe, self.history, self.readouts = (
            encoder,
            RECIPES[recipe] if isinstance(recipe, str) else recipe,
            [],
            {},
        )
        self.base, self.adapted = encoder.name, None
        if self.recipe.adapter == "lora":
            torch.manual_seed(self.recipe.seed)
            r = self.recipe
            config = LoraConfig(
                r=r.rank, lora_alpha=r.alpha, lora_dropout=r.dropout, target_modules=list(r.targets)
            )
            self.adapted = get_peft_model(encoder.model, config)
            self.adapted.peft_config[
                "default"
            ].base_model_name_or_path = encoder.name  # not this machine's path

    @property
    def best_epoch(self) -> int:
        scores = [h["validation"] for h in self.history]
        return (
            len(scores) - 1 - int(np.argmax(scores[::-1]))
        )  # the last of equals: a read-out may have learnt meanwhile

    def fit(
        self,
        ds,
        subjects,
        voxels=None,
        responses=None,
        stories=None,
        folder=None,
        keep="best",
        quiet=False,
        **training,
    ):
        """Train; the encoder then holds the weights of the best epoch on the validation stories (or of the last).

        Parameters
        ----------
        ds : Dataset
        subjects : str or list of str
            Several: one read-out each, and each step is on one of them.
        voxels : array or dict of arrays, optional
            Mask or indices a subject; by the recipe's rule if left out (`pick_voxels`).
        responses : callable, optional
            ``(subject, story) -> (n_trs, n)`` in place of ``ds.responses``: a control (see `evaluation`).
        stories : list of str, optional
            Training stories; ``ds.split["train"]`` if left out.
        folder : path or True, optional
            Keeps checkpoints (True: in the cache folder, under this run's own name). If it holds whole ones of the same
            run, training goes on from the last, to the same weights.
        keep : {"best", "last"}
        quiet : bool
            No progress bar.
        **training
            For transformers' TrainingArguments: ``bf16=True``, ``gradient_accumulation_steps=4``, ... Several GPUs by
            ``accelerate launch``.

        Raises
        ------
        RuntimeError
            If it diverges; the best epoch so far stays in `folder`.
        ValueError
            If a checkpoint is broken, or `folder` belongs to another run.
        """
        recipe, subjects = self.recipe, [subjects] if isinstance(subjects, str) else list(subjects)
        seed_everything(recipe.seed)
        train, val = list(stories or ds.split["train"]), list(ds.split["val"])
        if recipe.cross_fit > len(train):
            raise ValueError(
                f"recipe {recipe.name!r}: {recipe.cross_fit} folds but {len(train)} training stories"
            )
        if not isinstance(voxels, dict):
            voxels = {
                s: pick_voxels(ds, s, rule=recipe.voxels) if voxels is None else np.asarray(voxels)
                for s in subjects
            }
        ds.fetch(subjects, train + val, what=["stimuli", "responses"])
        read, cache = (
            (lambda u, s: responses(u, s)[:, voxels[u]])
            if responses
            else (lambda u, s: ds.responses(u, s, voxels=voxels[u])),
            ConvolutionalCache(self.encoder),
        )
        targets = {
            (u, s): torch.from_numpy(np.ascontiguousarray(read(u, s), np.float32))
            for u in subjects
            for s in train + val
        }
        features = {s: StoryFeatures(self.encoder, recipe, ds.story(s), cache) for s in train + val}
        items = []
        for u in subjects:
            for s in train:
                edges = np.linspace(
                    0, len(targets[u, s]), -(-len(targets[u, s]) // recipe.trs_per_step) + 1
                ).astype(int)
                items += [(u, s, int(a), int(b)) for a, b in zip(edges, edges[1:])]
        net = TuningNet(self.encoder, recipe, features, targets, items)
        net.trained = self._trained()
        net.kept = {f"backbone.{n}" for n in net.trained} | {
            k for k in net.state_dict() if k.startswith("readouts.")
        }
        net.unfreeze("all")
        data = hashlib.blake2b(
            repr([(k, v.shape) for k, v in targets.items()]).encode(), digest_size=8
        )
        for y, v in zip([*targets.values()], [voxels[u] for u, _ in targets]):
            data.update(y.numpy()), data.update(np.ascontiguousarray(v))
        run = {
            "recipe": recipe.hash(),
            "subjects": subjects,
            "stories": train,
            "validation": val,
            "model": self.encoder.fingerprint(),
            "data": f"{ds.name} {data.hexdigest()}",
            "training": repr(sorted(training.items())),
        }
        if folder is True:
            folder = cache_dir(
                "tuning", hashlib.blake2b(repr(run).encode(), digest_size=8).hexdigest()
            )
        folder = None if folder is None else Path(folder)
        last = None if folder is None else _resume(folder, run)
        with tempfile.TemporaryDirectory() as scratch:
            defaults = dict(
                output_dir=str(folder / "checkpoints" if folder else scratch),
                num_train_epochs=recipe.epochs,
                per_device_train_batch_size=1,
                max_grad_norm=recipe.clip_norm,
                save_strategy="epoch" if folder else "no",
                save_total_limit=2,
                logging_strategy="no",
                report_to="none",
                seed=recipe.seed,
                use_cpu=self.encoder.device == "cpu",
                disable_tqdm=quiet,
                remove_unused_columns=False,
                dataloader_pin_memory=False,
                ddp_find_unused_parameters=True,
            )
            judge = _Judge(net, self, train, val, folder)
            arguments = TrainingArguments(**defaults | training)
            arguments._n_gpu = min(
                arguments.n_gpu, 1
            )  # one card a process; several by accelerate launch
            trainer = _Trainer(
                net,
                arguments,
                train_dataset=[{"item": i} for i in range(len(items))],
                callbacks=[judge],
            )
            trainer.remove_callback(PrinterCallback)
            self.history = []
            if last:
                judge.recall(
                    round(json.loads((Path(last) / "trainer_state.json").read_text())["epoch"])
                )
            if last and judge.tired():  # had stopped by itself
                net.load_state_dict(load_file(Path(last) / "model.safetensors"), strict=False)
            else:
                trainer.train(resume_from_checkpoint=last)
        self.kept_epoch = self.best_epoch if keep == "best" else self.history[-1]["epoch"]
        if keep == "best":
            net.load_state_dict(judge.best, strict=False)
        net.eval().requires_grad_(False)
        self.readouts, self.about = (
            net.readouts,
            {"data": ds.name, "simulated": ds.simulated, "subjects": subjects, "stories": train},
        )
        return self

    def _trained(self):
        names = [n for n, _ in self.encoder.model.named_parameters()]
        return {
            "lora": {n for n in names if "lora_" in n},
            "full": {n for n in names if not n.startswith(self.encoder.family.frozen)},
            "none": set(),
        }[self.recipe.adapter]

    def save(self, folder):
        """Write adapter (PEFT's format) or weights, read-outs, recipe and card into a folder, whole or not at all.

        An earlier saved model there is replaced; any other folder that holds something is refused (FileExistsError).
        """
        if (
            (there := Path(folder)).exists()
            and any(there.iterdir())
            and not (there / "tuning.json").exists()
        ):
            raise FileExistsError(
                f"{folder} holds something else than a saved model: give a folder of its own"
            )
        with atomic(folder) as part:
            part.mkdir()
            if self.adapted:
                self.adapted.save_pretrained(part, save_embedding_layers=False)
            else:  # with its extractor, so that sound is normalised as it was
                self.encoder.model.save_pretrained(part)
                self.encoder.family.extractor.save_pretrained(part)
            save_file(
                {k: v.detach().cpu().contiguous() for k, v in self.readouts.state_dict().items()},
                part / "readouts.safetensors",
            )
            (part / "recipe.json").write_text(self.recipe.to_json())
            about = {
                **self.about,
                "base": self.base,
                "history": self.history,
                "kept_epoch": self.kept_epoch,
            }
            (part / "tuning.json").write_text(json.dumps(about, indent=1))
            kind = "*simulated* listeners" if self.about["simulated"] else "recordings"
            (part / "README.md").write_text(
                CARD.format(
                    recipe=self.recipe.name,
                    base=self.base,
                    kind=kind,
                    **{k: self.about[k] for k in ("data", "subjects")},
                    before=self.history[0]["validation"],
                    after=self.history[self.kept_epoch]["validation"],
                )
            )

    @classmethod
    def load(cls, folder, device=None) -> BrainTuner:
        """A tuned model from `save`; its base is loaded by name where the folder holds an adapter."""
        folder = Path(folder)
        missing = [
            n
            for n in ("recipe.json", "tuning.json", "readouts.safetensors")
            if not (folder / n).exists()
        ]
        if missing:
            raise FileNotFoundError(
                f"{folder}: no tuned model there: {missing} not found; expected a folder written by BrainTuner.save"
            )
        recipe, about = (
            Recipe.from_json((folder / "recipe.json").read_text()),
            json.loads((folder / "tuning.json").read_text()),
        )
        lora = recipe.adapter == "lora"
        tuner = cls(
            SpeechEncoder.from_pretrained(about["base"] if lora else str(folder), device),
            recipe.with_(adapter="none"),
        )
        tuner.adapted = PeftModel.from_pretrained(tuner.encoder.model, folder) if lora else None
        tuner.recipe, tuner.base, tuner.encoder.name = (
            recipe,
            about["base"],
            f"{about['base']}+{recipe.name}",
        )
        state = load_file(folder / "readouts.safetensors")
        last = "map.1.bias" if recipe.readout == "lowrank" else "map.bias"
        tuner.readouts = nn.ModuleDict(
            {
                s: ReadOut(tuner.encoder.width, len(state[f"{s}.{last}"]), recipe)
                for s in about["subjects"]
            }
        )
        tuner.readouts.load_state_dict(state)
        tuner.history, tuner.kept_epoch, tuner.about = (
            about["history"],
            about["kept_epoch"],
            {k: about[k] for k in ("data", "simulated", "subjects", "stories")},
        )
        tuner.encoder.model.eval().requires_grad_(False)
        return tuner


def _resume(folder: Path, run: dict):
    """The last whole checkpoint of this very run, or None; broken ones are named."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "run.json"
    if stamp.exists() and json.loads(stamp.read_text()) != run:
        differs = [k for k, v in json.loads(stamp.read_text()).items() if run.get(k) != v]
        raise ValueError(
            f"{folder} holds another run (different: {', '.join(differs)}): give another folder, or remove it"
        )
    with atomic(stamp) as part:
        part.write_text(json.dumps(run))
    found = sorted(
        (folder / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1])
    )
    if not found:
        return None
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"):
        try:
            path = found[-1] / name
            json.loads(path.read_text()) if name.endswith("json") else load_file(
                path
            ) if name.endswith("tensors") else torch.load(path)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            raise ValueError(
                f"{found[-1]}: broken checkpoint, {name} cannot be read ({reason}); remove that folder to go on from before"
            ) from error
    return str(found[-1])
