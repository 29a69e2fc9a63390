"""Image captioning task: generate a sentence that describes an image."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fukami.captioning import beam_search, tokenizer
from fukami.captioning import metrics as captioning_metrics
from fukami.captioning.tokenizer import TokenizerName
from fukami.data.feature_cache import FeatureCache
from fukami.data.loader import Loader
from fukami.engine.prediction import Prediction
from fukami.engine.task import Metrics, ModelSignature, Task, TrainingOptions
from fukami.errors import Error, UsageError
from fukami.image import draw as image_draw
from fukami.image.channels import round_levels
from fukami.image.transform import SquareTransform
from fukami.layers.activation_checkpointing import enable_activation_checkpointing
from fukami.models.show_and_tell import LSTMState, ShowAndTell
from fukami.progress import track
from fukami.quantization import half_precision

if TYPE_CHECKING:
    from fukami.captioning.loader import CaptionEvalLoader, FeatureLoader
    from fukami.engine.task import FigureContent

Batch = tuple[Tensor, Tensor]
FEATURES_VERSION = 3  # version of the preprocessing; cached features of other versions are not read
ENCODING_BATCH_SIZE = 32  # images per batch of the encoder, whose features are cached


@dataclass(frozen=True)
class DecodingConfig:
    """Settings of caption decoding.

    Attributes:
        strategy: ``beam`` search, ``greedy`` decoding, or random ``sample`` captions.
        beam_size: number of partial captions that beam search keeps.
        length_penalty: captions are ranked by log-probability / length ** length_penalty; 0 disables it.
        temperature: softmax temperature of sampling; below 1, likely tokens become more likely.
        num_captions: number of captions per image, the most likely first.
        max_tokens: maximum number of tokens of a caption.
        tokenizer: as for :func:`fukami.captioning.tokenizer.tokenize`.
        seed: random seed of sampling.
    """

    strategy: Literal["beam", "greedy", "sample"] = "beam"
    beam_size: int = 20
    length_penalty: float = 0.0
    temperature: float = 1.0
    num_captions: int = 5
    max_tokens: int = 30
    tokenizer: TokenizerName = "words"
    seed: int = 0


class GeneratedCaption(TypedDict):
    """Caption of an image, its probability, and its score, the log-probability divided by a power of the length."""

    caption: str
    probability: float
    score: float


@dataclass(frozen=True)
class CaptioningResults:
    """Predicted captions and the references.

    Attributes:
        captions: by image index, in order.
        tokenizer: tokenizer of the captions.
        references: the reference captions of each image, as lists of tokens.
        training_captions: the training captions, their tokens joined by spaces.
    """

    captions: dict[int, str]
    tokenizer: TokenizerName
    references: Sequence[Sequence[Sequence[str]]]
    training_captions: set[str]

    @property
    def tokenized_captions(self) -> list[list[str]]:
        """The tokens of each caption."""
        return [tokenizer.tokenize(caption, self.tokenizer) for caption in self.captions.values()]

    @property
    def matched_references(self) -> list[Sequence[Sequence[str]]]:
        """The references of the captioned images."""
        return [self.references[index] for index in self.captions]

    def compute_metrics(self) -> Metrics:
        """Compute the metrics of :func:`fukami.captioning.metrics.evaluate_captions`."""
        return dict(
            captioning_metrics.evaluate_captions(
                self.tokenized_captions, self.matched_references, self.training_captions
            )
        )


class CaptioningTask(Task):
    """Image captioning: maximum likelihood of each token of a caption, given the image and the previous tokens.

    Args:
        model: the network.
        labels: the vocabulary, starting with the end, begin and unknown tokens.
        transform: preprocessing of images; it is saved with the task.
        decoding_config: settings of caption decoding.
        frozen_encoder: keep the encoder's weights fixed; its features are computed once and cached on disk.
        cache_limit: maximum size of the feature cache, in GB; 0 disables it.
        activation_checkpointing: keep only the activations between the encoder's blocks, and recompute the others in
            the backward pass.
        options: training options, as for :class:`fukami.Task`.
    """

    label_noun = "word"
    predict_batch_size = 32
    model: ShowAndTell
    transform: SquareTransform

    def __init__(
        self,
        model: ShowAndTell,
        labels: tuple[str, ...],
        transform: SquareTransform,
        decoding_config: DecodingConfig,
        *,
        frozen_encoder: bool = False,
        cache_limit: float = 0.0,
        activation_checkpointing: bool = False,
        **options: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, **options)
        self.labels = labels
        self.transform = transform
        self.decoding_config = decoding_config
        self.frozen_encoder = frozen_encoder
        self.cache_limit = cache_limit
        self.activation_checkpointing = activation_checkpointing

    def prepare_training(self) -> None:
        """Create the optimizer, without the parameters of a frozen encoder, and enable activation checkpointing."""
        if self.frozen_encoder:
            self.model.encoder.requires_grad_(False)
        if self.activation_checkpointing:
            enable_activation_checkpointing(self.model.encoder)
        super().prepare_training()

    def get_signature(self) -> ModelSignature:
        """Raise a usage error: beam search is not part of the network, so the model cannot be exported."""
        raise UsageError(
            "captioning models cannot be exported, because beam search is not part of the network; use fukami predict"
        )

    def iterate_batches(self, loader: Loader) -> Iterable[Batch]:
        """Yield training batches, epoch after epoch; compute the features of a frozen encoder first."""
        if self.frozen_encoder:
            from fukami.captioning.loader import FeatureLoader

            assert isinstance(loader, FeatureLoader)
            views = [self.extract_features(loader), self.extract_features(loader, flip=True)]
            loader.set_features(torch.stack(views, 1))
        return super().iterate_batches(loader)

    def compute_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the mean negative log-likelihood per token over all processes (Vinyals et al. 2015, equation 13).

        ``batch`` is images ``(N, C, H, W)`` in 0..255, or features ``(N, F)``, and tokens ``(N, T)``, padded with -1;
        ``<end>`` counts as a token.
        """
        images, tokens = batch
        scores = self.training_model(self.normalize_images(images), tokens[:, :-1].clamp(min=0))
        targets = tokens[:, 1:]
        loss = F.cross_entropy(scores.flatten(0, 1).float(), targets.flatten(), ignore_index=-1, reduction="none").sum()
        is_token = targets >= 0
        num_correct = ((scores.detach().argmax(2) == targets) & is_token).sum()
        # a micro-batch has no token if none of its images can be read
        count = self.runtime.all_reduce_sum(is_token.sum().float()).clamp(min=1e-6) / self.runtime.world_size
        return loss / count, {"token_accuracy": num_correct / count}

    def count_targets(self, batch: Batch) -> Tensor:
        """Count the tokens, over which the loss is averaged."""
        return (batch[1][:, 1:] >= 0).sum()

    def normalize_images(self, images: Tensor) -> Tensor:
        """Normalize images ``(N, C, H, W)`` in 0..255; features are returned unchanged."""
        dtype = next(self.model.parameters()).dtype
        if images.ndim == 2:
            return images.to(dtype)
        return ((images - self.mean) / self.std).to(dtype).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def extract_features(self, loader: "FeatureLoader", *, flip: bool = False) -> Tensor:
        """Compute the encoder's features of all images of a loader ``(P, F)``, or read them from the cache.

        The cache stores them per batch of images, since the batch size affects rounding.
        """
        settings = f"show and tell {FEATURES_VERSION} {self.transform} {self.runtime.precision} {flip}"
        cache = FeatureCache(self.model.encoder, settings, self.cache_limit) if self.cache_limit else None
        all_features: list[Tensor] = []
        for images in track(loader.iterate_images(), "image features", unit="batches"):
            for batch in torch.split(images, ENCODING_BATCH_SIZE):
                path = cache.get_path(batch, torch.zeros(0)) if cache else None
                features = cache.read(path) if cache and path else None
                if features is None or len(features) != len(batch):
                    batch = batch.to(self.runtime.device)
                    with self.runtime.autocast(), half_precision.enable_float32_fallback(self.model):
                        encoded = self.model.encode_images(self.normalize_images(batch.flip(3) if flip else batch))
                        features = encoded.float().cpu()
                    if cache and path:
                        cache.write(path, features)
                all_features.append(features)
        return torch.cat(all_features).to(self.runtime.device)

    def collect_results(self, batches: Iterable[Batch]) -> CaptioningResults:
        """Generate the best caption of each image of ``batches``, over all processes."""
        loader = get_eval_loader(batches)
        if self.frozen_encoder and loader.features is None:
            loader.set_features(self.extract_features(loader).unsqueeze(1))
        captions: dict[int, str] = {}
        for images, indices in track(loader, "evaluation", unit="batches"):
            if len(indices):
                candidates = self.generate_captions(images)
                captions |= zip(indices.tolist(), (first["caption"] for first, *_ in candidates), strict=True)
        for other in self.runtime.all_gather(captions):
            captions |= other
        if not captions:
            raise Error("there is no image to evaluate; use data with a test split, or a larger --val-fraction")
        return CaptioningResults(
            dict(sorted(captions.items())),
            self.decoding_config.tokenizer,
            loader.references,
            loader.training_captions,
        )

    def generate_captions(self, images: Tensor) -> list[list[GeneratedCaption]]:
        """Generate captions of images ``(N, C, H, W)`` in 0..255 or features ``(N, F)``, the most likely first.

        Each has a ``caption``, its ``probability``, and the ``score`` that ranks it: its log-probability divided by
        a power of its length.
        """
        config, model = self.decoding_config, self.model
        inputs = self.normalize_images(images.to(self.runtime.device))
        with half_precision.enable_float32_fallback(model):
            state = model.init_state(model.encode_images(inputs) if inputs.ndim == 4 else inputs)
            if config.strategy == "sample":
                search = partial(
                    beam_search.sample,
                    num_samples=config.num_captions,
                    temperature=config.temperature,
                    generator=torch.Generator().manual_seed(config.seed),
                )
            else:
                beam_size = 1 if config.strategy == "greedy" else config.beam_size
                search = partial(beam_search.search, beam_size=beam_size)
            tokens, log_probs, lengths = search(
                self.decode_step, state, max_tokens=config.max_tokens, begin=tokenizer.BEGIN, end=tokenizer.END
            )
        scores = log_probs / lengths.float() ** config.length_penalty
        order = scores.argsort(dim=1, descending=True, stable=True)
        candidates = zip(tokens.tolist(), log_probs.tolist(), scores.tolist(), order.tolist(), strict=True)
        return [self.select_captions(*image_candidates) for image_candidates in candidates]

    def select_captions(
        self, sequences: list[list[int]], log_probs: list[float], scores: list[float], order: list[int]
    ) -> list[GeneratedCaption]:
        """Select the first captions of an image in this order, without duplicates."""
        captions: dict[str, GeneratedCaption] = {}
        for index in order:
            if log_probs[index] == -math.inf:
                continue
            tokens = sequences[index]
            tokens = tokens[: tokens.index(tokenizer.END)] if tokenizer.END in tokens else tokens
            text = tokenizer.detokenize((self.labels[token] for token in tokens), self.decoding_config.tokenizer)
            caption: GeneratedCaption = {
                "caption": text,
                "probability": math.exp(log_probs[index]),
                "score": scores[index],
            }
            captions.setdefault(text, caption)
        return list(captions.values())[: self.decoding_config.num_captions]

    def decode_step(self, state: LSTMState, tokens: Tensor) -> tuple[LSTMState, Tensor]:
        """Advance the decoder by one token; the begin and unknown tokens are never generated."""
        state, scores = self.model.step(state, tokens)
        scores[:, [tokenizer.BEGIN, tokenizer.UNKNOWN]] = -torch.inf
        return state, scores

    def predict_batch(self, images: Tensor) -> list[Prediction]:
        """Predict the ``caption`` of each image, its ``probability``, and the best ``captions``."""
        return [
            {"caption": captions[0]["caption"], "probability": captions[0]["probability"], "captions": captions}
            for captions in self.generate_captions(images)
        ]

    def draw(self, image: Image.Image, prediction: Prediction) -> Image.Image:
        """Draw the image with its caption below."""
        return image_draw.draw_caption(image, prediction["caption"])

    @torch.inference_mode()
    def plot_evaluation(self, batches: Iterable[Batch]) -> "Iterator[tuple[str, FigureContent]]":
        """Yield figures of the best, median and worst captions by CIDEr-D, and of the most common captions."""
        from fukami.captioning import plots as captioning_plots

        results = self._get_results(batches)
        assert isinstance(results, CaptioningResults)
        captions, loader = results.captions, get_eval_loader(batches)
        image_indices = list(captions)

        def load_example(position: int) -> captioning_plots.CaptionExample:
            index = image_indices[position]
            image = round_levels(loader.images[index].permute(1, 2, 0).cpu().numpy())
            reference = tokenizer.detokenize(loader.references[index][0], self.decoding_config.tokenizer)
            return image, captions[index], reference

        scores = captioning_metrics.compute_cider(results.tokenized_captions, results.matched_references)
        yield from captioning_plots.plot_evaluation(scores, list(captions.values()), load_example)


def get_eval_loader(batches: Iterable[Batch]) -> "CaptionEvalLoader":
    """Return the loader of batches, which has the references."""
    from fukami.captioning.loader import CaptionEvalLoader

    assert isinstance(batches, CaptionEvalLoader)
    return batches
