"""A progress bar with rows per second and time left, for passes that take longer than a person's patience."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Meter", "on_terminal"]

#: Seconds before the bar appears: a short pass should leave no trace on the screen.
PATIENCE = 2.0
_REFRESH = 0.1


def on_terminal() -> bool:
    """Tell whether standard error is a terminal; a process without a console has none (``pythonw``, services)."""
    return sys.stderr is not None and sys.stderr.isatty()


class Meter:
    """Counts rows and, after two seconds on a terminal, shows how fast they go by.

    Parameters
    ----------
    total : int or None
        Number of rows, if known; without it the bar shows the rate alone.
    shown : bool or None
        None shows the bar only if standard error is a terminal; True whatever it is; False never.
    label : str
        What is being done.
    unit : str
        What is counted.
    """

    def __init__(
        self, total: int | None, shown: bool | None = None, label: str = "reading", unit: str = "rows"
    ) -> None:
        self.total = total
        self.label = label
        self.unit = unit
        self.rows = 0
        self._wanted = on_terminal() if shown is None else shown
        self._began = self._drawn = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    @property
    def visible(self) -> bool:
        """Whether the bar is on the screen."""
        return self._progress is not None

    def advance(self, rows: int) -> None:
        """Count more rows."""
        self.rows += rows
        if not self._wanted:
            return
        now = time.monotonic()
        if self._progress is None:
            if now - self._began < PATIENCE:
                return
            self._start()
        elif now - self._drawn < _REFRESH:
            return
        self._drawn = now
        if self._progress is not None and self._task is not None:
            rate = self.rows / max(now - self._began, 1e-9)
            self._progress.update(self._task, completed=self.rows, rate=f"{_short(rate)} {self.unit}/s")

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %" if self.total else f"{{task.completed:,.0f}} {self.unit}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn() if self.total else TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(self.label, total=self.total, rate="")
        self._progress.start()

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _short(rate: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= limit:
            return f"{rate / limit:.1f} {suffix}"
    return f"{rate:.0f}"
