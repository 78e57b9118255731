"""Nothing wrong accepted, nothing lost: a table of faults, each either refused with a message that helps, or got over.

An attack is a function whose arguments are fixtures. `@fault(point, name, refused=...)` expects an error of which the text
is a part, `warned=...` a warning and no error; without either the attack itself checks that the fault was got over.
"""

import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import build_book
import h5py
import nbformat
import numpy as np
import pandas as pd
import pytest
import run_notebooks
import soundfile
import torch
from conftest import GRID, ROOT, write_responses
from lebel_tree import Server
from safetensors.torch import load_file, save_file
from tiny import TINY, encoder, tuned

from brainlib import cortex, datasets, evaluation, files, lebel, recipes, runtime, saving, speech
from brainlib import training as loop
from brainlib.tuning import BrainTuner, restore_weights
from fireside import simulation

FAULTS = []


@dataclass
class Fault:
    """Something that goes wrong, and what should come of it."""

    point: int
    name: str
    attack: object
    refused: str | None
    warned: str | None
    slow: bool

    def __str__(self):
        return f"{self.point}-{self.name}".replace(" ", "_")


def fault(point, name, *, refused=None, warned=None, slow=False):
    def add(attack):
        FAULTS.append(Fault(point, name, attack, refused, warned, slow))
        return attack

    return add


def each(point, names, **options):
    """The same attack with several arguments: `(name, argument, refused)` each."""

    def add(attack):
        for name, argument, refused in names:
            own = list(inspect.signature(attack).parameters)[1:]

            def bound(given, argument=argument):
                return attack(argument, **given)

            bound.fixtures = own
            FAULTS.append(Fault(point, name, bound, refused, options.get("warned"), False))
        return attack

    return add


# ------------------------------------------------------------------ 1: sound
def story_of(root, name="a"):
    return datasets.load(str(root)).story(name)


def cut(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


@each(
    1,
    [
        ("wav cut to half", lambda p: cut(p), "20.0 s of sound, but the scan of 30 volumes"),
        ("wav cut by 15 s", lambda p: cut(p, 0.625), "cut. Fetch the file again"),
        ("wav cut by 4 s", lambda p: cut(p, 0.9), "36.0 s of sound, but the scan of 30 volumes"),
        (
            "wav without frames",
            lambda p: soundfile.write(p, np.zeros(0), 16_000),
            "no sound|0 samples|bytes|0.0 s of sound",
        ),
        ("wav of text", lambda p: p.write_text("sound" * 100), "no sound in it|cannot be read"),
    ],
)
def sound(damage, tree):
    damage(tree / "stimuli/a.wav")
    story = story_of(tree)
    _ = story.audio
    _ = story.tr_times


@each(
    1,
    [(f"{kind} cut", kind, "cut. Fetch the file again|no sound in it") for kind in ("ogg", "mp3")],
)
def compressed_sound(kind, tree):
    rng, path = np.random.default_rng(0), tree / f"stimuli/a.{kind}"
    (tree / "stimuli/a.wav").unlink()
    soundfile.write(path, 0.1 * rng.standard_normal(40 * 16_000), 16_000)
    cut(path)
    story = story_of(tree)
    _ = story.audio
    _ = story.tr_times


@fault(1, "sound with NaN", refused="some that are no number")
def _(tree):
    audio = np.zeros(40 * 16_000, np.float32)
    audio[5] = np.nan
    soundfile.write(tree / "stimuli/a.wav", audio, 16_000, subtype="FLOAT")
    _ = story_of(tree).audio


# ------------------------------------------------------------------ 2: the feature cache
@pytest.fixture
def kept(model_folder, monkeypatch, tmp_path):
    """A model's states of two layers in a cache of its own: (compute, folder of the cache, the states)."""
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "states"))
    audio = np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    model = encoder(model_folder)

    def compute():
        return model.features(audio, [1, 2], window=1.0, hop=0.5)[0]

    states = compute()
    folder = next((tmp_path / "states/features").iterdir())
    return SimpleNamespace(compute=compute, folder=folder, states=states, audio=audio, model=model)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def zero_block(path):
    content = bytearray(path.read_bytes())
    content[1000:1400] = bytes(400)
    path.write_bytes(content)


def rewrite(change):
    def damage(path):
        arrays = dict(np.load(path))
        np.savez(path, **change(arrays))

    return damage


@each(
    2,
    [
        ("bit flipped in a state", lambda p: flip(p, p.stat().st_size // 2), None),
        ("bits flipped everywhere", "everywhere", None),
        ("block of zeros", zero_block, None),
        ("other dtype", rewrite(lambda a: {k: x.astype("f8") for k, x in a.items()}), None),
        ("transposed", rewrite(lambda a: {k: x.T.copy() for k, x in a.items()}), None),
        (
            "other order of axes",
            rewrite(lambda a: {k: x.reshape(x.T.shape) for k, x in a.items()}),
            None,
        ),
        ("NaN", rewrite(lambda a: {k: x * np.nan for k, x in a.items()}), None),
        ("infinite", rewrite(lambda a: {k: x + np.inf for k, x in a.items()}), None),
        ("cut", cut, None),
        ("empty", lambda p: p.write_bytes(b""), None),
        ("a pickle", lambda p: np.savez(p, x=np.array([{}], dtype=object)), None),
        ("another layer's", lambda p: shutil.copy(p.with_name("layer2.npz"), p), None),
    ],
)
def states(damage, kept):
    path = kept.folder / "layer1.npz"
    whole = path.read_bytes()
    positions = range(0, len(whole), len(whole) // 25) if damage == "everywhere" else [None]
    for position in positions:
        path.write_bytes(whole)
        if position is None:
            damage(path)
        else:
            flip(path, position)
        again = kept.compute()
        assert all(np.array_equal(kept.states[k], again[k]) for k in (1, 2)), position


@fault(2, "states of other code")
def _(kept, monkeypatch):
    monkeypatch.setattr(speech, "CACHE_VERSION", "another")
    kept.compute()
    assert len(list(kept.folder.parent.iterdir())) == 2


@fault(17, "cache disk is full", warned="hidden states are not kept .*No space left")
def _(kept, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    shutil.rmtree(kept.folder)
    monkeypatch.setattr(np, "savez", full)
    again = kept.compute()
    assert np.array_equal(again[1], kept.states[1])


# ------------------------------------------------------------------ 3: fireside
@pytest.fixture
def fire(tmp_path, monkeypatch):
    """fireside whose subjects are made at once, as the files' names."""

    def build(root, subject, noise):
        simulation._stamp(root, subject).unlink(missing_ok=True)
        for path in simulation._files_of(root, subject):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{subject} {simulation.version()}")
        simulation._write_json(simulation._stamp(root, subject), simulation._state(root, subject))
        built.append(subject)

    built = []
    monkeypatch.setattr(simulation, "_build_subject", build)
    root = simulation.build(["SIM01"], root=tmp_path / "fire")
    story = simulation.story_names()[0]
    return SimpleNamespace(root=root, built=built, story=story, base=root / "derivative")


@each(
    3,
    [
        ("regions lost", "derivative/rois/SIM01.npz", None),
        ("truth lost", "derivative/truth/SIM01.npz", None),
        ("vertices lost", "derivative/fsaverage5/SIM01.npz", None),
        ("responses lost", "derivative/preprocessed_data/SIM01/{story}.hf5", None),
        ("stamp lost", "derivative/preprocessed_data/SIM01/.stamp.json", None),
        ("sound lost", "stimuli/{story}.ogg", None),
        ("TextGrid lost", "derivative/TextGrids/{story}.TextGrid", None),
        ("volumes lost", "derivative/respdict.json", None),
    ],
)
def lost(name, fire):
    path = fire.root / name.format(story=fire.story)
    before = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(before[: len(before) // 2])):
        damage()
        simulation.build(["SIM01"], root=fire.root)
        assert path.read_bytes() == before


@fault(3, "a flipped bit in simulated responses", refused="hf5: cannot be read.*damaged")
def _(tmp_path):
    path, clean = tmp_path / "story.hf5", np.zeros((20, 30), np.float32)
    simulation._write_responses(path, np.stack([clean + 1, clean + 3]), clean)
    assert (files.read_hf5(path, "individual_repeats")[1] == 3).all()
    content = bytearray(path.read_bytes())
    content[content.index(np.full(30, 3, np.float32).tobytes())] ^= 1
    path.write_bytes(content)
    files.read_hf5(path, "individual_repeats")


@fault(3, "subject of another version")
def _(fire, monkeypatch):
    monkeypatch.setattr(simulation, "version", lambda: "another")
    simulation.build(["SIM01"], root=fire.root)
    assert (fire.base / "rois/SIM01.npz").read_text() == "SIM01 another"
    about = json.loads((fire.root / "dataset_description.json").read_text())
    assert about["SimulationVersion"] == "another" and fire.built == ["SIM01"] * 2


@fault(3, "two versions in turns")
def _(fire, monkeypatch):
    for version in ("one", "two", "one"):
        monkeypatch.setattr(simulation, "version", lambda version=version: version)
        simulation.build(["SIM01"], root=fire.root)
        simulation.build(["SIM02"], root=fire.root)
        for subject in ("SIM01", "SIM02"):
            assert (fire.base / f"truth/{subject}.npz").read_text() == f"{subject} {version}"


@fault(3, "stories of an earlier version stay")
def _(fire):
    old = [fire.root / "stimuli/dropped.ogg", fire.base / "TextGrids/dropped.TextGrid"]
    for path in old:
        path.write_text("old")
    (fire.base / "respdict.json").write_text("{}")
    simulation.build([], root=fire.root)
    assert not any(path.exists() for path in old)


@fault(3, "responses to dropped stories stay", slow=True)
def _(fireside_root):
    root = fireside_root / "dropped"
    stale = root / "derivative/preprocessed_data/SIM03/dropped.hf5"
    simulation.build([], root=root)
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    simulation.build(["SIM03"], root=root)
    assert not stale.exists() and simulation._is_whole(root, "SIM03")


@fault(3, "killed while it was laid out")
def _(fire):
    shutil.rmtree(fire.root / "stimuli")
    (fire.base / "respdict.json").unlink()
    simulation.build(["SIM01"], root=fire.root)
    assert simulation._is_laid_out(fire.root, "clean") and fire.built == ["SIM01"]


@fault(3, "a whole tree on a read-only disk")
def _(fire, monkeypatch):
    monkeypatch.setattr(simulation, "FileLock", None)
    simulation.build(["SIM01"], root=fire.root)


@each(
    15,
    [
        ("fireside into a tree of something else", '{"Name": "mine"}', "holds 'mine'"),
        ("fireside into a tree without description", None, "expected an empty folder or fireside"),
        ("fireside into a broken description", "{", "dataset_description.json: cannot be read"),
    ],
)
def another_tree(description, tree):
    volumes = (tree / "derivative/respdict.json").read_text()
    if description:
        (tree / "dataset_description.json").write_text(description)
    try:
        datasets.load("fireside", root=tree)
    finally:
        assert (tree / "derivative/respdict.json").read_text() == volumes


# ------------------------------------------------------------------ 4, 5, 20: checkpoints and weights
@pytest.fixture(scope="module")
def finished(model_folder, tmp_path_factory):
    """A run of two epochs: its folder, what tells it, and the saved model."""
    root = tmp_path_factory.mktemp("finished")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = small_data(root / "tree")
        os.environ["BRAINLIB_CACHE"], before = str(root / "cache"), os.environ.get("BRAINLIB_CACHE")
        try:
            recipe = TINY.with_(stages=(("all", 2),))
            tuner = tuned(model_folder, ds, recipe, subjects="S1", folder=root / "run")
        finally:
            os.environ.pop("BRAINLIB_CACHE")
            if before:
                os.environ["BRAINLIB_CACHE"] = before
    tuner.save(root / "model")
    return SimpleNamespace(
        root=root, tuner=tuner, run=json.loads((root / "run/run.json").read_text())
    )


def small_data(root):
    """Three stories of 40 s, a subject of four voxels."""
    rng = np.random.default_rng(0)
    (root / "stimuli").mkdir(parents=True)
    for name in "abc":
        soundfile.write(root / f"stimuli/{name}.wav", 0.1 * rng.standard_normal(640_000), 16_000)
        data = rng.standard_normal((10, 4))
        write_responses(root / f"derivative/preprocessed_data/S1/{name}.hf5", data)
    return datasets.load(str(root))


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run's folder, to be damaged."""
    folder = tmp_path / "run"
    shutil.copytree(finished.root / "run", folder)
    newest, before = sorted(
        (folder / "checkpoints").iterdir(), key=lambda p: -int(p.name.split("-")[1])
    )
    return SimpleNamespace(folder=folder, newest=newest, before=before, run=finished.run)


PARTS = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@each(
    5,
    [
        (f"{what} {part}", (part, damage), None)
        for part in PARTS
        for what, damage in (
            ("cut", cut),
            ("lost", Path.unlink),
            ("empty", lambda p: p.write_bytes(b"")),
        )
    ],
    warned="broken checkpoint, going on from the one before",
)
def half_saved(attack, run):
    part, damage = attack
    damage(run.newest / part)
    assert loop.last_checkpoint(run.folder, run.run) == str(run.before)


@fault(5, "bit flipped in the optimiser", warned="going on from the one before: .*optimizer.pt")
def _(run):
    path = run.newest / "optimizer.pt"
    flip(path, path.stat().st_size // 2)
    assert loop.last_checkpoint(run.folder, run.run) == str(run.before)


@fault(5, "run.json lost", refused="no run.json, which says of what run: give another folder")
def _(run):
    (run.folder / "run.json").unlink()
    loop.last_checkpoint(run.folder, run.run | {"recipe": "of another learning rate"})


@fault(5, "another learning rate", refused=r"another run .different: recipe")
def _(run):
    loop.last_checkpoint(run.folder, run.run | {"recipe": "another"})


@fault(
    5, "every checkpoint broken", refused="broken checkpoint, and none before it: .*optimizer.pt"
)
def _(run):
    for checkpoint in (run.newest, run.before):
        (checkpoint / "optimizer.pt").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop.last_checkpoint(run.folder, run.run)


@fault(20, "checkpoint-abc")
def _(run):
    (run.folder / "checkpoints/checkpoint-abc").mkdir()
    assert loop.last_checkpoint(run.folder, run.run) == str(run.newest)


@each(
    20,
    [
        ("run.json garbled", "run.json", "run.json: cannot be read .*remove the folder of the run"),
        ("run.json a list", "run.json[]", "run.json: cannot be read .*list"),
        ("history garbled", "history.json", "history.json: cannot be read .*remove the folder"),
        ("history empty", "history.json{}", "history.json: cannot be read .KeyError"),
        ("best weights garbled", "best.safetensors", "best.safetensors: cannot be read .*remove"),
    ],
)
def run_files(what, run):
    name = re.sub(r"[\[\]{}]", "", what)
    (run.folder / name).write_text(what.removeprefix(name) or "{garbled")
    last = loop.last_checkpoint(run.folder, run.run)
    loop.Progress(run.folder).restore(last)


class Network(torch.nn.Linear):
    """Stands for a network of which all is tuned."""

    def tuned_state(self):
        return self.state_dict()


@each(
    4,
    [
        ("best weights lost a tensor", lambda s: s.pop("bias"), "1 lost, unknown or not finite"),
        ("no weights at all", lambda s: s.clear(), "2 lost"),
        ("foreign weights", lambda s: s.update(other=s["bias"]), r"1 lost.*\['other'\]"),
        ("weights of another shape", lambda s: s.update(bias=torch.zeros(9)), "1 lost"),
        ("NaN weights", lambda s: s["bias"].fill_(np.nan), "not finite"),
        ("infinite weights", lambda s: s["weight"].fill_(np.inf), "not finite"),
    ],
)
def weights(damage):
    state = {k: v.clone() for k, v in Network(3, 2).state_dict().items()}
    damage(state)
    restore_weights(Network(3, 2), state)


@pytest.fixture
def saved(finished, tmp_path):
    """A copy of the saved model, to be damaged."""
    shutil.copytree(finished.root / "model", tmp_path / "model")
    return tmp_path / "model"


def edit_tensors(change):
    def damage(path):
        state = load_file(path)
        change(state, sorted(state)[0])
        save_file(state, path)

    return damage


ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
WEIGHTS = [
    ("flipped bit in", lambda p: flip(p, p.stat().st_size - 5)),
    ("NaN in", edit_tensors(lambda s, k: s[k].fill_(np.nan))),
    ("a tensor lost from", edit_tensors(lambda s, k: s.pop(k))),
    ("a foreign tensor in", edit_tensors(lambda s, k: s.update(foreign=s[k].clone()))),
    ("cut", cut),
]


@each(
    4,
    [
        (f"{what} {name}", (name, damage), "not the file that was saved; copy it again")
        for name in (ADAPTER, "readouts.safetensors")
        for what, damage in WEIGHTS
    ],
)
def saved_weights(attack, saved):
    name, damage = attack
    damage(saved / name)
    BrainTuner.load(saved, device="cpu")


@each(
    4,
    [
        (f"of another origin, {what}", damage, text)
        for (what, damage), text in zip(
            WEIGHTS[1:],
            (
                "not finite",
                "tensors lost or foreign",
                "tensors lost or foreign",
                "cannot be read",
            ),
        )
    ],
)
def adapter_without_digest(damage, saved, model_folder):
    damage(saved / ADAPTER)
    untuned = encoder(model_folder)
    saving.load_adapter(untuned, saved, base=untuned.fingerprint())


@each(
    20,
    [
        ("adapter lost", (ADAPTER, Path.unlink), ADAPTER),
        ("adapter_config lost", (CONFIG, Path.unlink), "lost, or not the file that was saved"),
        ("adapter_config garbled", (CONFIG, cut), "lost, or not the file that was saved"),
        ("recipe garbled", ("recipe.json", cut), "recipe.json: cannot be read"),
        ("tuning.json garbled", ("tuning.json", cut), "tuning.json: cannot be read"),
        ("tuning.json empty", ("tuning.json", lambda p: p.write_text("{}")), "KeyError"),
        ("read-outs lost", ("readouts.safetensors", Path.unlink), "readouts.safetensors"),
    ],
)
def saved_files(attack, saved):
    name, damage = attack
    damage(saved / name)
    BrainTuner.load(saved, device="cpu")


@fault(15, "a user's files beside a saved model")
def _(finished, saved):
    (saved / "notes.txt").write_text("mine")
    (saved / "figures").mkdir()
    (saved / "figures/one.png").write_text("mine")
    (saved / "model-00001.safetensors").write_text("an earlier model's")
    finished.tuner.save(saved)
    assert (saved / "notes.txt").read_text() == (saved / "figures/one.png").read_text() == "mine"
    assert not (saved / "model-00001.safetensors").exists()
    BrainTuner.load(saved, device="cpu")


def states_of(model):
    return model.hidden_states(torch.linspace(-1, 1, 16_000).sin()[None])[-1]


@fault(16, "tuned from random weights", slow=True)
def _(model_folder, data, tmp_path):
    model = speech.SpeechEncoder.from_pretrained(model_folder, "cpu", random_weights=True, seed=3)
    tuner = BrainTuner(model, TINY.with_(stages=(("all", 1),)))
    tuner.fit(data, "UTS01", quiet=True).save(tmp_path / "model")
    again = BrainTuner.load(tmp_path / "model", device="cpu")
    torch.testing.assert_close(
        states_of(again.encoder), states_of(tuner.encoder), atol=1e-5, rtol=0
    )


@fault(16, "tuned twice", slow=True)
def _(model_folder, data, tmp_path):
    once = TINY.with_(stages=(("all", 1),))
    first = tuned(model_folder, data, once.with_(adapter="full"))
    second = BrainTuner(first.encoder, once).fit(data, "UTS01", quiet=True, keep="last")
    second.save(tmp_path / "model")
    again = BrainTuner.load(tmp_path / "model", device="cpu")
    torch.testing.assert_close(
        states_of(again.encoder), states_of(second.encoder), atol=1e-5, rtol=0
    )


# ------------------------------------------------------------------ 6, 7: choices and splits
@each(
    6,
    [
        ("no subjects", lambda ds: datasets.load(str(ds.root), subjects=[]), "at least one"),
        (
            "a subject twice",
            lambda ds: datasets.load(str(ds.root), subjects=["UTS01"] * 2),
            "twice",
        ),
        ("training on no stories", lambda ds: ds.training_stories([]), "at least one"),
        ("a story twice", lambda ds: ds.training_stories(["a", "a"]), "none twice"),
        ("an unknown story", lambda ds: ds.training_stories(["aa"]), "has no story 'aa'"),
        ("voxel_step 0", lambda ds: datasets.load(str(ds.root), voxel_step=0), "voxel_step=0"),
    ],
)
def choices(choose, data):
    choose(data)


@fault(6, "a name in place of a list")
def _(data):
    assert data.training_stories("a") == ["a"]
    about = {"Subjects": "UTS01", "Stories": list("abcd")}
    (data.root / "dataset_description.json").write_text(json.dumps(about))
    assert datasets.load(str(data.root)).subjects == ["UTS01"]


@each(
    6,
    [
        ("window 0", {"window": 0}, "expected 0 < hop <= window"),
        ("hop 0", {"hop": 0}, "expected 0 < hop <= window"),
        ("hop negative", {"hop": -1.0}, "expected 0 < hop <= window"),
    ],
)
def windows(options, kept):
    kept.model.features(kept.audio, **options)


@each(
    6,
    [
        ("evaluate on no subjects", {"subjects": []}, "at least one"),
        ("evaluate with no training stories", {"train": []}, "at least one"),
        ("evaluate a word as stories", {"train": "abc"}, "has no story 'abc'"),
    ],
)
def evaluations(options, data, model_folder):
    evaluation.evaluate(encoder(model_folder), data, **options)


@each(
    6,
    [
        ("tune on no stories", {"stories": []}, "at least one"),
        ("keep the bset", {"keep": "bset"}, "expected 'best' or 'last'"),
        ("tune on no voxels", {"voxels": np.zeros(6, bool)}, "no voxel of one of"),
    ],
)
def tunings(options, data, model_folder):
    tuned(model_folder, data, **options)


@each(
    7,
    [
        ("tune on a validation story", {"stories": ["a", "c"]}, r"\['c'\] are held out"),
        ("tune on a test story", {"stories": ["a", "d"]}, r"\['d'\] are held out"),
    ],
)
def leaks(options, data, model_folder):
    tuned(model_folder, data, **options)


@fault(7, "fit on the test story", refused=r"\['d'\] are held out")
def _(data, model_folder):
    evaluation.evaluate(encoder(model_folder), data, train=["a", "d"])


@each(
    7,
    [
        ("parts overlap", {"train": ["a", "b"], "val": ["b"], "test": ["d"]}, "none twice"),
        ("unknown story", {"train": ["a"], "val": ["b"], "test": ["x"]}, "no story 'x'"),
        ("a part missing", {"train": ["a"], "test": ["d"]}, "KeyError.*train, val and test"),
        ("a list", ["a", "b"], "expected a Split into train, val and test"),
        ("a word", {"train": "abc", "val": ["d"], "test": []}, "expected a Split"),
    ],
)
def splits(split, tree):
    about = {"Split": split}
    (tree / "dataset_description.json").write_text(json.dumps(about))
    _ = datasets.load(str(tree)).split


# ------------------------------------------------------------------ 8, 20: responses and regions
def response(tree):
    return tree / "derivative/preprocessed_data/UTS01/a.hf5"


def store(path, **arrays):
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            if value is None:
                file.create_group(key)
            else:
                file[key] = value


NUMBERS = np.random.default_rng(0).standard_normal((10, 6))


@each(
    8,
    [
        ("three-dimensional", {"data": NUMBERS[None]}, r"'data' is .*expected numbers of shape"),
        ("one-dimensional", {"data": NUMBERS[0]}, r"'data' is .*expected numbers of shape"),
        ("a group", {"data": None}, r"'data' is .*group"),
        ("texts", {"data": [["a"] * 6] * 10}, "expected numbers"),
        ("no rows", {"data": NUMBERS[:0]}, "expected numbers of shape"),
        ("no voxels", {"data": NUMBERS[:, :0]}, "expected numbers of shape"),
        (
            "uneven repeats",
            {"data": NUMBERS, "individual_repeats": NUMBERS[None, :, :4]},
            "voxels in all",
        ),
        (
            "flat repeats",
            {"data": NUMBERS, "individual_repeats": NUMBERS},
            "'individual_repeats' is",
        ),
        ("no data", {"other": NUMBERS}, "expected 'data'"),
    ],
)
def responses(arrays, tree):
    store(response(tree), **arrays)
    datasets.load(str(tree)).responses("UTS01", "a")


@fault(8, "objects", refused="expected numbers")
def _(tree):
    with h5py.File(response(tree), "w") as file:
        file.create_dataset("data", (10,), dtype=h5py.vlen_dtype(np.float64))
    datasets.load(str(tree)).responses("UTS01", "a")


@each(
    8,
    [
        ("all-zero responses", 0 * NUMBERS, None),
        ("constant responses", 0 * NUMBERS + 7, None),
        ("spreads of 1e-30", 1e-30 * NUMBERS, None),
    ],
    warned="a.hf5: no voxel varies",
)
def still(numbers, tree):
    store(response(tree), data=numbers)
    assert not datasets.load(str(tree)).responses("UTS01", "a").any()


MASK = np.array([True] * 3 + [False] * 3)


@each(
    8,
    [
        (
            "a region too short",
            ("rois", {"a1": MASK[:4]}),
            "rois.UTS01.npz: .'a1'. not of shape .6,",
        ),
        ("a region too long", ("rois", {"a1": np.tile(MASK, 2)}), "not of shape"),
        ("a region of indices", ("rois", {"a1": np.arange(6)}), "expected per voxel True or False"),
        (
            "a region of names",
            ("rois", {"a1": np.array(["x"] * 6)}),
            "expected per voxel True or False",
        ),
        ("a region of objects", ("rois", {"a1": np.array([{}] * 6)}), "cannot be read"),
        ("a region of two axes", ("rois", {"a1": np.ones((6, 2))}), "not of shape"),
        ("no regions in the file", ("rois", {}), "nothing not of shape"),
        ("vertices beyond fsaverage5", ("fsaverage5", {"vertices": np.arange(6) + 20_480}), "-1"),
        (
            "vertices of real numbers",
            ("fsaverage5", {"vertices": np.ones(6)}),
            "expected per voxel vert",
        ),
        ("truth of NaN", ("truth", {"snr": np.ones(6) * np.nan}), "expected per voxel finite"),
        ("a table cut", ("rois", None), "rois.UTS01.npz: cannot be read"),
        ("a table of text", ("rois", "text"), "rois.UTS01.npz: cannot be read"),
    ],
)
def tables(attack, tree):
    folder, arrays = attack
    path = tree / f"derivative/{folder}/UTS01.npz"
    path.parent.mkdir()
    if isinstance(arrays, str):
        path.write_text(arrays)
    else:
        np.savez(path, **({"a1": MASK} if arrays is None else arrays))
    if arrays is None:
        cut(path)
    ds = datasets.load(str(tree))
    ds.simulated = True
    {"rois": ds.rois, "fsaverage5": ds.vertices, "truth": ds.truth}[folder]("UTS01")


@each(
    20,
    [
        (
            "description garbled",
            ("dataset_description.json", "{"),
            "dataset_description.json: cannot",
        ),
        ("description a list", ("dataset_description.json", "[1]"), "holds a list"),
        ("volumes garbled", ("derivative/respdict.json", "{"), "respdict.json: cannot be read"),
        (
            "volumes of words",
            ("derivative/respdict.json", '{"a": "x"}'),
            "expected volumes per story",
        ),
        ("volumes null", ("derivative/respdict.json", '{"a": null}'), "expected volumes per story"),
    ],
)
def descriptions(attack, tree):
    name, text = attack
    (tree / name).write_text(text)
    datasets.load(str(tree))


# ------------------------------------------------------------------ 9: TextGrids
def tiers(*parts, kind="IntervalTier"):
    """A TextGrid in short form: of each tier its name and its labels, one a second."""
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", "40", "<exists>"]
    lines.append(str(len(parts)))
    for name, labels in parts:
        lines += [f'"{kind}"', f'"{name}"', "0", "40", str(len(labels))]
        for i, text in enumerate(labels):
            lines += [f"{i}"] + ([f"{i + 1}"] if kind == "IntervalTier" else []) + [f'"{text}"']
    return "\n".join(lines) + "\n"


WORDS, PHONES = ("ORT-MAU", ["hi", "you"]), ("MAU", ["HH", "AY", "Y", "UW"])
SHORT = tiers(("phone", PHONES[1]), ("word", WORDS[1]))


@each(
    9,
    [
        (
            "short form cut in the words",
            SHORT[: SHORT.index('"you"') - 4],
            "stated; cut|cannot be read",
        ),
        (
            "short form cut at an entry",
            SHORT[: SHORT.index('"you"') - 5],
            "stated; cut|cannot be read",
        ),
        ("short form cut in the phones", SHORT[: SHORT.index('"UW"')], "cut|cannot be read|tiers"),
        ("long form cut", GRID.format(end=40)[:-130], "stated; cut|cannot be read"),
        (
            "tiers without known names in the other order",
            tiers(("x", WORDS[1]), ("y", PHONES[1])),
            "other order",
        ),
        ("one tier", tiers(("utterances", WORDS[1])), "expected a phone tier and a word tier"),
        (
            "three nameless tiers",
            tiers(("x", "ab"), ("y", "ab"), ("z", "ab")),
            "expected a phone tier",
        ),
        (
            "point tiers",
            tiers(("phone", "abc"), ("word", "ab"), kind="TextTier"),
            "tiers of intervals",
        ),
        ("no TextGrid", "this is no TextGrid at all, not even nearly", "expected a TextGrid"),
    ],
)
def grids(text, tmp_path):
    (tmp_path / "a.TextGrid").write_text(text)
    files.read_textgrid(tmp_path / "a.TextGrid")


@fault(9, "tiers of WebMAUS and MFA in any order")
def _(tmp_path):
    path = tmp_path / "a.TextGrid"
    mfa = ("Anna - words", WORDS[1]), ("Anna - phones", PHONES[1])
    kan = ("KAN-MAU", ["hAI", "ju"])
    for parts in ((WORDS, PHONES), (PHONES, WORDS), (WORDS, kan, PHONES), mfa, mfa[::-1]):
        path.write_text(tiers(*parts))
        read = files.read_textgrid(path)
        assert list(read["words"].text) == WORDS[1] and list(read["phonemes"].text) == PHONES[1]


# ------------------------------------------------------------------ 10, 20: notebooks and the site
def notebook(folder, name="01_data_loading", source="x + 1", parameters="x: int = 1  # one"):
    cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(source),
    ]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# T"), *cells])
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(made, folder / f"{name}.ipynb")


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Two notebooks in a project of their own, and runs of them, for the builder's first check."""
    for name in ("01_a", "02_b"):
        notebook(tmp_path / "notebooks", name)
    for module in (build_book, run_notebooks):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(run_notebooks.known_anywhere, "__defaults__", (tmp_path / "notebooks",))
    for name, part in (("SITE", "html"), ("STAGE", "stage")):
        for module in (build_book, run_notebooks):
            monkeypatch.setattr(module, name, tmp_path / "_build" / part)
    monkeypatch.setattr(build_book, "pages", lambda: ["notebooks/01_a", "notebooks/02_b"])
    monkeypatch.setattr(run_notebooks, "run_one", lambda *_: {"seconds": 1, "peak_mb": 1})
    (tmp_path / "brainlib").mkdir()
    (tmp_path / "brainlib/a.py").write_text('"""Doc."""\nx = 1\n')
    (tmp_path / "p.yaml").write_text("x: 3")
    (tmp_path / "_build/html").mkdir(parents=True)

    def execute(*arguments):
        out = [
            "--out",
            str(tmp_path / "_build/stage/notebooks"),
            "--params",
            str(tmp_path / "p.yaml"),
        ]
        return run_notebooks.main([*arguments, *out])

    assert execute() == 0
    return SimpleNamespace(
        root=tmp_path, execute=execute, report=tmp_path / "_build/stage/runs.json"
    )


def check(book):
    build_book.check_runs(json.loads(book.report.read_text()))


@fault(10, "nothing changed, but a docstring")
def _(book):
    (book.root / "brainlib/a.py").write_text('"""Another."""\n# comment\nx = 1\n')
    check(book)


@fault(10, "one page with other parameters", refused="executed with different parameters")
def _(book):
    book.execute("02_b", "-p", "x", "9")
    check(book)


@fault(10, "a notebook that changed", refused="01_a: changed since it was executed")
def _(book):
    notebook(book.root / "notebooks", "01_a", source="x + 2")
    check(book)


@fault(10, "code that changed", refused="brainlib or fireside changed since it was executed")
def _(book):
    (book.root / "brainlib/a.py").write_text("x = 2")
    check(book)


@fault(10, "killed while a notebook ran", refused="02_b: not executed")
def _(book, monkeypatch):
    def killed(path, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_notebooks, "run_one", killed)
    with pytest.raises(KeyboardInterrupt):
        book.execute("02_b")
    check(book)


@fault(10, "a notebook failed", refused="01_a: not executed")
def _(book, monkeypatch):
    def fails(path, *_):
        raise run_notebooks.NotebookError("no")

    monkeypatch.setattr(run_notebooks, "run_one", fails)
    assert book.execute("01_a") == 1
    check(book)


@fault(10, "the site of earlier notebooks stays")
def _(book, monkeypatch):
    assert not (book.root / "_build/html").exists()
    (book.root / "_build/html").mkdir()
    monkeypatch.setattr(sys, "argv", ["build_book.py"])
    assert build_book.main([]) == 1  # nothing to stage: it fails
    assert not (book.root / "_build/html").exists()


@fault(10, "runs.json garbled", refused="runs.json: cannot be read .*run tools/run_notebooks")
def _(book):
    book.report.write_text("{")
    for name in ("_config.yml", "_toc.yml"):
        (book.root / name).write_text("")
    for folder in ("book/_static", "tools"):
        (book.root / folder).mkdir(parents=True)
    build_book.stage(book.root / "_build/stage")


@fault(20, "a staged notebook cut", refused="no notebook that can be read")
def _(book):
    path = book.root / "notebooks/01_a.ipynb"
    cut(path)
    run_notebooks.check_outputs(path)


@each(
    20,
    [
        ("parameters a list", "[1, 2]", "holds a list; expected `name: value`"),
        ("parameters a word", "word", "holds a str"),
        ("parameters garbled", "x: [", "no parameters that can be read"),
    ],
)
def parameter_files(text, tmp_path):
    (tmp_path / "p.yaml").write_text(text)
    run_notebooks.read_parameters(tmp_path / "p.yaml")


# ------------------------------------------------------------------ 11, 13: model folders
@pytest.fixture
def model(model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    return tmp_path / "model"


@each(
    11,
    [
        ("preprocessor cut", lambda p: cut(p), "expected a model whose preprocessor_config.json"),
        ("preprocessor empty", lambda p: p.write_text(""), "expected a model whose preproc"),
        ("preprocessor a list", lambda p: p.write_text("[]"), "expected a model whose preproc"),
    ],
)
def preprocessors(damage, model):
    damage(model / "preprocessor_config.json")
    encoder(model)


@fault(11, "preprocessor missing")
def _(model):
    (model / "preprocessor_config.json").unlink()
    assert encoder(model).family.normalizes


@fault(13, "a folder with code of its own")
def _(model, monkeypatch):
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    config |= {"architectures": ["Model"]}
    (model / "config.json").write_text(json.dumps(config))
    ran = model / "ran"
    (model / "evil.py").write_text(
        f"open({str(ran)!r}, 'w')\nclass Model: pass\nclass Config: pass\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    encoder(model)
    speech.SpeechEncoder.from_pretrained(str(model), "cpu", random_weights=True)
    assert not ran.exists()


@fault(13, "a pickle among the checkpoints", warned="going on from the one before")
def _(run, tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return Path.write_text, (tmp_path / "ran", "")

    (run.newest / "optimizer.pt").write_bytes(pickle.dumps(Evil()))
    torch.save(Evil(), run.newest / "scheduler.pt")
    assert loop.last_checkpoint(run.folder, run.run) == str(run.before)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------ 12, 14, 17, 19: fetching
CONTENT = bytes(range(256)) * 400


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A server of one file, and `fetch`, which brings it into a folder."""
    (tmp_path / "remote/stimuli").mkdir(parents=True)
    (tmp_path / "remote/stimuli/a.wav").write_bytes(CONTENT)
    monkeypatch.setattr(lebel, "BACKOFF_S", 0.01)
    monkeypatch.setattr(lebel, "RETRIES", 2)
    server = Server(tmp_path / "remote")
    part = tmp_path / "part"

    def fetch(content=CONTENT):
        row = SimpleNamespace(
            path="stimuli/a.wav", bytes=len(content), md5=hashlib.md5(content).hexdigest()
        )
        bar = SimpleNamespace(update=lambda n: None)
        return lebel._download(server.url, row, part, bar)

    yield SimpleNamespace(fetch=fetch, part=part, server=server, root=tmp_path)
    server.httpd.shutdown()


@fault(14, "an endless reply")
def _(remote):
    assert "MD5" in remote.fetch(CONTENT[:1000] + b"!")
    assert remote.part.stat().st_size == 1001


@fault(17, "416 on resume")
def _(remote):
    remote.part.write_bytes(b"of another file" * 10)
    remote.server.faults["stimuli/a.wav"] = ["416"]
    assert remote.fetch() is None and remote.part.read_bytes() == CONTENT


@fault(19, "429")
def _(remote):
    remote.server.faults["stimuli/a.wav"] = ["429"]
    assert remote.fetch() is None and remote.part.read_bytes() == CONTENT


@fault(19, "a trickle", slow=True)
def _(remote, monkeypatch):
    monkeypatch.setattr(lebel, "SLOW_S", 0.5)
    monkeypatch.setattr(lebel, "RETRIES", 0)
    remote.server.faults["stimuli/a.wav"] = ["trickle"]
    start = time.monotonic()
    assert "stalled" in remote.fetch() and time.monotonic() - start < 20


@fault(19, "a stall", slow=True)
def _(remote, monkeypatch):
    monkeypatch.setattr(lebel, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(lebel, "RETRIES", 0)
    remote.server.faults["stimuli/a.wav"] = ["stall"]
    assert remote.fetch().startswith("The server stalled")


@fault(19, "no server")
def _(remote):
    remote.server.httpd.shutdown()
    remote.server.httpd.server_close()
    assert remote.fetch().startswith("Could not connect")


@fault(19, "jobs=0", refused="jobs=0; expected at least one")
def _(tmp_path):
    lebel.fetch(["UTS01"], root=tmp_path, jobs=0)


MD5 = "0" * 32


@each(
    12,
    [
        ("a path that leaves the folder", "stimuli/../../a.wav,1," + MD5, "within the folder"),
        ("a path up", "../a.wav,1," + MD5, "within the folder"),
        ("an absolute path", "/tmp/a.wav,1," + MD5, "within the folder"),
        ("a path of Windows", "C:\\a.wav,1," + MD5, "within the folder"),
        ("a way up at the end", "stimuli/..,1," + MD5, "within the folder"),
    ],
)
def paths(row, tmp_path):
    (tmp_path / "manifest.csv").write_text("path,bytes,md5\n" + row + "\n")
    lebel.fetch([], ["a"], root=tmp_path, what=["stimuli"], mirror=tmp_path)


@each(
    20,
    [
        ("manifest without columns", "a,b\n1,2\n", "manifest.csv: cannot be read"),
        ("manifest with words for bytes", f"path,bytes,md5\nx,many,{MD5}\n", "cannot be read"),
        ("manifest of negative bytes", f"path,bytes,md5\nx,-1,{MD5}\n", "rows are not that"),
        ("manifest of other hashes", "path,bytes,md5\nx,1,abc\n", "rows are not that"),
        ("manifest with gaps", "path,bytes,md5\nx,,\n", "cannot be read"),
        ("manifest empty", "", "cannot be read"),
    ],
)
def manifests(text, tmp_path):
    (tmp_path / "manifest.csv").write_text(text)
    lebel.manifest(tmp_path)


# ------------------------------------------------------------------ 17: files that are written
@fault(17, "what killed processes left behind")
def _(tmp_path):
    code = (
        "import os, sys; from brainlib import runtime\n"
        "with runtime.atomic(sys.argv[1]) as part:\n"
        "    part.write_bytes(bytes(1000)); os._exit(9)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "x")]
    assert subprocess.run(command, env=environment).returncode == 9
    with runtime.atomic(tmp_path / "y") as other:  # another file's, of a process that lives
        assert len(list(tmp_path.glob(".x.*.part"))) == 1
        with runtime.atomic(tmp_path / "x") as part:
            part.write_text("x")
        assert other.parent.exists()
        other.write_text("y")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]


@fault(17, "two processes put a folder in the same place")
def _(tmp_path):
    target = tmp_path / "folder"
    with runtime.atomic(target) as one:
        one.mkdir()
        (one / "who").write_text("one")
        with runtime.atomic(target) as two:  # is done first
            two.mkdir()
            (two / "who").write_text("two")
    assert (target / "who").read_text() == "one" and len(list(tmp_path.iterdir())) == 1


@fault(17, "the folder goes away meanwhile")
def _(tmp_path, monkeypatch):
    target, rename = tmp_path / "folder", Path.rename
    target.mkdir()

    def first(self, to):
        if self == target:
            shutil.rmtree(target)
        return rename(self, to)

    with runtime.atomic(target) as part:
        part.mkdir()
        monkeypatch.setattr(Path, "rename", first)
    assert target.is_dir() and not list(tmp_path.glob(".*"))


@fault(17, "the kept anatomy is broken")
def _(tmp_path, monkeypatch):
    arrays = {
        "data": np.ones(1),
        "indices": np.zeros(1, int),
        "indptr": np.r_[0, np.ones(20_484, int)],
        "shape": np.array([20_484, 1]),
        "labels": np.array(["A1"]),
        "side": np.zeros(1),
        "vertices": np.zeros(1, int),
    }
    path = tmp_path / "labels"
    path.write_text("")
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cortex, "_files", lambda *_: {"lh labels": path, "coord": path})
    monkeypatch.setattr(cortex, "_build", lambda files: arrays)
    for damage in (cut, lambda p: p.write_text(""), lambda p: flip(p, 60)):
        cortex.read(tmp_path, "S1")
        damage(next((tmp_path / "cache/cortex").iterdir()))
        assert cortex.read(tmp_path, "S1").labels[0] == "A1"


# ------------------------------------------------------------------ 18, 20: parameters and recipes
GOOD = {
    "dataset": "fireside",
    "subjects": ["SIM01"],
    "voxel_step": 1,
    "speech_model": "wavlm-pico",
    "window": 10,
    "hop": 8.0,
    "n_train": 20,
    "seed": 0,
    "layer": None,
    "drive": False,
    "out": "",
}


@each(
    18,
    [
        ("n_train 3", {"n_train": 3}, r"n_train=3 .expected a whole number from 4."),
        ("n_train -3", {"n_train": -3}, "n_train=-3"),
        ("n_train a word", {"n_train": "20"}, "n_train='20'"),
        ("n_train true", {"n_train": True}, "n_train=True"),
        ("subjects a word", {"subjects": "SIM01"}, "expected a list of at least one name"),
        ("subjects empty", {"subjects": []}, "expected a list of at least one name"),
        ("subjects numbers", {"subjects": [1]}, "expected a list of at least one name"),
        ("voxel_step 0", {"voxel_step": 0}, "voxel_step=0"),
        ("window 0", {"window": 0}, "window=0 .expected seconds above 0"),
        ("window nan", {"window": float("nan")}, "window=nan"),
        ("hop above the window", {"hop": 12.0}, "hop=12.0 .expected at most the window"),
        ("seed negative", {"seed": -1}, "seed=-1"),
        ("layer a word", {"layer": "last"}, "layer='last'"),
        ("drive a word", {"drive": "no"}, "expected true or false"),
        ("out a number", {"out": 3}, "out=3"),
        ("dataset empty", {"dataset": ""}, "expected a name"),
        ("two at once", {"seed": None, "n_train": 0}, "n_train=0.*seed=None"),
    ],
)
def notebook_parameters(changed):
    runtime.set_up(GOOD | changed)


@fault(18, "parameters as they are in the profiles")
def _():
    for path in (ROOT / "notebooks/params").glob("*/*.yaml"):
        runtime.check_parameters(run_notebooks.read_parameters(path))
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        runtime.check_parameters(run_notebooks.parameters(path))


@each(
    20,
    [
        ("unknown recipe", "crosfit-quick", "did you mean crossfit-quick"),
        ("recipe file garbled", "{", "r.json: cannot be read"),
        ("recipe file of another version", '{"name": "x", "warp": 9}', "unknown .'warp'."),
        ("recipe file a list", "[1]", "r.json: cannot be read"),
    ],
)
def unknown_recipes(text, tmp_path):
    if not text.startswith(("{", "[")):
        return recipes.get_recipe(text)
    (tmp_path / "r.json").write_text(text)
    return recipes.get_recipe(tmp_path / "r.json")


# ------------------------------------------------------------------ the table
ERRORS = (ValueError, KeyError, OSError, run_notebooks.NotebookError, build_book.BookError)


def name_of(given):
    marks = [pytest.mark.slow] if given.slow else []
    return pytest.param(given, id=str(given), marks=marks)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", [name_of(f) for f in FAULTS])
def test_a_fault_is_refused_or_got_over(given, request):
    attack = given.attack
    names = getattr(attack, "fixtures", None)
    wanted = list(inspect.signature(attack).parameters) if names is None else names
    fixtures = {name: request.getfixturevalue(name) for name in wanted}

    def act():
        return attack(**fixtures) if names is None else attack(fixtures)

    if given.refused:
        with pytest.raises(ERRORS) as error:
            act()
        said = str(error.value)
        assert re.search(given.refused, said, re.S), said
        assert "Traceback" not in said and len(said) > 20
    elif given.warned:
        with pytest.warns(UserWarning, match=given.warned):
            act()
    else:
        act()


def test_every_point_of_the_attack_is_in_the_table():
    counts = pd.Series([f.point for f in FAULTS]).value_counts()
    assert set(counts.index) == set(range(1, 21)) and len(FAULTS) >= 180
    assert len({str(f) for f in FAULTS}) == len(FAULTS)
