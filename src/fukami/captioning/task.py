"""Captioning: what would a person say of the picture?"""

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
FEATURES_VERSION = 2  # of how pictures are looked at: features that were kept with another are not read
PREDICT_BATCH_SIZE = 32  # pictures that are answered at once


@dataclass(frozen=True)
class DecodingConfig:
    """How a network speaks.

    Attributes:
        decoding: the likeliest sentence that a beam search finds, the likeliest word each time, or by chance.
        beams: beginnings of sentences that a beam search keeps.
        length: power of a sentence's length by which its log-probability is divided for the ranking; 0: not divided.
        temperature: of chance; below 1 likely words become likelier.
        sentences: that are told for each picture, the likeliest first.
        longest: words of a sentence at most.
        tokens: as for :func:`fukami.captioning.tokenizer.tokenize`.
        seed: of chance.
    """

    decoding: Literal["beam", "greedy", "sample"] = "beam"
    beams: int = 20
    length: float = 0.0
    temperature: float = 1.0
    sentences: int = 5
    longest: int = 30
    tokens: tokenizer.TokenizerName = "words"
    seed: int = 0


@dataclass(frozen=True)
class CaptioningResults:
    """What was said of pictures, and what people said of them.

    Attributes:
        sentences: by the number of the picture, in order.
        tokens: what they are cut into.
        references: the sentences of people for each picture, as lists of words.
        learned: the sentences of the training, their words joined by spaces.
    """

    sentences: dict[int, str]
    tokens: tokenizer.TokenizerName
    references: Sequence[Sequence[Sequence[str]]]
    learned: set[str]

    @property
    def words(self) -> list[list[str]]:
        """The words of each sentence."""
        return [tokenizer.tokenize(sentence, self.tokens) for sentence in self.sentences.values()]

    @property
    def own(self) -> list[Sequence[Sequence[str]]]:
        """What people said of these pictures."""
        return [self.references[number] for number in self.sentences]

    def metrics(self) -> dict[str, Any]:
        """Those of :func:`fukami.captioning.metrics.evaluate_captions`."""
        return dict(captioning_metrics.evaluate_captions(self.words, self.own, self.learned))


class CaptioningTask(CachedEvaluationTask):
    """The likelihood of the words of a sentence, one after another, given the picture.

    Args:
        model: as :class:`fukami.models.show_and_tell.ShowAndTell` is called.
        labels: the words, those for end, begin and unknown first.
        prepare: a picture of any size as the network sees it; it travels with the task.
        speech: how it speaks.
        frozen: the encoder stays as it is; what it sees is computed once, and kept on the disk.
        cache: gigabytes of disk that this may take; 0: it is not kept.
        regime: optimizer, decay, epochs, judge_every, accumulate and clip, as for :class:`fukami.Task`.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        prepare: SquareTransform,
        speech: DecodingConfig,
        *,
        frozen: bool = False,
        cache: float = 0.0,
        **regime: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(model, **regime)
        self.labels, self.prepare, self.speech, self.frozen, self.cache = labels, prepare, speech, frozen, cache

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        if self.frozen:
            self.model.encoder.requires_grad_(False)
        super().setup(runtime)
        mean, std = (255 * torch.tensor(value).view(-1, 1, 1) for value in (self.prepare.mean, self.prepare.std))
        self.mean, self.std = mean.to(runtime.device), std.to(runtime.device)

    def interface(self) -> ModelSignature:
        """Refuse: a sentence is found by a search, and not by a network alone."""
        raise UsageError("sentences are found by a search, which another program does not have: keep the run as it is")

    def batches(self, train: Any) -> Iterable[Batch]:
        """Pass after pass over the loader, once the encoder has seen its pictures if it stays as it is."""
        if self.frozen:
            train.replace(torch.stack([self.seen(train), self.seen(train, mirrored=True)], 1))
        return super().batches(train)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean of minus the log-probability of each word, ``<end>`` included, over all processes (equation 13).

        ``batch`` is pictures ``(N, C, H, W)`` in 0..255, or features ``(N, F)``, and words ``(N, T)``.
        """
        pictures, words = batch
        scores = self.replica(self.normalised(pictures), words[:, :-1].clamp(min=0))
        targets = words[:, 1:]
        loss = F.cross_entropy(scores.flatten(0, 1).float(), targets.flatten(), ignore_index=-1, reduction="none").sum()
        there = targets >= 0
        right = ((scores.detach().argmax(2) == targets) & there).sum()
        count = self.runtime.sum(there.sum().float()) / self.runtime.world
        return loss / count, {"accuracy": right / count}

    def normalised(self, pictures: Tensor) -> Tensor:
        """Pictures ``(N, C, H, W)`` in 0..255 as the network takes them; features as they are."""
        kind = next(self.model.parameters()).dtype
        if pictures.ndim == 2:
            return pictures.to(kind)
        return ((pictures - self.mean) / self.std).to(kind).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def seen(self, loader: Any, *, mirrored: bool = False) -> Tensor:
        """What the encoder sees in each picture of a loader ``(P, F)``, from the disk where that is known.

        It is kept for the pictures that are looked at together, as how many these are decides how sums are rounded.
        """
        settings = f"show and tell {FEATURES_VERSION} {self.prepare} {self.runtime.precision} {mirrored}"
        kept = FeatureCache(self.model.encoder, settings, self.cache) if self.cache else None  # type: ignore[arg-type]
        found: list[Tensor] = []
        for pictures in loader.once():
            for some in pictures.split(PREDICT_BATCH_SIZE):
                path = kept.path(some, torch.zeros(0)) if kept else None
                features = kept.read(path) if kept and path else None
                if features is None or len(features) != len(some):
                    some = some.to(self.runtime.device)
                    with self.runtime.autocast():
                        features = self.model.see(self.normalised(some.flip(3) if mirrored else some)).float().cpu()  # type: ignore[operator]
                    if kept and path:
                        kept.write(path, features)
                found.append(features)
        return torch.cat(found).to(self.runtime.device)

    def judge(self, batches: Any) -> CaptioningResults:
        """The best sentence for each picture of ``batches``, over all processes."""
        if self.frozen and batches.features is None:
            batches.replace(self.seen(batches).unsqueeze(1))
        said: dict[int, str] = {}
        with self.answering():
            for pictures, numbers in batches:
                if len(numbers):
                    said |= zip(numbers.tolist(), (own[0]["caption"] for own in self.told(pictures)), strict=True)
        for other in self.runtime.gather(said):
            said |= other
        if not said:
            raise Error("there is no picture to judge on; give data with a test part, or a larger --holdout")
        return CaptioningResults(dict(sorted(said.items())), self.speech.tokens, batches.said, batches.learned)

    def told(self, pictures: Tensor) -> list[list[dict[str, Any]]]:
        """Sentences for pictures ``(N, C, H, W)`` in 0..255 or features ``(N, F)``, the likeliest first.

        Each is a ``caption``, its ``probability``, and the ``score`` by which it is ranked: the log-probability,
        divided by a power of the words.
        """
        speech, model = self.speech, self.model
        seen = self.normalised(pictures.to(self.runtime.device))
        with half_precision.enable_float32_fallback(model):
            state = model.begin(model.see(seen) if seen.ndim == 4 else seen)  # type: ignore[operator]
            how: dict[str, Any] = {"longest": speech.longest, "begin": tokenizer.BEGIN, "end": tokenizer.END}
            if speech.decoding == "sample":
                generator = torch.Generator().manual_seed(speech.seed)
                how |= {"temperature": speech.temperature, "generator": generator}
                words, total, lengths = beam_search.sample(self.speak, state, draws=speech.sentences, **how)
            else:
                beams = 1 if speech.decoding == "greedy" else speech.beams
                words, total, lengths = beam_search.search(self.speak, state, beams=beams, **how)
        score = total / lengths.float() ** speech.length
        order = score.argsort(dim=1, descending=True, stable=True)
        each = zip(words.tolist(), total.tolist(), score.tolist(), order.tolist(), strict=True)
        return [self.listed(*own) for own in each]

    def listed(
        self, words: list[list[int]], total: list[float], score: list[float], order: list[int]
    ) -> list[dict[str, Any]]:
        """The best sentences for a picture, no two of them alike."""
        found: dict[str, dict[str, Any]] = {}
        for at in order:
            if total[at] == -math.inf:
                continue
            said = words[at][: words[at].index(tokenizer.END)] if tokenizer.END in words[at] else words[at]
            text = tokenizer.detokenize((self.labels[word] for word in said), self.speech.tokens)
            answer = {"caption": text, "probability": math.exp(total[at]), "score": score[at]}
            found.setdefault(text, answer)
        return list(found.values())[: self.speech.sentences]

    def speak(self, state: Any, words: Tensor) -> tuple[Any, Tensor]:
        """Go on by a word; what is not said are the words for begin and unknown."""
        state, scores = self.model.step(state, words)  # type: ignore[operator]
        scores[:, [tokenizer.BEGIN, tokenizer.UNKNOWN]] = -torch.inf
        return state, scores

    @torch.inference_mode()
    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """The ``caption`` of each picture and its ``probability``, and in ``captions`` the best ones.

        ``inputs`` are paths, PIL pictures or arrays as :func:`fukami.image.io.read_image` takes them. A picture that cannot
        be read yields ``{"file", "error"}``.
        """
        self.model.eval()
        answers: list[dict[str, Any]] = []
        for at in range(0, len(inputs), PREDICT_BATCH_SIZE):
            sources = inputs[at : at + PREDICT_BATCH_SIZE]
            seen = [self.open(source) for source in sources]
            good = [each for each in seen if isinstance(each, Tensor)]
            told = iter(self.told(torch.stack(good)) if good else ())
            for source, each in zip(sources, seen, strict=True):
                named = {"file": str(source)} if isinstance(source, str | Path) else {}
                if isinstance(each, Error):
                    answers.append({**named, "error": str(each)})
                    continue
                captions = next(told)
                best = {name: captions[0][name] for name in ("caption", "probability")}
                answers.append({**named, **best, "captions": captions})
        return answers

    def open(self, source: Any) -> Tensor | Error:
        """The picture as the network sees it, ``(C, H, W)`` uint8, or why there is none."""
        try:
            return torch.from_numpy(self.prepare.open(source))
        except Error as error:
            return error

    def draw(self, source: Any, answer: dict[str, Any]) -> Image.Image:
        """The picture with its sentence below."""
        return image_io.draw_caption(image_io.read_image(source), answer["caption"])

    @torch.inference_mode()
    def figures(self, batches: Any) -> "Iterator[tuple[str, Figure]]":
        """Pictures from the best to the worst sentence by CIDEr-D, with what a person said; the commonest sentences."""
        from fukami.captioning import plots as captioning_plots

        found: CaptioningResults = self.judged_last(batches)
        numbers = list(found.sentences)

        def shown(at: int) -> captioning_plots.CaptionExample:
            picture = batches.pictures[numbers[at]].permute(1, 2, 0).cpu().numpy()
            own = tokenizer.detokenize(batches.said[numbers[at]][0], self.speech.tokens)
            return picture, found.sentences[numbers[at]], own

        scores = captioning_metrics.compute_cider(found.words, found.own)
        yield from captioning_plots.plot_evaluation(scores, list(found.sentences.values()), shown)
