"""Every notebook runs with `lebel.yaml`, cut down to a made-up tree of the real one's shape: with anatomy, and without."""

import nbformat
import pytest
import run_notebooks
import yaml
from conftest import ROOT
from lebel_tree import make_tree

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {  # what makes lebel.yaml small; a parameter that is not named here keeps its value
    "speech_model": "wavlm-pico", "layer": -100, "window": 10.0, "hop": 8.0, "thin": 2, "n_train": 5, "n_judge": 5, "n_stories": 3, "epochs": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("real") / "made-up-ds003020", ("UTS03", "UTS09"), anatomy=True)


@pytest.mark.parametrize("subject", ["UTS03", "UTS09"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_on_a_tree_like_the_real_one(path, subject, tree, tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))
    shared = yaml.safe_load((ROOT / "notebooks/params/lebel.yaml").read_text())
    assert set(SMALL) <= set(shared)
    given = shared | SMALL | {"dataset": str(tree), "subjects": [subject]}
    own = run_notebooks.parameters(path)
    run_notebooks.run_one(path, {k: v for k, v in given.items() if k in own}, tmp_path / "out")
    text = "\n".join(str(o.get("text", "")) for c in nbformat.read(tmp_path / "out" / path.name, 4).cells for o in c.get("outputs", []))
    assert "recordings" in text and "simulated SIM" not in text
