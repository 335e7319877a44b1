"""The methods that are compared, each with the same number of settings to choose from, and the ablations of ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pope_fast.align.losses import LOSSES, Diversity, LossInputs, Objective, Weighting, pope_loss
from pope_fast.align.losses.diversity import prompt_surprisal

LAMBDAS = (0.0, 0.05, 0.1, 0.2)
ABLATED = 0.1
"""lambda of the ablations, and of V where one number is shown."""

RATES = (1.5e-4, 3e-4)
MANY_RATES = (2.5e-5, 5e-5, 1e-4, 2e-4)

Loss = Callable[[LossInputs], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Setting:
    """A configuration of a method: learning rate, and options of its loss."""

    rate: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A few words."""
        return ", ".join([f"rate {self.rate:g}", *(f"{k} {v}" for k, v in self.options.items())])


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes
    ----------
    name, loss : str
        Its name in the tables and in the registry of losses.
    settings : tuple of Setting
        What it may choose from.
    kind : {"scalar", "diverse", "pope"}
        Whether it sees rewards only, was made for diversity, or is ours.
    diversity_weight : float
        lambda of the criterion by which it chooses; that of its objective if it is ours.
    tuned_as : str, optional
        Method whose choice it takes over: then it has had no tuning of its own.
    """

    name: str
    loss: str
    settings: tuple[Setting, ...]
    kind: str = "scalar"
    diversity_weight: float = 0.0
    tuned_as: str | None = None


def grid(rates: tuple[float, ...] = RATES, **options: tuple[Any, ...]) -> tuple[Setting, ...]:
    """All combinations of rates and of the values of at most one option."""
    if not options:
        return tuple(Setting(rate) for rate in rates)
    ((name, values),) = options.items()
    return tuple(Setting(rate, {name: value}) for value in values for rate in rates)


def _pope(weight: float) -> Method:
    tuned = None if weight == 0 else "pope 0"
    return Method(f"pope {weight:g}", "pope", grid((2e-4, 4e-4), clip=(2.0, 5.0)), "pope", weight, tuned)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("rwr", "rwr", grid(temperature=(0.1, 0.3))),
        Method("filtered_bc", "filtered_bc", grid(top=(0.25, 0.5))),
        Method("offline_pg", "offline_pg", grid(MANY_RATES)),
        Method("ips_pg", "ips_pg", grid(truncation=("none", "sn_tips"))),
        Method("a_lol", "a_lol", grid(epsilon=(0.2, 0.9))),
        Method("topr", "topr", grid((1e-4, 2e-4, 3e-4, 4e-4))),
        Method("cispo", "cispo", grid(epsilon_high=(0.28, 1.0))),
        Method("gspo", "gspo", grid(epsilon=(0.1, 0.3))),
        Method("dro_v", "dro_v", grid(beta=(0.05, 0.15))),
        Method("qrpo", "qrpo", grid(beta=(0.05, 0.15))),
        Method("kto", "kto", grid((5e-5, 1.5e-4), beta=(0.1, 0.3))),
        Method("dpo", "dpo", grid((5e-5, 1.5e-4), beta=(0.1, 0.3))),
        Method("token_ratio", "token_ratio", grid(clip=(1.5, 3.0))),
        Method("darling", "darling", grid(MANY_RATES), "diverse", ABLATED),
        Method("divpo", "divpo", grid((5e-5, 1.5e-4), beta=(0.1, 0.3)), "diverse", ABLATED),
        *(_pope(weight) for weight in LAMBDAS),
    )
}

#: Variants of POPE at one lambda: the same settings, one part changed.
ABLATIONS: dict[str, str] = {
    "no weights": "every weight is 1",
    "no truncation": "weights as they are",
    "SN-TIPS truncation": "at sqrt(12) times the mean weight of the batch",
    "PPO taper": "no pull up on a response whose weight is cut",
    "no leave-one-out": "baselines are means that include the response itself",
    "no baseline": "no baselines at all",
    "fixed surprisal": "surprisal under the logger, never refreshed",
    "no KL": "beta = 0",
    "reverse KL": "KL(pi || pi_ref), estimated as k3, instead of KL(pi_ref || pi)",
    "direct form": "differentiated through the truncated weights",
    "Nash welfare": "U is the Nash welfare of the groups",
    "marginal level": "diversity of the average answer over questions",
}

_UNIT_WEIGHTS = Weighting(truncation="clip", clip=1e-30)
"""Every weight is cut to the same number, so that after self-normalization all are 1."""


def make_loss(method: Method, setting: Setting, population: tuple[float, ...], ablation: str | None = None) -> Loss:
    """Return the loss of a method in one of its settings, as a function of the batch alone."""
    options = dict(setting.options)
    if method.loss == "pope":
        return _pope_loss(method.diversity_weight, options["clip"], population, ablation)
    function = LOSSES[method.loss].function
    if "truncation" in options:
        weighting = Weighting(truncation=options.pop("truncation"))
        options |= {"weighting": weighting, "self_normalize": weighting.truncation != "none"}
    if "epsilon" in options and method.loss == "gspo":
        epsilon = options.pop("epsilon")
        options |= {"epsilon_low": epsilon, "epsilon_high": epsilon}
    if method.loss == "token_ratio":
        # With the bare reward, as published, every token of every response is pushed up; a baseline is kinder.
        options["advantage"] = "loo"
    return lambda batch: function(batch, **options)


def _pope_loss(weight: float, clip: float, population: tuple[float, ...], ablation: str | None) -> Loss:
    # All but the clipping is as the losses have it by default.
    objective = Objective(diversity_weight=weight, weighting=Weighting(clip=clip))
    changed = {
        "no weights": {"weighting": _UNIT_WEIGHTS},
        "no truncation": {"weighting": Weighting(truncation="none")},
        "SN-TIPS truncation": {"weighting": Weighting(truncation="sn_tips")},
        "PPO taper": {"weighting": Weighting(clip=clip, taper="ppo")},
        "no KL": {"beta": 0.0},
        "reverse KL": {"kl": "k3"},
        "Nash welfare": {"welfare": "nash", "group_shares": population},
        "marginal level": {"diversity": Diversity(level="marginal")},
    }
    objective = replace(objective, **changed.get(ablation or "", {}))
    baseline = {"no leave-one-out": "mean", "no baseline": "none"}.get(ablation or "", "loo")
    form = "direct" if ablation == "direct form" else "score"
    if ablation == "fixed surprisal":
        return lambda batch: _with_fixed_surprisal(batch, objective)
    return lambda batch: pope_loss(batch, objective, form=form, baseline=baseline)


def _with_fixed_surprisal(batch: LossInputs, objective: Objective) -> tuple[Tensor, dict[str, float]]:
    """Add the surprisal of a response's cluster under the logger to its reward: the linear surrogate."""
    ones = torch.ones(len(batch), dtype=torch.float64)
    surprisal = prompt_surprisal(batch, ones, objective.diversity, torch.ones((), dtype=torch.float64), None)
    reward = batch.reward + objective.diversity_weight * surprisal
    return pope_loss(replace(batch, reward=reward, cluster=None), replace(objective, diversity_weight=0.0))
