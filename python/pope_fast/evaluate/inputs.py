"""What the rows of a log give away about how it was made, as findings about its policies."""

from __future__ import annotations

from collections.abc import Sequence

from pope_fast.evaluate.findings import Finding
from pope_fast.log import FeedbackLog, RewardRange
from pope_fast.log.inspection import Inspection, inspect_head, temperature_signs
from pope_fast.log.inspection.inspection import behavior_column

__all__ = ["input_findings"]


def input_findings(
    log: FeedbackLog, inspection: Inspection, policies: Sequence[str], bounds: RewardRange
) -> dict[str, list[Finding]]:
    """Say of each policy what was found about the log's rows.

    Parameters
    ----------
    log
        The log, after its rows were read.
    inspection
        What was seen of them.
    policies
        Target policies.
    bounds
        Range of the reward.

    Returns
    -------
    dict of str to list of Finding
    """
    declared = None if bounds.origin == "observed" else (bounds.low, bounds.high)
    head = inspect_head(log, policies, prompts=inspection.by_prompt is not None)
    signs = inspection.signs(log.columns, head=head, declared=declared)
    if log.sampling is not None:
        signs += temperature_signs(log.sampling, log.schema, behavior_column(log.columns))
    return {
        name: [
            Finding(sign.code, sign.severity, sign.message, sign.share, quantities=sign.quantities)
            for sign in signs
            if sign.concerns(name)
        ]
        for name in policies
    }
