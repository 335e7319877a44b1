"""What a policy is: a Hugging Face model, a server that returns prompt log-probs, or a column of the log."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pope_fast.errors import PopeError

__all__ = ["ColumnPolicy", "HFPolicy", "Policies", "Policy", "ServerPolicy", "as_policies", "as_policy"]

_DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")


@dataclass(frozen=True)
class HFPolicy:
    """A causal language model of Hugging Face transformers.

    Attributes
    ----------
    name : str
        Names the columns: ``target_logprob/NAME``.
    model : path, hub id or transformers.PreTrainedModel
        A loaded model is used as it is: where it lies, in its precision.
    processing_class : path, hub id or tokenizer, optional
        The model's own by default. Not needed if the log has ``prompt_ids`` and ``completion_ids``.
    adapter : path, hub id, or name of an adapter of a loaded PEFT model, optional
        Policies that differ in it, and in nothing else about the model, are scored in one load.
    temperature : float
        Logits are divided by it, as the sampler did.
    dtype : str
        "float32", "bfloat16", "float16", "float64" or "auto" (that of the checkpoint). Half precision errs by some .2
        nats per 64 tokens; the log-sum-exp is in float32 always.
    device : str, optional
        "cuda:1", "cpu"... By default this process's GPU if there is one. "auto" spreads a large model over all.
    attention : str, optional
        Attention implementation: "sdpa", "eager", "flash_attention_2"...
    revision : str, optional
        Of the model and its tokenizer on the hub.
    trust_remote_code : bool
        Whether code that comes with the model may run.
    tokens : {"auto", "stored", "text"}
        Which tokens are scored: see :func:`pope_fast.score.rows.tokenize_log`.
    """

    name: str
    model: Any
    processing_class: Any = None
    adapter: str | os.PathLike[str] | None = None
    temperature: float = 1.0
    dtype: str = "float32"
    device: str | None = None
    attention: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    tokens: Literal["auto", "stored", "text"] = "auto"

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise PopeError(f"policy {self.name!r}: temperature must be positive, not {self.temperature}")
        if self.dtype not in _DTYPES:
            raise PopeError(f"policy {self.name!r}: dtype must be one of {', '.join(_DTYPES)}, not {self.dtype!r}")
        if isinstance(self.model, os.PathLike):
            object.__setattr__(self, "model", os.fspath(self.model))
        if isinstance(self.adapter, os.PathLike):
            object.__setattr__(self, "adapter", os.fspath(self.adapter))
        if isinstance(self.processing_class, os.PathLike):
            object.__setattr__(self, "processing_class", os.fspath(self.processing_class))

    @property
    def loaded(self) -> bool:
        """Whether the model is an object, not the name of one."""
        return not isinstance(self.model, str)

    def load_key(self) -> tuple[Any, ...]:
        """Return what a model is loaded by: policies with equal keys share one load."""
        if self.loaded:
            return ("object", id(self.model))
        return (self.model, self.revision, self.dtype, self.device, self.attention, self.trust_remote_code)


@dataclass(frozen=True)
class ServerPolicy:
    """A model behind a server that gives log-probs of prompt tokens.

    Attributes
    ----------
    name : str
        Names the columns: ``target_logprob/NAME``.
    base_url : str
        Of an OpenAI-compatible server, with its ``/v1``.
    model : str, optional
        Its name on the server; the first that the server lists by default.
    processing_class : path, hub id or tokenizer, optional
        Needed unless the log has ``prompt_ids`` and ``completion_ids``.
    api : {"auto", "vllm", "echo", "echo-text", "llama.cpp"}
        How to ask: ``prompt_logprobs`` of vLLM; ``echo`` with ``logprobs`` of the completions endpoint, sending ids
        or text; or one forced token after another from llama.cpp's own ``/completion``, which returns no log-probs of
        prompts. "auto" tries them in this order.
    api_key_env : str, optional
        Environment variable that holds the key. Keys are sent to ``base_url`` only, and stored nowhere.
    concurrency : int
        Requests at a time.
    timeout : float
        Seconds to wait for an answer.
    retries : int
        How often a request is repeated after a connection or server error, with waits that double from half a second.
    tokens : {"auto", "stored", "text"}
        Which tokens are scored: see :func:`pope_fast.score.rows.tokenize_log`.
    revision, trust_remote_code
        For ``processing_class``.

    Notes
    -----
    Log-probs are those at temperature 1: servers do not give others of prompt tokens.
    """

    name: str
    base_url: str
    model: str | None = None
    processing_class: Any = None
    api: Literal["auto", "vllm", "echo", "echo-text", "llama.cpp"] = "auto"
    api_key_env: str | None = None
    concurrency: int = 8
    timeout: float = 300.0
    retries: int = 6
    tokens: Literal["auto", "stored", "text"] = "auto"
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        _check_name(self.name)
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise PopeError(f"policy {self.name!r}: {self.base_url!r} is no http or https address")
        if parts.username or parts.password:
            raise PopeError(f"policy {self.name!r}: give the key by api_key_env, not in the address")
        if self.api not in ("auto", "vllm", "echo", "echo-text", "llama.cpp"):
            raise PopeError(f"policy {self.name!r}: there is no api {self.api!r}")
        for what in ("concurrency", "timeout"):
            if not getattr(self, what) > 0:
                raise PopeError(f"policy {self.name!r}: {what} must be positive, not {getattr(self, what)}")
        if self.retries < 0:
            raise PopeError(f"policy {self.name!r}: retries must be at least 0, not {self.retries}")


@dataclass(frozen=True)
class ColumnPolicy:
    """A column of the log that holds the policy's log-probs already: of sequences, or lists of those of tokens."""

    name: str
    column: str

    def __post_init__(self) -> None:
        _check_name(self.name)


Policy: TypeAlias = HFPolicy | ServerPolicy | ColumnPolicy

#: What users may give: policies, or names with a model (path, hub id, object) or a policy each.
Policies: TypeAlias = Policy | Iterable[Policy] | Mapping[str, Any]


def as_policy(name: str, given: Any) -> Policy:
    """Return a policy of that name from a policy, a path, a hub id or a loaded model."""
    if isinstance(given, (HFPolicy, ServerPolicy, ColumnPolicy)):
        return replace(given, name=name)
    if isinstance(given, (str, os.PathLike)) or hasattr(given, "config"):
        return HFPolicy(name, given)
    raise PopeError(
        f"policy {name!r}: cannot score with {type(given).__name__}; give a path, a hub id, a loaded model, or an "
        "HFPolicy, ServerPolicy or ColumnPolicy"
    )


def as_policies(given: Policies | None) -> list[Policy]:
    """Return policies with distinct names.

    Raises
    ------
    PopeError
        If one is none, or two have one name.
    """
    if given is None:
        return []
    if isinstance(given, (HFPolicy, ServerPolicy, ColumnPolicy)):
        return [given]
    if isinstance(given, Mapping):
        return [as_policy(name, value) for name, value in given.items()]
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise PopeError("policies must be named: score(log, {'new': model}) or score(log, [HFPolicy('new', model)])")
    policies: Sequence[Any] = list(given)
    for policy in policies:
        if not isinstance(policy, (HFPolicy, ServerPolicy, ColumnPolicy)):
            raise PopeError(f"{type(policy).__name__} is no policy: give HFPolicy(NAME, model), or {{NAME: model}}")
    names = [policy.name for policy in policies]
    for name in names:
        if names.count(name) > 1:
            raise PopeError(f"two policies of one name: {name!r}; give each its own")
    return list(policies)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name.strip() or any(ord(letter) < 32 for letter in name):
        raise PopeError(f"a policy needs a name, not {name!r}")
