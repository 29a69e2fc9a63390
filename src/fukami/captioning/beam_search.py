"""Decoding of an autoregressive network: beam search and sampling."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

State = TypeVar("State")  # a tree of tensors
# (state, last tokens (R,)) -> (next state, log-probabilities (R, vocabulary) of the next tokens), for R rows
DecoderStep = Callable[[State, Tensor], tuple[State, Tensor]]


def search(
    step: DecoderStep[State], state: State, *, beam_size: int, max_tokens: int, begin: int, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Search the most likely captions of N images by beam search, all images at once.

    Each step keeps the ``beam_size`` most likely partial captions of an image; complete ones compete unchanged.

    Args:
        step: advances the decoder by one token.
        state: initial state, a tree of tensors ``(N, ...)``.
        beam_size: number of partial captions kept; 1 is greedy decoding.
        max_tokens: maximum number of tokens of a caption.
        begin, end: indices of the begin and end tokens.

    Returns:
        The tokens ``(N, beams, max_tokens)``, padded with ``end``; the log-probability ``(N, beams)`` of each caption,
        including its end, minus infinity if there are fewer; and its number of tokens ``(N, beams)``, the end included.
        The captions are sorted by log-probability, highest first.
    """
    count = len(pytree.tree_leaves(state)[0])
    device = pytree.tree_leaves(state)[0].device
    rows = torch.arange(count, device=device).unsqueeze(1)
    state = pytree.tree_map(lambda value: value.repeat_interleave(beam_size, 0), state)
    sequences = torch.full((count, beam_size, max_tokens), end, device=device)
    last = torch.full((count, beam_size), begin, device=device)
    lengths = torch.zeros_like(last)
    ended = torch.zeros_like(last, dtype=torch.bool)
    log_probs = torch.full((count, beam_size), -torch.inf, device=device)
    log_probs[:, 0] = 0.0  # initially only one beam is valid
    for position in range(max_tokens):
        state, scores = step(state, last.flatten())
        vocabulary_size = scores.shape[1]
        end_only = scores.new_full((vocabulary_size,), -torch.inf)
        end_only[end] = 0.0
        scores = torch.where(ended.unsqueeze(2), end_only, scores.view(count, beam_size, vocabulary_size))
        log_probs, best = (log_probs.unsqueeze(2) + scores).flatten(1).topk(beam_size)
        parent, last = best // vocabulary_size, best % vocabulary_size
        sequences, lengths, ended = sequences[rows, parent], lengths[rows, parent], ended[rows, parent]
        lengths = lengths + ~ended
        sequences[:, :, position] = last
        ended = ended | (last == end)
        if bool((ended | log_probs.isinf()).all()):
            break
        flat = (rows * beam_size + parent).flatten()
        state = pytree.tree_map(lambda value, flat=flat: value[flat], state)
    return sequences, log_probs, lengths


def sample(
    step: DecoderStep[State],
    state: State,
    *,
    num_samples: int,
    max_tokens: int,
    begin: int,
    end: int,
    temperature: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample ``num_samples`` captions per image, token by token; return the same as :func:`search`.

    Args:
        temperature: softmax temperature; below 1, likely tokens become more likely. The returned log-probabilities
            ignore it.
        generator: random generator on the CPU, so that all devices draw the same.
        step, state, max_tokens, begin, end: as for :func:`search`.
    """
    state = pytree.tree_map(lambda value: value.repeat_interleave(num_samples, 0), state)
    rows, device = len(pytree.tree_leaves(state)[0]), pytree.tree_leaves(state)[0].device
    last = torch.full((rows,), begin, device=device)
    sequences = torch.full((rows, max_tokens), end, device=device)
    log_probs, lengths = torch.zeros(rows, device=device), torch.zeros(rows, dtype=torch.long, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for position in range(max_tokens):
        state, scores = step(state, last)
        probabilities = (scores / temperature).softmax(1).cpu()
        last = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(device).masked_fill(ended, end)
        log_probs = log_probs + scores.gather(1, last.unsqueeze(1))[:, 0].masked_fill(ended, 0.0)
        lengths = lengths + ~ended
        sequences[:, position] = last
        ended = ended | (last == end)
        if bool(ended.all()):
            break
    order = log_probs.view(-1, num_samples).argsort(dim=1, descending=True, stable=True)
    sequences = sequences.view(-1, num_samples, max_tokens).gather(1, order.unsqueeze(2).expand(-1, -1, max_tokens))
    return sequences, log_probs.view(-1, num_samples).gather(1, order), lengths.view(-1, num_samples).gather(1, order)
