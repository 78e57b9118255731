import zlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from brainlib import lowlevel, timing


def story(phones=("HH", "AY1"), words=("hi",), audio=None):
    def table(names):
        return pd.DataFrame(
            {
                "start": np.arange(len(names), dtype=float),
                "end": np.arange(1.0, len(names) + 1),
                "text": list(names),
            }
        )

    audio = np.zeros(40 * 16_000, np.float32) if audio is None else audio
    return SimpleNamespace(
        phonemes=table(phones),
        words=table(words),
        audio=audio,
        rate=16_000,
        tr_times=timing.tr_centres(10),
    )


def test_articulation_of_known_phones():
    values, times = lowlevel.articulation(story(("B", "IY1", "NG")))
    names = list(lowlevel.ARTICULATION)
    found = [{names[i] for i in np.flatnonzero(row)} for row in values]
    assert found == [
        {"bilabial", "stop", "voiced"},
        {"high", "front"},
        {"velar", "nasal", "voiced"},
    ]
    np.testing.assert_array_equal(times, [0.5, 1.5, 2.5])


def test_every_phone_has_an_articulation_and_every_feature_a_phone():
    listed = {p for phones in lowlevel.ARTICULATION.values() for p in phones.split()}
    assert (
        listed == set(lowlevel.PHONES)
        and sorted(listed) == lowlevel.PHONES
        and len(lowlevel.PHONES) == 39
        and len(lowlevel.ARTICULATION) == 22
    )


def test_phonemes_are_one_hot_and_unknown_ones_are_zero():
    values, _ = lowlevel.phonemes(story(("AA0", "XX")))
    assert (
        values[0].sum() == 1
        and values[0][lowlevel.PHONES.index("AA")] == 1
        and values[1].sum() == 0
    )


def test_a_tone_falls_into_its_band():
    t = np.arange(32_000) / 16_000
    quiet = story(audio=(0.5 * np.sin(2 * np.pi * 1062.5 * t)).astype(np.float32))
    power, _ = lowlevel.powspec(quiet)
    assert power[100].argmax() == 1062 // 125
    mel, times = lowlevel.mel(quiet)
    centre = 2595 * np.log10(1 + 1062.5 / 700)
    edges = np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + 8000 / 700), 42)[1:-1]
    assert mel[100].argmax() == np.abs(edges - centre).argmin()
    assert (len(times), times[100]) == (200, 1.0)


@pytest.mark.parametrize("loudness", [1.0, 1e-5])  # the quieter one reaches the smallest power
def test_spectra_are_those_of_windows_of_25_ms_one_window_at_a_time(loudness):
    audio = loudness * np.random.default_rng(0).standard_normal(3_200).astype(np.float32)
    audio[1_600:] *= 1e-6  # below the floor
    padded = np.concatenate([np.zeros(200), audio, np.zeros(400)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)  # Hann's
    spectra = [np.fft.rfft(padded[i : i + 400] * window, 512) for i in range(0, 3_200, 160)]
    power = np.abs(spectra) ** 2
    mel, times = lowlevel.mel(story(audio=audio))
    np.testing.assert_allclose(times, np.arange(20) / 100)
    filters = lowlevel.mel_filters(40, 512, rate=16_000)
    bands = {"mel": power @ filters.T, "powspec": power[:, 1:].reshape(20, 64, 4).mean(2)}
    for name, found in (("mel", mel), ("powspec", lowlevel.powspec(story(audio=audio))[0])):
        of_bands = np.maximum(bands[name], 1e-12)
        wanted = np.maximum(10 * np.log10(of_bands / of_bands.max()), -80)
        np.testing.assert_allclose(found, wanted, atol=0.05)
        assert found.max() == 0 and (found[-2:] == found.min()).all()


def test_word_rate_counts_words():
    many = story(words=["a"] * 30)
    rate = lowlevel.feature_space(many, "wordrate")
    np.testing.assert_allclose(rate[2:7], 2, atol=0.06)  # one word a second, two a TR


def test_words_have_letters_and_seconds():
    three = story(words=("I", "don't", "know"))
    three.words["end"] = [0.25, 1.5, 3.0]
    letters, times = lowlevel.wordlength(three)
    seconds, _ = lowlevel.wordduration(three)
    assert letters[:, 0].tolist() == [1, 4, 4] and seconds[:, 0].tolist() == [0.25, 0.5, 1.0]
    np.testing.assert_array_equal(times, [0.125, 1.25, 2.5])


def test_low_level_features_lie_side_by_side():
    noise = np.random.default_rng(0).standard_normal(640_000).astype(np.float32)
    one = story(phones=("HH", "AY") * 15, words=["hi"] * 30, audio=noise)
    x = lowlevel.low_level(one)
    assert x.shape == (10, 40 + 22 + 1 + 1 + 1 + 1)
    np.testing.assert_array_equal(x[:, -2:-1], lowlevel.feature_space(one, "wordlength"))
    np.testing.assert_array_equal(lowlevel.low_level(one, ["mel"]), x[:, :40])


@pytest.mark.parametrize("name", lowlevel.FEATURES)
def test_every_feature_comes_at_trs_even_without_words(name):
    empty = story(
        phones=[],
        words=[],
        audio=np.random.default_rng(0).standard_normal(640_000).astype(np.float32),
    )
    for s in (empty, story(("HH", "AY", "B", "IY"))):
        x = lowlevel.feature_space(s, name)
        assert x.shape[0] == 10 and x.dtype == np.float32 and np.isfinite(x).all()


def test_ngrams_count_each_window_once():
    values, times = lowlevel.diphones(story(("HH", "AY", "HH", "AY")))
    assert (
        values.sum() == 3 and (values[0] == values[2]).all() and times.tolist() == [1.0, 2.0, 3.0]
    )


def test_a_pair_and_a_triple_have_a_column_each_by_the_hash_of_their_names():
    four = story(("HH", "AY1", "B", "IY0"))
    for function, n, n_columns in ((lowlevel.diphones, 2, 256), (lowlevel.triphones, 3, 512)):
        values, times = function(four)
        names = [" ".join(("HH", "AY", "B", "IY")[i : i + n]) for i in range(5 - n)]
        columns = [zlib.crc32(name.encode()) % n_columns for name in names]
        np.testing.assert_array_equal(values, np.eye(n_columns)[columns])
        np.testing.assert_allclose(times, np.arange(5 - n) + n / 2)
        assert function(story(("HH",)))[0].shape == (0, n_columns)


def test_an_unknown_feature_is_refused():
    with pytest.raises(KeyError, match="no feature 'mell'"):
        lowlevel.feature_space(story(), "mell")


def test_mel_filters_are_triangles_evenly_spaced_in_mels():
    edges = np.linspace(*(2595 * np.log10(1 + np.array([50.0, 8000.0]) / 700)), 42)
    hertz = 700 * (10 ** (edges / 2595) - 1)
    bins = np.fft.rfftfreq(512, 1 / 16_000)
    rise = (bins - hertz[:-2, None]) / np.diff(hertz)[:-1, None]
    fall = (hertz[2:, None] - bins) / np.diff(hertz)[1:, None]
    expected = np.maximum(np.minimum(rise, fall), 0)
    np.testing.assert_allclose(lowlevel.mel_filters(40, 512, rate=16_000), expected, atol=1e-6)


def test_a_feature_is_registered_by_its_decorator_alone(monkeypatch):
    monkeypatch.setattr(lowlevel, "FEATURES", dict(lowlevel.FEATURES))

    @lowlevel.feature
    def longwords(story):
        return (story.words.text.str.len() > 6).to_numpy(float)[:, None], lowlevel.middles(
            story.words
        )

    x = lowlevel.feature_space(story(words=["a", "lighthouse"] * 10), "longwords")
    assert x.shape == (10, 1) and x.max() > 0.5


# ------------------------------------------------------------------ signals whose answer is known
def sound(seconds=40.0, rate=16_000):
    return np.arange(int(seconds * rate)) / rate


@pytest.mark.parametrize("name, n", [("mel20", 20), ("mel80", 80)])
def test_a_tone_falls_into_its_band_at_any_number_of_bands(name, n):
    tone = story(audio=np.sin(2 * np.pi * 1000 * sound(2)).astype(np.float32))
    values, times = lowlevel.FEATURES[name](tone)
    edges = np.linspace(*(2595 * np.log10(1 + np.array([50.0, 8000.0]) / 700)), n + 2)[1:-1]
    centre = 2595 * np.log10(1 + 1000 / 700)
    assert values.shape == (200, n) and values[100].argmax() == np.abs(edges - centre).argmin()


def test_no_mel_band_is_empty():
    noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    for name in ("mel", "mel20", "mel80"):
        values, _ = lowlevel.FEATURES[name](story(audio=noise))
        assert values.mean(0).min() > -60, name  # dB; nothing at the floor of -80


def test_mfcc_are_the_cosines_of_the_log_mel_spectrum():
    noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    values, times = lowlevel.mfcc(story(audio=noise))
    bands, _ = lowlevel.mel(story(audio=noise))
    k, i = np.arange(13)[:, None], np.arange(40)
    cosines = np.sqrt(2 / 40) * np.cos(np.pi * k * (2 * i + 1) / 80)
    cosines[0] /= np.sqrt(2)
    np.testing.assert_allclose(values, bands @ cosines.T, rtol=1e-3, atol=1e-2)
    assert values.shape == (200, 13) and len(times) == 200


def test_the_envelope_is_the_loudness_and_its_derivative_the_rises():
    t = sound(4)
    steps = story(
        audio=(np.where(t < 2, 0.1, 0.5) * np.sin(2 * np.pi * 400 * t)).astype(np.float32)
    )
    level, times = lowlevel.envelope(steps)
    np.testing.assert_allclose(level[[100, 300], 0], [0.2, 1.0], atol=0.02)
    rises, _ = lowlevel.envelope_derivative(steps)
    inside = slice(5, 395)  # without the ends of the sound
    assert times[inside][rises[inside, 0].argmax()] == pytest.approx(2.0, abs=0.02)
    np.testing.assert_allclose(rises[inside].sum() / lowlevel.RATE_HZ, 0.8, atol=0.02)


def test_a_click_train_has_one_rise_per_click():
    clicks = np.zeros(40 * 16_000, np.float32)
    clicks[4_000::8_000] = 1  # two a second, four a TR
    train = story(audio=clicks)
    rises, _ = lowlevel.envelope_derivative(train)
    assert (rises > 0).sum() == 80
    at_trs = lowlevel.feature_space(train, "envelope_derivative")
    np.testing.assert_allclose(at_trs[2:8], 4 * lowlevel.RATE_HZ, rtol=0.03)


def test_a_glide_of_an_octave_has_its_pitch():
    t = sound()
    phase = 2 * np.pi * 100 * 40 / np.log(2) * (2 ** (t / 40) - 1)  # 100 to 200 Hz in 40 s
    glide = story(audio=sum(np.sin(k * phase) / k for k in range(1, 8)).astype(np.float32))
    values, times = lowlevel.pitch(glide)
    assert (values[:, 0] == 1).mean() > 0.99
    voiced = values[:, 0] == 1
    np.testing.assert_allclose(values[voiced, 1], times[voiced] / 40, atol=0.02)
    at_trs = lowlevel.feature_space(glide, "pitch")  # 200 frames a TR
    np.testing.assert_allclose(at_trs[3:7, 1] / at_trs[3:7, 0], glide.tr_times[3:7] / 40, atol=0.02)


def test_silence_has_no_pitch():
    values, _ = lowlevel.pitch(story())
    assert not values.any()


def test_a_word_of_known_phonemes_counts_them():
    word = story(phones=("B", "AH0", "N", "AE1", "N", "AH0"), words=("banana",))
    counts = lowlevel.phonemes(word)[0].sum(0)
    named = {p: int(n) for p, n in zip(lowlevel.PHONES, counts) if n}
    assert named == {"B": 1, "AH": 2, "N": 2, "AE": 1}
    assert lowlevel.phonemerate(word)[0].sum() == 6
    spelt = lowlevel.letters(word)[0][0]
    assert {k: int(n) for k, n in zip(lowlevel.LETTERS, spelt) if n} == {"a": 3, "b": 1, "n": 2}
    assert lowlevel.diphones(word)[0].sum() == 5 and lowlevel.triphones(word)[0].sum() == 4


def test_letters_are_those_of_the_alphabet_in_either_case():
    spelt, times = lowlevel.letters(story(words=("Don't", "a-B")))
    assert spelt.sum(1).tolist() == [4, 2] and times.tolist() == [0.5, 1.5]


def test_word_frequency_is_on_the_zipf_scale():
    zipf, _ = lowlevel.wordfrequency(story(words=("the", "The", "lighthouse", "xqzzkv")))
    assert zipf[0, 0] == zipf[1, 0] > 7 and 2.5 < zipf[2, 0] < 4.5 and zipf[3, 0] == 0


def test_no_articulation_is_dead_in_fireside():
    from fireside import embedded_story

    values, _ = lowlevel.articulation(embedded_story("beeswarm"))
    assert values.shape[1] == 22 and (values.sum(0) > 0).all()
