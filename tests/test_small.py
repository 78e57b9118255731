"""runtime, surface and results: short files, tested together."""

import json
import re
import types

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from brainlib import results, runtime, surface

matplotlib.use("Agg")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with pytest.raises(RuntimeError), runtime.atomic(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert not path.exists() and list(path.parent.iterdir()) == []
    with runtime.atomic(path) as part:
        part.write_text("whole")
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_in_one_step(tmp_path):
    for content in ("one", "two"):
        with runtime.atomic(tmp_path / "folder") as part:
            part.mkdir()
            (part / content).write_text(content)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["two"]


def test_seeds_repeat_and_an_absent_device_is_named():
    runtime.seed_everything(3)
    a = np.random.rand(3)
    runtime.seed_everything(3)
    np.testing.assert_array_equal(a, np.random.rand(3))
    assert runtime.pick_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device 'tpu' is not on this machine"):
        runtime.pick_device("tpu")


def test_the_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "c"))
    assert (
        runtime.cache_dir("a", "b") == tmp_path / "c" / "a" / "b" and (tmp_path / "c/a/b").is_dir()
    )


def test_track_prints_time_and_memory(capsys):
    with runtime.track("step"):
        pass
    seconds, peak = re.fullmatch(
        r"step: (\d+\.\d) s, peak memory (\d+) MB\n", capsys.readouterr().out
    ).groups()
    assert float(seconds) < 5 and int(peak) > 10


# ------------------------------------------------------------------ surface
def test_vertices_without_a_voxel_take_their_nearest_neighbour(ds):
    vertices = ds.vertices("SIM01")
    filled = surface.to_fsaverage5(ds, "SIM01", np.arange(len(vertices)))
    assert filled.shape == (20484,)
    np.testing.assert_array_equal(filled[vertices], np.arange(len(vertices)))
    wall = np.isnan(filled)
    assert 0.04 < wall.mean() < 0.1
    assert set(filled[:10242][~wall[:10242]]) <= set(
        np.flatnonzero(vertices < 10242)
    )  # no value crosses the hemispheres
    with pytest.raises(ValueError, match="one value per voxel"):
        surface.to_fsaverage5(ds, "SIM01", np.zeros(5))


def test_pictures_say_simulated_by_the_data_set_s_flag(ds):
    values = ds.truth("SIM01").snr.to_numpy()
    axes = surface.plot_cortex(ds, "SIM01", values, title="signal", unit="share")
    assert "simulated" in axes[0].figure.get_suptitle() and len(axes) == 4
    real = types.SimpleNamespace(name="lebel2023", simulated=False)
    assert surface.label(real, "x") == "x (lebel2023)"
    page = surface.view_cortex(ds, "SIM01", values, title="signal").html
    assert "simulated" in page


# ------------------------------------------------------------------ results
def test_a_result_keeps_its_provenance_and_comes_back(tmp_path, ds):
    entry = results.record(
        tmp_path / "a.json",
        {
            "r": np.float32(0.5),
            "per_voxel": np.array([1.0, np.nan]),
            "table": pd.Series({"a": np.int64(2)}),
            "tensor": torch.tensor([True, False]),
        },
        dataset=ds,
        subject="SIM01",
    )
    assert entry["numbers"] == {
        "r": 0.5,
        "per_voxel": [1.0, None],
        "table": {"a": 2},
        "tensor": [True, False],
    }
    assert entry["dataset"] == {
        "name": "fireside",
        "simulated": True,
        "NoiseLevel": "clean",
        "SimulationVersion": ds.description["SimulationVersion"],
    }
    table = results.load_results(tmp_path)
    assert (
        table.loc[0, "numbers.r"] == 0.5
        and table.loc[0, "about.subject"] == "SIM01"
        and table.loc[0, "provenance.packages.numpy"] == np.__version__
    )


def test_what_is_no_result_is_refused(tmp_path):
    with pytest.raises(ValueError, match="end the name in .json"):
        results.record(tmp_path / "a.txt", {})
    (tmp_path / "b.json").write_text(json.dumps({"numbers": {}}))
    with pytest.raises(ValueError, match="b.json: without"):
        results.load_results(tmp_path)
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match="b.json: cannot be read"):
        results.load_results(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        results.load_results(tmp_path / "missing.json")


def test_a_result_of_other_data_or_settings_is_not_read(tmp_path, ds):
    results.record(tmp_path / "r.json", {"r": 0.5}, dataset=ds, recipe="abc", control=None)

    def read(dataset=ds, **about):
        return results.precomputed(tmp_path / "r.json", None, dataset=dataset, **about)

    assert read(recipe="abc", control=None) == {"r": 0.5}
    assert read(recipe="abd") is None
    assert read(recipe="abc", seed=3) is None
    other = types.SimpleNamespace(
        name=ds.name,
        simulated=ds.simulated,
        description=dict(ds.description, SimulationVersion="0-old"),
    )
    assert read(other, recipe="abc") is None
