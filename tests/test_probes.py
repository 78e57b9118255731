"""Linear probes: each metric against a value worked out by hand or by a library, and models whose answer is known."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, r2_score

import fireside
from brainlib import probes

pytestmark = pytest.mark.filterwarnings("ignore:.*chose the")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# ------------------------------------------------------------------ words
def test_a_word_is_the_mean_of_its_frames_and_a_short_one_takes_the_nearest():
    states, times = np.array([[0.0], [2.0], [4.0], [8.0]]), np.array([0.1, 0.3, 0.5, 0.7])
    start, end = [0.0, 0.2, 0.31, 0.55], [0.4, 0.6, 0.33, 0.8]
    means = probes.interval_means(states, times, start=start, end=end)
    np.testing.assert_allclose(means[:, 0], [1.0, 3.0, 2.0, 8.0])
    late = probes.interval_means(states, times, start=[0.44], end=[0.46])
    np.testing.assert_allclose(late, [[4.0]])


def test_words_of_another_recording_are_refused():
    states, times = np.zeros((4, 1)), np.array([0.1, 0.3, 0.5, 0.7])
    with pytest.raises(ValueError, match="1 intervals end before .* outside 0.10 to 0.70 s"):
        probes.interval_means(states, times, start=[0.1, 5.0], end=[0.2, 5.5])
    with pytest.raises(ValueError, match="end before they start"):
        probes.interval_means(states, times, start=[0.4], end=[0.2])


# ------------------------------------------------------------------ splits
def test_no_group_is_in_both_parts_and_every_row_is_tested_once():
    groups = np.repeat(list("abcdefg"), 3)
    split = probes.folds(groups, 3)
    assert len(split) == 3
    assert np.array_equal(np.sort(np.concatenate([test for _, test in split])), np.arange(21))
    assert all(not set(groups[a]) & set(groups[b]) for a, b in split)
    assert len(probes.folds(list("aab"), 5)) == 2


def test_crossed_folds_hold_out_stories_and_word_types_at_once():
    rng = np.random.default_rng(0)
    stories, words = rng.integers(0, 6, 300), rng.integers(0, 40, 300)
    split = probes.crossed_folds(stories, words, n_folds=3)
    assert np.array_equal(np.sort(np.concatenate([test for _, test in split])), np.arange(300))
    for train, test in split:
        assert not set(stories[train]) & set(stories[test])
        assert not set(words[train]) & set(words[test])


# ------------------------------------------------------------------ the probe
def test_a_probe_finds_the_weights_of_clean_targets_and_keeps_its_rows_apart():
    X, W = normal(120, 6), normal(6, 3, seed=1)
    groups = np.arange(120) // 6
    probe = probes.LinearProbe().fit(X[:100], X[:100] @ W, groups=groups[:100])
    assert np.mean(probes.r2_rows(X[100:] @ W, probe.predict(X[100:]))) > 0.99
    with pytest.raises(ValueError, match="1 group; expected two"):
        probes.LinearProbe().fit(X, X @ W, groups=np.zeros(120))
    with pytest.raises(ValueError, match="expected a row for each word"):
        probes.LinearProbe().fit(X, (X @ W)[:50], groups=groups)


def test_a_model_whose_features_are_the_targets_reaches_the_top():
    words = np.repeat(np.arange(60), 3)
    vectors = normal(60, 8)[words]
    classes = probes.one_hot(np.array(["animal", "tool", "food"])[words % 3])
    X, Y = np.hstack([vectors, classes]), np.hstack([vectors, classes])
    predicted = probes.held_out(X, Y, probes.folds(words), groups=words)
    assert np.mean(probes.r2_rows(vectors, predicted[:, :8])) > 0.99
    assert np.mean(probes.rank_rows(vectors, predicted[:, :8], types=words)) == 1
    assert np.mean(probes.accuracy_rows(classes, predicted[:, 8:])) == pytest.approx(1)


def test_random_targets_of_new_types_stay_at_chance_and_of_known_types_are_memorised():
    words = np.tile(np.arange(100), 4)
    stories = np.repeat(np.arange(4), 100)
    X = normal(100, 60, seed=1)[words] + 0.1 * normal(400, 60, seed=2)  # each type has its states
    Y = probes.permuted_over_types(normal(100, 5, seed=3)[words], words)
    classes = probes.one_hot(words % 4)
    classes = probes.permuted_over_types(classes, words, seed=1)
    both = np.hstack([Y, classes])
    known = probes.held_out(X, both, probes.folds(stories), groups=stories)
    new = probes.held_out(X, both, probes.folds(words), groups=words)
    assert np.mean(probes.r2_rows(Y, known[:, :5])) > 0.5
    assert np.mean(probes.rank_rows(Y, known[:, :5], types=words)) > 0.9
    assert abs(np.mean(probes.r2_rows(Y, new[:, :5]))) < 0.1
    assert abs(np.mean(probes.rank_rows(Y, new[:, :5], types=words)) - 0.5) < 0.08
    assert abs(np.mean(probes.accuracy_rows(classes, new[:, 5:])) - 0.25) < 0.12


def test_a_probe_that_finds_nothing_ranks_at_chance_and_has_no_r2():
    words, Y = np.arange(60), normal(60, 4)
    predicted = probes.held_out(np.zeros((60, 2)), Y, probes.folds(words), groups=words)
    assert np.mean(probes.rank_rows(Y, predicted, types=words)) == pytest.approx(0.5, abs=1e-6)
    assert np.mean(probes.r2_rows(Y, predicted)) == pytest.approx(0, abs=1e-6)


def test_what_low_level_features_explain_is_not_counted_twice():
    groups = np.arange(200) // 4
    low, own = normal(200, 3), normal(200, 3, seed=1)
    Y = low @ normal(3, 2, seed=2) + own @ normal(3, 2, seed=3)
    split = probes.folds(groups)
    base = probes.held_out(low, Y, split, groups=groups)
    rest = probes.residual_targets(low, Y, split, groups=groups)
    nothing = base + probes.held_out(low, rest, split, groups=groups)
    whole = base + probes.held_out(own, rest, split, groups=groups)
    assert np.mean(probes.r2_rows(Y, nothing)) < np.mean(probes.r2_rows(Y, base)) + 0.02 < 0.8
    assert np.mean(probes.r2_rows(Y, whole)) > 0.97


def test_states_that_know_nothing_add_nothing_to_the_form():
    words, Y = np.arange(90), normal(90, 4)
    split = probes.folds(words)
    base = probes.held_out(normal(90, 3, seed=1), Y, split, groups=words)
    rest = probes.residual_targets(normal(90, 3, seed=1), Y, split, groups=words)
    more = base + probes.held_out(np.zeros((90, 2)), rest, split, groups=words)
    np.testing.assert_allclose(more, base, atol=1e-5)


def test_rows_that_are_never_tested_have_no_prediction():
    X = normal(40, 3)
    predicted = probes.held_out(X, X, [(np.arange(30), np.arange(30, 35))], groups=np.arange(40))
    assert (
        np.isfinite(predicted[30:35]).all()
        and np.isnan(np.delete(predicted, range(30, 35), 0)).all()
    )


# ------------------------------------------------------------------ scores
def test_scores_by_row_average_to_those_of_scikit_learn():
    Y, guess = normal(50, 4), normal(50, 4) + normal(50, 4, seed=1)
    expected = r2_score(Y, guess, multioutput="variance_weighted")
    assert np.mean(probes.r2_rows(Y, guess)) == pytest.approx(expected)
    labels = np.array([0] * 30 + [1] * 15 + [2] * 5)
    score = np.mean(probes.accuracy_rows(probes.one_hot(labels), guess[:, :3]))
    assert score == pytest.approx(balanced_accuracy_score(labels, guess[:, :3].argmax(1)))


def test_the_mean_has_no_r2_and_constant_targets_are_refused():
    Y = normal(20, 2)
    assert np.mean(probes.r2_rows(Y, Y.mean(0) + 0 * Y)) == pytest.approx(0)
    with pytest.raises(ValueError, match="never change"):
        probes.r2_rows(np.ones((5, 2)), np.ones((5, 2)))


def test_cosine_rank_by_hand():
    # four types at the corners of a square around zero; the prediction points to the right and a little up
    Y = np.array([[1.0, 1], [1, -1], [-1, -1], [-1, 1]])
    guess = np.array([[3.0, 1.0]] * 4)
    ranks = probes.rank_rows(Y, guess, types=np.arange(4))
    np.testing.assert_allclose(ranks, [1, 2 / 3, 0, 1 / 3])
    tied = probes.rank_rows(Y, np.array([[2.0, 0.0]] * 4), types=np.arange(4))
    np.testing.assert_allclose(tied, [5 / 6, 5 / 6, 1 / 6, 1 / 6])


def test_another_token_of_a_word_is_no_rival_of_it():
    Y = np.array([[1.0, 1], [1, 1], [1, -1], [-2, 0]])
    ranks = probes.rank_rows(Y, Y + [0.0, 0.2], types=list("aabc"))
    np.testing.assert_allclose(ranks, 1)
    with pytest.raises(ValueError, match="one word type"):
        probes.rank_rows(Y[:2], Y[:2], types=list("aa"))


def test_a_control_task_gives_all_tokens_of_a_type_the_target_of_one_other():
    words = np.array(["fox", "den", "fox", "log", "den"])
    values = np.array([1, 2, 1, 3, 2])
    permuted = probes.permuted_over_types(values, words, seed=1)
    assert permuted[0] == permuted[2] and permuted[1] == permuted[4]
    assert sorted({permuted[0], permuted[1], permuted[3]}) == [1, 2, 3]
    assert any(
        list(probes.permuted_over_types(values, words, seed=s)) != list(values) for s in range(4)
    )


def test_selectivity_is_the_score_less_the_mean_of_its_controls():
    rows, controls = np.array([0.9, 0.7]), np.array([[0.5, 0.5], [0.3, 0.1]])
    np.testing.assert_allclose(probes.selectivity(rows, controls), [0.5, 0.4])
    np.testing.assert_allclose(probes.selectivity(rows, controls[0]), [0.4, 0.2])


# ------------------------------------------------------------------ similarity
def test_phoneme_distance_by_hand():
    assert probes.phoneme_distance("KAET", "KAET") == 0
    assert probes.phoneme_distance(["K", "AE", "T"], ["B", "AE", "T"]) == pytest.approx(1 / 3)
    assert probes.phoneme_distance(["K", "AE", "T"], ["K", "AE", "T", "S"]) == pytest.approx(1 / 4)
    assert probes.phoneme_distance(["AA"], ["K", "AE", "T"]) == 1


def test_representational_similarity_is_spearman_s_and_its_null_has_none():
    A = normal(30, 4)
    B = A + 0.5 * normal(30, 4, seed=1)
    one, other = probes.cosines(A, A), probes.cosines(B, B)
    rho, null = probes.representational_similarity(one, other, n_permutations=100)
    upper = np.triu_indices(30, 1)
    assert rho == pytest.approx(spearmanr(one[upper], other[upper])[0], abs=1e-4)
    assert abs(null.mean()) < 0.03 and null.max() < rho
    assert probes.p_value(rho, null) == pytest.approx(2 / 101)
    with pytest.raises(ValueError, match="expected the same words"):
        probes.representational_similarity(one, other[:5, :5])


def test_cosines_by_hand():
    np.testing.assert_allclose(
        probes.cosines(np.array([[3.0, 4.0], [0, 0]]), np.array([[1.0, 0], [0, 2]])),
        [[0.6, 0.8], [0, 0]],
    )


def test_preference_is_a_difference_of_means_and_its_null_is_centred():
    difference, null = probes.preference([0.5, 0.7, 0.6], [0.1, 0.3, 0.2], n_permutations=2000)
    assert difference == pytest.approx(0.4) and abs(null.mean()) < 0.03
    # one of the 20 ways to deal six pairs to two kinds is the observed, one its mirror
    assert probes.p_value(difference, null) == pytest.approx(0.1, abs=0.03)


def test_a_p_value_counts_the_value_itself():
    null = np.arange(-9.0, 10.0)  # 19 draws
    assert probes.p_value(50.0, null) == probes.p_value(-50.0, null) == pytest.approx(0.1)
    assert probes.p_value(9.0, null) == pytest.approx(0.2)
    assert probes.p_value(0.0, null) == 1


# ------------------------------------------------------------------ unseen types
def test_no_type_of_the_probe_set_is_heard_in_tuning_or_trains_a_probe_of_others():
    _, words = fireside.probe_set()
    heard = set()
    for name in fireside.levels.story_names():
        heard |= set(fireside.embedded_story(name).words.text.str.lower())
    assert not heard & set(words.word)
    for train, test in probes.folds(words.sentence):
        assert not set(words.word[train]) & set(words.word[test])
        assert not set(words.sentence[train]) & set(words.sentence[test])
