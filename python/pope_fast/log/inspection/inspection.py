"""One look at every row of a log, and what it gives away about how the log was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pope_fast.log.batches import LOGPROB_SLACK, LogBatch
from pope_fast.log.inspection.lengths import averaged_signs
from pope_fast.log.inspection.logprobs import SameColumns, certain_signs
from pope_fast.log.inspection.repeats import no_repeat_signs, prompt_likeness, repeat_signs
from pope_fast.log.inspection.rewards import RewardValues, sentinel_signs
from pope_fast.log.inspection.sample import HashSample, Places, Rows, rows_at
from pope_fast.log.inspection.signs import AVERAGED, CERTAIN, REPEATED, Sign

__all__ = ["HEAD_ROWS", "Inspection", "Texts"]

#: Texts are looked at in so many rows at the start of a log: reading all of them would be most of an evaluation.
HEAD_ROWS = 1 << 16

_SAMPLE_ROWS = 1 << 14
_SAMPLE_VALUES = 1 << 19
_FEWEST_SAMPLED = 1 << 11


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a batch's responses: a hash of each, and its length in bytes (or tokens), if it has one."""

    hashes: NDArray[np.uint64]
    lengths: NDArray[np.int64] | None


class Inspection:
    """Watches the rows of a log for inputs that look right and are not.

    What it holds depends on the rows alone, not on their order or partition, and does not grow with the log: counts of
    rewards, and two samples of rows by hash, one of whole prompts and one of all rows of certain log-probs.

    Parameters
    ----------
    policies : sequence of str
        The target policies.
    prompts : bool
        Whether the unit is the prompt, so that rows of a unit are responses to the same words.

    Attributes
    ----------
    n_rows : int
        Rows that were looked at.
    impossible : set of str
        Policies that no response seen so far is possible under.
    """

    def __init__(self, policies: Sequence[str], *, prompts: bool) -> None:
        self.policies = tuple(policies)
        capacity = max(_FEWEST_SAMPLED, min(_SAMPLE_ROWS, _SAMPLE_VALUES // max(len(self.policies), 1)))
        self.n_rows = 0
        self.aggregated = False
        self.rewards = RewardValues()
        self.same = SameColumns(self.policies)
        self.impossible = set(self.policies)
        self.by_prompt = HashSample(capacity) if prompts else None
        self.by_value = HashSample(capacity)

    def add(self, batch: LogBatch, texts: Texts | None = None, *, checked: bool = False) -> None:
        """Look at a batch.

        Parameters
        ----------
        batch : LogBatch
            Rows of the log.
        texts : Texts, optional
            Of their responses.
        checked : bool
            Whether a kernel took these rows; else those that it would refuse are passed over.
        """
        self.aggregated = self.aggregated or batch.count is not None
        places: Places = batch.first_row if batch.row_index is None else batch.row_index
        self.same.add(batch.behavior_logprob, batch.target_logprob)
        for policy in tuple(self.impossible):
            if np.isfinite(batch.target_logprob[policy]).any():
                self.impossible.discard(policy)
        columns: dict[str, NDArray[Any]] = {
            "behavior": batch.behavior_logprob,
            "reward": batch.reward,
            **{_column(i): batch.target_logprob[policy] for i, policy in enumerate(self.policies)},
        }
        if batch.unit_key is not None:
            columns["unit"] = batch.unit_key
        if batch.cluster is not None:
            columns["cluster"] = batch.cluster
        if batch.num_tokens is not None:
            columns["length"] = batch.num_tokens
        if texts is not None:
            columns["text"] = texts.hashes
            if texts.lengths is not None:
                columns.setdefault("length", texts.lengths)
        good = None if checked else _possible(columns["behavior"], columns["reward"])
        if good is not None:
            columns = {name: values[good] for name, values in columns.items()}
            places = rows_at(places, good)
        self.n_rows += len(columns["behavior"])
        self.rewards.add(columns["reward"], places)
        if self.by_prompt is not None and "unit" in columns:
            self.by_prompt.add(columns["unit"], columns, places)
        self.by_value.add(columns["behavior"], columns, places)

    def merge(self, other: Inspection) -> None:
        """Take in what was seen of other rows of the log."""
        self.n_rows += other.n_rows
        self.aggregated = self.aggregated or other.aggregated
        self.rewards.merge(other.rewards)
        self.same.merge(other.same)
        self.impossible &= other.impossible
        self.by_value.merge(other.by_value)
        if self.by_prompt is not None and other.by_prompt is not None:
            self.by_prompt.merge(other.by_prompt)

    def signs(
        self,
        columns: Mapping[str, str],
        *,
        head: Inspection | None = None,
        declared: tuple[float, float] | None = None,
    ) -> list[Sign]:
        """Say what was found.

        Parameters
        ----------
        columns : mapping of str to str
            Role -> column.
        head : Inspection, optional
            What was seen of the first rows with their texts.
        declared : (float, float), optional
            The range of the reward, if it was declared.
        """
        targets = {policy: _column(i) for i, policy in enumerate(self.policies)}
        known = {policy: _of_role(columns, f"target_logprob/{policy}") for policy in self.policies}
        behavior = behavior_column(columns)
        named = {policy: column for policy, column in known.items() if column is not None}
        prompts, values = _doubles(self.by_prompt), _doubles(self.by_value)
        first = {} if head is None else _doubles(head.by_prompt)
        first_values = {} if head is None else _doubles(head.by_value)
        likeness, by_text = prompt_likeness(prompts), prompt_likeness(first)
        signs = self._averaged(prompts or values, first or first_values, targets, likeness, by_text, named, behavior)
        signs += self.same.signs(named, behavior)
        names = list(targets.values())
        if not self.aggregated:
            repeated = repeat_signs(prompts, values, self.n_rows, names, behavior)
            if not repeated and head is not None:
                repeated = repeat_signs(first, {}, head.n_rows, names, behavior, head=True)
            signs += repeated
        some = prompts or values
        if some:
            found = {policy: some[column] for policy, column in targets.items()}
            signs += certain_signs(some["behavior"], found, some["row"], self.n_rows, named, behavior)
        # Log-probs that are means, or 0 for unknown, do not come twice either, which is said already.
        if not self.aggregated and not any(sign.code in (AVERAGED, REPEATED, CERTAIN) for sign in signs):
            signs += no_repeat_signs(by_text or likeness, behavior)
        signs += sentinel_signs(self.rewards, columns.get("reward"), declared)
        return signs

    def _averaged(
        self,
        rows: Rows,
        first: Rows,
        targets: Mapping[str, str],
        likeness: Any,
        by_text: Any,
        named: Mapping[str, str],
        behavior: str | None,
    ) -> list[Sign]:
        """Look for means over tokens, by the number of tokens or else by the length of the texts."""
        alike = by_text or likeness
        if "length" in rows:
            return averaged_signs(rows, targets, alike, named, behavior, "number of tokens")
        return averaged_signs(first, targets, alike, named, behavior, "length of the text")


def _column(i: int) -> str:
    return f"target {i}"


def behavior_column(columns: Mapping[str, str]) -> str | None:
    """Return the column of the behavior policy's log-probs."""
    return _of_role(columns, "behavior_logprob")


def _of_role(columns: Mapping[str, str], role: str) -> str | None:
    """Return the column of a policy's log-probs, one per response or per token."""
    return columns.get(role) or columns.get(role.replace("_logprob", "_token_logprobs", 1))


def _doubles(sample: HashSample | None) -> Rows:
    """Return a sample in the log's order, so that sums have the same bits, with its numbers in double precision."""
    rows = {} if sample is None else sample.rows()
    if not rows:
        return {}
    order = np.argsort(rows["row"])
    return {
        name: (values.astype(np.float64, copy=False) if values.dtype.kind == "f" else values)[order]
        for name, values in rows.items()
    }


def _possible(behavior: NDArray[Any], reward: NDArray[Any]) -> NDArray[np.int64] | None:
    """Return the rows whose log-prob and reward can be, ``None`` if all: the others are refused elsewhere."""
    if not len(behavior):
        return None
    # NaN fails the comparisons too, so a pass or two over a column find what there is.
    if -np.inf < behavior.min() and behavior.max() <= LOGPROB_SLACK and np.isfinite(reward.min() + reward.max()):
        return None
    return np.flatnonzero(np.isfinite(behavior) & (behavior <= LOGPROB_SLACK) & np.isfinite(reward))
