"""A simulated log with its exact truth, and how both are written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pope_fast.errors import PopeError

if TYPE_CHECKING:
    import pyarrow as pa

Compression = Literal["snappy", "zstd", "gzip", "lz4", "none"]


@dataclass(frozen=True)
class SimulatedLog:
    """A feedback log drawn from a known world.

    Attributes
    ----------
    table : pyarrow.Table
        One row per logged response; the rows of a prompt are contiguous.
    truth : dict
        What the world is: ``kind``, ``seed``, ``parameters``, and for every policy its exact utility,
        diversity and divergences.  Never sampled.
    """

    table: pa.Table
    truth: dict[str, Any]

    def write(self, path: str | Path, *, compression: Compression = "snappy") -> tuple[Path, Path]:
        """Write the log as Parquet and the truth beside it.

        Parameters
        ----------
        path : str or Path
            Parquet file to write; ``LOG.parquet`` gets its truth in ``LOG.truth.json``.
        compression : {"snappy", "zstd", "gzip", "lz4", "none"}
            Parquet compression.

        Returns
        -------
        tuple of Path
            The log and the truth file.

        Raises
        ------
        PopeError
            If the path does not end in ``.parquet``.
        OSError
            If the files cannot be written.
        """
        import pyarrow.parquet as pq

        log = Path(path)
        if log.suffix != ".parquet":
            raise PopeError(f"a simulated log is a Parquet file: {log.name!r} does not end in .parquet")
        pq.write_table(self.table, log, compression=compression)
        truth = log.with_suffix(".truth.json")
        truth.write_text(json.dumps(plain(self.truth), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return log, truth


def plain(value: Any) -> Any:
    """Turn a truth into what JSON can hold: Python numbers, and None for infinity or NaN."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def labeled(codes: npt.NDArray[Any], labels: list[str]) -> pa.DictionaryArray[Any, Any]:
    """Strings as an Arrow dictionary: ``labels[codes]`` without copying a string per row."""
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(labels, type=pa.string()))


def vector_column(vectors: npt.NDArray[Any]) -> pa.FixedSizeListArray[Any, Any]:
    """Rows of a matrix as an Arrow column."""
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), vectors.shape[1])


def make_table(columns: Mapping[str, Any]) -> pa.Table:
    """Build an Arrow table from named NumPy or Arrow arrays."""
    import pyarrow as pa

    return pa.table({name: pa.array(c) if isinstance(c, np.ndarray) else c for name, c in columns.items()})


def check_size(**sizes: int) -> None:
    """Refuse sizes below 1.

    Raises
    ------
    PopeError
        Names the first parameter that is too small.
    """
    for name, size in sizes.items():
        if size < 1:
            raise PopeError(f"{name} must be at least 1, got {size}")


def check_draws(prompts: int, responses: int, seed: int) -> None:
    """Refuse logs without rows, and negative seeds.

    Raises
    ------
    PopeError
        Names the parameter.
    """
    check_size(prompts=prompts, responses=responses)
    if seed < 0:
        raise PopeError(f"seed must be at least 0, got {seed}")
