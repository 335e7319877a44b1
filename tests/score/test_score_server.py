"""Log-probs from a server over real HTTP: the ways of asking, what goes wrong, and how it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from score_worlds import ModelServer, naive_sums, serving, token_log

from pope_fast.errors import PopeError, PopeWarning
from pope_fast.score import ServerPolicy, jobs, read_provenance, score
from pope_fast.score import server as http
from pope_fast.score.encoding import Encoder
from pope_fast.score.plan import Plan, make_plan
from pope_fast.score.server import ServerScorer
from tiny_models import tiny_model, tiny_tokenizer

MODELS = {"object": "list", "data": [{"id": "tiny", "created": 1, "root": "weights", "max_model_len": 64}]}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return token_log()


@pytest.fixture(scope="module")
def expected(model: Any, table: pa.Table) -> Any:
    return naive_sums(model, table)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_WAIT", 0.001)


def plan_of(table: pa.Table) -> Plan:
    return make_plan(table["prompt_ids"].to_pylist(), table["completion_ids"].to_pylist(), token_budget=32)


def asked(url: str, **options: Any) -> ServerPolicy:
    return ServerPolicy("new", url, **{"retries": 2, "concurrency": 3, **options})


def scored(table: Any, policy: ServerPolicy, output: Path | None = None) -> Any:
    log = score(table, policy, output)
    return np.array(next(iter(log.record_batches(["target_logprob/new"]))).column(0).to_pylist(), float)


@pytest.mark.parametrize("kind", ["vllm", "echo", "llama.cpp"])
def test_every_way_of_asking_gives_the_models_log_probs(model: Any, table: pa.Table, expected: Any, kind: str) -> None:
    server = ModelServer(model, kind)
    with serving(server, MODELS) as url:
        log = score(table, asked(url))
    values = next(iter(log.record_batches(["target_logprob/new"]))).column(0).to_numpy()
    np.testing.assert_allclose(values, expected, atol=1e-4)
    made = read_provenance(log.schema)["target_logprob/new"]
    assert made.engine == "server"
    assert made.model == f"{url} tiny"
    assert made.tokens == "stored"
    assert made.errors == 0


def test_equal_pairs_are_asked_once(model: Any, table: pa.Table) -> None:
    server = ModelServer(model, "vllm")
    with serving(server, MODELS) as url:
        scored(table, asked(url))
    probed, *rest = server.prompts
    assert probed in rest
    assert len(rest) == len(set(rest)) == plan_of(table).n_pairs


def text_table() -> pa.Table:
    prompts, completions = ["the city", "ask the people", "the city"], [" should", " who live nearby", " costs money"]
    return pa.table({"prompt": prompts, "completion": completions})


def test_a_server_of_text_only_must_split_it_alike(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    table = text_table()
    ids = {
        name: [tokenizer(text, add_special_tokens=False)["input_ids"] for text in table[name].to_pylist()]
        for name in ("prompt", "completion")
    }
    expected = naive_sums(model, pa.table({"prompt_ids": ids["prompt"], "completion_ids": ids["completion"]}))
    with serving(ModelServer(model, "echo-text", tokenizer), MODELS) as url, pytest.warns(PopeWarning, match="text"):
        values = scored(table, asked(url, processing_class=tokenizer))
    np.testing.assert_allclose(values, expected, atol=1e-4)
    # A server with another tokenizer returns log-probs of other tokens: as many rows as differ are refused.
    other = tiny_tokenizer(["zzz"], vocab_size=50)
    with serving(ModelServer(model, "echo-text", other), MODELS) as url, pytest.raises(PopeError, match="tokens"):
        scored(table, asked(url, processing_class=tokenizer, api="echo-text"))


def test_a_server_that_takes_ids_needs_no_tokenizer_and_text_does(model: Any, table: pa.Table) -> None:
    with serving(ModelServer(model, "echo-text", tiny_tokenizer()), MODELS) as url:
        with pytest.raises(PopeError, match="the server's tokenizer is needed"):
            scored(table, asked(url, api="echo-text"))
        with pytest.raises(PopeError, match="no tokenizer"):
            scored(text_table(), asked(url))


def silent(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
    """A server that ignores what it does not know, and gives log-probs of what it wrote alone."""
    if path == "/completion":
        return 404, {"error": "no"}
    entry = {"token_logprobs": [-0.5], "tokens": ["x"]}
    return 200, {"choices": [{"text": "x", "logprobs": entry}], "usage": {"prompt_tokens": len(payload["prompt"])}}


def test_a_server_without_prompt_log_probs_is_refused_with_what_was_tried(table: pa.Table) -> None:
    with serving(silent, MODELS) as url, pytest.raises(PopeError) as caught:
        scored(table, asked(url))
    said = str(caught.value)
    assert "no log-probs of prompt tokens" in said
    for way in ("vllm", "echo", "echo-text", "llama.cpp"):
        assert f"{way}:" in said
    assert "vLLM" in said


def test_a_bias_that_enters_the_log_probs_is_noticed(model: Any, table: pa.Table) -> None:
    server = ModelServer(model, "llama.cpp")

    def biased(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        status, said = server(path, payload)
        for entry in said.get("completion_probabilities", ()):
            entry["logprob"] = 0.0
        return status, said

    with serving(biased, MODELS) as url, pytest.raises(PopeError, match="after the bias"):
        scored(table, asked(url, api="llama.cpp"))


def test_a_server_that_does_not_let_itself_be_forced(model: Any, table: pa.Table) -> None:
    server = ModelServer(model, "llama.cpp")

    def stubborn(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        return server(path, {**payload, "logit_bias": []})

    with serving(stubborn, MODELS) as url, pytest.raises(PopeError, match=r"wrote token \d+ where \d+ was forced"):
        scored(table, asked(url, api="llama.cpp"))


def test_a_server_that_adds_a_token_of_its_own(model: Any, table: pa.Table) -> None:
    server = ModelServer(model, "echo")

    def dressed(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        return server(path, {**payload, "prompt": [1, *payload["prompt"]]})

    with serving(dressed, MODELS) as url, pytest.raises(PopeError, match=r"counts \d+ tokens in the \d+"):
        scored(table, asked(url, api="echo"))


def test_a_server_that_splits_text_otherwise_into_as_many_tokens(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    server = ModelServer(model, "echo-text", tokenizer)

    def other(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        status, said = server(path, payload)
        tokens = said["choices"][0]["logprobs"]["tokens"]
        tokens[-2] = tokens[-2].upper()
        return status, said

    with serving(other, MODELS) as url, pytest.raises(PopeError, match="other tokens than the tokenizer"):
        scored(text_table(), asked(url, processing_class=tokenizer, api="echo-text"))


def test_failures_that_pass_are_waited_out(model: Any, table: pa.Table, expected: Any) -> None:
    server = ModelServer(model, "vllm")
    count = 0

    def shaky(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        nonlocal count
        count += 1
        if count % 4 == 1:
            return 503, {"error": {"message": "overloaded"}}
        if count % 4 == 3:
            return 200, None  # Hangs up.
        return server(path, payload)

    with serving(shaky, MODELS) as url:
        np.testing.assert_allclose(scored(table, asked(url, retries=12)), expected, atol=1e-4)


def test_a_server_that_dies_half_way_keeps_what_it_gave(
    model: Any, table: pa.Table, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_SERVER_BATCH", 24)
    server = ModelServer(model, "vllm")
    limit = 8

    def mortal(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        return server(path, payload) if len(server.prompts) < limit else (500, {"error": "out of memory"})

    output = tmp_path / "scored.parquet"
    with serving(mortal, MODELS) as url:
        policy = asked(url, concurrency=1)
        with pytest.raises(PopeError, match=r"failed 3 times.*out of memory.*it continues") as caught:
            score(table, policy, output)
        assert url in str(caught.value)
        assert not output.exists()
        done = set(server.prompts[1:])
        assert done
        server.prompts.clear()
        limit = 1000
        values = scored(table, policy, output)
    np.testing.assert_allclose(values, expected, atol=1e-4)
    # Some of what the first run asked was in a batch that was not finished; not all of it.
    assert len(done & set(server.prompts[1:])) < len(done)
    assert len(server.prompts) - 1 < plan_of(table).n_pairs


def test_another_model_behind_the_same_name_is_noticed(model: Any, table: pa.Table, tmp_path: Path) -> None:
    server = ModelServer(model, "vllm")
    output = tmp_path / "scored.parquet"

    def mortal(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        return server(path, payload) if len(server.prompts) < 8 else (500, {})

    with serving(mortal, MODELS) as url:
        with pytest.raises(PopeError, match="failed"):
            score(table, asked(url, retries=0), output)
        server.prompts.clear()
        server.model = tiny_model("llama", seed=1)
        with pytest.raises(PopeError, match="serves another model"):
            score(table, asked(url, retries=0), output)


def test_a_pair_that_is_refused_is_an_error_row(model: Any, table: pa.Table, expected: Any) -> None:
    server = ModelServer(model, "vllm")
    refused = tuple(table["prompt_ids"][0].as_py() + table["completion_ids"][0].as_py())

    def strict(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        if tuple(payload["prompt"]) == refused:
            return 400, {"error": {"message": "this model's maximum context length is 5 tokens"}}
        return server(path, payload)

    with serving(strict, MODELS) as url, pytest.warns(PopeWarning, match="no log-prob"):
        log = score(table, asked(url), token_logprobs=True)
    batch = next(iter(log.record_batches(["target_logprob/new", "target_token_logprobs/new", "score_error/new"])))
    values, tokens, errors = (column.to_pylist() for column in batch.columns)
    assert values[0] is None
    assert tokens[0] is None
    assert errors[0] == "the server: HTTP 400: this model's maximum context length is 5 tokens"
    good = [row for row, value in enumerate(values) if value is not None]
    assert len(good) >= len(values) - 2  # The pair may be there twice.
    np.testing.assert_allclose([values[row] for row in good], expected[good], atol=1e-4)
    assert [len(tokens[row]) for row in good] == [len(table["completion_ids"][row].as_py()) for row in good]


def test_rows_longer_than_the_servers_context_are_not_sent(model: Any, table: pa.Table) -> None:
    server = ModelServer(model, "vllm")
    short = {"data": [{"id": "tiny", "max_model_len": 10}]}
    with serving(server, short) as url, pytest.warns(PopeWarning, match="context"):
        values = scored(table, asked(url))
    totals = sum(np.array([len(ids) for ids in table[name].to_pylist()]) for name in ("prompt_ids", "completion_ids"))
    assert (np.isnan(values) == (totals > 10)).all()
    assert 0 < np.isnan(values).sum() < len(values)
    assert max(map(len, server.prompts)) <= 10


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([None, {"3": {"logprob": -1.0}}], "log-probs of 2 tokens for the"),
        (None, "no prompt_logprobs"),
        ("leave out", "leaves out token"),
        ("nan", "where a log-prob should be"),
    ],
)
def test_answers_are_checked_token_for_token(table: pa.Table, entries: Any, message: str) -> None:
    def answer(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        made = entries
        if entries == "leave out":
            made = [None, *({"96": {"logprob": -1.0}, "0": {"logprob": -1.0}} for _ in payload["prompt"][1:])]
        if entries == "nan":
            made = [None, *({str(token): {"logprob": float("nan")}} for token in payload["prompt"][1:])]
        return 200, {"choices": [{"prompt_logprobs": made}]}

    with serving(answer, MODELS) as url, pytest.raises(PopeError, match=message):
        scored(table, asked(url, api="vllm"))


def test_minus_infinity_as_vllm_writes_it() -> None:
    def answer(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        made = [None, *({str(token): {"logprob": -9999.0}} for token in payload["prompt"][1:])]
        return 200, {"choices": [{"prompt_logprobs": made}]}

    with serving(answer, MODELS) as url:
        values = scored({"prompt_ids": [[3]], "completion_ids": [[4]]}, asked(url))
    assert values.tolist() == [float("-inf")]


def test_the_key_is_sent_and_kept_nowhere(
    model: Any, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ModelServer(model, "vllm")

    def guarded(path: str, payload: dict[str, Any]) -> tuple[int, Any]:
        return server(path, payload) if payload["_key"] == "Bearer s3cret" else (401, {"error": "who are you?"})

    with serving(guarded, MODELS) as url:
        with pytest.raises(PopeError, match=r"refuses access.*api_key_env"):
            scored(table, asked(url))
        with pytest.raises(PopeError, match="POPE_TEST_KEY is not set"):
            scored(table, asked(url, api_key_env="POPE_TEST_KEY"))
        monkeypatch.setenv("POPE_TEST_KEY", "s3cret")
        output = tmp_path / "scored.parquet"
        scored(table, asked(url, api_key_env="POPE_TEST_KEY"), output)
    assert b"s3cret" not in output.read_bytes()


def test_a_redirect_is_not_followed_with_the_key(model: Any, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPE_TEST_KEY", "s3cret")
    got: list[Any] = []
    with serving(lambda *what: (got.append(what), (200, {}))[1], MODELS) as elsewhere:
        away = {"location": f"{elsewhere}/models"}
        with serving(lambda *_: (302, away), MODELS) as url, pytest.raises(PopeError, match="HTTP 302"):
            scored(table, asked(url, api_key_env="POPE_TEST_KEY"))
    assert got == []


def test_nobody_listens(table: pa.Table) -> None:
    with serving(silent) as url:
        pass
    with pytest.raises(PopeError, match=r"failed 3 times.*refused.*with an output, a run continues"):
        scored(table, asked(url))


def test_the_models_that_there_are_are_named(table: pa.Table) -> None:
    with serving(silent, MODELS) as url, pytest.raises(PopeError, match=r"no model 'big'.*tiny"):
        scored(table, asked(url, model="big"))


def test_batches_come_in_order_whatever_answers_first(model: Any, table: pa.Table) -> None:
    plan = plan_of(table)
    with serving(ModelServer(model, "vllm"), MODELS) as url:
        scorer = ServerScorer(asked(url, concurrency=4), Encoder(tiny_tokenizer()))
        scorer.probe(plan.prompts[0], plan.completions[0])
        order = list(range(len(plan)))[::-1]
        parts = list(scorer.run(plan, order))
    assert [part.batches for part in parts] == [(batch,) for batch in order]
    for part in parts:
        assert sorted(plan[part.batches[0]].pairs.tolist()) == part.pairs.tolist()
        assert (np.diff(part.offsets) == plan.completion_lengths[part.pairs]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "ftp://host/v1"}, "no http"),
        ({"base_url": "host:8000"}, "no http"),
        ({"base_url": "http://me:word@host/v1"}, "api_key_env"),
        ({"api": "soap"}, "no api"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": -1.0}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"name": ""}, "name"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PopeError, match=message):
        ServerPolicy(**{"name": "new", "base_url": "http://host/v1", **options})
