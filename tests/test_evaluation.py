import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import write_responses
from scipy import stats

from brainlib import evaluation, lowlevel, scores, timing
from brainlib.encoding import RidgeEncoder, correlation, noise_ceiling
from brainlib.speech import SpeechEncoder, features_at_trs

SHORT = {"window": 6, "hop": 4}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))


def encoder(folder):
    return SpeechEncoder.from_pretrained(folder, device="cpu")


# ------------------------------------------------------------------ voxels
def test_voxels_are_picked_without_the_scored_repeats(data, ds):
    assert len(evaluation.pick_voxels(data, "UTS01")) == 6
    with pytest.warns(UserWarning, match="every second repeat"):
        picked = evaluation.pick_voxels(data, "UTS01", rule="ceiling > 0.0")
    np.testing.assert_array_equal(
        picked, np.flatnonzero(noise_ceiling(data.repeats("UTS01", "d")[[0, 2]]) > 0)
    )
    assert evaluation.scored_repeats(data, "UTS01") is None  # three cannot be shared out
    assert evaluation.scored_repeats(ds, "SIM01") is None  # validation stories have their own
    np.testing.assert_array_equal(
        evaluation.kept_voxels(ds, "SIM01"),
        ds.noise_ceiling("SIM01", split="val") > scores.FLOOR,
    )
    auditory = evaluation.pick_voxels(ds, "SIM01", rule="auditory")
    np.testing.assert_array_equal(auditory, np.flatnonzero(ds.rois("SIM01")["auditory"]))
    np.testing.assert_array_equal(
        evaluation.pick_voxels(ds, "SIM01", rule="ceiling > 0.5"),
        np.flatnonzero(ds.noise_ceiling("SIM01", split="val") > 0.5),
    )
    with pytest.raises(ValueError, match="no voxels 'amygdala'"):
        evaluation.pick_voxels(ds, "SIM01", rule="amygdala")


def test_two_repeats_of_the_test_story_choose_no_voxels(data, monkeypatch):
    monkeypatch.setattr(data, "n_repeats", lambda subject, story: 2 if story == "d" else 1)
    with pytest.raises(ValueError, match="too few of the test story"):
        evaluation.pick_voxels(data, "UTS01", rule="ceiling > 0.4")
    masks = evaluation.regions(data, "UTS01")
    assert list(masks) == ["all voxels"] and masks["all voxels"].all()
    assert evaluation.kept_voxels(data, "UTS01").all()
    assert evaluation.scored_repeats(data, "UTS01") is None


def test_voxels_kept_by_half_of_the_repeats_leave_the_others_to_be_scored(data, monkeypatch):
    monkeypatch.setattr(data, "n_repeats", lambda subject, story: 4 if story == "d" else 1)
    with pytest.warns(UserWarning, match="every second repeat"):
        masks = evaluation.regions(data, "UTS01")
    assert list(masks) == [f"ceiling > {scores.FLOOR}"]
    kept = noise_ceiling(data.repeats("UTS01", "d")[::2]) > scores.FLOOR
    np.testing.assert_array_equal(masks[f"ceiling > {scores.FLOOR}"], kept)
    assert evaluation.scored_repeats(data, "UTS01") == slice(1, None, 2)


@pytest.mark.parametrize(
    "rule", ["ceiling > high", "ceiling > 1.5", "ceiling > 1", "ceiling < 0.4", "ceiling"]
)
def test_a_ceiling_rule_that_makes_no_sense_is_refused(data, rule):
    with pytest.raises(ValueError, match="expected 'ceiling > ' and a number from 0 to 1"):
        evaluation.pick_voxels(data, "UTS01", rule=rule)


@pytest.mark.parametrize(
    "rule, number",
    [("ceiling > 0", 0.0), ("ceiling>.5", 0.5), ("ceiling > 0.25 ", 0.25), ("auditory", None)],
)
def test_a_ceiling_rule_is_read_as_it_is_written(rule, number):
    assert evaluation._ceiling_threshold(rule) == number


def test_voxels_of_a_region_are_those_of_its_mask():
    ds = SimpleNamespace(rois=lambda subject: {"V1": np.array([True, False, True])})
    assert evaluation.pick_voxels(ds, "S1", rule="V1").tolist() == [0, 2]
    with pytest.raises(ValueError, match="no voxels 'V2'.*V1"):
        evaluation.pick_voxels(ds, "S1", rule="V2")


@pytest.mark.filterwarnings("ignore:voxels chosen by every second repeat")
@pytest.mark.parametrize(
    "val, test, chosen_by, scored",
    [
        (2, 1, "val", None),
        (2, 6, "val", None),
        (1, 2, None, None),  # two repeats of the test story cannot be shared out
        (1, 3, "half", None),
        (1, 4, "half", slice(1, None, 2)),
    ],
)
def test_voxels_are_chosen_by_two_repeats_that_are_not_scored_on(val, test, chosen_by, scored):
    """Ceilings are 0.4, the floor itself and 0.6."""
    n_repeats, asked = {"v": val, "t": test}, []

    def noise_ceiling(subject, *, split="test", repeats=None):
        asked.append("val" if split == "val" else "half" if repeats == slice(None, None, 2) else "")
        return np.array([0.4, scores.FLOOR, 0.6])

    ds = SimpleNamespace(
        name="made up",
        split={"val": ["v"], "test": ["t"]},
        has_repeats=lambda subject, split="test", at_least=2: (
            n_repeats[split[0]] >= at_least  # its only story is named after it
        ),
        n_voxels=lambda subject: 3,
        noise_ceiling=noise_ceiling,
        rois=lambda subject: {},
    )
    assert evaluation.scored_repeats(ds, "S1") == scored
    kept = evaluation.kept_voxels(ds, "S1")
    assert kept.tolist() == ([False, False, True] if chosen_by else [True] * 3)
    rule = f"ceiling > {scores.FLOOR}"
    assert list(evaluation.regions(ds, "S1")) == [rule if chosen_by else "all voxels"]
    if chosen_by:
        assert evaluation.pick_voxels(ds, "S1", rule=rule).tolist() == [2]
        assert set(asked) == {chosen_by}


# ------------------------------------------------------------------ scores
def by_hand(model, data, subject, *, voxels):
    """Correlation of each voxel with what a ridge on the last layer predicts of the test story."""
    states = {s: features_at_trs(model, data.story(s), [2], **SHORT)[2] for s in data.stories}
    Y = {s: data.responses(subject, s, voxels=voxels) for s in data.stories}
    ridge = evaluation.fresh_ridge(states, Y, stories=data.split["train"])
    (test,) = data.split["test"]
    return correlation(Y[test], ridge.predict(states[test]))


def test_every_model_is_scored_by_a_ridge_fitted_anew(model_folder, data):
    options = {"subjects": "UTS01", "layers": [0, 2], "voxels": [1, 3], **SHORT}
    table = evaluation.evaluate(encoder(model_folder), data, **options).set_index("layer")
    r = by_hand(encoder(model_folder), data, "UTS01", voxels=[1, 3])
    assert r.shape == (2,) and np.isfinite(r).all()
    of_all = table[table.region == "all voxels"]
    assert of_all.index.tolist() == [0, 2] and of_all.r[2] == pytest.approx(r.mean(), abs=1e-5)


def test_evaluate_gives_a_row_per_subject_layer_and_region(model_folder, data):
    model = encoder(model_folder)
    with pytest.warns(UserWarning, match="every second repeat"):
        table = evaluation.evaluate(model, data, layers=[0, 2], voxels=[0, 1, 3], **SHORT)
        kept = evaluation.kept_voxels(data, "UTS02")[[0, 1, 3]]
    assert isinstance(table, pd.DataFrame)
    columns = ["subject", "layer", "region", "n_voxels", "n_kept", "r", "normalised"]
    assert list(table) == [*columns, "normalised_margin"]
    assert len(table) == len(table.drop_duplicates(["subject", "layer", "region"])) == 2 * 2 * 2
    row = table.set_index(["subject", "layer", "region"]).loc["UTS02", 2, "all voxels"]
    r = by_hand(model, data, "UTS02", voxels=[0, 1, 3])
    ceiling = data.noise_ceiling("UTS02")[[0, 1, 3]]
    assert row.n_voxels == 3 and row.n_kept == kept.sum() > 0
    assert row.r == pytest.approx(r.mean())
    expected = (r / np.maximum(ceiling, scores.FLOOR))[kept].mean()
    assert row.normalised == pytest.approx(expected)
    assert np.isnan(row.normalised_margin)  # one test story says nothing about others


def test_evaluate_without_repeats_has_no_normalised_score(model_folder, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = evaluation.evaluate(
            encoder(model_folder), data, subjects="UTS01", layers=1, on="val", **SHORT
        )
    assert table.r.notna().any() and table.normalised.isna().all()


class Model:
    """A speech model whose states of width 5 are noise, the same for the same sound."""

    layers = 2

    def features(self, audio, layers=None, **settings):
        n = len(audio) // 1600
        rng = np.random.default_rng(int(1e6 * np.abs(audio[:1000]).sum()))
        states = {k: rng.standard_normal((n, 5)).astype(np.float32) for k in range(2)}
        return {k: states[k] for k in layers}, np.arange(n) / 10


def write_signals(ds, model):
    """Responses of S1: acoustic, acoustic, meaning, meaning, none; repeated stories have six repeats."""
    rng = np.random.default_rng(2)
    for name in ds.stories:
        story = ds.story(name)
        loudness = lowlevel.feature_space(story, "mel").mean(1, keepdims=True)
        drive = [loudness, loudness, *features_at_trs(model, story, [1])[1].T[:2, :, None]]
        signal = np.hstack([timing.fir(x, (2,)) for x in drive])
        signal = np.pad((signal - signal.mean(0)) / signal.std(0), [(0, 0), (0, 1)])
        n_repeats = 1 if name in ds.split["train"] else 6
        repeats = signal + rng.standard_normal((n_repeats, *signal.shape))
        path = ds.root / f"derivative/preprocessed_data/S1/{name}.hf5"
        repeats = (repeats - repeats.mean(1, keepdims=True)) / repeats.std(1, keepdims=True)
        more = repeats if n_repeats > 1 else None
        write_responses(path, repeats.mean(0), more, noise_free=signal)


def test_the_low_level_part_of_a_score_is_told_from_the_rest(simulated):
    """Voxels 0 and 1 follow the sound's loudness, 2 and 3 the states of layer 1, 4 nothing."""
    model = Model()
    write_signals(simulated, model)
    options = {"layers": [0, 1], "beyond_low_level": True}
    table = evaluation.evaluate(model, simulated, **options).set_index(["layer", "region"])
    acoustic, meaning = table.loc[1, "acoustic voxels"], table.loc[1, "meaning voxels"]
    assert table.loc[(1, "all voxels"), ["n_voxels", "n_kept"]].tolist() == [5, 4]
    assert meaning.n_kept == 2 and meaning.normalised > 0.8
    assert meaning.low_level < 0.3 and meaning.beyond_low_level > 0.5
    assert acoustic.low_level > 0.6 and acoustic.normalised < 0.3
    assert abs(acoustic.beyond_low_level) < 0.05  # states that are of no use do no harm
    assert abs(table.loc[(0, "meaning voxels"), "beyond_low_level"]) < 0.2
    assert 0 < meaning.normalised_margin < 0.5 and 0 < meaning.beyond_margin < 0.5
    by_story = evaluation.evaluate(model, simulated, each_story=True, **options)
    assert set(by_story.story) == set(simulated.split["test"])
    means = by_story.groupby(["layer", "region"])[["normalised", "beyond_low_level"]].mean()
    pd.testing.assert_frame_equal(means, table.loc[means.index, list(means)], check_names=False)


def test_noise_free_responses_have_a_ceiling_of_one_and_the_same_voxels(simulated):
    model = Model()
    write_signals(simulated, model)
    noisy, free = (
        evaluation.evaluate(model, simulated, layers=1, noise_free=choice).set_index("region")
        for choice in (False, True)
    )
    assert (noisy.n_kept == free.n_kept).all() and free.r["meaning voxels"] > 0.95
    assert free.normalised["meaning voxels"] == pytest.approx(free.r["meaning voxels"])
    assert noisy.r["meaning voxels"] < free.r["meaning voxels"]
    simulated.simulated = False
    with pytest.raises(ValueError, match="recordings"):
        evaluation.evaluate(model, simulated, layers=1, noise_free=True)


def test_the_margin_is_that_of_an_interval_over_test_stories(simulated):
    model = Model()
    write_signals(simulated, model)
    row = evaluation.evaluate(model, simulated, layers=1).set_index("region").loc["meaning voxels"]
    states = {s: features_at_trs(model, simulated.story(s), [1])[1] for s in simulated.stories}
    Y = {s: simulated.responses("S1", s, voxels=[2, 3]) for s in simulated.stories}
    ridge = evaluation.fresh_ridge(states, Y, stories=simulated.split["train"])
    of_story = np.array([ridge.score(states[s], Y[s]) for s in simulated.split["test"]])
    of_story = (of_story / simulated.noise_ceiling("S1")[2:4]).mean(1)
    margin = stats.t.ppf(0.975, 2) * of_story.std(ddof=1) / np.sqrt(3)
    assert len(of_story) == 3 and row.normalised_margin == pytest.approx(margin, rel=1e-4)


def test_voxels_chosen_on_half_of_the_repeats_are_scored_on_the_other_half(
    model_folder, data, monkeypatch
):
    used = []
    four = np.random.default_rng(5).standard_normal((4, 10, 6)).astype(np.float32)
    monkeypatch.setattr(data, "n_repeats", lambda subject, story: 4 if story == "d" else 1)
    monkeypatch.setattr(data, "repeats", lambda *_, **__: four)
    original = data.responses

    def responses(subject, story, *, voxels=None, repeats=None, noise_free=False):
        if story == "d":
            used.append(repeats)
        return original(subject, story, voxels=voxels)

    monkeypatch.setattr(data, "responses", responses)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluation.evaluate(
            encoder(model_folder), data, subjects="UTS01", layers=1, voxels="ceiling > 0.1", **SHORT
        )
    assert used == [slice(1, None, 2)]


def test_the_shared_penalty_is_the_median_over_voxels_that_can_be_predicted():
    ridge = RidgeEncoder()
    ridge.best_alphas_ = np.array([1.0, 3.0, 5.0, 1e6, 1e6, 1e6, 1e6])
    ridge.cv_scores_ = np.array([0.3, 0.2, 0.1, -0.1, -0.1, -0.1, -0.1])
    assert evaluation.shared_alpha(ridge) == 3
    ridge.cv_scores_ = np.array([0.3, 0.2, 0.1, 0.1, -0.1, -0.1, -0.1])
    assert evaluation.shared_alpha(ridge) == 1e6  # most are predictable: all count
    ridge.cv_scores_ = np.full(7, -0.1)
    assert evaluation.shared_alpha(ridge) == 1e6  # none is: all count
    ridge.best_alphas_, ridge.cv_scores_ = np.array([1.0, 2, 4, 8]), np.array([0.1, 0.1, -1, 0])
    assert evaluation.shared_alpha(ridge) == 3  # half are


def test_normalised_scores_are_of_the_kept_voxels_alone():
    r, ceiling = np.array([0.1, 0.3, 0.3, 0.2]), np.array([0.8, scores.FLOOR, 0.0, 0.8])
    np.testing.assert_allclose(scores.normalised(r, ceiling), [0.125, np.nan, np.nan, 0.25])
    chosen = np.array([True, True, True, False])  # as another ceiling says
    expected = [0.125, 0.3 / scores.FLOOR, 0.3 / scores.FLOOR, np.nan]
    np.testing.assert_allclose(scores.normalised(r, ceiling, kept=chosen), expected)
    two = scores.normalised(np.stack([r, 2 * r]), ceiling, kept=chosen)
    np.testing.assert_allclose(two, [expected, 2 * np.array(expected)])
    with pytest.raises(ValueError, match="give the same voxels"):
        scores.normalised([0.1], [0.5, 0.2])


def test_means_by_region_leave_out_voxels_without_a_number():
    share = np.array([0.2, np.nan, np.nan, 0.4])
    masks = {"a": np.array([1, 1, 0, 1], bool), "b": np.array([0, 1, 1, 0], bool)}
    means = scores.by_region(share, masks)
    assert means["a"] == pytest.approx(0.3) and np.isnan(means["b"])
    table = scores.by_region(np.stack([share, share + 1, share + 2]), masks)
    np.testing.assert_allclose(table["a"], [0.3, 1.3, 2.3])
    assert table.shape == (3, 2) and table["b"].isna().all()


def test_levels_are_regions_too(ds):
    truth = ds.truth("SIM01")
    masks = scores.levels(truth)
    assert (
        set(masks) <= set(truth.columns)
        and sum(m.sum() for m in masks.values()) == (truth.snr > 0).sum()
    )
    snr = scores.by_region(truth.snr, masks)
    np.testing.assert_allclose(snr, truth.groupby("level").snr.mean()[snr.index])
    assert scores.levels(truth.assign(level="none")) == {}


def test_the_interval_over_stories_is_students():
    values = pd.DataFrame({"a": [0.1, 0.2, 0.3, 0.6], "b": [1.0, 1.0, np.nan, 1.0]})
    table = scores.interval(values)
    expected = stats.ttest_1samp(values["a"], 0).confidence_interval(0.95)
    np.testing.assert_allclose(table.loc["a", ["low", "high"]].astype(float), expected)
    np.testing.assert_allclose(table.loc["b"], 1)
    narrow = scores.interval(values["a"].to_numpy(), level=0.5)
    assert narrow["high"][0] < expected.high and narrow["mean"][0] == pytest.approx(0.3)
    assert scores.interval([0.3])["low"].isna().all()  # one story says nothing about others


def test_the_interval_covers_new_stories():
    """Stories differ by more than their rows: 19 in 20 intervals over stories hold the mean."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(100):
        offsets = rng.standard_normal(4)  # what each of four stories is like
        rows = np.repeat(offsets, 60) + 0.5 * rng.standard_normal(240)
        over = scores.interval(rows.reshape(4, 60).mean(1)).iloc[0]
        held += over.low < 0 < over.high
    assert held >= 88


def test_an_interval_over_subjects_and_stories_covers_both():
    """Rows and columns drawn anew: the true mean lies inside in about 95 of 100 cases, whichever of them varies."""
    rng = np.random.default_rng(0)
    for row_sd, column_sd, noise in ((1, 1, 1), (1, 0, 0.3), (0, 1, 0.3), (0, 0, 1)):
        inside = []
        for _ in range(400):
            x = row_sd * rng.standard_normal((8, 1)) + column_sd * rng.standard_normal((1, 4))
            row = scores.crossed_interval(x + noise * rng.standard_normal((8, 4)))
            inside.append(row.low < 0 < row.high)
        assert 0.91 < np.mean(inside) <= 1.0
    constant_rows = np.array([[1.0, 3.0], [1.0, 3.0]])  # two subjects who agree: two stories decide
    by_story = scores.interval([1.0, 3.0]).iloc[0]
    assert scores.crossed_interval(constant_rows).to_list() == pytest.approx(by_story.to_list())
    with pytest.raises(ValueError, match="at least 2 by 2"):
        scores.crossed_interval(np.ones((1, 4)))


def test_the_spread_between_seeds_is_pooled_within_subjects():
    rng = np.random.default_rng(0)
    table = 5.0 * rng.standard_normal((3000, 1)) + 0.1 * rng.standard_normal((3000, 3))
    table[::2, 2] = np.nan
    std, bound = scores.seed_spread(table)
    assert std == pytest.approx(0.1, rel=0.05) and bound == pytest.approx(1.96 * std, rel=0.01)
    assert scores.seed_spread([[1.0, 2.0, 3.0], [9.0, np.nan, np.nan]]).to_list() == (
        pytest.approx([1.0, 4.303], abs=1e-3)
    )
    assert scores.seed_spread([[1.0], [2.0]]).isna().all()


def test_correlations_by_story_are_of_the_same_stories():
    y = [np.array([[1.0], [2], [3]]), np.array([[1.0], [2], [4]])]
    assert scores.by_story(y, [y[0], -y[1]]).tolist() == [[1.0], [-1.0]]
    with pytest.raises(ValueError, match="shorter"):
        scores.by_story(y, y[:1])


def test_a_ridge_fitted_anew_has_delays_of_one_to_four_trs_and_the_penalty_it_is_given():
    rng = np.random.default_rng(0)
    X, Y = ({s: rng.standard_normal((60, 3)) for s in "ab"} for _ in range(2))
    ridge = evaluation.fresh_ridge(X, Y, stories=["a", "b"], alpha=7.0)
    assert ridge.delays == (1, 2, 3, 4) and (ridge.best_alphas_ == 7).all()
    searched = evaluation.fresh_ridge(X, Y, stories=["a", "b"], groups=[1, 2])
    assert np.isfinite(searched.cv_scores_).all()
    np.testing.assert_allclose(searched.scale_, ridge.scale_ * np.sqrt([1, 2, 2]))


def test_subjects_share_a_ridge_as_long_as_their_voxels_fit():
    sizes = {"A": 2, "B": 3, "C": 1, "D": 9, "E": 1}
    ds = SimpleNamespace(n_voxels=sizes.get)
    assert evaluation._ridge_groups(ds, "ABCDE", most=5) == [["A", "B"], ["C"], ["D"], ["E"]]
    assert evaluation._ridge_groups(ds, "ABCDE") == [list("ABCDE")]


# ------------------------------------------------------------------ controls
@pytest.fixture
def counting():
    """Stories a and b to train on, c, and d; row t of story k is 1000 k + t in all of three voxels."""
    lengths = {"a": 80, "b": 50, "c": 20, "d": 80}

    def responses(subject, story):
        rows = 1000.0 * list(lengths).index(story) + np.arange(lengths[story])
        return np.repeat(rows[:, None], 3, axis=1)

    return SimpleNamespace(
        name="counting",
        stories=list(lengths),
        split={"train": ["a", "b"], "val": ["c"], "test": ["d"]},
        responses=responses,
        n_voxels=lambda subject: 3,
        story=lambda story: SimpleNamespace(name=story, tr_times=np.arange(lengths[story])),
    )


def test_blocks_of_ten_trs_change_places_and_stay_whole(counting):
    shuffled = evaluation.shuffled_responses(counting)
    y = shuffled("S1", "a")[:, 0].astype(int)
    assert sorted(y) == list(range(80)) and (y != np.arange(80)).all()
    blocks = y.reshape(8, 10)
    assert (np.diff(blocks, axis=1) == 1).all() and (blocks[:, 0] % 10 == 0).all()
    np.testing.assert_array_equal(shuffled("S1", "a"), shuffled("S2", "a"))
    assert (shuffled("S1", "d")[:, 0] - 3000 != y).any()  # each story has an order of its own
    assert (evaluation.shuffled_responses(counting, seed=1)("S1", "a")[:, 0] != y).any()
    same = evaluation.shuffled_responses(counting, block=10, seed=0)("S1", "a")[:, 0]
    np.testing.assert_array_equal(same, y)


def test_a_short_story_is_cut_into_three_blocks_none_of_which_stays(counting):
    y = evaluation.shuffled_responses(counting)("S1", "c")[:, 0].astype(int) - 2000
    turned = [np.roll(np.arange(20), -start).tolist() for start in (7, 14)]
    assert y.tolist() in turned  # three blocks can only move on in a circle


@pytest.mark.parametrize(
    "story, rows",
    [
        ("a", [*range(1000, 1050), *range(1000, 1030)]),  # b's fifty rows, and again
        ("b", range(50)),  # the next after the last is the first
        ("c", range(20)),  # alone in its split
        ("d", range(80)),
    ],
)
def test_responses_to_the_next_story_have_this_ones_length(counting, story, rows):
    y = evaluation.other_story(counting)("S1", story)
    assert y.shape == (len(rows), 3) and (y == np.array(rows)[:, None]).all()


def test_a_single_story_has_no_other(counting):
    counting.split = {"train": ["a"], "val": [], "test": []}
    with pytest.raises(ValueError, match="no other story than 'a'"):
        evaluation.other_story(counting)("S1", "a")


def test_targets_made_of_features_are_delayed_by_one_to_three_trs_and_mixed(counting):
    def features(story):
        return np.random.default_rng(len(story.tr_times)).standard_normal((len(story.tr_times), 2))

    x = features(counting.story("b"))
    mean = sum(np.vstack([np.zeros((d, 2)), x[:-d]]) for d in (1, 2, 3)) / 3
    mixed = mean @ np.random.default_rng(0).standard_normal((2, 3))
    wanted = (mixed - mixed.mean(0)) / mixed.std(0)
    found = evaluation.from_features(counting, features)("S1", "b")
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    other = evaluation.from_features(counting, features, seed=1)("S1", "b")
    assert not np.allclose(other, wanted, atol=0.1)
    still = evaluation.from_features(counting, lambda s: np.zeros((len(s.tr_times), 2)))
    assert (still("S1", "b") == 0).all()


def test_controls_differ_in_the_responses_alone(data):
    y = data.responses("UTS01", "a")
    shuffled = evaluation.shuffled_responses(data, block=2)("UTS01", "a")
    other = evaluation.other_story(data)("UTS01", "b")
    np.testing.assert_allclose(np.sort(shuffled, 0), np.sort(y, 0))
    moved = np.abs(shuffled - y).reshape(5, 2, -1).max((1, 2))
    assert (moved > 0).all()  # no block in its own place
    alone = evaluation.other_story(data)("UTS01", "d")  # the only test story
    assert not np.array_equal(alone, data.responses("UTS01", "d"))
    assert not np.array_equal(shuffled, y)
    assert not np.array_equal(other, data.responses("UTS01", "b"))
    features = evaluation.from_features(data, lambda story: np.arange(20.0).reshape(10, 2))
    made = features("UTS01", "a")
    assert shuffled.shape == other.shape == made.shape == y.shape and np.isfinite(made).all()
    assert set(evaluation.CONTROLS) == {"shuffled responses", "other story"}


def test_made_targets_get_the_noise_that_the_responses_have(ds):
    """A target as hard to predict as the subject: as much of its variance is signal, in each voxel."""
    signal = evaluation.explainable_variance(ds, "SIM01")
    true = ds.truth("SIM01").snr.to_numpy()
    assert abs(signal.mean() - true.mean()) < 0.03 and np.corrcoef(signal, true)[0, 1] > 0.9
    make = {"features": lambda story: lowlevel.feature_space(story, "mel"), "seed": 3}
    story = ds.split["train"][0]
    clean = evaluation.from_features(ds, **make)("SIM01", story)
    noisy = evaluation.from_features(ds, noisy=True, **make)("SIM01", story)
    shared = correlation(clean, noisy) ** 2
    assert abs(shared.mean() - signal.mean()) < 0.05
    assert np.corrcoef(shared, signal)[0, 1] > 0.6


def test_a_linear_map_can_be_undone_and_turns_up_what_the_responses_follow():
    rng = np.random.default_rng(0)
    stories = ["a", "b", "c", "d", "e"]
    x = {s: rng.standard_normal((60, 6)).astype(np.float32) for s in stories}
    y = {s: timing.fir(x[s][:, :2], (1,)) + 0.5 * rng.standard_normal((60, 2)) for s in stories}
    mapped = evaluation.linear_map(x, y, stories=stories)
    before, after = (np.concatenate(list(z.values())) for z in (x, mapped))
    back, *_ = np.linalg.lstsq(np.c_[after, np.ones(len(after))], before, rcond=None)
    undone = np.c_[after, np.ones(len(after))] @ back
    np.testing.assert_allclose(undone, before, atol=1e-2)  # nothing is lost
    size = after.std(0)
    assert size[:2].min() > 3 * size[2:].max()  # the two columns that drive the responses


def test_so_many_voxels_are_evenly_spread():
    voxels = np.arange(10, 21)
    assert evaluation.evenly(voxels, 3).tolist() == [10, 15, 20]
    assert evaluation.evenly(voxels, None) is voxels
