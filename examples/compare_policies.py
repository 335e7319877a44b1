"""Compare two candidate policies on one log, where pairing pays: python examples/compare_policies.py."""

from __future__ import annotations

import math

import pope_fast as pope
from pope_fast import simulate


def main() -> None:
    # Two candidates that move in the same direction, one a little further than the other.
    log = simulate.table(prompts=4000, responses=8, seed=1, tilts={"careful": 0.3, "bold": 0.4})
    evaluation = pope.evaluate(log.table, diversity_weight=0.2)
    print(evaluation)

    difference = evaluation.compare("bold", "careful")
    truth = {name: policy["utility"] for name, policy in log.truth["policies"].items()}
    print(f"\nbold - careful: {difference.utility.value:+.4f}, interval {difference.utility.interval}")
    print(f"truth:          {truth['bold'] - truth['careful']:+.4f}")

    paired = difference.utility.standard_error
    errors = [evaluation[name].utility.standard_error for name in ("bold", "careful")]
    assert paired is not None
    unpaired = math.hypot(*(error or 0.0 for error in errors))
    print(f"standard error: {paired:.4f} paired, {unpaired:.4f} if the two had separate logs")


if __name__ == "__main__":
    main()
