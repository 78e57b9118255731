"""Recipes as data, and their losses."""

import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from tiny import TINY

from brainlib import recipes
from brainlib.recipes import RECIPES, Recipe, get_recipe

LOSSES = {
    "spatial": recipes.spatial_loss,
    "temporal": recipes.temporal_loss,
    "mse": recipes.mse_loss,
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


def test_losses_are_minus_pearsons_correlation_however_large_the_numbers_are():
    rng = np.random.default_rng(0)
    for scale in (1e-8, 1.0, 1e8):
        a, b = scale * rng.standard_normal((2, 5, 7)) + 0.3 * scale
        b = 3 * b / scale
        rows = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b)])
        columns = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T)])
        a, b = torch.tensor(a), torch.tensor(b)
        for one, other in ((a, b), (b, a)):
            assert float(recipes.spatial_loss(one, other)) == pytest.approx(-rows)
            assert float(recipes.temporal_loss(one, other)) == pytest.approx(-columns)


def test_a_row_is_constant_where_it_turns_by_less_than_a_millionth_of_its_size():
    turn = torch.tensor([[-1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
    for turning, wanted in ((0.9e-6, 0.0), (1.1e-6, -1.0)):
        row = 5 * (1 + turning * turn)
        assert float(recipes.spatial_loss(row, turn)) == pytest.approx(wanted, abs=1e-6)
        assert float(recipes.spatial_loss(turn, row)) == pytest.approx(wanted, abs=1e-6)


# ------------------------------------------------------------------ recipes
# What a recipe is that states no more than its window: LoRA as brain-wavlm's, an ordinary read-out, no tricks.
DEFAULTS = {
    "pooling": "frames",
    "resampling": "lanczos",
    "layer": -1,
    "delays": (1, 2, 3, 4),
    "adapter": "lora",
    "rank": 8,
    "alpha": 16.0,
    "dropout": 0.0,
    "targets": ("q_proj", "k_proj", "v_proj"),
    "tuned_layers": None,
    "readout": "linear",
    "bottleneck": 100,
    "warm_start": False,
    "cross_fit": 0,
    "ridge_scale": 1.0,
    "loss": "mse",
    "l2": 0.0,
    "stages": (("all", 10),),
    "lr": 1e-4,
    "lr_readout": 1e-4,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0.0,
    "clip_norm": 1.0,
    "patience": 0,
    "trs_per_step": 50,
    "voxels": "all",
    "backbone_dropout": False,
    "seed": 0,
}
WARMED_UP = {"adapter": "full", "schedule": "linear", "warmup": 0.1}
ONE_CLIP_PER_TR = {"hop": 2.0, "pooling": "mean", "resampling": "clip", "delays": (0,)}
LOW_RANK = {"dropout": 0.1, "readout": "lowrank", "loss": "spatial"}
QUICK = {"window": 10.0, "hop": 8.0, "voxels": "ceiling > 0.5", "stages": (("all", 3),)}
PUBLISHED = {
    # Vattikonda et al. 2025, and fine-tuning scripts that a co-author published with later work
    "brainwavlm": LOW_RANK
    | {"window": 2.0, "hop": 0.25, "pooling": "first", "layer": 9, "rank": 4, "alpha": 4.0}
    | {"clip_norm": 0.0, "trs_per_step": 10, "stages": (("all", 20),)},
    # Moussa, Klakow and Toneva 2025, and their release
    "braintuning": WARMED_UP
    | ONE_CLIP_PER_TR
    | {"window": 10.0, "lr": 5e-5, "stages": (("all", 30),), "patience": 3, "clip_norm": 0.0}
    | {"trs_per_step": 128, "voxels": "ceiling > 0.4"},
    # Li et al. 2024: two stages and the penalty on the weights are theirs, the numbers are the book's
    "refine": WARMED_UP
    | ONE_CLIP_PER_TR
    | {"window": 9.0, "lr": 1e-5, "lr_readout": 1e-3, "stages": (("readout", 5), ("all", 10))}
    | {"l2": 1e-6, "patience": 3, "trs_per_step": 128},
    # the book's own, chosen on validation stories: benchmarks/README.md
    "brainwavlm-quick": QUICK | LOW_RANK | {"warm_start": True, "lr": 2e-3},
    "braintuning-quick": QUICK | WARMED_UP | {"warm_start": True},
    "refine-quick": QUICK
    | WARMED_UP
    | {"warm_start": True, "l2": 1e-6, "lr": 5e-5, "stages": (("readout", 1), ("all", 3))},
    "closedform-quick": QUICK | {"readout": "ridge", "lr": 2e-4},
    "crossfit-quick": QUICK | {"readout": "ridge", "lr": 2e-4, "cross_fit": 3},
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_values_of_their_sources(name):
    assert asdict(RECIPES[name]) == {"name": name} | DEFAULTS | PUBLISHED[name]


def test_what_a_recipe_does_not_state_has_the_values_that_hashes_count_on():
    assert asdict(Recipe("any", 2, 1)) == {"name": "any", "window": 2, "hop": 1} | DEFAULTS


def test_epochs_belong_to_stages_in_turn_and_later_ones_to_the_last():
    recipe = TINY.with_(stages=(("readout", 2), ("all", 3)))
    assert recipe.epochs == 5
    assert [recipe.stage(epoch) for epoch in range(7)] == ["readout"] * 2 + ["all"] * 5
    alone = TINY.with_(stages=(("readout", 1),))
    assert [alone.stage(epoch) for epoch in (0, 1)] == ["readout"] * 2


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


@pytest.mark.parametrize(
    "change, message",
    [
        ({"loss": "huber"}, "loss is 'huber'"),
        ({"stages": (("head", 2),)}, "stages"),
        ({"hop": 9.0}, "hop <= window"),
        ({"cross_fit": 1}, "at least 2 folds"),
        ({"stages": (("all", 1), ("readout", 1))}, "expected it first"),
        ({"pooling": "frames", "resampling": "clip"}, "one vector"),
        ({"cross_fit": -2}, "cross_fit -2"),
        ({"stages": ()}, "expected pairs"),
        ({"stages": (("all", 0),)}, "expected pairs"),
        ({"stages": (("readout", 0), ("all", 1))}, "expected pairs"),
        ({"hop": 0.0}, "0 < hop"),
        ({"trs_per_step": 1}, "at least 2"),
    ],
)
def test_impossible_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TINY.with_(**change)


def test_the_smallest_that_is_allowed_is_allowed():
    assert TINY.with_(hop=TINY.window, trs_per_step=2, stages=(("readout", 1), ("all", 1)))
    assert RECIPES["crossfit-quick"].with_(cross_fit=2).cross_fit == 2
    assert RECIPES["crossfit-quick"].with_(cross_fit=0).cross_fit == 0
    assert TINY.with_(hop=0.1).hop == 0.1


@pytest.mark.parametrize(
    "recipe, change, message",
    [
        ("braintuning", {"rank": 4}, "rank=4 does nothing where adapter is 'full'"),
        ("brainwavlm", {"warmup": 0.1}, "warmup=0.1 does nothing where schedule is 'constant'"),
        ("braintuning", {"bottleneck": 5}, "bottleneck=5 does nothing where readout is 'linear'"),
        ("crossfit-quick", {"lr_readout": 0.1}, "lr_readout=0.1 does nothing where readout is"),
        ("crossfit-quick", {"adapter": "none", "lr": 0.1}, "lr=0.1 does nothing where adapter is"),
        ("crossfit-quick", {"stages": (("readout", 1),)}, "never trained"),
    ],
)
def test_an_option_that_cannot_act_is_refused(recipe, change, message):
    with pytest.raises(ValueError, match=message):
        RECIPES[recipe].with_(**change)


def test_what_a_change_puts_out_of_action_goes_back_to_its_default():
    full = RECIPES["brainwavlm"].with_(adapter="full")
    assert (full.rank, full.dropout) == (8, 0.0) and full.lr == RECIPES["brainwavlm"].lr
    assert RECIPES["brainwavlm"].with_(adapter="full", rank=8) == full
    with pytest.raises(TypeError, match="speed"):
        full.with_(speed=3)


def test_a_hash_is_of_what_differs_from_the_defaults_so_that_a_new_option_keeps_old_runs():
    values = {"window": 6.0, "hop": 4.0, "lr": 1e-2}
    text = json.dumps(dict(sorted(values.items())))
    expected = hashlib.sha256(text.encode()).hexdigest()[:12]
    recipe = Recipe(name="any", **values)
    assert recipe.hash() == expected == recipe.with_(weight_decay=0.0, tuned_layers=None).hash()
    assert len({expected, *(recipe.with_(**c).hash() for c in NEW)}) == 1 + len(NEW)


NEW = ({"weight_decay": 0.1}, {"tuned_layers": (0,)}, {"schedule": "cosine"})


def test_a_recipe_is_found_by_name_or_in_a_file(tmp_path):
    assert get_recipe("crossfit-quick") is RECIPES["crossfit-quick"]
    mine = RECIPES["refine"].with_(name="mine", weight_decay=0.01, tuned_layers=(3, 4))
    (tmp_path / "mine.json").write_text(mine.to_json())
    assert get_recipe(tmp_path / "mine.json") == get_recipe(str(tmp_path / "mine.json")) == mine
    with pytest.raises(KeyError, match="did you mean brainwavlm"):
        get_recipe("brainwavelm")
    with pytest.raises(FileNotFoundError, match="absent.json"):
        get_recipe(tmp_path / "absent.json")
