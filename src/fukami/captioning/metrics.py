"""How sentences are judged: BLEU, ROUGE-L and CIDEr-D as coco-caption computes them, and how much they repeat.

Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", 2015. Sentences are lists of words.
METEOR is left out: it needs Java, or another definition of synonyms than the one that published numbers have.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

Words = Sequence[str]
MAX_N = 4  # words of an n-gram
BETA = 1.2  # how much more recall counts than precision in ROUGE-L
SIGMA = 6.0  # of CIDEr-D's penalty for another length
TINY, SMALL = 1e-15, 1e-9


def evaluate_captions(
    captions: Sequence[Words], references: Sequence[Sequence[Words]], training_captions: set[str]
) -> dict[str, float]:
    """Every metric of sentences for images.

    ``bleu1`` to ``bleu4``, ``rouge_l`` and ``cider`` (CIDEr-D; 1 is usual, 10 the most); ``exact``, the share that is
    word for word one of the references; ``distinct``, the share of different sentences; ``copied``, the share that was
    learned from word for word (Vinyals et al. 2015, section 4.3.4); and ``count``.

    Args:
        captions: a sentence for each image.
        references: what people said of each.
        training_captions: the sentences of the training, their words joined by spaces; without them there is no
            ``copied``.
    """
    scores = compute_bleu(captions, references)
    texts = [" ".join(words) for words in captions]
    exact = [text in {" ".join(words) for words in own} for text, own in zip(texts, references, strict=True)]
    copied = {"copied": fmean(text in training_captions for text in texts)} if training_captions else {}
    return {
        "bleu4": scores[3],
        "bleu1": scores[0],
        "bleu2": scores[1],
        "bleu3": scores[2],
        "rouge_l": fmean(compute_rouge_l(words, own) for words, own in zip(captions, references, strict=True)),
        "cider": fmean(compute_cider(captions, references)),
        "exact": fmean(exact),
        "distinct": len(set(texts)) / len(texts),
        **copied,
        "count": len(texts),
    }


def count_ngrams(words: Words) -> list[Counter[tuple[str, ...]]]:
    """How often each n-gram occurs, for each n from 1 to 4."""
    return [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for n in range(1, MAX_N + 1)]


def compute_bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1 to BLEU-4 of all sentences together (Papineni et al. 2002); lengths are those of the closest reference."""
    right, all_, length, reference = [0] * MAX_N, [0] * MAX_N, 0, 0
    for words, own in zip(captions, references, strict=True):
        length += len(words)
        reference += min((abs(len(each) - len(words)), len(each)) for each in own)[1]
        counted = [count_ngrams(each) for each in own]
        for n, counts in enumerate(count_ngrams(words)):
            most = Counter[tuple[str, ...]]()
            for each in counted:
                most |= each[n]
            right[n] += (counts & most).total()
            all_[n] += max(0, len(words) - n)
    ratio = (length + TINY) / (reference + SMALL)
    brevity = 1.0 if ratio >= 1 else math.exp(1 - 1 / ratio)
    product, scores = 1.0, []
    for n in range(MAX_N):
        product *= (right[n] + TINY) / (all_[n] + SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores


def compute_rouge_l(caption: Words, references: Sequence[Words]) -> float:
    """ROUGE-L of a sentence (Lin 2004): of the longest common subsequence, with the best precision and recall."""
    common = [compute_lcs_length(caption, own) for own in references]
    precision = max(count / max(len(caption), 1) for count in common)
    recall = max(count / max(len(own), 1) for count, own in zip(common, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def compute_lcs_length(one: Words, other: Words) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = row
        row = [0]
        for at, own in enumerate(other):
            row.append(before[at] + 1 if word == own else max(row[at], before[at + 1]))
    return row[-1]


def compute_cider(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each sentence (Vedantam et al. 2015), with document frequencies of these references."""
    counted = [[count_ngrams(each) for each in own] for own in references]
    documents = [
        Counter(gram for own in counted for gram in {g for each in own for g in each[n]}) for n in range(MAX_N)
    ]
    whole = math.log(len(references))

    def compute_tfidf(counts: list[Counter[tuple[str, ...]]]) -> list[dict[tuple[str, ...], float]]:
        return [
            {gram: count * (whole - math.log(max(1, documents[n][gram]))) for gram, count in own.items()}
            for n, own in enumerate(counts)
        ]

    scores = []
    for words, own in zip(captions, counted, strict=True):
        counts = count_ngrams(words)
        mine = compute_tfidf(counts)
        total = 0.0
        for each in own:
            gap = counts[1].total() - each[1].total()
            total += math.exp(-(gap**2) / (2 * SIGMA**2)) * sum(map(compute_clipped_cosine, mine, compute_tfidf(each)))
        scores.append(10 * total / MAX_N / len(own))
    return scores


def compute_clipped_cosine(mine: dict[tuple[str, ...], float], other: dict[tuple[str, ...], float]) -> float:
    """The cosine of two weighted counts, the first one clipped to the second."""
    norms = math.sqrt(sum(value**2 for value in mine.values())) * math.sqrt(sum(value**2 for value in other.values()))
    if norms == 0:
        return 0.0
    return sum(min(value, other[gram]) * other[gram] for gram, value in mine.items() if gram in other) / norms
