"""From the sums that every peer computes to the numbers of jobs A and B, so that they can be compared."""

from __future__ import annotations


def a_from_sums(
    rows: float,
    prompts: float,
    sw: float,
    swr: float,
    sc: float,
    sw2: float,
    largest: float,
    saa: float,
    san: float,
    snn: float,
) -> dict[str, float]:
    """Return IPS, SNIPS, clipped IPS, ESS, largest weight and the standard error of SNIPS by prompt.

    With A and N the sums of w and w r in a prompt, phi = N - v A has mean 0 at v = SNIPS, and
    sum phi^2 = sum N^2 - 2 v sum A N + v^2 sum A^2: one pass is enough.
    """
    v = swr / sw
    phi2 = snn - 2.0 * v * san + v * v * saa
    return {
        "ips": swr / rows,
        "snips": v,
        "clipped_ips": sc / rows,
        "ess": sw * sw / sw2,
        "max_weight": largest,
        "snips_standard_error": (phi2 / (prompts - 1.0) * prompts) ** 0.5 / sw,
    }


def b_from_sums(prompts: float, sh: float, shh: float) -> dict[str, float]:
    """Return the mean and the variance over prompts of the entropy."""
    mean = sh / prompts
    return {"entropy_mean": mean, "entropy_variance": (shh - prompts * mean * mean) / (prompts - 1.0)}
