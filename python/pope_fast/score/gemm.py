"""Matrix products in float32 on a CPU, by the faster of the two libraries that torch carries.

torch gives float32 products to MKL, which uses AVX2 on processors other than Intel's even where they have AVX-512.
oneDNN does not ask who made the processor: on a Zen 5 core it reached 230 GFLOP/s where MKL reached 105. Both are
float32 throughout; only the order of the sums differs.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["FastLinear", "matmul"]

# Below this many rows oneDNN's rearrangement of the weight costs more than its product gains.
_FEWEST_ROWS = 32


def matmul(rows: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
    """Return ``rows @ columns.T`` for matrices of one dtype: (n, d) and (m, d) give (n, m).

    ``out`` is a buffer that the result may be written to. Not differentiable.
    """
    if _takes(rows, columns):
        product: Tensor = _onednn()(rows, columns, None, "none", [], "")
        return product
    return torch.mm(rows, columns.t(), out=out)


class FastLinear(TorchFunctionMode):
    """Within it, linear layers in float32 on a CPU take the faster library where no gradient is recorded."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the products of linear layers (of GPT-2's transposed ones too), and pass on everything else."""
        if not kwargs and not torch.is_grad_enabled():
            if func is torch.nn.functional.linear and _takes(*args[:2]):
                return _onednn()(*args[:2], args[2] if len(args) > 2 else None, "none", [], "")
            if func is torch.addmm and len(args) == 3 and args[0].ndim == 1 and _takes(args[1], args[2].t()):
                return _onednn()(args[1], args[2].t(), args[0], "none", [], "")
        return func(*args, **(kwargs or {}))


def _takes(rows: Any, columns: Any) -> bool:
    """Return whether oneDNN shall do this product."""
    return (
        type(rows) is Tensor
        and type(columns) in (Tensor, torch.nn.Parameter)
        and rows.dtype == torch.float32 == columns.dtype
        and rows.device.type == "cpu" == columns.device.type
        and columns.ndim == 2
        and rows.shape[-1] > 0
        and rows.numel() >= _FEWEST_ROWS * rows.shape[-1]
        and helps()
    )


@cache
def helps() -> bool:
    """Return whether oneDNN is there, gives the right result, and can be expected to be the faster one."""
    capability = str(torch.backends.cpu.get_cpu_capability())
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not there or not capability.startswith("AVX512") or _made_by_intel():
        return False
    rows, columns, bias = torch.arange(96.0).view(48, 2), torch.tensor([[0.5, -1.0]]), torch.ones(1)
    try:
        found = _onednn()(rows, columns, bias, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(found, rows @ columns.t() + bias)


@cache
def _onednn() -> Callable[..., Tensor]:
    """Return oneDNN's linear layer, the one that torch.compile uses."""
    operator: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
    return operator


def _made_by_intel() -> bool:
    """Return whether the processor is one of Intel's, as far as the system tells."""
    try:
        found = re.search(r"^vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return "GenuineIntel" in (found[1] if found else platform.processor())
