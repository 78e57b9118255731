"""The workflow: what is current stays, what is missing is made, a kill loses nothing."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml
import zoo_facts
from conftest import GRID, ROOT, write_responses
from lebel_tree import zscored

from brainlib import datasets, results
from brainlib.recipes import get_recipe

sys.path.append(str(ROOT / "workflow"))
import zoo

load_zoo = results.load_zoo

SNAKEMAKE = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "workflow/Snakefile")]
TINY = {"window": 6.0, "hop": 4.0, "trs_per_step": 5, "rank": 2, "stages": [["all", 1]]}


def snakemake(folder, *arguments, more=(), **options):
    """The arguments of a call in a folder of its own, whose results go to `out`."""
    profile = ["--workflow-profile", str(ROOT / "workflow/profiles/default")]
    settings = ["--config", "grid=grid.yaml", "out=out", *more]
    command = [*SNAKEMAKE, "--cores", "2", *profile, *arguments, *settings]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BRAINLIB_CACHE": str(folder / "cache")}
    return {"args": command, "cwd": folder, "env": environment, "text": True, **options}


def call(folder, *arguments, **options):
    done = subprocess.run(**snakemake(folder, *arguments, capture_output=True, **options))
    logs = "\n".join(p.read_text()[-2000:] for p in (folder / "out/logs").glob("*.log"))
    assert done.returncode == 0, done.stderr[-3000:] + logs[-3000:]
    return done.stdout + done.stderr


def counts(text):
    """Jobs by rule, from the table of a dry run."""
    table = text.split("Job stats:")[1].split("total")[0]
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.M)}


def cpu_of_children():
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def write_grid(folder, each, **settings):
    group = settings | {"each": each}
    (folder / "grid.yaml").write_text(yaml.safe_dump({"groups": {"tiny": group}}, sort_keys=False))
    return zoo.read_grid(folder / "grid.yaml")


def pretend(folder, run, age=0.0):
    """The files of a run that is done, some seconds ago."""
    made = [folder / f"out/{run.stem}.json"]
    made[0].parent.mkdir(exist_ok=True)
    made[0].write_text("{}")
    if run.keep_model:
        made.append(folder / f"out/adapters/{run.stem}")
        made[1].mkdir(parents=True)
        made.append(made[1] / "adapter_config.json")
        made[2].write_text("{}")
    for path in reversed(made):
        os.utime(path, (time.time() - age,) * 2)


# ------------------------------------------------------------------ without a job
def test_what_is_there_is_current_whatever_its_date(tmp_path):
    runs = write_grid(tmp_path, {"seed": [0, 1, 2], "n_voxels": [8, 9]}, keep_model=True)
    random.seed(0)
    for run in runs:
        pretend(tmp_path, run, age=random.uniform(0, 1e8))
    assert "Nothing to be done" in call(tmp_path, "-n")
    (tmp_path / f"out/{runs[3].stem}.json").unlink()
    listed = call(tmp_path, "-n")
    assert counts(listed) == {"tune_and_keep": 1, "zoo": 1} and runs[3].stem in listed


def test_only_the_runs_that_changed_are_made_anew_and_the_old_files_are_listed(tmp_path):
    runs = write_grid(tmp_path, {"seed": [0, 1, 2]})
    for run in runs:
        pretend(tmp_path, run)
    changed = write_grid(tmp_path, {"seed": [0, 1, 3]})
    old, new = runs[2].stem, changed[2].stem
    listed = call(tmp_path, "-n")
    assert counts(listed) == {"tune": 1, "zoo": 1}
    assert new in listed and old not in listed
    assert f"out/{old}.json" in call(tmp_path, "stale").splitlines()
    assert zoo.orphans(changed, tmp_path / "out") == [tmp_path / f"out/{old}.json"]
    call(tmp_path, "clean_stale")
    left = {path.stem for path in (tmp_path / "out").glob("*.json")}
    assert left == {run.stem for run in runs[:2]}


def test_a_run_marked_later_is_made_only_where_it_is_asked_for(tmp_path):
    now, later = write_grid(tmp_path, {"later": [False, True]})
    assert now.key == later.key  # it shapes no number
    pretend(tmp_path, now)
    assert "Nothing to be done" in call(tmp_path, "-n")
    assert later.stem in call(tmp_path, "-n", more=["only=*"])
    pretend(tmp_path, later)
    assert not zoo.orphans([now, later], tmp_path / "out")


def test_a_clean_clone_has_every_run_that_the_zoo_makes():
    missing = [
        path
        for run in zoo.read_grid()
        for path in (f"{run.stem}.json", *[f"adapters/{run.stem}"] * run.keep_model)
        if not run.later and not (results.ZOO / path).exists()
    ]
    assert not missing


def test_a_thousand_jobs_are_listed_in_seconds(tmp_path):
    each = {"seed": list(range(10)), "stories": list(range(1, 21)), "n_voxels": list(range(1, 6))}
    assert len(write_grid(tmp_path, each)) == 1000
    start = cpu_of_children()
    assert counts(call(tmp_path, "-n")) == {"tune": 1000, "zoo": 1}
    assert cpu_of_children() - start < 60  # some 6 s, whatever else runs


def test_parsing_the_workflow_needs_no_torch():
    code = "import sys, zoo; zoo.read_grid()[0].stem; print('torch' in sys.modules)"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "workflow")])
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"subjects": "SIM01"}, "subjects='SIM01'; expected lists"),
        ({"subjects": ["SIM01", "SIM01"], "dealt": True}, "lists of different subjects"),
        ({"n_voxels": 0}, "n_voxels=0; expected"),
        ({"n_voxels": True}, "n_voxels=True; expected"),
        ({"bf16": "no"}, "bf16='no'; expected"),
        ({"stories": -2}, "stories=-2; expected"),
        ({"dealt": "no"}, "dealt='no'; expected"),
        ({"fit_apart": True}, "needs `stories`"),
        ({"linear_map": True}, "a linear map tunes nothing"),
        ({"target": "shuffled", "changes": {"adapter": "none"}}, "adapter: none tunes on nothing"),
        ({"keep_model": True, "changes": {"adapter": "full"}}, "adapter: full has none"),
        ({"changes": {"targets": "q_proj"}}, "targets 'q_proj'; expected a list"),
        ({"changes": {"rank": "4"}}, "rank '4'; expected a whole number of at least 1"),
        ({"changes": {"lr": -1e-2}}, "lr -0.01; expected a number above 0"),
    ],
)
def test_a_run_that_means_nothing_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        zoo.Run("one", "g", **settings).tuned_recipe()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "expected a mapping with `groups`"),
        ("[1]", "expected a mapping with `groups`"),
        ("groups: {g: {}}\ndefault: {}", "'default'. are unknown"),
        ("groups: {g: {each: {seed: '12'}}}", "each of .'seed'. needs a list"),
        ("groups: {g: {each: {seed: []}}}", "each of .'seed'. needs a list"),
        ("groups: {a: {seed: 1}, b: {}, a: {seed: 2}}", "(?s)'a'. stand twice.*line 1"),
        ("groups: {g: {seed: 1, seed: 2}}", "'seed'. stand twice"),
        ("groups: {a/b: {}}", "group 'a/b': run 'a/b'.*without slashes"),
        ("groups: {g: {changes: null}}", "grid.yaml: group 'g': "),
        (
            "groups: {a: {recipe: brainwavlm-quick, adapter_of: b}}",
            "'a' takes .* of 'b', which no run",
        ),
        (
            "defaults: {recipe: brainwavlm-quick}\ngroups: {a: {adapter_of: b}, b: {keep_model: true, later: true}}",
            "or only later",
        ),
        ("defaults:\ngroups: {g: {model: null, n_voxels: 0}}", "group 'g': .*n_voxels=0"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(tmp_path, text, words):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        zoo.read_grid(tmp_path / "grid.yaml")


# ------------------------------------------------------------------ a tiny grid
@pytest.fixture
def recordings(tmp_path):
    """A tree of six stories of 40 s and two subjects of six voxels with little noise; the last two stories have repeats."""
    rng = np.random.default_rng(0)
    root = tmp_path / "tree"
    for folder in ("stimuli", "derivative/TextGrids"):
        (root / folder).mkdir(parents=True)
    for name in "abcdef":
        sound = 0.1 * rng.standard_normal(40 * 16_000)
        soundfile.write(root / f"stimuli/{name}.wav", sound, 16_000)
        (root / f"derivative/TextGrids/{name}.TextGrid").write_text(GRID.format(end=40))
        for subject in ("S1", "S2"):
            signal_ = rng.standard_normal((10, 6))
            n_repeats = {"e": 3, "f": 4}.get(name, 1)
            repeats = signal_ + 0.3 * rng.standard_normal((n_repeats, 10, 6))
            path = root / f"derivative/preprocessed_data/{subject}/{name}.hf5"
            write_responses(path, zscored(repeats.mean(0)), repeats if n_repeats > 1 else None)
    (root / "derivative/respdict.json").write_text(json.dumps(dict.fromkeys("abcdef", 30)))
    return root


def tiny_runs(folder):
    return write_grid(
        folder,
        {"subjects": [["S1"], ["S2"]], "seed": [0, 1, 2, 3]},
        dataset="tree",
        model="wavlm-pico",
        changes=TINY,
        voxels="all",
        evaluate_on=["S1"],
        keep_model=True,
    )


def finished(folder):
    """{name: (when it was written, numbers)} of the runs that are done."""
    entries = {p: json.loads(p.read_text()) for p in (folder / "out").glob("*.json")}
    return {e["about"]["run"]: (p.stat().st_mtime_ns, e["numbers"]) for p, e in entries.items()}


def attempts(folder):
    """{name: how often its job came to its end}, by the logs."""
    logs = (folder / "out/logs").glob("*.log")
    return {p.name.split(".")[0]: len(re.findall(r": \d+ s$", p.read_text(), re.M)) for p in logs}


def kill_midway(folder, n):
    """Start, wait for so many runs, and kill snakemake with everything that it started."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen(**snakemake(folder, start_new_session=True, **quiet))
    try:
        end = time.monotonic() + 600
        while len(finished(folder)) < n and running.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def test_a_workflow_that_is_killed_goes_on_where_it_was(tmp_path, recordings):
    runs = {run.name: run for run in tiny_runs(tmp_path)}
    kill_midway(tmp_path, 3)
    before = finished(tmp_path)
    assert 3 <= len(before) < len(runs) == 8
    call(tmp_path, "--unlock")  # the kill left the folder locked
    call(tmp_path)
    after = finished(tmp_path)
    assert set(after) == set(runs)  # none is lost
    assert {name: after[name] for name in before} == before  # none was run twice
    assert max(attempts(tmp_path).values()) == 1
    kept = {path.name for path in (tmp_path / "out/adapters").iterdir()}
    assert kept == {run.stem for run in runs.values()}

    chosen = runs["tiny-S2-1"]
    (tmp_path / f"out/{chosen.stem}.json").unlink()
    shutil.rmtree(tmp_path / "cache")  # nothing is left of the run but its settings
    call(tmp_path)
    again = finished(tmp_path)
    assert [name for name in runs if again[name][0] != after[name][0]] == [chosen.name]
    assert again[chosen.name][1] == after[chosen.name][1]  # the same numbers
    assert "Nothing to be done" in call(tmp_path)
    table = results.load_zoo(tmp_path / "out")
    assert set(table.run) == set(runs) and set(table.tuned_on) == {"S1", "S2"}


def test_a_run_of_full_tuning_records_which_parameters_changed(tmp_path, recordings, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))
    import tune

    changes = {k: v for k, v in TINY.items() if k != "rank"} | {"adapter": "full"}
    settings = {"dataset": str(recordings), "model": "wavlm-pico", "voxels": "all"}
    run = zoo.Run("full", "g", changes=changes, subjects=["S1"], evaluate_on=[], **settings)
    tune.perform(run, tmp_path)
    table = results.load_zoo(tmp_path)
    change = pd.DataFrame(table.attrs["parameter_changes"]["full"])
    moved = change.groupby("kind").change.sum()
    assert moved["convolution"] == 0 and (moved[["q", "v", "feed-forward", "norm"]] > 0).all()
    assert change.layer.max() == 6  # wavlm-pico's


def test_a_model_is_tuned_on_masked_sound_alone(tmp_path, recordings, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))
    import stimulus
    import tune

    changes = TINY | {"stages": [["all", 3]], "lr": 1e-2}
    settings = {"dataset": str(recordings), "model": "wavlm-pico", "voxels": "all"}
    run = zoo.Run("sound", "g", changes=changes, target="masked sound", subjects=["S1"], **settings)
    monkeypatch.setattr(datasets.Dataset, "responses", None)  # to ask for one would fail
    entry = tune.perform(replace(run, evaluate_on=[]), tmp_path)
    losses = [epoch["validation_loss"] for epoch in entry["numbers"]["history"]]
    assert len(losses) == 4 and losses[-1] < 0.9 * losses[0]
    masked = stimulus.spans(np.random.default_rng(0), (200, 300))
    assert abs(masked[:, 20:].mean() - stimulus.MASKED) < 0.02
    lengths = np.diff(np.flatnonzero(np.diff(np.pad(masked, ((0, 0), (1, 1))).astype(int).ravel())))
    assert lengths[::2].min() >= 1 and np.median(lengths[::2]) >= stimulus.SPAN


def test_a_kept_adapter_is_evaluated_on_others_without_tuning(tmp_path, recordings, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))
    import tune

    settings = {"dataset": str(recordings), "model": "wavlm-pico", "voxels": "all", "changes": TINY}
    settings |= {"subjects": ["S1"], "evaluate_on": ["S2"]}
    first = tune.perform(zoo.Run("first", "g", keep_model=True, **settings), tmp_path)
    monkeypatch.setattr(tune.BrainTuner, "fit", None)  # to tune would fail
    again = zoo.Run("again", "g", adapter_of="first", **settings)
    second = tune.perform(again, tmp_path)
    assert first["about"]["key"] != second["about"]["key"] and second["numbers"]["history"] == []
    for region, values in first["numbers"]["scores"]["S2"]["noisy"].items():
        same = second["numbers"]["scores"]["S2"]["noisy"][region]
        for name in values:  # the adapter is kept in half precision
            np.testing.assert_allclose(same[name], values[name], atol=0.01, equal_nan=True)
    table = results.load_zoo(tmp_path)
    assert set(table.method) == {"tuned"} and set(table.tuned_on) == {"S1"}
    with pytest.raises(ValueError, match=r"its \['target'\] are not those of first"):
        tune.perform(replace(again, target="shuffled responses"), tmp_path)


def test_targets_are_what_they_say(ds, tmp_path, monkeypatch):
    import tune

    run = zoo.Run("r", "g", target="noise-free responses", voxels="all")
    story = ds.split["train"][0]
    expected = ds.responses("SIM01", story, noise_free=True)
    np.testing.assert_array_equal(tune.target(run, ds)("SIM01", story), expected)
    small = get_recipe("brainwavlm-quick")
    states = tune.states_of("wavlm-pico", small)(ds.story(story))
    assert states.shape == (len(ds.story(story).tr_times), 192) and abs(states.std() - 1) < 0.01
    with pytest.raises(ValueError, match="expected one of .*masked sound.*states of MODEL"):
        tune.target(replace(run, target="brains"), ds)
    with pytest.raises(ValueError, match="4000 stories; fireside has 20 to train on"):
        tune.tuning_stories(replace(run, stories=4000), ds)


def test_masked_sound_that_diverges_or_has_nothing_to_tune_is_refused(
    tmp_path, recordings, monkeypatch
):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))
    import tune

    settings = {"dataset": str(recordings), "model": "wavlm-pico", "voxels": "all"}
    settings |= {"target": "masked sound", "subjects": ["S1"], "evaluate_on": []}
    wild = zoo.Run("wild", "g", changes=TINY | {"lr": 1e6, "clip_norm": 0.0}, **settings)
    assert not tune.in_bf16(replace(wild, bf16=True))  # its own loop trains in single precision
    with pytest.raises(ValueError, match="masked sound: loss nan .*lower the rate"):
        tune.perform(wild, tmp_path)
    assert not list(tmp_path.glob("*.json"))
    with pytest.raises(ValueError, match="adapter: full"):
        tune.perform(replace(wild, changes={"adapter": "full"}), tmp_path)


def test_another_grid_needs_a_folder_of_its_own(tmp_path):
    write_grid(tmp_path, {"seed": [0]})
    options = snakemake(tmp_path, "clean_stale", capture_output=True)
    options["args"] = [word for word in options["args"] if word != "out=out"]
    done = subprocess.run(**options)
    assert done.returncode and "without out=" in done.stdout + done.stderr


def test_no_recipe_gives_away_a_quarter_of_what_its_best_rate_gains():
    zoo_, searched = results.load_zoo(), results.load_zoo(results.ZOO.parent / "search")
    assert searched.attrs["stale"] == {}
    grid = [run for run in zoo.read_grid(ROOT / "workflow/search.yaml")]
    there = [run for run in grid if run.name in searched.attrs["learning_curves"]]
    assert {run.group for run in there} >= {"search-brainwavlm", "search-full"}
    held = {"search-full": "full-0", "search-brainwavlm": "search-brainwavlm-lr-0.002"}
    curves = zoo_.attrs["learning_curves"] | searched.attrs["learning_curves"]
    for group in {run.group for run in there}:
        recipe = next(run.recipe for run in there if run.group == group)
        own = curves.get(held.get(group, f"recipe-{recipe}"))
        if own is None:  # not run at its own rate yet
            continue
        tried = [curves[run.name] for run in there if run.group == group]
        gains = [curve[-1]["validation"] - curve[0]["validation"] for curve in [own, *tried]]
        assert gains[0] > 0.75 * max(gains), (group, gains)


# ------------------------------------------------------------------ sweeps
def test_a_sweep_is_all_combinations_and_one_table(tmp_path, ds):
    told = {"notebook": "01_data_loading", "out": "out"}
    told["parameters"] = {"subjects": [["SIM01"], ["SIM02"]], "seed": [0, 1]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(told))
    write_grid(tmp_path, {"seed": [0]})
    (tmp_path / "out/logs").mkdir(parents=True)
    listed = call(tmp_path, "sweep", "-n", more=["sweep=sweep.yaml"])
    assert counts(listed) == {"notebook": 4, "sweep": 1}

    sweep = zoo.read_sweep(tmp_path / "sweep.yaml")
    assert [c["seed"] for c in sweep.cells.values()].count(1) == 2
    first = next(iter(sweep.cells))
    words = sweep.arguments(first, "out/cells/one.json")
    assert words.startswith("01_data_loading --params") and "-p subjects '[\"SIM0" in words
    for i, cell in enumerate(sweep.cells):
        results.record(tmp_path / f"out/cells/{cell}.json", {"r": i}, dataset=ds)
    call(tmp_path, "sweep", more=["sweep=sweep.yaml"])
    table = pd.read_csv(tmp_path / "out/table.csv")
    assert list(table["numbers.r"]) == [0, 1, 2, 3] and len(table["parameters.seed"]) == 4
    changed = told | {"parameters": {"subjects": [["SIM01"]], "sed": [0]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(changed | {"parametres": {}}))
    with pytest.raises(ValueError, match="unknown: .'parametres'"):
        zoo.read_sweep(tmp_path / "sweep.yaml")


# ------------------------------------------------------------------ the page
def test_the_page_has_every_run_its_cost_and_what_is_missing(tmp_path, monkeypatch):
    rows = []
    for name, tuned, score in (("pretrained", "", 0.5), ("whole-cortex-SIM01", "SIM01", 0.6)):
        shared = {
            "run": name,
            "method": "tuned" if tuned else "untuned",
            "tuned_on": tuned,
            "region": "all voxels",
            "seconds": 720,
        }
        for kind in zoo_facts.KINDS:
            for story, extra in (("c", -0.01), ("d", 0.01)):
                where = {"subject": "SIM01", "kind": kind, "story": story}
                rows.append(shared | where | {"normalised": score + extra, "change": score - 0.5})
    table = pd.DataFrame(rows)
    table.attrs = {"learning_curves": {"pretrained": [], "whole-cortex-SIM01": []}}
    monkeypatch.setattr(results, "load_zoo", lambda: table)
    facts = zoo_facts.facts()
    assert len(facts["ZOO_TABLE"].splitlines()) == 4
    assert "| <code>whole-cortex-SIM01</code> | SIM01 | 0.600 [" in facts["ZOO_TABLE"]
    assert "| 0.100 [0.100, 0.100] | 720 |" in facts["ZOO_TABLE"]
    assert "`whole-cortex-SIM02`" in facts["ZOO_MISSING"]
    assert "| 1,000 | 8.3 days | 4.2 days | 2.0 h | 8.3 days |" in facts["ZOO_COSTS"]
    monkeypatch.setattr(results, "load_zoo", lambda: load_zoo(tmp_path))  # no run at all
    assert "0 of" in zoo_facts.facts()["ZOO_MISSING"]
