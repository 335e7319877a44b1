"""The report: tables in Markdown, the numbers behind them as JSON, and the figures."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from capabilities import LIMIT
from figures import draw
from methods import ABLATED, ABLATIONS, METHODS
from summary import ablation_summary, alignment_summary, evaluation_summary, tuning_summary

HERE = Path(__file__).resolve().parent
PACKAGES = ("pope_fast", "torch", "transformers", "tokenizers", "numpy")


def write_tables(folder: Path, size: dict[str, Any]) -> Path:
    """Write alignment.md, alignment.json and the figures into FOLDER/report; return the Markdown file."""
    report = folder / "report"
    report.mkdir(exist_ok=True)
    results = {
        "size": size,
        "machine": machine(),
        "times": json.loads((folder / "times.json").read_text()),
        "evaluation": evaluation_summary(folder),
        "alignment": alignment_summary(folder),
        "ablation": ablation_summary(folder),
        "tuning": tuning_summary(folder),
    }
    (report / "alignment.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    figures = draw(folder, results, report)
    sections = [
        head(results),
        evaluation(results["evaluation"]),
        alignment(results["alignment"]),
        abilities(results["alignment"]),
        ablation(results["ablation"]),
        tuning(results["tuning"], results["alignment"]),
        "\n".join(f"![{name}]({name})" for name in figures),
    ]
    target = report / "alignment.md"
    target.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")
    return target


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    sys.path.append(str(HERE.parent))
    from measure import machine as whole

    found = dict(whole())
    return found | {"python": platform.python_version(), "versions": {name: version(name) for name in PACKAGES}}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def spread(found: dict[str, float | None], digits: int = 3, sign: bool = False) -> str:
    """Mean ± half of the interval."""
    mean, half = found["mean"], found["half"]
    shown = f"{mean:+.{digits}f}" if sign else f"{mean:.{digits}f}"
    return shown if half is None else f"{shown} ± {half:.{digits}f}"


def percent(found: dict[str, float | None]) -> str:
    """Mean ± half, in percent."""
    half = "" if found["half"] is None else f" ± {100 * found['half']:.1f}"
    return f"{100 * (found['mean'] or 0.0):+.1f}{half} %"


def head(results: dict[str, Any]) -> str:
    """Where, when, how large."""
    found, times = results["machine"], results["times"]
    described = ", ".join(f"{key} {value}" for key, value in found.items() if isinstance(value, str | int | float))
    packages = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    rows = [
        [part, str(t["tasks"]), f"{t['wall_seconds'] / 60:.1f}", f"{t['cpu_seconds'] / 60:.1f}"]
        for part, t in times.items()
    ]
    total = [
        "all",
        str(sum(t["tasks"] for t in times.values())),
        f"{sum(t['wall_seconds'] for t in times.values()) / 60:.1f}",
        f"{sum(t['cpu_seconds'] for t in times.values()) / 60:.1f}",
    ]
    return "\n\n".join(
        [
            "# Alignment on the estimated pluralistic value: results",
            "Made by `python benches/alignment/run.py`; what it does is in [README.md](../../alignment/README.md).",
            f"Machine: {described}. {packages}.",
            table(["stage", "tasks", "minutes", "CPU minutes"], [*rows, total]),
        ]
    )


def evaluation(found: dict[str, Any]) -> str:
    """Eight policies from the logger's logs."""
    if not found:
        return ""
    parts = ["## Evaluation: eight policies from one logger's logs"]
    truth = found["truth"]
    rows = [
        [
            name,
            number(t["utility"]),
            number(t["entropy"], 2),
            number(t["H_3"], 2),
            number(t["value"]),
            number(t["kl"], 2),
        ]
        for name, t in truth.items()
    ]
    parts.append(table(["truth", "U", "entropy", "H_3", f"V = U + {ABLATED:g} H_3", "KL from the logger"], rows))
    for n, of_size in found["sizes"].items():
        parts.append(f"### {of_size['logs']} logs of {n} prompts, 8 responses each; nominal coverage 0.95")
        rows = []
        for name, p in of_size["policies"].items():
            c, v = p["coverage"], p["verdicts"]
            rows.append(
                [
                    name,
                    number(p["rmse"]["sn_tips"]),
                    number(p["rmse"]["snips"]),
                    number(p["rmse"]["ips"]),
                    *(number(c.get(key), 2) for key in ("U headline", "D headline", "V headline")),
                    number(p["width"], 2),
                    *(number(c.get(key), 2) for key in ("U delta", "U robust", "U certified")),
                    *(number(c.get(key), 2) for key in ("U snips (obp)", "U ips (obp)")),
                    f"{v['reliable']}/{v['caution']}/{v['unreliable']}",
                ]
            )
        names = ["policy", "RMSE of U: SN-TIPS", "SNIPS", "IPS", "coverage of U", "of D", "of V", "width of U"]
        names += ["U: delta", "robust", "certified", "SNIPS by row (obp)", "IPS by row (obp)"]
        parts.append(table([*names, "reliable/caution/unreliable"], rows))
        ranks = [[key, spread(value)] for key, value in of_size["ranking"].items()]
        parts.append(table(["estimate that ranks the policies", "Kendall's tau with the truth"], ranks))
        parts.append(_verdict(of_size["verdict"], found["usable"]))
    sampled = found["sampled"]
    rows = [
        [name, number(sampled["fresh_utility"][name]), number(p["utility"]["value"]), _ends(p["utility"]), p["verdict"]]
        for name, p in sampled["policies"].items()
    ]
    parts.append("### One log of sampled texts, against fresh samples of every policy")
    parts.append(table(["policy", "U of fresh samples", "estimate", "interval", "verdict"], rows))
    return "\n\n".join(parts)


def _ends(estimate: dict[str, Any]) -> str:
    ends = estimate["interval"]
    return "–" if ends is None else f"[{ends[0]:.3f}, {ends[1]:.3f}]"


def _verdict(found: dict[str, Any], usable: float) -> str:
    rows = [[level, str(c["usable"]), str(c["not"])] for level, c in found["counts"].items()]
    counts = table(["verdict", f"U within {usable:g} of the truth", "further away"], rows)
    return (
        f"{counts}\n\nOf the estimates that pass (reliable or caution) {found['precision']:.0%} are usable, and "
        f"{found['recall']:.0%} of the usable ones pass. Of those called unreliable {found['unusable_precision']:.0%} "
        f"are unusable, and {found['unusable_recall']:.0%} of the unusable ones are called so."
    )


def alignment(found: dict[str, Any]) -> str:
    """Every method on the same logs."""
    if not found:
        return ""
    keys = ("utility", "entropy", "coverage", "value", "worst", "nash")
    rows = []
    for name, row in found["methods"].items():
        kl = number(row["kl_from_logger"]["mean"], 2) if "kl_from_logger" in row else "0"
        rows.append(
            [
                f"**{name}**" if name.startswith("pope") else name,
                *(spread(row[key], 2 if key in ("entropy", "coverage") else 3) for key in keys),
                f"{100 * row['unclear']['mean']:.1f} %",
                kl,
            ]
        )
    names = ["method", "utility", "entropy", "coverage@4", f"U + {ABLATED:g} H_3", "worst group", "Nash welfare"]
    parts = [
        f"## Alignment: exact values on unseen questions, mean over {found['seeds']} worlds ± 95 % interval",
        table([*names, "unclear text", "KL from the logger"], rows),
    ]
    dominated = found["dominated"]
    if dominated:
        lines = [
            f"- {d['baseline']} against {d['pope']}: utility {spread(d['utility'], sign=True)}, {d['diversity']} "
            f"{spread(d[d['diversity']], sign=True)}"
            for d in dominated
        ]
        parts.append(
            "Baselines that are better in utility and in diversity, in the mean over worlds:\n" + "\n".join(lines)
        )
    else:
        parts.append("No baseline is better in utility and in diversity than POPE at any of its lambdas.")
    best = found["against_best_scalar"]
    if best:
        parts.append(
            f"At lambda = 0, utility of POPE less that of the best scalar baseline ({best['baseline']}), paired by "
            f"world: {spread(best['difference'], sign=True)}."
        )
    fresh = found["fresh"]
    if fresh is not None:
        parts.append(
            f"Of {fresh['runs']} runs {fresh['near']:.0%} have a utility from fresh samples within two standard errors "
            f"of the exact one. Further than four: {_far(fresh['far'])}."
        )
    return "\n\n".join(parts)


def _far(found: dict[str, float]) -> str:
    return ", ".join(f"{name} ({z:+.1f})" for name, z in found.items()) or "none"


def abilities(found: dict[str, Any]) -> str:
    """What alignment did to the rest."""
    if not found:
        return ""
    rows = []
    for name, row in found["methods"].items():
        if "changes" in row:
            rows.append([name, *(percent(value) for value in row["changes"].values())])
            keys = list(row["changes"])
    names = {"other_perplexity": "perplexity, other texts", "mixture_perplexity": "perplexity, whole mixture"}
    return "\n\n".join(
        [
            f"## General capabilities: relative change from the logger (limit {LIMIT:.0%}; positive is better)",
            table(["method", *(names.get(key, key) for key in keys)], rows),
            "Other texts are the pre-training mixture without the answers to questions, which alignment changes on "
            "purpose; the whole mixture includes them.",
        ]
    )


def ablation(found: dict[str, Any]) -> str:
    """POPE with one thing changed."""
    if not found:
        return ""
    keys = ("utility", "entropy", "coverage", "value", "worst", "unclear")
    rows = [
        [name, ABLATIONS[name], *(spread(v["difference"][key], sign=True) for key in keys)] for name, v in found.items()
    ]
    names = ["utility", "entropy", "coverage@4", "value V", "worst group", "unclear"]
    return "\n\n".join(
        [
            f"## Ablation: difference from POPE at lambda = {ABLATED:g}, paired by world",
            table(["variant", "what it is", *names], rows),
        ]
    )


def tuning(found: dict[str, Any], aligned: dict[str, Any]) -> str:
    """What was chosen."""
    if not found:
        return ""
    rows = []
    for name in METHODS:
        for record in found.get(name, []):
            chosen = aligned.get("methods", {}).get(name, {}).get("setting") == record["setting"]
            e = record["estimate"]
            rows.append([name, record["setting"], number(e["lower"]), number(e["value"]), "chosen" if chosen else ""])
    return "\n\n".join(
        [
            "## Tuning: held-out robust lower bound on a world that is not reported, by which settings were chosen",
            table(["method", "setting", "lower bound", "estimate", ""], rows),
        ]
    )
