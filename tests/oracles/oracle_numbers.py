"""The numbers that other libraries printed on shared inputs, and those inputs as arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DATA = Path(__file__).parent / "data"


def oracle(name: str) -> Any:
    return json.loads((DATA / "oracles.json").read_text())[name]


@dataclass(frozen=True)
class BanditRounds:
    """40 logged rounds with 4 actions: what the bandit libraries were given."""

    logw: npt.NDArray[np.float64]
    reward: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.float64]
    predicted_mean: npt.NDArray[np.float64]
    unit: npt.NDArray[np.int64]


def bandit_rounds() -> BanditRounds:
    raw = json.loads((DATA / "bandit_inputs.json").read_text())
    pi_b, pi_e, q_hat = (np.array(raw[key]) for key in ("pi_b", "pi_e", "q_hat"))
    rounds, action = np.arange(raw["n"]), np.array(raw["action"])
    return BanditRounds(
        logw=np.log(pi_e[rounds, action]) - np.log(pi_b[rounds, action]),
        reward=np.array(raw["reward"], dtype=np.float64),
        predicted=q_hat[rounds, action],
        predicted_mean=np.sum(pi_e * q_hat, axis=1),
        unit=rounds,
    )
