"""What every loss is computed from: one batch of logged responses, whole prompts at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from pope_fast.errors import SchemaError

__all__ = ["LossInputs", "wide"]

#: Rounding may leave a log-probability this far above 0 (as in the checks of a log).
_SLACK = 1e-3
_TOKENS = ("token_logprobs", "behavior_token_logprobs")
_INTEGERS = ("prompt", "cluster", "group")


def wide(values: Tensor) -> Tensor:
    """Return the values in double precision, or in single where the device has no double.

    Weights are exponentials of sums over hundreds of tokens and are multiplied with each other: the rows of a batch are
    few, so the precision costs nothing.
    """
    return values.float() if values.device.type == "mps" else values.double()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LossInputs:
    """A batch of N logged responses to P prompts; the responses of a prompt stand together.

    Attributes
    ----------
    logprob : Tensor, shape (N,)
        Sequence log-probability log pi(y|x) in nats under the policy being trained: the one that carries the gradient.
    behavior_logprob : Tensor, shape (N,)
        The same under the policy that wrote the log, as logged.
    reward : Tensor, shape (N,)
        Utility of each response.
    prompt : Tensor of int64, shape (N,)
        Index of the prompt in the batch, 0 to P - 1, never decreasing, none left out.
    cluster : Tensor of int64, shape (N,), optional
        Cluster (perspective) of each response; -1 for none: its probability counts, but it adds nothing to diversity.
    group : Tensor of int64, shape (N,), optional
        Annotator group that gave the reward, 0 to G - 1.
    count : Tensor, shape (N,), optional
        How many draws a row stands for, whole numbers; 1 by default. Every loss treats such a row exactly as that many
        equal rows.
    num_tokens : Tensor, shape (N,), optional
        Tokens of each response; taken from ``mask`` where that is given.
    ref_logprob : Tensor, shape (N,), optional
        Sequence log-probability under the reference policy. Without it the reference is the behavior policy.
    token_logprobs, behavior_token_logprobs : Tensor, shape (N, T), optional
        Log-probability of each token; where ``mask`` is 0 the value is ignored. ``token_logprobs`` carries gradient.
    mask : Tensor, shape (N, T), optional
        1 (or True) where there is a token of the response; needed with either of the two.
    value : Tensor, shape (N,), optional
        V(x) of the row's prompt from a value model, for ``dro_v`` and as a baseline.
    quantile : Tensor, shape (N,), optional
        Quantile of the reward among responses of the reference policy to the same prompt, in [0, 1], for ``qrpo``.

    Raises
    ------
    SchemaError
        If a shape, a type, or a value is not what it has to be.
    """

    logprob: Tensor
    behavior_logprob: Tensor
    reward: Tensor
    prompt: Tensor
    cluster: Tensor | None = None
    group: Tensor | None = None
    count: Tensor | None = None
    num_tokens: Tensor | None = None
    ref_logprob: Tensor | None = None
    token_logprobs: Tensor | None = None
    behavior_token_logprobs: Tensor | None = None
    mask: Tensor | None = None
    value: Tensor | None = None
    quantile: Tensor | None = None

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_values(self)

    @classmethod
    def from_tokens(cls, token_logprobs: Tensor, mask: Tensor, **others: Any) -> Self:
        """Build the batch from token log-probabilities: ``logprob`` is their sum, ``num_tokens`` that of the mask."""
        present = mask.bool()
        logprob = torch.where(present, wide(token_logprobs), 0.0).sum(dim=1)
        return cls(logprob=logprob, token_logprobs=token_logprobs, mask=present, **others)

    def __len__(self) -> int:
        return int(self.prompt.shape[0])

    @property
    def n_prompts(self) -> int:
        """Number P of prompts."""
        return int(self.prompt[-1]) + 1

    @property
    def draws(self) -> Tensor:
        """Draws of each row, shape (N,): ``count`` or ones."""
        return torch.ones_like(wide(self.reward)) if self.count is None else wide(self.count)

    @property
    def log_ratio(self) -> Tensor:
        """Log importance weight log pi(y|x) - log pi0(y|x) of each row, shape (N,); carries gradient."""
        return wide(self.logprob) - wide(self.behavior_logprob)

    @property
    def ref_log_ratio(self) -> Tensor:
        """``log pi(y|x) - log pi_ref(y|x)``, shape (N,); the reference is the behavior policy where none is given."""
        reference = self.behavior_logprob if self.ref_logprob is None else self.ref_logprob
        return wide(self.logprob) - wide(reference)

    @property
    def token_log_ratio(self) -> Tensor:
        """Log-ratio of each token, shape (N, T), 0 where there is none; carries gradient.

        Raises
        ------
        SchemaError
            If the token log-probabilities of both policies are not there.
        """
        if self.token_logprobs is None or self.behavior_token_logprobs is None or self.mask is None:
            raise SchemaError(
                "weights of tokens need the log-probabilities of tokens",
                column="behavior_token_logprobs" if self.token_logprobs is not None else "token_logprobs",
                remedy="give token_logprobs, behavior_token_logprobs and mask, or use level='sequence'",
            )
        difference = wide(self.token_logprobs) - wide(self.behavior_token_logprobs)
        return torch.where(self.mask.bool(), difference, 0.0)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each response, at least 1, shape (N,).

        Raises
        ------
        SchemaError
            If neither ``num_tokens`` nor ``mask`` is there.
        """
        if self.mask is not None:
            return wide(self.mask.bool().sum(dim=1)).clamp(min=1.0)
        if self.num_tokens is None:
            raise SchemaError("lengths are not known", column="num_tokens", remedy="give num_tokens or mask")
        return wide(self.num_tokens).clamp(min=1.0)

    def prompt_sum(self, values: Tensor) -> Tensor:
        """Sum over the draws of each prompt, shape (P,)."""
        total = torch.zeros(self.n_prompts, dtype=values.dtype, device=values.device)
        return total.index_add(0, self.prompt, self.draws.to(values.dtype) * values)

    def prompt_draws(self) -> Tensor:
        """Draws K_i of each prompt, shape (P,)."""
        return self.prompt_sum(torch.ones_like(self.draws))

    def prompt_mean(self, values: Tensor) -> Tensor:
        """Mean over the draws of each prompt, shape (P,): the unit means A_i, N_i of the estimators."""
        return self.prompt_sum(values) / self.prompt_draws()

    def mean(self, values: Tensor) -> Tensor:
        """Mean over prompts of the mean over draws, a scalar: the prompt is the independent unit."""
        return self.prompt_mean(values).mean()

    def of_prompt(self, values: Tensor) -> Tensor:
        """Spread values of prompts, shape (P,), to their rows, shape (N,)."""
        return values[self.prompt]

    def sum_of_others(self, values: Tensor) -> Tensor:
        """Sum over the *other* draws of the same prompt, shape (N,): one draw of the row itself is left out."""
        return self.of_prompt(self.prompt_sum(values)) - values

    def prompts(self, first: int, last: int) -> Self:
        """Return the part of the batch with prompts ``first`` to ``last - 1``, renumbered from 0."""
        rows = (self.prompt >= first) & (self.prompt < last)
        part: dict[str, Any] = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            part[field.name] = None if tensor is None else tensor[rows]
        return type(self)(**{**part, "prompt": part["prompt"] - first})

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on another device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._present().items()})

    def detach(self) -> Self:
        """Return the batch without gradient."""
        return replace(self, **{name: tensor.detach() for name, tensor in self._present().items()})

    @classmethod
    def concatenate(cls, parts: Sequence[LossInputs]) -> Self:
        """Put batches behind each other; token columns are padded to the longest.

        Raises
        ------
        SchemaError
            If a column is there in one part and missing in another.
        """
        columns: dict[str, Any] = {}
        for field in fields(cls):
            tensors = [getattr(part, field.name) for part in parts]
            present = [tensor for tensor in tensors if tensor is not None]
            if present and len(present) < len(tensors):
                raise SchemaError("some parts of the batch have it and some do not", column=field.name)
            if not present:
                columns[field.name] = None
            elif field.name == "prompt":
                shift = 0
                moved = []
                for part in parts:
                    moved.append(part.prompt + shift)
                    shift += part.n_prompts
                columns["prompt"] = torch.cat(moved)
            else:
                columns[field.name] = torch.cat(_padded(present) if present[0].dim() == 2 else present)
        return cls(**columns)

    def _present(self) -> dict[str, Tensor]:
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in columns.items() if tensor is not None}


def _padded(tensors: list[Tensor]) -> list[Tensor]:
    longest = max(tensor.shape[1] for tensor in tensors)
    return [torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors]


def _check_shapes(batch: LossInputs) -> None:
    if batch.prompt.dim() != 1 or batch.prompt.shape[0] == 0:
        raise SchemaError("must be a vector with at least one row", column="prompt")
    rows = batch.prompt.shape[0]
    table = None if batch.mask is None else tuple(batch.mask.shape)
    for name, tensor in batch._present().items():
        if name in _TOKENS or name == "mask":
            if table is None:
                raise SchemaError("needs mask, which says where tokens are", column=name, remedy="give mask")
            if tuple(tensor.shape) != table or len(table) != 2 or table[0] != rows:
                shapes = f"has shape {tuple(tensor.shape)}, mask {table}, and there are {rows} rows"
                raise SchemaError(shapes, column=name)
        elif tuple(tensor.shape) != (rows,):
            raise SchemaError(f"has shape {tuple(tensor.shape)}, not ({rows},) as prompt", column=name)
        if name in _INTEGERS and tensor.dtype != torch.int64:
            raise SchemaError(f"must be int64, not {tensor.dtype}", column=name)
        if tensor.device != batch.prompt.device:
            raise SchemaError(f"is on {tensor.device}, prompt on {batch.prompt.device}", column=name)


def _check_values(batch: LossInputs) -> None:
    """Look for values that cannot be; the answers of all checks come from the device at once."""
    step = torch.diff(batch.prompt, prepend=batch.prompt.new_tensor([-1]))
    bad: dict[tuple[str, str], Tensor] = {
        ("prompt", "must start at 0, never decrease and leave no index out"): (step < 0) | (step > 1) | _late(step)
    }
    for name in ("logprob", "behavior_logprob", "ref_logprob", *_TOKENS):
        tensor = getattr(batch, name)
        if tensor is not None:
            wrong = ~torch.isfinite(tensor) | (tensor > _SLACK)
            if tensor.dim() == 2 and batch.mask is not None:
                wrong = (wrong & batch.mask.bool()).any(dim=1)
            bad[name, "log-probabilities are finite and at most 0"] = wrong
    for name in ("reward", "value"):
        tensor = getattr(batch, name)
        if tensor is not None:
            bad[name, "must be finite"] = ~torch.isfinite(tensor)
    if batch.count is not None:
        bad["count", "must be a whole number of at least 1"] = ~(
            (batch.count >= 1) & (batch.count == batch.count.round())
        )
    if batch.quantile is not None:
        bad["quantile", "must lie in [0, 1]"] = ~((batch.quantile >= 0) & (batch.quantile <= 1))
    for name, least in (("cluster", -1), ("group", 0), ("num_tokens", 0)):
        tensor = getattr(batch, name)
        if tensor is not None:
            bad[name, f"must be at least {least}"] = ~(tensor >= least)
    found = torch.stack([wrong.any() for wrong in bad.values()]).tolist()
    for ((name, rule), wrong), is_bad in zip(bad.items(), found, strict=True):
        if is_bad:
            row = int(wrong.nonzero()[0, 0])
            shown = getattr(batch, name)[row]
            text = f"{rule}, got {shown.item():g}" if shown.dim() == 0 else rule
            raise SchemaError(text, column=name, row=row)


def _late(step: Tensor) -> Tensor:
    """Mark the first row unless it belongs to prompt 0: before it stands -1."""
    late = torch.zeros_like(step, dtype=torch.bool)
    late[0] = step[0] != 1
    return late
