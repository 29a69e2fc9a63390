"""Ensembles of classifiers (Hansen and Salamon 1990)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIE_BREAK_WEIGHT = 1e-3  # weight of the averaged probabilities relative to the votes: just enough to break ties


class Ensemble(nn.Module):
    """Ensemble of classifiers that averages probabilities or takes a majority vote.

    Args:
        models: members with scores ``(N, classes)`` or, without voting, ``(N, classes, H, W)``.
        vote: majority vote; the averaged probabilities break ties.
        num_active: number of active members; the last model is always one of them. None: all.
    """

    num_active: Tensor

    def __init__(self, models: Sequence[nn.Module], *, vote: bool = False, num_active: int | None = None) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.vote = vote
        self.register_buffer("num_active", torch.tensor(len(models) if num_active is None else num_active))

    def forward(self, images: Tensor) -> Tensor:
        """Return log-probabilities ``(N, classes)``, float32."""
        return combine_log_probs(compute_member_log_probs(self, images), self.vote)

    def add_member(self, model: nn.Module) -> None:
        """Add a copy of the model's current weights as a member."""
        self.models[int(self.num_active) - 1].load_state_dict(model.state_dict())
        self.num_active += 1


def compute_member_log_probs(model: nn.Module, images: Tensor) -> Tensor:
    """Compute log-probabilities ``(members, N, classes)``, float32; a single network counts as one member."""
    if not isinstance(model, Ensemble):
        parameter = next(model.parameters(), images)  # ONNX Runtime computes on the CPU
        scores: Tensor = model(images.to(parameter.device, parameter.dtype))
        return scores.float().log_softmax(1).unsqueeze(0)
    members = [*model.models[: int(model.num_active) - 1], model.models[-1]]
    log_probs = [average_log_probs(compute_member_log_probs(member, images)) for member in members]
    return torch.stack([part.to(images.device) for part in log_probs])


def average_log_probs(log_probs: Tensor) -> Tensor:
    """Average probabilities, passed and returned as logarithms, over the first dimension."""
    return log_probs[0] if len(log_probs) == 1 else log_probs.logsumexp(0) - math.log(len(log_probs))


def combine_log_probs(log_probs: Tensor, vote: bool) -> Tensor:
    """Combine the members' log-probabilities ``(members, N, classes)`` to those of the ensemble, ``(N, classes)``."""
    if not vote or len(log_probs) == 1:
        return average_log_probs(log_probs)
    votes = F.one_hot(log_probs.argmax(2), log_probs.shape[2]).float().mean(0)
    return torch.logaddexp(votes.log(), average_log_probs(log_probs) + math.log(TIE_BREAK_WEIGHT)) - math.log1p(
        TIE_BREAK_WEIGHT
    )
