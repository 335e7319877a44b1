"""Scoring the columns of a run: one base model at a time, plans made once, finished batches kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log import FeedbackLog
from pope_fast.log.progress import Meter, on_terminal
from pope_fast.score.encoding import Encoder
from pope_fast.score.loading import (
    file_stamp,
    library_versions,
    load_encoder,
    loaded_model,
    model_fingerprint,
    with_adapter,
)
from pope_fast.score.metadata import Provenance, read_provenance
from pope_fast.score.output import CopiedColumn, Names, ScoredColumn
from pope_fast.score.plan import Plan, make_plan
from pope_fast.score.policies import ColumnPolicy, HFPolicy, Policy, ServerPolicy
from pope_fast.score.rows import Tokenized, tokenize_log
from pope_fast.score.store import DiskStore, Job, MemoryStore, Part
from pope_fast.score.workers import default_device

__all__ = ["Options", "Task", "Work"]

# Padded tokens of a batch that goes to a server. Servers make batches of their own; this is what a killed run loses.
_SERVER_BATCH = 512

# Nats by which a token's log-prob may differ between two requests to one model; servers compute in half precision.
_SERVER_NOISE = 0.5

_LIBRARIES = ("torch", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Task:
    """One column to make: its policy, and whether it is the behavior policy's second scoring."""

    names: Names
    policy: Policy
    label: str
    again: bool = False


@dataclass(frozen=True, slots=True)
class Options:
    """What a run was asked for."""

    tokens: bool
    eos: Literal["auto", "always", "never"]
    share_prompt: bool | Literal["auto"]
    token_budget: int | None
    deterministic: bool
    progress: bool | None


@dataclass
class Work:
    """Scores tasks on one log; what several of them need is made once."""

    log: FeedbackLog
    store: DiskStore | MemoryStore
    options: Options
    notes: list[str] = field(default_factory=list)
    _encoders: dict[Any, Encoder | None] = field(default_factory=dict)
    _tokenized: dict[Any, Tokenized] = field(default_factory=dict)
    _plans: dict[Any, Plan] = field(default_factory=dict)

    @property
    def first(self) -> bool:
        """Whether this process makes the output."""
        return not isinstance(self.store, DiskStore) or self.store.rank == 0

    @property
    def _quiet(self) -> bool:
        """Whether others' progress bars are to stay off the screen, too."""
        return not self.first or not (on_terminal() if self.options.progress is None else self.options.progress)

    def columns(self, tasks: Sequence[Task]) -> list[ScoredColumn | CopiedColumn]:
        """Score all tasks; return their columns, in order, in the process that makes the output.

        Raises
        ------
        PopeError
            If a model cannot be loaded, a server fails, or an earlier run had other inputs.
        SchemaError
            If the log has no tokens for a policy.
        """
        made: dict[int, ScoredColumn | CopiedColumn | None] = {}
        for group in _by_load(tasks):
            with ExitStack() as stack:
                model = _Lazy(stack, tasks[group[0]].policy, self._quiet)
                for index in group:
                    task = tasks[index]
                    if isinstance(task.policy, ColumnPolicy):
                        made[index] = self._copied(task, task.policy)
                    elif isinstance(task.policy, ServerPolicy):
                        made[index] = self._served(task, task.policy)
                    else:
                        made[index] = self._modelled(task, task.policy, model)
        return [column for _, column in sorted(made.items()) if column is not None]

    def _copied(self, task: Task, policy: ColumnPolicy) -> CopiedColumn:
        if policy.column not in self.log.schema.names:
            have = ", ".join(self.log.schema.names)
            raise SchemaError(f"no such column; the log has: {have}", column=policy.column)
        known = read_provenance(self.log.schema).get(policy.column)
        provenance = Provenance(task.label, "column", model=policy.column) if known is None else known
        return CopiedColumn(task.names, replace(provenance, policy=task.label), policy.column)

    def _encoder(self, policy: HFPolicy | ServerPolicy) -> Encoder | None:
        given = policy.processing_class
        source = given if given is not None else policy.model if isinstance(policy, HFPolicy) else None
        key = (source if isinstance(source, str) else id(source), policy.revision, policy.trust_remote_code)
        if key not in self._encoders:
            self._encoders[key] = load_encoder(policy)
        return self._encoders[key]

    def _tokens(self, policy: HFPolicy | ServerPolicy, encoder: Encoder | None) -> Tokenized:
        key = (None, policy.tokens) if encoder is None else (encoder.fingerprint, encoder.template_hash, policy.tokens)
        if key not in self._tokenized:
            tokenized = tokenize_log(self.log, encoder, tokens=policy.tokens, eos=self.options.eos)
            self._note(tokenized.notes)
            self._tokenized[key] = tokenized
        return self._tokenized[key]

    def _plan(
        self, tokenized: Tokenized, context: int | None, budget: int, share: bool | Literal["auto"]
    ) -> tuple[Plan, dict[int, str]]:
        """Return the plan for a model, and the rows that it leaves out."""
        errors = dict(tokenized.errors)
        if context is not None:
            totals = tokenized.prompts.lengths + tokenized.completions.lengths
            for row in np.flatnonzero((totals > context) & ~tokenized.excluded()).tolist():
                errors[row] = f"{totals[row]} tokens of prompt and completion; the context of the model has {context}"
        excluded = np.zeros(len(tokenized.completions), np.bool_)
        excluded[list(errors)] = True
        key = (tokenized.fingerprint, budget, share, excluded.tobytes())
        if key not in self._plans:
            self._plans[key] = make_plan(
                tokenized.prompts, tokenized.completions, token_budget=budget, share_prompt=share, excluded=excluded
            )
        return self._plans[key], errors

    def _note(self, notes: Iterable[str]) -> None:
        self.notes.extend(note for note in notes if note not in self.notes)

    def _modelled(self, task: Task, policy: HFPolicy, model: _Lazy) -> ScoredColumn | None:
        encoder = self._encoder(policy)
        tokenized = self._tokens(policy, encoder)
        stamp = file_stamp(policy)
        entry = self.store.entry(task.names.logprob)
        before = entry["facts"] if entry is not None else {}
        share: bool | Literal["auto"] = False if task.again else self.options.share_prompt
        as_before = self.options.token_budget in (None, before.get("budget")) and before.get("share") in (share, False)
        if stamp is not None and before.get("stamp") == stamp and as_before:
            plan, errors = self._plan(tokenized, before["context"], before["budget"], before["share"])
            key = self._key(task, tokenized, encoder, plan, before["model"])
            job = self.store.job(task.names.logprob, key, before)
            if not job.missing(plan):
                return self._column(task, tokenized, encoder, plan, errors, job, before["model"])

        from pope_fast.score.model import ModelScorer

        # What a run began with, it ends with, also on a device that suits another budget.
        kept = before.get("budget") if self.options.token_budget is None else None
        with with_adapter(model.get(), policy) as active:
            scorer = ModelScorer(
                active,
                temperature=policy.temperature,
                token_budget=self.options.token_budget or kept,
                share_prompt=share,
                deterministic=self.options.deterministic,
            )
            # For a second scoring, other batches than the first time: that is what is to be measured.
            budget = kept or (max(1, scorer.token_budget // 2) if task.again else scorer.token_budget)
            planned = share if scorer.shares_prompts else False
            about = {
                "name": policy.model if not policy.loaded else getattr(active.config, "_name_or_path", "") or None,
                "fingerprint": model_fingerprint(active),
                "dtype": scorer.dtype,
                "attention": scorer.attention,
                "device": scorer.device.type,
                "versions": library_versions(*_LIBRARIES),
            }
            plan, errors = self._plan(tokenized, scorer.context_length, budget, planned)
            self._check_vocabulary(policy, tokenized, errors, scorer.vocab_size)
            facts = {
                **{"stamp": stamp, "context": scorer.context_length, "budget": budget, "share": planned},
                "model": about,
            }
            key = self._key(task, tokenized, encoder, plan, about)
            job = self.store.job(task.names.logprob, key, facts)

            def run(batches: Iterable[int]) -> Iterator[Part]:
                for scores in scorer.run(plan, batches):
                    yield Part((scores.batch,), scores.pairs, scores.offsets, scores.logprobs)

            self._score(task, plan, job, run)
        return self._column(task, tokenized, encoder, plan, errors, job, about)

    def _served(self, task: Task, policy: ServerPolicy) -> ScoredColumn | None:
        from pope_fast.score.server import ServerScorer

        encoder = self._encoder(policy)
        tokenized = self._tokens(policy, encoder)
        scorer = ServerScorer(policy, encoder, resumable=isinstance(self.store, DiskStore))
        entry = self.store.entry(task.names.logprob)
        before = entry["facts"] if entry is not None else {}
        plan, errors = self._plan(tokenized, scorer.context_length, _SERVER_BATCH, True)
        probe = self._probe(policy, scorer, plan, before) if plan.n_pairs else []
        about = {
            "name": f"{policy.base_url} {scorer.model}".strip(),
            "fingerprint": scorer.fingerprint,
            "api": scorer.api,
            "versions": library_versions(),
        }
        key = self._key(task, tokenized, encoder, plan, about)
        job = self.store.job(task.names.logprob, key, {"probe": probe, "model": about})
        self._score(task, plan, job, lambda batches: scorer.run(plan, batches))
        return self._column(task, tokenized, encoder, plan, errors, job, about)

    def _probe(self, policy: ServerPolicy, scorer: Any, plan: Plan, before: dict[str, Any]) -> list[float]:
        """Find out how to ask the server, and whether it still has the model that an earlier run asked."""
        pair = int(plan.order[-1])
        logprobs = scorer.probe(
            plan.prompts[int(plan.pair_prompt[pair])], plan.completions[int(plan.pair_completion[pair])]
        )
        probe = [float(value) for value in np.maximum(logprobs, -1e30)]
        earlier = before.get("probe") or probe
        if len(earlier) == len(probe) and max(map(abs, np.subtract(earlier, probe)), default=0.0) > _SERVER_NOISE:
            raise PopeError(
                f"policy {policy.name!r}: {policy.base_url} gives other log-probs than when this run began; it serves "
                "another model. Remedy: serve the first one again, or score anew with restart=True (--restart)."
            )
        return earlier

    def _key(
        self, task: Task, tokenized: Tokenized, encoder: Encoder | None, plan: Plan, about: dict[str, Any]
    ) -> dict[str, Any]:
        """Return what the scores depend on: a run continues only one with the same."""
        template = encoder.template_hash if encoder is not None and tokenized.uses_template else None
        key: dict[str, Any] = {
            "the log": tokenized.fingerprint,
            "the batches": plan.fingerprint,
            "the model": about["fingerprint"],
            "the tokenizer": None if encoder is None else encoder.fingerprint,
            "the chat template": template,
            "temperature": getattr(task.policy, "temperature", 1.0),
            "deterministic": self.options.deterministic,
            "library versions": about["versions"],
        }
        return key | {name: about[name] for name in ("dtype", "attention", "device", "api") if name in about}

    def _check_vocabulary(
        self, policy: HFPolicy, tokenized: Tokenized, errors: dict[int, str], vocabulary: int
    ) -> None:
        """Refuse ids that the model does not know."""
        for role, lists in (("prompt", tokenized.prompts), ("completion", tokenized.completions)):
            outside = np.flatnonzero(lists.values >= vocabulary)
            rows: npt.NDArray[Any] = np.unique(np.searchsorted(lists.offsets, outside, side="right") - 1)
            row = next((int(row) for row in rows if int(row) not in errors), None)
            if row is None:
                continue
            token = int(lists[row].max())
            stored = tokenized.columns.get(f"{role}_ids")
            if stored is None:
                raise PopeError(
                    f"policy {policy.name!r}: its tokenizer gives token {token} (row {row}), and its model has "
                    f"{vocabulary} tokens. Remedy: give the tokenizer of the model (processing_class=, --tokenizer)."
                )
            place = self.log.reader.locate(row)
            raise SchemaError(
                f"token id {token} is outside of the vocabulary of policy {policy.name!r} ({vocabulary} tokens)"
                + (f" ({place})" if place else ""),
                column=stored,
                row=row,
                remedy="the ids are of another tokenizer: score the text with this policy's own, tokens='text' "
                "(--retokenize)",
            )

    def _score(self, task: Task, plan: Plan, job: Job, run: Callable[[Iterable[int]], Iterator[Part]]) -> None:
        """Score what is missing of this process's share; the first process also scores what others leave over."""
        sizes = plan.batch_tokens
        batches = self.store.share(job.missing(plan))
        while True:
            shown = self.options.progress if self.first else False
            meter = Meter(int(sizes[batches].sum()), shown, f"scoring {task.label}", unit="tokens")
            try:
                for part in run(batches) if batches else ():
                    job.add(part)
                    meter.advance(int(sizes[list(part.batches)].sum()))
            finally:
                # Also after Ctrl-C or a server that died: what is finished is not lost.
                meter.stop()
                job.flush()
            batches = self.store.left_over(job, plan) if self.first else []
            if not batches:
                return

    def _column(
        self,
        task: Task,
        tokenized: Tokenized,
        encoder: Encoder | None,
        plan: Plan,
        errors: dict[int, str],
        job: Job,
        about: dict[str, Any],
    ) -> ScoredColumn | None:
        if not self.first:
            return None
        policy = task.policy
        provenance = Provenance(
            policy=task.label,
            engine="server" if isinstance(policy, ServerPolicy) else "transformers",
            model=about["name"],
            model_fingerprint=about["fingerprint"],
            tokenizer_fingerprint=None if encoder is None else encoder.fingerprint,
            template_hash=encoder.template_hash if encoder is not None and tokenized.uses_template else None,
            adapter=None if getattr(policy, "adapter", None) is None else str(getattr(policy, "adapter", None)),
            dtype=about.get("dtype"),
            attention=about.get("attention"),
            temperature=getattr(policy, "temperature", 1.0),
            versions=about["versions"],
            tokens=tokenized.tokens,
            prompts=tokenized.prompt_source,
            eos=tokenized.eos,
            boundary_mismatches=tokenized.boundary_mismatches,
            rows=len(tokenized.completions),
        )
        scores = job.collect(plan, tokens=self.options.tokens)
        column = ScoredColumn(task.names, provenance, plan.inverse, scores, errors)
        self._note_errors(task, column)
        return replace(column, provenance=replace(provenance, errors=column.count_errors()))

    def _note_errors(self, task: Task, column: ScoredColumn) -> None:
        if column.has_errors:
            row, reason = column.first_error()
            self._note(
                [
                    f"{task.label}: {column.count_errors():,} of {column.inverse.size:,} rows have no log-prob (row "
                    f"{row}: {reason}); column {column.names.error!r} says why, and evaluation needs these rows dropped"
                ]
            )


class _Lazy:
    """A model that is loaded when it is first needed, and stays until the end of its group."""

    def __init__(self, stack: ExitStack, policy: Policy, quiet: bool) -> None:
        self._stack = stack
        self._quiet = quiet
        self._policy = policy
        self._model: Any = None

    def get(self) -> Any:
        if self._model is None:
            assert isinstance(self._policy, HFPolicy)
            self._model = self._stack.enter_context(loaded_model(self._policy, default_device(), quiet=self._quiet))
        return self._model


def _by_load(tasks: Sequence[Task]) -> list[list[int]]:
    """Group tasks by the model that they load, in order of first appearance."""
    groups: dict[Any, list[int]] = {}
    for index, task in enumerate(tasks):
        key = task.policy.load_key() if isinstance(task.policy, HFPolicy) else ("alone", index)
        groups.setdefault(key, []).append(index)
    return list(groups.values())
