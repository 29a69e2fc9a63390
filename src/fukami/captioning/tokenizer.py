"""Tokenization of captions and the vocabulary."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from fukami.errors import Error, get_install_command, require_extra

TokenizerName = Literal["words", "characters", "japanese"]
END, BEGIN, UNKNOWN = 0, 1, 2
SPECIAL_TOKENS = ("<end>", "<begin>", "<unknown>")
ASCII_WORD_PATTERN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
LATIN_PATTERN = re.compile(r"[\x00-\u024f]+")
CHARACTER_PATTERN = re.compile(rf"{LATIN_PATTERN.pattern}|.")
UNSPACED_PATTERN = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]{8,}")  # kana and kanji, more than a word has


def tokenize(sentence: str, tokenizer: TokenizerName) -> list[str]:
    """Split a sentence into tokens, in lower case and without punctuation.

    Unlike coco-caption's tokenizer, it keeps clitics such as 's and n't with their words.

    Args:
        sentence: any text, normalized to Unicode NFKC (full-width letters and digits become ASCII).
        tokenizer: ``words`` splits at spaces; ``characters`` splits scripts without spaces into characters, and Latin
            text into words; ``japanese`` uses Janome's words.

    Raises:
        MissingPackageError: Janome is not installed.
        Error: the tokenizer is ``words`` and the script has no spaces.
    """
    text = unicodedata.normalize("NFKC", sentence).lower()
    pattern = ASCII_WORD_PATTERN if text.isascii() else _build_word_pattern()
    if tokenizer == "japanese":
        return [word for token in _load_japanese_tokenizer()(text) for word in pattern.findall(token)]
    words = pattern.findall(text)
    if tokenizer == "characters":
        return [token for word in words for token in CHARACTER_PATTERN.findall(word)]
    if UNSPACED_PATTERN.search(text):
        raise Error(
            f"there are no spaces between the words of {sentence!r}; use --tokenizer japanese (which needs "
            f"{get_install_command('japanese')}) or --tokenizer characters"
        )
    return words


def detokenize(words: Iterable[str], tokenizer: TokenizerName) -> str:
    """Join words into a sentence; in scripts without spaces, only Latin words are separated by spaces."""
    if tokenizer == "words":
        return " ".join(words)
    text = ""
    for word in words:
        text += " " * bool(text and LATIN_PATTERN.fullmatch(text[-1]) and LATIN_PATTERN.fullmatch(word[0])) + word
    return text


@functools.cache
def _build_word_pattern() -> re.Pattern[str]:
    """Build the pattern of a word: letters and digits with combining marks, such as the vowels of Devanagari."""
    marks = "".join(
        chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code)) in ("Mn", "Mc")
    )  # fmt: skip
    letter = rf"[^\W_][{re.escape(marks)}]*"
    return re.compile(rf"(?:{letter})+(?:['’-](?:{letter})+)*")


@functools.cache
def _load_japanese_tokenizer() -> Callable[[str], Iterable[str]]:
    with require_extra("japanese", "--tokenizer japanese", "use --tokenizer characters"):
        from janome.tokenizer import Tokenizer
    tokenizer = Tokenizer()
    return lambda text: map(str, tokenizer.tokenize(text, wakati=True))


def build_vocabulary(sentences: Iterable[Sequence[str]], min_word_count: int) -> tuple[str, ...]:
    """Build the vocabulary: the special tokens, then the words with ``min_word_count`` occurrences, most common first.

    Raises:
        Error: there is no such word.
    """
    counts = Counter(word for sentence in sentences for word in sentence)
    vocabulary = sorted(
        (word for word, count in counts.items() if count >= min_word_count), key=lambda word: (-counts[word], word)
    )
    if not vocabulary:
        raise Error(
            f"no word occurs {min_word_count} times in the captions; use more captions, or a lower --min-word-count"
        )
    return *SPECIAL_TOKENS, *vocabulary


def encode_tokens(tokens: Sequence[str], token_to_index: dict[str, int]) -> list[int]:
    """Encode tokens as indices, between the begin and the end token."""
    return [BEGIN, *(token_to_index.get(token, UNKNOWN) for token in tokens), END]
