"""Image captioning with plain PyTorch: an LSTM on VGG-16's features, with the settings of a fukami run.

    cd benchmarks && python -m peers.caption DATA RUN

DATA contains ``captions.txt`` with the columns ``image``, ``split`` and ``caption``, and ``images``. The features of
each image and its mirror image are computed once, as in Keras's captioning tutorial. Prints BLEU-4 of the test captions
as JSON, computed by fukami. See ``own_data.py``.
"""

import csv
import json
from collections import defaultdict
from functools import partial

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fukami.captioning.metrics import compute_bleu
from fukami.captioning.tokenizer import BEGIN, END, UNKNOWN, build_vocabulary, encode_tokens, tokenize
from peers.training import DEVICE, MEAN, NUM_WORKERS, STD, load_features, read_arguments, require, run_evaluation, train


class Images(Dataset):
    """Images of the encoder's input size."""

    def __init__(self, paths, size):
        self.paths = paths
        self.transform = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.ToImage(),
                                     v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])  # fmt: skip

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        """Load an image."""
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


class Decoder(nn.Module):
    """LSTM that reads the image's features, then the words."""

    def __init__(self, hidden, dropout, vocab_size):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(512, hidden), nn.BatchNorm1d(hidden))
        self.words, self.lstm = nn.Embedding(vocab_size, hidden), nn.LSTM(hidden, hidden, batch_first=True)
        self.dropout, self.scores = nn.Dropout(dropout), nn.Linear(hidden, vocab_size)

    def forward(self, features, words):
        """Compute the scores of the words after each of ``words``."""
        inputs = torch.cat([self.image(features).unsqueeze(1), self.words(words)], 1)
        return self.scores(self.dropout(self.lstm(self.dropout(inputs))[0][:, 1:]))

    def generate(self, features, beam_size, max_tokens):
        """Generate the likeliest caption of each image by beam search, for all images at once."""
        state = self.lstm(self.image(features).unsqueeze(1))[1]
        state = [value.repeat_interleave(beam_size, 1) for value in state]
        words = torch.full((len(features), beam_size, 1), BEGIN, device=features.device)
        totals = torch.full((len(features), beam_size), -torch.inf, device=features.device)
        totals[:, 0] = 0
        for _ in range(max_tokens):
            outputs, state = self.lstm(self.words(words[:, :, -1].reshape(-1, 1)), state)
            log_probs = self.scores(outputs[:, 0]).float().log_softmax(1).view(*totals.shape, -1)
            is_finished = words[:, :, -1] == END
            log_probs[..., [BEGIN, UNKNOWN]] = -torch.inf
            log_probs[is_finished] = -torch.inf
            log_probs[..., END][is_finished] = 0
            totals, indices = (totals.unsqueeze(2) + log_probs).flatten(1).topk(beam_size)
            beams, next_words = indices // log_probs.shape[2], indices % log_probs.shape[2]
            words = torch.cat([words.gather(1, beams.unsqueeze(2).expand_as(words)), next_words.unsqueeze(2)], 2)
            rows = (torch.arange(len(features), device=beams.device).unsqueeze(1) * beam_size + beams).flatten()
            state = [value[:, rows].contiguous() for value in state]
        return words[:, 0].tolist()


def extract_features(paths, recipe, precision):
    """Compute the averaged features of the images and of their mirror images, ``(2, N, 512)``."""
    encoder = nn.Sequential(load_features(recipe.init), nn.AdaptiveAvgPool2d(1), nn.Flatten()).to(DEVICE)
    loader = DataLoader(Images(paths, recipe.size), 50, num_workers=NUM_WORKERS)
    compute = lambda: [torch.stack([encoder(x.to(DEVICE)), encoder(x.flip(3).to(DEVICE))]) for x in loader]  # noqa: E731
    return torch.cat(run_evaluation(encoder, precision, compute), 1).float().clone()


def compute_bleu4(model, recipe, vocabulary, features, references):
    """Compute BLEU-4 of the generated captions."""
    captions = model.generate(features, recipe.beam_size, recipe.max_tokens)
    captions = [[vocabulary[word] for word in caption if word not in (BEGIN, END)] for caption in captions]
    return compute_bleu(captions, references)[3]


def main():
    """Train as the run did, and print BLEU-4 of the test captions."""
    data, recipe, precision = read_arguments()
    require(recipe, encoder="vgg16", decoding="beam", length_penalty=0.0, finetune_epochs=0, tokenizer="words")
    captions = {split: defaultdict(list) for split in ("train", "val", "test")}
    with (data / "captions.txt").open(newline="") as file:
        for row in csv.DictReader(file):
            captions[row["split"]][data / "images" / row["image"]].append(tokenize(row["caption"], "words"))
    words = [caption for image_captions in captions["train"].values() for caption in image_captions]
    vocabulary = build_vocabulary(words, recipe.min_word_count)
    word_indices = {word: index for index, word in enumerate(vocabulary)}
    features = {split: extract_features(list(captions[split]), recipe, precision) for split in captions}
    pairs = [(i, torch.tensor(encode_tokens(caption, word_indices)[: recipe.max_tokens + 2]))
             for i, image_captions in enumerate(captions["train"].values()) for caption in image_captions]  # fmt: skip

    def collate(batch):
        images, tokens = zip(*batch, strict=True)
        return features["train"][torch.randint(2, (len(images),)), list(images)], pad_sequence(tokens, True, -1)

    loader = DataLoader(pairs, recipe.batch_size, shuffle=True, drop_last=True, collate_fn=collate)
    model = Decoder(recipe.hidden, recipe.dropout, len(vocabulary)).to(DEVICE)

    def compute_loss(batch):
        image_features, tokens = (value.to(DEVICE) for value in batch)
        scores = model(image_features, tokens[:, :-1].clamp(min=0))
        return F.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=-1)

    evaluate = {split: partial(compute_bleu4, model, recipe, vocabulary, features[split][0],
                               list(captions[split].values())) for split in ("val", "test")}  # fmt: skip
    train(model, recipe, precision, loader, compute_loss, evaluate["val"])
    bleu4 = run_evaluation(model, precision, evaluate["test"])
    print(json.dumps({"bleu4": bleu4, "count": len(captions["test"])}))


if __name__ == "__main__":
    main()
