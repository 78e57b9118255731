import warnings

import numpy as np
import pandas as pd
import pytest

from brainlib import evaluation, scores
from brainlib.encoding import RidgeEncoder, correlation, noise_ceiling
from brainlib.speech import SpeechEncoder

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
    # three repeats cannot be shared out
    assert evaluation.scored_repeats(data, "UTS01", rule="ceiling > 0.0") is None
    # the validation stories have repeats of their own
    assert evaluation.scored_repeats(ds, "SIM01", rule="ceiling > 0.0") is None
    assert evaluation.scored_repeats(ds, "SIM01", rule="auditory") is None
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
    masks, repeats = evaluation.regions_and_repeats(data, "UTS01")
    assert list(masks) == ["all voxels"] and masks["all voxels"].all() and repeats is None


def test_regions_chosen_by_half_of_the_repeats_leave_the_others_to_be_scored(data, monkeypatch):
    monkeypatch.setattr(data, "n_repeats", lambda subject, story: 4 if story == "d" else 1)
    with pytest.warns(UserWarning, match="every second repeat"):
        masks, repeats = evaluation.regions_and_repeats(data, "UTS01", rule="all")
    assert list(masks) == ["ceiling > 0.4"] and repeats == slice(1, None, 2)


@pytest.mark.parametrize("rule", ["ceiling > high", "ceiling > 1.5", "ceiling < 0.4", "ceiling"])
def test_a_ceiling_rule_that_makes_no_sense_is_refused(data, rule):
    with pytest.raises(ValueError, match="expected 'ceiling > ' and a number from 0 to 1"):
        evaluation.pick_voxels(data, "UTS01", rule=rule)
    with pytest.raises(ValueError, match="expected 'ceiling > ' and a number from 0 to 1"):
        evaluation.scored_repeats(data, "UTS01", rule=rule)


# ------------------------------------------------------------------ scores
def test_every_model_is_scored_by_a_ridge_fitted_anew(model_folder, data):
    options = {"subject": "UTS01", "layers": [0, 2], "voxels": [1, 3], **SHORT}
    r = evaluation.voxelwise_scores(encoder(model_folder), data, **options)
    predicted = evaluation.voxelwise_predictions(encoder(model_folder), data, **options)
    assert sorted(r) == [0, 2] and r[2].shape == (2,) and np.isfinite(r[2]).all()
    y = evaluation.measured(data, "UTS01", voxels=[1, 3])
    np.testing.assert_array_equal(
        y, np.concatenate([data.responses("UTS01", s)[:, [1, 3]] for s in data.split["test"]])
    )
    np.testing.assert_allclose(
        [np.corrcoef(y[:, i], predicted[2][:, i])[0, 1] for i in (0, 1)], r[2], atol=1e-5
    )


def test_evaluate_gives_a_row_per_subject_layer_and_region(model_folder, data):
    model = encoder(model_folder)
    table = evaluation.evaluate(model, data, layers=[0, 2], voxels=[0, 1, 3], **SHORT)
    assert isinstance(table, pd.DataFrame)
    assert list(table)[:6] == ["subject", "layer", "region", "n_voxels", "r", "normalised"]
    assert len(table) == len(table.drop_duplicates(["subject", "layer", "region"])) == 2 * 2 * 2
    row = table.set_index(["subject", "layer", "region"]).loc["UTS02", 2, "all voxels"]
    r = evaluation.voxelwise_scores(
        model, data, subject="UTS02", layers=[2], voxels=[0, 1, 3], **SHORT
    )[2]
    ceiling = data.noise_ceiling("UTS02")[[0, 1, 3]]
    assert row.n_voxels == 3 and row.n_below_floor == (ceiling <= 0.2).sum()
    assert row.r == pytest.approx(r.mean())
    if (ceiling > 0.2).any():
        assert row.normalised == pytest.approx((r / ceiling)[ceiling > 0.2].mean())


def test_evaluate_without_repeats_has_no_normalised_score(model_folder, data):
    table = evaluation.evaluate(
        encoder(model_folder), data, subjects="UTS01", layers=1, on="val", **SHORT
    )
    assert table.r.notna().any() and table.normalised.isna().all()


def test_voxels_chosen_on_half_of_the_repeats_are_scored_on_the_other_half(
    model_folder, data, monkeypatch
):
    used = []
    four = np.random.default_rng(5).standard_normal((4, 10, 6)).astype(np.float32)
    monkeypatch.setattr(data, "n_repeats", lambda subject, story: 4 if story == "d" else 1)
    monkeypatch.setattr(data, "repeats", lambda *_, **__: four)
    original = data.responses

    def responses(subject, story, *, voxels=None, repeats=None):
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


def test_normalised_scores_leave_out_voxels_at_the_floor():
    share = scores.normalised([0.1, 0.2, 0.3], [0.5, 0.2, 0.0])
    np.testing.assert_allclose(share, [0.2, np.nan, np.nan])
    means = scores.by_region(
        share, {"a": np.array([1, 1, 0], bool), "b": np.array([0, 0, 1], bool)}
    )
    assert means["a"] == pytest.approx(0.2) and np.isnan(means["b"])
    with pytest.raises(ValueError, match="give the same voxels"):
        scores.normalised([0.1], [0.5, 0.2])


def test_block_resamples_keep_measured_and_predicted_rows_together():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((60, 3))
    draws = scores.bootstrap_blocks(y, y, correlation, n=20)
    np.testing.assert_allclose(draws, np.ones((20, 3)))
    noise = rng.standard_normal((60, 3))
    gain = scores.bootstrap_blocks(
        y, [noise, y], lambda y, p, q: correlation(y, q) - correlation(y, p), n=20
    )
    np.testing.assert_allclose(gain, 1 - scores.bootstrap_blocks(y, noise, correlation, n=20))
    assert gain.std(0).min() > 0
    with pytest.raises(ValueError, match="at least two blocks"):
        scores.bootstrap_blocks(y[:15], y[:15], correlation)


# ------------------------------------------------------------------ controls
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
