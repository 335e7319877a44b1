"""Reading a whole log to say what is in it and everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast import _core
from pope_fast.errors import PopeError, SchemaError
from pope_fast.log.arrays import as_numpy, keys, plain, text_hashes
from pope_fast.log.arrow_types import Array
from pope_fast.log.batches import Plan, convert, make_plan, unit_column
from pope_fast.log.checks import FaultBook, check_key, check_lengths, check_number, check_tokens, check_vectors
from pope_fast.log.columns import Fault, PolicySpec, kind_of
from pope_fast.log.feedback_log import BATCH_ROWS, FeedbackLog, one_unit, retokenized
from pope_fast.log.inspection import Inspection, Sign, inspect_head, temperature_signs
from pope_fast.log.inspection.inspection import behavior_column
from pope_fast.log.opening import open_log
from pope_fast.log.progress import Meter
from pope_fast.log.ranges import RewardRange, empty_log
from pope_fast.log.readahead import read_ahead
from pope_fast.log.remedies import missing_column
from pope_fast.log.signals import SamplingCheck, count_repeats, duplicate_rows, duplicate_warning
from pope_fast.log.validation_report import ValidationReport
from pope_fast.log.vectors import rows_per_batch

__all__ = ["validate"]

_COMPACT_RUNS = 1 << 22
_KEPT_MARKS = 1 << 22


def validate(
    source: Any,
    *,
    max_faults: int = 20,
    columns: Mapping[str, str] | None = None,
    policies: PolicySpec | None = None,
    **options: Any,
) -> ValidationReport:
    """Read a log from end to end and report what it holds and every fault.

    Parameters
    ----------
    source : FeedbackLog, or anything that :func:`read_log` takes
        The log.
    max_faults : int
        Faults that are listed; :attr:`ValidationReport.n_faults` counts them all.
    columns, policies, **options
        As in :func:`read_log`, if ``source`` is not a log yet.

    Returns
    -------
    ValidationReport
        A file that breaks off is a fault, and what was read before it is reported.

    Raises
    ------
    PopeError
        If there is no such source, or options are given for a log that is opened already.

    Examples
    --------
    >>> import pope_fast
    >>> report = pope_fast.validate({
    ...     "prompt_id": [1, 2], "reward": [0.5, float("nan")],
    ...     "behavior_logprob": [-1.0, -1.0], "target_logprob": [-1.0, -1.0],
    ... })
    >>> report.ok, report.faults[0].row
    (False, 1)
    """
    if isinstance(source, FeedbackLog):
        if columns is not None or policies is not None or options:
            raise PopeError("columns=, policies= and other options belong to read_log where the log is opened already")
        log = source
    else:
        try:
            log = open_log(source, columns=columns, policies=policies, **options)
        except SchemaError as error:
            fault = _as_fault(error)
            return ValidationReport(source=str(source), complete=False, faults=(fault,), n_faults=1)
    return _Validation(log).run(max_faults)


def _as_fault(error: SchemaError) -> Fault:
    rows = () if error.row is None else (error.row,)
    return Fault(error.column, error.row, error.message, error.remedy or "correct the log", 1, rows)


@dataclass
class _Tally:
    """Weights per key, for more keys than a dictionary would hold in reasonable time."""

    keys: list[NDArray[np.int64]] = field(default_factory=list)
    weights: list[NDArray[np.float64]] = field(default_factory=list)
    pending: int = 0

    def add(self, keys: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        if keys.size == 0:
            return
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        self.keys.append(keys[starts])
        self.weights.append(np.add.reduceat(weights, starts))
        self.pending += starts.size
        if self.pending > _COMPACT_RUNS:
            self.compact()

    def compact(self) -> NDArray[np.float64]:
        """Join equal keys and return their weights."""
        if not self.keys:
            return np.empty(0)
        distinct, inverse = np.unique(np.concatenate(self.keys), return_inverse=True)
        weights = np.concatenate(self.weights)
        totals = np.bincount(inverse.ravel(), weights, distinct.size).astype(np.float64)
        self.keys, self.weights, self.pending = [distinct], [totals], 0
        return totals


class _Validation:
    """One pass over a log with every check."""

    def __init__(self, log: FeedbackLog) -> None:
        self.log = log
        self.book = FaultBook()
        self.broken: set[str] = set()
        self.units = _Tally()
        self.draws = 0.0
        self.clusters: NDArray[np.int64] | None = None
        self.groups: NDArray[np.int64] | None = None
        self.low, self.high = np.inf, -np.inf
        self.width: int | None = None
        self.scan = _core.UnitScan()
        self.scattered = False
        self.marks: list[NDArray[np.uint64]] = []
        self.kept_marks = self.repeats = 0
        self.warnings: list[str] = []
        self.sampling = SamplingCheck(log.schema, log.columns)
        for fault in log.faults:
            self.book.add(fault)
            if fault.column is not None:
                self.broken.add(fault.column)
        self.unit, self.unit_role = self._find_unit()
        self._require()
        self.plan = self._plan()
        self.inspection = Inspection(log.policies, prompts=self.plan is not None and self.plan.unit_role == "prompt_id")
        self.text = self._usable("completion") or self._usable("completion_ids")
        self.token_columns = [column for role, column in self._roles() if kind_of(role) == "tokens"]

    def _plan(self) -> Plan | None:
        """Plan what an evaluation would read of each row; ``None`` if it would refuse the log's columns."""
        log = self.log
        roles = [role for role in ("cluster", "count", "num_tokens") if log.has(role)]
        unit = "row" if self.unit is None else log.unit
        try:
            plan = make_plan(log.schema, log.columns, log.policies, roles, unit=unit)
        except SchemaError:
            return None  # entered as a fault already
        return None if self.broken.intersection(plan.columns()) else plan

    def _usable(self, role: str) -> str | None:
        column = self.log.columns.get(role)
        return None if column is None or column in self.broken else column

    def _roles(self) -> list[tuple[str, str]]:
        """Return the roles whose columns are checked value by value."""
        checked = ("number", "reward", "tokens", "vectors")
        return [
            (role, column)
            for role, column in self.log.columns.items()
            if column not in self.broken and (kind_of(role) in checked or role in ("cluster", "group"))
        ]

    def _find_unit(self) -> tuple[str | None, str]:
        unit = "prompt" if self.log.unit == "row" else self.log.unit
        try:
            column, role = unit_column(self.log.columns, self.log.schema.names, unit)
        except SchemaError as error:
            if self.log.unit != "row":
                self.book.add(_as_fault(error))
            return None, "row"
        return (None, "row") if column in self.broken else (column, role)

    def _require(self) -> None:
        """Enter the columns that an evaluation cannot do without and that are not there."""
        names = self.log.schema.names
        broken_roles = {fault.column for fault in self.log.faults}
        for role in ("behavior_logprob", "target_logprob", "reward"):
            known = broken_roles & {role, f"{role}/target"}
            if not self.log.has(role) and not known:
                self.book.add(_as_fault(missing_column(role, names)))

    def run(self, max_faults: int) -> ValidationReport:
        columns = list(
            dict.fromkeys(
                name
                for name in (
                    self.unit,
                    *(column for _, column in self._roles()),
                    self.text,
                    self._usable("completion_ids") if self.token_columns else None,
                    *(() if self.plan is None else self.plan.columns()),
                    *(name for name in self.sampling.columns if name not in self.broken),
                )
                if name is not None
            )
        )
        complete, row = True, 0
        meter = Meter(self.log.num_rows, None, "validating")
        # Without a column to read, any will do to count the rows.
        wanted = columns or [name for name in self.log.schema.names if name not in self.broken][:1]
        embeddings = [name for role, name in self._roles() if kind_of(role) == "vectors"]
        batch_rows = rows_per_batch([self.log.schema.field(name).type for name in embeddings], BATCH_ROWS)
        try:
            for batch in read_ahead(self.log.reader.read(wanted, batch_rows)) if wanted else ():
                self._check(batch, row)
                row += batch.num_rows
                meter.advance(batch.num_rows)
        except SchemaError as error:
            self.book.add(_as_fault(error))
            complete = False
        finally:
            meter.stop()
        responses = self.units.compact() if self.unit is not None else None
        self._finish(row, complete, responses)
        self._impossible()
        return self._report(row, complete, responses, max_faults)

    def _check(self, batch: pa.RecordBatch, first_row: int) -> None:
        log = self.log
        weights = np.ones(batch.num_rows)
        declared = log.declared_range
        reference: tuple[str, NDArray[np.int64]] | None = None
        for role, column in self._roles():
            array = batch.column(column)
            kind = kind_of(role)
            if kind == "key":
                check_key(self.book, array, role, column, first_row)
                self._see_keys(role, column, array)
            elif kind == "tokens":
                lengths = check_tokens(self.book, array, role, column, first_row)
                if reference is None:
                    reference = column, lengths
                else:
                    check_lengths(self.book, column, lengths, *reference, first_row)
            elif kind == "vectors":
                self.width = check_vectors(self.book, array, role, column, first_row, self.width)
            else:
                bounds = None if declared is None else (declared.low, declared.high)
                values = check_number(self.book, array, role, column, first_row, bounds)
                if role == "count":
                    weights = np.where((values > 0) & np.isfinite(values), values, 0.0)
                if role == "reward" and np.isfinite(values).any():
                    finite = values[np.isfinite(values)]
                    self.low = min(self.low, float(finite.min()))
                    self.high = max(self.high, float(finite.max()))
        self.draws += float(weights.sum())
        unit_key = self._see_unit(batch, first_row, weights)
        if self.sampling.columns and not self.broken.intersection(self.sampling.columns):
            self.sampling.feed(batch)
        self._inspect(batch, first_row)
        if self.text is not None:
            self._see_text(batch.column(self.text), unit_key)
        ids = self._usable("completion_ids")
        if ids is not None and self.token_columns:
            message = retokenized(batch, ids, self.token_columns, first_row)
            if message is not None and not any("completion_ids" in said for said in self.warnings):
                self.warnings.append(message)

    def _inspect(self, batch: pa.RecordBatch, first_row: int) -> None:
        if self.plan is None:
            return
        # A batch that an evaluation would refuse has faults, and says nothing else until they are mended.
        with suppress(SchemaError):
            self.inspection.add(convert(batch, self.plan, first_row))

    def _impossible(self) -> None:
        """Enter the policies that an evaluation would refuse because they gave no response of the log."""
        for policy in sorted(self.inspection.impossible if self.inspection.n_rows else ()):
            columns = (f"target_logprob/{policy}", f"target_token_logprobs/{policy}")
            column = next(self.log.columns[role] for role in columns if role in self.log.columns)
            message = f"log-prob -inf in every row: the log says nothing about policy {policy!r}"
            remedy = "score the responses under it again, or leave it out with policies= (--policy)"
            self.book.add(Fault(column, None, message, remedy))

    def _signs(self) -> tuple[Sign, ...]:
        """Say what the rows give away about how the log was made."""
        behavior = behavior_column(self.log.columns)
        signs = temperature_signs(self.sampling, self.log.schema, behavior)
        if self.plan is None or not self.inspection.n_rows:
            return tuple(signs)
        head = None
        with suppress(SchemaError):
            head = inspect_head(self.log, self.log.policies, prompts=self.inspection.by_prompt is not None)
        declared = self.log.declared_range
        bounds = None if declared is None else (declared.low, declared.high)
        return (*self.inspection.signs(self.log.columns, head=head, declared=bounds), *signs)

    def _see_keys(self, role: str, column: str, array: Array) -> None:
        labels = self.log.cluster_labels if role == "cluster" else self.log.group_labels
        present = np.asarray(keys(array.drop_null(), role, column, 0, labels), dtype=np.int64)
        name = "clusters" if role == "cluster" else "groups"
        known = getattr(self, name)
        found = np.unique(present)
        setattr(self, name, found if known is None else np.union1d(known, found))

    def _see_unit(
        self, batch: pa.RecordBatch, first_row: int, weights: NDArray[np.float64]
    ) -> NDArray[np.int64] | None:
        if self.unit is None:
            return None
        array = batch.column(self.unit)
        check_key(self.book, array, self.unit_role, self.unit, first_row)
        absent = np.asarray(as_numpy(plain(array).is_null()), dtype=np.bool_)
        present = np.asarray(keys(array.drop_null(), self.unit_role, self.unit, first_row), dtype=np.int64)
        if not self.scattered and self.scan.feed(present) >= 0:
            self.scattered = True
        self.units.add(present, weights[~absent])
        unit_key = np.zeros(batch.num_rows, dtype=np.int64)
        unit_key[~absent] = present
        return unit_key

    def _see_text(self, array: Array, unit_key: NDArray[np.int64] | None) -> None:
        if "count" in self.log.columns or (unit_key is None and self.log.unit != "row"):
            return
        marks = np.unique(duplicate_rows(unit_key, text_hashes(array)))
        self.repeats += len(array) - marks.size
        if self.kept_marks < _KEPT_MARKS:
            # Beyond this many texts only repeats within a batch are counted.
            self.marks.append(marks)
            self.kept_marks += marks.size

    def _finish(self, rows: int, complete: bool, responses: NDArray[np.float64] | None) -> None:
        if rows == 0:
            if complete:
                self.book.add(_as_fault(empty_log(self.log.source)))
            return
        if self.log.unit == "row":
            if self.draws < 2:
                self.book.add(_as_fault(one_unit(None)))
        elif responses is not None and responses.size < 2 and complete:
            self.book.add(_as_fault(one_unit(self.unit)))
        self.warnings += self.sampling.warnings()
        if self.marks:
            self.repeats += count_repeats(np.concatenate(self.marks))
        if self.repeats:
            self.warnings.append(duplicate_warning(self.repeats, rows))
        if self.scattered:
            self.warnings.append(
                f"the rows of a prompt (column {self.unit!r}) are scattered over the log; a log sorted by it "
                "is read faster"
            )

    def _located(self, fault: Fault) -> Fault:
        place = None if fault.row is None else self.log.reader.locate(fault.row)
        return fault if place is None else replace(fault, message=f"{fault.message} ({place})")

    def _report(
        self, rows: int, complete: bool, responses: NDArray[np.float64] | None, max_faults: int
    ) -> ValidationReport:
        log = self.log
        found = [self._located(fault) for fault in self.book]
        reward = log.declared_range
        if reward is None and self.low <= self.high:
            reward = RewardRange(float(self.low), float(self.high), "observed")
        quantiles = None
        if responses is not None and responses.size:
            points = np.quantile(responses, [0, 0.25, 0.5, 0.75, 1])
            quantiles = dict(zip(("min", "25%", "median", "75%", "max"), points.tolist(), strict=True))
        used = set(log.columns.values())
        return ValidationReport(
            source=log.source,
            columns=dict(log.columns),
            types={name: str(field.type) for name, field in zip(log.schema.names, log.schema, strict=True)},
            other_columns=tuple(name for name in log.schema.names if name not in used),
            policies=log.policies,
            n_rows=rows,
            complete=complete,
            n_prompts=None if responses is None else int(responses.size),
            responses_per_prompt=quantiles,
            n_clusters=None if self.clusters is None else int(self.clusters.size),
            n_groups=None if self.groups is None else int(self.groups.size),
            scattered=self.scattered,
            reward_range=reward,
            faults=tuple(found[:max_faults]),
            n_faults=len(found),
            warnings=tuple(self.warnings),
            findings=self._signs(),
        )
