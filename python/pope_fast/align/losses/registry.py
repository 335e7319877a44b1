"""Every loss by its name, with what it needs: for the trainer's ``loss_type`` and for the documentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor

from pope_fast.align.losses.diverse import darling_loss, divpo_loss
from pope_fast.align.losses.inputs import LossInputs
from pope_fast.align.losses.pairs import dpo_loss, kto_loss
from pope_fast.align.losses.policy_gradient import (
    a_lol_loss,
    cispo_loss,
    gspo_loss,
    ips_pg_loss,
    offline_pg_loss,
    topr_loss,
)
from pope_fast.align.losses.pope import pope_loss
from pope_fast.align.losses.sft import filtered_bc_loss, rwr_loss
from pope_fast.align.losses.token_ratio import token_ratio_loss
from pope_fast.align.losses.values import dro_v_loss, qrpo_loss
from pope_fast.errors import PopeError, SchemaError

__all__ = ["LOSSES", "LossSpec", "get_loss"]

Loss = Callable[..., tuple[Tensor, dict[str, float]]]

_NEEDS = {
    "cluster": ("cluster", "cluster the log"),
    "tokens": ("token_logprobs", "score the log token by token: token_logprobs, behavior_token_logprobs and mask"),
    "lengths": ("num_tokens", "give num_tokens or mask"),
    "responses": ("prompt", "log two or more responses to a prompt, and batch them together"),
}


@dataclass(frozen=True, slots=True)
class LossSpec:
    """A loss, and what is known about it.

    Attributes
    ----------
    name : str
        Its name, as in ``loss_type``.
    function : callable
        ``function(batch, **options) -> (loss, metrics)``.
    formula, source : str
        What is minimized, and where it comes from.
    needs : frozenset of str
        ``cluster``; ``tokens`` (log-probabilities of tokens); ``lengths``; ``responses`` (two or more to some prompt);
        ``ref`` (uses the reference policy, which is the behavior policy where none is given).
    additive : bool
        Whether, with the default options and two or more responses to every prompt, the loss of a batch is the mean of
        the losses of its parts weighted by their numbers of prompts, so that gradient accumulation is exact in one
        pass. If not: :func:`backward_plan`.
    """

    name: str
    function: Loss
    formula: str
    source: str
    needs: frozenset[str]
    additive: bool

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options of the loss."""
        return tuple(inspect.signature(self.function).parameters)[1:]

    def check(self, batch: LossInputs) -> None:
        """Check that a batch has what the loss needs.

        Raises
        ------
        SchemaError
            If it has not, with the remedy.
        """
        have = {
            "cluster": batch.cluster is not None,
            "tokens": batch.token_logprobs is not None and batch.behavior_token_logprobs is not None,
            "lengths": batch.num_tokens is not None or batch.mask is not None,
            "responses": bool((batch.prompt_draws() > 1).any()),
            "ref": True,
        }
        for need in sorted(self.needs):
            if not have[need]:
                column, remedy = _NEEDS[need]
                raise SchemaError(f"loss {self.name!r} needs it", column=column, remedy=remedy)


def _spec(name: str, function: Loss, formula: str, source: str, needs: str = "", additive: bool = True) -> LossSpec:
    return LossSpec(name, function, formula, source, frozenset(needs.split()), additive)


_ALL = (
    _spec(
        "pope",
        pope_loss,
        "-(U + lambda D - beta KL), or its score form -sg[w] A log pi - beta log pi, A = (r - b) + lambda (s - b)",
        "POPE (arXiv 2509.19333), in this library's statement",
        "ref",
        additive=False,
    ),
    _spec(
        "rwr",
        rwr_loss,
        "-exp(A / temperature) log pi",
        "RWR (Peters & Schaal 2007), AWR (Peng et al. 2019)",
    ),
    _spec(
        "filtered_bc",
        filtered_bc_loss,
        "-log pi of the best responses",
        "BC% (Chen et al. 2021), RAFT (Dong et al. 2023)",
    ),
    _spec("offline_pg", offline_pg_loss, "-A log pi", "REINFORCE (Williams 1992) on the log"),
    _spec("ips_pg", ips_pg_loss, "-w A", "Swaminathan & Joachims (2015), Metelli et al. (2018)"),
    _spec(
        "a_lol",
        a_lol_loss,
        "-sg[clip(pi / pi_ref, 1 - e, 1 + e)] max(A, 0) log pi",
        "A-LoL (Baheti et al. 2024)",
        "ref",
    ),
    _spec("topr", topr_loss, "-sg[w'] A log pi, w' = 1 if A >= 0 else min(w, 1)", "TOPR (Le Roux et al. 2025)"),
    _spec(
        "cispo",
        cispo_loss,
        "-(1/T) sum_t sg[min(w_t, 1 + e)] A log pi_t",
        "CISPO (MiniMax-M1 2025)",
        "tokens responses",
    ),
    _spec(
        "gspo",
        gspo_loss,
        "-min(s A, clip(s, 1 - e, 1 + e') A), s = w^(1/T)",
        "GSPO (Zheng et al. 2025)",
        "lengths responses",
    ),
    _spec("dro_v", dro_v_loss, "1/2 (r - V - beta l)^2", "DRO-V (Richemond et al. 2024)", "ref"),
    _spec(
        "qrpo",
        qrpo_loss,
        "(q - beta log Z - beta l)^2, Z = beta (exp(1 / beta) - 1)",
        "QRPO (Matrenok et al. 2025)",
        "ref",
    ),
    _spec(
        "kto",
        kto_loss,
        "1 - sigmoid(beta (l - z)) if desirable, else 1 - sigmoid(beta (z - l))",
        "KTO (Ethayarajh et al. 2024)",
        "ref",
        additive=False,
    ),
    _spec(
        "dpo",
        dpo_loss,
        "-log sigmoid(beta (l_chosen - l_rejected))",
        "DPO (Rafailov et al. 2023), IPO (Azar et al. 2023), SLiC (Zhao et al. 2023)",
        "ref responses",
    ),
    _spec(
        "darling",
        darling_loss,
        "-sg[w] (R - b) log pi, R = (r - low) * share of other responses in another cluster",
        "DARLING (Li et al. 2025), off policy",
        "cluster responses",
        additive=False,
    ),
    _spec(
        "divpo",
        divpo_loss,
        "-log sigmoid(beta (l_chosen - l_rejected)), pairs chosen for diversity",
        "DivPO (Lanchantin et al. 2025)",
        "cluster ref responses",
    ),
    _spec(
        "token_ratio",
        token_ratio_loss,
        "-(1/T) sum_t w_t A",
        "OCEAN (Wu et al. 2024), with the logged reward",
        "tokens",
    ),
)

LOSSES: Mapping[str, LossSpec] = MappingProxyType({spec.name: spec for spec in _ALL})
"""All losses by name."""


def get_loss(name: str, **options: Any) -> LossSpec:
    """Look a loss up, and check the names of its options.

    Raises
    ------
    PopeError
        If there is no such loss, or it has no such option.
    """
    if name not in LOSSES:
        raise PopeError(f"there is no loss {name!r}; there are: {', '.join(LOSSES)}")
    spec = LOSSES[name]
    for option in options:
        if option not in spec.options:
            known = ", ".join(spec.options) or "none"
            raise PopeError(f"loss {name!r} has no option {option!r}; it has: {known}")
    return spec
