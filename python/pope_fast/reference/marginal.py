"""Entropy of the average policy, H(qbar) with qbar = E_x q(.|x): identified with one response per prompt.

Unit sums ``A_ic = mean_k w_ik 1{c_ik = c}``, ``A_i = sum_c A_ic``; ``S_c = sum_i A_ic``, ``W = sum_i A_i``
and ``q_c = S_c / W``.  All results are in nats.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pope_fast.reference import jackknife
from pope_fast.reference._types import FloatArray, IntArray, PointEstimate
from pope_fast.reference.jackknife import JackknifeEstimate
from pope_fast.reference.units import bucket as bucket_of
from pope_fast.reference.units import counts_or_ones, unit_codes, unit_sizes
from pope_fast.reference.weights import shifted_weights


def cluster_table(
    logw: npt.ArrayLike, cluster: npt.ArrayLike, unit: npt.ArrayLike, count: npt.ArrayLike | None = None
) -> tuple[IntArray, FloatArray]:
    """Labels of the clusters and the matrix ``A_ic`` (units x clusters), up to one common factor."""
    labels, cluster_index = np.unique(np.asarray(cluster), return_inverse=True)
    units, unit_index = unit_codes(unit)
    w = shifted_weights(logw)
    table = np.zeros((len(units), len(labels)))
    np.add.at(table, (unit_index, cluster_index), counts_or_ones(count, len(w)) * w)
    return labels, table / unit_sizes(unit, count)[:, None]


def shares(table: npt.ArrayLike) -> FloatArray:
    """Estimated cluster distribution of the average target policy, ``q_c = S_c / W``."""
    mass = np.asarray(table, dtype=np.float64).sum(axis=0)
    return np.asarray(mass / mass.sum(), dtype=np.float64)


def entropy(q: npt.ArrayLike) -> float:
    """Shannon entropy ``-sum_c q_c log q_c`` in nats, with ``0 log 0 = 0``."""
    p = np.asarray(q, dtype=np.float64)
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)))


def _log(q: FloatArray) -> FloatArray:
    """Log of the shares, 0 where the share is 0: such clusters carry no mass and drop out of every sum."""
    return np.asarray(np.log(np.where(q > 0, q, 1.0)), dtype=np.float64)


def entropy_plug_in(table: npt.ArrayLike) -> PointEstimate:
    """Plug-in entropy with influence ``[sum_c A_ic (-log q_c) - H A_i] / mean A``."""
    a = np.asarray(table, dtype=np.float64)
    q = shares(a)
    h = entropy(q)
    total = a.sum(axis=1)
    return PointEstimate(h, (a @ -_log(q) - h * total) / np.mean(total))


def miller_madow_bias(table: npt.ArrayLike) -> float:
    """Second-order bias of the plug-in entropy, for weighted units of several responses.

    ``B = W^-2 [ sum_c (log q_c + H) X_c + S2 / 2 - (1/2) sum_c S2_c / q_c ]`` with ``X_c = sum_i A_ic A_i``,
    ``S2_c = sum_i A_ic^2``, ``S2 = sum_i A_i^2``.  It is half the trace of the Hessian of H in S times the
    uncentered second moment of the units; the centering drops out because H is homogeneous of degree 0 in S.
    Weight 1 and one response per unit give the classical ``-(C - 1) / (2 n)``.
    """
    a = np.asarray(table, dtype=np.float64)
    q, total = shares(a), a.sum(axis=1)
    h, mass = entropy(q), float(a.sum())
    cross = a.T @ total
    squares = np.sum(a**2, axis=0)
    seen = q > 0
    first = float(np.sum((_log(q) + h)[seen] * cross[seen]))
    second = float(np.sum(total**2)) / 2.0 - 0.5 * float(np.sum(squares[seen] / q[seen]))
    return (first + second) / mass**2


def entropy_miller_madow(table: npt.ArrayLike) -> float:
    """Plug-in entropy less its second-order bias."""
    return entropy_plug_in(table).value - miller_madow_bias(table)


def entropy_jackknife(table: npt.ArrayLike, key: npt.ArrayLike, *, cap: bool = True) -> JackknifeEstimate:
    """Entropy by the grouped jackknife over hashed buckets of units.

    Parameters
    ----------
    table : array_like, shape (n_units, n_clusters)
        From :func:`cluster_table`.
    key : array_like of int, shape (n_units,)
        Identifiers of the units in the order of the table.
    cap : bool
        Keep the value within ``[0, log C]``, C the number of clusters with mass.
    """
    a = np.asarray(table, dtype=np.float64)
    estimate = jackknife.by_recomputation(lambda kept: entropy(shares(a[kept])), bucket_of(key))
    if not cap:
        return estimate
    top = float(np.log(np.count_nonzero(a.sum(axis=0))))
    return estimate._replace(value=min(max(estimate.value, 0.0), top))


def unseen_mass(table: npt.ArrayLike) -> float:
    """Weighted Good-Turing mass of clusters not yet seen: the share of clusters that only one unit visits."""
    a = np.asarray(table, dtype=np.float64)
    visited_once = np.count_nonzero(a > 0, axis=0) == 1
    return float(a[:, visited_once].sum() / a.sum())


def is_degenerate(table: npt.ArrayLike) -> bool:
    """Whether the first-order error is below the bias, sd(phi) / sqrt(n) < |B|: at (nearly) uniform q."""
    return entropy_plug_in(table).standard_error < abs(miller_madow_bias(table))
