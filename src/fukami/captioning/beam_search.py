"""Decoding of an autoregressive network: beam search and sampling."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# (state, last words (R,)) -> (next state, log-probabilities (R, words) of the next words), for R rows
DecoderStep = Callable[[Any, Tensor], tuple[Any, Tensor]]


def search(
    step: DecoderStep, state: Any, *, beam_size: int, max_words: int, begin: int, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Search the most likely sentences of N images by beam search, all images at once.

    Each step keeps the ``beam_size`` most likely partial sentences of an image; complete ones compete unchanged.

    Args:
        step: advances the decoder by one word.
        state: initial state, a tree of tensors ``(N, ...)``.
        beam_size: number of partial sentences kept; 1 is greedy decoding.
        max_words: maximum number of words of a sentence.
        begin, end: indices of the begin and end tokens.

    Returns:
        The words ``(N, beams, longest)``, padded with ``end``; the log-probability ``(N, beams)`` of each sentence,
        including its end, minus infinity if there are fewer; and the number of words ``(N, beams)`` that it sums over.
        The most likely first.
    """
    count = len(pytree.tree_leaves(state)[0])
    device = pytree.tree_leaves(state)[0].device
    rows = torch.arange(count, device=device).unsqueeze(1)
    state = pytree.tree_map(lambda value: value.repeat_interleave(beam_size, 0), state)
    sequences = torch.full((count, beam_size, max_words), end, device=device)
    last = torch.full((count, beam_size), begin, device=device)
    lengths = torch.zeros_like(last)
    ended = torch.zeros_like(last, dtype=torch.bool)
    total = torch.full((count, beam_size), -torch.inf, device=device)
    total[:, 0] = 0.0  # initially only one beam is valid
    for position in range(max_words):
        state, scores = step(state, last.flatten())
        words = scores.shape[1]
        end_only = scores.new_full((words,), -torch.inf)
        end_only[end] = 0.0
        scores = torch.where(ended.unsqueeze(2), end_only, scores.view(count, beam_size, words))
        total, best = (total.unsqueeze(2) + scores).flatten(1).topk(beam_size)
        parent, last = best // words, best % words
        sequences, lengths, ended = sequences[rows, parent], lengths[rows, parent], ended[rows, parent]
        lengths = lengths + ~ended
        sequences[:, :, position] = last
        ended = ended | (last == end)
        if bool((ended | total.isinf()).all()):
            break
        flat = (rows * beam_size + parent).flatten()
        state = pytree.tree_map(lambda value, flat=flat: value[flat], state)
    return sequences, total, lengths


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
    """Sample ``num_samples`` sentences per image, word by word; returns as :func:`search`.

    Args:
        temperature: softmax temperature; below 1, likely words become more likely. The returned log-probabilities
            ignore it.
        generator: random generator on the CPU, so that all devices draw the same.
        step, state, max_words, begin, end: as for :func:`search`.
    """
    state = pytree.tree_map(lambda value: value.repeat_interleave(num_samples, 0), state)
    rows, device = len(pytree.tree_leaves(state)[0]), pytree.tree_leaves(state)[0].device
    last = torch.full((rows,), begin, device=device)
    sequences = torch.full((rows, max_words), end, device=device)
    total, lengths = torch.zeros(rows, device=device), torch.zeros(rows, dtype=torch.long, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for position in range(max_words):
        state, scores = step(state, last)
        probabilities = (scores / temperature).softmax(1).cpu()
        last = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(device).masked_fill(ended, end)
        total = total + scores.gather(1, last.unsqueeze(1))[:, 0].masked_fill(ended, 0.0)
        lengths = lengths + ~ended
        sequences[:, position] = last
        ended = ended | (last == end)
        if bool(ended.all()):
            break
    order = total.view(-1, num_samples).argsort(dim=1, descending=True, stable=True)
    sequences = sequences.view(-1, num_samples, max_words).gather(1, order.unsqueeze(2).expand(-1, -1, max_words))
    return sequences, total.view(-1, num_samples).gather(1, order), lengths.view(-1, num_samples).gather(1, order)
