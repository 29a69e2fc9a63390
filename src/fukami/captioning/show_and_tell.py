"""Show and Tell: a network that sees, and one that says what (Vinyals et al. 2015)."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fukami.captioning import tokenizer
from fukami.captioning.tokenizer import TokenizerName
from fukami.engine.recipe import MAX_INPUT_SIZE, Data, DataSpec, Recipe, check_range, get_recipe
from fukami.engine.supervised import RESIZE_RATIO, OptimizerName, SupervisedRecipe, build_augmentation
from fukami.errors import UsageError

if TYPE_CHECKING:
    from fukami.captioning.data import CaptionDataset
    from fukami.captioning.loader import CaptionEvalLoader, CaptionLoader, StreamingCaptionLoader
    from fukami.captioning.task import CaptioningTask
    from fukami.engine.task import Task
    from fukami.image.transform import SquareTransform

EVAL_BATCH_SIZE = 50  # images in a batch that is only judged
MAX_BEAM_SIZE, MAX_WORDS = 100, 1000  # that a sentence may be searched with, and have


@dataclass(frozen=True, kw_only=True)
class ShowAndTell(SupervisedRecipe):
    """A sentence about an image: an encoder that sees it, and an LSTM that speaks."""

    paper: ClassVar[str] = "Vinyals et al., Show and Tell: A Neural Image Caption Generator"
    year: ClassVar[int] = 2015
    family: ClassVar[str] = "captioning"
    paper_result: ClassVar[str] = "27.7 BLEU-4 COCO"
    reproduced_result: ClassVar[str] = "12.76 BLEU-4 on 1,000 images of Flickr8k, mean of 3 seeds"

    data: DataSpec = "scenes"
    """What to learn from: scenes (embedded), flickr8k, flickr30k, coco, or a folder, an archive, a CSV or a JSON file
    of images and sentences."""
    holdout: float = 0.1
    """Share of the images, the last by name, kept for testing where the data have no parts of their own; as many
    before them are kept for validation."""
    split: Literal["test", "val"] = "test"
    """The part that is judged on."""
    tokenizer: TokenizerName = "words"
    """What sentences are cut into: words between spaces, characters, or japanese words (which needs an extra)."""
    min_word_count: int = 5
    """Times that a word must occur in the training to be known."""
    encoder: str = "googlenet"
    """The recipe of the classifier that sees."""
    encoder_options: tuple[str, ...] = ()
    """Fields of that recipe's network, such as batch_norm=true."""
    init: str = ""
    """Weights of the encoder to begin with, which then stays as it is: imagenet (torchvision's, downloaded), a file of
    a state dict, or a run's folder."""
    finetune_epochs: int = 0
    """Passes after these in which such an encoder learns on, too."""
    size: int = 224
    """Side of the images that the network sees, in pixels."""
    hidden: int = 512
    """Width of the LSTM, and of the vectors of the words."""
    dropout: float = 0.5
    """Share of what the LSTM is given and gives that is dropped in training."""
    augment: tuple[str, ...] = ("flip", "crop=0.6")
    """Changes of the training images while the encoder learns, such as flip crop=0.6 brightness; none: give the flag
    alone."""
    cache_limit: float = 4.0
    """Gigabytes of disk for what an encoder sees that stays as it is; 0: it is computed in each run."""
    epochs: int = 30
    """Passes over the sentences."""
    batch_size: int = 64
    """Sentences in an update, over all processes."""
    optimizer: OptimizerName = "adamw"
    """How gradients become updates, as torch has it; momentum and nesterov are SGD."""
    lr: float = 1e-3
    """Peak learning rate of the recipe's own batch."""
    weight_decay: float = 0.01
    """Pull of the weights towards 0; decoupled with adamw (Loshchilov and Hutter 2019)."""
    clip_norm: float = 5.0
    """Greatest norm of the gradient, to which a greater one is scaled down; 0: any."""
    eval_every: int = 5
    """Passes between two evaluations; there is one at the end in any case."""
    decoding: Literal["beam", "greedy", "sample"] = "beam"
    """The likeliest sentence that a beam search finds, the likeliest word each time, or by chance."""
    beam_size: int = 20
    """Beginnings of sentences that a beam search keeps."""
    length_penalty: float = 0.0
    """Power of a sentence's length by which its log-probability is divided before sentences are ranked; 0: not."""
    temperature: float = 1.0
    """Of chance; below 1 likely words become likelier."""
    num_captions: int = 5
    """Told for each image, the likeliest first."""
    max_words: int = 30
    """Words of a sentence at most."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        super().__post_init__()
        check_range(self, 1, math.inf, "min_word_count", "hidden", "num_captions")
        check_range(self, 1, MAX_BEAM_SIZE, "beam_size")
        check_range(self, 1, MAX_WORDS, "max_words")
        check_range(self, 0, math.inf, "finetune_epochs", "cache_limit", "length_penalty")
        check_range(self, 1e-3, math.inf, "temperature")
        check_range(self, 0, 0.99, "dropout")
        check_range(self, 4, MAX_INPUT_SIZE, "size")
        if self.finetune_epochs and not self.init:
            raise UsageError("--finetune-epochs goes on with an encoder that began with weights; give them with --init")
        mixed = {"mixup", "cutmix"} & {word.partition("=")[0] for word in self.augment}
        if mixed:
            raise UsageError(f"{' and '.join(sorted(mixed))} would need a sentence for a mixture; leave it out")

    @property
    def is_encoder_frozen(self) -> bool:
        """Whether the encoder stays as it is."""
        return bool(self.init) and not self.finetune_epochs

    @property
    def encoder_recipe(self) -> Any:
        """The recipe of the classifier that sees.

        Raises:
            UsageError: there is no such recipe, or it is of something else, or its network has no such fields.
        """
        kind = get_recipe(self.encoder)
        if not hasattr(kind, "as_encoder"):
            raise UsageError(f"the encoder should be a classifier such as googlenet or resnet50, not {self.encoder}")
        return kind.as_encoder(self.encoder_options, self.size)

    def build_transform(self) -> "SquareTransform":
        """How an image is brought to the form that the encoder sees."""
        from fukami.image.transform import SquareTransform

        own = self.encoder_recipe.build_transform(())
        return SquareTransform(channels=3, size=self.size, mean=own.mean, std=own.std)

    def load_data(self) -> Data:
        """The data set, in memory; the labels are the words."""
        learned, judged = self.load_splits()
        labels = tokenizer.build_vocabulary((words for own in learned.captions for words in own), self.min_word_count)
        return Data(self.build_train_loader(learned, labels), self.build_eval_loader(judged, learned), labels)

    def load_eval_data(self) -> "CaptionEvalLoader":
        """The part that is judged on alone; of the training only its sentences are read."""
        learned, judged = self.load_splits()
        return self.build_eval_loader(judged, learned)

    def load_splits(self) -> "tuple[CaptionDataset, CaptionDataset]":
        """What there is to learn from and to judge on, each sentence cut into words."""
        from fukami.captioning import data as captioning_data

        learned, val, test = captioning_data.load_dataset(self.data, self.holdout)
        some = learned, val if self.split == "val" else test
        learned, judged = (
            dataclasses.replace(
                told,
                captions=tuple(
                    tuple(tokenizer.tokenize(text, self.tokenizer) for text in own) for own in told.captions
                ),
            )
            for told in some
        )
        return learned, judged

    def build_train_loader(
        self, split: "CaptionDataset", labels: tuple[str, ...]
    ) -> "CaptionLoader | StreamingCaptionLoader":
        """Batches of sentences and their images to train on: from memory where these fit, streamed where not."""
        import torch

        from fukami.captioning.loader import CaptionLoader, StreamingCaptionLoader, pad_sequences
        from fukami.data import augment

        asked = () if self.is_encoder_frozen else self.augment
        crop = augment.parse_strengths(asked).get("crop")
        prepare = self.build_transform()
        larger = dataclasses.replace(prepare, size=round(self.size * RESIZE_RATIO)) if crop else prepare
        streamed = split.is_on_disk and len(split) * larger.nbytes > self.memory_limit * 1e9
        if not streamed:
            split, images = split.load_images(larger, self.max_broken)
        known = {label: number for number, label in enumerate(labels)}
        words = [[tokenizer.encode_words(each, known) for each in own] for own in split.captions]
        of = torch.repeat_interleave(torch.arange(len(split)), torch.tensor([len(own) for own in words]))
        every = pad_sequences([each for own in words for each in own], self.max_words + 2)
        if streamed:
            asked = tuple(word for word in asked if word.partition("=")[0] != "crop")  # which decoding does
        augmentation = build_augmentation(asked, prepare, labels)
        if streamed:
            return StreamingCaptionLoader(split.items, every, of, labels, prepare, batch_size=self.batch_size,
                                          seed=self.seed, augment=augmentation, min_area=crop,
                                          max_broken=self.max_broken)  # fmt: skip
        return CaptionLoader(images, every, of, labels, batch_size=self.batch_size, seed=self.seed,
                             augment=augmentation, size=self.size)  # fmt: skip

    def build_eval_loader(self, split: "CaptionDataset", train: "CaptionDataset") -> "CaptionEvalLoader":
        """The images to judge on, and what people said of them."""
        from fukami.captioning.loader import CaptionEvalLoader

        told, images = split.load_images(self.build_transform(), self.max_broken)
        before = {" ".join(words) for own in train.captions for words in own}
        return CaptionEvalLoader(images, told.captions, before, batch_size=EVAL_BATCH_SIZE)

    def build_task(self, labels: tuple[str, ...]) -> "CaptioningTask":
        """A network that speaks with these words."""
        from fukami import models
        from fukami.captioning.task import CaptioningTask, DecodingConfig

        model = models.show_and_tell(
            self.encoder_recipe.build_model(1), len(labels), hidden=self.hidden, dropout=self.dropout
        )
        speech = DecodingConfig(
            decoding=self.decoding,
            beam_size=self.beam_size,
            length_penalty=self.length_penalty,
            temperature=self.temperature,
            num_captions=self.num_captions,
            max_words=self.max_words,
            tokenizer=self.tokenizer,
            seed=self.seed,
        )
        regime = self.get_training_options()
        regime["epochs"] = self.finetune_epochs or self.epochs
        return CaptioningTask(
            model,
            labels,
            self.build_transform(),
            speech,
            frozen_encoder=self.is_encoder_frozen,
            cache_limit=self.cache_limit,
            **regime,
        )

    def initialize_task(self, task: "Task") -> None:
        """Put the weights of ``init`` into the encoder, or those of a run that speaks into all of the network."""
        from fukami.engine import pretrained

        if self.init:
            labels = getattr(task, "labels", ())
            pretrained.initialize_captioner(task.model, self.encoder_recipe.architecture, self.init, labels)

    def stages(self, folder: Path) -> dict[str, Recipe]:
        """The training on an encoder that stays as it is, before it learns on."""
        return {"frozen": dataclasses.replace(self, finetune_epochs=0)} if self.finetune_epochs else {}

    def continue_from_stage(self, task: "Task", run: Path) -> None:
        """Go on with what was learned on the encoder as it was."""
        dataclasses.replace(self, init=str(run)).initialize_task(task)
