"""Texts to hashed n-grams, many texts at once: every step is a NumPy operation over all characters of a block."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pope_fast.log.scatter import mixed_keys

__all__ = ["DOCUMENT_BITS", "HASH_BITS", "NgramKind", "Ngrams", "count_ngrams", "normalize_texts"]

NgramKind = Literal["char", "word"]

#: An n-gram is known by this many bits of its hash: of a thousand in a prompt, two collide in one of two million.
HASH_BITS = 40
#: The rest of a key holds the text's number, so one sort groups by n-gram and, within it, by text.
DOCUMENT_BITS = 64 - HASH_BITS

_CHARACTERS = 4  # n of the character n-grams: see docs/howto-cluster.md for how it compares
_U64 = np.uint64
# Odd, so that it has an inverse modulo 2**64: prefix sums then give the hash of any stretch.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_PLANES = 0x110000
_NUL, _SPACE = "\0", " "
#: Scripts that write words without spaces between them; there a pair of characters is about a word.
_UNSPACED = ((0x0E00, 0x0EFF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))


@dataclass(frozen=True, slots=True)
class Ngrams:
    """The n-grams of some texts, sorted by hash and then by text.

    Attributes
    ----------
    gram : ndarray of uint64, shape (m,)
        Hash of the n-gram, below ``2**HASH_BITS``.
    text : ndarray of int64, shape (m,)
        Index of the text that it occurs in; each pair occurs once.
    count : ndarray of int64, shape (m,)
        How often it does.
    """

    gram: NDArray[np.uint64]
    text: NDArray[np.int64]
    count: NDArray[np.int64]

    def take(self, which: NDArray[np.bool_]) -> Ngrams:
        """Return some of them."""
        return Ngrams(self.gram[which], self.text[which], self.count[which])


class _Letters:
    """Which code points are part of words: all but spaces, punctuation and control characters.

    Symbols are: a thumb up is an answer, and not the same one as a thumb down.
    """

    def __init__(self) -> None:
        self._known = np.zeros(_PLANES, dtype=np.bool_)
        self._inside = np.zeros(_PLANES, dtype=np.bool_)

    def __call__(self, codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
        inside = self._inside[codes]
        if not self._known[codes].all():
            fresh = np.unique(codes[~self._known[codes]])
            categories = [unicodedata.category(chr(code))[0] for code in fresh.tolist()]
            self._inside[fresh] = [category not in "ZPC" for category in categories]
            self._known[fresh] = True  # last: another thread may be reading
            inside = self._inside[codes]
        return inside


_LETTERS = _Letters()


def _fold(text: str) -> str:
    """Bring a text to one form: compatible characters alike (NFKC), no case, none of the mark between texts."""
    folded = text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return folded.replace(_NUL, _SPACE)


def _code_points(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Return the code points of folded texts, end to end, a zero after each."""
    joined = _NUL.join(texts) + _NUL
    return np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def normalize_texts(texts: Sequence[str]) -> list[str]:
    """Return texts without differences in case, white space, punctuation and compatible characters (NFKC).

    A text of punctuation alone keeps it: "?" is not "!".
    """
    if not texts:
        return []
    folded = [_fold(text) for text in texts]
    codes = _code_points(folded).copy()
    codes[~(_LETTERS(codes) | (codes == 0))] = ord(_SPACE)
    stripped = codes.tobytes().decode("utf-32-le", "surrogatepass").split(_NUL)[:-1]
    normal = [" ".join(text.split()) for text in stripped]
    return [text or " ".join(old.split()) for text, old in zip(normal, folded, strict=True)]


def count_ngrams(texts: Sequence[str], kind: NgramKind = "char") -> Ngrams:
    """Count the n-grams of texts.

    Parameters
    ----------
    texts : sequence of str
        At most ``2**DOCUMENT_BITS``.
    kind : {"char", "word"}
        "char": stretches of four characters within a word and its borders (the whole word if it is shorter), and
        pairs of characters in scripts without spaces.  "word": words.  A text without any letter, digit or symbol has
        one n-gram, itself.

    Returns
    -------
    Ngrams
        What is counted for a text depends on that text alone.

    Notes
    -----
    A stretch c_i .. c_j has the polynomial hash sum_k m(c_k) B^(k - i) modulo 2**64, m a mixing of the bits, mixed once
    more at the end.  With prefix sums of m(c_k) B^k any stretch costs two look-ups and a product (Karp & Rabin 1987).
    """
    if not texts:
        return Ngrams(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64))
    folded = [_fold(text) for text in texts]
    codes = _code_points(folded)
    # One border before the first character, so that every word has one on both sides.
    codes = np.concatenate([np.zeros(1, np.uint32), codes])
    letters = _LETTERS(codes)
    text = np.cumsum(codes[:-1] == 0) - 1
    text = np.append(text, len(texts) - 1).astype(np.uint64)
    hashes = _Stretches(codes, letters)
    starts = np.flatnonzero(letters[1:] & ~letters[:-1]) + 1
    ends = np.flatnonzero(letters[:-1] & ~letters[1:]) + 1
    if kind == "word":
        grams, where = [hashes(starts, ends)], [starts]
    else:
        grams, where = _characters(hashes, letters, starts, ends)
        pairs = _unspaced_pairs(codes)
        if pairs.size:
            grams.append(hashes(pairs, pairs + 2))
            where.append(pairs)
    keys = [
        (gram & _U64((1 << HASH_BITS) - 1 << DOCUMENT_BITS)) | text[place]
        for gram, place in zip(grams, where, strict=True)
    ]
    has_words = np.zeros(len(texts), dtype=np.bool_)
    has_words[text[starts].astype(np.int64)] = True
    if not has_words.all():
        keys.append(_whole_texts(folded, np.flatnonzero(~has_words)))
    return _counted(np.concatenate(keys))


class _Stretches:
    """Hashes of stretches of characters; all characters between words are alike."""

    def __init__(self, codes: NDArray[np.uint32], letters: NDArray[np.bool_]) -> None:
        values = mixed_keys(np.where(letters, codes, 0).astype(np.int64))
        powers = np.multiply.accumulate(np.full(len(codes), _BASE, dtype=np.uint64))
        self._inverse = np.multiply.accumulate(np.full(len(codes), _INVERSE, dtype=np.uint64))
        self._prefix = np.zeros(len(codes) + 1, dtype=np.uint64)
        np.cumsum(values * powers, out=self._prefix[1:])

    def __call__(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
        polynomial = (self._prefix[ends] - self._prefix[starts]) * self._inverse[starts]
        return mixed_keys(polynomial.view(np.int64))


def _characters(
    hashes: _Stretches, letters: NDArray[np.bool_], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[list[NDArray[np.uint64]], list[NDArray[np.int64]]]:
    """Return the character n-grams of words with their borders, and a place in the word of each."""
    n = _CHARACTERS
    # Between its ends a stretch holds letters only: as many as it has inner places.
    inner = np.cumsum(letters)
    last = len(letters) - n
    inside = np.flatnonzero(inner[n - 2 : n - 2 + last + 1] - inner[: last + 1] == n - 2)
    short = ends - starts < n - 2
    return (
        [hashes(inside, inside + n), hashes(starts[short] - 1, ends[short] + 1)],
        [inside + 1, starts[short]],
    )


def _unspaced_pairs(codes: NDArray[np.uint32]) -> NDArray[np.int64]:
    if int(codes.max()) < _UNSPACED[0][0]:
        return np.empty(0, dtype=np.int64)
    unspaced = np.zeros(len(codes), dtype=np.bool_)
    for low, high in _UNSPACED:
        unspaced |= (codes >= low) & (codes <= high)
    return np.flatnonzero(unspaced[:-1] & unspaced[1:])


def _whole_texts(folded: Sequence[str], which: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return keys for texts without words: one n-gram each, the text without its white space."""
    from hashlib import blake2b

    keys = []
    for index in which.tolist():
        content = "".join(folded[index].split()).encode("utf-8", "surrogatepass")
        digest = int.from_bytes(blake2b(content, digest_size=8, person=b"no words").digest(), "little")
        keys.append((digest >> DOCUMENT_BITS << DOCUMENT_BITS) | index)
    return np.array(keys, dtype=np.uint64)


def _counted(keys: NDArray[np.uint64]) -> Ngrams:
    keys.sort()
    first = np.empty(len(keys), dtype=np.bool_)
    first[0] = True
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    places = np.flatnonzero(first)
    distinct = keys[places]
    count = np.diff(places, append=len(keys))
    text = (distinct & _U64((1 << DOCUMENT_BITS) - 1)).astype(np.int64)
    return Ngrams(distinct >> _U64(DOCUMENT_BITS), text, count)
