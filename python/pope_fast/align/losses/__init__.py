"""Losses: pure functions ``(LossInputs, options) -> (loss, metrics)`` over one batch of logged responses.

>>> from pope_fast.align.losses import LOSSES
>>> sorted(LOSSES)[:3]
['a_lol', 'cispo', 'darling']
"""

from __future__ import annotations

from pope_fast._extras import require

require("torch", "training")

from pope_fast.align.losses.accumulate import BackwardPlan, backward_plan  # noqa: E402
from pope_fast.align.losses.advantages import advantages  # noqa: E402
from pope_fast.align.losses.diverse import darling_loss, diverse_pairs, divpo_loss  # noqa: E402
from pope_fast.align.losses.diversity import Diversity, RunningMarginal  # noqa: E402
from pope_fast.align.losses.inputs import LossInputs  # noqa: E402
from pope_fast.align.losses.objective import Objective, Statistics, pope_statistics  # noqa: E402
from pope_fast.align.losses.pairs import (  # noqa: E402
    Pairs,
    dpo_loss,
    kto_loss,
    make_pairs,
    preference_rows,
    thumb_rows,
)
from pope_fast.align.losses.policy_gradient import (  # noqa: E402
    a_lol_loss,
    cispo_loss,
    gspo_loss,
    ips_pg_loss,
    offline_pg_loss,
    topr_loss,
)
from pope_fast.align.losses.pope import pope_loss  # noqa: E402
from pope_fast.align.losses.registry import LOSSES, LossSpec, get_loss  # noqa: E402
from pope_fast.align.losses.sft import filtered_bc_loss, rwr_loss  # noqa: E402
from pope_fast.align.losses.token_ratio import token_ratio_loss  # noqa: E402
from pope_fast.align.losses.values import dro_v_loss, qrpo_loss  # noqa: E402
from pope_fast.align.losses.weights import WEIGHTINGS, Weighting  # noqa: E402
from pope_fast.align.losses.welfare import welfare  # noqa: E402

__all__ = [
    "LOSSES",
    "WEIGHTINGS",
    "BackwardPlan",
    "Diversity",
    "LossInputs",
    "LossSpec",
    "Objective",
    "Pairs",
    "RunningMarginal",
    "Statistics",
    "Weighting",
    "a_lol_loss",
    "advantages",
    "backward_plan",
    "cispo_loss",
    "darling_loss",
    "diverse_pairs",
    "divpo_loss",
    "dpo_loss",
    "dro_v_loss",
    "filtered_bc_loss",
    "get_loss",
    "gspo_loss",
    "ips_pg_loss",
    "kto_loss",
    "make_pairs",
    "offline_pg_loss",
    "pope_loss",
    "pope_statistics",
    "preference_rows",
    "qrpo_loss",
    "rwr_loss",
    "thumb_rows",
    "token_ratio_loss",
    "topr_loss",
    "welfare",
]
