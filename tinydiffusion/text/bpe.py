"""Byte-pair encoding learned from the training captions.

Sennrich et al. (2016), algorithm 1, https://arxiv.org/abs/1508.07909, on bytes, with CLIP's
splitting into words. The 512 base units (every byte, inside a word and at its end) spell any
text, so there is no unknown token.
"""

import heapq
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from tinydiffusion.protocols import Tokens
from tinydiffusion.text.captions import MAX_CHARACTERS, check_captions

END_OF_WORD = "</w>"
BYTES = [chr(byte) for byte in range(256)]
UNITS = BYTES + [byte + END_OF_WORD for byte in BYTES]
NUM_SPECIAL = 3  # padding, start-of-text, end-of-text
MAX_CACHED_CAPTIONS = 200_000

# Letters, one digit, or signs; the bound prevents words of a megabyte in text without spaces.
# A word never mixes letters and signs, so no word can spell the end-of-word mark.
WORD = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]{1,64}|\d|(?:[^\w\s]|_){1,64}")

Pair = tuple[str, str]


def split_words(text: str) -> list[str]:
    """Split the lower-cased, NFC-normalised text into words and runs of signs."""
    return WORD.findall(unicodedata.normalize("NFC", text[:MAX_CHARACTERS].lower()))


def to_units(word: str) -> list[str]:
    """Return the UTF-8 bytes of a word as units, the last one with the end-of-word mark.

    Bytes are written as the Latin-1 characters of the same number. Lone surrogates are encoded as
    if UTF-8 allowed them.
    """
    units = list(word.encode("utf-8", "surrogatepass").decode("latin-1"))
    units[-1] += END_OF_WORD
    return units


def merge_pair(units: Sequence[str], pair: Pair) -> list[str]:
    """Join every occurrence of a pair of units, from left to right."""
    merged: list[str] = []
    position = 0
    while position < len(units):
        size = 2 if tuple(units[position : position + 2]) == pair else 1
        merged.append("".join(units[position : position + size]))
        position += size
    return merged


def learn_merges(captions: Iterable[str], vocab_size: int) -> list[Pair]:
    """Learn the pairs to join, the most frequent first, until no pair occurs twice.

    Ties are broken by the text of the pair, so that the same captions in any order give the same
    merges.

    Args:
        captions: Training captions.
        vocab_size: Largest number of tokens, including the 512 units and 3 special tokens.

    Raises:
        ValueError: vocab_size is smaller than the number of units and special tokens.
    """
    smallest = len(UNITS) + NUM_SPECIAL
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest}, got {vocab_size}")
    counts = Counter(word for caption in captions for word in split_words(caption))
    pairs = _PairCounts(counts)
    merges: list[Pair] = []
    while len(merges) < vocab_size - smallest and (pair := pairs.most_frequent()):
        merges.append(pair)
        pairs.merge(pair)
    return merges


class _PairCounts:
    """Counts of the pairs of neighbouring units, updated with every merge."""

    def __init__(self, word_counts: Counter[str]) -> None:
        self.words = [to_units(word) for word in word_counts]
        self.frequencies = list(word_counts.values())
        self.counts: Counter[Pair] = Counter()
        self.where: defaultdict[Pair, set[int]] = defaultdict(set)
        for index, units in enumerate(self.words):
            self._add(index, units, self.frequencies[index])
        self.heap = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.heap)

    def _add(self, index: int, units: list[str], frequency: int) -> None:
        for pair in pairwise(units):
            self.counts[pair] += frequency
            self.where[pair].add(index)

    def most_frequent(self) -> Pair | None:
        """Return the most frequent pair; None where no pair occurs twice."""
        while self.heap:
            negative_count, pair = heapq.heappop(self.heap)
            if -negative_count == self.counts[pair]:  # else the entry is out of date
                return pair if -negative_count >= 2 else None
        return None

    def merge(self, pair: Pair) -> None:
        """Join a pair in every word that contains it."""
        changed: set[Pair] = set()
        for index in self.where.pop(pair):
            before = self.words[index]
            after = self.words[index] = merge_pair(before, pair)
            self._add(index, before, -self.frequencies[index])
            self._add(index, after, self.frequencies[index])
            changed.update(pairwise(before), pairwise(after))
        for touched in changed:
            heapq.heappush(self.heap, (-self.counts[touched], touched))


class BytePairTokenizer:
    """A tokenizer to ids: start-of-text, tokens, end-of-text, then padding up to `max_length`."""

    def __init__(self, merges: Sequence[Sequence[str]], max_length: int) -> None:
        self.max_length = max_length
        self.ranks = {(first, second): rank for rank, (first, second) in enumerate(merges)}
        # Two merges may give the same text; they share an id.
        self.tokens = list(dict.fromkeys([*UNITS, *map("".join, merges)]))
        self.ids_by_token = {token: index for index, token in enumerate(self.tokens)}
        self.pad_id = len(self.tokens)
        self.start_id = self.pad_id + 1
        self.end_id = self.pad_id + 2  # the largest id, as in CLIP
        self.vocab_size = self.pad_id + NUM_SPECIAL
        self._words: dict[str, list[int]] = {}
        self._captions: dict[str, tuple[list[int], bool]] = {}

    def encode(self, captions: Sequence[str]) -> Tokens:
        """Return ids and mask, shape (B, max_length); cut captions keep their end-of-text."""
        encoded = [self.ids(caption) for caption in check_captions(captions)]
        rows = [ids + [self.pad_id] * (self.max_length - len(ids)) for ids, _ in encoded]
        ids = torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.max_length)
        return Tokens(ids, ids != self.pad_id, sum(cut for _, cut in encoded))

    def ids(self, caption: str) -> tuple[list[int], bool]:
        """Return the ids of one caption without padding, and whether it was cut to fit."""
        if caption in self._captions:
            return self._captions[caption]
        ids = [self.start_id]
        for word in split_words(caption):
            ids += self._word_ids(word)
            if len(ids) >= self.max_length:
                break
        cut = len(ids) >= self.max_length or len(caption) > MAX_CHARACTERS
        encoded = [*ids[: self.max_length - 1], self.end_id], cut
        if len(caption) <= MAX_CHARACTERS and len(self._captions) < MAX_CACHED_CAPTIONS:
            self._captions[caption] = encoded
        return encoded

    def decode(self, ids: Int[Tensor, "L"]) -> str:
        """Return the text of ids, words and signs separated by one space; no special tokens."""
        text = "".join(self.tokens[index] for index in ids.tolist() if index < self.pad_id)
        spaced = text.replace(END_OF_WORD, " ").removesuffix(" ")
        return spaced.encode("latin-1").decode("utf-8", "replace")

    def _word_ids(self, word: str) -> list[int]:
        if word not in self._words:
            if len(self._words) >= MAX_CACHED_CAPTIONS:
                self._words.clear()
            self._words[word] = [self.ids_by_token[token] for token in self._merge(word)]
        return self._words[word]

    def _merge(self, word: str) -> list[str]:
        units = to_units(word)
        while known := [pair for pair in pairwise(units) if pair in self.ranks]:
            units = merge_pair(units, min(known, key=self.ranks.__getitem__))
        return units
