"""The zoo: what is current is read, what is stale is named, and nothing else happens."""

import json
import shutil
import types

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from brainlib import results
from brainlib.recipes import get_recipe
from brainlib.saving import digest
from brainlib.speech import SpeechEncoder

MODEL = "wavlm-pico"
CHANGES = {"rank": 2, "stages": [["all", 1]]}
NOISY = {"all voxels": {"normalised": [0.5, 0.25]}}
BOTH = {"auditory": {s: [0.5, 0.25] for s in results.SCORES}}


def entry(name="one", *, when="2026-01-01", scores=None, **other):
    """What `workflow/tune.py` writes, as small as can be."""
    about = {
        "run": name,
        "group": "g",
        "key": "0123abcd",
        "model": MODEL,
        "recipe": "crossfit-quick",
    }
    about |= {"changes": CHANGES, "subjects": ["S1", "S2"], "target": "responses", "voxels": "all"}
    about |= {"n_voxels": None, "stories": 4, "seed": 3, "seconds": 7, "tree": "made-up"}
    recipe = get_recipe("crossfit-quick").with_(**CHANGES, seed=3)
    about |= {"recipe_hash": recipe.hash(), "weights": results.weights_hash(MODEL), **other}
    history = [{"epoch": 0, "validation": 0.1, "loss": None}]
    scores = {"S1": {"noisy": NOISY, "noise_free": BOTH}} if scores is None else scores
    numbers = {"history": history, "kept_epoch": 0, "stories": ["c", "d"], "scores": scores}
    made_from = {"name": "made-up", "simulated": False}
    whole = {"numbers": numbers, "dataset": made_from, "about": about}
    return whole | {"provenance": {"brainlib": "0", "when": when}}


@pytest.fixture
def zoo(tmp_path):
    def write(*entries):
        for i, one in enumerate(entries):
            (tmp_path / f"{i}.json").write_text(json.dumps(one))
        return tmp_path

    return write


def test_a_run_becomes_a_row_per_subject_kind_region_and_story(zoo):
    table = results.load_zoo(zoo(entry()))
    assert list(table.columns) == results.COLUMNS and len(table) == 4
    noisy = table[table.kind == "noisy"]
    assert list(noisy.normalised) == [0.5, 0.25] and list(noisy.story) == ["c", "d"]
    assert noisy.beyond_low_level.isna().all() and set(noisy.region) == {"all voxels"}
    free = table[table.kind == "noise-free"].iloc[1]
    assert (free.region, free.low_level, free.beyond_low_level) == ("auditory", 0.25, 0.25)
    assert (free.tuned_on, free.subject, free.n_stories, free.seed) == ("S1+S2", "S1", 4, 3)
    assert table.n_voxels.isna().all()  # all of them
    one_region = results.load_zoo(zoo(entry(region="auditory")))
    assert set(table.voxels) == {"all"} and set(one_region.voxels) == {"all in auditory"}
    assert table.attrs["stale"] == {}
    assert table.attrs["learning_curves"]["one"][0]["validation"] == 0.1
    assert table.attrs["parameter_changes"] == {}  # its adapter is kept instead


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_without_runs_there_is_a_table_without_rows(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    table = results.load_zoo(tmp_path / folder)
    assert list(table.columns) == results.COLUMNS and table.empty
    names = ("stale", "learning_curves", "learning_rates", "parameter_changes")
    assert table.attrs == dict.fromkeys(names, {})


def test_a_table_of_results_leaves_out_adapters_and_what_is_being_written(zoo):
    folder = zoo(entry())
    for part in ("adapters/one.0123abcd", ".1.json.part"):
        (folder / part).mkdir(parents=True)
        (folder / part / "adapter_config.json").write_text("{}")
    assert len(results.load_results(folder)) == 1


def test_a_run_without_what_a_row_needs_is_named(zoo):
    cut = entry()
    del cut["about"]["seconds"]
    with pytest.raises(ValueError, match="run one .*seconds"):
        results.load_zoo(zoo(cut))


def test_a_run_evaluated_on_nobody_gives_its_curve_and_its_rate_alone(zoo):
    changes = {"lr": 0.25}
    recipe_hash = get_recipe("crossfit-quick").with_(**changes, seed=3).hash()
    table = results.load_zoo(zoo(entry(scores={}, changes=changes, recipe_hash=recipe_hash)))
    assert table.empty and list(table.attrs["learning_curves"]) == ["one"]
    assert table.attrs["learning_rates"] == {"one": 0.25}


def test_an_untuned_model_is_tuned_on_nobody(zoo):
    changes = {"adapter": "none"}
    recipe = get_recipe("crossfit-quick").with_(**changes, seed=3)
    table = results.load_zoo(zoo(entry(changes=changes, recipe_hash=recipe.hash())))
    assert set(table.tuned_on) == {""}


def test_a_change_is_against_the_untuned_model_on_the_same_responses(zoo):
    changes = {"adapter": "none"}
    recipe_hash = get_recipe("crossfit-quick").with_(**changes, seed=3).hash()
    before = {"all voxels": {"normalised": [0.5, 0.25]}}
    before = {"S1": {"noisy": before, "noise_free": before}}
    after = {"all voxels": {"normalised": [0.6, 0.1]}}
    after = {"S1": {"noisy": after}, "S2": {"noisy": after}}
    untuned = entry("before", scores=before, changes=changes, recipe_hash=recipe_hash)
    table = results.load_zoo(zoo(untuned, entry("after", scores=after))).set_index("run")
    assert (table.change["before"] == 0).all()
    tuned = table.loc["after"].set_index(["subject", "story"])
    assert tuned.change["S1"].tolist() == pytest.approx([0.1, -0.15])
    assert tuned.change["S2"].isna().all() and tuned.beyond_change.isna().all()


def test_a_tuned_model_is_compared_with_the_linear_map_of_the_same_responses(zoo):
    changes = {"adapter": "none"}
    recipe_hash = get_recipe("crossfit-quick").with_(**changes, seed=3).hash()
    untuned = {"changes": changes, "recipe_hash": recipe_hash}
    score = lambda r: {"S1": {"noisy": {"all voxels": {"normalised": r}}}}  # noqa: E731
    mapped = {"linear_map": True, **untuned}
    entries = [entry("before", scores=score([0.5, 0.5]), **untuned)]
    entries += [entry("map", scores=score([0.6, 0.4]), **mapped)]
    entries += [entry("after", scores=score([0.7, 0.7]))]
    entries += [entry("control", scores=score([0.7, 0.7]), target="own sound")]
    entries += [entry("fewer", scores=score([0.7, 0.7]), stories=2)]
    table = results.load_zoo(zoo(*entries)).set_index("run")
    assert table.over_map["after"].tolist() == pytest.approx([0.1, 0.3])
    assert table.change["map"].tolist() == pytest.approx([0.1, -0.1])
    # the map was made from other responses, or from more of them
    assert table.over_map[["before", "control", "fewer"]].isna().all()
    assert table.change["fewer"].tolist() == pytest.approx([0.2, 0.2])


def test_the_zoo_that_ships_is_current_and_small():
    table = results.load_zoo()
    assert table.attrs["stale"] == {} and "pretrained" in set(table.run)
    assert sum(p.stat().st_size for p in results.ZOO.rglob("*") if p.is_file()) < 20e6


STALE = {
    "scoring": (0, "scored in another way"),
    "recipe_hash": ("0" * 12, "recipe crossfit-quick has changed"),
    "weights": ("0" * 12, "the weights of wavlm-pico have changed"),
    "recipe": ("gone", "recipe gone cannot be made"),
    "changes": ({"ranks": 2}, "cannot be made"),
}


@pytest.mark.parametrize("what", STALE)
def test_a_stale_run_is_left_out_and_named_with_the_reason(zoo, what):
    value, reason = STALE[what]
    folder = zoo(entry(), entry("old", **{what: value}))
    table = results.load_zoo(folder)
    assert set(table.run) == {"one"} and list(table.attrs["learning_curves"]) == ["one"]
    assert list(table.attrs["stale"]) == ["old"] and reason in table.attrs["stale"]["old"]
    with pytest.raises(ValueError, match="'old' is stale.*snakemake --cores 1 --config only=old"):
        results.load_tuned("old", folder)


def test_runs_on_another_version_of_the_data_are_stale(zoo, ds):
    mine = entry("mine", tree="fireside")
    mine["dataset"] = results._data(ds)
    other = json.loads(json.dumps(mine))
    other["about"]["run"] = "other"
    other["dataset"]["SimulationVersion"] = "0-old"
    folder = zoo(mine, other)
    for dataset in (None, ds):  # the version installed, the one in hand
        table = results.load_zoo(folder, dataset=dataset)
        assert set(table.run) == {"mine"} and "0-old" in table.attrs["stale"]["other"]
    tree = types.SimpleNamespace(name="mine", simulated=False, description={})
    assert set(results.load_zoo(folder, dataset=tree).attrs["stale"]) == {"mine", "other"}


def test_of_two_current_files_of_a_run_the_newer_counts(zoo):
    newer = entry(when="2026-02-02", seconds=9)
    stale = entry(when="2026-03-03", weights="0")
    table = results.load_zoo(zoo(newer, entry(), stale))
    assert set(table.seconds) == {9} and table.attrs["stale"] == {}


@pytest.fixture
def tuned(zoo):
    """A folder with a run and its adapter in half precision, and the adapter's states of a second of sound."""
    torch.manual_seed(0)
    encoder = SpeechEncoder.from_pretrained(MODEL, device="cpu")
    folder = zoo(entry(base_fingerprint=encoder.fingerprint()))
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(encoder.model, config).half()
    adapted.save_pretrained(folder / "adapters/one.0123abcd")
    adapted.float()
    return folder, encoder


def test_a_tuned_model_comes_back_with_its_provenance(tuned):
    folder, made = tuned
    encoder, about = results.load_tuned("one", folder)
    assert about["seed"] == 3 and about["when"] == "2026-01-01"
    sound = 0.1 * torch.randn(1, 16_000)
    states = [e.hidden_states(sound.to(e.device))[-1].cpu() for e in (encoder, made)]
    plain = SpeechEncoder.from_pretrained(MODEL, device="cpu").hidden_states(sound)[-1]
    torch.testing.assert_close(*states, atol=1e-3, rtol=1e-2)
    assert (states[0] - plain).abs().max() > 0.02  # the adapter acts
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_a_missing_run_or_half_an_adapter_is_refused_with_the_command(tuned):
    folder, _ = tuned
    with pytest.raises(FileNotFoundError, match="no run 'two'.*it has .'one'.*only=two"):
        results.load_tuned("two", folder)
    adapter = folder / "adapters/one.0123abcd"
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors'. not found.*only=one"):
        results.load_tuned("one", folder)
    shutil.rmtree(adapter)
    with pytest.raises(FileNotFoundError, match="not found"):
        results.load_tuned("one", folder)


def test_an_adapter_with_nan_is_refused(tuned):
    folder, _ = tuned
    path = folder / "adapters/one.0123abcd/adapter_model.safetensors"
    state = load_file(path)
    next(iter(state.values()))[0] = torch.nan
    save_file(state, path)
    with pytest.raises(ValueError, match="not finite"):
        results.load_tuned("one", folder)


def test_an_adapter_of_another_base_is_refused(tuned):
    folder, _ = tuned
    (folder / "0.json").write_text(json.dumps(entry(base_fingerprint="0" * 16)))
    with pytest.raises(ValueError, match="tuned on another 'wavlm-pico'"):
        results.load_tuned("one", folder)


def test_an_adapter_that_is_not_the_one_saved_is_refused(tuned):
    folder, encoder = tuned
    path = folder / "adapters/one.0123abcd/adapter_config.json"
    about = {"base_fingerprint": encoder_fingerprint(), "adapter": {path.name: digest(path)}}
    (folder / "0.json").write_text(json.dumps(entry(**about)))
    results.load_tuned("one", folder)
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 1'))
    with pytest.raises(
        ValueError, match="adapter_config.json: lost, or not the file that was saved.*only=one"
    ):
        results.load_tuned("one", folder)


def test_models_that_are_there_are_loaded_and_the_others_named_with_the_reason(tuned):
    folder, _ = tuned
    about = {"base_fingerprint": encoder_fingerprint()}
    (folder / "0.json").write_text(json.dumps(entry(**about)))
    runs = {"own": "one", "another": "two"}
    encoders, absent = results.load_models(runs, folder, model=MODEL)
    assert list(encoders) == ["own"] and absent == {"another": "not made, or not kept"}
    _, absent = results.load_models(runs, folder, model="hubert-base")
    assert absent["own"] == f"tuned from {MODEL}"
    other = get_recipe(entry(**about)["about"]["recipe"]).with_(window=9.0)
    _, absent = results.load_models(runs, folder, model=MODEL, recipe=other)
    assert absent["own"] == "of other windows"
    (folder / "0.json").write_text(json.dumps(entry(**about, recipe_hash="old")))
    _, absent = results.load_models(runs, folder, model=MODEL)
    assert absent["own"] == "stale or damaged"


def encoder_fingerprint():
    return SpeechEncoder.from_pretrained(MODEL, device="cpu").fingerprint()


BROKEN = {
    "a story lost": lambda e: e["numbers"]["stories"].pop(),
    "a story twice": lambda e: e["numbers"].update(stories=["c", "c"]),
    "infinite": lambda e: e["numbers"]["scores"]["S1"]["noisy"].update(
        a={"normalised": [1e999, 0]}
    ),
    "impossible": lambda e: e["numbers"]["scores"]["S1"]["noisy"].update(a={"normalised": [40, 0]}),
    "no numbers": lambda e: e.update(numbers=[]),
    "no name": lambda e: e["about"].pop("run"),
    "words for scores": lambda e: e["numbers"].update(scores="high"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_run_is_refused_by_its_file(zoo, what):
    one = json.loads(json.dumps(entry()))
    BROKEN[what](one)
    with pytest.raises(ValueError, match="0.json: "):
        results.load_zoo(zoo(one))


def test_a_precomputed_result_is_read_and_a_stale_one_is_computed_anew(tmp_path):
    path, calls = tmp_path / "a.json", []

    def compute():
        calls.append(1)
        return {"r": np.array([0.5, np.nan]), "n": len(calls)}

    about = {"model": "abc", "layers": [1, 2], "windows": {"window": 10.0, "hop": 8.0}}
    first = results.precomputed(path, compute, write=True, **about)
    assert first == {"r": [0.5, None], "n": 1}
    assert results.precomputed(path, compute, **about) == first
    other = results.precomputed(path, compute, **about | {"layers": [1, 3]})
    assert other["n"] == 2  # of other settings: stale
    assert results.precomputed(path, compute, **about)["n"] == 1  # and nothing was written


def test_a_verdict_becomes_points_with_its_answers_folded():
    text = results.in_short("One rose, +.1. Two fell", ["- *Why?* So."], label="simulated")
    assert text.startswith("**In short** (simulated)\n\n- One rose, +.1.\n- Two fell.\n\n<details>")
    assert "<summary>All answers</summary>\n\n- *Why?* So.\n\n</details>" in text
