import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import AutoModel

from brainlib import evaluation, recipes, results, tuning
from brainlib.encoding import RidgeEncoder
from brainlib.network import ReadOut, StoryFeatures
from brainlib.recipes import RECIPES, Recipe
from brainlib.speech import ConvolutionalCache, SpeechEncoder
from brainlib.tuning import BrainTuner

TINY = Recipe(
    name="tiny",
    window=6.0,
    hop=4.0,
    trs_per_step=5,
    rank=4,
    alpha=8.0,
    lr=1e-2,
    lr_readout=1e-2,
    stages=(("all", 3),),
)
LOSSES = {
    "spatial": recipes.spatial_loss,
    "temporal": recipes.temporal_loss,
    "mse": recipes.mse_loss,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))


def encoder(folder):
    return SpeechEncoder.from_pretrained(folder, device="cpu")


def tuned(path, data, recipe=TINY, subjects="UTS01", **options):
    tuner = BrainTuner(encoder(path), recipe)
    return tuner.fit(data, subjects, quiet=True, **options)


def weights(tuner):
    return {k: v.clone() for k, v in tuner.encoder.model.state_dict().items()} | {
        f"r.{k}": v.clone() for k, v in tuner.readouts.state_dict().items()
    }


# ------------------------------------------------------------------ losses
@pytest.mark.parametrize(
    "name, wanted",
    [
        ("spatial", -(1.0 + (-1.0) + 0.0) / 3),
        ("temporal", -(np.sqrt(3) / 2 + 0.0 + -np.sqrt(3) / 2) / 3),
        ("mse", (0 + 8 + 14) / 9),
    ],
)
def test_losses_by_hand(name, wanted):
    """Rows: the same; turned round; constant. Columns of the prediction are constant, or follow half of the target's turn."""
    target = torch.tensor([[1.0, 2, 3], [1, 2, 3], [1, 2, 3]])
    prediction = torch.tensor([[1.0, 2, 3], [3, 2, 1], [0, 0, 0]])
    if name == "temporal":
        target = torch.tensor([[0.0, 5, 0], [1, 5, 1], [2, 5, 2]])
        prediction = torch.tensor([[0.0, 1, 1], [1, 2, 1], [1, 3, 0]])
    found = LOSSES[name](prediction, target)
    assert float(found) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_losses_by_finite_differences(name):
    torch.manual_seed(0)
    prediction, target = (
        torch.randn(5, 7, dtype=torch.float64, requires_grad=True),
        torch.randn(5, 7, dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(lambda p: LOSSES[name](p, target), prediction)


@pytest.mark.parametrize("name", ["spatial", "temporal"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constant_rows_give_nothing_and_no_nan(name, value):
    prediction, target = torch.full((4, 6), value, requires_grad=True), torch.randn(4, 6)
    loss = LOSSES[name](prediction, target)
    loss.backward()
    assert float(loss.detach()) == 0 and not prediction.grad.any()
    assert float(LOSSES[name](target, prediction.detach())) == 0


# ------------------------------------------------------------------ recipes
def test_recipes_go_to_json_and_back_and_are_hashed_by_value():
    for recipe in RECIPES.values():
        again = Recipe.from_json(recipe.to_json())
        assert (
            again == recipe
            and again.hash()
            == recipe.hash()
            == recipe.with_(name="x").hash()
            != recipe.with_(lr=0.5).hash()
        )
    assert len({r.hash() for r in RECIPES.values()}) == len(RECIPES)
    with pytest.raises(ValueError, match=r"unknown \['speed'\]"):
        Recipe.from_json('{"name": "x", "window": 2, "hop": 1, "speed": 3}')


def test_the_papers_values_stand():
    a, b, c = (RECIPES[k] for k in ("brainwavlm", "braintuning", "refine"))
    assert (a.layer, a.loss, a.rank, a.targets, a.bottleneck) == (
        9,
        "spatial",
        4,
        ("q_proj", "k_proj", "v_proj"),
        100,
    )
    assert (b.window, b.pooling, b.adapter, b.loss, b.lr, b.lr_readout, b.warmup) == (
        10,
        "mean",
        "full",
        "mse",
        5e-5,
        1e-4,
        0.1,
    )
    assert (
        c.window == 9
        and c.l2 > 0
        and [c.stage(e) for e in (0, c.stages[0][1])] == ["readout", "all"]
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss": "huber"}, "loss is 'huber'"),
        ({"stages": (("head", 2),)}, "stages"),
        ({"hop": 9.0}, "hop <= window"),
        ({"cross_fit": 1}, "at least 2 folds"),
        ({"pooling": "frames", "resampling": "clip"}, "one vector"),
    ],
)
def test_impossible_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TINY.with_(**change)


# ------------------------------------------------------------------ features with gradients
def test_frames_at_trs_are_the_features_of_the_encoder(model_folder, data):
    """The same numbers as `SpeechEncoder.features` and `timing.downsample`, whole or in blocks."""
    from brainlib import timing

    enc, story = encoder(model_folder), data.story("a")
    states, times = enc.features(story.audio, [2], window=6, hop=4, pool=0.1)
    wanted = timing.downsample(states[2], times, story.tr_times)
    features = StoryFeatures(enc, TINY.with_(layer=2), story, ConvolutionalCache(enc))
    with torch.no_grad():
        np.testing.assert_allclose(features(0, 10).numpy(), wanted, atol=2e-4)
        np.testing.assert_allclose(features(4, 7).numpy(), wanted[4:7], atol=2e-4)


def test_a_clip_a_tr_is_the_mean_of_the_ten_seconds_before_its_end(model_folder, data):
    enc, story = encoder(model_folder), data.story("b")
    features = StoryFeatures(
        enc,
        TINY.with_(window=10.0, hop=2.0, pooling="mean", resampling="clip", layer=-1),
        story,
        ConvolutionalCache(enc),
    )
    with torch.no_grad():
        found = features(0, 10).numpy()
        for row in (0, 4, 9):
            end = int((story.tr_times[row] + 1) * 16_000)
            clip = torch.from_numpy(story.audio[end - 160_000 : end])[None]
            np.testing.assert_allclose(
                found[row], enc.hidden_states(clip)[-1][0].mean(0).numpy(), atol=1e-4
            )


def test_gradients_reach_the_model_through_lanczos_and_delays(model_folder, data):
    enc = encoder(model_folder)
    x = StoryFeatures(enc, TINY, data.story("a"), ConvolutionalCache(enc))(0, 10)
    ReadOut(24, 3, TINY)(x).sum().backward()
    assert float(enc.model.encoder.layers[0].attention.q_proj.weight.grad.abs().max()) > 0
    assert all(p.grad is None for p in enc.model.feature_extractor.parameters())


@pytest.mark.parametrize("kind", ["linear", "lowrank"])
def test_a_warm_read_out_predicts_as_the_ridge_does(kind):
    rng = np.random.default_rng(0)
    X = [rng.standard_normal((40, 5)).astype(np.float32) for _ in range(3)]
    Y = [x @ rng.standard_normal((5, 4)).astype(np.float32) + 1 for x in X]
    ridge, readout = (
        RidgeEncoder(delays=(1, 2)).fit(X, Y),
        ReadOut(5, 4, TINY.with_(readout=kind, delays=(1, 2))),
    )
    readout.take(ridge, True)
    np.testing.assert_allclose(
        readout(torch.from_numpy(X[0])).detach().numpy(), ridge.predict(X[0]), atol=1e-4
    )
    np.testing.assert_allclose(
        readout(torch.from_numpy(X[0]), skip=7).detach().numpy(), ridge.predict(X[0])[7:], atol=1e-4
    )


# ------------------------------------------------------------------ training
def changed(before, after):
    return {k for k in after if not torch.equal(before[k], after[k])}


def test_lora_changes_adapters_alone_and_the_loss_falls(model_folder, data):
    tuner = BrainTuner(encoder(model_folder), TINY)
    before = {k: v.clone() for k, v in tuner.encoder.model.state_dict().items()}
    tuner.fit(data, "UTS01", quiet=True, keep="last")
    moved = changed(before, tuner.encoder.model.state_dict())
    assert moved and all("lora_" in k for k in moved)
    losses = [h["loss"] for h in tuner.history[1:]]
    assert losses[-1] < losses[0] and [h["epoch"] for h in tuner.history] == [0, 1, 2, 3]


def test_full_tuning_leaves_the_front_alone(model_folder, data):
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


def test_a_pinned_read_out_is_refitted_and_never_trained(model_folder, data, tmp_path):
    tuner = tuned(
        model_folder,
        data,
        TINY.with_(readout="ridge", ridge_scale=2.0),
        keep="last",
        folder=tmp_path,
    )
    alpha = json.loads((tmp_path / "history.json").read_text())["alphas"]["UTS01"]
    names = data.split["train"]
    with torch.no_grad():
        x = [
            StoryFeatures(tuner.encoder, tuner.recipe, data.story(s), ConvolutionalCache(tuner.encoder))(
                0, 10
            ).numpy()
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

    class Watched(tuning.TuningNet):
        def __init__(self, *args):
            super().__init__(*args)
            nets.append(self)

    monkeypatch.setattr(tuning, "TuningNet", Watched)
    recipe = TINY.with_(
        readout="ridge", cross_fit=3, ridge_scale=2.0, lr=1e-12, stages=(("all", 1),)
    )
    tuner = tuned(model_folder, data, recipe, stories=["a", "b", "c"], folder=tmp_path, keep="last")
    alpha = json.loads((tmp_path / "history.json").read_text())["alphas"]["UTS01"]
    assert nets[0].fold == {"a": 0, "b": 1, "c": 2}
    for k, names in enumerate((("b", "c"), ("a", "c"), ("a", "b"))):
        with torch.no_grad():
            x = [
                StoryFeatures(tuner.encoder, recipe, data.story(s), ConvolutionalCache(tuner.encoder))(
                    0, 10
                ).numpy()
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
        s: StoryFeatures(tuner.encoder, tuner.recipe, data.story(s), ConvolutionalCache(tuner.encoder))
        for s in data.stories
    }
    kept = json.loads((tmp_path / "run/history.json").read_text())["alphas"]["UTS01"]
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
    with pytest.raises(ValueError, match="broken checkpoint, model.safetensors cannot be read"):
        tuned(model_folder, data, TINY, folder=folder)
    shutil.rmtree(newest)
    assert len(tuned(model_folder, data, TINY, folder=folder).history) == 4


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


def test_saving_never_eats_another_folder(model_folder, data, tmp_path):
    tuner = tuned(
        model_folder, data, TINY.with_(stages=(("all", 1),)), folder=tmp_path / "run", keep="last"
    )
    with pytest.raises(FileExistsError, match="something else"):
        tuner.save(tmp_path / "run")
    assert (tmp_path / "run/history.json").exists()
    for _ in range(2):  # its own folder it may replace
        tuner.save(tmp_path / "out")
    assert json.loads((tmp_path / "out/tuning.json").read_text())["kept_epoch"] == 1


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


def test_a_run_that_diverges_stops_with_a_word(model_folder, data, tmp_path):
    with pytest.raises(RuntimeError, match="smaller learning rate; the best epoch so far lies in"):
        tuned(
            model_folder,
            data,
            TINY.with_(lr=1e30, lr_readout=1e30, clip_norm=0.0, stages=(("all", 6),)),
            folder=tmp_path / "run",
        )
    assert (tmp_path / "run/best.safetensors").exists()


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_tuned_model_is_saved_and_loaded(model_folder, data, tmp_path, adapter):
    tuner = tuned(model_folder, data, TINY.with_(adapter=adapter), keep="last")
    tuner.save(tmp_path / "out")
    again = BrainTuner.load(tmp_path / "out", device="cpu")
    clips = torch.from_numpy(data.story("a").audio[:32_000])[None]
    with torch.no_grad():
        a, b = (t.encoder.hidden_states(clips)[-1] for t in (tuner, again))
        plain = encoder(model_folder).hidden_states(clips)[-1]
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert float((a - plain).abs().max()) > 1e-3
    assert again.recipe == tuner.recipe and again.history == tuner.history
    assert not changed(dict(tuner.readouts.state_dict()), dict(again.readouts.state_dict()))
    card = (tmp_path / "out/README.md").read_text()
    assert "recordings" in card and "UTS01" in card
    if adapter == "lora":  # opens without brainlib
        from peft import PeftModel

        merged = (
            PeftModel.from_pretrained(AutoModel.from_pretrained(model_folder), tmp_path / "out")
            .merge_and_unload()
            .eval()
        )
        torch.testing.assert_close(merged(clips).last_hidden_state, a, atol=1e-4, rtol=1e-3)
    (tmp_path / "out/readouts.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="readouts.safetensors"):
        BrainTuner.load(tmp_path / "out")


def test_a_layer_that_is_not_there_is_told(model_folder, data):
    with pytest.raises(ValueError, match="taps layer 9; .* has 0 to 2"):
        tuned(model_folder, data, TINY.with_(layer=9))


# ------------------------------------------------------------------ precomputed runs
def test_kept_runs_are_of_this_code_and_model(ds):
    """What notebook 3 shows from results/ was made with these recipes, this model and this simulation, and is complete."""
    import tune_grid

    kept = results.load_results(ROOT / "results" / "tuning").set_index("about.condition")
    wanted = tune_grid.conditions()
    assert set(wanted) == set(kept.index)
    pico = SpeechEncoder.from_pretrained("wavlm-pico", device="cpu").fingerprint()
    for name, (recipe, where, which, keep_adapter) in wanted.items():
        about = {
            "recipe_hash": recipe.hash(),
            "recipe_base_hash": RECIPES[recipe.name].hash(),
            "tuned_voxels": where,
            "control": which,
        }
        assert results.fits(
            kept.file[name], ds, model=pico, seed=recipe.seed, stories=tune_grid.STORIES, **about
        ), name
        if keep_adapter:
            folder = ROOT / "results" / "adapters" / Path(kept.file[name]).stem
            assert (folder / "adapter_model.safetensors").stat().st_size < 500_000
    seeds = {
        k: json.loads(recipe.to_json()) | {"seed": 0, "name": ""}
        for k, (recipe, *_) in wanted.items()
        if k.startswith("control")
    }
    base = json.loads(wanted["whole cortex"][0].to_json()) | {"name": ""}
    assert all(v == base for v in seeds.values())  # a control differs in the responses alone
