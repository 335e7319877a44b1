"""From the JSON files of the runs to numbers: means over worlds with intervals, paired differences, coverage."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from methods import ABLATED, ABLATIONS, METHODS
from scipy import stats

Run = dict[str, Any]

VALUES = ("utility", "value", "entropy", "coverage", "worst", "nash", "unclear")


def read(folder: Path, pattern: str) -> list[Run]:
    """Read the JSON files of a pattern, in order of name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over worlds and half the width of its 95 % interval (Student's t)."""
    n = len(values)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5) if n > 1 else None
    return {"mean": float(np.mean(values)), "half": half}


def paired(runs: Iterable[Run], others: Iterable[Run], key: str) -> dict[str, float | None]:
    """Mean difference of a value between two methods on the same worlds, with its interval."""
    one, two = ({run["seed"]: values(run)[key] for run in side} for side in (runs, others))
    return interval([one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())])


def values(run: Run) -> dict[str, float]:
    """Exact values of a run, with V = U + lambda H_3 at the lambda of the ablations."""
    exact = run["exact"]
    return exact | {"value": exact["utility"] + ABLATED * exact["H_3"]}


def by_name(runs: Iterable[Run], key: str) -> dict[str, list[Run]]:
    """Group runs."""
    grouped: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        grouped[run[key]].append(run)
    return dict(grouped)


def alignment_summary(folder: Path) -> dict[str, Any]:
    """Every method: values with intervals, change of capabilities, and who is better than whom."""
    runs = by_name(read(folder, "final-*.json"), "method")
    runs = {name: runs[name] for name in METHODS if name in runs}
    if not runs:
        return {}
    seeds = sorted({run["seed"] for group in runs.values() for run in group})
    logger_runs = [json.loads((folder / f"logger{seed}.json").read_text()) | {"seed": seed} for seed in seeds]
    table = {"logger": _row(logger_runs)} | {name: _row(group) for name, group in runs.items()}
    for name, group in runs.items():
        table[name]["gain"] = {key: paired(group, logger_runs, key) for key in ("utility", "entropy", "coverage")}
    return {
        "seeds": len(seeds),
        "methods": table,
        "dominated": _dominated(runs),
        "against_best_scalar": _against_best(runs),
        "fresh": _fresh(runs),
    }


def _row(runs: list[Run]) -> dict[str, Any]:
    row: dict[str, Any] = {key: interval([values(run)[key] for run in runs]) for key in VALUES}
    if "setting" in runs[0]:
        row["setting"] = runs[0]["setting"]
        row["kl_from_logger"] = interval([run["kl_from_logger"] for run in runs])
        row["ess_fraction"] = interval([run["training"]["ess_fraction"] for run in runs])
        # An ability that the logger of some world lacks altogether has no relative change there.
        known = [key for key in runs[0]["changes"] if all(key in run["changes"] for run in runs)]
        row["changes"] = {key: interval([run["changes"][key] for run in runs]) for key in known}
        row["cpu_seconds"] = float(np.mean([run["cpu_seconds"] for run in runs]))
        row["heldout_error"] = interval([run["heldout"]["utility"] - run["exact"]["utility"] for run in runs])
    return row


def _dominated(runs: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Baselines that are better than POPE at some lambda on utility and on diversity, in the mean over worlds."""
    found = []
    for name, group in runs.items():
        if METHODS[name].kind != "pope":
            continue
        for other, theirs in runs.items():
            if METHODS[other].kind == "pope":
                continue
            for diversity in ("entropy", "coverage"):
                differences = {key: paired(theirs, group, key) for key in ("utility", diversity)}
                if all((d["mean"] or 0.0) > 0 for d in differences.values()):
                    found.append({"pope": name, "baseline": other, "diversity": diversity, **differences})
    return found


def _against_best(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Difference in utility between POPE at lambda 0 and the scalar baseline with the largest mean utility."""
    scalar = {name: group for name, group in runs.items() if METHODS[name].kind == "scalar"}
    if not scalar or "pope 0" not in runs:
        return {}
    best = max(scalar, key=lambda name: float(np.mean([run["exact"]["utility"] for run in scalar[name]])))
    return {
        "baseline": best,
        "difference": paired(runs["pope 0"], scalar[best], "utility"),
        "all": {name: paired(runs["pope 0"], group, "utility") for name, group in scalar.items()},
    }


def _fresh(runs: dict[str, list[Run]]) -> dict[str, Any] | None:
    """How many values of fresh samples are within two standard errors of the exact ones, and which are not within four.

    None if no run has samples that differ, as with models that were hardly trained.
    """
    errors = {
        f"{run['method']} in world {run['seed']}": (run["fresh"]["utility"] - run["exact"]["utility"])
        / run["fresh"]["standard_error"]
        for group in runs.values()
        for run in group
        if run["fresh"]["standard_error"] > 0
    }
    if not errors:
        return None
    near = [abs(z) <= 2 for z in errors.values()]
    far = {name: z for name, z in errors.items() if abs(z) > 4}
    return {"runs": len(errors), "near": float(np.mean(near)), "far": far}


def ablation_summary(folder: Path) -> dict[str, Any]:
    """Every variant less the whole method, paired by world."""
    variants = by_name(read(folder, "ablation-*.json"), "ablation")
    whole = [run for run in read(folder, "final-*.json") if run["method"] == f"pope {ABLATED:g}"]
    if not whole or not variants:
        return {}
    return {
        name: {
            "row": _row(variants[name]),
            "difference": {key: paired(variants[name], whole, key) for key in VALUES},
        }
        for name in ABLATIONS
        if name in variants
    }


def tuning_summary(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What every method had to choose from, and the criterion."""
    return by_name(read(folder, "tune-*.json"), "method")


def evaluation_summary(folder: Path) -> dict[str, Any]:
    """Errors, coverage, ranks and verdicts, for each size of log."""
    path = folder / "evaluation.json"
    if not path.exists():
        return {}
    data = json.loads(path.read_text())
    sizes = sorted({log["prompts"] for log in data["logs"]})
    return {
        "truth": data["truth"],
        "usable": data["usable"],
        "sampled": data["sampled"],
        "sizes": {str(n): _of_size([log for log in data["logs"] if log["prompts"] == n], data) for n in sizes},
    }


def _of_size(logs: list[Run], data: dict[str, Any]) -> dict[str, Any]:
    names = list(logs[0]["policies"])
    return {
        "logs": len(logs),
        "policies": {name: _of_policy([log["policies"][name] for log in logs], data["truth"][name]) for name in names},
        "ranking": _ranking(logs, names, data["truth"]),
        "verdict": _verdict(logs, names, data),
    }


def _of_policy(records: list[Run], truth: dict[str, float]) -> dict[str, Any]:
    def covered(intervals: Iterable[list[float] | None], true: float) -> float | None:
        given = [i for i in intervals if i is not None]
        return float(np.mean([low <= true <= high for low, high in given])) if given else None

    def error(estimates: Iterable[float | None], true: float) -> float:
        given = [e for e in estimates if e is not None]
        return float(np.sqrt(np.mean([(e - true) ** 2 for e in given])))

    u = truth["utility"]
    measures = {record["measure"] for record in records}
    # Logs too small for H_3 show another measure: their diversity is not compared with it.
    same = measures == {"H_3"}
    methods = sorted({method for record in records for method in record["methods"]})
    coverage: dict[str, float | None] = {
        "U headline": covered((r["utility"]["interval"] for r in records), u),
        "D headline": covered((r["diversity"]["interval"] for r in records), truth["H_3"]) if same else None,
        "V headline": covered((r["value"]["interval"] for r in records), truth["value"]) if same else None,
        **{f"U {m}": covered((r["methods"].get(m) for r in records), u) for m in methods},
        "U ips (obp)": covered((r["others"]["ips (obp)"]["interval"] for r in records), u),
        "U snips (obp)": covered((r["others"]["snips (obp)"]["interval"] for r in records), u),
    }
    widths = [r["utility"]["interval"][1] - r["utility"]["interval"][0] for r in records if r["utility"]["interval"]]
    verdicts = [r["verdict"] for r in records]
    return {
        "coverage": coverage,
        "width": float(np.mean(widths)) if widths else None,
        "mean": float(np.mean([r["utility"]["value"] for r in records])),
        "rmse": {
            "sn_tips": error((r["utility"]["value"] for r in records), u),
            "snips": error((r["snips"] for r in records), u),
            "ips": error((r["ips"] for r in records), u),
        },
        "verdicts": {level: verdicts.count(level) for level in ("reliable", "caution", "unreliable")},
    }


def _ranking(logs: list[Run], names: list[str], truth: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Kendall's tau with the true order of U, and of V for what estimates V; mean over logs."""
    columns: dict[str, list[float]] = defaultdict(list)
    true_u = [truth[name]["utility"] for name in names]
    true_v = [truth[name]["value"] for name in names]
    for log in logs:
        records = [log["policies"][name] for name in names]
        estimates = {
            "SN-TIPS": [r["utility"]["value"] for r in records],
            "SNIPS": [r["snips"] for r in records],
            "V by SN-TIPS": [r["value"]["value"] for r in records],
        }
        estimates |= {key: [r["others"][key]["value"] for r in records] for key in records[0]["others"]}
        for key, found in estimates.items():
            tau = stats.kendalltau(true_v if key.startswith("V ") else true_u, found).statistic
            # Equal estimates for all order nothing.
            columns[key].append(0.0 if np.isnan(tau) else float(tau))
    return {key: interval(found) for key, found in columns.items()}


def _verdict(logs: list[Run], names: list[str], data: dict[str, Any]) -> dict[str, Any]:
    """How often estimates of U that pass are usable, and how many of the usable ones pass."""
    counts: dict[str, dict[str, int]] = {
        level: {"usable": 0, "not": 0} for level in ("reliable", "caution", "unreliable")
    }
    for log in logs:
        for name in names:
            record = log["policies"][name]
            off = abs(record["utility"]["value"] - data["truth"][name]["utility"])
            counts[record["verdict"]]["usable" if off <= data["usable"] else "not"] += 1
    passed = {key: counts["reliable"][key] + counts["caution"][key] for key in ("usable", "not")}
    usable = passed["usable"] + counts["unreliable"]["usable"]
    unusable = passed["not"] + counts["unreliable"]["not"]
    refused = sum(counts["unreliable"].values())
    return {
        "counts": counts,
        "precision": passed["usable"] / max(1, sum(passed.values())),
        "recall": passed["usable"] / max(1, usable),
        "unusable_precision": counts["unreliable"]["not"] / max(1, refused),
        "unusable_recall": counts["unreliable"]["not"] / max(1, unusable),
    }
