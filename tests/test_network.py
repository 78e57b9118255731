"""One training step: features with gradients, read-outs, loss."""

import numpy as np
import pytest
import torch
from tiny import TINY, changed, encoder

from brainlib import timing
from brainlib.encoding import RidgeEncoder
from brainlib.network import ReadOut, Step, StoryFeatures, TuningNetwork
from brainlib.recipes import mse_loss
from brainlib.speech import ConvolutionalCache
from brainlib.tuning import BrainTuner


def test_frames_at_trs_are_the_features_of_the_encoder(model_folder, data):
    """The same numbers as `SpeechEncoder.features` and `timing.downsample`, whole or in blocks."""
    enc, story = encoder(model_folder), data.story("a")
    states, times = enc.features(story.audio, [2], window=6, hop=4, pool=0.1)
    wanted = timing.downsample(states[2], times, story.tr_times)
    features = StoryFeatures(enc, TINY.with_(layer=2), story, ConvolutionalCache(enc))
    with torch.no_grad():
        np.testing.assert_allclose(features(0, 10).numpy(), wanted, atol=2e-4)
        np.testing.assert_allclose(features(4, 7).numpy(), wanted[4:7], atol=2e-4)


def test_a_clip_a_tr_is_the_mean_of_the_ten_seconds_before_its_end(model_folder, data):
    enc, story = encoder(model_folder), data.story("b")
    features = StoryFeatures(
        enc,
        TINY.with_(window=10.0, hop=2.0, pooling="mean", resampling="clip", layer=-1),
        story,
        ConvolutionalCache(enc),
    )
    with torch.no_grad():
        found = features(0, 10).numpy()
        for row in (0, 4, 9):
            end = int((story.tr_times[row] + 1) * 16_000)
            clip = torch.from_numpy(story.audio[end - 160_000 : end])[None]
            np.testing.assert_allclose(
                found[row], enc.hidden_states(clip)[-1][0].mean(0).numpy(), atol=1e-4
            )


def test_gradients_reach_the_model_through_lanczos_and_delays(model_folder, data):
    enc = encoder(model_folder)
    x = StoryFeatures(enc, TINY, data.story("a"), ConvolutionalCache(enc))(0, 10)
    ReadOut(24, 3, TINY)(x).sum().backward()
    assert float(enc.model.encoder.layers[0].attention.q_proj.weight.grad.abs().max()) > 0
    assert all(p.grad is None for p in enc.model.feature_extractor.parameters())


@pytest.mark.parametrize("kind", ["linear", "lowrank"])
def test_a_warm_read_out_predicts_as_the_ridge_does(kind):
    rng = np.random.default_rng(0)
    X = [rng.standard_normal((40, 5)).astype(np.float32) for _ in range(3)]
    Y = [x @ rng.standard_normal((5, 4)).astype(np.float32) + 1 for x in X]
    ridge, readout = (
        RidgeEncoder(delays=(1, 2)).fit(X, Y),
        ReadOut(5, 4, TINY.with_(readout=kind, delays=(1, 2))),
    )
    readout.load_ridge(ridge)
    np.testing.assert_allclose(
        readout(torch.from_numpy(X[0])).detach().numpy(), ridge.predict(X[0]), atol=1e-4
    )
    np.testing.assert_allclose(
        readout(torch.from_numpy(X[0]), skip=7).detach().numpy(), ridge.predict(X[0])[7:], atol=1e-4
    )


def one_story(path, data, recipe, name="a"):
    enc = encoder(path)
    features = {name: StoryFeatures(enc, recipe, data.story(name), ConvolutionalCache(enc))}
    responses = {("UTS01", name): torch.from_numpy(data.responses("UTS01", name))}
    return TuningNetwork(enc, recipe, features, responses, train=[name])


def test_the_loss_of_a_step_is_that_of_its_parts_put_together_by_hand(model_folder, data):
    network = one_story(model_folder, data, TINY).eval()
    x = network.features["a"](0, 10)  # (10, width)
    readout = network.readouts["UTS01"]
    delayed = timing.fir((x - readout.mean) / readout.scale, TINY.delays)
    prediction = delayed[5:10] @ readout.map.weight.T + readout.map.bias  # (5, n_voxels)
    expected = mse_loss(prediction, network.responses["UTS01", "a"][5:10])
    loss = network(Step("UTS01", "a", first_tr=5, end_tr=10))
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_only_the_tuned_layers_are_tuned(model_folder, data, adapter):
    recipe = TINY.with_(adapter=adapter, tuned_layers=(1,))
    tuner = BrainTuner(encoder(model_folder), recipe)
    before = {k: v.clone() for k, v in tuner.encoder.model.state_dict().items()}
    tuner.fit(data, "UTS01", quiet=True, keep="last")
    moved = changed(before, tuner.encoder.model.state_dict())
    assert moved and all(".layers.1." in name for name in moved)


def test_a_tuned_layer_above_the_one_that_is_read_is_refused(model_folder, data):
    with pytest.raises(ValueError, match="tunes blocks .1., which cannot change layer 1"):
        one_story(model_folder, data, TINY.with_(layer=1, tuned_layers=(0, 1)))
