"""Estimate from plain NumPy arrays, without a log file: python examples/arrays.py."""

from __future__ import annotations

import numpy as np

from pope_fast import ope


def main() -> None:
    rng = np.random.default_rng(0)
    prompts, responses = 1500, 4
    prompt_id = np.repeat(np.arange(prompts), responses)

    # Five kinds of answer; the new policy prefers the last ones, which people like better.
    behavior = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    target = np.array([0.25, 0.25, 0.2, 0.15, 0.15])
    liked = np.array([0.2, 0.3, 0.5, 0.7, 0.9])
    answer = rng.choice(5, size=prompts * responses, p=behavior)
    reward = (rng.random(len(answer)) < liked[answer]).astype(float)
    target_logprob, behavior_logprob = np.log(target)[answer], np.log(behavior)[answer]

    for estimator in (ope.ips, ope.snips, ope.sn_tips):
        estimate = estimator(target_logprob, behavior_logprob, reward, prompt_id=prompt_id)
        print(f"{estimate.name:>8}: {estimate.value:.4f} +- {estimate.standard_error:.4f}")
    print(f"   truth: {target @ liked:.4f}")

    gini = ope.gini_simpson(target_logprob, behavior_logprob, answer, prompt_id=prompt_id)
    print(f"Gini-Simpson: {gini.value:.4f} (truth {1 - target @ target:.4f})")
    ess = ope.effective_sample_size(target_logprob, behavior_logprob, prompt_id=prompt_id)
    print(f"{prompts} prompts are worth {ess:.0f} under the new policy")


if __name__ == "__main__":
    main()
