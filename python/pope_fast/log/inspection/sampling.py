"""A temperature that the log gives twice, and not alike."""

from __future__ import annotations

import math

import pyarrow as pa

from pope_fast.log.inspection.signs import OTHER_TEMPERATURE, Sign
from pope_fast.log.signals import SamplingCheck, scored_temperature, span

__all__ = ["temperature_signs"]


def temperature_signs(sampling: SamplingCheck, schema: pa.Schema, column: str | None) -> list[Sign]:
    """Find that the sampler's temperature is not the one that the log-probs of the behavior policy were made at.

    Parameters
    ----------
    sampling : SamplingCheck
        What the log's columns say of the sampler.
    schema : pyarrow.Schema
        With what scoring noted of the columns that it made.
    column : str or None
        The behavior policy's log-probs.
    """
    told = sampling.temperatures
    if not told:
        return []
    (name, (low, high)), *others = told.items()
    for other, (its_low, its_high) in others:
        if not (_alike(low, its_low) and _alike(high, its_high)):
            message = (
                f"the log gives the sampler's temperature twice: {span(low, high)} in column {name!r} and "
                f"{span(its_low, its_high)} in {other!r}"
            )
            return [Sign(OTHER_TEMPERATURE, "caution", message, other)]
    scored = None if column is None else scored_temperature(schema, column)
    if scored is None or (_alike(low, scored) and _alike(high, scored)):
        return []
    message = (
        f"responses were sampled at temperature {span(low, high)} (column {name!r}), but the behavior policy was "
        f"scored at {scored:g}: its log-probs are those of another policy"
    )
    return [Sign(OTHER_TEMPERATURE, "caution", message, column)]


def _alike(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6)
