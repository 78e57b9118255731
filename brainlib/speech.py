"""Hidden states of a speech model over a whole story, and at the story's TRs.

What differs between models is in `families`, what a model hears of a story in `windows`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .adapters import fuse_attention
from .families import RATE, load_family
from .runtime import atomic, cache_dir, pick_device, read_arrays, require
from .timing import downsample
from .windows import (
    DEFAULT_HOP,
    DEFAULT_WINDOW,
    EXACT_HOP,
    EXACT_WINDOW,
    by_length,
    plan_windows,
)

CACHE_VERSION = 2  # of hidden states: raise it when the code computes or keeps others
ASSETS = Path(__file__).parent / "assets"
EMBEDDED = ("whisper-tiny.en", "wavlm-pico")
SHAPING = (  # what a configuration says beyond the weights' shapes; other keys vary with transformers' version
    "model_type",
    "num_attention_heads",
    "hidden_act",
    "activation_function",
    "layer_norm_eps",
    "feat_extract_norm",
    "feat_extract_activation",
    "conv_stride",
    "num_conv_pos_embedding_groups",
    "do_stable_layer_norm",
    "num_buckets",
    "max_bucket_distance",
    "scale_embedding",
)


class SpeechEncoder:
    """A speech model, and its hidden states over audio of any length.

    Use `from_pretrained`.

    Attributes
    ----------
    model : torch module
        transformers' model (of Whisper, the encoder); PEFT may put adapters into it.
    family : object
        What is particular to its family (see `families`).
    layers : int
        Number of hidden states: the input of the transformer and the output of each block.
    width : int
        Of a hidden state.
    frame_rate : float
        Hz.
    padded : bool
        Whether each clip is padded with silence (see `from_pretrained`).
    name, device : str
    as_named : bool
        Whether its weights are those that its name loads: not random, not tuned.
    """

    as_named = False

    def __init__(self, model, name: str, *, family, device: str):
        fuse_attention(model)
        self.model = model.to(device).eval()
        self.name, self.family, self.device = name, family, device
        self.layers = model.config.num_hidden_layers + 1
        self.width = model.config.hidden_size
        self.frame_rate, self.padded = family.frame_rate, family.padded

    @classmethod
    def from_pretrained(
        cls,
        name: str = "whisper-tiny.en",
        device: str | None = None,
        *,
        random_weights: bool = False,
        seed: int = 0,
        padded: bool = False,
    ) -> SpeechEncoder:
        """Load a model, in single precision. Code that comes with a model is never run.

        Parameters
        ----------
        name : str
            "whisper-tiny.en" or "wavlm-pico" (embedded), a folder in Hugging Face format, or a hub id.
        device : str, optional
        random_weights : bool
            The same architecture with fresh weights: the control for everything that training gave.
        seed : int
            Of the random weights.
        padded : bool
            Pad each clip with silence to the 30 s that a Whisper model was trained on, and keep the frames of its sound.
            Dearer: three times for a window of 10 s.

        Raises
        ------
        ValueError
            For a family that is not read here, a checkpoint that lacks some of the encoder's weights, or padding for a model
            that has no fixed length.
        OSError
            If the model is neither a folder with weights nor to be had from the hub.
        """
        model, family = _load_model(name, random_weights=random_weights, seed=seed)
        require(
            family.longest or not padded,
            f"padded=True, but {name} hears clips of any length; only Whisper's are padded",
        )
        family.padded = padded
        label = f"{name}-random{seed}" if random_weights else name
        encoder = cls(model, label, family=family, device=pick_device(device))
        encoder.as_named = not random_weights
        return encoder

    def features(
        self,
        audio,
        layers=None,
        *,
        window: float | None = None,
        hop: float | None = None,
        exact: bool = False,
        pool: float | None = None,
        batch_size: int | None = None,
        cache: bool = True,
    ):
        """Hidden states over a story, each frame with a bounded past.

        Parameters
        ----------
        audio : array of shape (n_samples,)
            Mono, 16 kHz. Each window is normalised as the model's own feature extractor does.
        layers : sequence of int, optional
            Hidden states to keep; all if left out. No block above the highest is run.
        window, hop : float, optional
            Seconds. A window ends every `hop` seconds and gives the frames of its last `hop` seconds: each frame has at
            least ``window - hop`` seconds of past, and nothing later than `hop` after it can reach it.
            Default: 8 and 4 s, measured to lose nothing on average against `exact` (benchmarks/README.md).
        exact : bool
            The field's protocol instead: a window ends every `hop` (0.1) seconds, is `window` (16.1) long or reaches back
            to the onset, and gives its last frame alone (Vaidya, Jain and Huth 2022). Whisper's windows are padded with
            silence to 30 s, and the frame is the last that the sound touches. Dear: each second is heard 161 times.
        pool : float, optional
            Seconds; mean of the frames of each such bin. 0.1 loses next to nothing at TRs of 2 s, and saves memory.
        batch_size : int, optional
            Windows at a time; if left out, half a minute of sound on a CPU, and on a GPU as many as fit.
        cache : bool
            Keep the states in ``cache_dir("features")``, under the hash of weights, audio and settings, and read them from there.

        Returns
        -------
        states : dict of int to array of shape (n, width), float32
            On a GPU computed in half precision.
        times : array of shape (n,)
            Seconds after onset: centre of each frame's field, or of its bin; with `exact`, where the window ends.

        Raises
        ------
        ValueError
            If the audio is not one channel, too short, or not finite; if `hop` exceeds `window`, or the window what the
            model takes; for an unknown layer.
        """
        audio = np.asarray(audio, np.float32)
        layers = tuple(range(self.layers)) if layers is None else tuple(layers)
        self._check(audio, layers)
        defaults = (EXACT_WINDOW, EXACT_HOP) if exact else (DEFAULT_WINDOW, DEFAULT_HOP)
        window, hop = (d if x is None else x for x, d in zip((window, hop), defaults))
        windows, times = plan_windows(
            self.family, len(audio), window=window, hop=hop, exact=exact, pool=pool
        )
        run = partial(_run_windows, self, audio, windows, len(times), batch_size=batch_size)
        if not cache:
            return run(layers), times
        stored = FeatureCache(
            self,
            audio,
            settings=(round(window, 4), round(hop, 4), exact, pool, self.device.split(":")[0]),
        )
        states = {layer: stored.read(layer, (len(times), self.width)) for layer in layers}
        missing = [layer for layer in layers if states[layer] is None]
        if missing:
            states |= run(missing)
        for layer in missing:
            stored.write(layer, states[layer])
        return states, times

    def hidden_states(self, clips, layers=None) -> tuple:
        """Hidden states of clips of one length.

        Parameters
        ----------
        clips : tensor of shape (n_clips, n_samples)
        layers : sequence of int, optional

        Returns
        -------
        states : tuple of tensors of shape (n_clips, n_frames, width)
            In the order of `layers`.
        """
        features = self.convolutional_features(clips)
        n_frames = self.family.n_frames(clips.shape[1])
        return tuple(x[:, :n_frames] for x in self.transformer_states(features, layers).values())

    def convolutional_features(self, clips):
        """Normalisation and convolutions; frozen in every recipe, so no gradient.

        Parameters
        ----------
        clips : tensor of shape (n_clips, n_samples)

        Returns
        -------
        features : tensor of shape (n_clips, n_frames, channels)
            Of a padded clip, the silence too.
        """
        with torch.no_grad(), torch.autocast(self.device.split(":")[0], enabled=False):
            return self.family.convolutional_features(self.model, clips)

    def transformer_states(self, features, layers=None) -> dict:
        """The transformer on convolutional features; gradients flow, dropout in ``train()``.

        No block above the highest layer is run, and none is skipped (no LayerDrop). The last layer is taken after the final
        norm of pre-norm models (versions of transformers differ in what they call the last hidden state).

        Parameters
        ----------
        features : tensor of shape (n_clips, n_frames, channels)
        layers : sequence of int, optional

        Returns
        -------
        states : dict of int to tensor of shape (n_clips, n_frames, width)
        """
        layers = range(self.layers) if layers is None else layers
        states, carry = {}, None
        x = self.family.embed(self.model, features)  # (n_clips, n_frames, width)
        stack = self.family.transformer(self.model)
        for i, block in enumerate(stack.layers):
            if i in layers:
                states[i] = x
            if i >= max(layers):
                break
            x, carry = self.family.run_block(block, x, carry)
        if self.layers - 1 in layers:
            states[self.layers - 1] = stack.layer_norm(x) if self.family.pre_norm else x
        return {layer: states[layer] for layer in layers}

    def fingerprint(self) -> str:
        """Hash of weights, configuration, padding and adapters, 16 hex digits: names a model, whatever its folder."""
        config = {key: getattr(self.model.config, key, None) for key in SHAPING}
        config |= {"normalize": self.family.normalizes} | ({"padded": True} if self.padded else {})
        total = hashlib.blake2b(
            json.dumps(config, sort_keys=True, default=str).encode(), digest_size=8
        )
        for name, module in self.model.named_modules():
            if hasattr(module, "adapter_layer_names"):  # an adapter's scaling is no weight
                total.update(repr((name, module.scaling, module.disable_adapters)).encode())
        for name, value in sorted(self.model.state_dict().items()):
            total.update(name.encode())
            total.update(value.detach().float().cpu().contiguous().numpy())
        return total.hexdigest()

    def _check(self, audio, layers):
        require(
            audio.ndim == 1,
            f"audio of shape {audio.shape}; expected one channel, (n_samples,)",
        )
        finite, shortest = bool(np.isfinite(audio).all()), self.family.field
        require(
            len(audio) >= shortest and finite,
            f"audio of {len(audio)} samples, finite: {finite}; "
            f"expected at least {shortest} finite samples at 16 kHz",
        )
        unknown = [layer for layer in layers if not 0 <= layer < self.layers]
        require(
            not unknown,
            f"no layers {unknown}; {self.name} has 0 to {self.layers - 1}",
        )

    def __repr__(self):
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        return (
            f"SpeechEncoder({self.name!r}, {size:.1f} M parameters, layers 0 to {self.layers - 1}, "
            f"width {self.width}, {self.frame_rate:g} Hz{', padded' * self.padded})"
        )


def features_at_trs(
    encoder: SpeechEncoder,
    story,
    layers=None,
    *,
    window: float | None = None,
    hop: float | None = None,
    exact: bool = False,
    pool: float | None = 0.1,
    kernel: str = "lanczos",
    cache: bool = True,
) -> dict:
    """Hidden states of a story at its TRs.

    Parameters
    ----------
    encoder : SpeechEncoder
    story : Story
    layers, window, hop, exact, pool, cache
        See `SpeechEncoder.features`.
    kernel : {"lanczos", "past"}
        See `timing.downsample`.

    Returns
    -------
    features : dict of int to array of shape (n_trs, width), float32
    """
    states, times = encoder.features(
        story.audio, layers, window=window, hop=hop, exact=exact, pool=pool, cache=cache
    )
    return {
        layer: downsample(x, times, story.tr_times, kernel=kernel) for layer, x in states.items()
    }


# ------------------------------------------------------------------ loading
def _load_model(name, *, random_weights, seed):
    """The encoder on the CPU, in single precision, and its family."""
    from transformers import AutoConfig, logging

    folder = Path(name).expanduser()
    source = ASSETS / name if name in EMBEDDED else folder if folder.is_dir() else name
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # missing weights are reported by the error below
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        config.apply_spec_augment = False
        family = load_family(source, config)
        if random_weights:
            model = _random_model(family, config, seed)
        else:
            model = _pretrained_model(family, config, source)
    except OSError as error:
        raise OSError(
            f"{name}: no model there ({str(error).splitlines()[0]}); "
            f"offline, give a folder or one of {EMBEDDED}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    return family.encoder(model).float(), family


def _random_model(family, config, seed):
    model_class = family.model_class(config)
    auto = hasattr(model_class, "from_config")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if auto:
            return model_class.from_config(config, trust_remote_code=False)
        return model_class(config)


def _pretrained_model(family, config, source):
    model, report = family.model_class(config).from_pretrained(
        source,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=False,
    )
    missing = [key for key in report["missing_keys"] if not key.startswith(family.unused)]
    require(
        not missing,
        f"{source}: the checkpoint lacks {len(missing)} of the encoder's weights "
        f"({missing[:1]}, ...)",
    )
    return model


# ------------------------------------------------------------------ running
def _run_windows(encoder, audio, windows, n_rows, layers, *, batch_size) -> dict:
    """{layer: (n_rows, width)}: what each window keeps, put in its rows."""
    states = {layer: np.zeros((n_rows, encoder.width), np.float32) for layer in layers}
    for clip_samples, alike in by_length(windows).items():
        size = batch_size or _batch_size(encoder, clip_samples)
        for window, frames in _kept_frames(encoder, audio, alike, layers, size):
            inside = window.rows < n_rows  # frames that do not fill a last row are left out
            for layer, x in frames.items():
                np.add.at(states[layer], window.rows[inside], x[inside] / window.frames_per_row)
    return states


def _kept_frames(encoder, audio, windows, layers, size):
    """Yield each window with {layer: (n_kept, width)}; windows are of one length, `size` of them at a time."""
    half = torch.autocast("cuda", torch.float16, enabled="cuda" in encoder.device)
    first = 0
    while first < len(windows):
        batch = windows[first : first + size]
        clips = torch.from_numpy(np.stack([window.clip(audio) for window in batch]))
        try:
            with torch.inference_mode(), half:
                hidden = encoder.hidden_states(clips, layers)
        except torch.cuda.OutOfMemoryError:
            if size == 1:
                raise
            size = (size + 1) // 2  # the estimate was too bold
            continue
        first += len(batch)
        for i, window in enumerate(batch):
            kept = slice(window.first_frame, window.end_frame)
            yield window, {k: x[i, kept].float().cpu().numpy() for k, x in zip(layers, hidden)}


def _batch_size(encoder, clip_samples: int) -> int:
    """Clips at a time: half a minute of sound on a CPU, where more is slower; a GPU starts high, and is halved to fit."""
    clip_samples = encoder.family.longest if encoder.padded else clip_samples
    return 64 if "cuda" in encoder.device else int(np.clip(33 * RATE / clip_samples, 1, 16))


# ------------------------------------------------------------------ keeping
class FeatureCache:
    """Hidden states of one story on disk, a file per layer, under the hash of weights, audio, settings and CACHE_VERSION."""

    def __init__(self, encoder: SpeechEncoder, audio, *, settings: tuple):
        key = hashlib.blake2b(audio.tobytes(), digest_size=8, person=encoder.fingerprint().encode())
        key.update(repr((settings, CACHE_VERSION)).encode())
        self.folder = cache_dir("features", key.hexdigest())

    def read(self, layer: int, shape) -> np.ndarray | None:
        """The states of a layer, or None where no file holds just these, finite and with their checksum."""
        try:
            arrays = read_arrays(self.folder / f"layer{layer}.npz", "hidden states")
        except (OSError, ValueError):
            return None
        states = arrays.get(self._name(layer), np.empty(0))
        right = states.shape == shape and states.dtype == np.float32
        return states if right and np.isfinite(states).all() else None

    def write(self, layer: int, states) -> None:
        """Whole or not at all; a disk that takes no more is warned of."""
        try:
            with atomic(self.folder / f"layer{layer}.npz") as part, part.open("wb") as file:
                np.savez(file, **{self._name(layer): np.ascontiguousarray(states)})
        except OSError as error:
            warnings.warn(f"{self.folder}: hidden states are not kept ({error})", stacklevel=3)

    def _name(self, layer) -> str:
        """Of the array in its file: a file of another layer or key is not taken for it."""
        return f"{self.folder.name}-{layer}"


class ConvolutionalCache:
    """Convolutional features of clips of stories, computed once and kept in main memory.

    Parameters
    ----------
    encoder : SpeechEncoder
    max_gb : float
        To fill (10**9 bytes); beyond it, features are computed anew. An hour of a base model takes 0.4 GB.
    """

    def __init__(self, encoder: SpeechEncoder, max_gb: float = 4.0):
        self.encoder = encoder
        self.free_bytes = max_gb * 1e9
        self.kept = {}

    def __call__(self, name: str, audio, *, starts, n_samples: int):
        """Features of the clips ``audio[start : start + n_samples]`` of the story `name`.

        Parameters
        ----------
        name : str
        audio : tensor of shape (story_samples,)
        starts : sequence of int
        n_samples : int
            Of each clip.

        Returns
        -------
        features : tensor of shape (n_clips, n_frames, channels)
        """
        return torch.stack([self._clip(name, audio, start, n_samples) for start in starts])

    def _clip(self, name, audio, start, n_samples):
        key = (name, start, n_samples)
        if key in self.kept:
            return self.kept[key].to(self.encoder.device)
        clip = audio[None, start : start + n_samples]  # alone: the same to the last bit
        features = self.encoder.convolutional_features(clip)[0]  # (n_frames, channels)
        if features.nbytes <= self.free_bytes:
            self.kept[key] = features.cpu()
            self.free_bytes -= features.nbytes
        return features
