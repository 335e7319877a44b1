"""A small log with stored ids and texts, the naive log-probs of it, and a server that gives them over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa


def token_log(prompts: int = 6, responses: int = 3, vocabulary: int = 97, seed: int = 0) -> pa.Table:
    """Rows of random token ids, scattered over the log; every prompt's first two responses are equal."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        ids = rng.integers(3, vocabulary, rng.integers(2, 12)).tolist()
        drawn = [rng.integers(3, vocabulary, rng.integers(1, 8)).tolist() for _ in range(responses)]
        if responses > 1:
            drawn[1] = drawn[0]
        rows += [(prompt, ids, response) for response in drawn]
    rows = [rows[i] for i in rng.permutation(len(rows))]
    return pa.table(
        {
            "prompt_id": [row[0] for row in rows],
            "prompt_ids": pa.array([row[1] for row in rows], pa.list_(pa.int32())),
            "completion_ids": pa.array([row[2] for row in rows], pa.list_(pa.int32())),
            "reward": rng.random(len(rows)),
            "behavior_logprob": rng.uniform(-30, -5, len(rows)),
        }
    )


def naive(model: Any, prompt: Any, completion: Any, temperature: float = 1.0) -> np.ndarray[Any, Any]:
    """Log-probs of a completion's tokens from the full float64 log-softmax over prompt and completion."""
    import torch

    ids = [*np.asarray(prompt).tolist(), *np.asarray(completion).tolist()]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double() / temperature
    logprobs = torch.log_softmax(logits, -1)
    at = len(ids) - len(completion)
    return np.array([logprobs[i - 1, ids[i]].item() for i in range(at, len(ids))])


def naive_sums(model: Any, table: pa.Table, temperature: float = 1.0) -> np.ndarray[Any, Any]:
    """Sums of :func:`naive` over the rows of a table of ids."""
    pairs = zip(table["prompt_ids"].to_pylist(), table["completion_ids"].to_pylist(), strict=True)
    return np.array([naive(model, *pair, temperature).sum() for pair in pairs])


Answer = Callable[[str, dict[str, Any]], tuple[int, Any]]


@contextmanager
def serving(answer: Answer, models: Any = None) -> Iterator[str]:
    """Serve on a free port; ``answer`` takes path and payload, and returns status and JSON (None: hang up)."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path.endswith("/models") and models is not None:
                self.reply(200, models)
            else:
                self.reply(404, {"error": {"message": "no such page"}})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            payload = {**json.loads(body), "_key": self.headers.get("Authorization")}
            status, said = answer(self.path, payload)
            if said is None:
                self.close_connection = True
                return
            self.reply(status, said)

        def reply(self, status: int, said: Any) -> None:
            text = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class ModelServer:
    """Answers of a server that has a model, in the manner of vLLM, of an echoing server, or of llama.cpp."""

    def __init__(self, model: Any, kind: str, tokenizer: Any = None) -> None:
        self.model = model
        self.kind = kind
        self.tokenizer = tokenizer
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.prompts: list[tuple[int, ...]] = []

    def logprobs(self, ids: list[int]) -> list[float | None]:
        """Of each token given those before it; None for the first."""
        with self.lock:
            return [None, *naive(self.model, ids[:1], ids[1:]).tolist()] if len(ids) > 1 else [None]

    def next_logprobs(self, ids: list[int]) -> np.ndarray[Any, Any]:
        """Of every token after some."""
        import torch

        with self.lock, torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0, -1].double()
        return torch.log_softmax(logits, -1).numpy()

    def __call__(self, path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        self.requests.append(payload)
        if self.kind == "llama.cpp":
            return self.llama_cpp(path, payload)
        if path != "/v1/completions":
            return 404, {"error": {"message": "not found"}}
        prompt = payload["prompt"]
        if self.kind == "echo-text":
            if not isinstance(prompt, str):
                return 422, {"detail": "Input should be a valid string"}
            prompt = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        self.prompts.append(tuple(prompt))
        if self.kind == "vllm":
            return 200, self.vllm(prompt, payload)
        return 200, self.echo(prompt, payload)

    def vllm(self, ids: list[int], payload: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": None}
        if payload.get("prompt_logprobs") is not None:
            entries = zip(ids[1:], self.logprobs(ids)[1:], strict=True)
            choice["prompt_logprobs"] = [
                None,
                # The most probable token is listed beside the one that was sent.
                *({"0": {"logprob": -0.01, "rank": 1}, str(token): {"logprob": value}} for token, value in entries),
            ]
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    def echo(self, ids: list[int], payload: dict[str, Any]) -> dict[str, Any]:
        values = [*self.logprobs(ids), -1.5]
        if not payload.get("echo"):
            values = values[-1:]
        listed: dict[str, Any] = {"token_logprobs": values}
        if self.tokenizer is not None:
            listed["tokens"] = [self.tokenizer.decode([token]) for token in ids] + ["x"]
        choice = {"index": 0, "text": "", "logprobs": listed if payload.get("logprobs") else None}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids), "completion_tokens": 1}}

    def llama_cpp(self, path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/completions":
            if payload.get("echo"):
                return 500 if self.kind == "old" else 400, {"error": {"message": "Only no echo is supported"}}
            return 200, {"choices": [{"index": 0, "text": "x"}]}
        assert path == "/completion"
        logprobs = self.next_logprobs(payload["prompt"])
        biased = logprobs.copy()
        for token, bias in payload["logit_bias"]:
            biased[token] += bias
        token = int(biased.argmax())
        self.prompts.append(tuple(payload["prompt"]))
        return 200, {"content": "", "completion_probabilities": [{"id": token, "logprob": float(logprobs[token])}]}
