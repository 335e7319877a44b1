"""Prompts computed once and continued by many completions: caches and attention for the second call of the model.

Two ways, tried in this order. *Split*: the completions attend to the prompt's keys and values where they are, once for
all completions of a prompt, and to themselves; the two results are merged by their log-sum-exps, which is exact. No
keys are copied and the products are large. *Expanded*: one layer at a time, the prompt's keys and values are copied for
every completion, and the model's own attention and masks do the rest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["CannotShareError", "check_cache", "expanded", "smallest_window", "split", "split_attention"]

_Int64 = npt.NDArray[np.int64]

#: Under which the split attention is registered. It has no mask function, so that models build no masks for it.
_NAME = "pope_shared_prompt"


class CannotShareError(Exception):
    """The model's cache or attention is not one that completions can share; says why."""


def check_cache(cache: Any) -> None:
    """Raise if a cache holds anything but keys and values of all tokens, or of a window of them."""
    if type(cache) is not DynamicCache:
        raise CannotShareError(f"its cache is a {type(cache).__name__}, not a DynamicCache")
    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise CannotShareError(f"a layer of its cache is a {type(layer).__name__}")
        if getattr(layer, "keys", None) is None:
            raise CannotShareError("a layer of its cache holds no keys")


def smallest_window(cache: Any) -> float:
    """Return the number of tokens up to which every layer sees them all."""
    windows = [layer.sliding_window for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return min(windows, default=math.inf)


def expanded(cache: Any, rows: Tensor) -> Any:
    """Return a cache for completions of the prompts ``rows`` of ``cache``, which is left as it is."""

    def update(layer: Any, *states: Any, **options: Any) -> Any:
        # Keys and values of one layer are copied when they are needed, and dropped after it.
        copied, chosen = copy.copy(layer), rows.to(layer.keys.device)
        copied.keys, copied.values = layer.keys[chosen], layer.values[chosen]
        return copied.update(*states, **options)

    return _with_update(cache, update)


def split(cache: Any) -> Any:
    """Return a cache for completions under :func:`split_attention`; ``cache`` is left as it is."""

    def update(layer: Any, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Any:
        chunk = _CHUNK.get()
        chunk.keys, chunk.values = layer.keys, layer.values
        return keys, values

    return _with_update(cache, update)


def _with_update(cache: Any, update: Callable[..., Any]) -> Any:
    """Return a copy of a cache that holds the same tensors and does something else with new keys and values."""
    result = copy.copy(cache)
    result.layers = [copy.copy(layer) for layer in cache.layers]
    for before, layer in zip(cache.layers, result.layers, strict=True):
        layer.update = partial(update, before)
    return result


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the completions of a chunk lie beside their prompts, in groups of equal size.

    Attributes
    ----------
    prompts : Tensor or None
        Prompt of each group; None if they are all prompts in order.
    members : Tensor or None
        Completions of the groups, one group after the other, some twice to fill the last group of a prompt; None if
        they are all completions in order.
    place : Tensor or None
        Where in ``members`` each completion is; None with ``members``.
    mask : Tensor or None
        What is added to the scores of each group's prompt: -inf at padding, shape (groups, 1, 1, tokens).
    """

    prompts: Tensor | None
    members: Tensor | None
    place: Tensor | None
    mask: Tensor | None


def _layout(prompt: _Int64, lengths: _Int64, device: torch.device) -> _Layout:
    """Group the completions of a chunk by prompt; ``lengths`` are the lengths of all prompts of the cache."""
    order = np.argsort(prompt, kind="stable")
    found, counts = np.unique(prompt, return_counts=True)
    size = _group_size(counts)
    groups = -(-counts // size)
    starts = np.cumsum(counts) - counts
    # Position of every member among the sorted completions; what is beyond the last one of a prompt repeats it.
    within = np.arange(int(groups.sum()) * size) - np.repeat((np.cumsum(groups) - groups) * size, groups * size)
    members = order[np.repeat(starts, groups * size) + np.minimum(within, np.repeat(counts - 1, groups * size))]
    prompts = np.repeat(found, groups)
    place = np.empty(prompt.size, np.int64)
    place[members[::-1]] = np.arange(members.size)[::-1]
    in_order = members.size == prompt.size and bool((members == np.arange(members.size)).all())
    all_prompts = np.array_equal(prompts, np.arange(lengths.size))
    mask = None
    if (lengths[found] < lengths.max()).any():
        padding = torch.arange(int(lengths.max()))[None] < torch.from_numpy(lengths.max() - lengths[prompts])[:, None]
        mask = torch.zeros(padding.shape).masked_fill_(padding, -math.inf)[:, None, None].to(device)
    return _Layout(
        prompts=None if all_prompts else torch.from_numpy(prompts).to(device),
        members=None if in_order else torch.from_numpy(members).to(device),
        place=None if in_order else torch.from_numpy(place).to(device),
        mask=mask,
    )


def _group_size(counts: _Int64) -> int:
    """Return the group size that costs least: filled-up places cost a completion, and groups a copy of their keys."""
    sizes = np.unique(np.concatenate([counts, 2 ** np.arange(10)]))
    groups = -(-counts[None] // sizes[:, None])
    # Copying a prompt's keys costs about as much as half a completion's reading them.
    cost = (groups * sizes[:, None]).sum(1) + 0.5 * (groups - 1).sum(1)
    return int(sizes[np.argmin(cost)])


@dataclass(slots=True)
class _Chunk:
    """What the attention needs of the call it is in: the layout, and the layer whose keys came last."""

    layout: _Layout
    keys: Tensor | None = None
    values: Tensor | None = None


_CHUNK: ContextVar[_Chunk] = ContextVar("pope_fast.score.continuation")


@contextmanager
def split_attention(config: Any, prompt: _Int64, lengths: _Int64, device: torch.device) -> Iterator[None]:
    """Within it, the model attends to prompts and completions apart.

    Parameters
    ----------
    config
        The model's configuration; its attention is put back afterwards.
    prompt : int64 array of shape (n,)
        Index in the cache of the prompt of each completion.
    lengths : int64 array
        Length of each prompt of the cache; the longest is not padded, the others are on the left.
    device : torch.device
    """
    AttentionInterface.register(_NAME, _attend)
    before = config._attn_implementation
    config._attn_implementation = _NAME
    token = _CHUNK.set(_Chunk(_layout(prompt, lengths, device)))
    try:
        yield
    finally:
        _CHUNK.reset(token)
        config._attn_implementation = before


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend to the prompt and to the completion, and merge: the interface of transformers' attention functions.

    Parameters
    ----------
    query : Tensor of shape (completions, heads, tokens, width)
    key, value : Tensor of shape (completions, key heads, tokens, width)

    Returns
    -------
    Tensor of shape (completions, tokens, heads, width), and None
    """
    asked = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if asked or attention_mask is not None or not getattr(module, "is_causal", True):
        raise CannotShareError(f"its attention is special: {', '.join(asked) or 'masked'}")
    chunk = _CHUNK.get()
    if chunk.keys is None or chunk.values is None:
        raise CannotShareError("a layer attends without keys of its own")
    keys, values, layout = chunk.keys, chunk.values, chunk.layout
    chunk.keys = chunk.values = None
    if layout.prompts is not None:
        keys, values = keys[layout.prompts], values[layout.prompts]
    readers = query if layout.members is None else query[layout.members]

    # Nothing orders the readers of a prompt: the members of a group, and the heads that read one key head, become one
    # long query. Dimensions: group, member, key head, head of it, token, width.
    groups, key_heads = keys.shape[0], key.shape[1]
    members, repeats = readers.shape[0] // groups, query.shape[1] // key_heads
    tokens, width = query.shape[2:]
    long = readers.reshape(groups, members, key_heads, repeats, tokens, width).transpose(1, 2)
    seen, weight = _attention(long.reshape(groups, key_heads, -1, width), keys, values, scaling, layout.mask)
    seen = seen.reshape(groups, key_heads, members, repeats, tokens, -1).transpose(1, 2)
    weight = weight.reshape(groups, key_heads, members, repeats, tokens).transpose(1, 2)
    seen = seen.reshape(groups * members, key_heads * repeats, tokens, -1)
    weight = weight.reshape(seen.shape[:-1])
    if layout.place is not None:
        seen, weight = seen[layout.place], weight[layout.place]

    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    own, own_weight = _attention(query, key, value, scaling, None, causal=True)
    share = torch.sigmoid(weight - own_weight).to(own.dtype)
    return torch.lerp(own, seen, share[..., None]).transpose(1, 2).contiguous(), None


def _attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, mask: Tensor | None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the attention and its log-sum-exp, from the kernels that torch's own attention calls."""
    kernels = torch.ops.aten
    if query.device.type == "cpu":
        mask = None if mask is None else mask.to(query.dtype)
        kernel = kernels._scaled_dot_product_flash_attention_for_cpu
        result: tuple[Tensor, Tensor] = kernel(query, key, value, 0.0, causal, attn_mask=mask, scale=scaling)
        return result
    if query.device.type != "cuda":
        raise CannotShareError(f"there is no such attention on {query.device.type}")
    width = query.shape[3]
    if mask is None and query.dtype.itemsize == 2 and width % 8 == 0 and width == value.shape[3] <= 256:
        kernel = kernels._scaled_dot_product_flash_attention
        attention, weight = kernel(query, key, value, 0.0, causal, False, scale=scaling)[:2]
    else:
        if mask is not None:
            # The kernel reads masks 16 bytes at a time, beyond the last key too.
            size = mask.shape[3]
            mask = functional.pad(mask.to(query.dtype), (0, -size % 16))[..., :size]
            mask = mask.expand(*query.shape[:3], size)
        kernel = kernels._scaled_dot_product_efficient_attention
        attention, weight = kernel(query, key, value, mask, True, 0.0, causal, scale=scaling)[:2]
    return attention, weight[..., : query.shape[2]]
