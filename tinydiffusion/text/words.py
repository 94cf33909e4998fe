"""The words of the training captions, which a model folder stores up to a size."""

from collections.abc import Iterable

from tinydiffusion.text.bpe import split_words

MAX_BYTES = 2**18
"""Largest size of all words together: some 30 thousand words."""


def words_of(captions: Iterable[str]) -> list[str]:
    """Return the distinct words and digits of captions in their order, without signs."""
    found = dict.fromkeys(word for caption in captions for word in split_words(caption))
    return [word for word in found if word[0].isalnum() and _is_text(word)]


def fitting(words: Iterable[str]) -> set[str] | None:
    """Return the words as a set; None where they take more than `MAX_BYTES`."""
    known = set(words)
    return known if sum(len(word.encode()) + 1 for word in known) <= MAX_BYTES else None


def _is_text(word: str) -> bool:
    """Return whether a word can be written to a file: lone surrogates cannot be encoded."""
    return not any("\ud800" <= letter <= "\udfff" for letter in word)
