import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from brainlib import encoding, timing
from brainlib.encoding import RidgeEncoder, correlation


def stories(n_features=6, n_voxels=5, n_stories=4, rows=60, noise=0.5, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((2 * n_features, n_voxels))
    X = [rng.standard_normal((rows, n_features)) for _ in range(n_stories)]
    return X, [
        timing.fir(x, (1, 2)) @ weights + noise * rng.standard_normal((rows, n_voxels)) for x in X
    ]


def closed_form(X, Y, alpha, delays):
    """Ridge by its normal equations, float64, with the same z-scoring and delays."""
    stacked = np.concatenate(X)
    design = np.concatenate([timing.fir((x - stacked.mean(0)) / stacked.std(0), delays) for x in X])
    y = np.concatenate(Y) - np.concatenate(Y).mean(0)
    return np.linalg.solve(design.T @ design + alpha * np.eye(design.shape[1]), design.T @ y)


@pytest.mark.parametrize("n_features", [6, 200])  # primal, kernel
def test_weights_equal_the_normal_equations(n_features):
    X, Y = stories(n_features)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a single penalty has no edges
        model = RidgeEncoder(alphas=[30.0], delays=(1, 2)).fit(X, Y)
    assert model.kernel_ == (n_features == 200)
    np.testing.assert_allclose(model.coef_, closed_form(X, Y, 30.0, (1, 2)), atol=2e-4)


def test_each_voxel_gets_the_alpha_that_its_held_out_stories_prefer():
    X, Y = stories(n_features=20, noise=0.1)
    rng = np.random.default_rng(1)
    Y = [
        np.hstack([y[:, :2], rng.standard_normal((len(y), 2))]) for y in Y
    ]  # two voxels with signal, two without
    alphas = np.logspace(-1, 7, 9)
    model = RidgeEncoder(alphas=alphas, delays=(1, 2)).fit(X, Y)
    assert model.best_alphas_[:2].max() < model.best_alphas_[2:].min()
    folds = encoding.story_folds([len(x) for x in X])
    design = np.concatenate([timing.fir((x - model.mean_) / model.scale_, (1, 2)) for x in X])
    y = np.concatenate(Y) - np.concatenate(Y).mean(0)
    scores = np.zeros((len(alphas), y.shape[1]))
    for train, held in folds:
        for i, a in enumerate(alphas):
            w = np.linalg.solve(
                design[train].T @ design[train] + a * np.eye(design.shape[1]),
                design[train].T @ y[train],
            )
            error = ((y[held] - design[held] @ w) ** 2).sum(0)
            scores[i] += 1 - error / ((y[held] - y[held].mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(model.best_alphas_[:2], alphas[scores.argmax(0)][:2])


def test_left_to_itself_a_model_has_five_folds_and_delays_of_one_to_four_trs(monkeypatch):
    X, Y = stories(n_stories=6, noise=50)
    decompose, calls = encoding._eigh, []
    monkeypatch.setattr(encoding, "_eigh", lambda gram: calls.append(0) or decompose(gram))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = RidgeEncoder().fit(X, Y)
    assert len(calls) == 1 + 5 and len(encoding.story_folds([9] * 6)) == 5
    alone = RidgeEncoder([30.0]).fit(X, Y)
    np.testing.assert_allclose(alone.coef_, closed_form(X, Y, 30.0, (1, 2, 3, 4)), atol=2e-4)
    design = np.concatenate([timing.fir((x - model.mean_) / model.scale_) for x in X])
    grid = np.linalg.norm(design, 2) ** 2 * 10.0 ** np.arange(-5, 1.5, 0.5)
    assert np.isclose(model.best_alphas_[:, None], grid, rtol=1e-4).any(1).all()


def test_a_feature_is_constant_where_it_varies_by_less_than_a_millionth_of_the_widest():
    X, Y = stories(n_features=3)
    X = [x * [1.0, 1.1e-6, 0.9e-6] for x in X]
    spread = np.concatenate(X).std(0)
    X = [x / spread * [1.0, 1.1e-6, 0.9e-6] for x in X]
    scale = RidgeEncoder([1.0], delays=(1, 2)).fit(X, Y).scale_
    np.testing.assert_allclose(scale, [1.0, 1.1e-6, 1.0])
    still = RidgeEncoder([1.0], delays=(1, 2)).fit([0 * x + 1e-13 for x in X], Y)
    assert (still.scale_ == 1).all()


@pytest.mark.parametrize("n_features", [6, 200])  # primal, kernel
def test_batches_of_voxels_on_a_named_device_change_nothing(monkeypatch, n_features):
    X, Y = stories(n_features, n_voxels=7)
    whole = RidgeEncoder(delays=(1, 2), device="cpu").fit(X, Y)
    monkeypatch.setattr(encoding, "BATCH_VOXELS", 3)  # three voxels at a time
    parts = RidgeEncoder(delays=(1, 2), device="cpu").fit(X, Y)
    np.testing.assert_array_equal(whole.best_alphas_, parts.best_alphas_)
    np.testing.assert_allclose(whole.cv_scores_, parts.cv_scores_, atol=1e-5)
    np.testing.assert_allclose(whole.coef_, parts.coef_, atol=1e-5)


@pytest.mark.parametrize(
    "n_features", [10, 55, 200]
)  # fewer columns than rows, about as many, more
@pytest.mark.parametrize("decay", [0.0, 1.0])  # of the features' spectrum
def test_penalties_and_scores_are_those_of_himalaya(n_features, decay):
    from himalaya.kernel_ridge import KernelRidgeCV
    from himalaya.scoring import l2_neg_loss

    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((n_features, n_features))
    mixing *= np.arange(1, n_features + 1)[:, None] ** -decay
    X, Y = stories(n_features, n_voxels=40, noise=3 * n_features**0.5)
    X = [x @ mixing for x in X]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some voxels prefer the smallest penalty
        model = RidgeEncoder(delays=(1, 2)).fit(X, Y)
        design = np.concatenate([timing.fir((x - model.mean_) / model.scale_, (1, 2)) for x in X])
        y = np.concatenate(Y) - np.concatenate(Y).mean(0)
        alphas = np.linalg.norm(design, 2) ** 2 * np.logspace(-5, 1, 13)
        peer = KernelRidgeCV(
            alphas,
            kernel="linear",
            cv=encoding.story_folds([len(x) for x in X]),
            solver_params={"score_func": l2_neg_loss},
        ).fit(design, y)
    same = np.isclose(model.best_alphas_, peer.best_alphas_, rtol=1e-4)
    assert same.mean() >= 0.95
    losses = -np.asarray(peer.cv_scores_)[same]
    np.testing.assert_allclose(model.cv_scores_[same], 1 - losses / y.var(0)[same], atol=1e-4)
    ours = np.concatenate(model.predict(X)) - model.y_mean_
    np.testing.assert_allclose(ours[:, same], peer.predict(design)[:, same], atol=2e-3 * y.std())


def test_each_fold_is_decomposed_once_however_many_batches(monkeypatch):
    X, Y = stories(n_voxels=20)
    calls = []
    decompose = encoding._eigh
    monkeypatch.setattr(encoding, "_eigh", lambda gram: calls.append(gram.shape) or decompose(gram))
    monkeypatch.setattr(encoding, "BATCH_VOXELS", 2)
    RidgeEncoder(delays=(1, 2)).fit(X, Y)
    assert len(calls) == 1 + 4  # the whole, and one per fold of one story each


def test_the_cheaper_form_is_chosen_near_as_many_columns_as_rows():
    folds = encoding.story_folds([300] * 5)
    cheaper = [
        encoding._kernel_is_cheaper(1500, p, folds=folds, n_alphas=13)
        for p in (300, 1100, 1400, 3000)
    ]
    assert cheaper == [False, False, True, True]


@pytest.mark.parametrize("n_alphas", [1, 13])
def test_the_form_is_chosen_by_the_numbers_of_multiplications_per_voxel(n_alphas):
    """All products of a matrix and a voxel's responses: to fit on all rows, and to predict each fold by each penalty."""
    folds = encoding.story_folds([30, 50, 40])
    n = 120

    def multiplications(p, kernel):
        k = n if kernel else p  # eigenvectors
        total = n * k + k * k
        for train, test in folds:
            k = len(train) if kernel else p
            total += k * len(train) + n_alphas * len(test) * k
        return total

    widths = range(1, 300)
    chosen = [encoding._kernel_is_cheaper(n, p, folds=folds, n_alphas=n_alphas) for p in widths]
    assert chosen == [multiplications(p, True) < multiplications(p, False) for p in widths]
    assert len(set(chosen)) == 2


def test_eigenvalues_come_largest_first_and_none_below_zero():
    values, vectors = encoding._eigh(torch.diag(torch.tensor([1.0, -0.5, 3.0])))
    assert values.tolist() == [3.0, 1.0, 0.0]
    assert vectors.abs().argmax(0).tolist() == [2, 0, 1]


def test_directions_that_a_penalty_shrinks_to_nothing_are_left_out():
    """Of two directions, one 1e4 times the other, the small one counts until the penalty dwarfs it."""
    design = torch.tensor([[1e4, 0], [0, 1], [1e4, 0], [0, 1]], dtype=torch.float64)
    train, test = np.arange(2), np.arange(2, 4)
    for kernel, gram in ((True, design @ design.T), (False, design.T @ design)):
        fold = encoding._HeldOut.of(design, gram, train, test, [1.0, 1e4], kernel=kernel)
        assert fold.ranks == [2, 1] and len(fold.values) == 2


@pytest.mark.parametrize("share, kept", [(1.0, 2), (1.5, 1), (0.5, 3)])
def test_what_directions_may_add_is_a_thousandth_of_the_targets(share, kept):
    """Squared, and per held-out row of a training row; the contributions of all that are left out add up."""
    power = torch.tensor([1.0, 0.6e-6, 0.6e-6, 0.0])
    assert encoding._rank(power, share) == kept
    assert encoding._rank(0 * power, share) == 1  # at least one


def test_nothing_crosses_a_story_border():
    X, Y = stories(n_stories=3)
    model = RidgeEncoder(delays=(1, 2)).fit(X, Y)
    alone, together = model.predict(X[1]), model.predict(X)[1]
    np.testing.assert_array_equal(alone, together)
    first_row = (X[1][0] - model.mean_) / model.scale_ * 0 @ np.zeros(
        (X[1].shape[1], Y[0].shape[1])
    ) + model.y_mean_
    np.testing.assert_allclose(
        alone[0], first_row, atol=1e-6
    )  # no row before the first: only the mean is left


def test_features_are_scaled_by_training_statistics_alone():
    X, Y = stories()
    model = RidgeEncoder(delays=(1, 2)).fit(X, Y)
    np.testing.assert_allclose(
        model.predict(X[0] + 1.0)[5:] - model.predict(X[0])[5:],
        (timing.fir(np.ones((60, 6)) / model.scale_, (1, 2)) @ model.coef_)[5:],
        atol=1e-3,
    )


def test_a_grid_that_is_too_narrow_warns_and_a_wide_one_does_not():
    X, Y = stories(noise=0.01)
    with pytest.warns(UserWarning, match="smallest alpha.*offer smaller"):
        RidgeEncoder(alphas=[1e3, 1e4], delays=(1, 2)).fit(X, Y)
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(y.shape) for y in Y]
    with pytest.warns(UserWarning, match="largest alpha.*offer larger"):
        RidgeEncoder(alphas=[1e-3, 1e-2], delays=(1, 2)).fit(X, noise)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RidgeEncoder(delays=(1, 2)).fit(X, noise).edges_[1] == 0.0


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda X, Y: (X, Y[:-1]), "4 stories of features but 3 of responses"),
        (lambda X, Y: (X, [*Y[:-1], Y[-1][:-1]]), "story 3: features"),
        (lambda X, Y: ([*X[:-1], X[-1] * np.nan], Y), "story 3: NaN or infinite"),
    ],
)
def test_lists_that_do_not_match_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RidgeEncoder().fit(*change(*stories()))


def test_features_of_another_width_are_refused():
    X, Y = stories()
    with pytest.raises(ValueError, match=r"expected \(n_trs, 6\)"):
        RidgeEncoder().fit(X, Y).predict(X[0][:, :3])


def test_folds_hold_out_whole_stories():
    lengths = [3, 5, 2, 4]
    story = np.repeat(range(4), lengths)
    for train, held in encoding.story_folds(lengths, 3):
        assert not set(story[train]) & set(story[held])
        assert len(train) + len(held) == 14


def test_stories_go_to_folds_in_turn_and_a_single_one_is_cut_into_blocks():
    held = [held.tolist() for _, held in encoding.story_folds([2, 1, 3, 1, 2], 2)]
    assert held == [[0, 1, 3, 4, 5, 7, 8], [2, 6]]  # stories 0, 2, 4 and 1, 3
    alone = [held.tolist() for _, held in encoding.story_folds([10])]
    assert alone == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_correlation_is_pearsons_and_zero_for_a_constant():
    rng = np.random.default_rng(0)
    y, z = rng.standard_normal((50, 3)), rng.standard_normal((50, 3))
    z[:, 2] = 4.0
    r = encoding.correlation(y, z)
    np.testing.assert_allclose(r[:2], [stats.pearsonr(y[:, i], z[:, i])[0] for i in range(2)])
    assert r[2] == 0


def test_noise_ceiling_recovers_the_planted_one():
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((4000, 1))
    repeats = np.stack(
        [signal * [0.0, 0.5, 1.0] + rng.standard_normal((4000, 3)) for _ in range(5)]
    )
    expected = np.sqrt([0, 0.25 / (0.25 + 0.2), 1 / 1.2])
    np.testing.assert_allclose(encoding.noise_ceiling(repeats)[1:], expected[1:], atol=0.02)
    assert encoding.noise_ceiling(repeats)[0] < 0.15


def test_noise_ceiling_equals_the_closed_form_of_schoppe():
    repeats = np.random.default_rng(2).standard_normal((4, 50, 20)) + np.random.default_rng(
        3
    ).standard_normal((50, 20))
    total, of_mean, n = repeats.var(1).mean(0), repeats.mean(0).var(0), 4
    power = (n * of_mean - total) / (n - 1)
    expected = 1 / np.sqrt(1 + (total / power - 1) / n)
    np.testing.assert_allclose(
        encoding.noise_ceiling(repeats), np.where(power > 0, expected, 0), atol=1e-10
    )


def test_noise_ceiling_of_two_repeats_by_hand():
    """Means 0, 2, 2, 4 vary by 2, repeats by 2.75: signal power (2 x 2 - 2.75) / 1 = 1.25, of 2."""
    repeats = np.array([[[1.0], [1], [3], [5]], [[-1], [3], [1], [3]]])
    np.testing.assert_allclose(encoding.noise_ceiling(repeats), [np.sqrt(1.25 / 2)])


def test_noise_ceiling_of_a_dead_voxel_is_zero_and_one_hearing_is_refused():
    assert encoding.noise_ceiling(np.zeros((3, 10, 2))).tolist() == [0, 0]
    with pytest.raises(ValueError, match="at least two repeats"):
        encoding.noise_ceiling(np.zeros((1, 10, 2)))


def test_the_ceiling_of_stories_is_what_a_perfect_model_reaches_on_them_end_to_end():
    """The noise-free signal, as strong as each story has it, against the z-scored means of six repeats."""
    rng = np.random.default_rng(4)
    lengths, strengths, n_voxels = (400, 900, 700), (0.0, 0.3, 0.8), 200
    stories, measured, perfect = [], [], []
    for n, strength in zip(lengths, strengths):
        signal = strength * rng.standard_normal((n, n_voxels))
        repeats = signal + rng.standard_normal((6, n, n_voxels))
        mean, spread = repeats.mean((0, 1)), repeats.mean(0).std(0)
        stories.append(repeats)
        measured.append((repeats.mean(0) - mean) / spread)
        perfect.append(signal / spread)
    reached = encoding.correlation(np.concatenate(measured), np.concatenate(perfect)).mean()
    pooled = encoding.noise_ceiling(stories)
    assert pooled.mean() == pytest.approx(reached, abs=0.005)
    of_stories = [encoding.noise_ceiling(repeats).mean() for repeats in stories]
    assert abs(np.mean(of_stories) - reached) > 0.1
    np.testing.assert_allclose(
        encoding.noise_ceiling(iter(stories[:1])), encoding.noise_ceiling(stories[0])
    )


def test_pooling_stories_lowers_the_ceilings_of_voxels_without_signal():
    rng = np.random.default_rng(5)
    stories = [rng.standard_normal((5, 100, 500)) for _ in range(4)]
    pooled = encoding.noise_ceiling(stories).mean()
    assert pooled < 0.75 * np.mean([encoding.noise_ceiling(story) for story in stories])


def test_groups_of_features_weigh_alike_whatever_their_width():
    """Two ways to the same penalty: groups, and columns that were divided by the square root of the width by hand."""
    rng = np.random.default_rng(6)
    X = [rng.standard_normal((120, 8)) for _ in range(3)]
    Y = [x @ rng.standard_normal((8, 5)) + rng.standard_normal((120, 5)) for x in X]
    model = encoding.RidgeEncoder([30.0], delays=(0,), groups=[6, 2]).fit(X, Y)
    stacked = np.concatenate(X)
    scaled = (stacked - stacked.mean(0)) / stacked.std(0) / np.sqrt([6] * 6 + [2] * 2)
    y = np.concatenate(Y) - np.concatenate(Y).mean(0)
    beta = np.linalg.solve(scaled.T @ scaled + 30 * np.eye(8), scaled.T @ y)
    np.testing.assert_allclose(
        np.concatenate(model.predict(X)), scaled @ beta + np.concatenate(Y).mean(0), atol=1e-4
    )
    doubled = [np.hstack([x[:, :6], x[:, 6:], x[:, 6:]]) for x in X]
    same = encoding.RidgeEncoder([30.0], delays=(0,), groups=[6, 4]).fit(doubled, Y)
    np.testing.assert_allclose(same.predict(doubled[0]), model.predict(X[0]), atol=1e-4)


def test_blocks_stay_within_their_stories():
    blocks = encoding.story_blocks(57, lengths=[23, 34], block=10)
    assert [[len(b) for b in story] for story in blocks] == [[12, 11], [12, 11, 11]]
    assert np.concatenate(blocks[0]).tolist() == list(range(23))
    assert np.concatenate(blocks[1]).tolist() == list(range(23, 57))
    with pytest.raises(ValueError, match="57 TRs in stories of .23, 33."):
        encoding.story_blocks(57, lengths=[23, 33])


def test_permutations_do_not_carry_blocks_into_another_story():
    """One story's responses are large: only where its blocks stay in it is the null as wide as it should be."""
    rng = np.random.default_rng(7)
    large = np.repeat([10.0, 0.1], 100)[:, None]
    y, y_hat = (large * rng.standard_normal((200, 1000)) for _ in range(2))
    p = encoding.permutation_test(y, y_hat, lengths=[100, 100], n=400)
    assert 0.03 <= np.mean(p <= 0.05) <= 0.07
    loose = encoding.permutation_test(y, y_hat, n=400)
    assert np.mean(loose <= 0.05) > 0.08


def test_permutation_p_is_uniform_without_signal_and_small_with():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((200, 400))
    p = encoding.permutation_test(y, rng.standard_normal((200, 400)), n=500)
    assert 0.03 <= np.mean(p <= 0.05) <= 0.07
    assert encoding.permutation_test(y, y, n=500).max() == pytest.approx(1 / 501)


def test_permutation_needs_two_blocks():
    with pytest.raises(ValueError, match="two blocks"):
        encoding.permutation_test(np.zeros((15, 2)), np.zeros((15, 2)))
    y = np.random.default_rng(0).standard_normal((40, 3))
    with pytest.warns(UserWarning, match="fewer than seven"):
        few = encoding.permutation_test(y, y, n=200)
    assert few.min() > 0.005  # a perfect prediction, four blocks: 24 orders


def test_unless_asked_otherwise_blocks_are_of_ten_trs_and_there_are_a_thousand_orders():
    rng = np.random.default_rng(0)
    y = rng.standard_normal((100, 4))
    p = encoding.permutation_test(y, y)
    assert p.max() == pytest.approx(1 / 1001)
    noisy = y + 4 * rng.standard_normal(y.shape)
    stated = encoding.permutation_test(y, noisy, block=10, n=1000, seed=0)
    np.testing.assert_array_equal(encoding.permutation_test(y, noisy), stated)
    assert len(encoding.story_blocks(100)[0]) == 10
    with pytest.raises(ValueError, match="two blocks of 10"):
        encoding.story_blocks(19)
    assert [len(block) for block in encoding.story_blocks(20)[0]] == [10, 10]


def test_seven_blocks_in_a_story_are_enough_and_six_are_warned_of():
    y = np.random.default_rng(0).standard_normal((70, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoding.permutation_test(y, y, n=5)
    with pytest.warns(UserWarning, match="60 TRs are 6 blocks"):
        encoding.permutation_test(y[:60], y[:60], n=5)


def test_fdr_adjusts_as_benjamini_and_hochberg():
    p = np.array([0.01, 0.02, 0.03, 0.5])
    np.testing.assert_allclose(encoding.fdr(p), [0.04, 0.04, 0.04, 0.5])


def test_what_is_no_number_has_no_correlation():
    y = np.arange(6.0).reshape(3, 2)
    broken = y.copy()
    broken[1, 0] = np.nan
    assert np.isnan(correlation(y, broken)[0]) and correlation(y, broken)[1] == pytest.approx(1)
