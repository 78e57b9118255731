"""What tuning changed inside a model, against values worked out by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TINY, encoder, tuned

from brainlib import inside
from brainlib.speech import SpeechEncoder
from brainlib.tuning import add_lora


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))


def at(table, name):
    """The row of one parameter."""
    return table.set_index("parameter").loc[name]


def test_a_doubled_weight_has_changed_by_its_own_norm(model_folder):
    base, other = encoder(model_folder), encoder(model_folder)
    name = "encoder.layers.1.attention.v_proj.weight"
    with torch.no_grad():
        other.model.get_parameter(name).mul_(2)
    table = inside.parameter_change(base, other)
    row = at(table, name)
    assert row.relative == pytest.approx(1) and row.change == pytest.approx(row.norm)
    assert (row.layer, row.kind) == (2, "v")
    assert (table[table.parameter != name].change == 0).all()
    bias = at(table, name.replace("weight", "bias"))
    assert bias.norm == 0 and np.isnan(bias.relative)  # nothing to be relative to


def test_an_adapter_counts_as_merged_and_is_left_as_it_is(model_folder):
    base, adapted = encoder(model_folder), encoder(model_folder)
    recipe = TINY.with_(rank=2, alpha=6.0)  # the update is 6 / 2 times B A
    peft = add_lora(adapted, recipe)
    module = adapted.model.encoder.layers[0].attention.q_proj
    b, a = module.lora_B["default"].weight, module.lora_A["default"].weight
    with torch.no_grad():
        b.copy_(torch.eye(24)[:, :2])
        a.copy_(torch.tensor([[3.0], [4.0]]) * torch.eye(24)[:2])  # B A holds 3 and 4 alone
    name = "encoder.layers.0.attention.q_proj.weight"
    table = inside.parameter_change(base, adapted)
    assert at(table, name).change == pytest.approx(3 * 5, rel=1e-5)
    assert (
        set(table.parameter[table.change > 0]) == {name}
        and (table.layer[table.change > 0] == 1).all()
    )
    assert not module.merged
    peft.merge_and_unload()
    merged = inside.parameter_change(base, adapted)
    assert list(merged.parameter) == list(table.parameter)
    np.testing.assert_allclose(merged.change, table.change, rtol=1e-5)


def test_a_group_of_parameters_is_one_long_vector():
    table = pd.DataFrame(
        {
            "layer": [1, 1, 2],
            "kind": ["q", "q", "k"],
            "change": [3.0, 4.0, 0.0],
            "norm": [6.0, 8.0, 0.0],
        }
    )
    relative = inside.relative_change(table, ["layer", "kind"])
    assert relative[1, "q"] == pytest.approx(0.5) and np.isnan(relative[2, "k"])
    assert inside.relative_change(table, "layer")[1] == pytest.approx(0.5)
    diverged = table.assign(change=[3.0, np.nan, 0.0])
    assert np.isnan(inside.relative_change(diverged, "layer")[1])  # and not "unchanged"


def test_every_parameter_of_a_real_model_has_a_layer_and_a_kind():
    whisper = SpeechEncoder.from_pretrained("whisper-tiny.en")
    table = inside.parameter_change(whisper, whisper)
    assert (table.change == 0).all() and set(table.layer) == {0, 1, 2, 3, 4}
    kinds = ["q", "k", "v", "out", "feed-forward", "norm"]
    blocks = table[(table.layer > 0) & table.parameter.str.endswith("weight")]
    assert sorted(blocks.kind.unique()) == sorted(kinds)
    assert at(table, "layer_norm.weight").layer == 4  # it follows the last block
    assert set(table.kind[table.layer == 0]) == {"convolution", "position"}


def test_models_that_differ_in_shape_are_refused(model_folder):
    pico = SpeechEncoder.from_pretrained("wavlm-pico")
    with pytest.raises(ValueError, match="expected two models of one architecture"):
        inside.parameter_change(encoder(model_folder), pico)


def test_full_tuning_moves_all_but_the_convolutions(model_folder, data):
    tuner = tuned(model_folder, data, TINY.with_(adapter="full", lr=1e-3), keep="last")
    table = inside.parameter_change(encoder(model_folder), tuner.encoder)
    moved = inside.relative_change(table, "kind")
    assert moved["convolution"] == 0
    assert (moved[["q", "k", "v", "out", "feed-forward", "norm"]] > 0).all()


# ------------------------------------------------------------------ hidden states
def test_alignment_by_hand_and_what_it_does_not_see():
    x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # X'X = 2 I
    y = x[:, :1]  # half of it: |Y'X|^2 = 4, |X'X| = 2 sqrt 2, |Y'Y| = 2
    assert inside.centred_kernel_alignment(x, y) == pytest.approx(4 / (2 * np.sqrt(2) * 2))
    assert inside.centred_kernel_alignment(x[:, :1], x[:, 1:]) == pytest.approx(0)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((300, 5))
    turned = 3 * z @ np.linalg.qr(rng.standard_normal((5, 5)))[0] + 7
    assert inside.centred_kernel_alignment(z, turned) == pytest.approx(1)
    stretched = z * [10, 1, 1, 1, 1]  # a linear map that is no rotation is seen
    assert inside.centred_kernel_alignment(z, stretched) < 0.8


def test_alignment_is_that_of_the_centred_kernels():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((40, 6)), rng.standard_normal((40, 3))
    centre = np.eye(40) - 1 / 40
    k, other = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre
    wanted = np.sum(k * other) / np.sqrt(np.sum(k * k) * np.sum(other * other))
    assert inside.centred_kernel_alignment(x, y) == pytest.approx(wanted)


def test_alignment_of_a_constant_is_no_number_and_of_other_sound_refused():
    constant = np.full((9, 2), 0.1)  # whose mean is not exactly 0.1
    assert np.isnan(inside.centred_kernel_alignment(constant, np.eye(9)))
    with pytest.raises(ValueError, match="9 and 8 samples; expected the same sound"):
        inside.centred_kernel_alignment(np.eye(9), np.eye(8))


def test_effective_dimension_counts_directions_that_vary_alike():
    corners = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], float)
    assert inside.effective_dimension(corners) == pytest.approx(3)
    assert inside.effective_dimension(corners * [1, 1, 0] + 5) == pytest.approx(2)
    # variances 4, 1, 1: 6 squared over 16 + 1 + 1
    assert inside.effective_dimension(corners * [2, 1, 1]) == pytest.approx(36 / 18)
    assert np.isnan(inside.effective_dimension(np.full((9, 3), 0.1)))


def manifold(name, n=2000):
    """Points of a known dimension in thirty dimensions, turned at random."""
    rng = np.random.default_rng(3)
    if name == "ball of 5":
        x = rng.standard_normal((n, 5))
    elif name == "rolled sheet":  # curved, of dimension 2
        angle = 1.5 * np.pi * (1 + 2 * rng.random(n))
        x = np.stack([angle * np.cos(angle), 21 * rng.random(n), angle * np.sin(angle)], 1)
    else:  # a circle
        angle = 2 * np.pi * rng.random(n)
        x = np.stack([np.cos(angle), np.sin(angle)], 1)
    return x @ np.linalg.qr(rng.standard_normal((30, x.shape[1])))[0].T


@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize("name, dimension", [("ball of 5", 5), ("rolled sheet", 2), ("circle", 1)])
def test_intrinsic_dimension_of_known_manifolds(name, dimension, k):
    found = inside.intrinsic_dimension(manifold(name), k=k)
    assert found == pytest.approx(dimension, rel=0.1)


def test_effective_and_intrinsic_dimension_of_a_rolled_sheet_differ():
    sheet = manifold("rolled sheet")
    assert inside.effective_dimension(sheet) > 2.5 > inside.intrinsic_dimension(sheet)


def test_two_nearest_neighbours_by_hand():
    # on a line: 0, 1, 3, 7. Ratios of the distances to second and first neighbour: 3, 2, 3/2, 6/4
    x = np.array([[0.0], [1], [3], [7]])
    wanted = 4 / np.log(3 * 2 * 1.5 * 1.5)
    assert inside.intrinsic_dimension(x) == pytest.approx(wanted, rel=1e-3)


def test_noise_is_seen_at_the_small_scale_alone():
    rng = np.random.default_rng(5)
    noisy = manifold("circle") + 0.003 * rng.standard_normal((2000, 30))
    small, large = (inside.intrinsic_dimension(noisy, k=k) for k in (1, 32))
    assert small > 3 and large < 1.5


def test_too_few_or_equal_samples_are_refused():
    with pytest.raises(ValueError, match="8 samples; expected more than 9 for k=4"):
        inside.intrinsic_dimension(np.random.default_rng(0).random((8, 2)), k=4)
    with pytest.raises(ValueError, match="some samples are equal"):
        inside.intrinsic_dimension(np.repeat(np.eye(5), 2, 0))
