"""Show and Tell recipe: image captioning with a CNN encoder and an LSTM decoder (Vinyals et al. 2015)."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from fukami.captioning import tokenizer
from fukami.captioning.tokenizer import SPECIAL_TOKENS, TokenizerName
from fukami.engine.recipe import MAX_INPUT_SIZE, Data, Recipe, check_range, get_built_in_recipe
from fukami.engine.supervised import RESIZE_RATIO, OptimizerName, SupervisedRecipe, build_augmentation
from fukami.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from fukami.captioning.data import CaptionDataset
    from fukami.captioning.loader import CaptionEvalLoader, CaptionLoader, StreamingCaptionLoader
    from fukami.captioning.task import CaptioningTask
    from fukami.image.transform import SquareTransform

EVAL_BATCH_SIZE = 50
MAX_BEAM_SIZE, MAX_TOKENS, MAX_CAPTIONS = 100, 1000, 1000  # upper bounds of the fields


class EncoderRecipe(Protocol):
    """Recipe of a classifier, whose network without its head is the encoder."""

    @property
    def architecture(self) -> str:
        """Name of the network's function in :mod:`fukami.models`."""

    def build_model(self, num_classes: int) -> "nn.Module":
        """Build the network."""

    def build_transform(self, labels: tuple[str, ...]) -> "SquareTransform":
        """Build the image preprocessing."""


@dataclass(frozen=True, kw_only=True)
class ShowAndTell(SupervisedRecipe):
    """Show and Tell: an image encoder and an LSTM decoder that generates a caption (Vinyals et al. 2015).

    Result: 12.76 BLEU-4 on a sample of Flickr8k (800 training and 100 test images), mean of 3 seeds, 54 seconds each on
    2 cores of an AMD EPYC. The paper: 27.7 BLEU-4 on COCO.

    Example:
        fukami train show-and-tell --data flickr8k-1000 --encoder vgg16 --init
            vgg16_features_imagenet.safetensors --epochs 10
    """

    data: str = "scenes"
    """Dataset: scenes (bundled), flickr8k, flickr30k, coco, or a folder, an archive, a CSV or a JSON file of images
    and captions."""
    val_fraction: float | None = None
    """Fraction of the training images, the last by name, used for validation if the dataset has no validation split; by
    default 0.1, and at most 5,000 images."""
    tokenizer: TokenizerName = "words"
    """Tokenizer of the captions: words (between spaces), characters, or japanese (words; needs the extra japanese)."""
    min_word_count: int = 5
    """Minimum number of occurrences of a word in the training captions; rarer words are unknown."""
    encoder: str = "googlenet"
    """Encoder: the recipe of a classifier."""
    encoder_options: tuple[str, ...] = ()
    """Fields of the encoder's recipe, such as batch_norm=true."""
    init: str = ""
    """Initial weights of the encoder, which is then frozen: imagenet (torchvision's, downloaded), a state-dict file or
    a run's folder."""
    finetune_epochs: int = 0
    """Number of further epochs in which the encoder with initial weights is trained, too."""
    size: int = 224
    """Input size: side of the square input image, in pixels."""
    hidden: int = 512
    """Number of LSTM units, and size of the word embeddings."""
    dropout: float = 0.5
    """Dropout probability of the LSTM's inputs and outputs."""
    augment: tuple[str, ...] = ("flip", "crop=0.6")
    """Data augmentation of the training images while the encoder is trained, such as flip crop=0.6 brightness; the flag
    without a value disables it."""
    cache_limit: float = 4.0
    """Maximum size of the disk cache of a frozen encoder's features, in GB; 0 disables it."""
    epochs: int = 30
    """Number of epochs over the captions."""
    batch_size: int = 64
    """Global batch size in captions, over all processes."""
    optimizer: OptimizerName = "adamw"
    """Optimizer; momentum and nesterov are SGD."""
    lr: float = 1e-3
    """Peak learning rate, for the recipe's default batch size."""
    weight_decay: float = 0.01
    """Weight decay; decoupled with adamw (Loshchilov and Hutter 2019)."""
    clip_norm: float = 5.0
    """Maximum gradient norm (gradient clipping); 0 disables it."""
    eval_every: int = 5
    """Evaluation interval in epochs; the last epoch is always evaluated."""
    decoding: Literal["beam", "greedy", "sample"] = "beam"
    """Decoding of captions: beam (beam search), greedy (the most likely token at each step) or sample (random)."""
    beam_size: int = 20
    """Beam size: number of partial captions that beam search keeps."""
    length_penalty: float = 0.0
    """Length penalty: captions are ranked by log-probability / length ** length_penalty; 0 disables it."""
    temperature: float = 1.0
    """Softmax temperature of sampling; below 1, likely tokens become more likely."""
    num_captions: int = 5
    """Number of captions per image, the most likely first; at most the beam size, and 1 with greedy decoding."""
    max_tokens: int = 30
    """Maximum number of tokens of a caption: words or characters, depending on the tokenizer."""

    def __post_init__(self) -> None:
        """Check the ranges of the fields."""
        super().__post_init__()
        check_range(self, 1, math.inf, "min_word_count", "hidden")
        check_range(self, 1, MAX_CAPTIONS, "num_captions")
        check_range(self, 1, MAX_BEAM_SIZE, "beam_size")
        check_range(self, 1, MAX_TOKENS, "max_tokens")
        check_range(self, 0, math.inf, "finetune_epochs", "cache_limit", "length_penalty")
        check_range(self, 1e-3, math.inf, "temperature")
        check_range(self, 0, 0.99, "dropout")
        check_range(self, 4, MAX_INPUT_SIZE, "size")
        if self.finetune_epochs and not self.init:
            raise UsageError("--finetune-epochs needs an encoder with initial weights; specify them with --init")
        if self.activation_checkpointing and self.is_encoder_frozen:
            raise UsageError(
                "--activation-checkpointing is for the training of the encoder, which --init freezes; omit it, or set "
                "--finetune-epochs"
            )
        mixing = {"mixup", "cutmix"} & {name.partition("=")[0] for name in self.augment}
        if mixing:
            raise UsageError(f"{' and '.join(sorted(mixing))} would need a caption for a mixture; omit it")

    @property
    def is_encoder_frozen(self) -> bool:
        """True if the encoder is frozen."""
        return bool(self.init) and not self.finetune_epochs

    @property
    def encoder_recipe(self) -> EncoderRecipe:
        """Recipe of the encoder.

        Raises:
            UsageError: the recipe is unknown or no classifier, or it has no such fields.
        """
        kind = get_built_in_recipe(self.encoder)  # a run names its encoder, and may be from anybody
        if not hasattr(kind, "as_encoder"):
            raise UsageError(f"the encoder should be a classifier such as googlenet or resnet50, not {self.encoder}")
        encoder_recipe: EncoderRecipe = kind.as_encoder(self.encoder_options, self.size)
        return encoder_recipe

    def build_transform(self) -> "SquareTransform":
        """Build the preprocessing of images, with the encoder's mean and standard deviation."""
        from fukami.image.transform import SquareTransform

        transform = self.encoder_recipe.build_transform(())
        return SquareTransform(channels=3, size=self.size, mean=transform.mean, std=transform.std)

    def load_data(self) -> Data:
        """Load the dataset; its labels are the vocabulary."""
        train, val, test = self.load_splits()
        labels = tokenizer.build_vocabulary(
            (tokens for captions in train.captions for tokens in captions), self.min_word_count
        )
        return Data(
            self.build_train_loader(train, labels),
            self.build_eval_loader(val, train),
            labels,
            self.build_eval_loader(test, train),
        )

    def load_eval_data(self) -> Data:
        """Load only the test split, or else the validation split; no other image is read."""
        train, val, test = self.load_splits()
        val_loader = () if len(test) else self.build_eval_loader(val, train)
        return Data((), val_loader, (), self.build_eval_loader(test, train))

    def load_splits(self) -> "tuple[CaptionDataset, CaptionDataset, CaptionDataset]":
        """Load the training, the validation and the test split, with tokenized captions."""
        from fukami.captioning import data as captioning_data

        splits = captioning_data.load_dataset(self.dataset, self.val_fraction, images=self.images)
        train, val, test = (
            dataclasses.replace(
                split,
                captions=tuple(
                    tuple(tokenizer.tokenize(text, self.tokenizer) for text in texts) for texts in split.captions
                ),
            )
            for split in splits
        )
        return train, val, test

    def build_train_loader(
        self, split: "CaptionDataset", labels: tuple[str, ...]
    ) -> "CaptionLoader | StreamingCaptionLoader":
        """Build the training loader: images in memory up to ``memory_limit``, streamed otherwise."""
        import torch

        from fukami.captioning.loader import CaptionLoader, StreamingCaptionLoader, pad_sequences
        from fukami.data import augment
        from fukami.data.streaming import count_value_bytes

        augmentations = () if self.is_encoder_frozen else self.augment
        crop = augment.parse_transform_values(augmentations).get("crop")
        transform = self.build_transform()
        resized = dataclasses.replace(transform, size=round(self.size * RESIZE_RATIO)) if crop else transform
        streamed = split.is_on_disk and (
            len(split) * resized.nbytes * max(map(count_value_bytes, split.items[:1]), default=1)
            > self.memory_limit * 1e9
        )
        if not streamed:
            split, images = split.load_images(resized, self.max_unreadable)
        indices = {label: index for index, label in enumerate(labels)}
        encoded = [[tokenizer.encode_tokens(tokens, indices) for tokens in captions] for captions in split.captions]
        counts = torch.tensor([len(captions) for captions in encoded])
        image_indices = torch.repeat_interleave(torch.arange(len(split)), counts)
        token_indices = pad_sequences([tokens for captions in encoded for tokens in captions], self.max_tokens + 2)
        if streamed:
            # the decoder crops
            augmentations = tuple(name for name in augmentations if name.partition("=")[0] != "crop")
        augmentation = build_augmentation(augmentations, transform, labels)
        if streamed:
            return StreamingCaptionLoader(split.items, token_indices, image_indices, labels, transform,
                                          batch_size=self.batch_size, seed=self.seed, augmentation=augmentation,
                                          min_area=crop, max_unreadable=self.max_unreadable)  # fmt: skip
        return CaptionLoader(images, token_indices, image_indices, labels, batch_size=self.batch_size, seed=self.seed,
                             augmentation=augmentation, size=self.size)  # fmt: skip

    def build_eval_loader(self, split: "CaptionDataset", train: "CaptionDataset") -> "CaptionEvalLoader | tuple[()]":
        """Build the evaluation loader of images and their reference captions; it is empty for an empty split."""
        from fukami.captioning.loader import CaptionEvalLoader

        if not len(split):
            return ()
        readable, images = split.load_images(self.build_transform(), self.max_unreadable)
        training_captions = {" ".join(tokens) for captions in train.captions for tokens in captions}
        return CaptionEvalLoader(images, readable.captions, training_captions, batch_size=EVAL_BATCH_SIZE)

    def build_task(self, labels: tuple[str, ...]) -> "CaptioningTask":
        """Build the task for the vocabulary ``labels``."""
        from fukami import models
        from fukami.captioning.task import CaptioningTask, DecodingConfig

        if labels[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise ValueError(f"the vocabulary does not begin with {', '.join(SPECIAL_TOKENS)}")
        model = models.show_and_tell(
            self.encoder_recipe.build_model(1), len(labels), hidden=self.hidden, dropout=self.dropout
        )
        decoding_config = DecodingConfig(
            strategy=self.decoding,
            beam_size=self.beam_size,
            length_penalty=self.length_penalty,
            temperature=self.temperature,
            num_captions=self.num_captions,
            max_tokens=self.max_tokens,
            tokenizer=self.tokenizer,
            seed=self.seed,
        )
        options = self.get_training_options()
        options["epochs"] = self.finetune_epochs or self.epochs
        return CaptioningTask(
            model,
            labels,
            self.build_transform(),
            decoding_config,
            frozen_encoder=self.is_encoder_frozen,
            cache_limit=self.cache_limit,
            activation_checkpointing=self.activation_checkpointing,
            **options,
        )

    def initialize_task(self, task: "CaptioningTask") -> None:
        """Load the weights of ``init``: a classifier's into the encoder, a captioning run's into the whole network."""
        from fukami.engine import pretrained

        if self.init:
            pretrained.initialize_captioner(task.model, self.encoder_recipe.architecture, self.init, task.labels)

    def stages(self, folder: Path) -> dict[str, Recipe]:
        """Return the stage with the frozen encoder, before the encoder is fine-tuned."""
        if not self.finetune_epochs:
            return {}
        return {"frozen": dataclasses.replace(self, finetune_epochs=0, activation_checkpointing=False)}

    def continue_from_stage(self, task: "CaptioningTask", run: Path) -> None:
        """Continue from the network trained with the frozen encoder."""
        dataclasses.replace(self, init=str(run)).initialize_task(task)
