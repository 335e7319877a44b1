"""Log-probs from a server: the completions endpoint of vLLM and others, or llama.cpp's own.

Servers differ in how they give log-probs of tokens that they were sent, and many do not. What works is found with one
pair before the rest is sent; every answer is checked token for token.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib import request
from urllib.error import HTTPError, URLError

import numpy as np
import numpy.typing as npt

from pope_fast.errors import PopeError
from pope_fast.score.encoding import Encoder
from pope_fast.score.plan import Plan
from pope_fast.score.policies import ServerPolicy
from pope_fast.score.store import Part

__all__ = ["ServerScorer"]

_Floats = npt.NDArray[np.float32]

#: Statuses after which the same request may succeed later.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0

# vLLM writes this for minus infinity, which JSON has not; llama.cpp the lowest float32.
_MINUS_INFINITY = -9999.0

# Makes llama.cpp draw a token whatever its logit is; the log-prob that it returns is that of the unbiased logits.
_FORCING_BIAS = 1e5


class _RefusedError(Exception):
    """The server says that a request is wrong; repeating it would not help."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


class _UnusableError(Exception):
    """An answer without the log-probs of the tokens that were sent."""


class _Client:
    """Posts JSON, and repeats what fails for reasons that may pass."""

    def __init__(self, policy: ServerPolicy, advice: str) -> None:
        self.policy = policy
        self.advice = advice
        self.stopped = threading.Event()
        # A redirected request would carry the key to another host.
        self._opener = request.build_opener(_NoRedirect)

    def get(self, url: str) -> Any:
        """Return the JSON at an address, None if the server has none there."""
        try:
            return self._call(url, None)
        except _RefusedError:
            return None

    def post(self, url: str, payload: Mapping[str, Any]) -> Any:
        """Return the answer to a request.

        Raises
        ------
        _RefusedError
            If the server finds fault with it.
        PopeError
            If the server cannot be reached, fails, or refuses the key.
        """
        return self._call(url, json.dumps(payload).encode())

    def _call(self, url: str, body: bytes | None) -> Any:
        wait = _FIRST_WAIT
        for attempt in range(self.policy.retries + 1):
            pause = None
            try:
                return self._once(url, body)
            except HTTPError as error:
                text = _message(error)
                if error.code in (401, 403):
                    raise PopeError(
                        f"{url} refuses access (HTTP {error.code}: {text}). Remedy: name the environment variable with "
                        "the key (api_key_env=, --api-key-env)."
                    ) from error
                if error.code not in _PASSING:
                    raise _RefusedError(error.code, text) from error
                failure = f"HTTP {error.code}: {text}"
                pause = _seconds(error.headers.get("Retry-After"))
            except (URLError, HTTPException, OSError, ValueError) as error:
                failure = str(getattr(error, "reason", "") or error or type(error).__name__)
            if attempt < self.policy.retries and self.stopped.wait(min(pause or wait, _LONGEST_WAIT)):
                break
            wait = min(2 * wait, _LONGEST_WAIT)
        tries = self.policy.retries + 1
        raise PopeError(f"{url} failed {tries} times, last with: {failure}. {self.advice}")

    def _once(self, url: str, body: bytes | None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "pope_fast"}
        if self.policy.api_key_env is not None:
            key = os.environ.get(self.policy.api_key_env)
            if not key:
                raise PopeError(f"policy {self.policy.name!r}: {self.policy.api_key_env} is not set")
            headers["Authorization"] = f"Bearer {key}"
        asked = request.Request(url, data=body, headers=headers)
        with self._opener.open(asked, timeout=self.policy.timeout) as answer:
            return json.loads(answer.read())


class _NoRedirect(request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Refuse: the redirect is then an error with its status."""


class ServerScorer:
    """Scores the pairs of a plan with a server.

    Parameters
    ----------
    policy : ServerPolicy
    encoder : Encoder, optional
        The server's tokenizer; needed if the server takes text only.
    resumable : bool
        Whether what is finished outlives an error, for what the error says.

    Attributes
    ----------
    model : str
        Its name on the server.
    context_length : int or None
        Most tokens, if the server tells.
    fingerprint : str
        Digest of what the server says of itself; it cannot see the weights.
    api : str
        How the server is asked, once :meth:`probe` has found out.
    """

    def __init__(self, policy: ServerPolicy, encoder: Encoder | None = None, *, resumable: bool = True) -> None:
        self.policy = policy
        self.encoder = encoder
        again = "Finished batches are kept. Remedy: when it is back, run the same command again: it continues."
        alone = "Remedy: run again when it is back; with an output, a run continues where it was."
        self._client = _Client(policy, again if resumable else alone)
        self._base = policy.base_url.rstrip("/")
        self._root = self._base.removesuffix("/v1")
        entry = self._model_entry()
        self.model = policy.model or str(entry.get("id", ""))
        limit = entry.get("max_model_len")
        self.context_length = int(limit) if isinstance(limit, (int, float)) else None
        self.api = policy.api
        self._leave_out_begin = False
        said = {name: entry[name] for name in sorted(entry) if name not in ("created", "permission")}
        facts = json.dumps([self._base, self.model, said], sort_keys=True, default=str)
        self.fingerprint = hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()
        self._ways: dict[str, Callable[[Sequence[int], Sequence[int]], list[float]]] = {
            "vllm": self._by_prompt_logprobs,
            "echo": self._by_echo,
            "echo-text": self._by_text,
            "llama.cpp": self._by_force,
        }

    def _model_entry(self) -> dict[str, Any]:
        listed = self._client.get(f"{self._base}/models")
        entries = listed.get("data") if isinstance(listed, Mapping) else None
        models = [entry for entry in entries or () if isinstance(entry, Mapping)]
        wanted = self.policy.model
        for entry in models:
            if wanted is None or entry.get("id") == wanted:
                return dict(entry)
        if wanted is None and not models:
            return {}  # A server of a single model need not list it.
        if models and wanted is not None:
            names = ", ".join(str(entry.get("id")) for entry in models)
            raise PopeError(f"policy {self.policy.name!r}: {self._base} has no model {wanted!r}; it has: {names}")
        return {}

    def probe(self, prompt: npt.NDArray[np.int32], completion: npt.NDArray[np.int32]) -> _Floats:
        """Find out how this server gives log-probs of a prompt, with one pair.

        Raises
        ------
        PopeError
            If it does not; with what it said to each way of asking.
        """
        ids, rest = prompt.tolist(), completion.tolist()
        ways = [*self._ways] if self.policy.api == "auto" else [self.policy.api]
        failures = []
        for way in ways:
            for leave_out in (False, True) if way == "echo-text" else (False,):
                self._leave_out_begin = leave_out
                try:
                    logprobs = self._ways[way](ids, rest)
                    if way == "llama.cpp":
                        self._check_force(ids, rest[0], logprobs[0])
                except (_RefusedError, _UnusableError) as error:
                    failures.append(f"{way}: {error}")
                    continue
                self.api = way  # type: ignore[assignment]
                return np.array(logprobs, np.float32)
        raise PopeError(
            f"policy {self.policy.name!r}: {self._base} gives no log-probs of prompt tokens ({'; '.join(failures)}). "
            "Remedy: serve the model with vLLM or llama.cpp, or score it from its files (HFPolicy, --model)."
        )

    def run(self, plan: Plan, batches: Iterable[int]) -> Iterator[Part]:
        """Score batches of a plan, in the order given, several requests at a time.

        Yields
        ------
        Part
            One per batch. A pair that the server refuses has its reason as an error.

        Raises
        ------
        PopeError
            If the server cannot be reached or fails, also after the retries.
        """
        waiting: deque[tuple[int, npt.NDArray[np.int64], list[Future[_Floats | str]]]] = deque()
        ahead = 2 * self.policy.concurrency
        pool = ThreadPoolExecutor(self.policy.concurrency, thread_name_prefix="pope-score")
        try:
            for index in batches:
                pairs = np.sort(plan[index].pairs)
                waiting.append((index, pairs, [pool.submit(self._pair, plan, pair) for pair in pairs.tolist()]))
                while sum(len(futures) for _, _, futures in waiting) - len(waiting[0][2]) >= ahead:
                    yield _part(*waiting.popleft())
            while waiting:
                yield _part(*waiting.popleft())
        finally:
            self._client.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self._client.stopped.clear()

    def _pair(self, plan: Plan, pair: int) -> _Floats | str:
        prompt = plan.prompts[int(plan.pair_prompt[pair])].tolist()
        completion = plan.completions[int(plan.pair_completion[pair])].tolist()
        try:
            return np.array(self._ways[self.api](prompt, completion), np.float32)
        except (_RefusedError, _UnusableError) as error:
            return f"the server: {error}"

    def _request(self, prompt: Any, **options: Any) -> dict[str, Any]:
        payload = {"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, **options}
        answer = self._client.post(f"{self._base}/completions", payload)
        if not isinstance(answer, Mapping):
            raise _UnusableError("the answer is no JSON object")
        return dict(answer)

    def _by_prompt_logprobs(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """VLLM: a dictionary of token id to log-prob per token of the prompt, with the token itself among them."""
        ids = [*prompt, *completion]
        answer = self._request(ids, prompt_logprobs=1)
        choice = _choice(answer)
        entries = choice.get("prompt_logprobs") or answer.get("prompt_logprobs")
        if not isinstance(entries, Sequence):
            raise _UnusableError("the answer has no prompt_logprobs")
        if len(entries) != len(ids):
            raise _UnusableError(f"log-probs of {len(entries)} tokens for the {len(ids)} that were sent")
        logprobs = []
        for token, entry in zip(completion, entries[len(prompt) :], strict=True):
            found = entry.get(str(token)) if isinstance(entry, Mapping) else None
            value = found.get("logprob") if isinstance(found, Mapping) else found
            if value is None:
                raise _UnusableError(f"prompt_logprobs leaves out token {token}, which was sent")
            logprobs.append(_number(value))
        return logprobs

    def _by_echo(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Completions endpoint with echo, sending token ids."""
        answer = self._request([*prompt, *completion], echo=True, logprobs=1)
        return self._echoed(answer, len(prompt), len(completion))[0]

    def _by_text(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Completions endpoint with echo, sending text; the server must split it into the same tokens."""
        if self.encoder is None:
            raise _UnusableError("to send text, the server's tokenizer is needed (processing_class=, --tokenizer)")
        sent = list(prompt)[1:] if self._leave_out_begin else list(prompt)
        text = self.encoder.decode_exact(sent) + self.encoder.decode_exact(completion)
        answer = self._request(text, echo=True, logprobs=1)
        logprobs, tokens = self._echoed(answer, len(prompt), len(completion))
        if tokens and "".join(tokens) not in (self.encoder.decode_exact(completion), self.encoder.decode(completion)):
            raise _UnusableError("it splits the text into other tokens than the tokenizer")
        return logprobs

    def _echoed(self, answer: Mapping[str, Any], prompt: int, completion: int) -> tuple[list[float], list[str]]:
        """Return log-probs of the completion's tokens, and the tokens if the answer names them."""
        listed = _choice(answer).get("logprobs")
        values = listed.get("token_logprobs") if isinstance(listed, Mapping) else None
        if not isinstance(values, Sequence) or not isinstance(listed, Mapping):
            raise _UnusableError("the answer has no token_logprobs")
        usage = answer.get("usage")
        told = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
        known = told if isinstance(told, int) and told <= len(values) else len(values) - 1
        if len(values) < prompt + completion:
            raise _UnusableError(f"log-probs of {len(values)} tokens only: of those it wrote, not of those it was sent")
        if known != prompt + completion:
            raise _UnusableError(f"it counts {known} tokens in the {prompt + completion} that were sent")
        logprobs = [_number(value) for value in values[prompt:known]]
        tokens = listed.get("tokens")
        return logprobs, [str(token) for token in tokens[prompt:known]] if isinstance(tokens, Sequence) else []

    def _by_force(self, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
        """Ask llama.cpp for one token at a time, forced to be the next; its cache holds all before it."""
        ids = list(prompt)
        logprobs = []
        for token in completion:
            logprobs.append(self._forced(ids, token))
            ids.append(token)
        return logprobs

    def _forced(self, ids: Sequence[int], token: int) -> float:
        payload = {
            **{"prompt": list(ids), "n_predict": 1, "n_probs": 1, "temperature": 0.0, "cache_prompt": True},
            **{"logit_bias": [[token, _FORCING_BIAS]], "post_sampling_probs": False, "stream": False},
        }
        answer = self._client.post(f"{self._root}/completion", payload)
        listed = answer.get("completion_probabilities") if isinstance(answer, Mapping) else None
        first = listed[0] if isinstance(listed, Sequence) and listed else None
        if not isinstance(first, Mapping) or "logprob" not in first:
            raise _UnusableError(f"no log-prob of token {token} (it needs completion_probabilities with logprob)")
        if first.get("id") != token:
            raise _UnusableError(f"it wrote token {first.get('id')} where {token} was forced")
        return _number(first["logprob"])

    def _check_force(self, prompt: Sequence[int], token: int, logprob: float) -> None:
        """Make sure that the bias is not in the log-probs: two tokens would then have a probability of 1 each."""
        other = self._forced(prompt, token - 1 if token else token + 1)
        if math.exp(logprob) + math.exp(other) > 1.001:
            raise _UnusableError("its log-probs are those after the bias that forces a token")


def _part(batch: int, pairs: npt.NDArray[np.int64], futures: Sequence[Future[_Floats | str]]) -> Part:
    results = [future.result() for future in futures]
    errors = {pair: result for pair, result in zip(pairs.tolist(), results, strict=True) if isinstance(result, str)}
    arrays = [np.empty(0, np.float32) if isinstance(result, str) else result for result in results]
    offsets = np.concatenate(([0], np.cumsum([array.size for array in arrays]))).astype(np.int64)
    return Part((batch,), pairs, offsets, np.concatenate(arrays), errors)


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, Sequence) or not choices or not isinstance(choices[0], Mapping):
        raise _UnusableError("the answer has no choices")
    return choices[0]


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise _UnusableError(f"{value!r} where a log-prob should be")
    return -math.inf if value <= _MINUS_INFINITY else float(value)


def _message(error: HTTPError) -> str:
    """Return what the body of an error says, in one short line."""
    try:
        text = error.read().decode("utf-8", "replace")
    except (OSError, HTTPException):
        text = ""
    try:
        said = json.loads(text)
        said = said.get("error", said) if isinstance(said, Mapping) else said
        text = str(said.get("message", said) if isinstance(said, Mapping) else said)
    except ValueError:
        pass
    text = " ".join(text.split()) or str(error.reason)
    return text if len(text) <= 300 else f"{text[:297]}..."


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None  # It may also be a date.
