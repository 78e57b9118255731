"""Recipes as data, and their losses."""

import hashlib
import json

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
        ({"stages": (("all", 1), ("readout", 1))}, "expected it first"),
        ({"pooling": "frames", "resampling": "clip"}, "one vector"),
    ],
)
def test_impossible_recipes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TINY.with_(**change)


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
