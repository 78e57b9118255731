"""What Colab readers meet: the set-up cell on a stub of the hosted machine, and requirements against what is preinstalled there."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import address
import pytest
import torch
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

from brainlib import runtime

# googlecolab/backend-info: what its GPU machine had at the end of these months, of what matters here
SNAPSHOTS = {
    "2025.07": {"python": "3.11.13", "torch": "2.6.0+cu124", "numpy": "2.0.2"},
    "2025.10": {"python": "3.12.12", "torch": "2.8.0+cu126", "numpy": "2.0.2"},
    "2026.01": {
        "python": "3.12.12",
        "torch": "2.9.0+cu126",
        "transformers": "4.57.6",
        "peft": "0.18.1",
        "numpy": "2.0.2",
        "pandas": "2.2.2",
    },
    "2026.04": {
        "python": "3.12.13",
        "torch": "2.10.0+cu128",
        "transformers": "5.0.0",
        "peft": "0.18.1",
        "numpy": "2.0.2",
    },
    "2026.07": {
        "python": "3.12.13",
        "torch": "2.11.0+cu128",
        "transformers": "5.13.1",
        "peft": "0.19.1",
        "numpy": "2.0.2",
    },
    "2026.08": {
        "python": "3.13.15",
        "torch": "2.11.0+cu128",
        "transformers": "5.15.0",
        "peft": "0.20.0",
        "numpy": "2.1.3",
        "pandas": "2.2.3",
        "accelerate": "1.14.0",
        "soundfile": "0.14.0",
        "scikit-learn": "1.6.1",
        "scipy": "1.16.3",
        "nibabel": "5.4.2",
        "h5py": "3.16.0",
        "matplotlib": "3.10.0",
        "plotly": "5.24.1",
        "ipykernel": "6.17.1",
    },
}


@pytest.mark.parametrize("when", SNAPSHOTS)
def test_no_requirement_excludes_what_colab_has(when):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [
        Requirement(r)
        for r in [
            *project["dependencies"],
            *extras["book"],
            f"python{project['requires-python']}",
        ]
    ]
    met = [r.name for r in asked if r.name in SNAPSHOTS[when]]
    assert {"python", "torch", "numpy"} <= set(met)
    for requirement in asked:
        if requirement.name in SNAPSHOTS[when]:
            assert requirement.specifier.contains(SNAPSHOTS[when][requirement.name]), (
                f"{requirement} excludes Colab's of {when}"
            )


def test_torch_and_numpy_have_lower_bounds_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        assert {s.operator for s in Requirement(text).specifier} == {">="}, text


# ------------------------------------------------------------------ the cell
SOURCE = "git+https://github.com/someone/a-book@v1"


class Pip:
    """Stands for pip and what is installed: notes its call, and may break something."""

    def __init__(self, monkeypatch, versions, code=0, moved=None):
        self.call, self.versions, self.code, self.moved = None, dict(versions), code, moved or {}
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: self.versions.get(name))
        monkeypatch.setattr(importlib.metadata, "version", lambda name: self.versions[name])
        monkeypatch.setattr(subprocess, "Popen", self.run)
        url, branch = SOURCE.removeprefix("git+").split("@")
        monkeypatch.setattr(address, "repository", lambda: (url, branch))

    def run(self, command, **options):
        assert options["stdout"] == subprocess.PIPE and options["stderr"] == subprocess.STDOUT
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
        self.call = command, Path(command[command.index("-c") + 1]).read_text().splitlines()
        self.versions |= self.moved
        return self

    def __enter__(self):
        lines = ["Collecting himalaya\n", "  Downloading x\n", "Successfully installed himalaya\n"]
        self.stdout = lines if not self.code else ["ERROR: no route to host\n"]
        self.returncode = self.code
        return self

    def __exit__(self, *_):
        pass


COLAB = {"torch": "2.9.0+cu126", "numpy": "2.0.2", "torchvision": "0.24.0+cu126", "rich": "13.9.4"}


def run_cell(**parameters):
    names = {"__name__": "__main__", **parameters}
    exec(address.setup_cell(), names)
    return names


def test_the_cell_installs_once_beside_what_is_there(monkeypatch, capsys):
    pip = Pip(monkeypatch, COLAB)
    run_cell()
    command, constraints = pip.call
    assert sorted(constraints) == [
        "numpy==2.0.2",
        "torch==2.9.0+cu126",
        "torchvision==0.24.0+cu126",
    ]
    assert f"brainlib @ {SOURCE}" in command
    assert not {"-U", "--upgrade", "torch", "--no-binary"} & set(command)
    said = capsys.readouterr().out
    assert f"Installing brainlib from {SOURCE}" in said and "torch==2.9.0+cu126" in said
    assert "Collecting himalaya\nSuccessfully installed himalaya\n" in said
    assert "GPU" in said and " GB of memory" in said


def test_the_cell_does_nothing_where_brainlib_is(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("pip was called"))
    run_cell()


def test_without_an_address_the_cell_says_what_to_install(monkeypatch):
    Pip(monkeypatch, COLAB)
    monkeypatch.setattr(address, "repository", lambda: ("", "main"))
    with pytest.raises(RuntimeError, match="names no address .* pip install the folder"):
        run_cell()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"code": 1}, "no route to host"),
        ({"moved": {"numpy": "2.4.0"}}, "2.4.0"),
        ({"moved": {"torch": "2.13.0"}}, "2.13.0"),
    ],
)
def test_a_failed_install_or_a_moved_torch_stops_with_a_word(monkeypatch, options, message):
    Pip(monkeypatch, COLAB, **options)
    with pytest.raises(RuntimeError, match="no brainlib: ") as error:
        run_cell()
    assert message in str(error.value) and "'torch': '2.9.0+cu126'" in str(error.value)


# ------------------------------------------------------------------ the hosted machine
@pytest.fixture
def hosted(monkeypatch, tmp_path):
    (tmp_path / "hostname").write_text("m-gpu")
    monkeypatch.setattr(runtime, "HOSTNAME", tmp_path / "hostname")
    for name in ("HF_TOKEN", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "BRAINLIB_DRIVE"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_2026")
    mounts = []
    drive = types.SimpleNamespace(mount=mounts.append)
    monkeypatch.setitem(
        sys.modules, "google", types.SimpleNamespace(colab=types.SimpleNamespace(drive=drive))
    )
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    return types.SimpleNamespace(mounts=mounts, drive=drive)


def with_gpu(monkeypatch, there=True):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (15_500_000_000, 15_800_000_000))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")


COLAB_PARAMETERS = yaml.safe_load((ROOT / "notebooks/params/colab.yaml").read_text())


def test_a_gpu_is_named_and_nothing_is_changed(hosted, monkeypatch, capsys):
    with_gpu(monkeypatch)
    assert runtime.set_up(COLAB_PARAMETERS) == {}
    assert "GPU: Tesla T4, 15.8 GB, 15.5 GB of it free" in capsys.readouterr().out
    assert not hosted.mounts and "BRAINLIB_DRIVE" not in os.environ
    assert os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"


def test_without_a_gpu_the_parameters_become_those_of_a_cpu(hosted, monkeypatch, capsys):
    with_gpu(monkeypatch, False)
    names = run_cell(**COLAB_PARAMETERS)
    quick = yaml.safe_load((ROOT / "notebooks/params/quick.yaml").read_text())
    assert (
        {k: names[k] for k in runtime.CPU_SIZED}
        == runtime.CPU_SIZED
        == {k: quick[k] for k in runtime.CPU_SIZED}
    )
    said = capsys.readouterr().out
    assert "no GPU" in said and "takes hours" in said and "whisper-tiny.en" in said
    assert (
        runtime.set_up({"speech_model": "wavlm-pico", "epochs": 9}) == {}
    )  # a CPU can, so the reader's wish stands
    assert runtime.set_up({"seed": 0}) == {}


def test_elsewhere_nothing_is_changed(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "HOSTNAME", tmp_path / "none")
    monkeypatch.setenv(
        "COLAB_RELEASE_TAG", "release-colab_2026"
    )  # Colab's Docker image has the tag, and no hostname
    before = dict(os.environ)
    assert runtime.set_up({**COLAB_PARAMETERS, "drive": True}) == {} and dict(os.environ) == before


def test_drive_is_used_only_when_asked_and_may_refuse(hosted, monkeypatch, capsys):
    with_gpu(monkeypatch)
    runtime.set_up({"drive": True})
    monkeypatch.setattr(Path, "mkdir", lambda *a, **k: None)
    assert str(runtime.cache_dir("tuning", "x")).startswith(
        "/content/drive/MyDrive/brainlib"
    ) and "drive" not in str(runtime.cache_dir("features"))
    assert (
        hosted.mounts == ["/content/drive"]
        and os.environ["BRAINLIB_DRIVE"] == "/content/drive/MyDrive/brainlib"
    )
    del os.environ["BRAINLIB_DRIVE"]

    def refuse(path):
        raise ValueError("mount failed")

    hosted.drive.mount = refuse
    runtime.set_up({"drive": True})
    assert (
        "no Drive (ValueError: mount failed)" in capsys.readouterr().out
        and "BRAINLIB_DRIVE" not in os.environ
    )


def test_a_token_that_is_given_is_used(hosted, monkeypatch):
    with_gpu(monkeypatch)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    runtime.set_up({})
    assert "HF_HUB_DISABLE_IMPLICIT_TOKEN" not in os.environ


def test_a_large_model_without_a_gpu_is_warned_of_elsewhere_too(monkeypatch, capsys):
    with_gpu(monkeypatch, False)
    assert runtime.set_up(COLAB_PARAMETERS) == {}
    said = capsys.readouterr().out
    assert "microsoft/wavlm-base-plus without a GPU: tuning a base-sized model" in said
    for small in ("wavlm-pico", "whisper-tiny.en", "openai/whisper-tiny.en"):
        assert runtime.set_up({**COLAB_PARAMETERS, "speech_model": small}) == {}
        assert "hours" not in capsys.readouterr().out


def test_colab_s_old_torchao_does_not_stop_peft(tmp_path):
    """Colab has torchao 0.10; PEFT from 0.19 on refuses to put any adapter in beside one older than 0.16."""
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("")
    (tmp_path / "torchao-0.10.0.dist-info").mkdir()
    (tmp_path / "torchao-0.10.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n"
    )
    code = (
        "import torch, peft; {}\n"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 4))\n"
        "print(len(peft.get_peft_model(net, peft.LoraConfig(target_modules=['0'])).state_dict()))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", code.format(x)], env=environment, capture_output=True, text=True
        )
        for x in ("import brainlib.tuning", "pass")
    ]
    assert runs[0].returncode == 0 and runs[0].stdout == "4\n", runs[0].stderr[-500:]
    assert runs[1].returncode == 0 or "incompatible version of torchao" in runs[1].stderr
