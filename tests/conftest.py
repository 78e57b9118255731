import json
import os
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from lebel_tree import zscored

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may ask a hub
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

GRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = {end}
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "phone"
        xmin = 0
        xmax = {end}
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 1
            text = "HH"
        intervals [2]:
            xmin = 1
            xmax = 2
            text = "AY1"
        intervals [3]:
            xmin = 2
            xmax = {end}
            text = "sp"
    item [2]:
        class = "IntervalTier"
        name = "word"
        xmin = 0
        xmax = {end}
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 2
            text = "hi"
        intervals [2]:
            xmin = 2
            xmax = {end}
            text = "sp"
"""


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: seconds each; leave them out by -m 'not slow'")


TOGETHER = ("test_fireside", "test_workflow")  # the files whose names begin so


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of `pytest -n 2`: fireside's tests in one process, which computes its features once; these and the workflow's first,
    as they take longest; then every other test by itself."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = Path(nodeid.split("::")[0]).name
            return next((name for name in TOGETHER if file.startswith(name)), nodeid)

    return Scheduling(config, log)


def write_responses(path, data, repeats=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"] = data
        if repeats is not None:
            file["individual_repeats"] = repeats
        for key, values in more.items():
            file[key] = values.astype(np.float32)


@pytest.fixture
def tree(tmp_path):
    """A tree of four stories of 40 s and one subject of six voxels, in the layout of ds003020; `d` was presented three times."""
    rng = np.random.default_rng(0)
    for name in "abcd":
        for folder in ("stimuli", "derivative/TextGrids"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        soundfile.write(
            tmp_path / f"stimuli/{name}.wav", 0.1 * rng.standard_normal(40 * 16_000), 16_000
        )
        (tmp_path / f"derivative/TextGrids/{name}.TextGrid").write_text(GRID.format(end=40))
        repeats = zscored(rng.standard_normal((3 if name == "d" else 1, 10, 6)))
        data = repeats.mean(0)
        write_responses(
            tmp_path / f"derivative/preprocessed_data/UTS01/{name}.hf5",
            data,
            repeats if name == "d" else None,
        )
    (tmp_path / "derivative/respdict.json").write_text(json.dumps(dict.fromkeys("abcd", 30)))
    return tmp_path


@pytest.fixture
def simulated(tmp_path):
    """A made-up simulated subject S1 of five voxels, ten stories of 100 s with a loudness that varies; no responses yet."""
    from brainlib import datasets

    rng, root = np.random.default_rng(0), tmp_path / "simulated"
    split = {"train": list("abcdef"), "val": ["g"], "test": ["h", "i", "j"]}
    for folder in ("stimuli", "derivative/TextGrids", "derivative/truth"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in "abcdefghij":
        loudness = np.repeat(rng.uniform(0.01, 0.2, 100), 16_000)
        audio = loudness * rng.standard_normal(len(loudness))
        soundfile.write(root / f"stimuli/{name}.wav", audio, 16_000)
        (root / f"derivative/TextGrids/{name}.TextGrid").write_text(GRID.format(end=100))
    truth = {"acoustic": [1, 1, 0, 0, 0], "meaning": [0, 0, 1, 1, 0], "snr": [0.5] * 4 + [0]}
    truth |= {"hrf_peak": [5] * 5, "shared": [9] * 5}  # more than any level, and none
    np.savez(root / "derivative/truth/S1.npz", **truth)
    (root / "derivative/respdict.json").write_text(json.dumps(dict.fromkeys("abcdefghij", 60)))
    about = {"Name": "made up", "Simulated": True, "Subjects": ["S1"], "Split": split}
    (root / "dataset_description.json").write_text(json.dumps(about))
    return datasets.load(str(root))


@pytest.fixture(scope="session")
def fireside_root(tmp_path_factory):
    """One folder for all processes of pytest-xdist, so that a subject is built once; fireside's own lock sees to that."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "fireside"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture(scope="session")
def ds(fireside_root):
    from brainlib import datasets

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return datasets.load("fireside", root=fireside_root / "clean")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A WavLM of two layers with random weights."""
    import torch
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

    torch.manual_seed(0)
    small = dict(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(8,) * 7,
    )
    folder = tmp_path_factory.mktemp("wavlm")
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(
        folder
    )  # as WavLM-base-plus has it
    WavLMModel(
        WavLMConfig(**small, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(tree):
    """Two subjects; voxels follow the loudness of the sound a little."""
    from brainlib import datasets

    rng = np.random.default_rng(1)
    for subject in ("UTS01", "UTS02"):
        for name in "abcd":
            repeats = rng.standard_normal((3, 10, 6)) if name == "d" else None
            write_responses(
                tree / f"derivative/preprocessed_data/{subject}/{name}.hf5",
                rng.standard_normal((10, 6)),
                repeats,
            )
    return datasets.load(str(tree))
