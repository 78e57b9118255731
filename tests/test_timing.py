import numpy as np
import pytest
import torch

from brainlib import timing


def reference_lanczos(x, times, tr_times, lobes=3):
    """The field's formula, written as a plain loop: cutoff 1 / mean TR, w = a sin(pi t) sin(pi t / a) / (pi t)^2, 0 beyond a."""
    cutoff = 1 / np.mean(np.diff(tr_times))
    out = np.zeros((len(tr_times), x.shape[1]))
    for i, now in enumerate(tr_times):
        for j, then in enumerate(times):
            t = (now - then) * cutoff
            if t == 0:
                w = 1.0
            elif abs(t) > lobes:
                w = 0.0
            else:
                w = lobes * np.sin(np.pi * t) * np.sin(np.pi * t / lobes) / (np.pi**2 * t**2)
            out[i] += w * x[j]
    return out


def test_downsampling_equals_the_field_formula():
    rng = np.random.default_rng(0)
    times, tr_times = np.sort(rng.uniform(0, 60, 300)), timing.tr_centres(20)
    x = rng.standard_normal((300, 4))
    np.testing.assert_allclose(
        timing.downsample(x, times, tr_times), reference_lanczos(x, times, tr_times), atol=1e-10
    )


def test_times_need_not_be_sorted():
    x, times = np.arange(6.0)[:, None], np.array([30.0, 12, 18, 11, 25, 14])
    order = np.argsort(times)
    tr_times = timing.tr_centres(8)
    np.testing.assert_allclose(
        timing.downsample(x, times, tr_times),
        timing.downsample(x[order], times[order], tr_times),
        atol=1e-12,
    )


def test_a_constant_comes_out_as_samples_per_tr():
    times = np.arange(0, 100, 0.1)
    y = timing.downsample(np.ones((len(times), 1)), times, timing.tr_centres(30))
    np.testing.assert_allclose(y, 19.94, atol=0.01)


def test_tensor_and_array_agree_and_gradients_flow():
    rng = np.random.default_rng(1)
    x, times, tr_times = rng.standard_normal((500, 3)), np.arange(500) / 10, timing.tr_centres(12)
    tensor = torch.tensor(x, requires_grad=True)
    y = timing.downsample(tensor, times, tr_times)
    np.testing.assert_allclose(
        y.detach().numpy(), timing.downsample(x, times, tr_times), atol=1e-12
    )
    y.sum().backward()
    expected = np.asarray(timing.lanczos_matrix(times, tr_times).sum(0)).ravel()
    np.testing.assert_allclose(tensor.grad[:, 0].numpy(), expected, atol=1e-12)


def test_the_past_kernel_sums_each_trs_own_past_and_nothing_later():
    times, tr_times = np.arange(0, 60, 0.1), timing.tr_centres(15)
    weights = timing.past_matrix(times, tr_times).toarray()
    lag = tr_times[:, None] - times
    np.testing.assert_array_equal(weights, (lag > -1e-6) & (lag < 2 - 1e-6))
    step = (times > 21.0).astype(float)[:, None]
    at_trs = timing.downsample(step, times, tr_times, kernel="past")[:, 0]
    assert np.abs(at_trs[tr_times <= 21.0]).max() == 0 and (at_trs[tr_times > 22.0] == 20).all()
    assert np.abs(timing.downsample(step, times, tr_times)[tr_times <= 21.0]).max() > 0.1


def test_the_past_kernel_leaves_a_constant_constant_and_counts_words_once():
    times, tr_times = np.arange(0, 60, 0.02), timing.tr_centres(15, tr=1.5)
    y = timing.downsample(np.ones((len(times), 1)), times, tr_times, kernel="past")
    np.testing.assert_array_equal(y, 75)  # samples per TR, as the Lanczos kernel has it
    words = np.sort(np.random.default_rng(0).uniform(9.6, 31.9, 80))
    y = timing.downsample(np.ones((80, 1)), words, tr_times, kernel="past")
    assert y.sum() == 80


def test_gradients_flow_through_the_past_kernel():
    rng = np.random.default_rng(1)
    x, times, tr_times = rng.standard_normal((500, 3)), np.arange(500) / 10, timing.tr_centres(12)
    tensor = torch.tensor(x, requires_grad=True)
    y = timing.downsample(tensor, times, tr_times, kernel="past")
    np.testing.assert_allclose(
        y.detach().numpy(), timing.downsample(x, times, tr_times, kernel="past"), atol=1e-12
    )
    y.sum().backward()
    used = (times > 9) & (times <= 33)  # 24 s of past for TRs centred at 11 to 33 s
    np.testing.assert_array_equal(tensor.grad[:, 0].numpy(), used.astype(float))
    with pytest.raises(ValueError, match="kernel 'causal'; expected one of .'lanczos', 'past'"):
        timing.downsample(x, times, tr_times, kernel="causal")


def test_rows_without_times_are_refused():
    with pytest.raises(ValueError, match="5 feature rows but 4 times"):
        timing.downsample(np.zeros((5, 2)), np.arange(4), timing.tr_centres(5))


def test_first_rows_are_centred_11_13_15_seconds_after_onset():
    np.testing.assert_array_equal(timing.tr_centres(3), [11, 13, 15])
    n = timing.scan_trs(730.0)  # the story `souls` of ds003020: 375 volumes, kept centres 11 to 719
    assert (n, timing.tr_centres(n - 20)[-1]) == (375, 719)


def test_a_scan_plays_ten_seconds_before_and_at_least_eight_after_the_sound():
    assert [timing.scan_trs(seconds) for seconds in (40.0, 41.9, 42.0)] == [30, 30, 31]


def test_two_trs_are_enough_to_know_the_spacing():
    words = np.array([11.0, 13.0])
    np.testing.assert_allclose(timing.lanczos_matrix(words, words).toarray(), np.eye(2), atol=1e-12)


def test_delays_shift_down_and_fill_with_zeros():
    y = timing.fir(np.array([[1.0], [2], [3]]), (0, 1, 2, 5, -1))
    np.testing.assert_array_equal(y, [[1, 0, 0, 0, 2], [2, 1, 0, 0, 3], [3, 2, 1, 0, 0]])


def test_delays_of_tensors_pass_gradients():
    x = torch.ones(4, 2, requires_grad=True)
    timing.fir(x, (1, 2)).sum().backward()
    np.testing.assert_array_equal(x.grad[:, 0], [2, 2, 1, 0])


def test_the_clock_of_ds003020_is_that_of_its_scans_and_stays():
    clock = timing.DS003020
    assert (clock.tr, clock.first, clock.trimmed) == (2.0, 11.0, (10, 10))
    onset_of_first_row = clock.tr * clock.trimmed[0] - timing.LEAD_IN_S
    assert clock.first == onset_of_first_row + clock.tr / 2
    with pytest.raises(AttributeError):
        clock.tr = 1.5


def test_delays_are_one_to_four_trs_unless_asked_for_otherwise_in_numpy_and_torch():
    x = np.arange(21.0, dtype=np.float32).reshape(7, 3)
    wanted = np.hstack([np.vstack([np.zeros((d, 3)), x[:-d]]) for d in (1, 2, 3, 4)])
    np.testing.assert_array_equal(timing.fir(x), wanted)
    np.testing.assert_array_equal(timing.fir(torch.from_numpy(x)).numpy(), wanted)


def test_rows_without_a_time_and_a_single_tr_are_refused():
    x, times = np.ones((3, 2)), np.arange(4.0)
    with pytest.raises(ValueError, match="3 feature rows but 4 times"):
        timing.downsample(x, times, np.array([1.0, 3.0]))
    with pytest.raises(ValueError, match="at least two TRs"):
        timing.lanczos_matrix(times, np.array([1.0]))
