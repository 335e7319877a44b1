"""Fixtures of the log tests."""

from __future__ import annotations

import pyarrow as pa
import pytest
from log_tables import make_table


@pytest.fixture
def table() -> pa.Table:
    """A log without faults."""
    return make_table()
