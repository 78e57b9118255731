"""A reader's own data: a tree written from arrays, of another TR, without repeats, TextGrids and anatomy, runs through the notebooks."""

import subprocess
import sys

import nbformat
import numpy as np
import pytest
import run_notebooks
import yaml
from conftest import ROOT

from brainlib import datasets

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"subjects": ["S1"], "n_train": 5, "n_tuning_stories": 3, "epochs": 1}
SMALL |= {"n_voices": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("own") / "own_data"
    script = ROOT / "tools" / "own_tree.py"
    subprocess.run([sys.executable, str(script), str(root)], check=True)
    return root


def test_rows_lie_on_the_clock_of_the_tree(folder):
    ds = datasets.load(str(folder))
    story = ds.story("story0")
    assert ds.tr == 1.5 and not ds.simulated
    np.testing.assert_allclose(story.tr_times, 0.75 + 1.5 * np.arange(40))
    assert story.tr_times[-1] < story.duration == 60
    assert ds.responses("S1", "story0").shape == (40, 30)


def test_a_story_that_was_heard_once_is_the_test_set_and_has_no_ceiling(folder):
    ds = datasets.load(str(folder))
    assert ds.split["test"] == ["story7"] and ds.split["val"] == ["story5", "story6"]
    assert not ds.has_repeats("S1") and not ds.has_surface("S1") and ds.rois("S1") == {}
    with pytest.raises(ValueError, match="repeat"):
        ds.noise_ceiling("S1")


def test_a_story_without_textgrid_has_sound_and_no_words(folder):
    ds = datasets.load(str(folder))
    assert len(ds.stories) == 8 and not ds.has_words("story0")
    with pytest.raises(FileNotFoundError, match="story0.TextGrid"):
        _ = ds.story("story0").words


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_on_own_data_and_leaves_out_what_it_cannot_do(
    path, folder, model_folder, tmp_path
):
    profile = yaml.safe_load((ROOT / f"notebooks/params/quick/{path.stem}.yaml").read_text())
    small = SMALL | {"speech_model": model_folder}
    own = {k: v for k, v in small.items() if k in profile}
    values = profile | own | {"dataset": str(folder), "out": str(tmp_path / "numbers")}
    run_notebooks.run_one(path, values, tmp_path / "out")
    cells = nbformat.read(tmp_path / "out" / path.name, 4).cells
    text = "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))
    assert "Dataset('own_data': recordings" in text and "simulated SIM" not in text
    assert "left out" in text.lower() or "leaves out" in text.lower() or "without" in text.lower()
