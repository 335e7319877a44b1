"""Evaluations as JSON: everything in plain dicts, and the shape of lm-evaluation-harness results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pope_fast.errors import PopeError
from pope_fast.evaluate.results import Estimate, Evaluation, PolicyValue

NOT_AVAILABLE = "N/A"
"""What lm-evaluation-harness writes for a standard error that does not exist; its table maker knows it."""


def to_plain(value: object) -> Any:
    """Turn records, mappings and sequences into dicts, lists, strings, booleans and finite numbers.

    NaN and infinities become ``None``, for JSON has no word for them; keys become strings. The verdict on an estimate
    has the codes of its findings; the findings themselves stand once, with the policy.
    """
    if isinstance(value, Estimate):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in fields(value) if f.name != "verdict"}
        return {**plain, "verdict": _level_and_codes(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    item = getattr(value, "item", None)  # a NumPy scalar
    return to_plain(item()) if callable(item) else str(value)


def _level_and_codes(estimate: Estimate) -> dict[str, Any] | None:
    verdict = estimate.verdict
    if verdict is None:
        return None
    return {"level": verdict.level, "findings": list(dict.fromkeys(f.code for f in verdict.findings))}


def evaluation_to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Give everything in an evaluation as plain dicts; differences are a list, as their keys are pairs."""
    return {
        "policies": to_plain(evaluation.policies),
        "settings": to_plain(evaluation.settings),
        "behavior": to_plain(evaluation.behavior),
        "differences": [to_plain(difference) for difference in evaluation.differences.values()],
        "verdict": evaluation.verdict.level,
        "warnings": list(evaluation.warnings),
    }


def harness_results(evaluation: Evaluation) -> dict[str, Any]:
    """Give an evaluation in the shape of lm-evaluation-harness results.

    A policy stands where a task stands, an estimator where a filter stands: ``results[policy]`` has
    ``"utility,sn_tips"``, ``"utility_stderr,sn_tips"``, ``"utility_low,sn_tips"`` and
    ``"utility_high,sn_tips"``, the same for ``diversity``, ``value``, ``group/<label>`` and
    ``welfare/<name>``, and ``"verdict"``, with ``"utility_verdict"`` and so on beside it. A value that
    is not available is null, and its standard error ``"N/A"``. ``pope`` holds everything else.
    """
    settings = to_plain(evaluation.settings)
    versions = settings.pop("versions")
    config = {key: settings[key] for key in ("source", "unit", "level", "estimator", "diversity_weight")}
    return {
        "results": {name: _results_of(policy) for name, policy in evaluation.items()},
        "configs": {name: {"task": name, **settings} for name in evaluation},
        "versions": versions,
        "n-shot": dict.fromkeys(evaluation, 0),
        "higher_is_better": {name: {"utility": True, "diversity": True, "value": True} for name in evaluation},
        "n-samples": {
            name: {"original": policy.diagnostics.n_rows, "effective": to_plain(policy.diagnostics.ess)}
            for name, policy in evaluation.items()
        },
        "config": config,
        "pope_version": versions.get("pope_fast"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "pope": evaluation_to_dict(evaluation),
    }


def dumps(content: Mapping[str, Any]) -> str:
    """Write plain content as indented JSON; NaN in it would be a defect and raises ``ValueError``."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def load_truth(path: str | Path) -> dict[str, Any]:
    """Read the truth file that :mod:`pope_fast.simulate` writes beside a log.

    Raises
    ------
    PopeError
        If the file is not there, is not JSON, or has no ``policies``.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PopeError(f"cannot read the truth file {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise PopeError(f"the truth file {path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("policies"), dict):
        raise PopeError(f"the truth file {path} has no 'policies'; 'pope simulate' writes one beside each log")
    for name, policy in content["policies"].items():
        if not isinstance(policy, dict):
            raise PopeError(f"the truth file {path} has no numbers by name for the policy {name!r}")
    return content


def _results_of(policy: PolicyValue) -> dict[str, Any]:
    results: dict[str, Any] = {"alias": policy.policy}
    _put(results, "value", policy.value, filter_name=policy.utility.name)
    _put(results, "utility", policy.utility)
    for name, estimate in policy.utility_estimators.items():
        if name != policy.utility.name:
            _put(results, "utility", estimate, filter_name=name)
    if policy.diversity is not None:
        _put(results, "diversity", policy.diversity)
    if policy.diversity_detail is not None:
        for name, estimate in policy.diversity_detail.measures.items():
            if policy.diversity is None or name != policy.diversity.name:
                _put(results, "diversity", estimate, filter_name=name)
    for label, estimate in policy.groups.items():
        _put(results, f"group/{label}", estimate)
    for name, estimate in policy.welfare.items():
        _put(results, f"welfare/{name}", estimate, filter_name=policy.utility.name)
    results["verdict"] = policy.verdict.level
    for metric, quantity in _metrics(policy):
        if quantity.verdict is not None:
            results[f"{metric}_verdict"] = quantity.verdict.level
    return results


def _metrics(policy: PolicyValue) -> list[tuple[str, Estimate]]:
    """Give the quantities that have a verdict of their own, under the names of their metrics."""
    main = {"value": policy.value, "utility": policy.utility, "diversity": policy.diversity}
    return [
        *((metric, estimate) for metric, estimate in main.items() if estimate is not None),
        *((f"group/{label}", estimate) for label, estimate in policy.groups.items()),
        *((f"welfare/{name}", estimate) for name, estimate in policy.welfare.items()),
    ]


def _put(results: dict[str, Any], metric: str, estimate: Estimate, filter_name: str | None = None) -> None:
    name = filter_name or estimate.name
    error = to_plain(estimate.standard_error)
    results[f"{metric},{name}"] = to_plain(estimate.value)
    results[f"{metric}_stderr,{name}"] = NOT_AVAILABLE if error is None else error
    if estimate.interval is not None:
        results[f"{metric}_low,{name}"] = to_plain(estimate.interval.low)
        results[f"{metric}_high,{name}"] = to_plain(estimate.interval.high)
