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
