"""A reader's own data: a tree written from arrays, of another TR, without repeats, TextGrids and anatomy, runs through the notebooks."""

import shutil
import subprocess
import sys

import h5py
import nbformat
import nibabel
import numpy as np
import own_arrays
import own_tree
import pytest
import run_notebooks
import scipy.io
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


def test_a_file_of_other_voxels_or_transposed_is_refused(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "tree")
    path = root / "derivative/preprocessed_data/S1/story3.hf5"
    y = np.random.default_rng(0).normal(size=(40, 30))
    for wrong in (y.T, y[:, :29]):
        with h5py.File(path, "w") as file:
            file["data"] = wrong
        ds = datasets.load(str(root))
        ds.responses("S1", "story0")
        with pytest.raises(ValueError, match="story3.hf5: (40|29) voxels, but .*story0.hf5 has 30"):
            ds.responses("S1", "story3")


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


# ------------------------------------------------------------------ from other formats
def test_matlab_gives_trs_by_voxels_from_both_kinds_of_file(tmp_path):
    y = np.arange(12.0).reshape(4, 3)  # 4 TRs, 3 voxels
    scipy.io.savemat(tmp_path / "old.mat", {"Y": y})
    with h5py.File(tmp_path / "new.mat", "w") as file:
        file["Y"] = y.T  # as -v7.3 writes it
    for name in ("old", "new"):
        np.testing.assert_array_equal(own_arrays.from_matlab(tmp_path / f"{name}.mat", "Y"), y)


def image(values):
    return nibabel.Nifti1Image(np.asarray(values, np.float32), 4 * np.eye(4))


def test_a_scan_gives_the_voxels_of_its_mask_in_one_order():
    mask = np.zeros((3, 3, 3))
    mask[0, 1, 2] = mask[2, 0, 1] = 1
    bold = np.random.default_rng(0).normal(size=(3, 3, 3, 8))
    rows = own_arrays.from_nifti(image(bold), image(mask), n_start=2, n_end=1)
    np.testing.assert_allclose(rows, bold[mask > 0].T[2:7], rtol=1e-5)
    region = np.zeros((3, 3, 3))
    region[2] = 1
    assert own_arrays.in_region(image(region), image(mask)).tolist() == [False, True]


@pytest.mark.parametrize("cut", [{"n_end": 12}, {"n_start": -1}, {"n_start": 5, "n_end": 5}])
def test_no_more_volumes_are_cut_off_than_there_are(cut):
    mask, bold = np.ones((3, 3, 3)), np.ones((3, 3, 3, 10))
    with pytest.raises(ValueError, match="of 10 volumes cannot be cut off"):
        own_arrays.from_nifti(image(bold), image(mask), **cut)


@pytest.mark.parametrize("times", [(-0.1, 0.4), (0.5, 0.5), (100, 500)])
def test_words_outside_their_story_are_refused(tmp_path, times):
    with pytest.raises(ValueError, match="hello: .* in a story from 0 to 60.0 s"):
        own_arrays.write_textgrid(tmp_path / "a.TextGrid", [(*times, "hello")], [], end=60.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("largest", [32_767.0, np.nan])
def test_sound_that_would_be_clipped_is_refused(tmp_path, largest):
    with pytest.raises(ValueError, match="story1: sound beyond -1 to 1"):
        own_tree.write_tree(tmp_path / "tree", {"story1": np.array([0.1, largest])}, {})


def test_a_volume_in_mni_space_lands_on_the_right_side():
    shape, affine = (50, 60, 50), np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -98, -134, -72
    x = affine[0, 0] * np.arange(shape[0]) + affine[0, 3]  # mm, left is negative
    volume = np.broadcast_to(x[:, None, None, None], (*shape, 3))
    rows = own_arrays.from_mni(nibabel.Nifti1Image(volume.astype(np.float32), affine), n_start=1)
    assert rows.shape == (2, 20484)
    assert rows[0, :10242].mean() < -20 and rows[0, 10242:].mean() > 20


def test_words_of_a_table_become_a_textgrid_that_is_read(folder):
    words = [(0.5, 1.0, "hello"), (1.0, 1.4, "there")]
    phones = [(0.5, 0.7, "HH"), (0.7, 1.0, "AH0")]
    path = folder / "derivative/TextGrids/story0.TextGrid"
    path.parent.mkdir(exist_ok=True)
    own_arrays.write_textgrid(path, words, phones, end=60.0)
    story = datasets.load(str(folder)).story("story0")
    assert list(story.words.text) == ["hello", "there"]
    np.testing.assert_allclose(story.words.start, [0.5, 1.0])
    path.unlink()
