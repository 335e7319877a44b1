"""Log-probs of completions under the model in training, with gradient and without a tensor of all logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pope_fast.score.head import Head, find_head, token_logprobs

__all__ = ["completion_logprobs", "head_of"]


def completion_logprobs(model: Any, head: Head | None, batch: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
    """Return the log-prob of every completion token.

    The model is called as a whole, so that wrappers for several devices see it, but for the logits of one position
    only; those of the completions are computed in tiles from the last hidden states (:func:`token_logprobs`), and
    never all at once.

    Parameters
    ----------
    model
        A causal language model, possibly wrapped.
    head : Head or None
        Its head as :func:`head_of` found it; None computes the logits of the completions in full.
    batch : mapping
        ``input_ids`` and ``attention_mask`` (N, L), ``completion_ids`` and ``completion_mask`` (N, T), and
        ``prompt_length`` (N,), as of :class:`~pope_fast.align.data.Collator`.
    temperature : float

    Returns
    -------
    Tensor of float32, shape (N, T)
        In nats; 0 where the mask is.
    """
    mask = batch["completion_mask"]
    # The logits at position j are about token j + 1.
    position = batch["prompt_length"].unsqueeze(1) - 1 + torch.arange(mask.shape[1], device=mask.device)
    position = position.clamp(max=batch["input_ids"].shape[1] - 1)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    result = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    rows = torch.arange(mask.shape[0], device=mask.device).unsqueeze(1).expand_as(mask)[mask]
    targets = batch["completion_ids"][mask]
    if head is None:
        logits = model(**inputs, use_cache=False).logits[rows, position[mask]].float() / temperature
        picked = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - torch.logsumexp(logits, dim=1)
    else:
        output = model(**inputs, use_cache=False, output_hidden_states=True, logits_to_keep=1)
        picked = token_logprobs(output.hidden_states[-1][rows, position[mask]], targets, head, temperature=temperature)
    return result.masked_scatter(mask, picked)


def head_of(model: Any) -> Head | None:
    """Return the head of a model if its logits can be computed from the last hidden states, else None.

    Parameters
    ----------
    model
        A causal language model, not wrapped. A head that an adapter changes cannot be used.
    """
    head = find_head(model)
    if head is None:
        return None
    size = min(head.weight.shape[0], 16)
    device = head.weight.device
    with torch.no_grad():
        inputs = {"input_ids": torch.arange(size, device=device).unsqueeze(0)}
        output = model(**inputs, use_cache=False, output_hidden_states=True)
        ours = token_logprobs(output.hidden_states[-1][0], inputs["input_ids"][0], head)
        theirs = torch.log_softmax(output.logits[0].float(), dim=1).gather(1, inputs["input_ids"][0].unsqueeze(1))[:, 0]
    tolerance = 1e-3 if head.weight.dtype == torch.float32 else 0.1
    return head if torch.allclose(ours, theirs, atol=tolerance, rtol=0.0) else None
