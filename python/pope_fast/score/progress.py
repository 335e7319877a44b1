"""The progress bar of scoring: tokens per second, and time left."""

from __future__ import annotations

import time

from pope_fast.log.progress import Meter, _short

__all__ = ["TokenMeter"]


class TokenMeter(Meter):
    """A bar like that of reading, which counts tokens."""

    def advance(self, rows: int) -> None:
        """Count more tokens."""
        super().advance(rows)
        if self._progress is not None and self._task is not None:
            rate = self.rows / max(time.monotonic() - self._began, 1e-9)
            self._progress.update(self._task, rate=f"{_short(rate)} tokens/s")
