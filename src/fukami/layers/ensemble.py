"""Several classifiers as one (Hansen and Salamon 1990)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIE_BREAK_WEIGHT = 1e-3  # how much the averaged probabilities count beside the votes: enough to decide between equals


class Ensemble(nn.Module):
    """Classifiers that answer together: by their averaged probabilities, or by the vote of the majority.

    Args:
        models: each gives scores ``(N, classes)``, or without a vote ``(N, classes, H, W)``.
        vote: count votes; between as many votes the averaged probabilities decide.
        num_active: how many of the models answer so far, the last one always among them.
    """

    joined: Tensor

    def __init__(self, models: Sequence[nn.Module], *, vote: bool = False, num_active: int | None = None) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.vote = vote
        self.register_buffer("joined", torch.tensor(len(models) if num_active is None else num_active))

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities ``(N, classes)``, float32."""
        return combine_log_probs(compute_member_log_probs(self, images), self.vote)

    def add_member(self, model: nn.Module) -> None:
        """Keep a copy of the model as it is now as one more member."""
        self.models[int(self.joined) - 1].load_state_dict(model.state_dict())
        self.joined += 1


def compute_member_log_probs(model: nn.Module, images: Tensor) -> Tensor:
    """Log-probabilities ``(members, N, classes)``, float32; a network that is no ensemble has one member."""
    if not isinstance(model, Ensemble):
        own = next(model.parameters(), images).dtype
        return model(images.to(own)).float().log_softmax(1).unsqueeze(0)  # type: ignore[no-any-return]
    members = [*model.models[: int(model.joined) - 1], model.models[-1]]
    return torch.stack([average_log_probs(compute_member_log_probs(member, images)) for member in members])


def average_log_probs(log_probs: Tensor) -> Tensor:
    """The logarithm of the mean over the first dimension of probabilities given as logarithms."""
    return log_probs[0] if len(log_probs) == 1 else log_probs.logsumexp(0) - math.log(len(log_probs))


def combine_log_probs(log_probs: Tensor, vote: bool) -> Tensor:
    """What members with these log-probabilities ``(members, N, classes)`` answer together, ``(N, classes)``."""
    if not vote or len(log_probs) == 1:
        return average_log_probs(log_probs)
    votes = F.one_hot(log_probs.argmax(2), log_probs.shape[2]).float().mean(0)
    return torch.logaddexp(votes.log(), average_log_probs(log_probs) + math.log(TIE_BREAK_WEIGHT)) - math.log1p(
        TIE_BREAK_WEIGHT
    )
