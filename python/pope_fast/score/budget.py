"""How many tokens a call of a model may hold, and how running out of memory looks."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

__all__ = ["context_length", "default_token_budget", "is_out_of_memory"]

# Tokens after which a larger call is no faster, and before which it is slower.
_CPU_TOKENS = 2048
_MOST_TOKENS = 1 << 16
_FEWEST_TOKENS = 512

# Share of the memory beside the weights that a call may fill by this estimate. The rest is for fragmentation, for
# attention that keeps its scores, and for what else lives on the device.
_FILL = 0.4

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def default_token_budget(model: Any, device: torch.device) -> int:
    """Return the padded tokens of a call that suit a model on a device: a power of two.

    It depends on the model and on all memory of the device, not on what is free at the moment, so that a resumed run
    plans the same batches.
    """
    if device.type == "cuda":
        total, most = torch.cuda.get_device_properties(device).total_memory, _MOST_TOKENS
    elif device.type == "cpu":
        total, most = _machine_memory(), _CPU_TOKENS
    else:
        return _CPU_TOKENS
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    tokens = _FILL * max(total - weights, 0) / _bytes_per_token(model)
    return int(2 ** math.floor(math.log2(min(max(tokens, _FEWEST_TOKENS), most))))


def _machine_memory() -> int:
    """Return the bytes of memory of the machine; plenty where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 34


def _bytes_per_token(model: Any) -> float:
    """Estimate the memory of a token: keys and values in all layers, and the widest layer's activations."""
    config = _text_config(model)
    hidden = _number(config, "hidden_size", "n_embd", "d_model") or 4096
    heads = _number(config, "num_attention_heads", "n_head") or 1
    key_heads = _number(config, "num_key_value_heads") or heads
    width = _number(config, "head_dim") or hidden // heads
    inner = _number(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden
    layers = _number(config, "num_hidden_layers", "n_layer") or 32
    size = torch.empty(0, dtype=model.dtype).element_size()
    # Beside them: hidden states and their float32 copies in norms and in front of the head.
    return float(size * (2 * layers * key_heads * width + 3 * inner + 8 * hidden) + 4 * 4 * hidden)


def context_length(model: Any) -> int | None:
    """Return the most tokens a model takes, None if its configuration states none."""
    return _number(_text_config(model), "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")


def _text_config(model: Any) -> Any:
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _number(config: Any, *names: str) -> int | None:
    """Return the first of the attributes that is a positive integer."""
    values = (_setting(config, name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _setting(config: Any, name: str) -> Any:
    """Return an attribute of a configuration; None if it has none, or one that differs between layers."""
    try:
        return getattr(config, name, None)
    except Exception:  # transformers' AmbiguousGlobalPerLayerAttributeError, which is no AttributeError everywhere
        values = getattr(config, "__dict__", {})
        return values.get(name)
