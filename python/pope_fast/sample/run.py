"""From prompts and a model to a log of fresh draws."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pope_fast._extras import require
from pope_fast.errors import PopeError, PopeWarning, SchemaError
from pope_fast.log import FeedbackLog, read_log
from pope_fast.log.progress import Meter
from pope_fast.log.writing import write_log
from pope_fast.sample.prompts import Prompts, first_draws, open_prompts, read_prompts, usual_limit
from pope_fast.sample.settings import Sampling
from pope_fast.sample.table import draws_table
from pope_fast.score.encoding import Encoder
from pope_fast.score.loading import library_versions, load_encoder, loaded_model, model_fingerprint, with_adapter
from pope_fast.score.metadata import Provenance
from pope_fast.score.policies import HFPolicy
from pope_fast.score.workers import default_device

if TYPE_CHECKING:
    from pope_fast.score.policies import Policies

__all__ = ["sample"]

_LIBRARIES = ("torch", "transformers", "peft")
# What a model's own generation settings may say, and this sampler does only if it is told to.
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


def sample(
    model: Any,
    prompts: Any,
    k: int = 1,
    output: str | os.PathLike[str] | None = None,
    *,
    name: str = "target",
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    max_new_tokens: int | None = None,
    stop_ids: Sequence[int] | None = None,
    seed: int = 0,
    most_prompts: int | None = None,
    score_under: Policies | None = None,
    processing_class: Any = None,
    adapter: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    device: str | None = None,
    tokens: Literal["auto", "stored", "text"] = "auto",
    columns: Mapping[str, str] | None = None,
    token_logprobs: bool = False,
    token_budget: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> FeedbackLog:
    """Draw responses of a policy, with their log-probs under exactly the distribution that they are drawn from.

    Parameters
    ----------
    model : path, hub id, loaded model or HFPolicy
        A causal language model of transformers, or a PEFT model. An :class:`~pope_fast.score.HFPolicy` brings its name,
        tokenizer, adapter, temperature, precision and device along; ``name`` and the like are then left out.
    prompts : log, or list
        Whatever :func:`pope_fast.read_log` takes, except a list: that holds prompts, as texts, lists of messages (they
        go through the chat template) or token ids. Each distinct prompt of a log is taken once.
    k : int
        Draws per prompt.
    output : path, optional
        Parquet file to write.
    name : str
        The policy: under this name the evaluated log has it.
    temperature, top_k, top_p, min_p
        The sampler: see :class:`Sampling`. The model's own generation settings are *not* used, but differences warn.
    max_new_tokens : int, optional
        Most tokens of a response. By default the log's own limit: the longest response that ended by ``finish_reason``
        "length", else twice the longest response; 256 where the log says nothing of lengths.
    stop_ids : sequence of int, optional
        Tokens that end a response; by default those of the model's generation settings and of its tokenizer.
    seed : int
        Of the draws: see the notes.
    most_prompts : int, optional
        Draw for this many prompts only, chosen at random by ``seed``.
    score_under : mapping of name to model, or policies, optional
        Other policies to score the draws under, as :func:`pope_fast.score` does: ``target_logprob/NAME``. With the
        policy that wrote the log as ``{"logger": ...}`` the draws serve the bridge check of :func:`pope_fast.evaluate`.
    processing_class, adapter, dtype, device, tokens
        As in :class:`~pope_fast.score.HFPolicy`.
    columns : mapping of str to str, optional
        Role -> column, as in :func:`pope_fast.read_log`.
    token_logprobs : bool
        Whether to write ``behavior_token_logprobs`` too.
    token_budget : int, optional
        Most padded tokens of a batch, prompts counted with every draw.
    overwrite : bool
        Whether an existing output may be replaced.
    progress : bool, optional
        Whether to show progress; None shows it on a terminal, after two seconds.

    Returns
    -------
    FeedbackLog
        One row per draw, those of a prompt together, in the log's order of prompts: ``prompt_id``, ``prompt`` and
        ``prompt_ids`` as far as the log has them, ``draw`` (0 to k - 1), ``completion``, ``completion_ids`` (with the
        token that ended it), ``behavior_logprob`` (nats, under the sampler), ``untruncated_logprob`` if the sampler
        truncates (of the softmax at the temperature), ``finish_reason`` ("stop" or "length") and ``sampling``.

    Raises
    ------
    SchemaError
        If the log has no prompts, or one is too long for the model.
    PopeError
        If the model cannot be used, or an option is out of its range.

    Notes
    -----
    Every draw has a stream of random numbers of its own, made from ``seed``, the prompt's token ids and the number of
    the draw. It does not depend on the other prompts of the log, on their order, on k or on batches. The same seed
    gives the same draws as long as the model gives the same logits. These differ in their last bits between kinds of
    hardware, libraries and sizes of batches; then a draw changes only where two tokens nearly tie. Log-probs are always
    those of the tokens that were drawn.

    A log-prob is the float64 sum of float32 log-probs of tokens. A response that the limit cut has the probability of
    its tokens so far, without an end.
    """
    sampler, policy = _policy(
        model,
        name=name,
        temperature=temperature,
        processing_class=processing_class,
        adapter=adapter,
        dtype=dtype,
        device=device,
        tokens=tokens,
    )
    if k < 1:
        raise PopeError(f"k must be at least 1, not {k}")
    path = None if output is None else _output(Path(output), overwrite)
    log = open_prompts(prompts, columns)
    sampling = replace(
        sampler,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        max_new_tokens=usual_limit(log) if max_new_tokens is None else max_new_tokens,
    )
    encoder = load_encoder(policy)
    if encoder is None and not policy.loaded:
        _check_there(policy)
    read = read_prompts(log, encoder, tokens=policy.tokens, most=most_prompts, seed=seed)
    table, notes = _draw(policy, encoder, read, sampling, k, seed, stop_ids, token_logprobs, token_budget, progress)
    if path is not None:
        write_log(path, table)  # before scoring, which may fail: the draws are worth keeping
    if score_under is not None:
        from pope_fast.score.run import score

        scored = score(table, score_under, progress=progress)
        table = scored.reader.table  # type: ignore[attr-defined]
        if path is not None:
            write_log(path, table)
    for note in notes:
        warnings.warn(note, PopeWarning, stacklevel=2)
    result = read_log(table if path is None else path)
    result.warnings.extend(notes)
    return result


def _draw(
    policy: HFPolicy,
    encoder: Encoder | None,
    read: Prompts,
    sampling: Sampling,
    k: int,
    seed: int,
    stop_ids: Sequence[int] | None,
    token_logprobs: bool,
    token_budget: int | None,
    progress: bool | None,
) -> tuple[pa.Table, list[str]]:
    """Load the model, draw, and return the draws as a table, with what is to be said about them."""
    require("torch", "sampling")
    from pope_fast.sample.decode import decode

    keys = _keys(read.ids, k, seed)
    with loaded_model(policy, default_device(), quiet=progress is False) as base, with_adapter(base, policy) as active:
        _check_lengths(active, read, sampling.max_new_tokens)
        found = _stop_ids(active, encoder, read.source == "template") if stop_ids is None else None
        stops = list(stop_ids or ()) if found is None else found
        notes = _notes(active, sampling, found)
        meter = Meter(len(read.ids) * k, progress, "sampling", unit="draws")
        try:
            draws = decode(active, read.ids, keys, sampling, stops, token_budget=token_budget, advance=meter.advance)
        finally:
            meter.stop()
        made = _provenance(active, policy, encoder, read, sampling)
    return draws_table(read, draws, sampling, seed, encoder, made, token_logprobs), notes


def _policy(model: Any, **given: Any) -> tuple[Sampling, HFPolicy]:
    """Return the sampler's temperature, and the model as a policy."""
    temperature = given.pop("temperature")
    if isinstance(model, HFPolicy):
        usual = {"name": "target", "processing_class": None, "adapter": None, "dtype": "float32", "device": None}
        twice = [option for option, value in {**usual, "tokens": "auto"}.items() if given[option] != value]
        if twice:
            raise PopeError(f"the policy has its own {', '.join(twice)}: change it there")
        policy = model
    else:
        if not (isinstance(model, (str, os.PathLike)) or hasattr(model, "config")):
            raise PopeError(f"cannot sample from {type(model).__name__}: give a path, a hub id, a model or an HFPolicy")
        policy = HFPolicy(given.pop("name"), model, **given)
    sampling = Sampling(temperature=policy.temperature if temperature is None else float(temperature))
    return sampling, replace(policy, temperature=sampling.temperature)


def _check_there(policy: HFPolicy) -> None:
    """Say of a model without a tokenizer that it is not there, if it is not: the tokenizer would be missed first."""
    transformers = require("transformers", "sampling")
    try:
        transformers.AutoConfig.from_pretrained(
            policy.model, revision=policy.revision, trust_remote_code=policy.trust_remote_code
        )
    except Exception as error:  # It raises whatever the files make its libraries raise.
        line = " ".join(str(error).split())[:300]
        raise PopeError(f"policy {policy.name!r}: {policy.model} cannot be loaded: {line}") from error


def _output(path: Path, overwrite: bool) -> Path:
    if path.suffix.lower() not in (".parquet", ".pq", ".parq"):
        raise PopeError(f"the output is a Parquet file: {path.name!r} should end in .parquet")
    if path.exists() and not overwrite:
        raise PopeError(f"{path} exists. Remedy: another name, or overwrite=True (--overwrite).")
    return path


def _keys(ids: Sequence[NDArray[np.int32]], k: int, seed: int) -> list[NDArray[np.uint64]]:
    from pope_fast.sample.streams import draw_key

    first = first_draws(ids, k)
    return [
        np.array([draw_key(seed, prompt, start + draw) for draw in range(k)], np.uint64)
        for prompt, start in zip(ids, first, strict=True)
    ]


def _check_lengths(model: Any, prompts: Prompts, limit: int) -> None:
    """Refuse prompts that the model cannot take together with a response, or not at all."""
    from pope_fast.score.budget import context_length

    context = context_length(model)
    lengths = np.array([ids.size for ids in prompts.ids])
    if context is not None and lengths.max() + limit > context:
        at = int(lengths.argmax())
        raise SchemaError(
            f"{np.count_nonzero(lengths + limit > context):,} prompts (of up to {lengths[at]:,} tokens) and a response "
            f"of {limit:,} do not fit into the model's context of {context:,} tokens",
            column="prompt",
            remedy=f"max_new_tokens={max(context - int(lengths[at]), 1)} (--max-new-tokens), or leave the prompts out",
        )
    rows = int(model.get_input_embeddings().weight.shape[0])
    outside = [i for i, ids in enumerate(prompts.ids) if int(ids.max()) >= rows]
    if outside:
        raise SchemaError(
            f"token id {int(prompts.ids[outside[0]].max())} is outside of the model's vocabulary of {rows:,}: it is of "
            "another tokenizer",
            column="prompt_ids",
            remedy="tokenize the text with this policy's own: tokens='text' (--retokenize)",
        )


def _stop_ids(model: Any, encoder: Encoder | None, chat: bool) -> list[int]:
    """Return the tokens that end a response."""
    settings = getattr(model, "generation_config", None)
    named = [getattr(source, "eos_token_id", None) for source in (settings, model.config)]
    found = named[0] if named[0] is not None else named[1]
    stops = set() if found is None else {found} if isinstance(found, int) else set(found)
    if encoder is not None:
        stops |= {stop for stop in (encoder.end_id(chat=chat), encoder.end_id(chat=False)) if stop is not None}
    return sorted(int(stop) for stop in stops)


def _notes(model: Any, sampling: Sampling, stops: Sequence[int] | None) -> list[str]:
    """Say where this sampler is not what a user of the model may take it for; ``stops`` are those that were found."""
    notes = []
    if stops is not None and not stops:
        notes.append(
            f"neither the model nor its tokenizer says what ends a response: all have {sampling.max_new_tokens} tokens "
            "(stop_ids=)"
        )
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return notes
    used = {**sampling.to_dict(), "repetition_penalty": 1.0}
    own = {
        setting: value
        for setting, default in _DEFAULTS.items()
        if (value := getattr(settings, setting, None)) is not None and value != used[setting] and value != default
    }
    top_k = getattr(settings, "top_k", None)
    # 50 is what transformers fills in where nothing was said, in some of its versions.
    if top_k not in (None, 0, 50, used["top_k"]):
        own["top_k"] = top_k
    if own:
        listed = ", ".join(f"{setting} {value:g}" for setting, value in own.items())
        mine = ", ".join(f"{setting} {used[setting]:g}" for setting in own)
        notes.append(
            f"the model's generation settings say {listed}; these draws are made with {mine}. If the policy is "
            "deployed with the former, sample it so, and take its log-probs so"
        )
    return notes


def _provenance(
    model: Any, policy: HFPolicy, encoder: Encoder | None, prompts: Prompts, sampling: Sampling
) -> Provenance:
    return Provenance(
        policy=policy.name,
        engine="transformers",
        model=getattr(model.config, "_name_or_path", None) or None if policy.loaded else policy.model,
        model_fingerprint=model_fingerprint(model),
        tokenizer_fingerprint=None if encoder is None else encoder.fingerprint,
        template_hash=encoder.template_hash if encoder is not None and prompts.source == "template" else None,
        adapter=None if policy.adapter is None else str(policy.adapter),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=getattr(model.config, "_attn_implementation", None),
        temperature=sampling.temperature,
        versions=library_versions(*_LIBRARIES),
        tokens="sampled",
        prompts=prompts.source,
        eos="sampled",
    )
