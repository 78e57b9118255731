"""Adapters that act: WavLM's attention made to call its projections, and a check for any model."""

from __future__ import annotations

import sys
from types import MethodType

import numpy as np


def pass_over_old_torchao():
    """Let PEFT not look for torchao where it would refuse the version there (Colab's) and with it every adapter."""
    import peft
    from peft import import_utils

    look = getattr(import_utils, "is_torchao_available", bool)
    try:
        look()
    except ImportError:
        for name, module in list(sys.modules.items()):
            if (
                name.startswith(peft.__name__)
                and getattr(module, "is_torchao_available", None) is look
            ):
                module.is_torchao_available = bool  # that is, False


def check_adapters_act(model, audio) -> int:
    """Make sure that every adapter in a model can change its output.

    PEFT puts adapters around modules; a model that reads a module's weights past it never calls them, trains nothing,
    and says nothing. This moves all adapters a little, and asks for the gradient of each; weights are as before in the end.

    Parameters
    ----------
    model : SpeechEncoder or torch module
        With PEFT adapters in it; a module takes (n_clips, n_samples) and returns an output with ``last_hidden_state``.
    audio : array of shape (n_samples,)
        A second of 16 kHz sound is enough.

    Returns
    -------
    n : int
        Adapter tensors, all of which act.

    Raises
    ------
    ValueError
        If there are no adapters.
    RuntimeError
        If an adapter gets no gradient.
    """
    import torch

    encoder = hasattr(model, "hidden_states")
    network = model.model if encoder else model
    held = {
        f"{name}.{inner}": p
        for name, module in network.named_modules()
        for inner, p in module.named_parameters()
        if inner.split(".")[0] in getattr(module, "adapter_layer_names", ())
    }
    if not held:
        raise ValueError("the model holds no adapters: put them in with peft.get_peft_model first")
    before, modes = (
        [(p.detach().clone(), p.requires_grad) for p in held.values()],
        {m: m.training for m in network.modules()},
    )
    draw = torch.Generator().manual_seed(0)
    try:
        network.eval()
        for p in held.values():
            p.requires_grad_(True).data.add_(0.02 * torch.randn(p.shape, generator=draw).to(p))
        clips = torch.as_tensor(np.asarray(audio, np.float32))[None]
        out = (
            model.hidden_states(clips)[-1]
            if encoder
            else model(clips.to(next(model.parameters()).device)).last_hidden_state
        )
        aim = (out * torch.randn(out.shape, generator=draw).to(out)).sum()
        gradients = (
            torch.autograd.grad(aim, list(held.values()), allow_unused=True)
            if aim.requires_grad
            else [None] * len(held)
        )
    finally:
        for p, (value, wanted) in zip(held.values(), before):
            p.data.copy_(value)
            p.requires_grad_(wanted)
        for module, mode in modes.items():
            module.training = mode
    dead = [
        name
        for name, gradient in zip(held, gradients)
        if gradient is None or not float(gradient.abs().max()) > 0
    ]
    if dead:
        raise RuntimeError(
            f"{len(dead)} of {len(held)} adapter tensors change nothing (first: {dead[0]}): the model reads past the modules they wrap, "
            "or they are disabled. For transformers' WavLM call brainlib.speech.fuse_attention(model)"
        )
    return len(held)


def fuse_attention(model) -> int:
    """Give every WavLM attention of `model` a forward that calls its projections as modules, and the fused kernel.

    transformers' own reads ``q_proj.weight`` past the module, so an adapter around the projection is never called and
    gets no gradient; and it keeps the attention weights, which costs time and memory. Outputs stay the same (tested to
    1e-5 in float32). Returns how many attentions were changed; other families have none.
    """
    changed = 0
    for module in model.modules():
        if hasattr(module, "gru_rel_pos_linear") and hasattr(
            module, "torch_multi_head_self_attention"
        ):
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
    query, key, value = (
        heads(project(hidden_states)) for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    dropout = self.dropout if self.training else 0.0
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias.to(query.dtype), dropout_p=dropout
    )
    return self.out_proj(mixed.transpose(1, 2).reshape(n, t, -1)), None, position_bias
