"""Slow, obvious NumPy twins of every kernel: the oracle in tests and the readable form of the mathematics.

Nothing here is called by the product.  Every function is pure and takes plain one-dimensional arrays, one
entry per row of the log:

=========  ==================================================================================
``logw``   log importance weight, ``target_logprob - behavior_logprob`` in nats; ``-inf`` is weight 0
``reward``  reward in the unit of the log; bounds and rescaled estimators need it in [0, 1]
``cluster``  integer label of the semantic cluster of the response
``unit``   integer identifier of the independent unit, by default the prompt
``count``  multiplicity of the row: how many draws it stands for (None: 1 each)
=========  ==================================================================================

Per-unit arrays that come back are ordered by increasing unit identifier.  For ``unit="row"`` spread the
multiplicities with :func:`pope_fast.reference.units.expand_draws` and use ``unit = arange(n)``.

Modules: ``units`` (units, draws, buckets), ``weights`` (log-probabilities to weights), ``utility``,
``marginal`` (entropy of the average policy), ``diversity`` (within-prompt polynomials), ``pairs`` (diversity from
embeddings), ``clustering`` (responses to one prompt), ``welfare``, ``value`` (U + lambda D), ``intervals``,
``jackknife``, ``tails`` (generalized Pareto, PSIS), ``diagnostics``, ``bounds`` (variance inequalities), ``special``
(Student quantiles).
"""

from __future__ import annotations

from pope_fast.reference import (
    bounds,
    clustering,
    diagnostics,
    diversity,
    intervals,
    jackknife,
    marginal,
    pairs,
    special,
    tails,
    units,
    utility,
    value,
    weights,
    welfare,
)

__all__ = [
    "bounds",
    "clustering",
    "diagnostics",
    "diversity",
    "intervals",
    "jackknife",
    "marginal",
    "pairs",
    "special",
    "tails",
    "units",
    "utility",
    "value",
    "weights",
    "welfare",
]
