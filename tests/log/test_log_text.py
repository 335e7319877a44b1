"""JSON lines and CSV as people write them: mixed numbers, gaps, damage - each fault with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from log_tables import read_all

from pope_fast.errors import PopeError, SchemaError
from pope_fast.log import read_log, validate

BASE = {"prompt_id": "p", "reward": 1.0, "behavior_logprob": -1.0, "target_logprob": -2.0}


def write(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps({**BASE, **row}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def rows(n: int) -> list[Any]:
    return [{"prompt_id": f"p{i // 2}", "reward": float(i)} for i in range(n)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def test_python_writes_infinity(path: Path) -> None:
    assert "-Infinity" in write(path, [*rows(3), {"target_logprob": -np.inf}]).read_text()
    assert read_all(read_log(path))["target_logprob/target"].tolist() == [-2.0, -2.0, -2.0, -np.inf]


def test_a_float_after_integers(path: Path) -> None:
    write(path, [{"prompt_id": i, "reward": i} for i in range(3)] + [{"prompt_id": 9, "reward": 0.5}])
    arrays = read_all(read_log(path))
    assert arrays["reward"].tolist() == [0.0, 1.0, 2.0, 0.5]
    assert arrays["unit_key"].tolist() == [0, 1, 2, 9]


def test_booleans(path: Path) -> None:
    write(path, [{"prompt_id": "a", "reward": True}, {"prompt_id": "b", "reward": False}])
    log = read_log(path)
    assert log.reward_range().origin == "boolean"
    assert read_all(log)["reward"].tolist() == [1.0, 0.0]


def test_blank_lines_and_crlf_and_byte_order_mark(path: Path) -> None:
    text = "\r\n\r\n".join(json.dumps({**BASE, **row}) for row in rows(4))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n \r\n")
    assert read_all(read_log(path))["reward"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_last_line_may_lack_its_end(path: Path) -> None:
    write(path, rows(4))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(read_all(read_log(path))["reward"]) == 4


@pytest.mark.parametrize("last", ["other", "2024-01-03"])
def test_ids_that_look_like_dates_are_text(path: Path, last: str) -> None:
    write(path, [{"prompt_id": "2024-01-01"}, {"prompt_id": "2024-01-02"}, {"prompt_id": last}])
    log = read_log(path)
    assert log.schema.field("prompt_id").type == pa.string()
    assert len(set(read_all(log)["unit_key"].tolist())) == 3


def test_messages_that_gain_a_field_later(path: Path) -> None:
    hello = {"role": "user", "content": "hi"}
    prompts = [[hello], [hello], [{**hello, "name": "bob"}]]
    lines = [json.dumps({**BASE, "prompt_id": 0, "prompt": prompt}) for prompt in prompts]
    for line in range(3):
        lines[line] = lines[line].replace('"prompt_id": 0, ', "")
    path.write_text("\n".join(lines) + "\n")
    unit = read_all(read_log(path))["unit_key"]
    assert unit[0] == unit[1] != unit[2]


def test_small_blocks_give_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, rows(500))
    expected = read_all(read_log(path))
    monkeypatch.setattr("pope_fast.log.jsonl._BLOCK_BYTES", 700)
    found = read_all(read_log(path))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt_id": "p", ', "malformed JSON"),
        ("nonsense", "malformed JSON"),
        ("[1, 2]", "a JSON object is needed, not list"),
        ("3", "a JSON object is needed, not int"),
        ('{"prompt_id": "p"} {"prompt_id": "q"}', "malformed JSON"),
    ],
)
@pytest.mark.parametrize("where", [0, 2, 7])
def test_malformed_lines_are_named(path: Path, line: str, message: str, where: int) -> None:
    content: list[Any] = rows(8)
    content.insert(where, line)
    with pytest.raises(SchemaError) as error:
        read_all(read_log(write(path, content)))
    assert f"line {where + 1}: " in error.value.message
    assert message in error.value.message
    report = validate(path)
    assert not report.ok
    assert f"line {where + 1}: " in report.faults[-1].message
    assert not report.complete


def test_malformed_lines_in_later_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pope_fast.log.jsonl._BLOCK_BYTES", 700)
    content: list[Any] = rows(300)
    content[222] = "{"
    with pytest.raises(SchemaError, match="line 223: malformed JSON"):
        read_all(read_log(write(path, content)))
    report = validate(path)
    assert 0 < report.n_rows < 223


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"reward": "good"}, "reward"),
        ({"prompt_id": 7}, "prompt_id"),
        ({"behavior_logprob": [1.0]}, "behavior_logprob"),
    ],
)
def test_values_of_another_type_are_named(path: Path, row: dict[str, Any], column: str) -> None:
    content: list[Any] = rows(8)
    content[5] = row
    with pytest.raises(SchemaError, match="line 6: ") as error:
        read_all(read_log(write(path, content)))
    assert error.value.column == column


def test_integer_keys_are_not_rounded(path: Path) -> None:
    content = [{"prompt_id": 1}, {"prompt_id": 2}, {"prompt_id": 2.5}]
    log = read_log(write(path, content))
    with pytest.raises(SchemaError, match=r"line 3: 2\.5 where the lines before hold int64"):
        read_all(log)


def test_rows_are_traced_to_lines(path: Path) -> None:
    content: list[Any] = rows(8)
    content[5] = {"reward": None}
    with pytest.raises(SchemaError) as error:
        read_all(read_log(write(path, content)))
    assert error.value.row == 5
    assert "line 6" in error.value.message


def test_a_missing_key_is_a_null(path: Path) -> None:
    content: list[Any] = rows(4)
    content.append('{"prompt_id": "z", "reward": 1.0, "target_logprob": -1.0}')
    with pytest.raises(SchemaError, match="null") as error:
        read_all(read_log(write(path, content)))
    assert (error.value.column, error.value.row) == ("behavior_logprob", 4)


def test_a_cut_gzip_file(path: Path) -> None:
    data = gzip.compress(write(path, rows(3000)).read_bytes())
    cut = path.with_suffix(".jsonl.gz")
    for size in (5, len(data) // 2):
        cut.write_bytes(data[:size])
        with pytest.raises(SchemaError) as error:
            read_all(read_log(cut))
        assert "cut" in (error.value.remedy or "")
        assert not validate(cut).ok


def test_token_lists_and_empty_heads(path: Path) -> None:
    base = {"prompt_id": "a", "reward": 1}
    content = [
        json.dumps({**base, "behavior_token_logprobs": [-1, -2], "target_token_logprobs/x": [0, 0]}),
        json.dumps({**base, "behavior_token_logprobs": [-0.5], "target_token_logprobs/x": [-0.25]}),
        json.dumps({**base, "prompt_id": "b", "behavior_token_logprobs": [-3], "target_token_logprobs/x": [-np.inf]}),
    ]
    arrays = read_all(read_log(write(path, content)))
    assert arrays["behavior_logprob"].tolist() == [-3.0, -0.5, -3.0]
    assert arrays["target_logprob/x"].tolist() == [0.0, -0.25, -np.inf]
    assert arrays["num_tokens"].tolist() == [2.0, 1.0, 1.0]


HEADER = "prompt_id,reward,behavior_logprob,target_logprob,completion\n"


def csv_file(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(HEADER + "".join(line + "\n" for line in lines))
    return path


GOOD = ("a,1,-1.0,-2.0,yes", 'b,0.5,-1,-inf,"no, with\nline break and ""quotes"""', "c,0,-2,-1,")


def test_csv_values(tmp_path: Path) -> None:
    log = read_log(csv_file(tmp_path, *GOOD))
    arrays = read_all(log)
    assert arrays["reward"].tolist() == [1.0, 0.5, 0.0]
    assert arrays["target_logprob/target"].tolist() == [-2.0, -np.inf, -1.0]
    assert len(set(arrays["unit_key"].tolist())) == 3


def test_csv_keys_with_leading_zeros_are_text(tmp_path: Path) -> None:
    log = read_log(csv_file(tmp_path, "007,1,-1,-1,", "7,1,-1,-1,", "8,1,-1,-1,"))
    assert len(set(read_all(log)["unit_key"].tolist())) == 3
    whole = read_log(csv_file(tmp_path, "17,1,-1,-1,", "7,1,-1,-1,"))
    assert read_all(whole)["unit_key"].tolist() == [17, 7]


def test_csv_dates_are_text(tmp_path: Path) -> None:
    log = read_log(csv_file(tmp_path, "2024-01-01,1,-1,-1,", "2024-01-02,1,-1,-1,"))
    assert len(set(read_all(log)["unit_key"].tolist())) == 2


@pytest.mark.parametrize("column", ["prompt_id", "reward", "behavior_logprob"])
def test_an_empty_csv_field_is_missing(tmp_path: Path, column: str) -> None:
    fields = ["x", "1", "-1", "-1", ""]
    fields[HEADER.split(",").index(column)] = ""
    with pytest.raises(SchemaError, match="null") as error:
        read_all(read_log(csv_file(tmp_path, *GOOD, ",".join(fields))))
    assert (error.value.column, error.value.row) == (column, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [("d,1,-1", "line 6: 3 fields, but the header has 5"), ("d,1,-1,-1,a,b", "line 6: 6 fields")],
)
def test_malformed_csv(tmp_path: Path, line: str, message: str) -> None:
    path = csv_file(tmp_path, *GOOD, line)
    with pytest.raises(SchemaError, match=message):
        read_all(read_log(path))
    assert message in validate(path).faults[0].message


def test_a_word_among_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pope_fast.log.csv._SAMPLE_BYTES", 150)
    lines = [f"p{i},1,-1.5,-2.5,x" for i in range(50)]
    lines[40] = "p40,good,-1.5,-2.5,x"
    with pytest.raises(SchemaError, match="line 42: 'good' is no number") as error:
        read_all(read_log(csv_file(tmp_path, *lines)))
    assert error.value.column == "reward"


def test_the_header_alone_is_an_empty_log(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="the log is empty"):
        read_all(read_log(csv_file(tmp_path)))


def test_a_cut_csv_gzip(tmp_path: Path) -> None:
    data = gzip.compress(csv_file(tmp_path, *(f"p{i},{i % 7},-1.5,-{i},x" for i in range(5000))).read_bytes())
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(SchemaError):
        read_all(read_log(cut))


LATE = {"count": 7, "group": "late", "cluster": "late", "extra": "late"}


@pytest.mark.parametrize("name", LATE)
def test_a_late_column_is_there_for_every_verb(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pope_fast.log.jsonl._BLOCK_BYTES", 700)
    content = [{key: value for key, value in row.items() if key != name} for row in rows(100)]
    log = read_log(write(path, [*content, *({**row, name: LATE[name]} for row in rows(5))]))
    assert log.to_arrow()[name].to_pylist() == [None] * 100 + [LATE[name]] * 5
    if name != "extra":
        with pytest.raises(SchemaError, match="null") as caught:
            read_all(log)
        assert (caught.value.column, caught.value.row) == (name, 0)


def test_mixed_values_stop_nobody_who_does_not_read_them(path: Path) -> None:
    parts = ["x", 1, [{"type": "text"}], None]
    content = [{**row, "parts": parts[i % 4]} for i, row in enumerate(rows(40))]
    log = read_log(write(path, content))
    assert len(read_all(log)["reward"]) == 40
    assert validate(path).ok
    assert log.to_arrow()["parts"].to_pylist()[:4] == ['"x"', "1", '[{"type": "text"}]', None]


@pytest.mark.parametrize("low", [2**63, 2**64 - 4, 2**64, 10**30, -(10**30)])
def test_integers_keep_their_digits(path: Path, low: int) -> None:
    content = [{**row, "prompt_id": low + i // 4, "trace": low - i} for i, row in enumerate(rows(12))]
    log = read_log(write(path, content))
    assert [int(value) for value in log.to_arrow()["trace"].to_pylist()] == [low - i for i in range(12)]
    assert len(np.unique(read_all(log)["unit_key"])) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"x":' + b"[" * 3000 + b"]" * 3000 + b"}", "nested more than 100 deep"),
        (b'{"x":' + b'[1,{"a\\"":' * 300_000, "nested more than 100 deep"),
        (b'{"prompt_id":' + b"9" * 5000 + b"}", "digits"),
        (b'{"\\udfff":1}', "surrogate pair in the name"),
        (b'{"\xff":1}', "byte 0xff is no UTF-8"),
        (b'{"group":"\xfe"}', "byte 0xfe is no UTF-8"),
    ],
)
def test_hostile_lines_are_named(path: Path, line: bytes, message: str) -> None:
    good = write(path, rows(40)).read_bytes().rstrip() + b"\n"
    path.write_bytes(good + line + b"\n")
    with pytest.raises(SchemaError, match=f"line 41.*{message}"):
        read_all(read_log(path))
    report = validate(path)
    assert any(message in fault.message for fault in report.faults)


def test_half_a_surrogate_pair(path: Path) -> None:
    content = [{**row, "group": "a"} for row in rows(40)]
    log = read_log(write(path, [*content, {"prompt_id": "p", "reward": 1.0, "group": "\ud800"}]))
    with pytest.raises(SchemaError, match="line 41: half of a surrogate pair"):
        read_all(log)
    assert len(read_all(log, roles=[])["reward"]) == 41


def test_a_corrupt_stream_leaks_nothing(tmp_path: Path) -> None:
    import resource

    data = bytearray(gzip.compress(write(tmp_path / "good.jsonl", rows(200)).read_bytes()))
    data[len(data) // 2] ^= 255
    bad = tmp_path / "bad.jsonl.gz"
    bad.write_bytes(data)

    def fail(times: int) -> int:
        for _ in range(times):
            with pytest.raises(SchemaError, match="cannot be read"):
                read_all(read_log(bad))
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    if Path("/proc/self/statm").exists():
        before = fail(3)
        assert fail(30) - before < 64 << 20  # once 16 MB each


def test_brackets_in_text_are_no_nesting(path: Path) -> None:
    content = [{**row, "completion": "[{" * 500, "list": [[1]] * 300} for row in rows(12)]
    assert read_log(write(path, content)).to_arrow().num_rows == 12


def test_one_endless_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.jsonl.gz"
    good = write(tmp_path / "good.jsonl", rows(1)).read_bytes().rstrip() + b"\n"
    bomb.write_bytes(gzip.compress(good + b" " * (70 << 20), 1))
    with pytest.raises(SchemaError, match=r"line 2 is longer than 67,108,864 bytes.*POPE_MAX_LINE_BYTES"):
        read_all(read_log(bomb))
    monkeypatch.setenv("POPE_MAX_LINE_BYTES", str(100 << 20))
    assert read_log(bomb).to_arrow().num_rows == 1
    monkeypatch.setenv("POPE_MAX_LINE_BYTES", "much")
    with pytest.raises(PopeError, match="POPE_MAX_LINE_BYTES"):
        read_log(bomb)


def test_blank_lines_alone(tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl.gz").write_bytes(gzip.compress(b"\n" * (40 << 20), 1))
    with pytest.raises(SchemaError, match="empty"):
        read_log(tmp_path / "blank.jsonl.gz")


def test_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    header = "prompt_id;reward;behavior_logprob;target_logprob;note"
    path.write_text("\n".join([header, *(f"{i // 2};{i % 2};-1,5;-{i},25;a, b" for i in range(8))]))
    arrays = read_all(read_log(path))
    assert arrays["behavior_logprob"].tolist() == [-1.5] * 8
    assert arrays["target_logprob/target"].tolist() == [-i - 0.25 for i in range(8)]
    path.write_text(path.read_text().replace("-3,25", "x,25"))
    with pytest.raises(SchemaError, match="numbers are needed"):
        read_all(read_log(path))


def test_a_csv_header_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"prompt_id,reward,behavior_logprob,target_logprob/\xffx\n1,0,-1,-1\n2,1,-1,-1\n")
    with pytest.raises(SchemaError, match="line 1: byte 0xff is no UTF-8"):
        read_log(path)


def test_a_column_that_only_a_later_csv_has(tmp_path: Path) -> None:
    for name, more in (("a", ""), ("b", ",count")):
        row = "1,0,-1,-1,3" if more else "1,0,-1,-1"
        (tmp_path / f"{name}.csv").write_text(f"prompt_id,reward,behavior_logprob,target_logprob{more}\n{row}\n")
    with pytest.raises(SchemaError, match="but not in") as caught:
        read_log(tmp_path)
    assert caught.value.column == "count"
