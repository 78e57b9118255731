"""Training by a recipe: what changes, what is evaluated, what stops and goes on."""

import shutil

import numpy as np
import pytest
import torch
from tiny import TINY, changed, encoder, tuned, weights
from transformers import TrainerCallback

from brainlib import evaluation, recipes, training, tuning
from brainlib.encoding import RidgeEncoder
from brainlib.network import StoryFeatures
from brainlib.speech import ConvolutionalCache
from brainlib.tuning import BrainTuner


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))


def test_lora_changes_adapters_alone_and_the_loss_falls(model_folder, data):
    tuner = BrainTuner(encoder(model_folder), TINY)
    before = {k: v.clone() for k, v in tuner.encoder.model.state_dict().items()}
    tuner.fit(data, "UTS01", quiet=True, keep="last")
    moved = changed(before, tuner.encoder.model.state_dict())
    assert moved and all("lora_" in k for k in moved)
    losses = [h["loss"] for h in tuner.history[1:]]
    assert losses[-1] < losses[0] and [h["epoch"] for h in tuner.history] == [0, 1, 2, 3]


def test_full_tuning_leaves_the_convolutions_alone(model_folder, data):
    tuner = BrainTuner(encoder(model_folder), TINY.with_(adapter="full", lr=1e-3))
    before = {k: v.clone() for k, v in tuner.encoder.model.state_dict().items()}
    tuner.fit(data, "UTS01", quiet=True, keep="last")
    moved = changed(before, tuner.encoder.model.state_dict())
    assert any(k.startswith("encoder.layers") for k in moved) and not any(
        k.startswith("feature_extractor") for k in moved
    )


def test_a_stage_trains_what_it_says(model_folder, data):
    recipe = TINY.with_(stages=(("readout", 2), ("all", 1)))
    tuner = BrainTuner(encoder(model_folder), recipe)
    before, seen = {k: v.clone() for k, v in tuner.encoder.model.state_dict().items()}, []
    real = recipes.mse_loss

    def watch(prediction, target):
        seen.append(len(changed(before, tuner.encoder.model.state_dict())))
        return real(prediction, target)

    recipes.mse_loss = watch
    try:
        tuner.fit(data, "UTS01", quiet=True, keep="last")
    finally:
        recipes.mse_loss = real
    steps = len(seen) // 3
    assert not any(seen[: 2 * steps + 1]) and seen[-1] > 0
    assert changed(before, tuner.encoder.model.state_dict())


def test_a_closed_form_read_out_is_refitted_and_never_trained(model_folder, data, tmp_path):
    tuner = tuned(
        model_folder,
        data,
        TINY.with_(readout="ridge", ridge_scale=2.0),
        keep="last",
        folder=tmp_path,
    )
    alpha = tuner.history[-1]["penalty"]["UTS01"]
    names = data.split["train"]
    with torch.no_grad():
        x = [
            StoryFeatures(
                tuner.encoder, tuner.recipe, data.story(s), ConvolutionalCache(tuner.encoder)
            )(0, 10).numpy()
            for s in names
        ]
    wanted = RidgeEncoder([2 * alpha]).fit(x, [data.responses("UTS01", s) for s in names]).coef_
    np.testing.assert_allclose(
        tuner.readouts["UTS01"].map.weight.numpy().T, wanted, atol=1e-3 * np.abs(wanted).max()
    )


def test_a_cross_fitted_read_out_has_not_seen_the_story_it_serves(
    model_folder, data, tmp_path, monkeypatch
):
    nets = []

    class Watched(tuning.TuningNetwork):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            nets.append(self)

    monkeypatch.setattr(tuning, "TuningNetwork", Watched)
    recipe = TINY.with_(
        readout="ridge", cross_fit=3, ridge_scale=2.0, lr=1e-12, stages=(("all", 1),)
    )
    data.split = {"train": ["a", "b", "c"], "val": ["d"], "test": ["d"]}
    tuner = tuned(model_folder, data, recipe, folder=tmp_path, keep="last")
    alpha = tuner.history[-1]["penalty"]["UTS01"]
    assert nets[0].fold == {"a": 0, "b": 1, "c": 2}
    for k, names in enumerate((("b", "c"), ("a", "c"), ("a", "b"))):
        with torch.no_grad():
            x = [
                StoryFeatures(
                    tuner.encoder, recipe, data.story(s), ConvolutionalCache(tuner.encoder)
                )(0, 10).numpy()
                for s in names
            ]
        wanted = RidgeEncoder([2 * alpha]).fit(x, [data.responses("UTS01", s) for s in names]).coef_
        np.testing.assert_allclose(
            nets[0].folds[f"UTS01 {k}"].map.weight.numpy().T,
            wanted,
            atol=1e-3 * np.abs(wanted).max(),
        )


def test_the_best_epoch_on_validation_is_kept_and_patience_stops(model_folder, data, tmp_path):
    tuner = tuned(
        model_folder,
        data,
        TINY.with_(stages=(("all", 8),), patience=2, lr=0.05),
        folder=tmp_path / "run",
    )
    scores = [h["validation"] for h in tuner.history]
    assert tuner.best_epoch == int(np.argmax(scores)) and len(scores) == min(
        tuner.best_epoch + 3, 9
    )
    features = {
        s: StoryFeatures(
            tuner.encoder, tuner.recipe, data.story(s), ConvolutionalCache(tuner.encoder)
        )
        for s in data.stories
    }
    kept = tuner.history[tuner.best_epoch]["penalty"]["UTS01"]
    with torch.no_grad():
        x = {s: f(0, 10).numpy() for s, f in features.items()}
    ridge = RidgeEncoder([kept]).fit(
        [x[s] for s in data.split["train"]],
        [data.responses("UTS01", s) for s in data.split["train"]],
    )
    again = ridge.score(
        [x[s] for s in data.split["val"]], [data.responses("UTS01", s) for s in data.split["val"]]
    ).mean()
    assert again == pytest.approx(max(scores), abs=1e-4)


def test_two_runs_are_the_same(model_folder, data):
    one, two = (weights(tuned(model_folder, data, TINY.with_(dropout=0.2))) for _ in range(2))
    assert not changed(one, two)


def test_a_killed_run_goes_on_to_the_same_weights(model_folder, data, tmp_path, monkeypatch):
    recipe = TINY.with_(
        dropout=0.2, schedule="linear", warmup=0.2, stages=(("readout", 1), ("all", 3))
    )
    whole = tuned(model_folder, data, recipe, folder=tmp_path / "whole", keep="last")
    real, calls = recipes.mse_loss, []

    def dies(prediction, target):
        calls.append(1)
        if len(calls) == 6:  # in the third epoch of two steps each
            raise KeyboardInterrupt
        return real(prediction, target)

    with monkeypatch.context() as m:
        m.setattr(recipes, "mse_loss", dies)
        with pytest.raises(KeyboardInterrupt):
            tuned(model_folder, data, recipe, folder=tmp_path / "cut", keep="last")
    resumed = tuned(model_folder, data, recipe, folder=tmp_path / "cut", keep="last")
    assert not changed(weights(whole), weights(resumed))
    assert resumed.history == whole.history


def test_broken_checkpoints_and_other_runs_are_refused(model_folder, data, tmp_path):
    folder = tmp_path / "run"
    tuned(model_folder, data, TINY, folder=folder)
    with pytest.raises(ValueError, match="another run .different: recipe"):
        tuned(model_folder, data, TINY.with_(lr=0.5), folder=folder)
    newest = max((folder / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
    content = (newest / "model.safetensors").read_bytes()
    (newest / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="going on from the one before: .*model.safetensors"):
        assert len(tuned(model_folder, data, TINY, folder=folder).history) == 4
    for checkpoint in (folder / "checkpoints").iterdir():
        (checkpoint / "optimizer.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="none before it: .*optimizer.pt: cannot be read"):
        tuned(model_folder, data, TINY, folder=folder)


def test_another_control_or_other_voxels_are_another_run(model_folder, data, tmp_path):
    tuned(model_folder, data, TINY, folder=tmp_path)
    for change in (
        {"responses": evaluation.shuffled_responses(data, block=2)},
        {"voxels": np.arange(1, 6)},
    ):
        with pytest.raises(ValueError, match="another run .different: data"):
            tuned(model_folder, data, TINY, folder=tmp_path, **change)
    with pytest.raises(ValueError, match="another run .different: training"):
        tuned(model_folder, data, TINY, folder=tmp_path, gradient_accumulation_steps=2)


def test_patience_counts_from_where_the_model_may_change(model_folder, data):
    recipe = TINY.with_(stages=(("readout", 4), ("all", 2)), patience=2)
    tuner = tuned(model_folder, data, recipe)
    assert len(tuner.history) >= 6  # the read-out's epochs cannot move the score, and do not count


def test_a_run_that_stopped_by_itself_stays_stopped(model_folder, data, tmp_path):
    recipe = TINY.with_(stages=(("all", 8),), patience=1, lr=0.1)
    first = tuned(model_folder, data, recipe, folder=tmp_path)
    assert len(first.history) < 9
    again = tuned(model_folder, data, recipe, folder=tmp_path)
    assert again.history == first.history and not changed(weights(first), weights(again))


def test_half_precision_trains_and_goes_on(model_folder, data, tmp_path):
    short = TINY.with_(stages=(("all", 2),), dropout=0.0)
    whole = tuned(model_folder, data, short, folder=tmp_path / "a", bf16=True, keep="last")
    assert whole.history[-1]["loss"] < whole.history[1]["loss"]
    newest = max((tmp_path / "a/checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
    shutil.rmtree(newest)
    again = tuned(model_folder, data, short, folder=tmp_path / "a", bf16=True, keep="last")
    assert not changed(weights(whole), weights(again))


def test_two_subjects_have_a_read_out_each(model_folder, data):
    tuner = tuned(
        model_folder,
        data,
        subjects=["UTS01", "UTS02"],
        voxels={"UTS01": np.arange(6), "UTS02": np.arange(4)},
    )
    assert [r.map.out_features for r in tuner.readouts.values()] == [6, 4]
    alone = tuned(
        model_folder,
        data,
        TINY.with_(adapter="none", warm_start=True, lr_readout=1e-12),
        subjects="UTS02",
        voxels=np.arange(4),
    )
    both = tuned(
        model_folder,
        data,
        TINY.with_(adapter="none", warm_start=True, lr_readout=1e-12),
        subjects=["UTS01", "UTS02"],
        voxels={"UTS01": np.arange(6), "UTS02": np.arange(4)},
    )
    torch.testing.assert_close(
        both.readouts["UTS02"].map.weight, alone.readouts["UTS02"].map.weight, atol=1e-6, rtol=0
    )


def test_stories_dealt_out_among_subjects_take_as_many_steps_as_one_subject(model_folder, data):
    short = TINY.with_(stages=(("all", 1),), readout="ridge")
    data.split["train"], data.split["val"] = ["a", "b"], ["c"]
    one, two = data.split["train"]
    dealt = {"UTS01": [one], "UTS02": [two]}
    read = {"recipe": short, "stories": dealt, "voxels": np.arange(6)}
    steps = tuning.read_data(data, list(dealt), **read).steps(TINY.trs_per_step)
    assert {(step.subject, step.story) for step in steps} == {("UTS01", one), ("UTS02", two)}
    alone = tuning.read_data(data, "UTS01", recipe=short, voxels=np.arange(6))
    assert len(steps) == len(alone.steps(TINY.trs_per_step))
    own = tuned(
        model_folder, data, short, subjects="UTS02", stories=["b"], keep="best", folder=None
    )
    both = tuned(model_folder, data, short, subjects=["UTS01", "UTS02"], stories=dealt)
    # before training each read-out is fitted on its own subject's stories
    assert both.history[0]["penalty"]["UTS02"] == own.history[0]["penalty"]["UTS02"]
    with pytest.raises(ValueError, match="give each subject its stories"):
        tuned(model_folder, data, short, subjects=["UTS01", "UTS02"], stories={"UTS01": [one]})


def test_a_run_that_diverges_stops_and_says_what_to_do(model_folder, data, tmp_path):
    with pytest.raises(RuntimeError, match="smaller learning rate; the best epoch so far lies in"):
        tuned(
            model_folder,
            data,
            TINY.with_(lr=1e30, lr_readout=1e30, clip_norm=0.0, stages=(("all", 6),)),
            folder=tmp_path / "run",
        )
    assert (tmp_path / "run/best.safetensors").exists()


def test_a_layer_that_is_not_there_is_told(model_folder, data):
    with pytest.raises(ValueError, match="asks for layer 9; .* has 0 to 2"):
        tuned(model_folder, data, TINY.with_(layer=9))


# ------------------------------------------------------------------ what fit passes on
@pytest.mark.parametrize(
    "argument, message",
    [
        ({"weight_decay": 0.1}, "change weight_decay by recipe.with_"),
        ({"num_train_epochs": 2}, "change stages by"),
        ({"learning_rate": 0.1}, "change lr and lr_readout by"),
        ({"lr_scheduler_type": "cosine"}, "change schedule by"),
        ({"seed": 1}, "change seed by"),
        ({"per_device_train_batch_size": 4}, "change trs_per_step by"),
        ({"optim": "sgd"}, "would be ignored or break training"),
        ({"gradient_checkpointing": True}, "would be ignored or break training"),
        ({"load_best_model_at_end": True}, "would be ignored or break training"),
    ],
)
def test_arguments_that_a_recipe_holds_or_that_would_not_act_are_refused(
    model_folder, data, argument, message
):
    with pytest.raises(ValueError, match=message):
        tuned(model_folder, data, **argument)


def test_scores_and_loss_of_every_epoch_reach_the_trainers_log_and_the_callbacks(
    model_folder, data
):
    class Listener(TrainerCallback):
        def __init__(self):
            self.scores, self.losses = [], []

        def on_evaluate(self, args, state, control, metrics, **_):
            self.scores.append(metrics["eval_score"])

        def on_log(self, args, state, control, logs, **_):
            self.losses += [logs["loss"]] if "loss" in logs else []

    listener = Listener()
    tuner = tuned(model_folder, data, callbacks=[listener])
    assert listener.scores == [h["validation"] for h in tuner.history]
    assert listener.losses == [h["loss"] for h in tuner.history[1:]]


def test_a_recipe_that_trains_nothing_is_refused(model_folder, data):
    with pytest.raises(ValueError, match="trains nothing"):
        tuned(model_folder, data, TINY.with_(adapter="none", readout="ridge"))


def test_weight_decay_shrinks_the_read_out(model_folder, data):
    recipe = TINY.with_(adapter="none", lr_readout=0.1)
    plain, decayed = (
        tuned(model_folder, data, r).readouts["UTS01"].map.weight.norm()
        for r in (recipe, recipe.with_(weight_decay=5.0))
    )
    assert float(decayed) < 0.5 * float(plain)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_rises_to_one_and_falls_to_nothing(schedule):
    recipe = TINY.with_(schedule=schedule, warmup=0.2)
    factors = [training.schedule_factor(recipe, step, n_steps=20) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0] and factors[20] == pytest.approx(0)
    middle = {"linear": 0.5, "cosine": (1 + np.cos(np.pi / 2)) / 2}[schedule]
    quarter = {"linear": 0.75, "cosine": (1 + np.cos(np.pi / 4)) / 2}[schedule]
    assert factors[12] == pytest.approx(middle) and factors[8] == pytest.approx(quarter)
