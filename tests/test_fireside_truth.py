"""Whether fireside's ground truth is what it claims: each level beyond those below it, known transfer, subjects made to fool."""

import re

import address
import build_book
import fireside_facts
import numpy as np
import pytest
import views
from conftest import ROOT

import fireside
from brainlib import datasets, encoding, lowlevel, timing
from fireside import levels


@pytest.fixture(scope="module")
def bounds(ds):
    return fireside.bounds(ds, "SIM01").set_index(["voxels", "features"]).r


def test_meaning_and_context_cannot_be_told_from_lower_levels(bounds):
    for level in ("meaning", "context"):
        assert abs(bounds[level, "all lower levels"]) < 0.10
    assert abs(bounds["phonetic", "all lower levels"]) < 0.45
    assert abs(bounds["acoustic", "rates"]) < 0.60


def test_meaning_and_context_are_two_levels(bounds):
    assert abs(bounds["context", "meaning"]) < 0.45
    assert abs(bounds["meaning", "context"]) < 0.45
    assert abs(bounds["context", "word vectors, 0 to 20 s"]) < 0.20  # no filter of them gives it


def test_each_level_is_predicted_by_its_own_features(bounds):
    for level in fireside.LEVELS:
        assert bounds[level, "its own"] >= 0.90, level


def test_the_parts_that_are_taken_away_were_fitted_on_training_stories_alone(monkeypatch):
    """Other test stories, in another place, leave the training stories' features as they are."""
    before = {s: x.copy() for s, x in fireside.driving_features()["meaning"].items()}
    levels.driving_features.cache_clear()
    levels._sounds.cache_clear()
    raw = levels._raw

    def louder(name):
        content = dict(raw(name))
        if name in levels.TEST:
            content["mel"] = content["mel"][::-1]
        return content

    monkeypatch.setattr(levels, "_raw", louder)
    after = levels.driving_features()["meaning"]
    train, test = levels.training_stories()[0], levels.TEST[0]
    np.testing.assert_array_equal(before[train], after[train])
    assert not np.allclose(before[test], after[test])
    levels.driving_features.cache_clear()
    levels._sounds.cache_clear()


def test_test_stories_say_many_words_that_no_training_story_says():
    assert fireside.unheard_share(levels.TEST) >= 0.15


def test_the_page_on_the_data_names_no_number_that_is_not_computed(
    ds, bounds, monkeypatch, tmp_path
):
    table = bounds.reset_index().assign(n_voxels=1, limit=0.5)
    monkeypatch.setattr(fireside, "bounds", lambda *_: table)
    monkeypatch.setattr(fireside_facts, "facts", lambda: fireside_facts.compute(ds))
    values = build_book.measured() | address.said() | views.values(tmp_path)
    pages = "".join(p.read_text() for p in (ROOT / "book").glob("*.md"))
    named = set(re.findall(r"@@(\w+)@@", pages)) - {
        "RUNS",
        "CLAIMS",
        "CLAIMS_SHORT",
    }  # of the notebooks' run
    assert len(named) > 40 and named <= set(values)
    assert not [name for name in named if not values[name] or "nan" in values[name]]
    assert values["BOUNDS_TABLE"].count("at least") == len(fireside.LEVELS)


# ------------------------------------------------------------------ words
def test_planted_and_other_vectors_are_uncorrelated_over_the_words_as_spoken():
    words = [w for s in levels.story_names() for w in levels.embedded_story(s).words.text]
    planted, other = (fireside.vectors(words, which) for which in ("planted", "other"))
    together = np.corrcoef(planted.T, other.T)[: planted.shape[1], planted.shape[1] :]
    assert planted.shape[1] == 26 and other.shape[1] == 17 and np.abs(together).max() < 0.02
    assert np.isnan(fireside.vectors(["qzx"])).all()
    with pytest.raises(ValueError, match="expected 'planted' or 'other'"):
        fireside.vectors(["dog"], which="all")


def test_frequency_is_a_rank():
    ranks = fireside.log_rank(["the", "house", "lighthouse"])
    assert ranks[0] == 0 and (np.diff(ranks) > 0).all()


# ------------------------------------------------------------------ subjects
def test_subjects_have_dimensions_in_common_and_of_their_own():
    for level in fireside.LEVELS:
        sets = [set(fireside.dimensions(level, s)) for s in fireside.SUBJECTS]
        common = set.intersection(*sets)
        own = [s - common for s in sets]
        assert len(common) == levels.N_SHARED[level]
        assert all(len(s) == levels.N_PRIVATE[level] for s in own)
        assert len(set.union(*own)) == sum(map(len, own))  # no two subjects share one
        assert set(fireside.dimensions(level)) == set.union(*sets)


def test_regions_move_between_subjects(ds):
    one, two = ds.truth("SIM01"), ds.truth("SIM02")
    driven = (one.snr > 0) & (two.snr > 0)
    same = (one.level == two.level)[driven].mean()
    assert 0.6 < same < 0.95


def test_no_features_of_another_subject_do_better_than_the_best_transfer(ds):
    """Of SIM02, read by all features of SIM01 with their haemodynamic responses, on stories not fitted on."""
    limit = fireside.best_transfer("SIM01", "SIM02")
    truth = ds.truth("SIM02")
    np.testing.assert_allclose(limit**2, truth.shared, atol=1e-3)
    driven = (truth.snr > 0.2).to_numpy()

    def score(subject):
        x = {
            s: np.hstack(
                [fireside.level_features(ds.story(s), k, subject=subject) for k in fireside.LEVELS]
            )
            for s in ds.stories
        }
        y = {s: ds.responses("SIM02", s, voxels=driven, noise_free=True) for s in ds.stories}
        train, held_out = ds.split["train"], ds.split["val"] + ds.split["test"]
        model = encoding.RidgeEncoder().fit([x[s] for s in train], [y[s] for s in train])
        return model.score([x[s] for s in held_out], [y[s] for s in held_out])

    own, other = score("SIM02"), score("SIM01")
    assert own.mean() > 0.85
    assert 0.8 < (other / (own * limit[driven])).mean() < 1.03


def test_transfer_to_and_from_the_subjects_made_to_fool():
    for source in ("SIMNOISE", "SIMLOW", "SIMCODE"):
        assert fireside.best_transfer(source, "SIM01").mean() < 0.6 * (
            fireside.best_transfer("SIM02", "SIM01").mean()
        )
    assert not fireside.best_transfer("SIM01", "SIMNOISE").any()
    with pytest.raises(KeyError, match="no subject 'SIM99'"):
        fireside.best_transfer("SIM99", "SIM01")


def test_subjects_made_to_fool_are_there_for_who_asks(ds, fireside_root):
    assert not set(ds.subjects) & set(fireside.FOOLING)
    fools = datasets.load(
        "fireside", root=fireside_root / "clean", subjects=["SIM01", *fireside.FOOLING]
    )
    assert fools.subjects == ["SIM01", *fireside.FOOLING]
    story = fools.split["test"][0]
    assert not fools.responses("SIMNOISE", story, noise_free=True).any()
    low, code = fools.truth("SIMLOW"), fools.truth("SIMCODE")
    assert not low[["meaning", "context"]].any(axis=None) and (low.snr > 0).any()
    assert {"meaning", "context"} <= set(code.level)


def test_an_arbitrary_code_is_as_predictable_by_itself_and_has_no_meaning(fireside_root):
    ds = datasets.load("fireside", root=fireside_root / "clean", subjects="SIMCODE")
    train, held_out = ds.split["train"], ds.split["val"] + ds.split["test"]
    voxels = (ds.truth("SIMCODE").meaning > 0.97).to_numpy()
    y = {s: ds.responses("SIMCODE", s, voxels=voxels, noise_free=True) for s in ds.stories}

    def score(features):
        x = {s: features(ds.story(s)) for s in ds.stories}
        model = encoding.RidgeEncoder().fit([x[s] for s in train], [y[s] for s in train])
        return model.score([x[s] for s in held_out], [y[s] for s in held_out]).mean()

    assert score(lambda s: fireside.level_features(s, "meaning", subject="SIMCODE")) >= 0.9
    assert abs(score(lambda s: lowlevel.feature_space(s, "mel"))) < 0.1
    assert abs(score(lambda s: fireside.level_features(s, "meaning"))) < 0.1
    assert abs(score(lambda s: timing.downsample(*fireside.word_vectors(s), s.tr_times))) < 0.1


def test_the_noise_free_response_is_the_signal_in_the_repeats(ds):
    truth, story = ds.truth("SIM01"), ds.split["test"][0]
    free = ds.responses("SIM01", story, noise_free=True)
    strong = (truth.snr > 0.3).to_numpy()
    np.testing.assert_allclose(free[:, strong].std(0), 1, atol=1e-3)
    assert not free[:, (truth.snr == 0).to_numpy()].any()
    r = encoding.correlation(ds.responses("SIM01", story), free)[strong]
    ceiling = np.sqrt(truth.snr / (truth.snr + (1 - truth.snr) / 6))[strong]
    assert abs((r - ceiling).mean()) < 0.03


def test_the_parts_of_the_levels_add_up_to_the_noise_free_responses(ds):
    step = 50
    voxels = np.arange(0, len(ds.truth("SIM01")), 1)[::step]
    parts = fireside.level_parts("SIM01", voxels * ds.voxel_step)
    truth = ds.truth("SIM01").iloc[voxels]
    driven = (truth.snr > 0).to_numpy()
    for story in (ds.split["train"][0], ds.split["test"][0]):
        total = sum(by_story[story] for by_story in parts.values())[:, driven]
        signal = ds.responses("SIM01", story, voxels=voxels, noise_free=True)[:, driven]
        assert encoding.correlation(signal, total).min() > 0.9999
        for level in fireside.LEVELS:  # a level that has no share adds nothing
            absent = (truth[level] == 0).to_numpy()
            assert not parts[level][story][:, absent].any()


def test_with_no_level_switched_off_the_responses_are_those_of_the_data_set(ds):
    voxels, story = np.arange(0, len(ds.truth("SIM01")), 50), ds.split["train"][0]
    options = {"voxels": voxels * ds.voxel_step, "levels": [], "stories": [story]}
    for free in (False, True):
        same = fireside.without_levels("SIM01", **options, noise_free=free)[story]
        expected = ds.responses("SIM01", story, voxels=voxels, noise_free=free)
        np.testing.assert_allclose(same, expected, atol=1e-4)


def test_a_level_that_is_switched_off_is_missing_and_nothing_else(ds):
    voxels, story = np.arange(0, len(ds.truth("SIM01")), 50), ds.split["train"][0]
    at, low = voxels * ds.voxel_step, ["acoustic", "phonetic"]
    less = fireside.without_levels("SIM01", at, levels=low, stories=[story])[story]
    parts = fireside.level_parts("SIM01", at)
    missing = parts["acoustic"][story] + parts["phonetic"][story]
    gone = ds.responses("SIM01", story, voxels=voxels) - less
    truth = ds.truth("SIM01").iloc[voxels]
    driven = ((truth.snr > 0) & (truth.acoustic + truth.phonetic > 0)).to_numpy()
    assert driven.sum() > 5
    assert encoding.correlation(gone[:, driven], missing[:, driven]).min() > 0.9999
    assert np.abs(gone[:, ~driven]).max() < 1e-4


def test_levels_cannot_be_switched_off_in_a_repeated_story_or_by_a_name_that_is_none(ds):
    with pytest.raises(ValueError, match="repeated"):
        fireside.without_levels("SIM01", [0], levels=["meaning"], stories=ds.split["test"])
    with pytest.raises(KeyError, match="syntax"):
        fireside.without_levels("SIM01", [0], levels=["syntax"], stories=ds.split["train"][:1])


def test_the_solution_of_the_closing_project_finds_the_stronger_level(fireside_root, capsys):
    page = (ROOT / "book/project.md").read_text()
    (solution,) = re.findall(r"```python\n(.*?)```", page, re.S)
    here = f"subjects=names, root={str(fireside_root / 'clean')!r}"
    edits = {'["SIM01", "SIM02", "SIM03", "SIMX"]': '["SIM01", "SIMX"]', "subjects=names": here}
    for old, new in edits.items():
        assert old in solution
        solution = solution.replace(old, new)
    exec(compile(solution, "project", "exec"), {})
    ds = datasets.load("fireside", root=fireside_root / "clean", subjects=["SIM01", "SIMX"])
    share = {s: ds.truth(s)[list(fireside.LEVELS)].mean() for s in ds.subjects}
    stronger = (share["SIMX"] - share["SIM01"]).idxmax()
    assert capsys.readouterr().out.splitlines()[-1] == f"stronger: {stronger}"
    assert stronger not in page.split("## One way")[1]
