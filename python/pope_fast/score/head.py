"""The last layer of a language model, log-softmax and choice of one token a row, in tiles.

The logits of N rows over a vocabulary of V never exist together: a tile of them is computed, reduced to sums of
exponentials and overwritten. The backward pass computes the tiles again. Sums, maxima and the logit of the chosen token
are in float32 (float64 if an input is), also where weights and hidden states are bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pope_fast.errors import PopeError
from pope_fast.score.gemm import matmul

__all__ = ["Head", "find_decoder", "find_head", "token_logprobs"]

# Without a shift by the maximum, exp(logit) is exact in float32 while logits stay within +-87. A row whose sum leaves
# this range is computed again with the shift; inside it nothing was lost: terms that vanish are below 1e-18 of the sum.
_SMALLEST_SUM, _LARGEST_SUM = 1e-20, 1e30

# Rows x vocabulary of a tile. CPU: 1 MB in float32 for each thread, the size of a second-level cache; both sides large
# enough for the matrix product to run at full speed. GPU: 128 MB, large enough to hide launches.
_CPU_TILE = (256, 1024)
_MOST_CPU_ROWS = 2048
_GPU_TILE = (4096, 8192)

# Rows whose chosen weight vectors are gathered at once.
_GATHERED_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """What turns hidden states into logits: ``cap(scale * (hidden @ weight.T + bias))``.

    Attributes
    ----------
    weight : Tensor of shape (V, d)
    bias : Tensor of shape (V,), or None
    scale : float
        Multiplies the logits (Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``).
    softcap : float or None
        ``cap(z) = softcap * tanh(z / softcap)`` (Gemma 2's ``final_logit_softcapping``).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


def token_logprobs(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    *,
    temperature: float = 1.0,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    """Return the log-probability of one token a row: ``log_softmax(logits / temperature)`` at ``targets``.

    Parameters
    ----------
    hidden : Tensor of shape (N, d)
        Last hidden states, floating.
    targets : int64 Tensor of shape (N,)
        Token ids within 0 and V - 1.
    head : Head
    temperature : float
        Greater than 0.
    tile : (rows, vocabulary), optional
        Shape of a tile of logits; by default what suits the device.

    Returns
    -------
    Tensor of shape (N,)
        float32 (float64 if an input is), in nats; differentiable in ``hidden``, ``head.weight`` and ``head.bias``.

    Raises
    ------
    PopeError
        If shapes do not match, an id is outside the vocabulary or the temperature is not positive.

    Notes
    -----
    Under autocast the operands are cast as those of a linear layer would be. Differentiable once.
    """
    size, width = head.weight.shape
    if hidden.ndim != 2 or hidden.shape[1] != width or targets.shape != hidden.shape[:1]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (hidden, targets, head.weight))
        raise PopeError(f"hidden, targets and head weight must be (N, d), (N,) and (V, d), not {shapes}")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise PopeError(f"the temperature must be positive, not {temperature}")
    if targets.numel() and (int(targets.min()) < 0 or int(targets.max()) >= size):
        raise PopeError(f"a token id is outside the vocabulary of {size}")
    if tile is None:
        tile = _tile(hidden.device)
    weight, bias = head.weight, head.bias
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        numbers = (head.scale, head.softcap, temperature)
        result: Tensor = _TokenLogprobs.apply(hidden, weight, bias, targets, numbers, tile)
    return result


def _tile(device: torch.device) -> tuple[int, int]:
    """Return the shape of a tile that suits a device."""
    if device.type != "cpu":
        return _GPU_TILE
    return min(_MOST_CPU_ROWS, _CPU_TILE[0] * torch.get_num_threads()), _CPU_TILE[1]


@dataclass(frozen=True, slots=True)
class _Operands:
    """Hidden states and head in the dtypes that the products take, and the tiles."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    temperature: float
    tile: tuple[int, int]
    folded: float = 1.0

    @classmethod
    def of(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, numbers: tuple[float, float | None, float], tile: Any
    ) -> _Operands:
        """Promote the hidden states to what the products take; the weight follows tile by tile."""
        dtype = torch.promote_types(hidden.dtype, weight.dtype)
        if dtype != torch.float64 and not _multiplies(hidden.device, dtype):
            dtype = torch.float32
        hidden = hidden.to(dtype)
        scale, softcap, temperature = numbers
        if dtype.itemsize >= 4 and bias is None:
            # One multiplication of the hidden states saves one of every logit.
            inner = scale / (softcap or temperature)
            hidden = hidden * inner if inner != 1 else hidden
            return cls(hidden, weight, None, 1.0, softcap, temperature, tile, folded=inner)
        return cls(hidden, weight, bias, scale / (softcap or temperature), softcap, temperature, tile)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of logits and sums."""
        return torch.promote_types(self.hidden.dtype, torch.float32)

    @property
    def outer(self) -> float:
        """Factor of the logits after the cap."""
        return 1.0 if self.softcap is None else self.softcap / self.temperature

    def vocabulary(self) -> Iterator[tuple[slice, Tensor]]:
        """Return the tiles of the weight, in the dtype of the products."""
        for start in range(0, self.weight.shape[0], self.tile[1]):
            part = slice(start, start + self.tile[1])
            yield part, self.weight[part].to(self.hidden.dtype)

    def rows(self) -> Iterator[slice]:
        """Return the tiles of the rows."""
        for start in range(0, self.hidden.shape[0], self.tile[0]):
            yield slice(start, min(start + self.tile[0], self.hidden.shape[0]))

    def buffer(self) -> Tensor:
        """Return the memory of a tile of logits."""
        elements = min(self.tile[0], self.hidden.shape[0]) * min(self.tile[1], self.weight.shape[0])
        return torch.empty(elements, dtype=self.dtype, device=self.hidden.device)

    def bend(self, logits: Tensor, part: slice | Tensor) -> Tensor:
        """Apply bias and scale in place; under a cap the tangent too, so that the logits are ``outer`` times this."""
        if self.bias is not None:
            logits.add_(self.bias[part])
        if self.scale != 1:
            logits.mul_(self.scale)
        return logits if self.softcap is None else logits.tanh_()

    def tile_logits(self, rows: slice | Tensor, part: slice, weight: Tensor, buffer: Tensor) -> Tensor:
        """Return a tile of the logits, not yet multiplied by ``outer``."""
        hidden = self.hidden[rows]
        out = buffer[: hidden.shape[0] * weight.shape[0]].view(hidden.shape[0], weight.shape[0])
        return self.bend(_product(hidden, weight, out), part)

    def target_logits(self, targets: Tensor) -> Tensor:
        """Return the logits of the chosen tokens, not yet multiplied by ``outer``."""
        parts = []
        for start in range(0, targets.numel(), _GATHERED_ROWS):
            chosen = targets[start : start + _GATHERED_ROWS]
            product = self.hidden[start : start + _GATHERED_ROWS].to(self.dtype) * self.weight[chosen].to(self.dtype)
            parts.append(self.bend(product.sum(1), chosen))
        return torch.cat(parts) if parts else self.hidden.new_empty(0, dtype=self.dtype)

    def logsumexp(self) -> Tensor:
        """Return the logarithm of the sum of exponentials of each row's logits."""
        sums = torch.zeros(self.hidden.shape[0], dtype=self.dtype, device=self.hidden.device)
        buffer = self.buffer()
        for part, weight in self.vocabulary():
            for rows in self.rows():
                logits = self.tile_logits(rows, part, weight, buffer)
                if self.outer != 1:
                    logits.mul_(self.outer)
                sums[rows] += logits.exp_().sum(1)
        result = sums.log()
        beyond = torch.nonzero(~((sums > _SMALLEST_SUM) & (sums < _LARGEST_SUM)))[:, 0]
        for start in range(0, beyond.numel(), self.tile[0]):
            chosen = beyond[start : start + self.tile[0]]
            result[chosen] = self._shifted_logsumexp(chosen, buffer)
        return result

    def _shifted_logsumexp(self, rows: Tensor, buffer: Tensor) -> Tensor:
        """Return the same for some rows, with the running maximum taken off before every exponential."""
        highest = torch.full(rows.shape, -math.inf, dtype=self.dtype, device=rows.device)
        sums = torch.zeros_like(highest)
        for part, weight in self.vocabulary():
            logits = self.tile_logits(rows, part, weight, buffer).mul_(self.outer)
            higher = torch.maximum(highest, logits.amax(1))
            # A row of nothing but -inf so far has no maximum to take off.
            shift = torch.where(higher.isinf(), torch.zeros_like(higher), higher)
            sums = sums * (highest - shift).exp() + logits.sub_(shift[:, None]).exp_().sum(1)
            highest = higher
        return highest + sums.log()


class _TokenLogprobs(torch.autograd.Function):
    """Log-probs of chosen tokens; the backward pass computes the tiles of the forward pass again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        numbers: tuple[float, float | None, float],
        tile: tuple[int, int],
    ) -> Tensor:
        operands = _Operands.of(hidden, weight, bias, numbers, tile)
        total = operands.logsumexp()
        ctx.save_for_backward(hidden, weight, bias, targets, total)
        ctx.numbers, ctx.tile = numbers, tile
        return operands.target_logits(targets) * operands.outer - total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, total = ctx.saved_tensors
        operands = _Operands.of(hidden, weight, bias, ctx.numbers, ctx.tile)
        found = _gradients(operands, targets, total, gradients[0].to(operands.dtype), ctx.needs_input_grad)
        inputs = (hidden, weight, bias)
        typed = (
            None if gradient is None or like is None else gradient.to(like.dtype)
            for gradient, like in zip(found, inputs, strict=True)
        )
        return (*typed, None, None, None)


def _gradients(
    operands: _Operands, targets: Tensor, total: Tensor, gradient: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of hidden states, weight and bias, those that are needed."""
    hidden, dtype = operands.hidden, operands.dtype
    # Where the hidden states were multiplied by the scale, their gradient is, and the weight's has it in it already.
    folded = operands.folded
    factor = gradient * (operands.scale * operands.outer)
    chosen = operands.target_logits(targets)
    at_target = factor if operands.softcap is None else factor * (1 - chosen * chosen)
    buffer = operands.buffer()
    for_hidden = torch.zeros_like(hidden, dtype=dtype) if needed[0] else None
    for_weight = torch.zeros_like(operands.weight) if needed[1] else None
    for_bias = torch.zeros_like(operands.weight[:, 0], dtype=dtype) if needed[2] else None
    for part, weight in operands.vocabulary():
        column_sum = torch.zeros(weight.shape, dtype=dtype, device=hidden.device) if needed[1] else None
        for rows in operands.rows():
            logits = operands.tile_logits(rows, part, weight, buffer)
            slope = None if operands.softcap is None else 1 - logits * logits
            share = logits.mul_(operands.outer).sub_(total[rows, None]).exp_().mul_(-factor[rows, None])
            if slope is not None:
                share.mul_(slope)
            own = targets[rows, None] - part.start
            inside = (own >= 0) & (own < weight.shape[0])
            # Rows whose token is in another tile add nothing to their first column.
            share.scatter_add_(1, own * inside, at_target[rows, None] * inside)
            if for_bias is not None:
                for_bias[part] += share.sum(0)
            share = share.to(hidden.dtype)
            if for_hidden is not None:
                for_hidden[rows] += _product(share, weight.t(), None)
            if column_sum is not None:
                column_sum += _product(share.t(), hidden[rows].t(), None)
        if for_weight is not None and column_sum is not None:
            for_weight[part] = column_sum
    if for_hidden is not None and folded != 1:
        for_hidden *= folded
    return for_hidden, for_weight, for_bias


def _product(rows: Tensor, columns: Tensor, out: Tensor | None) -> Tensor:
    """Return ``rows @ columns.T`` in float32 at least."""
    if rows.dtype.itemsize >= 4:
        return matmul(rows, columns, out)
    return _mixed_product(rows, columns, out)


def _mixed_product(rows: Tensor, columns: Tensor, out: Tensor | None) -> Tensor:
    """Multiply matrices of 16-bit numbers into one of float32, without rounding in between."""
    if out is None:
        out = torch.empty(rows.shape[0], columns.shape[0], dtype=torch.float32, device=rows.device)
    return torch.mm(rows, columns.t(), out_dtype=torch.float32, out=out)


@cache
def _multiplies(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the device multiplies matrices of 16-bit numbers into one of float32."""
    if device.type == "cpu":
        return False
    ones = torch.ones(16, 16, device=device, dtype=dtype)
    try:
        return float(_mixed_product(ones, ones, None).sum()) == 16**3
    except (RuntimeError, TypeError, ValueError):
        return False


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within it, the model neither drops out nor records gradients; afterwards every module is as it was."""
    # Not inference mode: what a model caches of itself in there could not be trained with afterwards.
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def probe_ids(model: Any, rows: int = 1, length: int = 12) -> Tensor:
    """Return token ids to try a model with: the same every time, whatever the state of torch's generator."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.get_input_embeddings().weight.shape[0], (rows, length), generator=generator)
    return ids.to(input_device(model))


def input_device(model: Any) -> torch.device:
    """Return where a model takes its token ids."""
    embeddings = model.get_input_embeddings()
    # Weights that accelerate keeps elsewhere come to this device when they are needed.
    hook = getattr(embeddings, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return embeddings.weight.device if device is None else torch.device(device)


def find_decoder(model: Any) -> Any | None:
    """Return the part of a causal language model that ends with the last hidden states; None if there is none.

    Adapters that are injected into the layers (LoRA and its kin) are inside it; those that add virtual tokens are not.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not hasattr(inner, "get_decoder"):
        return None
    decoder = inner.get_decoder()
    return None if decoder is inner or decoder is None else decoder


def find_head(model: Any) -> Head | None:
    """Express the last layer of a causal language model as a :class:`Head`.

    Parameters
    ----------
    model : transformers.PreTrainedModel or peft.PeftModel

    Returns
    -------
    Head or None
        With the model's own parameters, not copies. None if the head does something else: it carries an adapter, is
        quantized, or its logits on a few tokens differ from the model's.
    """
    decoder = find_decoder(model)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    linear = _plain_linear(inner.get_output_embeddings() if decoder is not None else None)
    if linear is None or decoder is None:
        return None
    with evaluating(model):
        ids = probe_ids(model)
        logits = model(input_ids=ids, use_cache=False).logits[0]
        try:
            hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return None
    wanted = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shapes = (*wanted.shape, hidden.shape[1]), (hidden.shape[0], *linear.weight.shape)
    if shapes[0] != shapes[1] or hidden.device != linear.weight.device:
        return None
    # In parts: a copy of the whole weight in float32 may not fit beside the model.
    parts = torch.split(linear.weight.detach(), _GPU_TILE[1])
    raw = torch.cat([hidden.to(wanted.dtype) @ part.to(wanted.dtype).t() for part in parts], 1)
    if linear.bias is not None:
        raw += linear.bias.detach()
    # 16-bit logits are rounded by the model, ours are not.
    close = {torch.bfloat16: 2e-2, torch.float16: 4e-3}.get(hidden.dtype, 1e-4) * float(wanted.abs().max())
    for scale, softcap in _candidates(inner.config, raw, wanted):
        found = raw * scale if softcap is None else torch.tanh(raw * (scale / softcap)) * softcap
        if float((found - wanted).abs().max()) <= close:
            return Head(linear.weight, linear.bias, scale, softcap)
    return None


def _plain_linear(layer: Any) -> nn.Linear | None:
    """Return a layer that multiplies by its weight and does nothing else."""
    # A head trained in full beside an adapter is wrapped with a copy for each adapter.
    if hasattr(layer, "modules_to_save") and hasattr(layer, "original_module"):
        names = [] if layer.disable_adapters else list(layer.active_adapters)
        saved = [layer.modules_to_save[name] for name in names if name in layer.modules_to_save]
        layer = saved[0] if saved else layer.original_module
    # A layer with places for adapters is itself while none of them is in use, or after they were merged into it.
    if hasattr(layer, "base_layer") and hasattr(layer, "adapter_layer_names"):
        held = {name for part in layer.adapter_layer_names for name in getattr(layer, part, {})}
        if layer.merged or layer.disable_adapters or held.isdisjoint(layer.active_adapters):
            layer = layer.base_layer
    if type(layer) is not nn.Linear or layer.weight.ndim != 2 or not layer.weight.is_floating_point():
        return None
    # DTensor and the like are subclasses: their tiles are not what they seem.
    return layer if type(layer.weight.data) is Tensor else None


def _candidates(config: Any, raw: Tensor, wanted: Tensor) -> Iterator[tuple[float, float | None]]:
    """Return scales and caps that a configuration may mean; at last the scale that fits."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    caps = {getattr(config, "final_logit_softcapping", None), None}
    scales = [1.0]
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value > 0:
            scales += [float(value), 1 / float(value)]
    for cap in sorted(caps, key=lambda cap: cap is None):
        yield from ((scale, cap) for scale in dict.fromkeys(scales))
    if wanted.dtype == torch.float32:
        yield float((raw.double() * wanted).sum() / raw.double().square().sum()), None
