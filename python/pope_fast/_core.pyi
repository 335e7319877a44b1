"""Types of the extension module; `stubtest` holds them against it."""

from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "Snapshot",
    "State",
    "UnitScan",
    "build_info",
    "cluster_pairs",
    "cluster_prompts",
    "compare_labels",
    "dendrograms",
    "hash_lists",
    "hash_strings",
    "num_threads",
    "prompt_scan",
    "sample_keys",
    "sum_tokens",
    "token_sums",
]

_Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int32] | npt.NDArray[np.int64]
_F64 = npt.NDArray[np.float64]
# Shape (rows, width).
_Vectors = npt.NDArray[np.float32] | npt.NDArray[np.float64]

def hash_strings(offsets: _Ints, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]: ...
def hash_lists(offsets: _Ints, values: _Ints) -> npt.NDArray[np.uint64]: ...
def sum_tokens(offsets: npt.NDArray[np.int64], values: _Floats, threads: int | None = None) -> _F64: ...
def token_sums(
    offsets: npt.NDArray[np.int64],
    target: npt.NDArray[np.float32],
    behavior: npt.NDArray[np.float32],
    clip: float,
    threads: int | None = None,
) -> tuple[_F64, _F64, _F64]: ...
def prompt_scan(
    prompt_id: npt.NDArray[np.int64],
    target: _Floats,
    behavior: _Floats,
    reward: _Floats,
    cluster: _Ints | None = None,
    clip: float = 10.0,
    threads: int | None = None,
) -> dict[str, Any]: ...
def sample_keys(
    keys: npt.NDArray[np.uint64], kept: npt.NDArray[np.uint64], level: int, capacity: int
) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.uint64]]: ...
def cluster_prompts(
    offsets: npt.NDArray[np.int64],
    embeddings: npt.NDArray[np.float32],
    thresholds: _F64,
    linkage: str,
    threads: int | None = None,
) -> npt.NDArray[np.int32]: ...
def cluster_pairs(
    offsets: npt.NDArray[np.int64],
    similarities: npt.NDArray[np.float32],
    thresholds: _F64,
    linkage: str,
    keys: npt.NDArray[np.uint64] | None = None,
    counts: npt.NDArray[np.int64] | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.int32]: ...
def dendrograms(
    offsets: npt.NDArray[np.int64],
    embeddings: npt.NDArray[np.float32],
    linkage: str,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.int32], _F64]: ...
def compare_labels(
    offsets: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int32],
    threads: int | None = None,
) -> tuple[npt.NDArray[np.int64], _F64]: ...
def num_threads() -> int: ...
def build_info() -> dict[str, str]: ...

@final
class UnitScan:
    def __new__(cls) -> UnitScan: ...
    def feed(self, keys: npt.NDArray[np.int64]) -> int: ...
    @property
    def n_units(self) -> int: ...

@final
class State:
    def __new__(
        cls,
        policies: list[str],
        reward_range: tuple[float, float],
        *,
        row_units: bool = False,
        has_cluster: bool = False,
        has_group: bool = False,
        has_tokens: bool = False,
        has_baseline: bool = False,
        has_embedding: bool = False,
        cluster_scope: str = "log",
        tail_capacity: int = 32768,
    ) -> State: ...
    def update(
        self,
        unit_key: npt.NDArray[np.int64] | None,
        behavior_logprob: _Floats,
        target_logprobs: list[_Floats],
        reward: _Floats,
        *,
        cluster: _Ints | None = None,
        group: _Ints | None = None,
        count: _F64 | None = None,
        num_tokens: _F64 | None = None,
        baseline: _F64 | None = None,
        baseline_means: list[_F64] | None = None,
        embedding: _Vectors | None = None,
        first_row: int = 0,
        threads: int | None = None,
    ) -> None: ...
    def merge(self, other: State) -> None: ...
    def snapshot(self) -> Snapshot: ...
    def to_bytes(self) -> bytes: ...
    @staticmethod
    def from_bytes(data: bytes) -> State: ...
    @property
    def n_rows(self) -> int: ...

@final
class Snapshot:
    # Options: level, diversity_weight, diversity, diversity_order, repeated_share, order_share, kappa, tau.
    def summary(self, policy: str, **options: Any) -> dict[str, Any]: ...
    def differences(self, policies: list[str], **options: Any) -> list[dict[str, Any]]: ...
    def behavior(self, *, level: float = 0.95) -> dict[str, Any]: ...
