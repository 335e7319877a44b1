"""Welfare of the annotator groups as the utility: what the policy is to be good for, and for whom."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from pope_fast.errors import PopeError

__all__ = ["Welfare", "welfare"]

Welfare = Literal["mean", "nash", "softmin"]


def welfare(
    utilities: Tensor,
    kind: Welfare = "mean",
    *,
    weights: Tensor | None = None,
    temperature: float = 0.1,
    floor: float = 1e-3,
) -> Tensor:
    """Welfare of groups with utilities V_g and shares a_g (which sum to 1), a differentiable scalar.

    ==========  ===========================================================  ==============================
    ``mean``    ``sum_g a_g V_g``                                            utilitarian (Harsanyi 1955)
    ``nash``    ``exp(sum_g a_g log(V_g + floor)) - floor``                  Nash (1950), Kaneko & Nakamura (1979)
    ``softmin`` ``-temperature * log sum_g a_g exp(-V_g / temperature)``     smooth minimum, to egalitarian (Rawls 1971)
    ==========  ===========================================================  ==============================

    Parameters
    ----------
    utilities : Tensor, shape (G,)
        Utility of each group.
    kind : {"mean", "nash", "softmin"}
        The welfare function.
    weights : Tensor, shape (G,), optional
        Shares of the groups; equal by default.
    temperature : float
        Of ``softmin``, in units of utility: to 0 it is the minimum, to infinity the mean.
    floor : float
        Of ``nash``, in units of utility: what keeps the logarithm finite where a batch holds no success of a group.

    Raises
    ------
    PopeError
        If an option is unknown or out of its range, or ``nash`` meets a utility of ``-floor`` or less.
    """
    if kind not in get_args(Welfare):
        raise PopeError(f"welfare must be one of {', '.join(get_args(Welfare))}, not {kind!r}")
    share = torch.full_like(utilities, 1.0 / len(utilities)) if weights is None else weights / weights.sum()
    if kind == "mean":
        return (share * utilities).sum()
    if kind == "softmin":
        if not temperature > 0:
            raise PopeError(f"welfare_temperature must be positive, not {temperature}")
        return -temperature * torch.logsumexp(share.log() - utilities / temperature, dim=0)
    if not floor > 0:
        raise PopeError(f"the floor of Nash welfare must be positive, not {floor}")
    if bool((utilities <= -floor).any()):
        raise PopeError(
            "Nash welfare needs utilities above 0, measured from the worst outcome. "
            "Remedy: shift the rewards so that the worst is 0, or use welfare='softmin'."
        )
    return (share * (utilities + floor).log()).sum().exp() - floor
