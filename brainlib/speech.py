"""Speech encoders: any WavLM, wav2vec 2.0 or HuBERT checkpoint, its hidden states over a long story."""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from pathlib import Path
from types import MethodType

import numpy as np

from .runtime import pick_device

ASSETS = Path(__file__).parent / "assets"
EMBEDDED = ("wavlm-pico",)
FAMILIES = ("wavlm", "wav2vec2", "hubert")
RATE = 16_000


class SpeechEncoder:
    """A speech model, and its hidden states over audio of any length.

    Use `from_pretrained`. Attributes: `model` (a transformers model), `layers` (number of hidden states: the input of
    the transformer, 0, and the output of each block), `width`, `frame_rate` (Hz), `name`, `device`.
    """

    def __init__(self, model, name: str, normalize: bool, device: str):
        fuse_attention(model)
        self.model, self.name, self.normalize, self.device = model.to(device).eval(), name, normalize, device
        config = model.config
        self.layers, self.width = config.num_hidden_layers + 1, config.hidden_size
        self.stride = int(np.prod(config.conv_stride))
        field, step = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride):
            field, step = field + (kernel - 1) * step, step * stride
        self.field = field  # samples that one frame sees
        self.frame_rate = RATE / self.stride

    @classmethod
    def from_pretrained(
        cls, name: str = "wavlm-pico", device: str | None = None, random_weights: bool = False, seed: int = 0
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
            For a family that is not read here.
        OSError
            If the model is neither a folder nor to be had from the hub.
        """
        import torch
        from transformers import AutoConfig, AutoModel, logging

        logging.disable_progress_bar()
        source = ASSETS / name if name in EMBEDDED else Path(name).expanduser() if Path(name).expanduser().is_dir() else name
        try:
            config = AutoConfig.from_pretrained(source)
            if config.model_type not in FAMILIES:
                raise ValueError(f"{name}: a {config.model_type!r} model; expected one of {FAMILIES}")
            config.apply_spec_augment = False
            if random_weights:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    model = AutoModel.from_config(config).float()
            else:
                model = AutoModel.from_pretrained(source, config=config, dtype=torch.float32)
        except OSError as error:
            raise OSError(f"{name}: no model there ({str(error).splitlines()[0]}); offline, give a folder or one of {EMBEDDED}") from error
        preprocessor = Path(source) / "preprocessor_config.json"
        normalize = json.loads(preprocessor.read_text()).get("do_normalize", True) if preprocessor.exists() else _hub_normalize(source)
        return cls(model, name + (f"-random{seed}" if random_weights else ""), normalize, pick_device(device))

    def features(self, audio, layers=None, window: float = 16.0, hop: float = 2.0, batch_size: int = 8):
        """Hidden states over a story, each frame with at least ``window - hop`` seconds of past (where there are so many).

        Parameters
        ----------
        audio : array of shape (n_samples,)
            Mono, 16 kHz. Each window is normalised as the model's own feature extractor does.
        layers : sequence of int, optional
            Hidden states to keep; all if left out.
        window, hop : float
            Seconds. A window ends every `hop` seconds and gives the frames of its last `hop` seconds, so nothing that
            comes later than `hop` (and one frame's field) after a frame can reach it.
        batch_size : int
            Windows at a time.

        Returns
        -------
        states : dict of int to array of shape (n_frames, width), float32
        times : array of shape (n_frames,)
            Centre of each frame's field, seconds after onset.

        Raises
        ------
        ValueError
            If the audio is not one channel, too short, or not finite; if `hop` exceeds `window`; for an unknown layer.
        """
        import torch

        audio = np.asarray(audio, np.float32)
        layers = tuple(range(self.layers)) if layers is None else tuple(layers)
        self._check(audio, layers, window, hop)
        overhang = self.field - self.stride
        n_frames = (len(audio) - overhang) // self.stride
        per_hop, per_window = (max(int(round(s * self.frame_rate)), 1) for s in (hop, window))
        jobs = defaultdict(list)  # frames in the window -> [(first frame wanted, one past the last, window's first frame)]
        for first in range(0, n_frames, per_hop):
            last = min(first + per_hop, n_frames)
            start = max(last - per_window, 0)
            jobs[last - start].append((first, last, start))
        states = {layer: np.empty((n_frames, self.width), np.float32) for layer in layers}
        for length, spans in jobs.items():
            for at in range(0, len(spans), batch_size):
                batch = spans[at : at + batch_size]
                clips = np.stack([audio[s * self.stride : (s + length) * self.stride + overhang] for _, _, s in batch])
                with torch.inference_mode():
                    hidden = self.hidden_states(torch.from_numpy(clips))
                for layer in layers:
                    values = hidden[layer].float().cpu().numpy()
                    for (first, last, start), value in zip(batch, values):
                        states[layer][first:last] = value[first - start : last - start]
        times = (np.arange(n_frames) * self.stride + self.field / 2) / RATE
        return states, times

    def hidden_states(self, clips):
        """Tuple of `layers` tensors (n_clips, n_frames, width) for clips of equal length (n_clips, n_samples); gradients flow."""
        clips = clips.to(self.device)
        if self.normalize:  # zero mean and unit variance a clip, as Wav2Vec2FeatureExtractor defines it
            clips = (clips - clips.mean(1, keepdim=True)) / (clips.var(1, unbiased=False, keepdim=True) + 1e-7).sqrt()
        return self.model(clips, output_hidden_states=True).hidden_states

    def _check(self, audio, layers, window, hop):
        if audio.ndim != 1:
            raise ValueError(f"audio of shape {audio.shape}; expected one channel, (n_samples,)")
        if len(audio) < self.field or not np.isfinite(audio).all():
            raise ValueError(
                f"audio of {len(audio)} samples, finite: {bool(np.isfinite(audio).all())}; expected at least {self.field} finite samples at 16 kHz"
            )
        if not 0 < hop <= window:
            raise ValueError(f"hop {hop} s and window {window} s; expected 0 < hop <= window")
        unknown = [layer for layer in layers if not 0 <= layer < self.layers]
        if unknown:
            raise ValueError(f"no layers {unknown}; {self.name} has 0 to {self.layers - 1}")

    def fingerprint(self) -> str:
        """Short hash of the weights: names a model in results, whatever folder it came from."""
        total = 0
        for name, value in sorted(self.model.state_dict().items()):
            total = zlib.crc32(value.detach().float().cpu().numpy().tobytes(), zlib.crc32(name.encode(), total))
        return f"{total:08x}"

    def __repr__(self):
        size = sum(p.numel() for p in self.model.parameters()) / 1e6
        return f"SpeechEncoder({self.name!r}, {size:.1f} M parameters, layers 0 to {self.layers - 1}, width {self.width}, {self.frame_rate:g} Hz)"


def fuse_attention(model) -> int:
    """Give every WavLM attention of `model` a forward that calls its projections as modules, and the fused kernel.

    transformers' own reads ``q_proj.weight`` past the module, so an adapter around the projection is never called and
    gets no gradient; and it keeps the attention weights, which costs time and memory. Outputs stay the same (tested to
    1e-5 in float32). Returns how many attentions were changed; other families have none.
    """
    changed = 0
    for module in model.modules():
        if hasattr(module, "gru_rel_pos_linear") and hasattr(module, "torch_multi_head_self_attention"):
            module.forward = MethodType(_fused_forward, module)
            changed += 1
    return changed


def _fused_forward(self, hidden_states, attention_mask=None, position_bias=None, index=0, **_):
    """WavLM's self-attention with gated relative position bias (Chen et al. 2022, eq. 2 to 6)."""
    import torch

    n, t, _ = hidden_states.shape

    def heads(x):
        return x.view(n, t, self.num_heads, -1).transpose(1, 2)  # (n, heads, t, width / heads)

    if position_bias is None:  # the first block makes it, the others get it handed on
        position_bias = self.compute_bias(t, t)[None]  # (1, heads, t, t)
    gates = self.gru_rel_pos_linear(heads(hidden_states)).view(n, self.num_heads, t, 2, 4).sum(-1)
    update, reset = torch.sigmoid(gates).chunk(2, dim=-1)  # each (n, heads, t, 1)
    bias = (update * (reset * self.gru_rel_pos_const - 1.0) + 2.0) * position_bias
    if attention_mask is not None:  # (n, t), 1 where there is sound
        bias = bias.masked_fill(attention_mask[:, None, None].ne(1), float("-inf"))
    query, key, value = (heads(project(hidden_states)) for project in (self.q_proj, self.k_proj, self.v_proj))
    dropout = self.dropout if self.training else 0.0
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype), dropout_p=dropout)
    return self.out_proj(mixed.transpose(1, 2).reshape(n, t, -1)), None, position_bias


def _hub_normalize(source) -> bool:
    from transformers import AutoFeatureExtractor

    try:
        return bool(AutoFeatureExtractor.from_pretrained(source).do_normalize)
    except OSError:
        return True  # a folder without a preprocessor: wav2vec 2.0's own default
