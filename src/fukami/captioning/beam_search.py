"""Sentences from a network that tells one word after another: the likeliest ones, or drawn by chance."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# the state after the words ``(R,)`` of so many rows, and the log-probabilities ``(R, words)`` of the next ones
DecoderStep = Callable[[Any, Tensor], tuple[Any, Tensor]]


def search(
    step: DecoderStep, state: Any, *, beam_size: int, max_words: int, begin: int, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest sentences that a beam search finds for each of N images, all of them at once.

    At each word the ``beam_size`` likeliest beginnings of sentences go on; one that has ended stays as it is for as
    long as it is among them.

    Args:
        step: goes on by a word.
        state: a tree of tensors ``(N, ...)``, before the first word.
        beam_size: beginnings that are kept; 1 is greedy.
        max_words: words of a sentence at most.
        begin, end: the words that stand before and after a sentence.

    Returns:
        The words ``(N, beams, longest)``, ``end`` after the last one; the log-probability ``(N, beams)`` of each
        sentence, its end included, minus infinity where there are fewer; and the words that it is the sum of
        ``(N, beams)``. The likeliest first.
    """
    count = len(pytree.tree_leaves(state)[0])
    device = pytree.tree_leaves(state)[0].device
    rows = torch.arange(count, device=device).unsqueeze(1)
    state = pytree.tree_map(lambda value: value.repeat_interleave(beam_size, 0), state)
    said = torch.full((count, beam_size, max_words), end, device=device)
    last = torch.full((count, beam_size), begin, device=device)
    lengths = torch.zeros_like(last)
    ended = torch.zeros_like(last, dtype=torch.bool)
    total = torch.full((count, beam_size), -torch.inf, device=device)
    total[:, 0] = 0.0  # there is one beginning so far
    for at in range(max_words):
        state, scores = step(state, last.flatten())
        words = scores.shape[1]
        stay = scores.new_full((words,), -torch.inf)
        stay[end] = 0.0
        scores = torch.where(ended.unsqueeze(2), stay, scores.view(count, beam_size, words))
        total, best = (total.unsqueeze(2) + scores).flatten(1).topk(beam_size)
        parent, last = best // words, best % words
        said, lengths, ended = said[rows, parent], lengths[rows, parent], ended[rows, parent]
        lengths = lengths + ~ended
        said[:, :, at] = last
        ended = ended | (last == end)
        if bool((ended | total.isinf()).all()):
            break
        flat = (rows * beam_size + parent).flatten()
        state = pytree.tree_map(lambda value, flat=flat: value[flat], state)
    return said, total, lengths


def sample(
    step: DecoderStep,
    state: Any,
    *,
    num_samples: int,
    max_words: int,
    begin: int,
    end: int,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sentences drawn word by word by their probabilities, ``num_samples`` for each image; returns as :func:`search`.

    Args:
        temperature: below 1 the likely words become likelier; what is returned knows nothing of it.
        generator: of the draws, on the CPU, so that they are the same on every device.
        step, state, max_words, begin, end: as for :func:`search`.
    """
    state = pytree.tree_map(lambda value: value.repeat_interleave(num_samples, 0), state)
    rows, device = len(pytree.tree_leaves(state)[0]), pytree.tree_leaves(state)[0].device
    last = torch.full((rows,), begin, device=device)
    said = torch.full((rows, max_words), end, device=device)
    total, lengths = torch.zeros(rows, device=device), torch.zeros(rows, dtype=torch.long, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for at in range(max_words):
        state, scores = step(state, last)
        chances = (scores / temperature).softmax(1).cpu()
        last = torch.multinomial(chances, 1, generator=generator)[:, 0].to(device).masked_fill(ended, end)
        total = total + scores.gather(1, last.unsqueeze(1))[:, 0].masked_fill(ended, 0.0)
        lengths = lengths + ~ended
        said[:, at] = last
        ended = ended | (last == end)
        if bool(ended.all()):
            break
    order = total.view(-1, num_samples).argsort(dim=1, descending=True, stable=True)
    said = said.view(-1, num_samples, max_words).gather(1, order.unsqueeze(2).expand(-1, -1, max_words))
    return said, total.view(-1, num_samples).gather(1, order), lengths.view(-1, num_samples).gather(1, order)
