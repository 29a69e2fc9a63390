"""Show and Tell (NIC): image captioning by a convolutional encoder and an LSTM decoder.

Vinyals, Toshev, Bengio and Erhan, "Show and Tell: A Neural Image Caption Generator", CVPR 2015, section 3.1 and
figure 3:

    image ─ encoder ─ fc ──────┐              with batch normalization, unlike the paper
                                 v
                               LSTM ─ LSTM ─ LSTM ─ ... ─ LSTM
                                       ^      ^             ^
                                    <begin>  word 1       word n
                                       v      v             v
                                    word 1   word 2        <end>

The image is the input once, before the first word (equations 10 to 12). The word embeddings are tied: they are the
inputs of the LSTM and the weights of the output layer. The encoder is any classifier of the library without its last
layer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.models.googlenet import googlenet

LSTMState = tuple[Tensor, Tensor]  # hidden state and cell state, (N, hidden) each
EMBEDDING_INIT_STD = 0.3  # of the word embeddings; with far less, the LSTM uses them late in training


def show_and_tell(
    classifier: nn.Module | None = None, vocab_size: int = 8791, *, hidden: int = 512, dropout: float = 0.5
) -> "ShowAndTell":
    """Build NIC: images ``(N, 3, H, W)`` and previous words ``(N, T)`` to next-word scores ``(N, T, vocab_size)``.

    Args:
        classifier: becomes the encoder without its last fully connected layer; None: GoogLeNet, as in the paper.
        vocab_size: vocabulary size; 8,791 words occur at least five times in COCO.
        hidden: number of units of the LSTM, and the embedding dimension.
        dropout: dropout probability of the inputs and outputs of the LSTM.
    """
    return ShowAndTell(classifier or googlenet(1, aux_loss=False), vocab_size, hidden, dropout)


class TraceableShowAndTell(nn.Module):
    """Traceable layers from an image to the scores of the first word, with the LSTM step as linear layers."""

    def __init__(self, network: "ShowAndTell") -> None:
        super().__init__()
        hidden, vocab_size = network.lstm.hidden_size, network.words.num_embeddings
        self.encoder, self.image = network.encoder, network.image
        self.input_gates, self.hidden_gates = nn.Linear(hidden, 4 * hidden), nn.Linear(hidden, 4 * hidden)
        self.scores = nn.Linear(hidden, vocab_size)

    def forward(self, images: Tensor) -> Tensor:
        """Compute scores ``(N, vocab_size)`` of images ``(N, 3, H, W)``."""
        embedding = self.image(self.encoder(images).flatten(1))
        input_gate, _, candidate, output_gate = (self.input_gates(embedding) + self.hidden_gates(embedding)).chunk(4, 1)
        scores: Tensor = self.scores(output_gate.sigmoid() * (input_gate.sigmoid() * candidate.tanh()).tanh())
        return scores


class ShowAndTell(nn.Module):
    """Encoder, LSTM and word embeddings."""

    def __init__(self, classifier: nn.Module, vocab_size: int, hidden: int, dropout: float) -> None:
        super().__init__()
        name, head = [item for item in classifier.named_modules() if isinstance(item[1], nn.Linear)][-1]
        classifier.set_submodule(name, nn.Identity())
        self.encoder = classifier
        self.image = nn.Sequential(nn.Linear(head.in_features, hidden, bias=False), nn.BatchNorm1d(hidden))
        self.words = nn.Embedding(vocab_size, hidden)
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.words.weight, std=EMBEDDING_INIT_STD)

    def get_traceable_module(self) -> nn.Module:
        """Return the layers from an image to the scores of the first word."""
        return TraceableShowAndTell(self)

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        """Compute next-word scores ``(N, T, vocab_size)`` of words ``(N, T)``, the first of which is ``<begin>``.

        ``images`` are normalized, ``(N, 3, H, W)``, or their features ``(N, features)`` from :meth:`encode_images`.
        """
        embeddings = self.image(images if images.ndim == 2 else self.encode_images(images))
        inputs = torch.cat([embeddings.unsqueeze(1), self.words(words).to(embeddings.dtype)], 1)
        outputs, _ = self.lstm(self.dropout(inputs))
        return self.compute_scores(outputs[:, 1:].contiguous())  # dropout depends on the order of the memory

    def encode_images(self, images: Tensor) -> Tensor:
        """Compute the encoder's features ``(N, features)`` of normalized images ``(N, 3, H, W)``."""
        features: Tensor = self.encoder(images)
        return features.flatten(1)

    def init_state(self, features: Tensor) -> LSTMState:
        """Compute the state of the LSTM after the image: two tensors ``(N, hidden)``."""
        _, (hidden, cell) = self.lstm(self.dropout(self.image(features)).unsqueeze(1))
        return hidden[0], cell[0]

    def step(self, state: LSTMState, words: Tensor) -> tuple[LSTMState, Tensor]:
        """Return the state after words ``(N,)`` and next-word log-probabilities ``(N, vocab_size)``, float32."""
        inputs = self.dropout(self.words(words)).unsqueeze(1)
        outputs, (hidden, cell) = self.lstm(inputs, tuple(value.unsqueeze(0).contiguous() for value in state))
        return (hidden[0], cell[0]), self.compute_scores(outputs[:, 0]).float().log_softmax(1)

    def compute_scores(self, outputs: Tensor) -> Tensor:
        """Compute scores ``(..., vocab_size)`` of LSTM outputs ``(..., hidden)``."""
        return F.linear(self.dropout(outputs), self.words.weight, self.bias)
