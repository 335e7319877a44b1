"""Estimators on arrays, for those who have arrays, in the manner of ``scipy.stats``.

Every function takes one element per logged response and returns an :class:`~pope_fast.evaluate.Estimate` or a number.
They read the same native state as :func:`pope_fast.evaluate`, so a number here is that number there, to the bit.

>>> import numpy as np
>>> from pope_fast import ope
>>> target, behavior = np.log([0.5, 0.1, 0.3]), np.log([0.25, 0.2, 0.3])
>>> ope.snips(target, behavior, [1.0, 0.0, 1.0]).value
0.8571428571428571

What may be an interval without assumptions on overlap needs the bounds of the reward: pass ``reward_range``.
A call reads the arrays once; for many numbers of one log, :func:`pope_fast.evaluate` is the cheaper way.
"""

from __future__ import annotations

from pope_fast.ope.arrays import summary
from pope_fast.ope.diversity import coverage, entropy, entropy_within_prompts, gini_simpson, rao, vendi
from pope_fast.ope.utility import baseline_dr, control_variate, dm, dr, ips, psis, sn_tips, sndr, snips, tips
from pope_fast.ope.weights import (
    diagnostics,
    effective_sample_size,
    pareto_k,
    prompt_scan,
    sequence_logprob,
    token_sums,
)

__all__ = [
    "baseline_dr",
    "control_variate",
    "coverage",
    "diagnostics",
    "dm",
    "dr",
    "effective_sample_size",
    "entropy",
    "entropy_within_prompts",
    "gini_simpson",
    "ips",
    "pareto_k",
    "prompt_scan",
    "psis",
    "rao",
    "sequence_logprob",
    "sn_tips",
    "sndr",
    "snips",
    "summary",
    "tips",
    "token_sums",
    "vendi",
]
