"""States that are merged and stored: what does not fit together and bytes that are none."""

from __future__ import annotations

import pickle
import random
import struct
from typing import Any

import numpy as np
import pytest
from core_logs import Log, embedded, make

from pope_fast import _core
from pope_fast.errors import PopeError, StateError

N, K = 60, 5
ROWS = N * K


@pytest.fixture(params=["clusters", "embeddings"])
def log(request: pytest.FixtureRequest) -> Log:
    log = make(0, np.full(N, K)).but(count=np.ones(ROWS), reward_range=(-1.0, 3.0))
    return log if request.param == "clusters" else embedded(log, 0).but(cluster=None)


DIFFERENT: list[dict[str, Any]] = [
    {"policies": ["q"]},
    {"policies": ["p", "q"]},
    {"reward_range": (0.0, 2.0)},
    {"row_units": True},
    {"has_cluster": True},
    {"has_group": True},
    {"has_tokens": True},
    {"has_baseline": True},
    {"has_embedding": True},
    {"cluster_scope": "prompt"},
    {"tail_capacity": 64},
]


@pytest.mark.parametrize("change", DIFFERENT, ids=lambda change: next(iter(change)))
def test_merge_of_different_configurations(change):
    arguments = {"policies": ["p"], "reward_range": (0.0, 1.0)}
    here, there = (_core.State(**x) for x in (arguments, arguments | change))
    with pytest.raises(StateError, match="different configurations"):
        here.merge(there)


def stored(log: Log) -> bytes:
    return log.feed(log.state()).to_bytes()


def test_merge_with_itself(log):
    """Every unit twice is no deadlock; it is the same rows with twice the weight."""
    state = log.feed(log.state())
    state.merge(state)
    assert state.n_rows == 2 * ROWS


@pytest.mark.parametrize(
    "data", [b"", b"x", b"POPEFAST", b"\0" * 64, b"POPEFAST" + b"\xff" * 100, pickle.dumps([1, 2])]
)
def test_bytes_that_are_no_state(data):
    with pytest.raises(StateError, match="not a valid state"):
        _core.State.from_bytes(data)


def test_truncated_bytes(log):
    data = stored(log.rows(np.arange(50)))
    for end in [*range(0, min(len(data), 200)), *range(200, len(data), max(1, len(data) // 200))]:
        with pytest.raises(StateError):
            _core.State.from_bytes(data[:end])
    with pytest.raises(StateError):
        _core.State.from_bytes(data + b"\0")


def test_flipped_bits(log):
    """The checksum sees any of them."""
    data = bytearray(stored(log.rows(np.arange(50))))
    chance = random.Random(0)
    for _ in range(300):
        at, bit = chance.randrange(len(data)), 1 << chance.randrange(8)
        data[at] ^= bit
        with pytest.raises(StateError):
            _core.State.from_bytes(bytes(data))
        data[at] ^= bit


def resealed(data: bytes) -> bytes:
    """The bytes with a checksum that fits: what someone would send who means it."""
    (checksum,) = _core.hash_strings(np.array([0, len(data) - 20]), np.frombuffer(data[20:], dtype=np.uint8).copy())
    return data[:12] + struct.pack("<Q", int(checksum)) + data[20:]


def test_the_seal_is_where_the_test_takes_it_to_be(log):
    data = stored(log)
    assert resealed(data) == data


def test_hostile_bytes(log):
    """With a right checksum, whatever is inside gives an error or a state, but no panic and no huge allocation."""
    data = stored(log.rows(np.arange(40)))
    chance = random.Random(1)
    outcomes = {"state": 0, "error": 0}
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(chance.choice([1, 1, 2, 8])):
            at = chance.randrange(20, len(data))
            width = chance.choice([1, 4, 8])
            value = chance.choice([0, 1, 255, 2**31, 2**62, 2**64 - 1, chance.getrandbits(64)])
            broken[at : at + width] = struct.pack("<Q", value)[:width]
        try:
            state = _core.State.from_bytes(resealed(bytes(broken)))
            state.to_bytes()
            state.snapshot().summary("p")
        except PopeError:
            outcomes["error"] += 1
        else:
            outcomes["state"] += 1
    assert outcomes["error"] > 60


def test_hostile_lengths(log):
    """A length prefix beyond the end asks for no memory."""
    data = stored(log.rows(np.arange(40)))
    for at in range(20, min(len(data) - 8, 2000)):
        broken = data[:at] + struct.pack("<Q", 2**60) + data[at + 8 :]
        try:
            _core.State.from_bytes(resealed(broken))
        except StateError:
            continue
