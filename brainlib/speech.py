"""Speech encoders: WavLM, wav2vec 2.0, HuBERT and Whisper's encoder, their hidden states over a long story, adapters that act."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from .adapters import check_adapters_act, fuse_attention
from .runtime import atomic, cache_dir, pick_device

__all__ = ["SpeechEncoder", "Fronts", "check_adapters_act", "fuse_attention"]
ASSETS = Path(__file__).parent / "assets"
EMBEDDED = ("wavlm-pico",)
FAMILIES = ("wavlm", "wav2vec2", "hubert", "whisper")
RATE = 16_000
SHAPING = (  # what a configuration says beyond the shapes of the weights; other keys come and go with transformers' versions
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
DEFAULT_WINDOW, DEFAULT_HOP = 8.0, 4.0  # seconds


class SpeechEncoder:
    """A speech model, and its hidden states over audio of any length.

    Use `from_pretrained`. Attributes: `model` (transformers'; of Whisper, the encoder; PEFT may put adapters into it),
    `layers` (hidden states: the input of the transformer and the output of each block), `width`, `frame_rate` (Hz).
    """

    def __init__(self, model, name: str, extractor, device: str):
        fuse_attention(model)
        self.model, self.name, self.extractor, self.device = (
            model.to(device).eval(),
            name,
            extractor,
            device,
        )
        config = model.config
        self.whisper = config.model_type == "whisper"
        self.layers, self.width = config.num_hidden_layers + 1, config.hidden_size
        if self.whisper:  # mel frames of 25 ms every 10 ms, two convolutions of three frames, the second of stride two
            self.stride, self.field, self.overhang, self.longest = (
                320,
                1040,
                0,
                320 * config.max_source_positions,
            )
            wanted = inspect.signature(model.layers[0].forward).parameters
            self._more = (
                {"layer_head_mask": None} if "layer_head_mask" in wanted else {}
            )  # transformers before 5
        else:
            self.field, self.stride, self.longest, self._more = 1, 1, None, {}
            for kernel, stride in zip(config.conv_kernel, config.conv_stride):
                self.field, self.stride = (
                    self.field + (kernel - 1) * self.stride,
                    self.stride * stride,
                )
            self.overhang = (
                self.field - self.stride
            )  # samples that the last frame needs beyond its stride
        self.frame_rate = RATE / self.stride

    @classmethod
    def from_pretrained(
        cls,
        name: str = "wavlm-pico",
        device: str | None = None,
        random_weights: bool = False,
        seed: int = 0,
    ) -> SpeechEncoder:
        """Load a model.

        Parameters
        ----------
        name : str
            "wavlm-pico" (embedded), a folder in Hugging Face format, or a hub id.
        device : str, optional
        random_weights : bool
            The same architecture with fresh weights: the control for everything that training gave.
        seed : int
            Of the random weights.

        Raises
        ------
        ValueError
            For a family that is not read here, or a checkpoint that lacks some of the encoder's weights.
        OSError
            If the model is neither a folder with weights nor to be had from the hub.
        """
        import torch
        from transformers import AutoConfig, AutoModel, logging
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        logging.disable_progress_bar()
        source = (
            ASSETS / name
            if name in EMBEDDED
            else Path(name).expanduser()
            if Path(name).expanduser().is_dir()
            else name
        )
        loudness, missing = logging.get_verbosity(), []
        logging.set_verbosity_error()  # what is missing is told below, in one line
        try:
            config = AutoConfig.from_pretrained(source)
            if config.model_type not in FAMILIES:
                raise ValueError(
                    f"{name}: a {config.model_type!r} model; expected one of {FAMILIES}"
                )
            config.apply_spec_augment = False
            kind = WhisperEncoder if config.architectures == ["WhisperEncoder"] else AutoModel
            if random_weights:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    model = kind.from_config(config) if kind is AutoModel else kind(config)
            else:
                model, report = kind.from_pretrained(
                    source, config=config, dtype=torch.float32, output_loading_info=True
                )
                missing = [
                    k
                    for k in report["missing_keys"]
                    if not k.startswith(("decoder.", "masked_spec_embed"))
                ]
            extractor = _extractor(source, config)
        except OSError as error:
            raise OSError(
                f"{name}: no model there ({str(error).splitlines()[0]}); offline, give a folder or one of {EMBEDDED}"
            ) from error
        finally:
            logging.set_verbosity(loudness)
        if missing:
            raise ValueError(
                f"{name}: the checkpoint lacks {len(missing)} of the encoder's weights ({missing[0]}, ...)"
            )
        model = getattr(model, "encoder", model) if config.model_type == "whisper" else model
        return cls(
            model.float(),
            name + (f"-random{seed}" if random_weights else ""),
            extractor,
            pick_device(device),
        )

    def features(
        self,
        audio,
        layers=None,
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
            to the onset, and gives its last frame alone (Vaidya, Jain and Huth 2022). Dear: each second is heard 161 times.
        pool : float, optional
            Seconds; mean of the frames of each such bin. 0.1 loses next to nothing at TRs of 2 s, and saves memory.
        batch_size : int, optional
            Windows at a time; chosen from the free memory if left out.
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
        window = window or (16.1 if exact else DEFAULT_WINDOW)
        hop = hop or (0.1 if exact else DEFAULT_HOP)
        self._check(audio, layers, window, hop, exact)
        jobs, times, per = self.plan(len(audio), window, hop, exact, pool)
        if not cache:
            return self._run(audio, layers, jobs, len(times), per, batch_size), times
        key = hashlib.blake2b(audio.tobytes(), digest_size=8, person=self.fingerprint().encode())
        key.update(
            repr((round(window, 4), round(hop, 4), exact, pool, self.device.split(":")[0])).encode()
        )
        files = {
            layer: cache_dir("features", key.hexdigest()) / f"layer{layer}.npy" for layer in layers
        }
        states = {layer: _read(file, (len(times), self.width)) for layer, file in files.items()}
        lacking = [layer for layer in layers if states[layer] is None]
        if lacking:
            states |= self._run(audio, lacking, jobs, len(times), per, batch_size)
        for layer in lacking:
            with atomic(files[layer]) as part:
                np.save(part, states[layer])
        return states, times

    def plan(self, n_samples, window, hop, exact, pool):
        """-> {samples in the window: [(first sample, frames to keep: from, to, row of the first)]}, times, frames a row."""
        jobs = defaultdict(list)
        if exact:
            ends = [
                int(round(k * hop * RATE)) for k in range(1, int(n_samples / RATE / hop + 1e-6) + 1)
            ]
            for row, end in enumerate(ends):
                start = max(end - int(round(window * RATE)), 0)
                last = (end - start - self.overhang) // self.stride
                jobs[end - start].append((start, last - 1, last, row))
            return jobs, np.array(ends) / RATE, 1
        n_frames = (n_samples - self.overhang) // self.stride
        per_hop, per_window = (max(int(round(s * self.frame_rate)), 1) for s in (hop, window))
        for first in range(0, n_frames, per_hop):
            last = min(first + per_hop, n_frames)
            start = max(last - per_window, 0)
            jobs[(last - start) * self.stride + self.overhang].append(
                (start * self.stride, first - start, last - start, first)
            )
        per = max(int(round((pool or 0) * self.frame_rate)), 1)
        times = np.arange(n_frames // per * per) * self.stride + (
            0 if self.whisper else self.field / 2
        )
        return jobs, times.reshape(-1, per).mean(1) / RATE, per

    def _run(self, audio, layers, jobs, n_rows, per, batch_size):
        import torch

        states = {layer: np.zeros((n_rows, self.width), np.float32) for layer in layers}
        half = torch.autocast("cuda", torch.float16, enabled="cuda" in self.device)
        for length, spans in jobs.items():
            size, at = batch_size or self._batch_size(length), 0
            while at < len(spans):
                batch = spans[at : at + size]
                clips = torch.from_numpy(
                    np.stack([audio[job[0] : job[0] + length] for job in batch])
                )
                try:
                    with torch.inference_mode(), half:
                        hidden = self.transform(self.front(clips), layers)
                        hidden = {
                            k: [
                                x[i, a:b].float().cpu().numpy()
                                for i, (_, a, b, _) in enumerate(batch)
                            ]
                            for k, x in hidden.items()
                        }
                except torch.cuda.OutOfMemoryError:
                    if size == 1:
                        raise
                    size = (size + 1) // 2  # the estimate was too bold
                    continue
                at += len(batch)
                for layer, pieces in hidden.items():
                    for (_, _, _, row), piece in zip(batch, pieces):
                        rows = (row + np.arange(len(piece))) // per
                        np.add.at(states[layer], rows[rows < n_rows], piece[rows < n_rows] / per)
        return states

    def _batch_size(self, length):
        """Windows of `length` samples that fit half of the free GPU memory; half a minute on a CPU, where more is slower."""
        import torch

        if not self.device.startswith("cuda"):
            return int(np.clip(33 * RATE / length, 1, 16))
        config, frames = self.model.config, length // self.stride
        wide = (
            config.conv_dim[0] * length / config.conv_stride[0]
            if not self.whisper
            else self.width * frames * 2
        )
        square = config.num_attention_heads * frames**2
        return int(
            np.clip(
                torch.cuda.mem_get_info()[0]
                / 2
                / (4 * (4 * wide + 4 * square + 20 * frames * self.width)),
                1,
                64,
            )
        )

    def hidden_states(self, clips, layers=None) -> tuple:
        """`transform` after `front` of clips of one length, (n_clips, n_samples): a tuple of the `layers`, in that order."""
        return tuple(self.transform(self.front(clips), layers).values())

    def front(self, clips):
        """Normalisation and convolutions, (n_clips, n_samples) to (n_clips, n_frames, channels); frozen: no gradient."""
        import torch

        with torch.no_grad(), torch.autocast(self.device.split(":")[0], enabled=False):
            if self.whisper:  # not padded to 30 s: every frame holds sound
                mel = self.extractor(
                    list(clips.cpu().numpy()),
                    sampling_rate=RATE,
                    padding=False,
                    truncation=False,
                    return_tensors="pt",
                )
                mel = mel.input_features[..., : clips.shape[1] // 320 * 2].to(self.device)
                x = torch.nn.functional.gelu(self.model.conv1(mel))
                return torch.nn.functional.gelu(self.model.conv2(x)).transpose(1, 2)
            clips = clips.to(self.device)
            if (
                self.extractor
            ):  # zero mean and unit variance a clip, as Wav2Vec2FeatureExtractor defines it
                clips = (clips - clips.mean(1, keepdim=True)) / (
                    clips.var(1, unbiased=False, keepdim=True) + 1e-7
                ).sqrt()
            return self.model.feature_extractor(clips).transpose(1, 2)

    def transform(self, front, layers=None) -> dict:
        """The transformer on the output of `front`: {layer: (n_clips, n_frames, width)}; gradients flow, dropout in ``train()``.

        Runs no block above the highest layer, and no LayerDrop: a block is never skipped. The last layer is taken after the
        final norm of pre-norm models (versions of transformers differ in what they call the last hidden state).
        """
        import torch

        layers = range(self.layers) if layers is None else layers
        stack, bias, out = self.model if self.whisper else self.model.encoder, None, {}
        final_norm = self.whisper or getattr(self.model.config, "do_stable_layer_norm", False)
        if self.whisper:
            x = front + stack.embed_positions.weight[: front.shape[1]]
            x = torch.nn.functional.dropout(x, stack.dropout, stack.training)
        else:
            x = self.model.feature_projection(front)
            x = x[0] if isinstance(x, tuple) else x
            x = x + stack.pos_conv_embed(x)
            x = stack.dropout(x if final_norm else stack.layer_norm(x))
        for i, block in enumerate(stack.layers):
            if i in layers:
                out[i] = x
            if i >= max(layers):
                break
            if self.model.config.model_type == "wavlm":
                x, bias = block(x, attention_mask=None, position_bias=bias)[:2]
            else:
                x = block(x, attention_mask=None, **self._more)
                x = x[0] if isinstance(x, tuple) else x
        if self.layers - 1 in layers:
            out[self.layers - 1] = stack.layer_norm(x) if final_norm else x
        return {layer: out[layer] for layer in layers}

    def _check(self, audio, layers, window, hop, exact):
        if audio.ndim != 1:
            raise ValueError(f"audio of shape {audio.shape}; expected one channel, (n_samples,)")
        finite = bool(np.isfinite(audio).all())
        if len(audio) < self.field or not finite:
            raise ValueError(
                f"audio of {len(audio)} samples, finite: {finite}; expected at least {self.field} finite samples at 16 kHz"
            )
        least = self.field / RATE if exact else 0
        if not 0 < hop <= window or hop < least:
            raise ValueError(
                f"hop {hop} s and window {window} s; expected 0 < hop <= window"
                + f", hop >= {least:g}" * exact
            )
        if self.longest and window * RATE > self.longest:
            raise ValueError(
                f"window {window} s; {self.name} has positions for {self.longest / RATE:g} s"
            )
        unknown = [layer for layer in layers if not 0 <= layer < self.layers]
        if unknown:
            raise ValueError(f"no layers {unknown}; {self.name} has 0 to {self.layers - 1}")

    def fingerprint(self) -> str:
        """Hash of weights, configuration and adapters, 16 hex digits: names a model, whatever its folder."""
        config = {k: getattr(self.model.config, k, None) for k in SHAPING} | {
            "normalize": bool(self.extractor)
        }
        total = hashlib.blake2b(
            json.dumps(config, sort_keys=True, default=str).encode(), digest_size=8
        )
        for (
            name,
            module,
        ) in self.model.named_modules():  # what an adapter is multiplied by is no weight
            if hasattr(module, "adapter_layer_names"):
                total.update(repr((name, module.scaling, module.disable_adapters)).encode())
        for name, value in sorted(self.model.state_dict().items()):
            total.update(name.encode())
            total.update(value.detach().float().cpu().contiguous().numpy())
        return total.hexdigest()

    def __repr__(self):
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        return f"SpeechEncoder({self.name!r}, {size:.1f} M parameters, layers 0 to {self.layers - 1}, width {self.width}, {self.frame_rate:g} Hz)"


class Fronts:
    """`SpeechEncoder.front` of clips of stories, computed once and kept.

    Parameters
    ----------
    encoder : SpeechEncoder
    max_gb : float
        Main memory to fill (10**9 bytes); beyond it, fronts are computed anew. An hour of a base model takes 0.4 GB.
    """

    def __init__(self, encoder: SpeechEncoder, max_gb: float = 4.0):
        self.encoder, self.room, self.kept = encoder, max_gb * 1e9, {}

    def __call__(self, name: str, audio, starts, length: int):
        """Fronts of the clips ``audio[start : start + length]`` of the story `name`: (n_clips, n_frames, channels)."""
        import torch

        fresh = {}
        for start in starts:
            if (name, start, length) in self.kept:
                continue
            fresh[start] = front = self.encoder.front(audio[None, start : start + length])[
                0
            ]  # alone: the same to the last bit
            if front.nbytes <= self.room:
                self.kept[name, start, length], self.room = front.cpu(), self.room - front.nbytes
        return torch.stack(
            [
                fresh[s] if s in fresh else self.kept[name, s, length].to(self.encoder.device)
                for s in starts
            ]
        )


def _extractor(source, config):
    """Of Whisper the mel extractor; else whether audio is normalised."""
    from transformers import AutoFeatureExtractor, WhisperFeatureExtractor

    try:
        found = AutoFeatureExtractor.from_pretrained(source)
        return found if config.model_type == "whisper" else bool(found.do_normalize)
    except (OSError, ValueError):  # a folder without a preprocessor: the family's own default
        if not isinstance(source, Path):
            raise
        return (
            WhisperFeatureExtractor(feature_size=config.num_mel_bins)
            if config.model_type == "whisper"
            else True
        )


def _read(file: Path, shape) -> np.ndarray | None:
    """The array in `file`, or None if there is none of that shape."""
    try:
        return np.load(file).reshape(shape)
    except (OSError, ValueError, EOFError):
        return None
