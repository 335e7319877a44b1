"""Reading a log must not load libraries that take longer than the log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from log_tables import make_table

HEAVY = ("pandas", "polars", "duckdb", "datasets", "torch", "matplotlib", "ray", "scipy", "rich")

READ = """
import json, sys
import pope_fast
log = pope_fast.read_log(sys.argv[1])
log.reward_range()
rows = sum(len(batch) for batch in log.batches())
print(json.dumps([rows, list(sys.modules)]))
"""


@pytest.mark.parametrize("strings", [False, True])
def test_a_parquet_file_is_read_without_heavy_libraries(tmp_path: Path, strings: bool) -> None:
    table = make_table(group=None)
    if strings:
        ids = [f"prompt {i // 3}" for i in range(120)]
        table = make_table(
            prompt_id=ids,
            completion=[f"text {i}" for i in range(120)],
            sampling=[{"top_p": 1.0}] * 120,
            behavior_token_logprobs=pa.array([[-0.5]] * 120),
        )
    pq.write_table(table, tmp_path / "log.parquet")
    command = [sys.executable, "-c", READ, str(tmp_path / "log.parquet")]
    rows, modules = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert rows == 120
    assert not set(HEAVY) & set(modules)
    assert "pyarrow.dataset" not in modules
