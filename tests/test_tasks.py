"""Downstream tasks: metrics against values worked by hand, and heads on states whose answer is known."""

import numpy as np
import pandas as pd
import pytest
import torch

from brainlib import tasks
from brainlib.lowlevel import PHONES

PART = np.repeat(["train", "val", "test"], [120, 40, 80])
STORY = np.where(PART == "test", np.tile(["a", "b"], 120), PART)


def table(target, part=PART, story=STORY):
    return pd.DataFrame({"part": part, "story": story, "target": list(target)})


def classes(n=4):
    return np.random.default_rng(0).permutation(np.arange(len(PART)) % n)


def states_of(target, n_layers=3, informative=1, width=8, noise=0.5, seed=0):
    """Noise in all layers but one, in which each class has a column of its own."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((len(target), n_layers, width)).astype(np.float32)
    x[:, informative] *= noise
    x[np.arange(len(target)), informative, target] += 3
    return x


# ------------------------------------------------------------------ metrics
@pytest.mark.parametrize(
    "frames, decoded",
    [
        ([0, 0, 0], []),
        ([1, 1, 0, 1, 2, 2], [1, 1, 2]),  # a blank parts two of a kind
        ([0, 3, 3, 3, 0, 0, 2], [3, 2]),
        ([], []),
    ],
)
def test_ctc_decoding_joins_neighbours_and_then_drops_blanks(frames, decoded):
    assert tasks.greedy_decode(frames) == decoded


def test_ctc_decoding_agrees_with_transformers():
    from transformers import Wav2Vec2CTCTokenizer

    rng = np.random.default_rng(0)
    vocabulary = {"<pad>": 0, **{x: i for i, x in enumerate("abcdefgh", 1)}, "<unk>": 9, "|": 10}
    import json
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps(vocabulary))
        tokenizer = Wav2Vec2CTCTokenizer(str(path), bos_token=None, eos_token=None)
    for _ in range(10):
        best = rng.integers(0, 4, 30).tolist()
        ours = "".join("-abcdefgh"[i] for i in tasks.greedy_decode(best))
        assert ours == tokenizer.decode(best)


def test_the_error_rate_counts_substitutions_deletions_and_insertions_over_all_items():
    truth = [["HH", "AH", "L", "OW"], ["B", "AY"]]
    guesses = [["HH", "AH", "OW"], ["P", "AY", "AY"]]
    assert tasks.error_rate(truth, guesses) == pytest.approx(3 / 6)
    assert tasks.error_rate(truth, truth) == 0
    assert tasks.error_rate(truth, [[], []]) == 1


def test_words_are_counted_in_the_word_error_rate_and_not_letters():
    kind = tasks._Symbols(tasks.TASKS["word recognition"], [])
    truth, guess = [list("the old man")], [list("the od man")]
    assert kind.score(truth, guess) == pytest.approx(1 / 3)


def test_the_equal_error_rate_of_a_case_worked_by_hand():
    same = [1, 1, 1, 1, 0, 0, 0, 0]
    scores = [0.9, 0.8, 0.7, 0.3, 0.6, 0.4, 0.2, 0.1]
    # accepted above 0.5: of the true pairs 1 of 4 is rejected, of the others 1 of 4 accepted
    assert tasks.equal_error_rate(same, scores) == pytest.approx(0.25)
    assert tasks.equal_error_rate(same, same) == 0
    assert tasks.equal_error_rate(same, np.negative(same)) == 1
    assert tasks.equal_error_rate([1, 0], [0.5, 0.5]) == pytest.approx(0.5)


def test_the_equal_error_rate_of_two_gaussians_is_that_of_the_normal_distribution():
    from scipy.stats import norm

    rng, n, distance = np.random.default_rng(0), 20_000, 1.5
    scores = np.r_[rng.normal(distance, 1, n), rng.normal(0, 1, n)]
    rate = tasks.equal_error_rate(np.repeat([1, 0], n), scores)
    assert rate == pytest.approx(norm.cdf(-distance / 2), abs=0.01)


def test_f1_is_the_mean_over_classes():
    kind = tasks._Classes(tasks.TASKS["sentence type"], list("ab"))
    # a: 2 right of 3 guessed, 2 of 2 found, F1 4/5; b: 1 of 1 guessed, 1 of 2 found, F1 2/3
    assert kind.score(list("aabb"), list("aaab")) == pytest.approx((4 / 5 + 2 / 3) / 2)
    presence = tasks._Presence(tasks.TASKS["phoneme presence"], [[1, 0], [0, 0]])
    truth, guess = [[1, 0], [1, 0], [0, 0]], [[1, 1], [0, 0], [0, 0]]
    assert presence.score(truth, guess) == pytest.approx(2 / 3)  # the second is never there


# ------------------------------------------------------------------ the head
def test_the_mix_is_a_softmax_as_in_transformers():
    head = tasks.MixedHead(3, 4, n_out=2)
    np.testing.assert_allclose(head.mix().detach(), 1 / 3)
    with torch.no_grad():
        head.layer_weights[:] = torch.tensor([0.0, 1.0, 2.0])
    states = torch.randn(3, 5, 4)
    weights = torch.softmax(head.layer_weights, -1)
    expected = (states * weights.view(-1, 1, 1)).sum(0)
    np.testing.assert_allclose(head.mixed(states).detach(), expected.detach(), atol=1e-6)
    assert head(states).shape == (5, 2)


# ------------------------------------------------------------------ end to end
def test_states_that_are_the_targets_reach_the_top_by_the_right_layer():
    target = classes()
    found = tasks.evaluate_task(
        "word identification", states_of(target), table(target), learning_rates=[0.03]
    )
    assert np.mean(found["scores"]) > 0.97 and len(found["scores"]) == 3
    assert np.argmax(found["mix"], 1).tolist() == [1, 1, 1]
    assert set(found["stories"]) == {"a", "b"} and found["n"] == dict(train=120, val=40, test=80)


def test_states_that_hold_nothing_reach_the_chance_level():
    target = classes()
    level = tasks.chance_level("speaker identification", table(target))
    assert level == pytest.approx(1 / 4, abs=0.1)
    noise = np.random.default_rng(9).standard_normal((len(target), 3, 8)).astype(np.float32)
    found = tasks.evaluate_task("speaker identification", noise, table(target))
    assert np.mean(found["scores"]) == pytest.approx(1 / 4, abs=0.12)


def test_presence_of_phonemes_is_found_where_states_hold_it_and_not_by_noise():
    rng = np.random.default_rng(0)
    present = (rng.random((len(PART), 39)) < 0.3).astype(int)
    x = present[:, None, :] + 0.1 * rng.standard_normal((len(PART), 2, 39))
    found = tasks.evaluate_task("phoneme presence", x.astype(np.float32), table(present), seeds=[0])
    level = tasks.chance_level("phoneme presence", table(present), seeds=[0])
    assert np.mean(found["scores"]) > 0.9
    assert 0.3 < level < 0.5  # guessing "present" half of the time: 2 * .3 * .5 / .8


def sequences(n, seed=0):
    rng = np.random.default_rng(seed)
    return [[PHONES[i] for i in rng.integers(0, 5, rng.integers(3, 7))] for _ in range(n)]


def frames_of(sequence, n_layers=2, noise=0.1, seed=0):
    """Three frames a phoneme and one of silence after it; one column per phoneme."""
    rng = np.random.default_rng(seed)
    x = noise * rng.standard_normal((4 * len(sequence), n_layers, 6))
    for i, phoneme in enumerate(sequence):
        x[4 * i : 4 * i + 3, :, PHONES.index(phoneme)] += 1
        x[4 * i + 3, :, 5] += 1
    return x.astype(np.float16)


def test_phonemes_are_recognised_where_each_frame_tells_them_and_not_in_noise():
    truth = sequences(len(PART))
    x = [frames_of(s, seed=i) for i, s in enumerate(truth)]
    task = tasks.TASKS["phoneme recognition"]
    found = tasks.evaluate_task(task, x, table(truth), seeds=[0], learning_rates=[0.1])
    assert found["metric"] == "PER" and found["scores"][0] < 0.02
    rng = np.random.default_rng(1)
    noise = [rng.standard_normal(one.shape).astype(np.float32) for one in x]
    found = tasks.evaluate_task(task, noise, table(truth), seeds=[0], learning_rates=[0.1])
    assert 0.7 < found["scores"][0] <= 1.05 and tasks.chance_level(task, table(truth)) == 1


def test_verification_asks_of_voices_that_training_has_not_met():
    target = classes()
    voices = np.array(["w", "x", "y", "z"])[target]
    x = states_of(target, n_layers=1, informative=0, width=4, noise=0.2)
    found = tasks.evaluate_task(
        "speaker verification", x, table(voices), seeds=[0], learning_rates=[0.03]
    )
    assert np.mean(found["scores"]) < 0.02 and set(found["stories"]) == set(voices)
    noise = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    found = tasks.evaluate_task(
        "speaker verification", noise, table(voices), seeds=[0], learning_rates=[0.03]
    )
    assert found["scores"][0] == pytest.approx(0.5, abs=0.06)


def test_test_items_are_no_part_of_any_choice():
    target, x = classes(), states_of(classes(), noise=3.0)
    other, spoilt = target.copy(), x.copy()
    test = PART == "test"
    other[test], spoilt[test] = (target[test] + 1) % 4, 100.0
    one = tasks.evaluate_task("word identification", x, table(target), seeds=[0])
    two = tasks.evaluate_task("word identification", spoilt, table(other), seeds=[0])
    for key in ("mix", "epochs", "learning_rate"):
        assert one[key] == two[key]
    assert one["scores"] != two["scores"]


def test_two_runs_are_the_same_and_another_seed_is_another_run():
    target, x = classes(), states_of(classes(), noise=3.0)
    runs = [
        tasks.evaluate_task(
            "word identification", x, table(target), seeds=[seed], learning_rates=[0.03]
        )
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] and runs[0]["mix"] != runs[2]["mix"]


def test_what_cannot_be_evaluated_is_refused():
    target, x = classes(), states_of(classes())
    with pytest.raises(ValueError, match="'val': 0, 'test': 120}, other parts"):
        tasks.evaluate_task(
            "sentence type", x, table(target, part=np.where(PART == "val", "test", PART))
        )
    unknown = np.where(PART == "test", 7, target)
    with pytest.raises(ValueError, match=r"\[7\] not among the training items' classes"):
        tasks.evaluate_task("sentence type", x, table(unknown))
    with pytest.raises(ValueError, match="symbols.*'QQ'"):
        tasks.evaluate_task(
            "phoneme recognition", [one[:, None] for one in x], table([["QQ"]] * len(x))
        )
    with pytest.raises(ValueError, match="3 states, 240 items"):
        tasks.evaluate_task("sentence type", x[:3], table(target))
    with pytest.raises(ValueError, match="one class"):
        tasks.evaluate_task("sentence type", x, table(0 * target))
    with pytest.raises(ValueError, match=r"other parts \['Train'\]"):
        tasks.evaluate_task(
            "sentence type", x, table(target, part=np.where(STORY == "b", "Train", PART))
        )
    with pytest.raises(ValueError, match="targets other than 0 and 1"):
        tasks.evaluate_task("phoneme presence", x, table(np.eye(4, dtype=int)[target] * 2))
    broken = x.copy()
    broken[5, 0, 0] = np.nan
    with pytest.raises(ValueError, match="states of 1 items hold NaN or infinity"):
        tasks.evaluate_task("sentence type", broken, table(target))


def test_phones_of_a_corpus_are_an_alphabet_of_their_own():
    task = tasks.Task("phones", "phonetic", "symbols", "PER", "frames", alphabet=("ih", "sil"))
    kind = tasks.KINDS["symbols"](task, [])
    assert kind.n_out == 3 and kind.encode([["sil", "ih"]])[0].tolist() == [2, 1]


def test_phrases_end_at_pauses_and_when_they_get_long():
    words = pd.DataFrame(
        [(0.0, 0.4, "a"), (0.5, 0.9, "b"), (1.5, 2.0, "c"), (2.0, 4.0, "d"), (4.1, 6.0, "e")],
        columns=["start", "end", "text"],
    )
    found = tasks.phrases(words, pause=0.3, longest=3.0)
    assert found.text.tolist() == ["a b", "c d", "e"] and found.n_words.tolist() == [2, 2, 1]
    assert found.start.tolist() == [0.0, 1.5, 4.1] and found.end.tolist() == [0.9, 4.0, 6.0]


def test_the_precomputed_tables_hold_scores_stories_and_a_mix_for_each_seed():
    from conftest import ROOT

    from brainlib.results import load_results

    paths = [p for p in (ROOT / "results/tasks").glob("*.json") if p.stem != "chance"]
    assert "pretrained-whisper-tiny.en" in {p.stem for p in paths}
    for path in paths:
        row = load_results(path).iloc[0]
        seeds = row["about.seeds"]
        for name in row["about.asked"]:
            scores, mix = (row[f"numbers.{k}"] for k in (f"tasks.{name}.scores", f"mix.{name}"))
            assert len(scores) == len(mix) == len(seeds), (path, name)
            np.testing.assert_allclose(np.sum(mix, 1), 1, atol=1e-3)
            stories = [k for k in row.index if k.startswith(f"numbers.tasks.{name}.stories.")]
            assert len(stories) == 4 and all(len(row[k]) == len(seeds) for k in stories)
