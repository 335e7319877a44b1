"""Interval charts as inline SVG: a line from low to high, a dot at the estimate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pope_fast.evaluate.results import Estimate
from pope_fast.report.words import figure

HEIGHT = 24
MARGIN = 2.5
"""Left and right of the axis, in percent of the width."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear axis that several charts share, so that their intervals can be compared by eye."""

    low: float
    high: float

    @classmethod
    def around(cls, estimates: Iterable[Estimate], extra: Iterable[float] = ()) -> Scale:
        """Make the smallest axis that shows every interval, estimates without one, and the extra values."""
        values = [x for x in extra if math.isfinite(x)]
        for estimate in estimates:
            # A point far outside its interval is no reason to press all intervals flat: it sits at the edge.
            interval = estimate.interval
            shown = (estimate.value,) if interval is None else (interval.low, interval.high)
            values.extend(x for x in shown if x is not None and math.isfinite(x))
        if not values:
            return cls(0.0, 1.0)
        low, high = min(values), max(values)
        room = 0.04 * (high - low) or max(0.5 * abs(high), 0.5)
        return cls(low - room, high + room)

    def x(self, value: float) -> str:
        """Give the horizontal place of a value, kept inside the picture, in percent of the width."""
        share = (value - self.low) / (self.high - self.low)
        return f"{MARGIN + min(1.0, max(0.0, share)) * (100 - 2 * MARGIN):.2f}%"


def interval_chart(
    estimate: Estimate, scale: Scale, *, reference: float | None = None, truth: float | None = None
) -> str:
    """Draw one estimate with its headline interval, a dashed reference line, and the truth if it is known."""
    middle = HEIGHT // 2
    spoken = f"{estimate.name}: {figure(estimate.value)}"
    marks = [f'<line class="axis" x1="0" x2="100%" y1="{middle}" y2="{middle}"/>']
    if reference is not None:
        x = scale.x(reference)
        marks.append(f'<line class="ref" x1="{x}" x2="{x}" y1="1" y2="{HEIGHT - 1}"/>')
    if estimate.interval is not None:
        low, high = scale.x(estimate.interval.low), scale.x(estimate.interval.high)
        spoken += f", from {figure(estimate.interval.low)} to {figure(estimate.interval.high)}"
        marks.append(f'<line class="span" x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>')
    if estimate.value is not None:
        marks.append(f'<circle class="dot" cx="{scale.x(estimate.value)}" cy="{middle}" r="5"/>')
    if truth is not None:
        # A nested picture, because a path knows no percentages.
        marks.append(f'<svg x="{scale.x(truth)}" overflow="visible"><path class="truth" d="M0 5l4 -5h-8z"/></svg>')
        spoken += f", truth {figure(truth)}"
    return f'<svg class="chart" height="{HEIGHT}" role="img"><title>{_text(spoken)}</title>{"".join(marks)}</svg>'


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
