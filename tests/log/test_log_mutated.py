"""Files with changed bytes are read or refused; none ends the process, none is called a defect."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pope_fast.errors import SchemaError
from pope_fast.log import read_log, validate

FAULTS = Path(__file__).parents[2] / "benches" / "faults"
OTHERS = ("tokens", "embeddings", "jsonl", "csv", "gzip", "zstd", "truth", "state")


@pytest.mark.parametrize(("target", "mutations"), [("parquet", 300), *((name, 40) for name in OTHERS)])
def test_no_mutation_ends_the_process(target: str, mutations: int) -> None:
    command = [sys.executable, str(FAULTS / "mutate.py"), "--targets", target, "--mutations", str(mutations)]
    ran = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True, timeout=300)
    result = json.loads(ran.stdout)["targets"][target]
    assert ran.returncode == 0, result
    assert result["mutations"] == mutations
    assert result["outcomes"]["refused"] > mutations // 10


def test_a_byte_of_the_footer_that_ended_the_process() -> None:
    path = FAULTS / "corpus" / "footer_byte.parquet"
    with pytest.raises(SchemaError, match="not a whole Parquet file"):
        read_log(path).to_arrow()
    assert not validate(path).ok
