"""Rows become the token ids that the sampler drew: stored ones as they are, texts as a sampler would split them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

import pope_fast
from pope_fast.errors import PopeError, SchemaError
from pope_fast.score.encoding import Encoder
from pope_fast.score.rows import Tokenized, tokenize_log
from tiny_models import tiny_tokenizer

ASK = [{"role": "user", "content": "what should we do?"}]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer)


def rows(encoder: Encoder | None = None, /, **columns: Any) -> Tokenized:
    options = {name: columns.pop(name) for name in ("tokens", "eos") if name in columns}
    return tokenize_log(pope_fast.read_log(pa.table(columns)), encoder, **options)


def lists(tokens: Any) -> list[list[int]]:
    return [tokens[row].tolist() for row in range(len(tokens))]


def test_stored_ids_are_taken_as_they_are() -> None:
    made = rows(prompt_ids=[[3, 4], [5]], completion_ids=[[6], [7, 2]], finish_reason=["stop", "length"])
    assert lists(made.prompts) == [[3, 4], [5]]
    assert lists(made.completions) == [[6], [7, 2]]
    assert (made.tokens, made.prompt_source, made.eos) == ("stored", "stored", "as stored")
    assert made.errors == {}
    assert made.notes == ()


def test_stored_ids_are_preferred_over_texts(encoder: Encoder, tokenizer: Any) -> None:
    # What was sampled need not be what the tokenizer makes of the text.
    sampled = tokenizer.convert_tokens_to_ids(list("trees"))
    made = rows(encoder, prompt=["user"], prompt_ids=[[9]], completion=["trees"], completion_ids=[sampled])
    assert lists(made.prompts) == [[9]]
    assert (
        lists(made.completions) == [sampled] != lists(rows(encoder, prompt=["user"], completion=["trees"]).completions)
    )


@pytest.mark.parametrize("type_", [pa.list_(pa.int64()), pa.large_list(pa.uint16()), pa.list_(pa.int8())])
def test_ids_of_any_integer_type(type_: Any) -> None:
    made = rows(prompt_ids=pa.array([[3]], type_), completion_ids=pa.array([[100, 1]], type_))
    assert lists(made.completions) == [[100, 1]]


def test_messages_go_through_the_chat_template(encoder: Encoder, tokenizer: Any) -> None:
    made = rows(encoder, prompt=[ASK, ASK], completion=["plant more trees", "yes"], finish_reason=["stop", "length"])
    expected = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert lists(made.prompts) == [expected, expected]
    text = tokenizer("plant more trees", add_special_tokens=False)["input_ids"]
    assert lists(made.completions)[0] == [*text, tokenizer.eos_token_id]
    assert lists(made.completions)[1][-1] != tokenizer.eos_token_id
    assert (made.tokens, made.prompt_source, made.eos) == ("retokenized", "template", "by finish_reason")
    assert any("tokenized from their text" in note for note in made.notes)


def test_fields_that_the_reader_filled_in_do_not_reach_the_template(encoder: Encoder) -> None:
    named = [{"role": "user", "content": "hello", "name": "ann"}]
    both = rows(encoder, prompt=[ASK, named], completion=["yes", "no"])
    alone = rows(encoder, prompt=[ASK], completion=["yes"])
    assert lists(both.prompts)[0] == lists(alone.prompts)[0]


def test_a_response_that_was_begun_is_continued(encoder: Encoder, tokenizer: Any) -> None:
    begun = [*ASK, {"role": "assistant", "content": "we should"}]
    made = rows(encoder, prompt=[begun], completion=[" sell"])
    assert tokenizer.decode(lists(made.prompts)[0]).endswith("<|assistant|>we should")


def test_a_completion_may_be_one_message(encoder: Encoder) -> None:
    said = rows(encoder, prompt=[ASK], completion=[[{"role": "assistant", "content": "yes"}]])
    assert lists(said.completions) == lists(rows(encoder, prompt=[ASK], completion=["yes"]).completions)
    with pytest.raises(SchemaError, match="one message") as caught:
        rows(encoder, prompt=[ASK], completion=[[*ASK, *ASK]])
    assert (caught.value.column, caught.value.row) == ("completion", 0)


def test_messages_without_a_template_are_an_error() -> None:
    bare = Encoder(tiny_tokenizer(chat=False))
    with pytest.raises(SchemaError, match="no chat template") as caught:
        rows(bare, prompt=[ASK], completion=["yes"])
    assert caught.value.column == "prompt"
    assert bare.template_hash is None


def test_a_template_that_refuses_says_so() -> None:
    strict = tiny_tokenizer()
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(SchemaError, match="roles must alternate") as caught:
        rows(Encoder(strict), prompt=[ASK], completion=["yes"])
    assert caught.value.row == 0


@pytest.mark.parametrize("value", [[{"text": "no role"}], [1, 2]])
def test_prompts_that_are_neither_text_nor_messages(encoder: Encoder, value: Any) -> None:
    with pytest.raises(SchemaError, match="neither a text nor messages"):
        rows(encoder, prompt=[value], completion=["yes"])


def test_plain_text_is_split_as_prompt_and_rest(encoder: Encoder, tokenizer: Any) -> None:
    made = rows(encoder, prompt=["the city "], completion=["center?"])
    joint = tokenizer("the city center?", add_special_tokens=False)["input_ids"]
    prompt = tokenizer("the city ", add_special_tokens=False)["input_ids"]
    assert joint[: len(prompt)] != prompt  # The space belongs to the next word: a token across the border.
    assert lists(made.prompts) == [prompt]
    assert lists(made.completions) == [tokenizer("center?", add_special_tokens=False)["input_ids"]]
    assert made.boundary_mismatches == 1
    assert any("across the border" in note for note in made.notes)


def test_text_that_fits_at_the_border_is_no_mismatch(encoder: Encoder, tokenizer: Any) -> None:
    made = rows(encoder, prompt=["the city"], completion=[" center?"])
    whole = [*lists(made.prompts)[0], *lists(made.completions)[0]]
    assert whole == tokenizer("the city center?", add_special_tokens=False)["input_ids"]
    assert made.boundary_mismatches == 0


def with_begin(tokenizer: Any) -> Encoder:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return Encoder(tokenizer)


def test_special_tokens_go_before_plain_text_once_and_never_behind_it() -> None:
    encoder = with_begin(tiny_tokenizer())
    assert encoder.prefix.tolist() == [1]
    made = rows(encoder, prompt=["hello", "<s>hello"], completion=[" world", " world"])
    first, second = lists(made.prompts)
    assert first == second
    assert first[0] == 1
    assert 1 not in first[1:]
    assert 2 not in first
    assert 2 not in lists(made.completions)[0]
    template = rows(encoder, prompt=[ASK], completion=["yes"])
    assert 1 not in lists(template.prompts)[0]  # A template writes its own.


@pytest.mark.parametrize(
    ("eos", "reason", "ends"),
    [
        ("auto", "stop", True),
        ("auto", "EOS", True),
        ("auto", True, True),
        ("auto", "length", False),
        ("auto", "stop_sequence", False),
        ("auto", None, False),
        ("always", "length", True),
        ("never", "stop", False),
    ],
)
def test_the_end_counts_if_the_model_ended_it(encoder: Encoder, eos: str, reason: Any, ends: bool) -> None:
    made = rows(encoder, prompt=["user"], completion=[" yes"], finish_reason=[reason], eos=eos)
    assert (lists(made.completions)[0][-1] == 2) is ends


def test_without_finish_reason_the_end_is_not_counted_and_that_is_said(encoder: Encoder) -> None:
    made = rows(encoder, prompt=["user"], completion=[" yes"])
    assert 2 not in lists(made.completions)[0]
    assert made.eos == "never: the log has no finish_reason"
    assert any(made.eos in note for note in made.notes)


def test_an_end_in_the_text_is_not_counted_twice(encoder: Encoder) -> None:
    made = rows(encoder, prompt=["user"], completion=[" yes</s>"], finish_reason=["stop"])
    assert lists(made.completions)[0].count(2) == 1


def test_unknown_reasons_are_said(encoder: Encoder) -> None:
    made = rows(encoder, prompt=["user"], completion=[" yes"], finish_reason=["bored"])
    assert any("bored" in note for note in made.notes)


def test_the_end_of_a_turn_is_what_the_template_writes_after_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "<|system|>\n")
    encoder = Encoder(tokenizer)
    assert encoder.end_id(chat=True) == tokenizer.convert_tokens_to_ids("<|system|>")
    assert encoder.end_id(chat=False) == tokenizer.eos_token_id
    tokenizer.chat_template = tokenizer.chat_template.replace("<|system|>\n", " over")
    assert Encoder(tokenizer).end_id(chat=True) == tokenizer.eos_token_id


def test_rows_that_cannot_be_scored_have_a_reason(encoder: Encoder) -> None:
    made = rows(
        encoder,
        prompt=["user", "", "user", None, "user"],
        completion=["", "yes", None, "yes", ""],
        finish_reason=["length", "stop", "stop", "stop", "stop"],
    )
    assert set(made.errors) == {0, 1, 2, 3}  # A response may consist of its end alone: row 4.
    assert "empty completion" in made.errors[0]
    assert "empty prompt" in made.errors[1]
    assert "null" in made.errors[2]
    assert "null" in made.errors[3]
    assert lists(made.completions)[4] == [2]
    assert made.excluded().tolist() == [True, True, True, True, False]


def test_stored_rows_that_cannot_be_scored() -> None:
    made = rows(prompt_ids=[[3], [], [3]], completion_ids=[[], [4], None])
    assert set(made.errors) == {0, 1, 2}
    assert "null" in made.errors[2]


@pytest.mark.parametrize(
    ("ids", "message"), [([[3], [None]], "null"), ([[3], [-100]], "-100"), ([[3], [2**31]], "2147483648")]
)
def test_ids_that_are_none_name_column_and_row(ids: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        rows(prompt_ids=[[3], [3]], completion_ids=pa.array(ids, pa.list_(pa.int64())))
    assert (caught.value.column, caught.value.row) == ("completion_ids", 1)


def test_wrong_types_are_refused_when_the_log_is_opened() -> None:
    with pytest.raises(SchemaError, match="lists of integers"):
        rows(prompt_ids=["a"], completion_ids=[[3]])


@pytest.mark.parametrize("columns", [{"prompt": ["a"]}, {"completion": ["a"]}, {"reward": [1.0]}])
def test_missing_columns(encoder: Encoder, columns: dict[str, Any]) -> None:
    with pytest.raises(SchemaError, match="the log has:") as caught:
        rows(encoder, **columns)
    assert caught.value.remedy is not None


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(PopeError, match="no tokenizer"):
        rows(prompt=["a"], completion=["b"])
    with pytest.raises(PopeError, match="prompts of the log are text"):
        rows(prompt=["a"], completion_ids=[[3]])


def test_ids_of_another_tokenizer_are_noticed_by_their_text(encoder: Encoder, tokenizer: Any) -> None:
    texts = ["plant more trees", "ask the people"]
    right = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    wrong = [[(token + 7) % 90 + 6 for token in ids] for ids in right]
    columns = {"prompt_ids": [[3], [3]], "completion": texts}
    assert rows(encoder, **columns, completion_ids=right).notes == ()
    with pytest.raises(SchemaError, match="another tokenizer") as caught:
        rows(encoder, **columns, completion_ids=wrong)
    assert caught.value.column == "completion_ids"
    assert "retokenize" in (caught.value.remedy or "")
    assert lists(rows(encoder, **columns, completion_ids=wrong, tokens="stored").completions) == wrong
    retokenized = rows(encoder, **columns, completion_ids=wrong, prompt=["user", "user"], tokens="text")
    assert lists(retokenized.completions) == right


def test_other_lengths_than_the_logged_log_probs_are_said(encoder: Encoder) -> None:
    lists_ = [[-1.0] * 3, [-1.0] * 2]
    made = rows(prompt_ids=[[3], [3]], completion_ids=[[4, 5], [6]], behavior_token_logprobs=lists_)
    assert any("all by one token" in note for note in made.notes)


def test_the_fingerprint_follows_what_is_scored(encoder: Encoder) -> None:
    base = rows(prompt_ids=[[3], [4]], completion_ids=[[5], [6, 7]])
    again = rows(prompt_ids=[[3], [4]], completion_ids=[[5], [6, 7]], reward=[0.0, 1.0])
    moved = rows(prompt_ids=[[3], [4]], completion_ids=[[5, 6], [7]])
    assert base.fingerprint() == again.fingerprint() != moved.fingerprint()


def test_tokenizers_are_told_apart_by_what_decides_about_tokens() -> None:
    base, same = Encoder(tiny_tokenizer()), tiny_tokenizer()
    same(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert Encoder(same).fingerprint == base.fingerprint
    more = tiny_tokenizer()
    more.add_tokens(["<|tool|>"])
    assert Encoder(more).fingerprint != base.fingerprint
    template = tiny_tokenizer()
    template.chat_template += " "
    assert Encoder(template).fingerprint == base.fingerprint
    assert Encoder(template).template_hash != base.template_hash


def test_a_processor_is_its_tokenizer(tokenizer: Any) -> None:
    class Processor:
        def __init__(self) -> None:
            self.tokenizer = tokenizer

    assert Encoder(Processor()).tokenizer is tokenizer


def test_an_empty_log_is_an_error() -> None:
    with pytest.raises(SchemaError, match="empty"):
        rows(prompt_ids=pa.array([], pa.list_(pa.int32())), completion_ids=pa.array([], pa.list_(pa.int32())))


@pytest.mark.parametrize("option", [{"tokens": "all"}, {"eos": "maybe"}])
def test_options_out_of_range(option: dict[str, str]) -> None:
    with pytest.raises(PopeError, match="must be"):
        rows(prompt_ids=[[3]], completion_ids=[[4]], **option)
