"""The whole pipeline on a text log, from a model that is trained in the test to estimates that hold."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import pytest

from pope_fast.errors import PopeWarning

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "text_log.py"


@pytest.mark.slow
def test_estimates_from_text_agree_with_fresh_answers() -> None:
    spec = importlib.util.spec_from_file_location("text_log", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PopeWarning)
        compared = module.main()
    assert [name for name, _, _ in compared] == ["plural", "majority"]
    for _, estimate, truth in compared:
        for quantity in ("utility", "diversity"):
            found, known = getattr(estimate, quantity), getattr(truth, quantity)
            # The truth is a mean over fresh draws and has an error of its own.
            error = (found.standard_error**2 + known.standard_error**2) ** 0.5
            assert abs(found.value - known.value) < 4 * error
            assert error < 0.1
        assert estimate.verdict.level == "reliable"
    (_, plural, _), (_, majority, _) = compared
    assert majority.utility.value > plural.utility.value
    assert majority.diversity.value < plural.diversity.value
