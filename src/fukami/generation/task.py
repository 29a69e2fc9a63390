"""Adversarial training: a generator draws, a discriminator tells what is drawn from what is real, and each learns."""

import copy
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from fukami.engine.cached_evaluation import CachedEvaluationTask
from fukami.engine.task import TrainingOptions
from fukami.errors import Error
from fukami.generation import metrics as generation_metrics
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform
from fukami.quantization import half_precision

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fukami.engine.runtime import Runtime
    from fukami.generation.features import FeatureExtractor

Batch = tuple[Tensor, Tensor]
BATCH_SIZE = 100  # images that are made, or told, at a time
NUM_PREVIEW_IMAGES = 64  # images of the grid that shows the growth
MAX_FRAMES = 48  # grids that are kept of it
EMA_WARMUP_STEPS = 10  # updates after which the average of the generator is over about as many
DISCRIMINATOR_ACCURACY_MOMENTUM = 0.02  # weight of an update in the average of what the discriminator tells apart
MAX_REPETITION, MAX_DISCRIMINATOR_ACCURACY = 0.2, 0.98  # shares from which on a warning is due
WEBP_QUALITY = 85  # of WebP, in which they are kept

logger = logging.getLogger(__name__)


class GANTask(CachedEvaluationTask):
    """Two networks, two optimizers: what the one gains the other loses (Goodfellow et al. 2014, equation 1).

    Args:
        generator: noise ``(N, 100)`` in -1..1 to images ``(N, C, H, W)`` in -1..1.
        discriminator: such images to scores ``(N,)``, above 0 for real.
        transform: an image of any size as the discriminator sees it; it travels with the task.
        load_feature_extractor: finds the network in whose features images are judged.
        hinge_loss: the loss of the discriminator counts what is within a margin alone (Lim and Ye 2017), in place of
            cross entropy.
        ema_decay: decay of a moving average of the generator, which then draws (Yazici et al. 2019); 0: none.
        regime: optimizer, decay, epochs, judge_every and clip, as for :class:`fukami.Task`.
    """

    supports_cuda_graph = True

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        transform: SquareTransform,
        load_feature_extractor: "Callable[[], FeatureExtractor]",
        *,
        hinge_loss: bool = False,
        ema_decay: float = 0.0,
        **regime: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(generator, **regime)
        self.discriminator, self.transform, self.load_feature_extractor = (
            discriminator,
            transform,
            load_feature_extractor,
        )
        self.hinge_loss, self.ema_decay = hinge_loss, ema_decay
        self.latent_dim: int = generator.latent_dim  # type: ignore[assignment]
        self.ema_generator = copy.deepcopy(generator) if ema_decay else generator
        self.preview_history = PreviewHistory()
        self.cached_real_features: tuple[Any, FeatureExtractor, list[Tensor]] | None = (
            None  # real images, and what is seen in them
        )

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train, each network with an optimizer of its own."""
        super().setup(runtime)
        self.ema_generator = runtime.move_to_device(self.ema_generator)
        self.discriminator = runtime.move_to_device(self.discriminator)
        self.ddp_discriminator = runtime.replicate(self.discriminator)
        self.training_discriminator: Callable[..., Any] = self.ddp_discriminator
        self.discriminator_optimizer = runtime.prepare_optimizer(self.make_optimizer(self.discriminator.parameters()))
        self.discriminator_scaler = runtime.build_grad_scaler()
        self.statistics = TrainingStatistics().to(runtime.device)

    def compile(self) -> None:
        """From now on train compiled networks."""
        super().compile()
        self.training_discriminator = self.runtime.compile(self.ddp_discriminator)

    def get_networks(self) -> list[nn.Module]:
        """Those that draw and tell."""
        return [self.ema_generator, self.discriminator]

    def get_stateful_objects(self) -> dict[str, Any]:
        """Two networks, two optimizers, the generator's average, and the images of its growth."""
        rival = {"discriminator": self.discriminator, "discriminator optimizer": self.discriminator_optimizer}
        more = {
            "discriminator scaler": self.discriminator_scaler,
            "tally": self.statistics,
            "album": self.preview_history,
        }
        return (
            super().get_stateful_objects() | rival | more | ({"averaged": self.ema_generator} if self.ema_decay else {})
        )

    def get_modules(self) -> dict[str, nn.Module]:
        """The generator that draws, and the discriminator."""
        return {"model": self.ema_generator, "discriminator": self.discriminator}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Draw and tell with other networks."""
        self.model = self.ema_generator = modules["model"]
        self.discriminator = modules["discriminator"]

    def schedule(self, progress: float) -> float:
        """Set both learning rates."""
        rate = super().schedule(progress)
        for group in self.discriminator_optimizer.param_groups:
            group["lr"].fill_(group["initial_lr"] * self.lr_schedule(progress))
        return rate

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """An update of the discriminator, and one of the generator against the discriminator as it now is.

        ``batch`` is images ``(N, C, H, W)`` in 0..255 and whatever is known of them, which is not looked at.
        """
        clock = self.runtime.clock
        real = self.normalize_images(batch[0])
        with clock("forward"), self.runtime.autocast():
            made = self.training_model(self.sample_noise(len(real)))
            with self.cache_normalized_weights():
                on_real, on_made = (
                    self.training_discriminator(real).float(),
                    self.training_discriminator(made.detach()).float(),
                )
        against = self.compute_discriminator_loss(on_real, on_made)
        with clock("backward"):
            self.discriminator_optimizer.zero_grad()
            self.discriminator_scaler.scale(against).backward()  # type: ignore[no-untyped-call]
        with clock("optimizer"):
            self.apply_gradients(self.discriminator_optimizer, self.discriminator_scaler)
        with clock("forward"), self.runtime.autocast(), self.cache_normalized_weights():
            score = self.discriminator(made).float()
        loss = -score.mean() if self.hinge_loss else F.softplus(-score).mean()
        with clock("backward"):
            self.optimizer.zero_grad()
            # through the discriminator down to the images, and from there on: its weights' gradients are not needed
            (gradient,) = torch.autograd.grad(self.scaler.scale(loss), made)
            made.backward(gradient)
        with clock("optimizer"):
            self.apply_gradients(self.optimizer, self.scaler)
            self.on_step()
        told = torch.cat([on_real.detach() > 0, on_made.detach() < 0]).float().mean()
        self.statistics.apart.lerp_(told, DISCRIMINATOR_ACCURACY_MOMENTUM)
        found = {"discriminator_loss": against, "generator_loss": loss, "told_apart": told}
        return {name: value.detach() for name, value in found.items()}

    def compute_discriminator_loss(self, real_scores: Tensor, generated_scores: Tensor) -> Tensor:
        """The loss of the discriminator, from its scores of real and of made images, ``(N,)`` each."""
        if self.hinge_loss:
            return (1 - real_scores).relu().mean() + (1 + generated_scores).relu().mean()
        return F.softplus(-real_scores).mean() + F.softplus(generated_scores).mean()

    def sample_noise(self, count: int) -> Tensor:
        """Noise for this process's ``count`` images: its rows of what is drawn for all."""
        rank, world = self.runtime.rank, self.runtime.world_size
        return 2 * torch.rand(count * world, self.latent_dim, device=self.runtime.device)[rank::world] - 1

    @contextmanager
    def cache_normalized_weights(self) -> Iterator[None]:
        """Normalise the discriminator's weights, where they are, once and in float32, whatever is computed in here."""
        with parametrize.cached():
            with torch.autocast(self.runtime.device.type, enabled=False):
                for layer in self.discriminator.modules():
                    if parametrize.is_parametrized(layer):
                        layer.weight  # noqa: B018  it is kept
            yield

    @torch.no_grad()
    def on_step(self) -> None:
        """Let the average follow, sooner at the beginning, when there is less to be averaged."""
        super().on_step()
        if self.ema_decay:
            count = self.statistics.updates.add_(1)
            own, theirs = (
                [value for value in network.state_dict().values() if value.is_floating_point()]
                for network in (self.ema_generator, self.model)
            )
            change = torch._foreach_sub(theirs, own)
            torch._foreach_mul_(change, (EMA_WARMUP_STEPS / (EMA_WARMUP_STEPS + count)).clamp(min=1 - self.ema_decay))
            torch._foreach_add_(own, change)

    def normalize_images(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in 0..255 as the discriminator takes them, in -1..1."""
        kind = next(self.discriminator.parameters()).dtype
        return (images.float() / 127.5 - 1).to(kind).contiguous(memory_format=torch.channels_last)

    def sample_latents(self, count: int, seed: int = 0) -> Tensor:
        """Noise ``(count, 100)`` that is the same on every machine."""
        return 2 * torch.rand(count, self.latent_dim, generator=torch.Generator().manual_seed(seed)) - 1

    @torch.inference_mode()
    def generate_images(self, latents: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` uint8 that the generator makes of noise ``(N, 100)`` in -1..1."""
        kind = next(self.ema_generator.parameters()).dtype
        found = []
        with self.inference_mode(), half_precision.enable_float32_fallback(self.ema_generator):
            for part in torch.split(latents, BATCH_SIZE):
                values = self.ema_generator(part.to(self.runtime.device, kind)).float()
                found.append(((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
        return torch.cat(found)

    @torch.inference_mode()
    def predict_real_probability(self, images: Tensor) -> list[float]:
        """How sure the discriminator is that each of ``(N, C, H, W)`` uint8 is real, 0 to 1."""
        with self.inference_mode(), half_precision.enable_float32_fallback(self.discriminator):
            parts = (self.normalize_images(part.to(self.runtime.device)) for part in torch.split(images, BATCH_SIZE))
            scores = torch.cat([self.discriminator(part).float() for part in parts])
        return scores.sigmoid().tolist()

    def collect_results(self, batches: Any) -> "GenerationResults":
        """As many images as ``batches`` has real ones, and the features that a network sees in both."""
        rank, world = self.runtime.rank, self.runtime.world_size
        if self.cached_real_features is None or self.cached_real_features[0] is not batches:
            perception = self.cached_real_features[1] if self.cached_real_features else self.load_feature_extractor()
            parts = [images for images, _ in batches if len(images)]
            real = []
            for look in perception.build_extractors(self.runtime.device):
                seen = [look(part) for part in parts]
                gathered = self.runtime.all_gather(torch.cat(seen) if seen else torch.zeros(0))
                real.append(torch.cat([part for part in gathered if len(part)]))
            self.cached_real_features = batches, perception, real
        _, perception, real = self.cached_real_features
        codes = self.sample_latents(len(real[0]))
        own = self.generate_images(codes[rank::world])
        made = [torch.empty_like(each) for each in real]
        for whole, look in zip(made, perception.build_extractors(self.runtime.device), strict=True):
            for other, rows in enumerate(self.runtime.all_gather(look(own))):
                whole[other::world] = rows
        return GenerationResults(perception, made, real, self.generate_images(codes[:NUM_PREVIEW_IMAGES]))

    def on_evaluation(self, metrics: dict[str, Any]) -> None:
        """Keep the grid, and warn where the generator repeats itself or the discriminator knows everything."""
        super().on_evaluation(metrics)
        assert self.last_results is not None
        self.preview_history.add(draw_image_grid(self.last_results[1].samples))
        if metrics["repeated"] > MAX_REPETITION:
            logger.warning(
                f"the generator repeats itself: {metrics['repeated']:.0%} of what it makes is as near to another one "
                "as only 1 % of real images are; try --stable, or a lower --lr"
            )
        if self.statistics.apart > MAX_DISCRIMINATOR_ACCURACY:
            logger.warning(
                f"the discriminator has told {self.statistics.apart.item():.1%} apart lately, from which the generator "
                "learns little; try --stable, or another --lr"
            )

    def preview(self) -> Image.Image | None:
        """The grid as it was judged last."""
        return draw_image_grid(self.last_results[1].samples) if self.last_results else None

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """How sure the discriminator is that an image is ``real``, from 0 to 1.

        ``inputs`` are paths, PIL images or arrays as :func:`fukami.image.io.read_image` takes them. An image that
        cannot be read yields ``{"file", "error"}``.
        """
        answers: list[dict[str, Any]] = []
        for source in inputs:
            named = {"file": str(source)} if isinstance(source, str | Path) else {}
            try:
                (real,) = self.predict_real_probability(
                    torch.from_numpy(self.transform.read_and_transform(source))[None]
                )
            except Error as error:
                answers.append({**named, "error": str(error)})
                continue
            answers.append({**named, "real": real})
        return answers

    def draw_prediction(self, source: Any, prediction: dict[str, Any]) -> Image.Image:
        """The image as it was seen, and how real it was found."""
        image = image_io.read_image(source)
        return image_io.draw_prediction(image, self.transform(image), f"{prediction['real']:.1%} real")

    def plot_evaluation(self, batches: Any) -> "Iterator[tuple[str, Figure | Sequence[Image.Image]]]":
        """How the grid grew; what there is now, beside real images."""
        found: GenerationResults = self.get_results(batches)
        real = torch.cat([images for images, _ in batches.iterate_in_order()])[:NUM_PREVIEW_IMAGES]
        frames = self.preview_history.decode_frames()
        if len(frames) > 1:
            yield "How it grew", frames
        yield "Made", [draw_image_grid(found.samples)]
        yield "Real", [draw_image_grid(real.cpu())]


class GenerationResults(NamedTuple):
    """What was made and seen.

    Attributes:
        feature_extractor: the network that saw it.
        generated_features, real_features: features ``(N, F)``, and the images 8×8 pixels small ``(N, 64 C)``.
        samples: some of the images made, ``(n, C, H, W)`` uint8.
    """

    feature_extractor: "FeatureExtractor"
    generated_features: Sequence[Tensor]
    real_features: Sequence[Tensor]
    samples: Tensor

    def compute_metrics(self) -> dict[str, Any]:
        """Fréchet and kernel distance, named after the features; how much is repeated; how many digits are legible.

        With the network that FID and KID are defined with they are ``fid_inception`` and ``kid_inception``; with any
        other they are ``frechet_...`` and ``kernel_...``, since such numbers cannot be compared with those of papers.
        """
        (made, small), (real, small_real) = self.generated_features, self.real_features
        name = self.feature_extractor.name
        frechet, kernel = ("fid", "kid") if name == "inception" else ("frechet", "kernel")
        found: dict[str, Any] = {
            f"{frechet}_{name}": generation_metrics.compute_frechet_distance(made, real),
            f"{kernel}_{name}": generation_metrics.compute_kernel_distance(made, real),
            "repeated": generation_metrics.compute_repetition(small, small_real),
        }
        return found | self.feature_extractor.measure_legibility(made) | {"count": len(made)}


class TrainingStatistics(nn.Module):
    """The updates so far, and the share that the discriminator told apart lately."""

    updates: Tensor
    apart: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("updates", torch.tensor(0.0))
        self.register_buffer("apart", torch.tensor(0.5))


class PreviewHistory:
    """The grids of a training, as many as an animation needs; when there are too many, every other one goes."""

    def __init__(self) -> None:
        self.encoded_frames: list[Tensor] = []

    def add(self, image: Image.Image) -> None:
        """Keep a grid."""
        if len(self.encoded_frames) >= MAX_FRAMES:
            del self.encoded_frames[::2]
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=WEBP_QUALITY)
        self.encoded_frames.append(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))

    def decode_frames(self) -> list[Image.Image]:
        """All of them."""
        return [Image.open(io.BytesIO(each.numpy().tobytes())) for each in self.encoded_frames]

    def state_dict(self) -> dict[str, Any]:
        """The grids."""
        return {"encoded": self.encoded_frames}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.encoded_frames = [each.cpu() for each in state["encoded"]]


def draw_image_grid(images: Tensor, num_columns: int = 8) -> Image.Image:
    """Images ``(N, C, H, W)`` uint8 side by side, small ones enlarged."""
    from torchvision.utils import make_grid

    factor = max(1, 64 // images.shape[-1])
    images = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    page = make_grid(images, nrow=num_columns, padding=2, pad_value=255)
    return image_io.convert_array_to_image(page.permute(1, 2, 0).numpy())
