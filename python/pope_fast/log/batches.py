"""One batch of a log as the arrays that the kernels take, and the plan that says where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast import _core
from pope_fast.errors import SchemaError
from pope_fast.log.arrays import Labels, TokenLists, keys, numbers, token_lists
from pope_fast.log.columns import ColumnMap
from pope_fast.log.remedies import missing_column
from pope_fast.log.vectors import rows_per_batch, vectors

__all__ = ["LogBatch", "Plan", "convert", "make_plan", "unit_keys"]

Floats = NDArray[np.floating[Any]]

OPTIONAL_ROLES = ("cluster", "group", "count", "num_tokens", "baseline", "embedding")

#: Rounding may lift a log-prob this far above 0 (nats); a token beyond it is refused.
LOGPROB_SLACK = 1e-4

#: What servers and programs write for a log-prob that they do not know; no sum of measured ones is exactly that.
UNKNOWN_LOGPROBS = (-9999.0, -99999.0, -999999.0)
UNKNOWN_REMEDY = "score the response again, or drop the row; write -inf where a target policy rules a response out"


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Consecutive rows of a log, one array per role; every array is C-contiguous and has one element per row.

    Attributes
    ----------
    unit_key : int64 or None
        Key of the independent unit (the prompt, usually); None if every row is a unit.
    behavior_logprob : float32 or float64
        Sequence log-prob under the behavior policy, in nats.
    target_logprob : dict of str to float32 or float64
        Sequence log-prob under each target policy; -inf is allowed.
    reward : float32 or float64
        In the user's units.
    cluster, group : int32, int64 or None
        Keys; :attr:`FeedbackLog.cluster_labels` and ``group_labels`` name them.
    count, num_tokens, baseline : float64 (float32 where the log has it) or None
        Multiplicity, completion length in tokens, a reward model's prediction.
    baseline_mean : dict of str to float64, or None
        Mean of ``baseline`` under each policy.
    aa_logprob : float32 or float64, or None
        The behavior policy's log-prob, scored a second time.
    embedding : float32 or float64, shape (n, width), or None
        Embedding of each response, of any length but 0.
    first_row : int
        Index of the first row in the order in which the batches come.
    row_index : int64 or None
        Index of each row in the log's own order where that differs (scattered prompts that were gathered).
    """

    unit_key: NDArray[np.int64] | None
    behavior_logprob: Floats
    target_logprob: dict[str, Floats]
    reward: Floats
    cluster: NDArray[Any] | None = None
    group: NDArray[Any] | None = None
    count: Floats | None = None
    num_tokens: Floats | None = None
    baseline: Floats | None = None
    baseline_mean: dict[str, Floats] | None = None
    aa_logprob: Floats | None = None
    embedding: Floats | None = None
    first_row: int = 0
    row_index: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.reward)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return every array that is there under a flat name (``target_logprob/NAME``)."""
        flat: dict[str, NDArray[Any]] = {}
        for name in _SINGLE:
            value = getattr(self, name)
            if value is not None:
                flat[name] = value
        for stem in _PER_POLICY:
            for policy, value in (getattr(self, stem) or {}).items():
                flat[f"{stem}/{policy}"] = value
        return flat

    @classmethod
    def from_arrays(cls, flat: Mapping[str, NDArray[Any]], first_row: int) -> LogBatch:
        """Rebuild a batch from what :meth:`arrays` returned."""
        single = {name: flat[name] for name in _SINGLE if name in flat}
        means = _of_policy(flat, "baseline_mean")
        fields: dict[str, Any] = {"unit_key": None, **single}
        return cls(
            **fields,
            target_logprob=_of_policy(flat, "target_logprob"),
            baseline_mean=means or None,
            first_row=first_row,
        )

    def slice(self, start: int, stop: int) -> LogBatch:
        """Return rows ``start`` to ``stop`` as views."""
        flat = {name: values[start:stop] for name, values in self.arrays().items()}
        return self.from_arrays(flat, self.first_row + start)

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return sum(values.nbytes for values in self.arrays().values())


_SINGLE = (
    "unit_key",
    "behavior_logprob",
    "reward",
    "cluster",
    "group",
    "count",
    "num_tokens",
    "baseline",
    "aa_logprob",
    "embedding",
    "row_index",
)
_PER_POLICY = ("target_logprob", "baseline_mean")


def _of_policy(flat: Mapping[str, NDArray[Any]], stem: str) -> dict[str, NDArray[Any]]:
    prefix = f"{stem}/"
    return {name[len(prefix) :]: values for name, values in flat.items() if name.startswith(prefix)}


@dataclass(frozen=True, slots=True)
class Logprob:
    """Where a policy's log-probs come from: a column of sequence log-probs, or one of token lists."""

    role: str
    column: str
    tokens: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Which columns a pass over the log reads, and what it makes of them."""

    unit: str | None
    unit_role: str
    behavior: Logprob
    targets: Mapping[str, Logprob]
    reward: str
    aa: Logprob | None = None
    length_check: Logprob | None = None
    optional: Mapping[str, str] = field(default_factory=dict)
    num_tokens: bool = False
    lengths_from: str | None = None
    baseline_means: Mapping[str, str] = field(default_factory=dict)

    def rows_per_batch(self, schema: pa.Schema, most: int) -> int:
        """Return how many rows a batch may have: at most ``most``, and fewer with wide embeddings."""
        column = self.optional.get("embedding")
        return rows_per_batch([] if column is None else [schema.field(column).type], most)

    def columns(self) -> list[str]:
        """Return the actual columns to read, each once."""
        logprobs = [self.behavior, *self.targets.values(), self.aa, self.length_check]
        wanted = [
            self.unit,
            *(source.column for source in logprobs if source is not None),
            self.reward,
            *self.optional.values(),
            self.lengths_from,
            *self.baseline_means.values(),
        ]
        return list(dict.fromkeys(column for column in wanted if column is not None))


def unit_column(columns: ColumnMap, names: Sequence[str], unit: str) -> tuple[str | None, str]:
    """Return the column that tells the independent units apart, and its role; the column is None for rows."""
    if unit == "row":
        return None, "row"
    if unit == "prompt":
        for role in ("prompt_id", "prompt", "prompt_ids"):
            if role in columns:
                return columns[role], "prompt_id"
        raise missing_column("prompt_id", names)
    if unit in columns:
        return columns[unit], unit
    if unit in names:
        return unit, "unit"
    raise missing_column(unit, names, why="asked for as the unit")


def _logprob(columns: ColumnMap, policy: str | None, tokens: bool) -> Logprob | None:
    stem = "token_logprobs" if tokens else "logprob"
    role = f"behavior_{stem}" if policy is None else f"target_{stem}/{policy}"
    column = columns.get(role)
    if column is None:
        return None
    # Errors speak of the role without its representation.
    return Logprob("behavior_logprob" if policy is None else f"target_logprob/{policy}", column, tokens)


def aa_source(columns: ColumnMap, schema: pa.Schema, aa_policy: str) -> Logprob:
    """Return where the behavior policy's second scoring comes from: a policy's name, or a column."""
    for tokens in (False, True):
        found = _logprob(columns, aa_policy, tokens)
        if found is not None:
            return Logprob("aa_logprob", found.column, tokens)
    if aa_policy not in schema.names:
        raise missing_column(aa_policy, schema.names, why="asked for as the A/A column")
    from pope_fast.log.columns import is_list_type

    return Logprob("aa_logprob", aa_policy, is_list_type(schema.field(aa_policy).type))


def has_role(columns: ColumnMap, policies: Sequence[str], role: str) -> bool:
    """Tell whether a log can fill a role, from its own column or from another that implies it."""
    if role in columns:
        return True
    if role == "prompt_id":
        return "prompt" in columns or "prompt_ids" in columns
    if role == "behavior_logprob":
        return "behavior_token_logprobs" in columns
    if role == "target_logprob":
        return bool(policies)
    if role.startswith("target_logprob/"):
        return role.replace("target_logprob/", "target_token_logprobs/", 1) in columns
    if role == "num_tokens":
        token_roles = ("behavior_token_logprobs", *(f"target_token_logprobs/{name}" for name in policies))
        return "completion_ids" in columns or any(token_role in columns for token_role in token_roles)
    return False


def make_plan(
    schema: pa.Schema,
    columns: ColumnMap,
    policies: Sequence[str],
    roles: Iterable[str] | None,
    *,
    unit: str,
    aa_policy: str | None = None,
) -> Plan:
    """Plan a pass over the log.

    Parameters
    ----------
    schema, columns, policies
        The log's.
    roles : iterable of str or None
        Optional roles wanted (cluster, group, count, num_tokens, baseline, embedding); None for all that are there.
    unit : str
        "prompt", "row", or a column.
    aa_policy : str, optional
        Policy or column that holds the behavior policy's second scoring.

    Raises
    ------
    SchemaError
        If a column that is needed is missing.
    """
    names = schema.names
    if roles is None:
        wanted = {role for role in OPTIONAL_ROLES if has_role(columns, policies, role)}
    else:
        wanted = {role for role in roles if role in OPTIONAL_ROLES}
        for role in (*roles,):
            if role not in ("unit_key", "baseline_mean") and not has_role(columns, policies, role):
                raise missing_column(role, names)
    behavior = _logprob(columns, None, False) or _logprob(columns, None, True)
    if behavior is None:
        raise missing_column("behavior_logprob", names)
    targets: dict[str, Logprob] = {}
    for policy in policies:
        found = _logprob(columns, policy, False) or _logprob(columns, policy, True)
        if found is None:
            raise missing_column(f"target_logprob/{policy}", names)
        targets[policy] = found
    if "reward" not in columns:
        raise missing_column("reward", names)
    unit_name, unit_role = unit_column(columns, names, unit)
    aa = None if aa_policy is None else aa_source(columns, schema, aa_policy)
    behavior_lists = _logprob(columns, None, True)
    uses_lists = any(source.tokens for source in targets.values()) or (aa is not None and aa.tokens)
    optional = {role: columns[role] for role in OPTIONAL_ROLES if role in wanted and role in columns}
    lengths_from = None
    if "num_tokens" in wanted and "num_tokens" not in columns and not (behavior.tokens or uses_lists):
        lengths_from = columns.get("behavior_token_logprobs") or columns.get("completion_ids")
    return Plan(
        unit=unit_name,
        unit_role=unit_role,
        behavior=behavior,
        targets=targets,
        reward=columns["reward"],
        aa=aa,
        length_check=behavior_lists if uses_lists and not behavior.tokens else None,
        optional=optional,
        num_tokens="num_tokens" in wanted,
        lengths_from=lengths_from,
        baseline_means={
            policy: columns[f"baseline_mean/{policy}"]
            for policy in policies
            if "baseline" in wanted and f"baseline_mean/{policy}" in columns
        },
    )


def unknown_logprobs(values: Floats) -> NDArray[np.int64]:
    """Return the places of numbers that stand for a log-prob that nobody knows."""
    if not values.size or values.min() > UNKNOWN_LOGPROBS[0]:
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(np.isin(values, UNKNOWN_LOGPROBS))


class _Lists:
    """The token lists of one batch: each column is decoded once, and all must have the same lengths."""

    def __init__(self, batch: pa.RecordBatch, first_row: int) -> None:
        self.batch = batch
        self.first_row = first_row
        self.decoded: dict[str, TokenLists] = {}
        self.reference: tuple[str, NDArray[np.int64]] | None = None

    def get(self, source: Logprob) -> TokenLists:
        if source.column not in self.decoded:
            array = self.batch.column(source.column)
            lists = token_lists(array, source.role, source.column, self.first_row)
            self._check_lengths(source.column, lists)
            self.decoded[source.column] = lists
        return self.decoded[source.column]

    def _check_lengths(self, column: str, lists: TokenLists) -> None:
        if self.reference is None:
            self.reference = column, lists.offsets
            return
        other, offsets = self.reference
        if np.array_equal(offsets, lists.offsets):
            return
        row = int(np.flatnonzero(np.diff(offsets) != lists.lengths)[0])
        raise SchemaError(
            f"{int(lists.lengths[row])} token log-probs, but {int(np.diff(offsets)[row])} in {other!r}",
            column=column,
            row=self.first_row + row,
            remedy="score the same completion tokens under both policies, with one tokenizer",
        )

    def sums(self, source: Logprob) -> NDArray[np.float64]:
        """Sum the token log-probs of each row (nats)."""
        lists = self.get(source)
        values = lists.values
        # NaN fails the comparison too, so one pass over the tokens finds both faults.
        if values.size and not values.max() <= LOGPROB_SLACK:
            token = int(np.flatnonzero(~(values <= LOGPROB_SLACK))[0])
            row = int(np.searchsorted(lists.offsets, token, side="right")) - 1
            value = float(values[token])
            what = "NaN log-prob" if np.isnan(value) else f"log-prob {value:g} > 0"
            raise SchemaError(
                f"{what} at token {token - int(lists.offsets[row])}",
                column=source.column,
                row=self.first_row + row,
                remedy="log-probs are natural logarithms of probabilities: at most 0",
            )
        unknown = unknown_logprobs(values)
        if unknown.size:
            token = int(unknown[0])
            row = int(np.searchsorted(lists.offsets, token, side="right")) - 1
            raise SchemaError(
                f"log-prob {float(values[token]):g} at token {token - int(lists.offsets[row])} stands for 'unknown'",
                column=source.column,
                row=self.first_row + row,
                remedy=UNKNOWN_REMEDY,
            )
        return _core.sum_tokens(lists.offsets, values)


def unit_keys(batch: pa.RecordBatch, column: str | None, role: str, first_row: int) -> NDArray[np.int64] | None:
    """Return the unit's key of each row, None if every row is its own unit."""
    if column is None:
        return None
    return np.asarray(keys(batch.column(column), role, column, first_row), dtype=np.int64)


def convert(
    batch: pa.RecordBatch,
    plan: Plan,
    first_row: int,
    cluster_labels: Labels | None = None,
    group_labels: Labels | None = None,
    width: int | None = None,
) -> LogBatch:
    """Turn a record batch into the arrays that the plan asks for; plain columns are views of it.

    ``width`` is that of the embeddings of earlier batches.

    Raises
    ------
    SchemaError
        On nulls, wrong types, and token lists or embeddings of unequal length.  NaN, infinities, positive log-probs and
        values outside the reward's range are found by the kernel.
    """
    lists = _Lists(batch, first_row)

    def number(column: str, role: str) -> Floats:
        return numbers(batch.column(column), role, column, first_row)

    def logprob(source: Logprob) -> Floats:
        if source.tokens:
            return lists.sums(source)
        values = number(source.column, source.role)
        unknown = unknown_logprobs(values)
        if unknown.size:
            raise SchemaError(
                f"log-prob {float(values[unknown[0]]):g} stands for 'unknown'",
                column=source.column,
                row=first_row + int(unknown[0]),
                remedy=UNKNOWN_REMEDY,
            )
        return values

    def key(role: str, labels: Labels | None) -> NDArray[Any] | None:
        column = plan.optional.get(role)
        if column is None:
            return None
        return keys(batch.column(column), role, column, first_row, labels, wide=False)

    if plan.length_check is not None:
        lists.get(plan.length_check)
    behavior = logprob(plan.behavior)
    targets = {name: logprob(source) for name, source in plan.targets.items()}
    aa = None if plan.aa is None else logprob(plan.aa)
    embedding = plan.optional.get("embedding")
    optional = {
        role: number(plan.optional[role], role) for role in ("count", "num_tokens", "baseline") if role in plan.optional
    }
    if plan.num_tokens and "num_tokens" not in optional:
        lengths = _lengths(batch, plan, lists, first_row)
        if lengths is not None:
            optional["num_tokens"] = lengths.astype(np.float64)
    return LogBatch(
        unit_key=unit_keys(batch, plan.unit, plan.unit_role, first_row),
        behavior_logprob=behavior,
        target_logprob=targets,
        reward=number(plan.reward, "reward"),
        cluster=key("cluster", cluster_labels),
        group=key("group", group_labels),
        count=_double(optional.get("count")),
        num_tokens=_double(optional.get("num_tokens")),
        baseline=_double(optional.get("baseline")),
        baseline_mean={
            policy: _doubled(number(column, f"baseline_mean/{policy}"))
            for policy, column in plan.baseline_means.items()
        }
        or None,
        aa_logprob=aa,
        embedding=None
        if embedding is None
        else vectors(batch.column(embedding), "embedding", embedding, first_row, width),
        first_row=first_row,
    )


def _lengths(batch: pa.RecordBatch, plan: Plan, lists: _Lists, first_row: int) -> NDArray[np.int64] | None:
    """Return the number of tokens per row, from whatever lists the plan reads."""
    if lists.reference is not None:
        return np.diff(lists.reference[1])
    if plan.lengths_from is None:
        return None
    column = plan.lengths_from
    return token_lists(batch.column(column), "completion_ids", column, first_row, allow_empty=True).lengths


def _doubled(values: Floats) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _double(values: Floats | None) -> NDArray[np.float64] | None:
    return None if values is None else _doubled(values)
