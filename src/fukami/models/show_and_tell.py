"""Show and Tell, also called NIC: a network that sees is followed by one that speaks.

Vinyals, Toshev, Bengio and Erhan, "Show and Tell: A Neural Image Caption Generator", CVPR 2015, section 3.1 and
figure 3:

    image ─ encoder ─ affine ──┐              normalised over the batch, which the paper's is not
                                 v
                               LSTM ─ LSTM ─ LSTM ─ ... ─ LSTM
                                       ^      ^             ^
                                    <begin>  word 1       word n
                                       v      v             v
                                    word 1   word 2        <end>

The image is shown once, before the first word (equations 10 to 12). The vectors of the words serve twice: they are
what the LSTM is given, and what its answer is compared with to find the next word. The encoder is any classifier of the
library without its last layer.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.models.googlenet import googlenet

EMBEDDING_INIT_STD = (
    0.3  # of the vectors of the words at the beginning: with far less, the LSTM learns to see them late
)


def show_and_tell(
    classifier: nn.Module | None = None, vocab_size: int = 8791, *, hidden: int = 512, dropout: float = 0.5
) -> "ShowAndTell":
    """NIC: ``(N, 3, H, W)`` and the words ``(N, T)`` before to scores of the next words ``(N, T, words)``.

    Args:
        classifier: what becomes the encoder by losing its last affine layer; by default, as in the paper, GoogLeNet.
        vocab_size: of the vocabulary; 8,791 are those of COCO that occur five times.
        hidden: width of the LSTM, and of the vectors of the words.
        dropout: share of what the LSTM is given and gives that training drops.
    """
    return ShowAndTell(classifier or googlenet(1, aux_loss=False), vocab_size, hidden, dropout)


class TraceableShowAndTell(nn.Module):
    """What there is between an image and the scores of the first word, the LSTM as the affine maps that it is."""

    def __init__(self, network: "ShowAndTell") -> None:
        super().__init__()
        hidden, words = network.lstm.hidden_size, network.words.num_embeddings
        self.encoder, self.image = network.encoder, network.image
        self.input_gates, self.hidden_gates = nn.Linear(hidden, 4 * hidden), nn.Linear(hidden, 4 * hidden)
        self.scores = nn.Linear(hidden, words)

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(N, words)`` of images ``(N, 3, H, W)``."""
        seen = self.image(self.encoder(images).flatten(1))
        enter, _, change, leave = (self.input_gates(seen) + self.hidden_gates(seen)).chunk(4, 1)
        return self.scores(leave.sigmoid() * (enter.sigmoid() * change.tanh()).tanh())  # type: ignore[no-any-return]


class ShowAndTell(nn.Module):
    """An encoder, an LSTM, and the vectors of the words."""

    def __init__(self, classifier: nn.Module, vocab_size: int, hidden: int, dropout: float) -> None:
        super().__init__()
        name, head = [each for each in classifier.named_modules() if isinstance(each[1], nn.Linear)][-1]
        classifier.set_submodule(name, nn.Identity())
        self.encoder = classifier
        self.image = nn.Sequential(nn.Linear(head.in_features, hidden, bias=False), nn.BatchNorm1d(hidden))
        self.words = nn.Embedding(vocab_size, hidden)
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.words.weight, std=EMBEDDING_INIT_STD)

    def get_traceable_module(self) -> nn.Module:
        """The layers, in the order in which an image passes them before the first word."""
        return TraceableShowAndTell(self)

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        """Scores ``(N, T, words)`` of the word after each of the words ``(N, T)``; the first of these is ``<begin>``.

        ``images`` are normalised, ``(N, 3, H, W)``, or what :meth:`encode_images` gave for them, ``(N, features)``.
        """
        seen = self.image(images if images.ndim == 2 else self.encode_images(images))
        given = torch.cat([seen.unsqueeze(1), self.words(words).to(seen.dtype)], 1)
        found, _ = self.lstm(self.dropout(given))
        return self.compute_scores(found[:, 1:])

    def encode_images(self, images: Tensor) -> Tensor:
        """What the encoder makes of normalised images ``(N, 3, H, W)``: ``(N, features)``."""
        return self.encoder(images).flatten(1)  # type: ignore[no-any-return]

    def init_state(self, features: Tensor) -> Any:
        """The state of the LSTM once it was shown the image: two tensors ``(N, hidden)``."""
        _, state = self.lstm(self.dropout(self.image(features)).unsqueeze(1))
        return tuple(value[0] for value in state)

    def step(self, state: Any, words: Tensor) -> tuple[Any, Tensor]:
        """The state after the words ``(N,)``, and the log-probabilities ``(N, words)`` of the next ones, float32."""
        given = self.dropout(self.words(words)).unsqueeze(1)
        found, state = self.lstm(given, tuple(value.unsqueeze(0).contiguous() for value in state))
        return tuple(value[0] for value in state), self.compute_scores(found[:, 0]).float().log_softmax(1)

    def compute_scores(self, hidden: Tensor) -> Tensor:
        """Scores ``(..., words)`` by what the LSTM gives, ``(..., hidden)``."""
        return F.linear(self.dropout(hidden), self.words.weight, self.bias)
