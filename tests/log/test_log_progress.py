"""The progress bar: only on a terminal, only after two seconds, gone at the end."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
from log_tables import make_table

from pope_fast.log import progress, read_log
from pope_fast.log.progress import Meter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that the test advances."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Puts a terminal in the place of standard error; pytest puts its own there when the test begins."""

    def install() -> Terminal:
        screen = Terminal()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        return screen

    return install


def test_a_short_pass_shows_nothing(terminal: Callable[[], Terminal], later: Callable[[float], None]) -> None:
    screen = terminal()
    meter = Meter(100)
    later(1.9)
    meter.advance(50)
    assert not meter.visible
    meter.stop()
    assert screen.getvalue() == ""


def test_a_long_pass_shows_rate_and_time_left(terminal: Callable[[], Terminal], later: Callable[[float], None]) -> None:
    screen = terminal()
    meter = Meter(4_000_000)
    later(2.5)
    meter.advance(1_000_000)
    assert meter.visible
    later(0.5)
    meter.advance(500_000)
    meter.stop()
    assert not meter.visible
    assert "500.0 k rows/s" in screen.getvalue()


def test_without_a_total_it_counts(terminal: Callable[[], Terminal], later: Callable[[float], None]) -> None:
    screen = terminal()
    meter = Meter(None)
    later(4)
    meter.advance(1_234)
    meter.stop()
    assert "1,234 rows" in screen.getvalue()
    assert "308 rows/s" in screen.getvalue()


@pytest.mark.parametrize("shown", [None, False])
def test_no_terminal_or_not_wanted(
    monkeypatch: pytest.MonkeyPatch, later: Callable[[float], None], shown: bool | None
) -> None:
    screen = io.StringIO() if shown is None else Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    meter = Meter(100, shown)
    later(10)
    meter.advance(50)
    assert not meter.visible
    assert screen.getvalue() == ""


@pytest.mark.parametrize(("rate", "text"), [(12.0, "12"), (4_500.0, "4.5 k"), (2e6, "2.0 M"), (3.21e9, "3.2 G")])
def test_rates_are_short(rate: float, text: str) -> None:
    assert progress._short(rate) == text


def test_reading_counts_every_row_and_takes_the_bar_away(monkeypatch: pytest.MonkeyPatch) -> None:
    meters: list[Meter] = []
    stopped: list[Meter] = []

    class Spy(Meter):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            meters.append(self)

        def stop(self) -> None:
            stopped.append(self)

    monkeypatch.setattr("pope_fast.log.feedback_log.Meter", Spy)
    log = read_log(make_table())
    list(log.batches(batch_rows=7))
    iterator = log.batches(batch_rows=7)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert [meter.total for meter in meters] == [120, 120]
    assert meters[0].rows == 120
    assert stopped == meters
