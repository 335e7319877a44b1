"""Every mistake of the list is noticed, and a log without one is not accused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from mistakes import MISTAKES, Mistake, good

from pope_fast.errors import PopeError
from pope_fast.evaluate import evaluate

OWN = {"constant_reward", "rare_reward", "unseen_clusters", "small_group"}
"""Findings whose quantities are tested where they are made."""

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_the_mistake_is_noticed(mistake: Mistake) -> None:
    said = mistake.result()
    assert isinstance(said, PopeError) == mistake.is_error
    if mistake.is_error:
        assert mistake.says in str(said)
    else:
        assert said.quantities == mistake.quantities or mistake.says in OWN


@pytest.mark.parametrize(
    "mistake", [mistake for mistake in MISTAKES if mistake.validated], ids=lambda mistake: mistake.title
)
def test_a_validation_notices_it_too(mistake: Mistake) -> None:
    report = mistake.validation()
    assert report.ok
    assert [sign.code for sign in report.findings] == [mistake.says]
    (sign,) = report.findings
    assert sign.quantities == mistake.quantities
    assert sign.remedy in str(report).replace("\n", " ") or sign.code in str(report)
    assert sign.severity == mistake.result().severity


def test_the_page_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from write_mistakes import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "run scripts/write_mistakes.py"


def test_a_right_log_is_not_accused() -> None:
    verdict = evaluate(pa.table(good()), reward_range=(0.0, 1.0)).verdict
    assert verdict.level == "reliable"
    assert verdict.findings == ()
