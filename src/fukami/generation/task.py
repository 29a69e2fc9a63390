"""Training, evaluation and prediction of generative adversarial networks (GANs)."""

import copy
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from fukami.data.loader import Batch, BatchLoader, StateDict
from fukami.engine.prediction import Prediction
from fukami.engine.task import Metrics, Task, TrainingOptions, apply_gradients
from fukami.generation import metrics as generation_metrics
from fukami.image import draw as image_draw
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform
from fukami.models.dcgan import Discriminator, Generator
from fukami.progress import track
from fukami.quantization import half_precision

if TYPE_CHECKING:
    from fukami.engine.runtime import Runtime
    from fukami.engine.task import FigureContent
    from fukami.generation.features import FeatureExtractor

BATCH_SIZE = 100  # images per batch in inference
NUM_PREVIEW_IMAGES = 64  # samples in the preview grid
MAX_FRAMES = 48  # maximum number of preview grids kept
EMA_WARMUP_CONSTANT = 10  # c in the update weight max(c / (c + step), 1 - ema_decay)
DISCRIMINATOR_ACCURACY_MOMENTUM = 0.02  # weight of a step in the moving average of the discriminator accuracy
MAX_DUPLICATE_FRACTION, MAX_DISCRIMINATOR_ACCURACY = 0.2, 0.98  # fractions above which a warning is logged
WEBP_QUALITY = 85  # quality of the stored preview grids

logger = logging.getLogger(__name__)


class GANTask(Task):
    """Adversarial training of a generator and a discriminator (Goodfellow et al. 2014, equation 1).

    Args:
        generator: maps latent vectors ``(N, latent_dim)`` in -1..1 to images ``(N, C, H, W)`` in -1..1.
        discriminator: maps such images to scores ``(N,)``, positive for real images.
        transform: preprocessing of the discriminator's input images.
        load_feature_extractor: loads the feature extractor of the evaluation.
        hinge_loss: use the hinge loss (Lim and Ye 2017) instead of cross entropy.
        ema_decay: decay of the exponential moving average of the generator, which then generates the samples (Yazici et
            al. 2019); 0 disables it.
        options: training options, as for :class:`fukami.Task`.
    """

    metric_mode = "min"
    supports_cuda_graph = True
    model: Generator
    discriminator: nn.Module
    transform: SquareTransform

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        transform: SquareTransform,
        load_feature_extractor: "Callable[[], FeatureExtractor]",
        *,
        hinge_loss: bool = False,
        ema_decay: float = 0.0,
        **options: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(generator, **options)
        self.discriminator = discriminator
        self.transform = transform
        self.load_feature_extractor = load_feature_extractor
        self.hinge_loss, self.ema_decay = hinge_loss, ema_decay
        self.latent_dim = generator.latent_dim
        self.ema_generator = copy.deepcopy(generator) if ema_decay else generator
        self.preview_history = PreviewHistory()
        # batches of real images, the extractor and their features
        self.cached_real_features: tuple[Iterable[Batch], FeatureExtractor, list[Tensor]] | None = None

    def setup(self, runtime: "Runtime") -> None:
        """Move the networks to the device."""
        super().setup(runtime)
        self.ema_generator = runtime.move_to_device(self.ema_generator)
        self.discriminator = runtime.move_to_device(self.discriminator)

    def prepare_training(self) -> None:
        """Create an optimizer for each network."""
        super().prepare_training()
        runtime = self.runtime
        self.ddp_discriminator = runtime.replicate(self.discriminator)
        self.training_discriminator: Callable[..., Any] = self.ddp_discriminator
        self.discriminator_optimizer = runtime.prepare_optimizer(self.make_optimizer(self.discriminator.parameters()))
        self.discriminator_scaler = runtime.build_grad_scaler()
        self.optimizers.append(self.discriminator_optimizer)
        self.statistics = TrainingStatistics().to(runtime.device)
        self.state |= {
            "discriminator": self.discriminator,
            "discriminator optimizer": self.discriminator_optimizer,
            "discriminator scaler": self.discriminator_scaler,
            "statistics": self.statistics,
            "preview history": self.preview_history,
        }
        if self.ema_decay:
            self.state["ema generator"] = self.ema_generator

    def compile(self) -> None:
        """Compile the networks for training."""
        super().compile()
        self.training_discriminator = self.runtime.compile(self.ddp_discriminator)

    def get_modules(self) -> dict[str, nn.Module]:
        """Return the generator used for inference and the discriminator, by name."""
        return {"model": self.ema_generator, "discriminator": self.discriminator}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Replace the networks for inference."""
        super().replace_modules(modules)
        self.ema_generator = self.model
        self.discriminator = modules["discriminator"]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Do a step of the discriminator, then a step of the generator against the new discriminator.

        ``batch`` is images ``(N, C, H, W)`` in 0..255 and their targets, which are ignored.
        """
        clock = self.runtime.clock
        real = self.normalize_images(batch[0])
        with clock("forward"), self.runtime.autocast():
            generated = self.training_model(self.sample_training_latents(len(real)))
            with self.cache_normalized_weights():
                real_scores, generated_scores = (
                    self.training_discriminator(real).float(),
                    self.training_discriminator(generated.detach()).float(),
                )
        discriminator_loss = self.compute_discriminator_loss(real_scores, generated_scores)
        with clock("backward"):
            self.discriminator_optimizer.zero_grad()
            torch.autograd.backward(self.discriminator_scaler.scale(discriminator_loss))
        with clock("optimizer"):
            apply_gradients(self.discriminator_optimizer, self.discriminator_scaler, self.clip_norm)
        with clock("forward"), self.runtime.autocast(), self.cache_normalized_weights():
            scores = self.discriminator(generated).float()
        generator_loss = -scores.mean() if self.hinge_loss else F.softplus(-scores).mean()
        with clock("backward"):
            self.optimizer.zero_grad()
            # in two parts, since the gradients of the discriminator's weights are not needed
            (gradient,) = torch.autograd.grad(self.scaler.scale(generator_loss), generated)
            generated.backward(gradient)
        with clock("optimizer"):
            apply_gradients(self.optimizer, self.scaler, self.clip_norm)
            self.update_average()
        accuracy = torch.cat([real_scores.detach() > 0, generated_scores.detach() < 0]).float().mean()
        self.statistics.discriminator_accuracy.lerp_(accuracy, DISCRIMINATOR_ACCURACY_MOMENTUM)
        metrics = {
            "discriminator_loss": discriminator_loss,
            "generator_loss": generator_loss,
            "discriminator_accuracy": accuracy,
        }
        return {name: value.detach() for name, value in metrics.items()}

    def compute_discriminator_loss(self, real_scores: Tensor, generated_scores: Tensor) -> Tensor:
        """Compute the discriminator loss from its scores of real and of generated images, ``(N,)`` each."""
        if self.hinge_loss:
            return (1 - real_scores).relu().mean() + (1 + generated_scores).relu().mean()
        return F.softplus(-real_scores).mean() + F.softplus(generated_scores).mean()

    def sample_training_latents(self, count: int) -> Tensor:
        """Sample latent vectors ``(count, latent_dim)``: this process's rows of those for all processes."""
        rank, world = self.runtime.rank, self.runtime.world_size
        return 2 * torch.rand(count * world, self.latent_dim, device=self.runtime.device)[rank::world] - 1

    @contextmanager
    def cache_normalized_weights(self) -> Iterator[None]:
        """Compute spectrally normalized weights of the discriminator once, in float32, and cache them."""
        with parametrize.cached():
            with torch.autocast(self.runtime.device.type, enabled=False):
                for layer in self.discriminator.modules():
                    if parametrize.is_parametrized(layer):
                        layer.weight  # noqa: B018  fills the cache
            yield

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the moving average of the generator, with a lower decay in the first steps."""
        if self.ema_decay:
            count = self.statistics.steps.add_(1)
            averages, values = (
                [value for value in network.state_dict().values() if value.is_floating_point()]
                for network in (self.ema_generator, self.model)
            )
            update_weight = (EMA_WARMUP_CONSTANT / (EMA_WARMUP_CONSTANT + count)).clamp(min=1 - self.ema_decay)
            change = torch._foreach_sub(values, averages)
            torch._foreach_mul_(change, update_weight)
            torch._foreach_add_(averages, change)

    def normalize_images(self, images: Tensor) -> Tensor:
        """Scale images ``(N, C, H, W)`` from 0..255 to -1..1, the discriminator's input."""
        dtype = next(self.discriminator.parameters()).dtype
        return (images.float() / 127.5 - 1).to(dtype).contiguous(memory_format=torch.channels_last)

    def sample_latents(self, count: int, seed: int = 0) -> Tensor:
        """Sample latent vectors ``(count, latent_dim)`` that depend only on the seed, on any device."""
        return 2 * torch.rand(count, self.latent_dim, generator=torch.Generator().manual_seed(seed)) - 1

    @torch.inference_mode()
    def generate_images(self, latents: Tensor) -> Tensor:
        """Generate images ``(N, C, H, W)`` uint8 from latent vectors ``(N, latent_dim)`` in -1..1."""
        dtype = next(self.ema_generator.parameters()).dtype
        images = []
        with self.evaluation_mode(), half_precision.enable_float32_fallback(self.ema_generator):
            for chunk in track(torch.split(latents, BATCH_SIZE), "generated images", unit="batches"):
                values = self.ema_generator(chunk.to(self.runtime.device, dtype)).float()
                images.append(((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
        return torch.cat(images)

    @torch.inference_mode()
    def predict_real_probability(self, images: Tensor) -> list[float]:
        """Predict the probability, by the discriminator, that each of the images ``(N, C, H, W)`` uint8 is real."""
        with self.evaluation_mode(), half_precision.enable_float32_fallback(self.discriminator):
            chunks = (self.normalize_images(chunk.to(self.runtime.device)) for chunk in torch.split(images, BATCH_SIZE))
            scores = torch.cat([self.discriminator(chunk).float() for chunk in chunks])
        return scores.sigmoid().tolist()

    def collect_results(self, batches: Iterable[Batch]) -> "GenerationResults":
        """Generate as many images as there are real ones in ``batches`` and compute the features of both."""
        rank, world = self.runtime.rank, self.runtime.world_size
        if self.cached_real_features is None or self.cached_real_features[0] is not batches:
            extractor = self.cached_real_features[1] if self.cached_real_features else self.load_feature_extractor()
            chunks = [images for images, _ in batches if len(images)]
            real = []
            for extract in extractor.build_extractors(self.runtime.device):
                local = [extract(chunk) for chunk in track(chunks, "features of real images", unit="batches")]
                gathered = self.runtime.all_gather(torch.cat(local) if local else torch.zeros(0))
                real.append(torch.cat([features for features in gathered if len(features)]))
            self.cached_real_features = batches, extractor, real
        _, extractor, real = self.cached_real_features
        latents = self.sample_latents(len(real[0]))
        images = self.generate_images(latents[rank::world])
        generated = [torch.empty_like(features) for features in real]
        for features, extract in zip(generated, extractor.build_extractors(self.runtime.device), strict=True):
            for process, rows in enumerate(self.runtime.all_gather(extract(images))):
                features[process::world] = rows
        return GenerationResults(extractor, generated, real, self.generate_images(latents[:NUM_PREVIEW_IMAGES]))

    def on_evaluation(self, metrics: Metrics) -> Image.Image:
        """Store and return a preview grid; warn of mode collapse or of a discriminator that is too strong."""
        assert self.last_evaluation is not None
        _, results = self.last_evaluation
        assert isinstance(results, GenerationResults)
        grid = draw_image_grid(results.samples)
        self.preview_history.add(grid)
        if metrics["duplicate_fraction"] > MAX_DUPLICATE_FRACTION:
            logger.warning(
                f"mode collapse: {metrics['duplicate_fraction']:.0%} of the samples are near-duplicates (1 % is "
                "expected); try --stable, or a lower --lr"
            )
        if self.statistics.discriminator_accuracy > MAX_DISCRIMINATOR_ACCURACY:
            logger.warning(
                f"the recent discriminator accuracy is {self.statistics.discriminator_accuracy.item():.1%}, too high "
                "for the generator to improve; try --stable, or another --lr"
            )
        return grid

    def predict_batch(self, images: Tensor) -> list[Prediction]:
        """Predict the ``real_probability`` of each image, by the discriminator: 0 generated, 1 real."""
        return [{"real_probability": probability} for probability in self.predict_real_probability(images)]

    def draw(self, image: Image.Image, prediction: Prediction) -> Image.Image:
        """Draw the image next to the preprocessed one, with the probability that it is real."""
        return image_draw.draw_prediction(
            image, self.transform.transform_preview(image), f"{prediction['real_probability']:.1%} real"
        )

    def plot_evaluation(self, batches: Iterable[Batch]) -> "Iterator[tuple[str, FigureContent]]":
        """Yield the animation of the preview grids, the current grid and a grid of real images."""
        results = self._get_results(batches)
        assert isinstance(results, GenerationResults)
        assert isinstance(batches, BatchLoader)
        real = torch.cat([images for images, _ in batches.iterate_in_order()])[:NUM_PREVIEW_IMAGES]
        frames = self.preview_history.decode_frames()
        if len(frames) > 1:
            yield "Samples during training", frames
        yield "Generated samples", [draw_image_grid(results.samples)]
        yield "Real images", [draw_image_grid(real.cpu())]


class GenerationResults(NamedTuple):
    """Features of generated and real images.

    Attributes:
        feature_extractor: the feature extractor.
        generated_features, real_features: its features ``(N, F)``, and the pixel features ``(N, 64 C)``.
        samples: some of the generated images, ``(n, C, H, W)`` uint8.
    """

    feature_extractor: "FeatureExtractor"
    generated_features: Sequence[Tensor]
    real_features: Sequence[Tensor]
    samples: Tensor

    def compute_metrics(self) -> Metrics:
        """Compute the Fréchet and kernel distance, the fraction of duplicates and the legibility of digits.

        Only with the original FID network are the distances named ``fid_inception`` and ``kid_inception``. With other
        features they are named ``frechet_...`` and ``kernel_...``, since they are not comparable with those of papers.
        """
        (generated, generated_pixels), (real, real_pixels) = self.generated_features, self.real_features
        name = self.feature_extractor.name
        frechet, kernel = ("fid", "kid") if name == "inception" else ("frechet", "kernel")
        metrics: Metrics = {
            f"{frechet}_{name}": generation_metrics.compute_frechet_distance(generated, real),
            f"{kernel}_{name}": generation_metrics.compute_kernel_distance(generated, real),
            "duplicate_fraction": generation_metrics.compute_duplicate_fraction(generated_pixels, real_pixels),
        }
        return metrics | self.feature_extractor.measure_legibility(generated) | {"count": len(generated)}


class TrainingStatistics(nn.Module):
    """Number of steps, and moving average of the discriminator accuracy."""

    steps: Tensor
    discriminator_accuracy: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(0.0))
        self.register_buffer("discriminator_accuracy", torch.tensor(0.5))


class PreviewHistory:
    """Preview grids of a training run; when there are too many, every other one is deleted."""

    def __init__(self) -> None:
        self.encoded_frames: list[Tensor] = []

    def add(self, image: Image.Image) -> None:
        """Store a grid."""
        if len(self.encoded_frames) >= MAX_FRAMES:
            del self.encoded_frames[::2]
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=WEBP_QUALITY)
        self.encoded_frames.append(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))

    def decode_frames(self) -> list[Image.Image]:
        """Decode all grids."""
        return [Image.open(io.BytesIO(frame.numpy().tobytes())) for frame in self.encoded_frames]

    def state_dict(self) -> StateDict:
        """Return the encoded grids."""
        return {"encoded": self.encoded_frames}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the encoded grids."""
        self.encoded_frames = [frame.cpu() for frame in state["encoded"]]


def draw_image_grid(images: Tensor, num_columns: int = 8) -> Image.Image:
    """Draw images ``(N, C, H, W)`` uint8 as a grid; images smaller than 64 pixels are enlarged."""
    from torchvision.utils import make_grid

    factor = max(1, 64 // images.shape[-1])
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    grid = make_grid(images, nrow=num_columns, padding=2, pad_value=255)
    return image_io.convert_array_to_image(grid.permute(1, 2, 0).numpy())
