"""Captioning: what would a person say of the image?"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from fukami.captioning import beam_search, tokenizer
from fukami.captioning import metrics as captioning_metrics
from fukami.captioning.tokenizer import TokenizerName
from fukami.data.feature_cache import FeatureCache
from fukami.engine.cached_evaluation import CachedEvaluationTask
from fukami.engine.task import ModelSignature, TrainingOptions
from fukami.errors import Error, UsageError
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform
from fukami.quantization import half_precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fukami.engine.runtime import Runtime

Batch = tuple[Tensor, Tensor]
FEATURES_VERSION = 2  # of how images are looked at: features that were kept with another are not read
PREDICT_BATCH_SIZE = 32  # images that are answered at once


@dataclass(frozen=True)
class DecodingConfig:
    """How a network speaks.

    Attributes:
        decoding: the likeliest sentence that a beam search finds, the likeliest word each time, or by chance.
        beam_size: beginnings of sentences that a beam search keeps.
        length_penalty: power of a sentence's length by which its log-probability is divided for the ranking; 0: not
            divided.
        temperature: of chance; below 1 likely words become likelier.
        num_captions: that are told for each image, the likeliest first.
        max_words: words of a sentence at most.
        tokenizer: as for :func:`fukami.captioning.tokenizer.tokenize`.
        seed: of chance.
    """

    decoding: Literal["beam", "greedy", "sample"] = "beam"
    beam_size: int = 20
    length_penalty: float = 0.0
    temperature: float = 1.0
    num_captions: int = 5
    max_words: int = 30
    tokenizer: TokenizerName = "words"
    seed: int = 0


@dataclass(frozen=True)
class CaptioningResults:
    """What was said of images, and what people said of them.

    Attributes:
        captions: by the number of the image, in order.
        tokenizer: what they are cut into.
        references: the sentences of people for each image, as lists of words.
        training_captions: the sentences of the training, their words joined by spaces.
    """

    captions: dict[int, str]
    tokenizer: TokenizerName
    references: Sequence[Sequence[Sequence[str]]]
    training_captions: set[str]

    @property
    def tokenized_captions(self) -> list[list[str]]:
        """The words of each sentence."""
        return [tokenizer.tokenize(sentence, self.tokenizer) for sentence in self.captions.values()]

    @property
    def matched_references(self) -> list[Sequence[Sequence[str]]]:
        """What people said of these images."""
        return [self.references[number] for number in self.captions]

    def compute_metrics(self) -> dict[str, Any]:
        """Those of :func:`fukami.captioning.metrics.evaluate_captions`."""
        return dict(
            captioning_metrics.evaluate_captions(
                self.tokenized_captions, self.matched_references, self.training_captions
            )
        )


class CaptioningTask(CachedEvaluationTask):
    """The likelihood of the words of a sentence, one after another, given the image.

    Args:
        model: as :class:`fukami.models.show_and_tell.ShowAndTell` is called.
        labels: the words, those for end, begin and unknown first.
        transform: an image of any size as the network sees it; it travels with the task.
        decoding: how it speaks.
        frozen_encoder: the encoder stays as it is; what it sees is computed once, and kept on the disk.
        cache_limit: gigabytes of disk that this may take; 0: it is not kept.
        regime: optimizer, decay, epochs, judge_every, accumulate and clip, as for :class:`fukami.Task`.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        transform: SquareTransform,
        decoding: DecodingConfig,
        *,
        frozen_encoder: bool = False,
        cache_limit: float = 0.0,
        **regime: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, **regime)
        self.labels, self.transform, self.decoding, self.frozen_encoder, self.cache_limit = (
            labels,
            transform,
            decoding,
            frozen_encoder,
            cache_limit,
        )

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        if self.frozen_encoder:
            self.model.encoder.requires_grad_(False)
        super().setup(runtime)
        mean, std = (255 * torch.tensor(value).view(-1, 1, 1) for value in (self.transform.mean, self.transform.std))
        self.mean, self.std = mean.to(runtime.device), std.to(runtime.device)

    def get_signature(self) -> ModelSignature:
        """Refuse: a sentence is found by a search, and not by a network alone."""
        raise UsageError("sentences are found by a search, which another program does not have: keep the run as it is")

    def iterate_batches(self, train: Any) -> Iterable[Batch]:
        """Pass after pass over the loader, once the encoder has seen its images if it stays as it is."""
        if self.frozen_encoder:
            train.set_features(torch.stack([self.extract_features(train), self.extract_features(train, flip=True)], 1))
        return super().iterate_batches(train)

    def compute_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of minus the log-probability of each word, ``<end>`` included, over all processes (equation 13).

        ``batch`` is images ``(N, C, H, W)`` in 0..255, or features ``(N, F)``, and words ``(N, T)``.
        """
        images, words = batch
        scores = self.training_model(self.normalize_images(images), words[:, :-1].clamp(min=0))
        targets = words[:, 1:]
        loss = F.cross_entropy(scores.flatten(0, 1).float(), targets.flatten(), ignore_index=-1, reduction="none").sum()
        there = targets >= 0
        right = ((scores.detach().argmax(2) == targets) & there).sum()
        count = self.runtime.all_reduce_sum(there.sum().float()) / self.runtime.world_size
        return loss / count, {"accuracy": right / count}

    def normalize_images(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in 0..255 as the network takes them; features as they are."""
        kind = next(self.model.parameters()).dtype
        if images.ndim == 2:
            return images.to(kind)
        return ((images - self.mean) / self.std).to(kind).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def extract_features(self, loader: Any, *, flip: bool = False) -> Tensor:
        """What the encoder sees in each image of a loader ``(P, F)``, from the disk where that is known.

        It is kept for the images that are looked at together, as how many these are decides how sums are rounded.
        """
        settings = f"show and tell {FEATURES_VERSION} {self.transform} {self.runtime.precision} {flip}"
        kept = FeatureCache(self.model.encoder, settings, self.cache_limit) if self.cache_limit else None  # type: ignore[arg-type]
        found: list[Tensor] = []
        for images in loader.iterate_images():
            for some in images.split(PREDICT_BATCH_SIZE):
                path = kept.get_path(some, torch.zeros(0)) if kept else None
                features = kept.read(path) if kept and path else None
                if features is None or len(features) != len(some):
                    some = some.to(self.runtime.device)
                    with self.runtime.autocast():
                        seen = self.model.encode_images(self.normalize_images(some.flip(3) if flip else some))  # type: ignore[operator]
                        features = seen.float().cpu()
                    if kept and path:
                        kept.write(path, features)
                found.append(features)
        return torch.cat(found).to(self.runtime.device)

    def collect_results(self, batches: Any) -> CaptioningResults:
        """The best sentence for each image of ``batches``, over all processes."""
        if self.frozen_encoder and batches.features is None:
            batches.set_features(self.extract_features(batches).unsqueeze(1))
        said: dict[int, str] = {}
        with self.inference_mode():
            for images, numbers in batches:
                if len(numbers):
                    said |= zip(
                        numbers.tolist(), (own[0]["caption"] for own in self.generate_captions(images)), strict=True
                    )
        for other in self.runtime.all_gather(said):
            said |= other
        if not said:
            raise Error("there is no image to judge on; give data with a test part, or a larger --holdout")
        return CaptioningResults(
            dict(sorted(said.items())), self.decoding.tokenizer, batches.references, batches.training_captions
        )

    def generate_captions(self, images: Tensor) -> list[list[dict[str, Any]]]:
        """Sentences for images ``(N, C, H, W)`` in 0..255 or features ``(N, F)``, the likeliest first.

        Each is a ``caption``, its ``probability``, and the ``score`` by which it is ranked: the log-probability,
        divided by a power of the words.
        """
        speech, model = self.decoding, self.model
        seen = self.normalize_images(images.to(self.runtime.device))
        with half_precision.enable_float32_fallback(model):
            state = model.init_state(model.encode_images(seen) if seen.ndim == 4 else seen)  # type: ignore[operator]
            how: dict[str, Any] = {"max_words": speech.max_words, "begin": tokenizer.BEGIN, "end": tokenizer.END}
            if speech.decoding == "sample":
                generator = torch.Generator().manual_seed(speech.seed)
                how |= {"temperature": speech.temperature, "generator": generator}
                words, total, lengths = beam_search.sample(
                    self.decode_step, state, num_samples=speech.num_captions, **how
                )
            else:
                beams = 1 if speech.decoding == "greedy" else speech.beam_size
                words, total, lengths = beam_search.search(self.decode_step, state, beam_size=beams, **how)
        score = total / lengths.float() ** speech.length_penalty
        order = score.argsort(dim=1, descending=True, stable=True)
        each = zip(words.tolist(), total.tolist(), score.tolist(), order.tolist(), strict=True)
        return [self.rank_captions(*own) for own in each]

    def rank_captions(
        self, words: list[list[int]], total: list[float], score: list[float], order: list[int]
    ) -> list[dict[str, Any]]:
        """The best sentences for an image, no two of them alike."""
        found: dict[str, dict[str, Any]] = {}
        for at in order:
            if total[at] == -math.inf:
                continue
            said = words[at][: words[at].index(tokenizer.END)] if tokenizer.END in words[at] else words[at]
            text = tokenizer.detokenize((self.labels[word] for word in said), self.decoding.tokenizer)
            answer = {"caption": text, "probability": math.exp(total[at]), "score": score[at]}
            found.setdefault(text, answer)
        return list(found.values())[: self.decoding.num_captions]

    def decode_step(self, state: Any, words: Tensor) -> tuple[Any, Tensor]:
        """Go on by a word; what is not said are the words for begin and unknown."""
        state, scores = self.model.step(state, words)  # type: ignore[operator]
        scores[:, [tokenizer.BEGIN, tokenizer.UNKNOWN]] = -torch.inf
        return state, scores

    @torch.inference_mode()
    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The ``caption`` of each image and its ``probability``, and in ``captions`` the best ones.

        ``inputs`` are paths, PIL images or arrays as :func:`fukami.image.io.read_image` takes them. An image that
        cannot be read yields ``{"file", "error"}``.
        """
        self.model.eval()
        answers: list[dict[str, Any]] = []
        for at in range(0, len(inputs), PREDICT_BATCH_SIZE):
            sources = inputs[at : at + PREDICT_BATCH_SIZE]
            seen = [self.load_image(source) for source in sources]
            good = [each for each in seen if isinstance(each, Tensor)]
            told = iter(self.generate_captions(torch.stack(good)) if good else ())
            for source, each in zip(sources, seen, strict=True):
                named = {"file": str(source)} if isinstance(source, str | Path) else {}
                if isinstance(each, Error):
                    answers.append({**named, "error": str(each)})
                    continue
                captions = next(told)
                best = {name: captions[0][name] for name in ("caption", "probability")}
                answers.append({**named, **best, "captions": captions})
        return answers

    def load_image(self, source: Any) -> Tensor | Error:
        """The image as the network sees it, ``(C, H, W)`` uint8, or why there is none."""
        try:
            return torch.from_numpy(self.transform.read_and_transform(source))
        except Error as error:
            return error

    def draw_prediction(self, source: Any, prediction: dict[str, Any]) -> Image.Image:
        """The image with its sentence below."""
        return image_io.draw_caption(image_io.read_image(source), prediction["caption"])

    @torch.inference_mode()
    def plot_evaluation(self, batches: Any) -> "Iterator[tuple[str, Figure]]":
        """Images from the best to the worst sentence by CIDEr-D, with what a person said; the commonest sentences."""
        from fukami.captioning import plots as captioning_plots

        found: CaptioningResults = self.get_results(batches)
        numbers = list(found.captions)

        def load_example(at: int) -> captioning_plots.CaptionExample:
            image = batches.images[numbers[at]].permute(1, 2, 0).cpu().numpy()
            own = tokenizer.detokenize(batches.references[numbers[at]][0], self.decoding.tokenizer)
            return image, found.captions[numbers[at]], own

        scores = captioning_metrics.compute_cider(found.tokenized_captions, found.matched_references)
        yield from captioning_plots.plot_evaluation(scores, list(found.captions.values()), load_example)
