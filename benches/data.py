"""The data of the benchmarks: a log grouped by prompt, and ragged token log-probs, always the same bits."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

CLUSTERS = 12
RESPONSES_PER_PROMPT = (4, 12)
TOKENS_PER_RESPONSE = 120
CLIP = 10.0
TOKEN_CLIP = 0.1


@dataclass(frozen=True, slots=True)
class Log:
    """Columns of a log; the rows of a prompt stand together, 4 to 12 of them and 8 in the mean."""

    prompt_id: npt.NDArray[np.int64]
    target: npt.NDArray[np.float32]
    behavior: npt.NDArray[np.float32]
    reward: npt.NDArray[np.float32]
    cluster: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Log-probs of the tokens of each response: response i has the values offsets[i]:offsets[i + 1]."""

    offsets: npt.NDArray[np.int64]
    target: npt.NDArray[np.float32]
    behavior: npt.NDArray[np.float32]


def make_log(rows: int) -> Log:
    """Return a log whose weights are log-normal with s = 0.6 (effective sample size 70 % of the rows)."""
    rng = np.random.default_rng(20250919)
    fewest, most = RESPONSES_PER_PROMPT
    responses = rng.integers(fewest, most + 1, rows // fewest + 1)
    prompts = int(np.searchsorted(np.cumsum(responses), rows)) + 1
    # Neither sorted nor dense: real identifiers are hashes or database keys.
    keys = np.arange(prompts, dtype=np.int64) * np.int64(2654435761) % np.int64(1 << 40)
    behavior = rng.standard_normal(rows, dtype=np.float32)
    behavior *= 8.0
    behavior -= 60.0
    shift = rng.standard_normal(rows, dtype=np.float32)
    reward = np.tanh(shift)
    reward += 1.0
    reward *= 0.5
    shift *= 0.6
    shift -= 0.18
    shift += behavior
    cluster = (rng.random(rows, dtype=np.float32) ** 2 * CLUSTERS).astype(np.int32)
    return Log(np.repeat(keys, responses[:prompts])[:rows], shift, behavior, reward, cluster)


def make_tokens(responses: int) -> Tokens:
    """Return responses of 1 to 239 tokens, 120 in the mean."""
    rng = np.random.default_rng(2509)
    lengths = rng.integers(1, 2 * TOKENS_PER_RESPONSE, responses)
    offsets = np.zeros(responses + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    behavior = -rng.standard_exponential(int(offsets[-1]), dtype=np.float32)
    target = rng.standard_normal(int(offsets[-1]), dtype=np.float32)
    target *= 0.05
    target += behavior
    np.minimum(target, 0.0, out=target)
    return Tokens(offsets, target, behavior)


def save(data: Log | Tokens, folder: Path) -> None:
    """Write the arrays where other processes find them."""
    folder.mkdir(parents=True, exist_ok=True)
    for field in fields(data):
        np.save(folder / f"{field.name}.npy", getattr(data, field.name))


def load_log(folder: Path) -> Log:
    """Read a log into memory (not mapped: its pages must not be counted as somebody's extra memory later)."""
    return Log(*(np.load(folder / f"{field.name}.npy") for field in fields(Log)))


def load_tokens(folder: Path) -> Tokens:
    """Read the tokens into memory."""
    return Tokens(*(np.load(folder / f"{field.name}.npy") for field in fields(Tokens)))
