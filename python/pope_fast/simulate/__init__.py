"""Simulated feedback logs with known truth: five worlds in which every true value is exact, never sampled.

>>> from pope_fast import simulate
>>> log = simulate.table(prompts=100, responses=4, seed=1)
>>> log.table.num_rows
400
>>> round(log.truth["policies"]["near"]["utility"], 3) > log.truth["behavior"]["utility"]
True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pope_fast.errors import PopeError
from pope_fast.simulate.cluster_world import ClusterPolicy, clusters
from pope_fast.simulate.lognormal_world import lognormal
from pope_fast.simulate.no_support_world import PartlySupported, no_support
from pope_fast.simulate.simulated_log import SimulatedLog
from pope_fast.simulate.table_world import table
from pope_fast.simulate.tiny_lm_world import tiny_lm

__all__ = [
    "KINDS",
    "ClusterPolicy",
    "Kind",
    "PartlySupported",
    "SimulatedLog",
    "clusters",
    "lognormal",
    "no_support",
    "simulate",
    "table",
    "tiny_lm",
]


@dataclass(frozen=True)
class Kind:
    """A kind of simulated log, as ``pope simulate`` offers it.

    Attributes
    ----------
    function : callable
        Takes ``prompts``, ``responses`` and ``seed``, and keyword parameters of its own.
    description : str
        One line for the help text.
    """

    function: Callable[..., SimulatedLog]
    description: str


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "table": Kind(table, "Softmax policies over a menu of responses; truth by summation."),
        "lognormal": Kind(lognormal, "Log-normal weights with tails as heavy as you like."),
        "tiny-lm": Kind(tiny_lm, "A language model of 81 sequences, logged token by token."),
        "clusters": Kind(clusters, "Weights that are noise within clusters: marginalizing them pays."),
        "no-support": Kind(no_support, "Target policies with mass that the log never visits."),
    }
)


def simulate(
    kind: str, *, prompts: int | None = None, responses: int | None = None, seed: int = 0, **parameters: Any
) -> SimulatedLog:
    """Simulate a log by the name of its kind.

    Parameters
    ----------
    kind : str
        One of :data:`KINDS`.
    prompts, responses : int, optional
        Logged prompts and responses to each; by default those of the kind.
    seed : int
        Seed of the draws.
    **parameters
        Further parameters of the kind's own function.

    Raises
    ------
    PopeError
        If there is no such kind.
    """
    if kind not in KINDS:
        raise PopeError(f"no simulation named {kind!r}; there are {', '.join(KINDS)}")
    sizes = {"prompts": prompts, "responses": responses}
    given = {name: size for name, size in sizes.items() if size is not None}
    return KINDS[kind].function(seed=seed, **given, **parameters)
