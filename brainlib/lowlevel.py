"""Low-level features of a story: what a brain could follow without understanding a word.

Each feature is a function of a story that returns ``(values, times)``: values of shape (n, f) and n times in seconds;
`feature_space` brings them to TRs. Its docstring says what they are, in what units, and from which source.
"""

import zlib

import numpy as np
from scipy import fft

from .runtime import require
from .timing import downsample

FEATURES = {}  # name: function of a story
RATE_HZ = 100  # rate of the spectral features
N_MELS, N_POWER, N_MFCC = 40, 64, 13
PITCH_HZ = (60.0, 500.0)  # of human speech
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Articulatory features of the 39 ARPABET phones (International Phonetic Association 1999).
ARTICULATION = {
    "bilabial": "B M P",
    "labiodental": "F V",
    "dental": "DH TH",
    "alveolar": "D L N S T Z R",
    "postalveolar": "CH JH SH ZH",
    "velar": "G K NG W",
    "glottal": "HH",
    "palatal": "Y",
    "stop": "B D G K P T",
    "nasal": "M N NG",
    "fricative": "DH F HH S SH TH V Z ZH",
    "affricate": "CH JH",
    "approximant": "R W Y",
    "lateral": "L",
    "voiced": "B D DH G JH L M N NG R V W Y Z ZH",
    "high": "IH IY UH UW",
    "mid": "EH ER EY OW AH OY",
    "low": "AA AE AO AW AY",
    "front": "AE EH EY IH IY",
    "central": "AH ER",
    "back": "AA AO OW UH UW OY",
    "rounded": "AO OW OY UH UW W",
}
# What a joint model sets against the states of a speech model (`low_level`).
LOW_LEVEL = ("mel", "articulation", "phonemerate", "wordrate", "wordlength", "wordduration")
PHONES = sorted(set(" ".join(ARTICULATION.values()).split()))


def feature(function):
    """Register a low-level feature under its function's name; the function takes a story and returns (values, times)."""
    FEATURES[function.__name__] = function
    return function


@feature
def mel(story):
    """Log mel energies, 40 bands from 50 to 8,000 Hz, 25 ms windows, 100 a second (dB over the story's loudest band, floor -80)."""
    return _log_mel(story, N_MELS)


@feature
def mel20(story):
    """Log mel energies in 20 bands; otherwise as `mel`."""
    return _log_mel(story, 20)


@feature
def mel80(story):
    """Log mel energies in 80 bands, from spectra of 1,024 points so that the lowest bands hold any; otherwise as `mel`."""
    return _log_mel(story, 80, size=1024)


@feature
def mfcc(story):
    """Mel-frequency cepstral coefficients 0 to 12: orthonormal DCT-II of `mel`, 100 a second, dB (Davis & Mermelstein 1980)."""
    bands, times = mel(story)
    return fft.dct(bands, axis=1, norm="ortho")[:, :N_MFCC], times


@feature
def envelope(story):
    """Root mean square amplitude of 25 ms windows, 100 a second, relative to the story's loudest."""
    width = int(0.025 * story.rate)
    level = np.sqrt((_frames(story, width) ** 2).mean(1, keepdims=True))
    return level / max(level.max(), 1e-12), np.arange(len(level)) / RATE_HZ


@feature
def envelope_derivative(story):
    """Rises of `envelope`, its derivative where that is above zero, per second: acoustic edges (Oganian & Chang 2019).

    Falls are left out: at TRs rises and falls would cancel.
    """
    level, times = envelope(story)
    return np.maximum(np.diff(level, axis=0, prepend=level[:1]) * RATE_HZ, 0), times


@feature
def pitch(story):
    """Two columns, 100 a second: voiced or not, and where voiced the fundamental frequency in octaves above 100 Hz.

    By Praat's autocorrelation, 60 to 500 Hz (Boersma 1993; Jadoul et al. 2018).
    """
    from parselmouth import Sound

    sound = Sound(story.audio.astype(np.float64), story.rate)
    floor, ceiling = PITCH_HZ
    track = sound.to_pitch_ac(1 / RATE_HZ, pitch_floor=floor, pitch_ceiling=ceiling)
    hertz = track.selected_array["frequency"]
    voiced = hertz > 0
    octaves = np.log2(np.where(voiced, hertz, 100.0) / 100.0)
    return np.column_stack([voiced, octaves]).astype(np.float32), track.xs()


def _log_mel(story, n, size=512):
    power, times = _power(story, size)
    bands = power @ mel_filters(n, size, rate=story.rate).T
    return _decibels(np.maximum(bands, 1e-12)), times


@feature
def powspec(story):
    """Power spectrum: log power in 64 bands of equal width from 0 to 8,000 Hz, 100 a second (dB, floor -80)."""
    power, times = _power(story, 512)
    bands = power[:, 1:].reshape(len(power), N_POWER, -1).mean(2)
    return _decibels(np.maximum(bands, 1e-12)), times


def _frames(story, width):
    """Windows of `width` samples around each hundredth of a second: (n, width)."""
    padded = np.pad(story.audio, (width // 2, width))
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    return windows[: len(story.audio) : story.rate // RATE_HZ]


def _power(story, size):
    width = int(0.025 * story.rate)
    frames = _frames(story, width)
    spectrum = fft.rfft(frames * np.hanning(width).astype(np.float32), size)  # stays single
    power = spectrum.real**2 + spectrum.imag**2
    return power, np.arange(len(power)) / RATE_HZ


def _decibels(x):
    level = 10 * np.log10(x / x.max())
    return np.maximum(level, -80).astype(np.float32)


def mel_filters(n: int, size: int, *, rate: int, low: float = 50.0) -> np.ndarray:
    """Triangular filters of shape (n, size // 2 + 1), evenly spaced in mels, 2595 log10(1 + f / 700) (O'Shaughnessy 1987)."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(size // 2 + 1, n, low, rate / 2, rate, norm=None, mel_scale="htk")
    return filters.T.astype(np.float32)


def phoneme_names(story) -> list[str]:
    """ARPABET names of a story's phonemes, upper case, stress digits removed."""
    return [p.upper().rstrip("0123456789") for p in story.phonemes.text]


@feature
def phonemes(story):
    """One column for each of the 39 phones, a one at the middle of each phoneme; an unknown symbol is a row of zeros."""
    return np.array(
        [[float(p == q) for q in PHONES] for p in phoneme_names(story)], np.float32
    ).reshape(-1, len(PHONES)), middles(story.phonemes)


@feature
def articulation(story):
    """22 articulatory features at the middle of each phoneme (place, manner, voicing; height, backness, rounding)."""
    sets = [set(v.split()) for v in ARTICULATION.values()]
    rows = [[float(p in s) for s in sets] for p in phoneme_names(story)]
    return np.array(rows, np.float32).reshape(-1, len(sets)), middles(story.phonemes)


def _ngrams(story, n, n_columns):
    """Hashed n-grams of phonemes: the commonest n-grams of English are many, so each falls in one of `n_columns` bins."""
    names, times = phoneme_names(story), middles(story.phonemes)
    out = np.zeros((max(len(names) - n + 1, 0), n_columns), np.float32)
    for i in range(len(out)):
        out[i, zlib.crc32(" ".join(names[i : i + n]).encode()) % n_columns] = 1
    return out, np.array([times[i : i + n].mean() for i in range(len(out))])


@feature
def diphones(story):
    """Pairs of neighbouring phonemes, hashed to 256 columns, at the mean of their middles."""
    return _ngrams(story, 2, 256)


@feature
def triphones(story):
    """Triples of neighbouring phonemes, hashed to 512 columns, at the mean of their middles."""
    return _ngrams(story, 3, 512)


@feature
def wordrate(story):
    """A one at the middle of each word."""
    return np.ones((len(story.words), 1), np.float32), middles(story.words)


@feature
def phonemerate(story):
    """A one at the middle of each phoneme (silences and fillers are not phonemes)."""
    return np.ones((len(story.phonemes), 1), np.float32), middles(story.phonemes)


@feature
def letters(story):
    """How often each of the 26 letters is in each word, at its middle; a measure of spelling, for models of text."""
    counts = [[word.lower().count(letter) for letter in LETTERS] for word in story.words.text]
    return np.array(counts, np.float32).reshape(-1, len(LETTERS)), middles(story.words)


@feature
def wordlength(story):
    """The number of letters of each word, at its middle."""
    n_letters = [sum(map(str.isalpha, word)) for word in story.words.text]
    return np.array(n_letters, np.float32)[:, None], middles(story.words)


@feature
def wordfrequency(story):
    """The Zipf frequency of each English word, log10 per 1e9 words, 0 for unknown ones, at its middle (Speer 2022, wordfreq)."""
    from wordfreq import zipf_frequency

    zipf = [zipf_frequency(word, "en") for word in story.words.text]
    return np.array(zipf, np.float32)[:, None], middles(story.words)


@feature
def wordduration(story):
    """The duration of each word in seconds, at its middle."""
    seconds = (story.words.end - story.words.start).to_numpy(np.float32)
    return seconds[:, None], middles(story.words)


def middles(table) -> np.ndarray:
    """Middle of each word or phoneme of a table with `start` and `end`, seconds: (n,)."""
    return (table.start.to_numpy(float) + table.end.to_numpy(float)) / 2


def low_level(story, names=LOW_LEVEL, *, kernel: str = "lanczos") -> np.ndarray:
    """Low-level features of a story side by side, at its TRs: (n_trs, n_features), float32. See `feature_space`."""
    return np.hstack([feature_space(story, name, kernel=kernel) for name in names])


def feature_space(story, name: str, *, kernel: str = "lanczos") -> np.ndarray:
    """A low-level feature of one story, at its TRs.

    Parameters
    ----------
    story : Story
        Needs `tr_times`, and `audio` and `rate` or `words` or `phonemes`.
    name : str
        A key of `FEATURES`.
    kernel : {"lanczos", "past"}
        See `timing.downsample`.

    Returns
    -------
    x : array of shape (n_trs, n_features), float32
        Not scaled; z-score it before a regression.

    Raises
    ------
    KeyError
        If there is no such feature.
    """
    require(
        name in FEATURES, f"no feature {name!r}; expected one of {sorted(FEATURES)}", kind=KeyError
    )
    values, times = FEATURES[name](story)
    return downsample(values.astype(np.float64), times, story.tr_times, kernel=kernel).astype(
        np.float32
    )
