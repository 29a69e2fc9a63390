"""Sentences as numbers and back: how they are cut into words, and which words a network knows."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from fukami.errors import Error

TokenizerName = Literal["words", "characters", "japanese"]
END, BEGIN, UNKNOWN = 0, 1, 2
SPECIAL_TOKENS = ("<end>", "<begin>", "<unknown>")
WORD_PATTERN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
LATIN_PATTERN = re.compile(r"[\x00-\u024f]+")
CHARACTER_PATTERN = re.compile(rf"{LATIN_PATTERN.pattern}|.")
UNSPACED_PATTERN = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]{8,}")  # kana and kanji, more of them than a word has


def tokenize(sentence: str, tokenizer: TokenizerName) -> list[str]:
    """The words of a sentence, in lower case and without punctuation, as coco-caption's protocol has them.

    Args:
        sentence: any text; full-width letters and digits become plain ones (Unicode NFKC).
        tokenizer: ``words`` are parted by spaces; ``characters`` are single ones where a script has no spaces, and
            words of Latin letters; ``japanese`` are words that Janome finds.

    Raises:
        Error: the sentence is in a script without spaces, and words were asked for; or Janome is not installed.
    """
    plain = unicodedata.normalize("NFKC", sentence).lower()
    if tokenizer == "japanese":
        return [word for part in _load_japanese_tokenizer()(plain) for word in WORD_PATTERN.findall(part)]
    found = WORD_PATTERN.findall(plain)
    if tokenizer == "characters":
        return [each for word in found for each in CHARACTER_PATTERN.findall(word)]
    if UNSPACED_PATTERN.search(plain):
        raise Error(
            f"there are no spaces between the words of {sentence!r}; give --tokenizer japanese (which needs "
            "pip install 'fukami[japanese]') or --tokenizer characters"
        )
    return found


def detokenize(words: Iterable[str], tokenizer: TokenizerName) -> str:
    """A sentence of these words: spaces between them, or in scripts without spaces between Latin ones alone."""
    if tokenizer == "words":
        return " ".join(words)
    text = ""
    for word in words:
        text += " " * bool(text and LATIN_PATTERN.fullmatch(text[-1]) and LATIN_PATTERN.fullmatch(word[0])) + word
    return text


@functools.cache
def _load_japanese_tokenizer() -> Callable[[str], Iterable[str]]:
    try:
        from janome.tokenizer import Tokenizer
    except ImportError:
        raise Error("--tokenizer japanese needs Janome: pip install 'fukami[japanese]'") from None
    tokenizer = Tokenizer()
    return lambda text: map(str, tokenizer.tokenize(text, wakati=True))


def build_vocabulary(sentences: Iterable[Sequence[str]], min_word_count: int) -> tuple[str, ...]:
    """Words that occur at least ``min_word_count`` times, the commonest first, after those for end, begin and unknown.

    Raises:
        Error: there is no such word.
    """
    counts = Counter(word for sentence in sentences for word in sentence)
    kept = sorted(
        (word for word, count in counts.items() if count >= min_word_count), key=lambda word: (-counts[word], word)
    )
    if not kept:
        raise Error(
            f"no word occurs {min_word_count} times in the sentences; give more of them, or a lower --min-word-count"
        )
    return *SPECIAL_TOKENS, *kept


def encode_words(words: Sequence[str], word_indices: dict[str, int]) -> list[int]:
    """The number of each word, between those for begin and end."""
    return [BEGIN, *(word_indices.get(word, UNKNOWN) for word in words), END]
