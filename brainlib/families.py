"""What differs between families of speech models: a small class each, or one for all that are built alike.

A class describes its model in the order in which sound flows through it: front end (convolutional features), embedding
(projection and positions), blocks, final norm. A new family is one class more, or none, and an entry in `FAMILIES`.
"""

import inspect
from functools import cached_property
from pathlib import Path

import torch

from .files import RATE
from .runtime import reading, require


class Family:
    """What every family has: the geometry of its frames, and how a checkpoint is read.

    Attributes
    ----------
    name : str
        transformers' `model_type`.
    extractor : transformers feature extractor
        Of the checkpoint.
    normalizes : bool
        Whether it brings each clip to the same loudness.
    padded : bool
        Whether each clip is padded with silence to `longest`.
    stride, field, overhang : int
        Samples: from frame to frame, seen by one frame, and needed by the last frame beyond its stride.
    first_centre : float
        Sample at the centre of what the first frame sees.
    longest : int or None
        Samples that the model has positions for; None: no limit.
    pre_norm : bool
        Whether a norm follows the last block.
    """

    frozen: tuple[str, ...] = ()  # how the names of parameters begin that no recipe tunes
    unused: tuple[str, ...] = ()  # ... and of weights that a checkpoint may lack
    longest = None
    padded = False

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return RATE / self.stride

    def n_frames(self, n_samples: int) -> int:
        """Frames that `n_samples` of sound give."""
        return (n_samples - self.overhang) // self.stride

    def n_samples(self, n_frames: int) -> int:
        """Samples that give exactly `n_frames`."""
        return n_frames * self.stride + self.overhang

    def exact_window(self, n_samples: int) -> tuple[int, int]:
        """The field's protocol for a window: samples of silence to append, and the number of the frame to keep."""
        return 0, self.n_frames(n_samples) - 1

    @staticmethod
    def model_class(config):
        """The class of transformers that reads a checkpoint."""
        from transformers import AutoModel

        return AutoModel

    @staticmethod
    def encoder(model):
        """The part of a checkpoint's model that is used here."""
        return model

    def transformer(self, model):
        """The module that holds the blocks (`layers`) and the norm (`layer_norm`)."""
        return model.encoder

    def run_block(self, block, x, carry):
        """One block on (n_clips, n_frames, width); `carry` is what the block before handed on, None at first."""
        return _first(block(x, attention_mask=None)), carry


class WaveformFamily(Family):
    """wav2vec 2.0 (Baevski et al. 2020), HuBERT (Hsu et al. 2021) and their like: convolutions over the waveform, and for positions."""

    frozen = ("feature_extractor.", "masked_spec_embed")
    unused = ("masked_spec_embed",)

    def __init__(self, config, extractor):
        self.name, self.extractor = config.model_type, extractor
        self.normalizes = bool(extractor.do_normalize)
        self.pre_norm = bool(getattr(config, "do_stable_layer_norm", False))
        self.field, self.stride = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride):
            self.field += (kernel - 1) * self.stride
            self.stride *= stride
        self.overhang = self.field - self.stride
        self.first_centre = self.field / 2

    def convolutional_features(self, model, clips):
        """(n_clips, n_samples) to (n_clips, n_frames, channels)."""
        clips = clips.to(model.device)
        if self.normalizes:  # zero mean, unit variance per clip, as Wav2Vec2FeatureExtractor has it
            variance = clips.var(1, unbiased=False, keepdim=True)  # (n_clips, 1)
            clips = (clips - clips.mean(1, keepdim=True)) / (variance + 1e-7).sqrt()
        return model.feature_extractor(clips).transpose(1, 2)  # was (n_clips, channels, n_frames)

    def embed(self, model, features):
        """(n_clips, n_frames, channels) to the transformer's input, (n_clips, n_frames, width)."""
        x = _first(model.feature_projection(features))
        x = x + model.encoder.pos_conv_embed(x)
        return model.encoder.dropout(x if self.pre_norm else model.encoder.layer_norm(x))


class WavLM(WaveformFamily):
    """WavLM (Chen et al. 2022): the first block makes a relative position bias, which the others get handed on."""

    def run_block(self, block, x, carry):
        x, position_bias = block(x, attention_mask=None, position_bias=carry)[:2]
        return x, position_bias


class Whisper(Family):
    """Whisper's encoder (Radford et al. 2023): log-mel spectra, two convolutions, a table of positions, pre-norm.

    Unlike stock Whisper it is not padded to 30 s, unless `padded` is set, as in Brain-tuning (Moussa et al. 2025). Then the
    frames of a clip's sound see those of the silence after it, and only the former are kept.
    """

    frozen = ("conv1.", "conv2.", "embed_positions.")
    unused = ("decoder.",)
    pre_norm = True
    normalizes = True  # the extractor scales each clip's spectra by their maximum
    mel_hop = 160  # samples; frames of 25 ms every 10 ms
    stride, field, overhang, first_centre = (
        320,
        1040,
        0,
        0,
    )  # convolutions of three frames, strides 1 and 2

    def __init__(self, config, extractor):
        self.name, self.extractor = config.model_type, extractor
        self.longest = self.stride * config.max_source_positions

    def exact_window(self, n_samples: int) -> tuple[int, int]:
        """Padded to 30 s; the last frame that the sound touches through both convolutions (Vaidya et al. 2022).

        With m mel frames, conv1 carries sound to its frame m, and conv2 (stride 2) to frame ``(m + 1) // 2``.
        """
        mel_frames = -(-n_samples // self.mel_hop)
        last = min((mel_frames + 1) // 2, self.longest // self.stride - 1)
        return self.longest - n_samples, last

    @staticmethod
    def model_class(config):
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return (
            WhisperEncoder
            if config.architectures == ["WhisperEncoder"]
            else Family.model_class(config)
        )

    @staticmethod
    def encoder(model):
        return getattr(model, "encoder", model)

    def convolutional_features(self, model, clips):
        if self.padded:
            clips = torch.nn.functional.pad(clips, (0, max(self.longest - clips.shape[1], 0)))
        spectra = self.extractor(
            list(clips.cpu().numpy()),
            sampling_rate=RATE,
            padding=False,
            truncation=False,
            return_tensors="pt",
        ).input_features  # (n_clips, n_mels, n_mel_frames)
        spectra = spectra[..., : self.n_frames(clips.shape[1]) * 2].to(model.device)
        x = torch.nn.functional.gelu(model.conv1(spectra))
        x = torch.nn.functional.gelu(model.conv2(x))  # (n_clips, width, n_frames)
        return x.transpose(1, 2)

    def embed(self, model, features):
        x = features + model.embed_positions.weight[: features.shape[1]]
        return torch.nn.functional.dropout(x, model.dropout, model.training)

    def transformer(self, model):
        return model

    def run_block(self, block, x, carry):
        return _first(block(x, attention_mask=None, **self._block_options)), carry

    @cached_property
    def _block_options(self) -> dict:
        """transformers before version 5 wants a head mask."""
        from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

        wanted = inspect.signature(WhisperEncoderLayer.forward).parameters
        return {"layer_head_mask": None} if "layer_head_mask" in wanted else {}


FAMILIES = {  # by transformers' model_type
    "wavlm": WavLM,
    "wav2vec2": WaveformFamily,
    "hubert": WaveformFamily,
    "whisper": Whisper,
}


def load_family(source, config):
    """The family of a checkpoint, with the checkpoint's own feature extractor.

    Parameters
    ----------
    source : Path or str
        A folder, which may lack a preprocessor, or a hub id.
    config : transformers configuration

    Raises
    ------
    ValueError
        If no family reads such a model.
    """
    from transformers import FEATURE_EXTRACTOR_MAPPING, AutoFeatureExtractor

    require(
        config.model_type in FAMILIES,
        f"{source}: a {config.model_type!r} model; expected one of {tuple(FAMILIES)}",
    )
    family = FAMILIES[config.model_type]
    preprocessors = ("preprocessor_config.json", "processor_config.json")
    if isinstance(source, Path) and not any((source / name).exists() for name in preprocessors):
        mels = getattr(config, "num_mel_bins", 1)
        return family(config, FEATURE_EXTRACTOR_MAPPING[type(config)](feature_size=mels))
    with reading(source, "a model whose preprocessor_config.json is whole"):
        extractor = AutoFeatureExtractor.from_pretrained(source, trust_remote_code=False)
    return family(config, extractor)


def _first(output):
    """The hidden states of a module's output; versions of transformers differ in whether they come alone."""
    return output[0] if isinstance(output, tuple) else output
