"""Every notebook runs with `lebel.yaml`, cut down: `lebel2023` of made-up files of the real shape, fetched from a folder as a mirror."""

import shutil

import nbformat
import pytest
import run_notebooks
import yaml
from conftest import ROOT
from lebel_tree import make_tree, manifest_of

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {  # what makes lebel.yaml small; a parameter that is not named here keeps its value
    "layer": None,
    "window": 10.0,
    "hop": 8.0,
    "voxel_step": 2,
    "n_train": 5,
    "n_voices": 1,
    "n_tuning_stories": 3,
    "epochs": 1,
}


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    folder = make_tree(
        tmp_path_factory.mktemp("real") / "made-up-ds003020", ("UTS03", "UTS09"), anatomy=True
    )
    manifest_of(folder, folder.parent / "manifest.csv")
    return folder


RUNS = [(path, subject) for path in NOTEBOOKS for subject in ("UTS03", "UTS09")]
# responses of the second are read by notebooks 1 to 4; the later ones ask models of the zoo, which has none here
RUNS = [(path, subject) for path, subject in RUNS if subject == "UTS03" or path.stem < "05"]


@pytest.mark.parametrize("path, subject", RUNS, ids=[f"{p.stem}-{s}" for p, s in RUNS])
def test_a_notebook_runs_on_a_tree_like_the_real_one(
    path, subject, mirror, model_folder, tmp_path, monkeypatch
):
    here = tmp_path / "lebel2023"
    here.mkdir()
    shutil.copy(mirror.parent / "manifest.csv", here)  # in the place of the real one's
    for name, value in (("CACHE", tmp_path / "cache"), ("LEBEL", here), ("MIRROR", mirror)):
        monkeypatch.setenv(f"BRAINLIB_{name}", str(value))
    shared = yaml.safe_load((ROOT / "notebooks/params/lebel.yaml").read_text())
    small = SMALL | {"speech_model": model_folder}
    assert set(small) <= set(shared)
    group = [subject, "UTS09" if subject == "UTS03" else "UTS03"]  # what notebook 4 is about
    subjects = group if path.stem == "04_cross_subject" else [subject]
    parameters = shared | small | {"subjects": subjects}
    assert parameters["dataset"] == "lebel2023"
    own = run_notebooks.parameters(path)
    run_notebooks.run_one(path, {k: v for k, v in parameters.items() if k in own}, tmp_path / "out")
    text = "\n".join(
        str(o.get("text", ""))
        for c in nbformat.read(tmp_path / "out" / path.name, 4).cells
        for o in c.get("outputs", [])
    )
    assert (
        "Dataset('lebel2023': recordings" in text
        and "ds003020: fetching" in text
        and "simulated SIM" not in text
    )
    assert (here / f"derivative/preprocessed_data/{subject}/wheretheressmoke.hf5").exists()
