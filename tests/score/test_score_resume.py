"""A run that is killed anywhere continues and gives the same file; one with other inputs is refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from score_worlds import naive_sums, token_log

from pope_fast.errors import PopeError
from pope_fast.score import HFPolicy, score
from pope_fast.score.model import ModelScorer
from tiny_models import tiny_model, tiny_tokenizer

OPTIONS: dict[str, Any] = {
    "token_budget": 40,
    "share_prompt": False,
    "deterministic": True,
    "token_logprobs": True,
    "checkpoint_seconds": 0.0,
    "progress": False,
}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return token_log(prompts=8)


@pytest.fixture
def log(tmp_path: Path, table: pa.Table) -> Path:
    path = tmp_path / "log.parquet"
    pq.write_table(table, path)
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batches that were run through a model."""
    ran: list[int] = []
    run = ModelScorer.run

    def noted(self: Any, plan: Any, batches: Any = None) -> Any:
        for scores in run(self, plan, batches):
            ran.append(scores.batch)
            yield scores

    monkeypatch.setattr(ModelScorer, "run", noted)
    return ran


def forked(action: Callable[[], object], deadly: int) -> bool:
    """Run in a child process that kills itself before its n-th sync or rename; tell whether it came that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any) -> Any:
                nonlocal count
                if count == deadly:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return call(*arguments)

            return wrapped

        os.fsync, os.replace = counted(os.fsync), counted(os.replace)
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def parts(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_killed_anywhere_it_continues_to_the_same_bytes(model: Any, tmp_path: Path, batches: list[int]) -> None:
    log = token_log(prompts=3)
    policies = [HFPolicy("one", model), HFPolicy("hot", model, temperature=2.0)]
    whole = tmp_path / "whole.parquet"
    score(log, policies, whole, **OPTIONS)
    reference, total = whole.read_bytes(), len(batches)
    assert total >= 6
    output = tmp_path / "scored.parquet"
    deadly = 0
    while forked(lambda: score(log, policies, output, **OPTIONS), deadly):
        # The output is there whole, or not at all.
        assert not output.exists() or output.read_bytes() == reference
        finished = len(list(parts(output).rglob("[!.]*.arrow")))
        batches.clear()
        score(log, policies, output, **OPTIONS)
        assert output.read_bytes() == reference
        assert len(batches) == total - finished  # What was finished is not scored again.
        assert [item.name for item in tmp_path.iterdir() if "scored" in item.name] == [output.name]
        output.unlink()
        deadly += 1
    assert deadly >= 3 * total
    assert output.read_bytes() == reference


SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
from pope_fast.score import HFPolicy, score
from pope_fast.score.model import ModelScorer
if {slow}:
    run = ModelScorer.run
    def slowly(self, plan, batches=None):
        for scores in run(self, plan, batches):
            yield scores
            time.sleep(0.3)
    ModelScorer.run = slowly
score({log!r}, HFPolicy("new", {model!r}), {output!r}, **{options!r})
"""


def script(log: Path, model: Path, output: Path, *, slow: bool = False, **options: Any) -> str:
    return SCRIPT.format(
        paths=[str(Path(__file__).parent), str(Path(__file__).parents[1])],
        slow=slow,
        log=str(log),
        model=str(model),
        output=str(output),
        options={**OPTIONS, **options},
    )


@pytest.mark.slow
def test_a_process_that_is_killed_is_continued_by_another(log: Path, saved: Path, tmp_path: Path) -> None:
    output, whole = tmp_path / "scored.parquet", tmp_path / "whole.parquet"
    process = subprocess.Popen([sys.executable, "-c", script(log, saved, output, slow=True)])
    try:
        deadline = time.monotonic() + 120
        while len(list(parts(output).rglob("[!.]*.arrow"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # Meanwhile nobody else may write there.
        with pytest.raises(PopeError, match=f"process {process.pid}"):
            score(log, {"new": str(saved)}, output, **OPTIONS)
    finally:
        process.kill()
        process.wait()
    finished = {path: path.stat().st_mtime_ns for path in parts(output).rglob("*.arrow")}
    assert not output.exists()
    ran: list[int] = []
    run = ModelScorer.run
    try:
        ModelScorer.run = lambda self, plan, batches=None: (  # type: ignore[method-assign]
            scores for scores in run(self, plan, batches) if ran.append(scores.batch) is None
        )
        score(log, {"new": str(saved)}, output, **OPTIONS)
        assert ran
        done = len(ran)
        score(log, {"new": str(saved)}, whole, **OPTIONS)
        assert len(ran) - done == done + len(finished)
    finally:
        ModelScorer.run = run  # type: ignore[method-assign]
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_processes_of_one_launch_share_the_work(log: Path, saved: Path, tmp_path: Path, table: pa.Table) -> None:
    output, whole = tmp_path / "scored.parquet", tmp_path / "whole.parquet"
    path = tmp_path / "run.py"
    note = f"open({str(tmp_path / 'ran-')!r} + __import__('os').environ['RANK'], 'w').write('x')\n"
    path.write_text(script(log, saved, output) + note, encoding="utf-8")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *launch], capture_output=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    assert {item.name for item in tmp_path.glob("ran-*")} == {"ran-0", "ran-1"}
    assert not parts(output).exists()
    score(log, {"new": str(saved)}, whole, **{**OPTIONS, "distributed": False})
    assert output.read_bytes() == whole.read_bytes()
    values = pq.read_table(output)["target_logprob/new"].to_pylist()
    assert values == pytest.approx(naive_sums(tiny_model("llama"), table).tolist(), abs=1e-4)


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, *arguments: Any, **options: Any) -> None:
    """Score, and stop as Ctrl-C would after some batches."""
    run = ModelScorer.run

    def stopped(self: Any, plan: Any, batches: Any = None) -> Any:
        for number, scores in enumerate(run(self, plan, batches)):
            if number == after:
                raise KeyboardInterrupt
            yield scores

    with monkeypatch.context() as patch:
        patch.setattr(ModelScorer, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            score(*arguments, **{**OPTIONS, **options})


def test_ctrl_c_keeps_what_was_finished(
    log: Path, model: Any, tmp_path: Path, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "scored.parquet"
    interrupted(monkeypatch, 3, log, {"new": model}, output, checkpoint_seconds=3600.0)
    assert batches[:3] == [0, 1, 2]
    batches.clear()
    score(log, {"new": model}, output, **OPTIONS)
    assert batches[0] == 3


@pytest.fixture
def begun(log: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output whose run was stopped."""
    output = tmp_path / "scored.parquet"
    interrupted(monkeypatch, 2, log, {"new": str(saved)}, output)
    return output


def changed_model(log: Path, saved: Path) -> dict[str, Any]:
    tiny_model("llama", seed=1).save_pretrained(saved)
    return {}


def one_weight(log: Path, saved: Path) -> dict[str, Any]:
    import torch

    other = tiny_model("llama")
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-6
    other.save_pretrained(saved)
    return {}


def changed_config(log: Path, saved: Path) -> dict[str, Any]:
    other = tiny_model("llama")
    other.config.rms_norm_eps = 1e-4
    other.save_pretrained(saved)
    return {}


def changed_tokenizer(log: Path, saved: Path) -> dict[str, Any]:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|tool|>"])
    tokenizer.save_pretrained(saved)
    return {}


def changed_log(log: Path, saved: Path) -> dict[str, Any]:
    table = pq.read_table(log)
    rows = table["completion_ids"].to_pylist()
    rows[5] = [*rows[5], 7]
    index = table.schema.get_field_index("completion_ids")
    pq.write_table(table.set_column(index, "completion_ids", pa.array(rows, pa.list_(pa.int32()))), log)
    return {}


def fewer_rows(log: Path, saved: Path) -> dict[str, Any]:
    pq.write_table(pq.read_table(log).slice(1), log)
    return {}


def other_order(log: Path, saved: Path) -> dict[str, Any]:
    table = pq.read_table(log)
    pq.write_table(table.take(pa.array(list(range(table.num_rows))[::-1])), log)
    return {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed_model, "the model"),
        (one_weight, "the model"),
        (changed_config, "the model"),
        (changed_tokenizer, "the tokenizer"),
        (changed_log, "the log"),
        (fewer_rows, "the log"),
        (other_order, "the log"),
        (lambda log, saved: {"temperature": 0.5}, "temperature"),
        (lambda log, saved: {"dtype": "bfloat16"}, "dtype"),
        (lambda log, saved: {"attention": "eager"}, "attention"),
        (lambda log, saved: {"run": {"deterministic": False}}, "deterministic"),
        (lambda log, saved: {"run": {"token_budget": 60}}, "the batches"),
    ],
)
def test_other_inputs_are_noticed_and_refused(
    begun: Path, log: Path, saved: Path, change: Callable[[Path, Path], dict[str, Any]], named: str
) -> None:
    before = {path: path.read_bytes() for path in parts(begun).rglob("*") if path.is_file()}
    options = change(log, saved)
    run = {**OPTIONS, **options.pop("run", {})}
    policy = HFPolicy("new", saved, **options)
    with pytest.raises(PopeError, match=named) as caught:
        score(log, policy, begun, **run)
    assert "--restart" in str(caught.value)
    assert not begun.exists()
    assert {path: path.read_bytes() for path in parts(begun).rglob("*") if path.is_file()} == before
    score(log, policy, begun, **run, restart=True)
    assert begun.exists()
    assert not parts(begun).exists()


def test_a_moved_log_and_new_columns_are_no_change(begun: Path, log: Path, saved: Path, batches: list[int]) -> None:
    table = pq.read_table(log)
    moved = log.with_name("moved.parquet")
    pq.write_table(table.append_column("cluster", pa.array([1] * table.num_rows)), moved)
    log.unlink()
    score(moved, {"new": str(saved)}, begun, **OPTIONS)
    assert batches[0] == 2
    assert "cluster" in pq.read_schema(begun).names


def test_a_finished_policy_is_not_loaded_again(
    log: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    other = tmp_path / "other"
    tiny_model("llama", seed=1).save_pretrained(other)
    policies = {"first": str(saved), "second": str(other)}
    output, whole = tmp_path / "scored.parquet", tmp_path / "whole.parquet"
    score(log, policies, whole, **OPTIONS)
    run = ModelScorer.run
    seen: list[Any] = []

    def stopped(self: Any, plan: Any, batches: Any = None) -> Any:
        seen.append(self)
        if len(seen) == 2:
            raise KeyboardInterrupt
        yield from run(self, plan, batches)

    with monkeypatch.context() as patch:
        patch.setattr(ModelScorer, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            score(log, policies, output, **OPTIONS)
    loads: list[str] = []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def counted(source: str, **options: Any) -> Any:
        loads.append(source)
        return load(source, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", counted)
    score(log, policies, output, **OPTIONS)
    assert loads == [str(other)]
    assert output.read_bytes() == whole.read_bytes()


def test_the_budget_that_was_found_is_kept(
    log: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: list[int]
) -> None:
    output = tmp_path / "scored.parquet"
    interrupted(monkeypatch, 0, log, {"new": model}, output, token_budget=48)
    # As on a smaller device: what was begun in larger batches is continued in them.
    score(log, {"new": model}, output, **{**OPTIONS, "token_budget": None})
    assert output.exists()


def test_an_output_that_exists_is_kept(log: Path, model: Any, tmp_path: Path) -> None:
    output = tmp_path / "scored.parquet"
    score(log, {"new": model}, output, **OPTIONS)
    before = output.read_bytes()
    with pytest.raises(PopeError, match="--overwrite"):
        score(log, {"hot": model}, output, **OPTIONS)
    assert output.read_bytes() == before
    score(log, {"hot": model}, output, **OPTIONS, overwrite=True)
    assert "target_logprob/hot" in pq.read_schema(output).names


def test_a_full_disk_leaves_no_half_file(
    log: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "scored.parquet"
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target) == output:
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(PopeError, match="No space left"):
            score(log, {"new": model}, output, **OPTIONS)
    assert not output.exists()
    assert [item.name for item in tmp_path.iterdir() if item.name.endswith(".tmp")] == []
    shutil.copytree(parts(output), tmp_path / "kept")
    score(log, {"new": model}, output, **OPTIONS)
    assert output.exists()
