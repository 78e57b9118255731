import json
import re
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest

import fireside
from brainlib import cortex, datasets, encoding, lowlevel
from fireside import simulation

STORIES = sorted((simulation.ASSETS / "stories").glob("*.txt"))


def header_and_words(path):
    head, body = path.read_text().split("\n\n", 1)
    words = [w.strip("'") for w in re.sub(r"[^\w' \n]", "", body).split()]
    return dict(x.split(": ", 1) for x in head.splitlines()), [w for w in words if w]


def test_at_least_twenty_stories_of_400_to_600_words_by_four_voices():
    heads, words = zip(*map(header_and_words, STORIES))
    assert len(STORIES) >= 20 and all(400 <= len(w) <= 600 for w in words)
    assert len({h["title"] for h in heads}) == len(STORIES)
    voices = {h["voice"] for h in heads}
    assert {v[:2] for v in voices} == {
        "af",
        "am",
        "bf",
        "bm",
    }  # American and British, female and male


@pytest.mark.parametrize("path", STORIES, ids=lambda p: p.stem)
def test_every_word_has_a_time_and_sounds_of_its_own(path):
    story = fireside.embedded_story(path.stem)
    _, words = header_and_words(path)
    assert story.words.text.tolist() == words
    for table in (story.words, story.phonemes):
        assert (table.end > table.start).all() and (table.start.diff()[1:] > 0).all()
        assert table.end.max() <= story.duration + 1e-6
    assert set(lowlevel.phoneme_names(story)) <= set(lowlevel.PHONES)
    middles = (story.phonemes.start + story.phonemes.end) / 2
    owner = np.searchsorted(story.words.start, middles, side="right") - 1
    assert set(owner) == set(range(len(words)))  # no word without a phoneme
    assert 2.5 * 60 <= story.duration <= 4.2 * 60
    assert np.isfinite(fireside.vectors(words)).all()


def test_assets_are_an_hour_of_speech_and_stay_small():
    seconds = sum(fireside.embedded_story(p.stem).duration for p in STORIES)
    size = sum(f.stat().st_size for f in simulation.ASSETS.parent.rglob("*") if f.is_file())
    assert seconds >= 90 * 60 and size <= 20e6


def test_every_voice_is_in_every_part_of_the_split_and_training_is_over_65_minutes(ds):
    voices = {p.stem: header_and_words(p)[0]["voice"] for p in STORIES}
    for part in ds.split.values():
        assert {voices[s] for s in part} == set(voices.values())
    minutes = {k: sum(ds.story(s).duration for s in v) / 60 for k, v in ds.split.items()}
    assert minutes["train"] >= 65 and minutes["test"] >= 12


def test_an_independent_aligner_agreed_on_the_onsets():
    alignment = json.loads((simulation.ASSETS / "alignment.json").read_text())
    assert alignment["within_50_ms"] >= 0.95 and alignment["onsets"] > 0.98 * sum(
        len(header_and_words(p)[1]) for p in STORIES
    )


# ------------------------------------------------------------------ subjects
def test_the_tree_is_that_of_ds003020(ds, fireside_root):
    assert (ds.name, ds.simulated, len(ds.subjects), ds.tr) == ("fireside", True, 8, 2.0)
    assert {k: len(v) for k, v in ds.split.items()} == {
        "train": len(STORIES) - 8,
        "val": 4,
        "test": 4,
    }
    test = ds.split["test"][0]
    Y = ds.responses("SIM01", test)
    counts = json.loads((fireside_root / "clean/derivative/respdict.json").read_text())
    assert Y.shape[0] == counts[test] - 20 == len(ds.story(test).tr_times)
    assert ds.repeats("SIM01", test).shape == (6, *Y.shape)
    assert [ds.repeats("SIM01", s).shape[0] for s in ds.split["val"]] == [5] * 4
    with h5py.File(fireside_root / f"clean/derivative/preprocessed_data/SIM01/{test}.hf5") as file:
        np.testing.assert_allclose(file["data"][()].std(0), 1, atol=1e-4)
        assert set(file) == {"data", "individual_repeats", "noise_free"}


def test_signal_is_a_tenth_to_a_half_of_one_repeat_and_visual_cortex_has_none(ds):
    truth, rois = ds.truth("SIM01"), ds.rois("SIM01")
    driven = truth.snr > 0
    assert truth.snr[driven].min() >= 0.1 and truth.snr.max() <= 0.5 and 0.3 < driven.mean() < 0.7
    assert not driven[rois["visual"]].any() and driven[rois["auditory"]].all()
    levels = truth[list(fireside.LEVELS)]
    np.testing.assert_allclose(levels.sum(axis=1)[driven], 1, atol=1e-4)
    assert (levels[~driven] == 0).all(axis=None)
    assert set(truth.level[driven]) == set(fireside.LEVELS)


def test_late_language_is_the_same_union_of_regions_for_all_data_sets(ds):
    rois = ds.rois("SIM01")
    parts = [rois[name] for name in cortex.UNIONS["late_language"]]
    assert len(parts) == 4 and (rois["late_language"] == np.any(parts, axis=0)).all()
    assert not (rois["late_language"] & rois["superior_temporal"]).any()
    assert rois["late_language"].sum() > 100 and rois["superior_temporal"].sum() > 50


def test_the_estimated_ceiling_is_the_simulated_one(ds):
    truth, test = ds.truth("SIM01"), ds.split["test"][0]
    expected = np.sqrt(truth.snr / (truth.snr + (1 - truth.snr) / len(ds.repeats("SIM01", test))))
    error = (ds.noise_ceiling("SIM01") - expected)[truth.snr > 0.15]
    assert abs(error.mean()) < 0.05


def test_subjects_share_a_map_and_differ(ds):
    one, two = ds.truth("SIM01"), ds.truth("SIM02")
    assert np.corrcoef(one.snr, two.snr)[0, 1] > 0.6 and not np.allclose(one.snr, two.snr)
    test = ds.split["test"][0]
    own = encoding.correlation(ds.responses("SIM01", test), ds.responses("SIM02", test))
    shared = own[((one.snr > 0.2) & (two.snr > 0.2)).to_numpy()].mean()
    assert 0.15 < shared < 0.7


def test_on_the_noise_subject_the_permutation_test_keeps_its_level(fireside_root):
    null = datasets.load("fireside", root=fireside_root / "clean", subjects="SIMNOISE")
    X = {
        s: np.hstack([fireside.level_features(null.story(s), k) for k in fireside.LEVELS])
        for s in null.stories
    }
    train, test = null.split["train"], null.split["test"]
    model = encoding.RidgeEncoder().fit(
        [X[s] for s in train], [null.responses("SIMNOISE", s) for s in train]
    )
    y = np.concatenate([null.responses("SIMNOISE", s) for s in test])
    lengths = [len(X[s]) for s in test]
    y_hat = np.concatenate(model.predict([X[s] for s in test]))
    p = encoding.permutation_test(y, y_hat, lengths=lengths)
    assert 0.03 <= np.mean(p <= 0.05) <= 0.07
    assert np.mean(encoding.fdr(p) <= 0.05) < 0.01


def test_the_scanner_level_has_ceilings_like_real_recordings(fireside_root):
    noisy = datasets.load("fireside", root=fireside_root / "scanner", noise="scanner")
    for split in ("test", "val"):  # six repeats, five repeats
        ceiling = encoding.noise_ceiling(noisy.repeats("SIM01", noisy.split[split][0]))
        assert 0.22 <= np.median(ceiling) <= 0.42
        assert 0.13 <= np.mean(ceiling == 0) <= 0.42


def test_two_builds_are_the_same_to_the_bit(ds, fireside_root):
    ds.truth("SIM02")
    again = fireside.build(["SIM02"], root=fireside_root / "again")
    for kind in ("preprocessed_data/SIM02", "truth", "rois", "fsaverage5"):
        files = sorted((again / "derivative" / kind).glob("*"))
        assert files
        for file in files:
            assert (
                file.read_bytes()
                == (fireside_root / "clean" / file.relative_to(again)).read_bytes()
            ), file


def test_a_killed_build_is_redone_and_never_half_used(fireside_root):
    root = fireside_root / "killed"
    code = (
        "import os, sys, numpy as np; from fireside import simulation\n"
        "calls, noise = [], simulation._noise\n"
        "def dying(*a):\n"
        "    calls.append(1)\n"
        "    if len(calls) > 20: os._exit(9)\n"
        "    return noise(*a)\n"
        "def silent(subject, _):\n"  # which the true build is not; quicker, too
        "    n_voxels = len(simulation._topography(subject, 'clean')['snr'])\n"
        "    return np.zeros((2, 3000, n_voxels), np.float32)\n"
        "simulation._signals = silent\n"
        "simulation._noise = dying; simulation.build(['SIM03'], root=sys.argv[1])\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(root)]).returncode == 9
    assert not (root / "derivative/preprocessed_data/SIM03/.stamp.json").exists()
    ds = datasets.load("fireside", root=root)
    assert all(np.isfinite(ds.responses("SIM03", s)).all() for s in ds.stories)
    assert all(ds.responses("SIM03", s, noise_free=True).any() for s in ds.stories)


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "mine"}')
    with pytest.raises(ValueError, match="holds 'mine'"):
        datasets.load("fireside", root=tmp_path)
    with pytest.raises(ValueError, match="noise level 'loud'"), warnings.catch_warnings():
        datasets.load("fireside", root=tmp_path, noise="loud")


def test_a_folder_without_a_description_keeps_its_files(tmp_path):
    (tmp_path / "stimuli").mkdir()
    (tmp_path / "stimuli/deepend.ogg").write_text("mine")
    with pytest.raises(ValueError, match="expected an empty folder or fireside"):
        datasets.load("fireside", root=tmp_path)
    assert (tmp_path / "stimuli/deepend.ogg").read_text() == "mine"


def test_a_subject_that_lost_a_file_is_built_anew(ds, fireside_root):
    truth = ds.truth("SIM02")
    lost = [
        fireside_root / "clean/derivative/rois/SIM02.npz",
        fireside_root / f"clean/derivative/preprocessed_data/SIM02/{ds.stories[0]}.hf5",
    ]
    before = [path.read_bytes() for path in lost]
    for path in lost:
        path.unlink()
    again = datasets.load("fireside", root=fireside_root / "clean", subjects="SIM02")
    assert again.truth("SIM02").equals(truth)
    assert [path.read_bytes() for path in lost] == before


def test_features_do_not_depend_on_what_was_asked_for_before():
    first = {s: x.copy() for s, x in fireside.driving_features()["acoustic"].items()}
    fireside.driving_features(True)
    fireside.levels.driving_features.cache_clear()
    again = fireside.driving_features()["acoustic"]
    assert all(np.array_equal(first[s], again[s]) for s in first)
    with pytest.raises(ValueError, match="read-only"):
        again[next(iter(again))][0] = 0


def test_an_unknown_subject_has_no_features(ds):
    with pytest.raises(KeyError, match="no subject 'sim01'"):
        fireside.level_features(ds.story(ds.stories[0]), "meaning", subject="sim01")


def test_the_haemodynamic_response_peaks_at_the_given_time_and_sums_to_one():
    for peak in (4.0, 6.0):
        shape = fireside.hrf(peak)
        assert abs(shape.argmax() / simulation.RATE_HZ - peak) <= 0.2
        assert shape.sum() == pytest.approx(1, abs=1e-5)
