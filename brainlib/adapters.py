"""Adapters that act: WavLM's attention made to call its projections, and a check for any model."""

import copy
import sys
from types import MethodType

import numpy as np
import torch

from .runtime import require


def pass_over_old_torchao():
    """Let PEFT not look for torchao where it would refuse the version there (Colab's) and with it every adapter."""
    import peft
    from peft import import_utils

    is_available = getattr(import_utils, "is_torchao_available", bool)
    try:
        is_available()
    except ImportError:
        for name, module in list(sys.modules.items()):
            function = getattr(module, "is_torchao_available", None)
            if name.startswith(peft.__name__) and function is is_available:
                module.is_torchao_available = bool  # that is, False


def check_adapters_act(model, audio) -> int:
    """Make sure that every adapter in a model can change its output.

    PEFT puts adapters around modules; a model that reads a module's weights past it never calls them, trains nothing,
    and says nothing. This moves all adapters of a copy a little, and asks for the gradient of each.

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
    model = copy.copy(model)
    network = copy.deepcopy(model.model if hasattr(model, "hidden_states") else model).eval()
    adapters = adapter_parameters(network)
    require(adapters, "the model has no adapters: put them in with peft.get_peft_model first")
    clips = torch.as_tensor(np.asarray(audio, np.float32))[None]  # (1, n_samples)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapters.values():
        step = 0.02 * torch.randn(parameter.shape, generator=generator)
        parameter.requires_grad_(True).data.add_(step.to(parameter))
    if hasattr(model, "hidden_states"):
        model.model = network
        out = model.hidden_states(clips)[-1]
    else:
        out = network(clips.to(next(network.parameters()).device)).last_hidden_state
    gradients = [None] * len(adapters)
    if out.requires_grad:
        direction = torch.randn(out.shape, generator=generator).to(out)
        gradients = torch.autograd.grad(
            (out * direction).sum(), list(adapters.values()), allow_unused=True
        )
    idle = [
        name
        for name, gradient in zip(adapters, gradients)
        if gradient is None or not float(gradient.abs().max()) > 0
    ]
    require(
        not idle,
        f"{len(idle)} of {len(adapters)} adapter tensors change nothing (first: {idle[:1]}): "
        "the model reads past the modules they wrap, or they are disabled. "
        "For transformers' WavLM call brainlib.speech.fuse_attention(model)",
        kind=RuntimeError,
    )
    return len(adapters)


def adapter_parameters(network) -> dict:
    """{name: parameter} of all that PEFT has put into a model; empty without adapters."""
    return {
        f"{name}.{inner}": parameter
        for name, module in network.named_modules()
        for inner, parameter in module.named_parameters()
        if inner.split(".")[0] in getattr(module, "adapter_layer_names", ())
    }


def fuse_attention(model) -> int:
    """Give every WavLM attention of a model a forward that calls its projections as modules, and the fused kernel.

    transformers' own reads ``q_proj.weight`` past the module, so an adapter around the projection is never called and
    gets no gradient; and it keeps the attention weights, which costs time and memory. Outputs stay the same (tested to
    1e-5 in float32).

    Parameters
    ----------
    model : torch module
        Changed in place.

    Returns
    -------
    n : int
        Attentions changed; families other than WavLM have none.
    """
    attentions = [
        module
        for module in model.modules()
        if hasattr(module, "gru_rel_pos_linear")
        and hasattr(module, "torch_multi_head_self_attention")
    ]
    for module in attentions:
        module.forward = MethodType(_fused_forward, module)
    return len(attentions)


def _fused_forward(self, hidden_states, attention_mask=None, position_bias=None, index=0, **_):
    """WavLM's self-attention with gated relative position bias (Chen et al. 2022, eq. 2 to 6)."""
    n, t, _ = hidden_states.shape

    def heads(x):
        x = x.view(n, t, self.num_heads, -1)  # (n, t, heads, width / heads)
        return x.transpose(1, 2)  # (n, heads, t, width / heads)

    if position_bias is None:  # the first block makes it, the others get it handed on
        position_bias = self.compute_bias(t, t)[None]  # (1, heads, t, t)
    gates = self.gru_rel_pos_linear(heads(hidden_states))  # (n, heads, t, 8)
    gates = gates.view(n, self.num_heads, t, 2, 4).sum(-1)  # (n, heads, t, 2)
    update, reset = torch.sigmoid(gates).chunk(2, dim=-1)  # each (n, heads, t, 1)
    gate = update * (reset * self.gru_rel_pos_const - 1.0) + 2.0
    bias = gate * position_bias  # (n, heads, t, t)
    if attention_mask is not None:  # (n, t), 1 where there is sound
        bias = bias.masked_fill(attention_mask[:, None, None].ne(1), float("-inf"))
    query, key, value = (
        heads(project(hidden_states)) for project in (self.q_proj, self.k_proj, self.v_proj)
    )
    dropout = self.dropout if self.training else 0.0
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=bias.to(query.dtype), dropout_p=dropout
    )  # (n, heads, t, width / heads)
    mixed = mixed.transpose(1, 2).reshape(n, t, -1)  # (n, t, width)
    return self.out_proj(mixed), None, position_bias
