"""A tokenizer as scoring uses it: chat template, text to token ids, ends of responses, fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pope_fast.errors import PopeError

__all__ = ["Encoder", "Pairs"]

_Ids = npt.NDArray[np.int32]

# A text that no template alters, and that no response holds.
_MARK = "pope_fast response"


class Pairs(NamedTuple):
    """Tokens of some rows: those of each prompt, of each completion, and which rows have a token across the border."""

    prompts: list[_Ids]
    completions: list[_Ids]
    mismatch: npt.NDArray[np.bool_]


class Encoder:
    """Turns prompts and completions into token ids.

    Parameters
    ----------
    tokenizer : transformers tokenizer or processor
        ``processing_class`` of a policy.
    """

    def __init__(self, tokenizer: Any) -> None:
        # A processor of several modalities has a tokenizer for its texts.
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what decides about token ids; the chat template has one of its own."""
        tokenizer = self.tokenizer
        facts: dict[str, Any] = {
            "class": type(tokenizer).__name__,
            "special": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
            "prefix": self.prefix.tolist(),
        }
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            state = json.loads(backend.to_str())
            # Set by the last call, whoever made it; calls here set them anew.
            facts["backend"] = {name: part for name, part in state.items() if name not in ("truncation", "padding")}
        else:
            facts["vocabulary"] = sorted(tokenizer.get_vocab().items())
            # What a tokenizer without a backend does beyond its vocabulary shows in what it does.
            facts["behavior"] = self._encode(["Hello, world!  1234 ab\tcd\n\u00e9\u4f60\u597d \U0001f600 </s>"])
        return _digest(facts)

    @cached_property
    def template_hash(self) -> str | None:
        """Digest of the chat template, None if there is none."""
        template = self._template
        return None if template is None else _digest(template)

    @property
    def _template(self) -> str | None:
        try:
            template: str = self.tokenizer.get_chat_template()
        except (ValueError, AttributeError):
            return None
        return template

    @cached_property
    def prefix(self) -> _Ids:
        """Special tokens that the tokenizer puts before a plain text."""
        bare = self._encode(["a"])[0]
        dressed = list(self.tokenizer("a")["input_ids"])
        for start in range(len(dressed) - len(bare) + 1):
            if dressed[start : start + len(bare)] == bare:
                return np.array(dressed[:start], np.int32)
        raise PopeError(
            f"{type(self.tokenizer).__name__} gives other tokens with special tokens than without; "
            "store prompt_ids and completion_ids in the log"
        )

    def end_id(self, *, chat: bool) -> int | None:
        """Return the token that ends a response: what the chat template writes after one, else the tokenizer's EOS."""
        eos: int | None = self.tokenizer.eos_token_id
        if not chat:
            return eos
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        try:
            text: str = self.tokenizer.apply_chat_template(turn, tokenize=False)
        except Exception:  # A template may demand what this turn has not; any error of its own language can come.
            return eos
        tail = text.rpartition(_MARK)[2]
        first = next(iter(self._encode([tail])[0]), None) if tail else None
        return first if first is not None and first in self._special_ids else eos

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        marked = {index for index, token in added.items() if getattr(token, "special", False)}
        return frozenset(marked | set(self.tokenizer.all_special_ids))

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return messages as the text of a prompt; the template opens the response, or continues one that was begun.

        Raises
        ------
        PopeError
            If there is no template, or it refuses the messages.
        """
        if self._template is None:
            raise PopeError(
                "the prompts are messages, but the tokenizer has no chat template. Remedy: set "
                "tokenizer.chat_template, or store prompt_ids or rendered text in the log."
            )
        begun = bool(messages) and messages[-1].get("role") == "assistant"
        try:
            text: str = self.tokenizer.apply_chat_template(
                [*messages], tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
            )
        except Exception as error:  # See end_id.
            raise PopeError(f"the chat template refuses the messages: {' '.join(str(error).split())}") from error
        return text

    def encode_completions(self, completions: Sequence[str]) -> list[_Ids]:
        """Return token ids of completions whose prompts are token ids already."""
        return [np.array(ids, np.int32) for ids in self._encode(completions)]

    def encode_prompts(self, prompts: Sequence[str], *, rendered: bool) -> list[_Ids]:
        """Return token ids of prompts: rendered ones as they are, plain texts after the tokenizer's special tokens."""
        return [self._prefixed(text, ids, rendered) for text, ids in zip(prompts, self._encode(prompts), strict=True)]

    def encode_pairs(self, prompts: Sequence[str], completions: Sequence[str], *, rendered: bool) -> Pairs:
        """Tokenize each prompt with its completion.

        Prompt and completion are tokenized in one piece. If that begins with the tokens of the prompt alone, the rest
        is the completion. Else a token lies across the border; no sampler that was given the prompt can have drawn
        it, and the completion is tokenized alone.
        """
        alone = dict(zip(unique := list(dict.fromkeys(prompts)), self._encode(unique), strict=True))
        joint = self._encode([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])
        rest: list[_Ids | None] = []
        for prompt, ids in zip(prompts, joint, strict=True):
            begin = alone[prompt]
            fits = ids[: len(begin)] == begin
            rest.append(np.array(ids[len(begin) :], np.int32) if fits else None)
        apart = [row for row, ids in enumerate(rest) if ids is None]
        for row, ids in zip(apart, self._encode([completions[row] for row in apart]), strict=True):
            rest[row] = np.array(ids, np.int32)
        prefixed = {text: self._prefixed(text, ids, rendered) for text, ids in alone.items()}
        mismatch = np.zeros(len(prompts), np.bool_)
        mismatch[apart] = True
        return Pairs([prefixed[prompt] for prompt in prompts], [ids for ids in rest if ids is not None], mismatch)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of token ids, special tokens left out."""
        text: str = self.tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=True)
        return text

    def decode_exact(self, ids: npt.ArrayLike) -> str:
        """Return the text of token ids, special tokens written out."""
        text: str = self.tokenizer.decode(
            np.asarray(ids).tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _prefixed(self, text: str, ids: Sequence[int], rendered: bool) -> _Ids:
        begin = getattr(self.tokenizer, "bos_token", None)
        # Text that was rendered elsewhere may begin with the token already.
        if rendered or (begin and text.startswith(begin)):
            return np.array(ids, np.int32)
        return np.concatenate([self.prefix, np.array(ids, np.int32)])

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return [list(ids) for ids in self.tokenizer(list(texts), **options)["input_ids"]]


def _digest(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
