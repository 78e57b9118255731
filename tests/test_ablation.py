import warnings

import numpy as np
import pytest

from brainlib import ablation
from brainlib.encoding import RidgeEncoder, correlation
from brainlib.timing import fir

STORIES = [f"s{i}" for i in range(8)]
TRAIN, TEST = STORIES[:6], STORIES[6:]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without noise the smallest penalty is right
        yield


def normal(width, seed, n=120):
    rng = np.random.default_rng(seed)
    return {s: rng.standard_normal((n, width)).astype(np.float32) for s in STORIES}


def mixed(*parts, seed=0):
    """Features that are a random mix of others."""
    width = sum(p[STORIES[0]].shape[1] for p in parts)
    mix = np.random.default_rng(seed).standard_normal((width, 6)).astype(np.float32)
    return {s: np.hstack([p[s] for p in parts]) @ mix for s in STORIES}


def end_to_end(by_story, stories):
    return np.concatenate([by_story[s] for s in stories])


def largest_correlation(x, y):
    """Of any column of one array with any of the other."""
    r = np.corrcoef(x, y, rowvar=False)[: x.shape[1], x.shape[1] :]
    return np.abs(r).max()


# ------------------------------------------------------------------ residualising
@pytest.mark.parametrize("delays", [(0,), (-1, 0, 1)])
def test_residuals_are_uncorrelated_with_the_nuisance_on_training_stories(delays):
    low, own = normal(6, 0), normal(6, 1)
    features = mixed(low, own)
    left = ablation.residualize(features, low, TRAIN, delays=delays)
    for delay in delays:
        shifted = {s: fir(low[s], (delay,)) for s in STORIES}
        x = end_to_end(shifted, TRAIN)
        before, after = (largest_correlation(end_to_end(f, TRAIN), x) for f in (features, left))
        assert after < 0.05 and (delay or before > 0.3)


def test_what_the_nuisance_does_not_tell_is_left_on_test_stories():
    low, own = normal(6, 0), normal(6, 1)
    zero = {s: np.zeros_like(low[s]) for s in STORIES}
    left = ablation.residualize(mixed(low, own), low, TRAIN)
    kept = mixed(zero, own)  # the same mix without the nuisance
    r = correlation(end_to_end(kept, TEST), end_to_end(left, TEST))
    assert r.min() > 0.99


def test_features_that_are_the_nuisance_alone_leave_exactly_nothing():
    low = normal(6, 0)
    left = ablation.residualize(mixed(low), low, TRAIN)
    assert all((x == 0).all() for x in left.values())
    tiny = ablation.residualize(mixed(low), low, TRAIN, left=0.0)
    assert any((x != 0).any() for x in tiny.values())  # which an encoder would blow up


def test_no_statistic_of_a_test_story_is_used():
    low, own = normal(4, 0), normal(6, 1)
    features = mixed(low, own)
    wild = {s: x if s in TRAIN else 1e3 * x**2 + 77 for s, x in low.items()}
    wilder = {s: x if s in TRAIN else 1e4 - x for s, x in features.items()}
    for options in ({}, {"delays": (0, 1)}, {"n_components": 20}):
        calm = ablation.residualize(features, low, TRAIN, **options)
        for other in (
            ablation.residualize(features, wild, TRAIN, **options),
            ablation.residualize(wilder, low, TRAIN, **options),
        ):
            for s in TRAIN:
                np.testing.assert_array_equal(calm[s], other[s])


def test_a_test_story_is_residualised_on_its_own_rows_alone():
    low, own = normal(4, 0), normal(6, 1)
    features = mixed(low, own)
    calm = ablation.residualize(features, low, TRAIN)
    one, other = TEST
    changed = ablation.residualize(features | {other: -9 * features[other]}, low, TRAIN)
    np.testing.assert_array_equal(calm[one], changed[one])


def test_the_same_tr_leaves_what_came_a_tr_before_and_delays_do_not():
    low = normal(4, 0)
    late = {s: fir(x, (1,)) for s, x in low.items()}
    same = ablation.residualize(late, low, TRAIN)
    both = ablation.residualize(late, low, TRAIN, delays=(0, 1))
    assert np.var(same["s7"]) > 0.9 * np.var(late["s7"]) and not np.any(both["s7"])


def test_one_family_leaves_what_another_tells_and_a_joint_one_does_not():
    first, second = normal(3, 0), normal(3, 1)
    joint = {s: np.hstack([first[s], second[s]]) for s in STORIES}
    features = mixed(first, second)
    alone = ablation.residualize(features, first, TRAIN)
    together = ablation.residualize(features, joint, TRAIN)
    assert largest_correlation(end_to_end(alone, TEST), end_to_end(second, TEST)) > 0.5
    assert not np.any(together["s7"])


def test_a_non_linear_map_takes_away_what_a_linear_one_cannot():
    low = normal(1, 0)
    bent = {s: np.cos(2 * x) for s, x in low.items()}
    linear = ablation.residualize(bent, low, TRAIN)
    kernels = ablation.residualize(bent, low, TRAIN, n_components=50, left=0.0)
    assert np.var(linear["s7"]) > 0.9 * np.var(bent["s7"]) > 40 * np.var(kernels["s7"])
    again = ablation.residualize(bent, low, TRAIN, n_components=50, left=0.0)
    np.testing.assert_array_equal(kernels["s7"], again["s7"])


def test_a_story_without_nuisance_is_refused():
    low = normal(2, 0)
    with pytest.raises(ValueError, match=r"no nuisance for the stories \['s7'\]"):
        ablation.residualize(low, {s: low[s] for s in STORIES[:7]}, TRAIN)


# ------------------------------------------------------------------ impact
def test_impact_of_known_cases():
    full = [0.4, 0.4, 0.4, 0.4, 0.0, -0.1, np.nan]
    rest = [0.4, 0.1, 0.0, -0.1, 0.0, -0.2, 0.1]
    found = ablation.impact(full, rest)
    np.testing.assert_allclose(found, [0, 75, 100, 125, np.nan, np.nan, np.nan])
    assert ablation.impact(0.5, 0.25) == 50


def test_impact_near_zero_is_floored_openly():
    found = ablation.impact([0.05, 0.2], [0.5, 0.1], floor=0.1)
    np.testing.assert_allclose(found, [np.nan, 50])
    with pytest.raises(ValueError, match="floor -1"):
        ablation.impact([0.1], [0.1], floor=-1)
    with pytest.raises(ValueError, match="equal shapes"):
        ablation.impact([0.1, 0.2], [0.1])


# ------------------------------------------------------------------ partition
def responses_to(*parts):
    """One voxel each: the first feature of a part, or the sum of the first ones of several."""
    return {
        s: np.column_stack([sum(p[s][:, 0] for p in group) for group in parts]) for s in STORIES
    }


def test_partition_of_known_cases():
    low, own, common = (normal(3, seed, n=1500) for seed in range(3))
    model = {s: np.hstack([own[s], common[s]]) for s in STORIES}
    nuisance = {s: np.hstack([low[s], common[s]]) for s in STORIES}
    y = responses_to([low], [own], [common], [low, own])
    found = ablation.partition(model, nuisance, y, train=TRAIN, test=TEST, delays=(0,))
    share = {k: v.mean(0) for k, v in found.items()}
    assert share["low_level"].shape == (4,) and found["joint"].shape == (2, 4)
    np.testing.assert_allclose(share["unique_low_level"], [1, 0, 0, 0.5], atol=0.08)
    np.testing.assert_allclose(share["unique_features"], [0, 1, 0, 0.5], atol=0.08)
    np.testing.assert_allclose(share["shared"], [0, 0, 1, 0], atol=0.08)
    np.testing.assert_allclose(share["product_low_level"][[0, 1, 3]], [1, 0, 0.5], atol=0.08)


def test_the_parts_of_a_partition_add_up_to_the_joint_model():
    low, own = normal(3, 0), normal(5, 1)
    y = responses_to([low], [own], [low, own])
    found = ablation.partition(own, low, y, train=TRAIN, test=TEST, delays=(0, 1))
    unique = found["unique_low_level"] + found["unique_features"] + found["shared"]
    products = found["product_low_level"] + found["product_features"]
    np.testing.assert_allclose(unique, found["joint"], atol=1e-9)
    np.testing.assert_allclose(products, found["joint"], atol=1e-9)


def test_a_voxel_that_never_changes_has_no_variance_to_share_out():
    low, own = normal(3, 0), normal(5, 1)
    y = {s: np.zeros((len(x), 2)) + [0, 7] for s, x in low.items()}
    found = ablation.partition(own, low, y, train=TRAIN, test=TEST, delays=(0,))
    assert all((values == 0).all() for values in found.values())


def test_partition_is_himalaya_s_banded_ridge_with_its_own_scores():
    """At the same two kernel weights and penalty himalaya's solver predicts the same, band by band."""
    from himalaya.kernel_ridge import WeightedKernelRidge
    from himalaya.scoring import r2_score, r2_score_split

    low, own = normal(3, 0), normal(8, 1)
    noise = normal(2, 2)
    y = {s: x + 0.5 * noise[s] for s, x in responses_to([low, own], [own]).items()}
    model = RidgeEncoder([30.0], delays=(0,), groups=[3, 8], weights=[1.0, 0.5])
    model.fit([np.hstack([low[s], own[s]]) for s in TRAIN], [y[s] for s in TRAIN])
    split = ablation._split(model, np.hstack([low["s7"], own["s7"]]), [3, 8])

    rows = {"train": end_to_end, "test": lambda x, _: x["s7"]}
    bands = {}
    for part, take in rows.items():
        scaled = [
            (take(x, TRAIN) - end_to_end(x, TRAIN).mean(0)) / end_to_end(x, TRAIN).std(0)
            for x in (low, own)
        ]
        bands[part] = [scaled[0] / np.sqrt(3), scaled[1] / np.sqrt(8)]
    kernels, across = (
        np.stack([a @ b.T for a, b in zip(bands[part], bands["train"])]) for part in rows
    )
    peer = WeightedKernelRidge(alpha=30.0, deltas=np.log([1.0, 0.25]), kernels="precomputed")
    target = end_to_end(y, TRAIN)
    peer.fit(kernels, target - target.mean(0))
    expected = peer.predict(across, split=True)
    np.testing.assert_allclose(split, expected, atol=2e-3)

    truth = y["s7"] - y["s7"].mean(0)
    ours = ablation._by_story([y["s7"]], [split])[:, 0]
    np.testing.assert_allclose(ours, r2_score_split(truth, expected), atol=2e-3)
    np.testing.assert_allclose(ours.sum(0), r2_score(truth, expected.sum(0)), atol=2e-3)


def test_a_band_of_noise_is_shrunk_away_by_its_ratio():
    """Many useless model features do little harm where their band may be light, and much where it must be heavy."""
    low, junk, noise = normal(3, 0), normal(200, 1), normal(1, 2)
    y = {s: responses_to([low])[s] + noise[s] for s in STORIES}
    options = {"train": TRAIN, "test": TEST, "delays": (0,)}
    banded, heavy = (
        ablation.partition(junk, low, y, ratios=ratios, **options)
        for ratios in ((0.1, 10.0), (10.0,))
    )
    assert banded["joint"].mean() > heavy["joint"].mean() + 0.05
    assert abs(banded["unique_features"].mean()) < 0.05


def test_partition_uses_no_test_story_and_refuses_one_that_it_was_fitted_on():
    low, own = normal(3, 0), normal(5, 1)
    y = responses_to([low, own])
    calm = ablation.partition(own, low, y, train=TRAIN, test=TEST, delays=(0,))
    wild = {s: x if s != "s6" else 1e3 * x + 5 for s, x in own.items()}
    other = ablation.partition(wild, low, y, train=TRAIN, test=TEST, delays=(0,))
    for name in calm:
        np.testing.assert_array_equal(calm[name][1], other[name][1])
    with pytest.raises(ValueError, match=r"stories \['s5'\] are both"):
        ablation.partition(own, low, y, train=TRAIN, test=["s5"])
