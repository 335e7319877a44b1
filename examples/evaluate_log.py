"""Evaluate the shipped log and look behind the table: python examples/evaluate_log.py."""

from __future__ import annotations

import json

import pope_fast as pope


def main() -> None:
    log = pope.demo_log()
    evaluation = pope.evaluate(log, diversity_weight=0.5)
    print(evaluation)

    truth = json.loads(log.with_suffix(".truth.json").read_text())["policies"]
    for name, policy in evaluation.items():
        utility, known = policy.utility, truth[name]["utility"]
        interval = utility.interval
        assert interval is not None
        print(f"\n{name}: {policy.verdict.level}; true utility {known:.3f}, interval {interval}")
        for reason in policy.verdict.reasons:
            print(f"  - {reason}")
        for method, ends in utility.intervals.items():
            print(f"  {method:>16}: {ends}")


if __name__ == "__main__":
    main()
