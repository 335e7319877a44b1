"""The feedback log: rows of any source as a stream of arrays, with the rows of a unit side by side."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa

from pope_fast import _core
from pope_fast.errors import PopeError, PopeWarning, SchemaError
from pope_fast.log.arrays import text_hashes
from pope_fast.log.batches import LogBatch, Plan, convert, has_role, make_plan, unit_keys
from pope_fast.log.columns import (
    ColumnMap,
    Fault,
    Resolution,
    preferred_type,
    split_role,
)
from pope_fast.log.progress import Meter
from pope_fast.log.ranges import RewardRange, empty_log, find_range
from pope_fast.log.readahead import read_ahead
from pope_fast.log.remedies import missing_column
from pope_fast.log.scatter import gather
from pope_fast.log.signals import (
    SamplingCheck,
    count_repeats,
    duplicate_rows,
    duplicate_warning,
    lengths_or_none,
    retokenized_warning,
)
from pope_fast.log.sources import Source

__all__ = ["FeedbackLog", "ScatteredRowsError", "one_unit", "retokenized"]

T = TypeVar("T")

BATCH_ROWS = 1 << 20
_PREVIEW_ROWS = 1 << 16


class ScatteredRowsError(PopeError):
    """A unit's rows came back after other rows: what was folded so far has to be folded again, gathered."""


class FeedbackLog:
    """A feedback log, opened but not read; made by :func:`read_log`.

    Attributes
    ----------
    schema : pyarrow.Schema
        All columns, also those that play no role.
    columns : ColumnMap
        Role -> column.
    policies : tuple of str
        The target policies.
    source : str
        Where the rows come from, for people.
    reader : Source
        What reads them.
    unit : str
        The independent unit unless a pass says otherwise.
    scattered : bool
        Whether some unit's rows were found apart, and are gathered on every pass.
    warnings : list of str
        What was noticed while reading.
    sampling : SamplingCheck or None
        What the rows say of the sampler, once they were read.
    cluster_labels, group_labels : dict of int to str
        Names of the integer keys in :class:`LogBatch`, filled while batches are read (up to 65,536 each);
        integer columns are their own names.
    faults : tuple of Fault
        What is wrong with the schema; empty for a log from :func:`read_log`.
    """

    def __init__(
        self,
        source: Source,
        resolution: Resolution,
        *,
        declared_range: RewardRange | None = None,
        unit: str = "prompt",
        memory_limit: int = 1 << 30,
        temp_dir: str | None = None,
        progress: bool | None = None,
    ) -> None:
        self.reader = source
        self.schema: pa.Schema = source.schema
        self.columns: ColumnMap = resolution.columns
        self.policies: tuple[str, ...] = resolution.policies
        self.faults: tuple[Fault, ...] = resolution.faults
        self.source: str = source.description
        self.unit = unit
        self.warnings: list[str] = []
        self.cluster_labels: dict[int, str | int] = {}
        self.group_labels: dict[int, str | int] = {}
        self._declared = declared_range
        self._range: RewardRange | None = declared_range
        self._memory_limit = memory_limit
        self._temp_dir = temp_dir
        self._progress = progress
        self._rows_read: int | None = None
        self._contiguous: dict[str, bool] = {}
        self._unsaid: list[str] = []
        self._previewed = False
        self._aa_column: str | None = None
        self.sampling: SamplingCheck | None = None
        source.roles = frozenset(self.columns.values())
        source.refine(
            {
                name: preferred_type(self.columns.role_of(name), self.schema.field(name).type)
                for name in self.schema.names
                if self.schema.names.count(name) == 1
            }
        )
        self.schema = source.schema  # mixed columns are settled by what plays a role

    def __repr__(self) -> str:
        rows = "" if self.num_rows is None else f", {self.num_rows:,} rows"
        return f"FeedbackLog({self.source!r}{rows}, policies: {', '.join(self.policies) or 'none'})"

    @property
    def num_rows(self) -> int | None:
        """Number of rows, None while only reading could tell."""
        known = self.reader.num_rows
        return self._rows_read if known is None else known

    @property
    def scattered(self) -> bool:
        """Whether some unit's rows were found apart."""
        return not all(self._contiguous.values())

    @property
    def declared_range(self) -> RewardRange | None:
        """The reward range that was declared, None if none was."""
        return self._declared

    def has(self, role: str) -> bool:
        """Tell whether the log can fill a role, e.g. "cluster", "num_tokens" or "target_logprob/NAME"."""
        return has_role(self.columns, self.policies, role)

    def fingerprint(self) -> str:
        """Return a cheap digest of the log: it changes when sizes, times or the schema do."""
        return self.reader.fingerprint()

    def record_batches(self, columns: Sequence[str], batch_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the given columns as they are, in the log's order, at most ``batch_rows`` rows at a time."""
        for name in columns:
            if name not in self.schema.names:
                raise missing_column(name, self.schema.names)
        return self.reader.read(columns, batch_rows)

    def reward_range(self) -> RewardRange:
        """Return the interval that holds every reward.

        The declared one; (0, 1) for booleans; else the observed one, from a pass over that column alone.

        Raises
        ------
        SchemaError
            If there is no reward, or an observed one is null, NaN or infinite.
        """
        if self._range is None:
            column = self.columns.get("reward")
            if column is None:
                raise missing_column("reward", self.schema.names)
            self._range = find_range(self.reader, column, self._where)
        return self._range

    def to_arrow(self) -> pa.Table:
        """Read every column and row, as they are, into a table in memory; metadata of the schema come along."""
        batches = list(self.reader.read(list(self.schema.names), BATCH_ROWS))
        return pa.Table.from_batches(batches, schema=self.schema if not batches else None).replace_schema_metadata(
            self.schema.metadata
        )

    def batches(
        self,
        roles: Iterable[str] | None = None,
        *,
        unit: str | None = None,
        batch_rows: int = BATCH_ROWS,
        policies: Sequence[str] | None = None,
        aa_policy: str | None = None,
        progress: bool | None = None,
        on_scattered: Literal["gather", "raise"] = "gather",
    ) -> Iterator[LogBatch]:
        """Stream the log as arrays; only the columns that are needed are read.

        Parameters
        ----------
        roles : iterable of str, optional
            Optional roles wanted: cluster, group, count, num_tokens, baseline, embedding; None for all that are there.
        unit : str, optional
            "prompt", "row" or a column; the log's unit by default.
        batch_rows : int
            Most rows per batch; with wide embeddings there are fewer.
        policies : sequence of str, optional
            Some of the log's policies, or none: all by default, of which there must be one.
        aa_policy : str, optional
            A column, or a policy of the log, with the behavior policy's log-probs scored a second time;
            comes as ``aa_logprob``.
        progress : bool, optional
            As in :func:`read_log`, whose value holds by default.
        on_scattered : {"gather", "raise"}
            With "gather" the unit's column is read once before, to see whether rows must be gathered.
            With "raise" a unit that comes back ends the iteration with :class:`ScatteredRowsError`, and
            the next one gathers: :meth:`fold` does this.

        Yields
        ------
        LogBatch
            All rows of a unit are consecutive, possibly over several batches.

        Raises
        ------
        SchemaError
            For whatever keeps the rows from being used; :func:`pope_fast.validate` finds all of it.
        """
        unit = self.unit if unit is None else unit
        for name in policies or ():
            if name not in self.policies:
                raise missing_column(f"target_logprob/{name}", self.schema.names)
        chosen = self.policies if policies is None else tuple(policies)
        if policies is None and not chosen:
            raise missing_column("target_logprob", self.schema.names)
        plan = make_plan(self.schema, self.columns, chosen, roles, unit=unit, aa_policy=aa_policy)
        if self.faults:
            raise self.faults[0].to_error()
        if batch_rows < 1:
            raise PopeError(f"batch_rows must be at least 1, not {batch_rows}")
        self._aa_column = None if plan.aa is None else plan.aa.column
        shown = self._progress if progress is None else progress
        return self._batches(plan, unit, plan.rows_per_batch(self.schema, batch_rows), shown, on_scattered)

    def fold(
        self,
        start: Callable[[], T],
        step: Callable[[T, LogBatch], object],
        roles: Iterable[str] | None = None,
        **options: Any,
    ) -> T:
        """Fold the batches into a state, in one pass where the log allows it.

        Parameters
        ----------
        start : callable
            Returns an empty state.
        step : callable
            Takes a state and a batch; a :class:`SchemaError` that it raises is located in the log.
        roles, **options
            As in :meth:`batches`.

        Returns
        -------
        state
            If rows turn out to be scattered, the fold starts again from an empty state, on gathered rows.
        """
        wanted = None if roles is None else tuple(roles)
        while True:
            state = start()
            iterator = self.batches(wanted, **{**options, "on_scattered": "raise"})
            try:
                for batch in iterator:
                    try:
                        step(state, batch)
                    except SchemaError as error:
                        raise self.locate(batch, error) from error
                return state
            except ScatteredRowsError:
                continue
            finally:
                getattr(iterator, "close", lambda: None)()

    def locate(self, batch: LogBatch, error: SchemaError) -> SchemaError:
        """Translate a kernel's error, which knows role and row in the batch, into the user's terms."""
        role = error.column
        stem, policy = split_role(role) if role is not None else (None, None)
        column = role
        if role is not None and stem is not None:
            tokens = stem.replace("_logprob", "_token_logprobs")
            named = (role, stem) if policy is None else (f"{stem}/{policy}", f"{tokens}/{policy}")
            for known in (*named, tokens):
                if known in self.columns:
                    column = self.columns[known]
                    break
            else:
                if self._aa_column is not None and stem in ("target_logprob", "aa_logprob"):
                    # A policy that the log does not know: the behavior policy, scored again.
                    column = self._aa_column
        row = error.row
        if row is not None:
            row = batch.first_row + row if batch.row_index is None else int(batch.row_index[row])
        return self._where(SchemaError(error.message, column=column, row=row, remedy=error.remedy))

    def _where(self, error: SchemaError) -> SchemaError:
        """Add the file and the row or line in it to an error that knows its global row."""
        place = None if error.row is None else self.reader.locate(error.row)
        if place is None:
            return error
        return SchemaError(f"{error.message} ({place})", column=error.column, row=error.row, remedy=error.remedy)

    @contextmanager
    def _locating(self) -> Iterator[None]:
        try:
            yield
        except SchemaError as error:
            raise self._where(error) from error

    def _batches(
        self, plan: Plan, unit: str, batch_rows: int, shown: bool | None, on_scattered: str
    ) -> Iterator[LogBatch]:
        self._preview(plan)
        if plan.unit is not None and unit not in self._contiguous and on_scattered == "gather":
            self._contiguous[unit] = self._is_contiguous(plan)
        meter = Meter(self.num_rows, shown)
        scattered = not self._contiguous.get(unit, True)
        rows = self._converted(plan, unit, batch_rows, meter, watch=not scattered)
        if scattered:
            self._warn_scattered(plan)
            rows = gather(rows, memory_limit=self._memory_limit, temp_dir=self._temp_dir, batch_rows=batch_rows)
        ahead = read_ahead(rows)
        try:
            for batch in ahead:
                self._say()
                yield batch
            self._say()
        finally:
            ahead.close()  # type: ignore[attr-defined]
            meter.stop()

    def _converted(self, plan: Plan, unit: str, batch_rows: int, meter: Meter, *, watch: bool) -> Iterator[LogBatch]:
        """Convert batch after batch on the reading thread, watching for units that come back."""
        sampling = SamplingCheck(self.schema, self.columns)
        columns = list(dict.fromkeys([*plan.columns(), *sampling.columns]))
        scan = _core.UnitScan() if watch and plan.unit is not None else None
        row, width = 0, None
        for record_batch in self.reader.read(columns, batch_rows):
            meter.advance(record_batch.num_rows)
            with self._locating():
                batch = convert(record_batch, plan, row, self.cluster_labels, self.group_labels, width)
            if batch.embedding is not None and len(batch):
                width = batch.embedding.shape[1]
            if sampling.columns:
                sampling.feed(record_batch)
            if scan is not None and batch.unit_key is not None:
                back = scan.feed(batch.unit_key)
                if back >= 0:
                    self._contiguous[unit] = False
                    raise ScatteredRowsError(f"the unit of row {row + back} came back after other rows")
            row += len(batch)
            yield batch
        self._rows_read = row
        self.sampling = sampling
        for message in sampling.warnings():
            self._note(message)
        if row == 0:
            raise empty_log(self.source)
        single = (row == 1 and "count" not in plan.optional) if plan.unit is None else None
        if scan is not None:
            self._contiguous[unit] = True
            single = scan.n_units < 2
        if single:
            raise one_unit(plan.unit)

    def _is_contiguous(self, plan: Plan) -> bool:
        """Read the unit's column alone to see whether every unit's rows are consecutive."""
        assert plan.unit is not None
        scan = _core.UnitScan()
        row = 0
        for batch in read_ahead(self.reader.read([plan.unit], BATCH_ROWS)):
            with self._locating():
                keys = unit_keys(batch, plan.unit, plan.unit_role, row)
            if keys is not None and scan.feed(keys) >= 0:
                return False
            row += batch.num_rows
        return True

    def _preview(self, plan: Plan) -> None:
        """Look at the first rows' texts for repeats and for token ids that do not fit the log-probs."""
        if self._previewed:
            return
        self._previewed = True
        text = self.columns.get("completion") or self.columns.get("completion_ids")
        if text is None:
            return
        lists = [source.column for source in (plan.behavior, *plan.targets.values()) if source.tokens]
        ids = self.columns.get("completion_ids") if lists else None
        wanted = [name for name in (text, plan.unit, ids, *lists) if name is not None]
        reader = self.reader.read(list(dict.fromkeys(wanted)), _PREVIEW_ROWS)
        batch = next(reader, None)
        getattr(reader, "close", lambda: None)()
        if batch is None:
            return
        if "count" not in self.columns:
            keys = unit_keys(batch, plan.unit, plan.unit_role, 0)
            repeats = count_repeats(duplicate_rows(keys, text_hashes(batch.column(text))))
            if repeats:
                self._note(duplicate_warning(repeats, batch.num_rows))
        if ids is not None:
            message = retokenized(batch, ids, lists, 0)
            if message is not None:
                self._note(message)

    def _warn_scattered(self, plan: Plan) -> None:
        self._note(
            f"the rows of a unit (column {plan.unit!r}) are scattered over the log: they are gathered by "
            "hash, in temporary files if memory is short; a log sorted by it is read faster"
        )

    def _note(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)
            self._unsaid.append(message)

    def _say(self) -> None:
        """Issue pending warnings from the caller's thread, where warning filters are meant to hold."""
        while self._unsaid:
            warnings.warn(self._unsaid.pop(0), PopeWarning, stacklevel=4)


def retokenized(batch: pa.RecordBatch, ids: str, lists: Sequence[str], first_row: int) -> str | None:
    """Return a warning if a row has another number of token log-probs than of completion_ids."""
    expected = lengths_or_none(batch.column(ids))
    for column in lists:
        lengths = lengths_or_none(batch.column(column))
        if expected is None or lengths is None:
            continue
        rows = np.flatnonzero((lengths != expected) & (lengths >= 0) & (expected >= 0))
        if rows.size:
            row = int(rows[0])
            return retokenized_warning(column, first_row + row, int(lengths[row]), int(expected[row]))
    return None


def one_unit(column: str | None) -> SchemaError:
    """Return the error for a log with a single unit."""
    what = "row" if column is None else f"value of {column!r}"
    return SchemaError(
        f"the log has only one unit (one {what})",
        column=column,
        remedy="an interval needs at least two independent units; if rows are, evaluate with unit='row'",
    )
