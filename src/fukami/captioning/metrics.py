"""Caption metrics: BLEU, ROUGE-L and CIDEr-D as in coco-caption, and the repetition of captions.

Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", 2015. Captions are lists of words.
METEOR is not included: it needs Java, or synonyms other than those behind published numbers.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

Words = Sequence[str]
MAX_N = 4  # maximum n-gram length
BETA = 1.2  # weight of recall relative to precision in ROUGE-L
SIGMA = 6.0  # standard deviation of CIDEr-D's length penalty
TINY, SMALL = 1e-15, 1e-9


def evaluate_captions(
    captions: Sequence[Words], references: Sequence[Sequence[Words]], training_captions: set[str]
) -> dict[str, float]:
    """Compute all caption metrics.

    The keys are ``bleu1`` to ``bleu4``, ``rouge_l``, ``cider`` (CIDEr-D; about 1 is usual, 10 the maximum),
    ``exact_fraction`` (equal to a reference), ``distinct_fraction`` (distinct captions), ``copied_fraction`` (equal to
    a training caption; Vinyals et al. 2015, section 4.3.4) and ``count``.

    Args:
        captions: one caption per image.
        references: the reference captions of each image.
        training_captions: the training captions, their words joined by spaces; if empty, there is no
            ``copied_fraction``.
    """
    bleu = compute_bleu(captions, references)
    texts = [" ".join(words) for words in captions]
    exact = [
        text in {" ".join(words) for words in image_references}
        for text, image_references in zip(texts, references, strict=True)
    ]
    copied = {"copied_fraction": fmean(text in training_captions for text in texts)} if training_captions else {}
    return {
        "bleu4": bleu[3],
        "bleu1": bleu[0],
        "bleu2": bleu[1],
        "bleu3": bleu[2],
        "rouge_l": fmean(
            compute_rouge_l(words, image_references)
            for words, image_references in zip(captions, references, strict=True)
        ),
        "cider": fmean(compute_cider(captions, references)),
        "exact_fraction": fmean(exact),
        "distinct_fraction": len(set(texts)) / len(texts),
        **copied,
        "count": len(texts),
    }


def count_ngrams(words: Words) -> list[Counter[tuple[str, ...]]]:
    """Count the n-grams of a caption, for each n from 1 to 4."""
    return [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for n in range(1, MAX_N + 1)]


def compute_bleu(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Compute corpus BLEU-1 to BLEU-4 with the closest reference lengths (Papineni et al. 2002)."""
    matches, totals, length, reference_length = [0] * MAX_N, [0] * MAX_N, 0, 0
    for words, image_references in zip(captions, references, strict=True):
        length += len(words)
        reference_length += min((abs(len(reference) - len(words)), len(reference)) for reference in image_references)[1]
        reference_counts = [count_ngrams(reference) for reference in image_references]
        for n, counts in enumerate(count_ngrams(words)):
            max_counts = Counter[tuple[str, ...]]()
            for ngram_counts in reference_counts:
                max_counts |= ngram_counts[n]
            matches[n] += (counts & max_counts).total()
            totals[n] += max(0, len(words) - n)
    ratio = (length + TINY) / (reference_length + SMALL)
    brevity = 1.0 if ratio >= 1 else math.exp(1 - 1 / ratio)
    product, scores = 1.0, []
    for n in range(MAX_N):
        product *= (matches[n] + TINY) / (totals[n] + SMALL)
        scores.append(brevity * product ** (1 / (n + 1)))
    return scores


def compute_rouge_l(caption: Words, references: Sequence[Words]) -> float:
    """Compute ROUGE-L of a caption with the best precision and the best recall of its references (Lin 2004)."""
    lcs_lengths = [compute_lcs_length(caption, reference) for reference in references]
    precision = max(length / max(len(caption), 1) for length in lcs_lengths)
    recall = max(length / max(len(reference), 1) for length, reference in zip(lcs_lengths, references, strict=True))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def compute_lcs_length(one: Words, other: Words) -> int:
    """Compute the length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        previous = row
        row = [0]
        for index, other_word in enumerate(other):
            row.append(previous[index] + 1 if word == other_word else max(row[index], previous[index + 1]))
    return row[-1]


def compute_cider(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Compute CIDEr-D of each caption (Vedantam et al. 2015), with document frequencies from these references."""
    reference_counts = [[count_ngrams(reference) for reference in image_references] for image_references in references]
    document_frequencies = [
        Counter(
            ngram
            for image_counts in reference_counts
            for ngram in {ngram for ngram_counts in image_counts for ngram in ngram_counts[n]}
        )
        for n in range(MAX_N)
    ]
    log_documents = math.log(len(references))

    def compute_tfidf(counts: list[Counter[tuple[str, ...]]]) -> list[dict[tuple[str, ...], float]]:
        return [
            {
                ngram: count * (log_documents - math.log(max(1, document_frequencies[n][ngram])))
                for ngram, count in ngrams.items()
            }
            for n, ngrams in enumerate(counts)
        ]

    scores = []
    for words, image_counts in zip(captions, reference_counts, strict=True):
        counts = count_ngrams(words)
        tfidf = compute_tfidf(counts)
        total = 0.0
        for ngram_counts in image_counts:
            gap = counts[1].total() - ngram_counts[1].total()
            similarity = sum(map(compute_clipped_cosine, tfidf, compute_tfidf(ngram_counts)))
            total += math.exp(-(gap**2) / (2 * SIGMA**2)) * similarity
        scores.append(10 * total / MAX_N / len(image_counts))
    return scores


def compute_clipped_cosine(tfidf: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]) -> float:
    """Compute the cosine similarity of two TF-IDF vectors, the first clipped to the reference (CIDEr-D)."""
    norms = math.sqrt(sum(value**2 for value in tfidf.values())) * math.sqrt(
        sum(value**2 for value in reference.values())
    )
    if norms == 0:
        return 0.0
    return (
        sum(min(value, reference[ngram]) * reference[ngram] for ngram, value in tfidf.items() if ngram in reference)
        / norms
    )
