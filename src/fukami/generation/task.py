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
BATCH_SIZE = 100  # pictures that are made, or told, at a time
NUM_PREVIEW_IMAGES = 64  # pictures of the grid that shows the growth
MAX_FRAMES = 48  # grids that are kept of it
EMA_WARMUP_STEPS = 10  # updates after which the average of the generator is over about as many
DISCRIMINATOR_ACCURACY_MOMENTUM = 0.02  # weight of an update in the average of what the discriminator tells apart
MAX_REPETITION, MAX_DISCRIMINATOR_ACCURACY = 0.2, 0.98  # shares from which on a warning is due
WEBP_QUALITY = 85  # of WebP, in which they are kept

logger = logging.getLogger(__name__)


class GANTask(CachedEvaluationTask):
    """Two networks, two optimizers: what the one gains the other loses (Goodfellow et al. 2014, equation 1).

    Args:
        generator: noise ``(N, 100)`` in -1..1 to pictures ``(N, C, H, W)`` in -1..1.
        discriminator: such pictures to scores ``(N,)``, above 0 for real.
        prepare: a picture of any size as the discriminator sees it; it travels with the task.
        perceive: finds the network in whose features pictures are judged.
        hinge: the loss of the discriminator counts what is within a margin alone (Lim and Ye 2017), in place of cross
            entropy.
        ema: decay of a moving average of the generator, which then draws (Yazici et al. 2019); 0: none.
        regime: optimizer, decay, epochs, judge_every and clip, as for :class:`fukami.Task`.
    """

    static = True

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        prepare: SquareTransform,
        perceive: "Callable[[], FeatureExtractor]",
        *,
        hinge: bool = False,
        ema: float = 0.0,
        **regime: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(generator, **regime)
        self.discriminator, self.prepare, self.perceive = discriminator, prepare, perceive
        self.hinge, self.ema = hinge, ema
        self.numbers: int = generator.numbers  # type: ignore[assignment]
        self.averaged = copy.deepcopy(generator) if ema else generator
        self.album = PreviewHistory()
        self.known: tuple[Any, FeatureExtractor, list[Tensor]] | None = None  # real pictures, and what is seen in them

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train, each network with an optimizer of its own."""
        super().setup(runtime)
        self.averaged = runtime.place(self.averaged)
        self.discriminator = runtime.place(self.discriminator)
        self.rival = runtime.replicate(self.discriminator)
        self.telling: Callable[..., Any] = self.rival
        self.rival_optimizer = runtime.steer(self.make_optimizer(self.discriminator.parameters()))
        self.rival_scaler = runtime.scaler()
        self.tally = TrainingStatistics().to(runtime.device)

    def compile(self) -> None:
        """From now on train compiled networks."""
        super().compile()
        self.telling = self.runtime.compile(self.rival)

    def networks(self) -> list[nn.Module]:
        """Those that draw and tell."""
        return [self.averaged, self.discriminator]

    def state(self) -> dict[str, Any]:
        """Two networks, two optimizers, the generator's average, and the pictures of its growth."""
        rival = {"discriminator": self.discriminator, "discriminator optimizer": self.rival_optimizer}
        more = {"discriminator scaler": self.rival_scaler, "tally": self.tally, "album": self.album}
        return super().state() | rival | more | ({"averaged": self.averaged} if self.ema else {})

    def modules(self) -> dict[str, nn.Module]:
        """The generator that draws, and the discriminator."""
        return {"model": self.averaged, "discriminator": self.discriminator}

    def replace(self, modules: dict[str, nn.Module]) -> None:
        """Draw and tell with other networks."""
        self.model = self.averaged = modules["model"]
        self.discriminator = modules["discriminator"]

    def schedule(self, progress: float) -> float:
        """Set both learning rates."""
        rate = super().schedule(progress)
        for group in self.rival_optimizer.param_groups:
            group["lr"].fill_(group["initial_lr"] * self.decay(progress))
        return rate

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """An update of the discriminator, and one of the generator against the discriminator as it now is.

        ``batch`` is pictures ``(N, C, H, W)`` in 0..255 and whatever is known of them, which is not looked at.
        """
        clock = self.runtime.clock
        real = self.normalised(batch[0])
        with clock("forward"), self.runtime.autocast():
            made = self.replica(self.noise(len(real)))
            with self.settled():
                on_real, on_made = self.telling(real).float(), self.telling(made.detach()).float()
        against = self.against(on_real, on_made)
        with clock("backward"):
            self.rival_optimizer.zero_grad()
            self.rival_scaler.scale(against).backward()  # type: ignore[no-untyped-call]
        with clock("optimizer"):
            self.descend(self.rival_optimizer, self.rival_scaler)
        with clock("forward"), self.runtime.autocast(), self.settled():
            score = self.discriminator(made).float()
        loss = -score.mean() if self.hinge else F.softplus(-score).mean()
        with clock("backward"):
            self.optimizer.zero_grad()
            # through the discriminator down to the pictures, and from there on: its weights' gradients are not needed
            (gradient,) = torch.autograd.grad(self.scaler.scale(loss), made)
            made.backward(gradient)
        with clock("optimizer"):
            self.descend(self.optimizer, self.scaler)
            self.updated()
        told = torch.cat([on_real.detach() > 0, on_made.detach() < 0]).float().mean()
        self.tally.apart.lerp_(told, DISCRIMINATOR_ACCURACY_MOMENTUM)
        found = {"discriminator_loss": against, "generator_loss": loss, "told_apart": told}
        return {name: value.detach() for name, value in found.items()}

    def against(self, real: Tensor, made: Tensor) -> Tensor:
        """The loss of the discriminator, from its scores of real and of made pictures, ``(N,)`` each."""
        if self.hinge:
            return (1 - real).relu().mean() + (1 + made).relu().mean()
        return F.softplus(-real).mean() + F.softplus(made).mean()

    def noise(self, count: int) -> Tensor:
        """Noise for this process's ``count`` pictures: its rows of what is drawn for all."""
        rank, world = self.runtime.rank, self.runtime.world
        return 2 * torch.rand(count * world, self.numbers, device=self.runtime.device)[rank::world] - 1

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Normalise the discriminator's weights, where they are, once and in float32, whatever is computed in here."""
        with parametrize.cached():
            with torch.autocast(self.runtime.device.type, enabled=False):
                for layer in self.discriminator.modules():
                    if parametrize.is_parametrized(layer):
                        layer.weight  # noqa: B018  it is kept
            yield

    @torch.no_grad()
    def updated(self) -> None:
        """Let the average follow, sooner at the beginning, when there is less to be averaged."""
        super().updated()
        if self.ema:
            count = self.tally.updates.add_(1)
            own, theirs = (
                [value for value in network.state_dict().values() if value.is_floating_point()]
                for network in (self.averaged, self.model)
            )
            change = torch._foreach_sub(theirs, own)
            torch._foreach_mul_(change, (EMA_WARMUP_STEPS / (EMA_WARMUP_STEPS + count)).clamp(min=1 - self.ema))
            torch._foreach_add_(own, change)

    def normalised(self, pictures: Tensor) -> Tensor:
        """Pictures ``(N, C, H, W)`` in 0..255 as the discriminator takes them, in -1..1."""
        kind = next(self.discriminator.parameters()).dtype
        return (pictures.float() / 127.5 - 1).to(kind).contiguous(memory_format=torch.channels_last)

    def codes(self, count: int, seed: int = 0) -> Tensor:
        """Noise ``(count, 100)`` that is the same on every machine."""
        return 2 * torch.rand(count, self.numbers, generator=torch.Generator().manual_seed(seed)) - 1

    @torch.inference_mode()
    def make(self, codes: Tensor) -> Tensor:
        """Pictures ``(N, C, H, W)`` uint8 that the generator makes of noise ``(N, 100)`` in -1..1."""
        kind = next(self.averaged.parameters()).dtype
        found = []
        with self.answering(), half_precision.enable_float32_fallback(self.averaged):
            for part in torch.split(codes, BATCH_SIZE):
                values = self.averaged(part.to(self.runtime.device, kind)).float()
                found.append(((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
        return torch.cat(found)

    @torch.inference_mode()
    def real(self, pictures: Tensor) -> list[float]:
        """How sure the discriminator is that each of ``(N, C, H, W)`` uint8 is real, 0 to 1."""
        with self.answering(), half_precision.enable_float32_fallback(self.discriminator):
            parts = (self.normalised(part.to(self.runtime.device)) for part in torch.split(pictures, BATCH_SIZE))
            scores = torch.cat([self.discriminator(part).float() for part in parts])
        return scores.sigmoid().tolist()

    def judge(self, batches: Any) -> "GenerationResults":
        """As many pictures as ``batches`` has real ones, and the features that a network sees in both."""
        rank, world = self.runtime.rank, self.runtime.world
        if self.known is None or self.known[0] is not batches:
            perception = self.known[1] if self.known else self.perceive()
            parts = [pictures for pictures, _ in batches if len(pictures)]
            real = []
            for look in perception.looks(self.runtime.device):
                seen = [look(part) for part in parts]
                gathered = self.runtime.gather(torch.cat(seen) if seen else torch.zeros(0))
                real.append(torch.cat([part for part in gathered if len(part)]))
            self.known = batches, perception, real
        _, perception, real = self.known
        codes = self.codes(len(real[0]))
        own = self.make(codes[rank::world])
        made = [torch.empty_like(each) for each in real]
        for whole, look in zip(made, perception.looks(self.runtime.device), strict=True):
            for other, rows in enumerate(self.runtime.gather(look(own))):
                whole[other::world] = rows
        return GenerationResults(perception, made, real, self.make(codes[:NUM_PREVIEW_IMAGES]))

    def judged(self, metrics: dict[str, Any]) -> None:
        """Keep the grid, and warn where the generator repeats itself or the discriminator knows everything."""
        super().judged(metrics)
        assert self.latest is not None
        self.album.add(draw_image_grid(self.latest[1].shown))
        if metrics["repeated"] > MAX_REPETITION:
            logger.warning(
                f"the generator repeats itself: {metrics['repeated']:.0%} of what it makes is as near to another one "
                "as only 1 % of real pictures are; try --stable, or a lower --lr"
            )
        if self.tally.apart > MAX_DISCRIMINATOR_ACCURACY:
            logger.warning(
                f"the discriminator has told {self.tally.apart.item():.1%} apart lately, from which the generator "
                "learns little; try --stable, or another --lr"
            )

    def preview(self) -> Image.Image | None:
        """The grid as it was judged last."""
        return draw_image_grid(self.latest[1].shown) if self.latest else None

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """How sure the discriminator is that a picture is ``real``, from 0 to 1.

        ``inputs`` are paths, PIL pictures or arrays as :func:`fukami.image.io.read_image` takes them. A picture that cannot
        be read yields ``{"file", "error"}``.
        """
        answers: list[dict[str, Any]] = []
        for source in inputs:
            named = {"file": str(source)} if isinstance(source, str | Path) else {}
            try:
                (real,) = self.real(torch.from_numpy(self.prepare.open(source))[None])
            except Error as error:
                answers.append({**named, "error": str(error)})
                continue
            answers.append({**named, "real": real})
        return answers

    def draw(self, source: Any, answer: dict[str, Any]) -> Image.Image:
        """The picture as it was seen, and how real it was found."""
        picture = image_io.read_image(source)
        return image_io.draw_prediction(picture, self.prepare(picture), f"{answer['real']:.1%} real")

    def figures(self, batches: Any) -> "Iterator[tuple[str, Figure | Sequence[Image.Image]]]":
        """How the grid grew; what there is now, beside real pictures."""
        found: GenerationResults = self.judged_last(batches)
        real = torch.cat([pictures for pictures, _ in batches.ordered()])[:NUM_PREVIEW_IMAGES]
        frames = self.album.frames()
        if len(frames) > 1:
            yield "How it grew", frames
        yield "Made", [draw_image_grid(found.shown)]
        yield "Real", [draw_image_grid(real.cpu())]


class GenerationResults(NamedTuple):
    """What was made and seen.

    Attributes:
        perception: the network that saw it.
        made, real: features ``(N, F)``, and the pictures 8×8 pixels small ``(N, 64 C)``.
        shown: some of the pictures made, ``(n, C, H, W)`` uint8.
    """

    perception: "FeatureExtractor"
    made: Sequence[Tensor]
    real: Sequence[Tensor]
    shown: Tensor

    def metrics(self) -> dict[str, Any]:
        """Fréchet and kernel distance, named after the features; how much is repeated; how many digits are legible.

        With the network that FID and KID are defined with they are ``fid_inception`` and ``kid_inception``; with any
        other they are ``frechet_...`` and ``kernel_...``, since such numbers cannot be compared with those of papers.
        """
        (made, small), (real, small_real) = self.made, self.real
        name = self.perception.name
        frechet, kernel = ("fid", "kid") if name == "inception" else ("frechet", "kernel")
        found: dict[str, Any] = {
            f"{frechet}_{name}": generation_metrics.compute_frechet_distance(made, real),
            f"{kernel}_{name}": generation_metrics.compute_kernel_distance(made, real),
            "repeated": generation_metrics.compute_repetition(small, small_real),
        }
        return found | self.perception.legible(made) | {"count": len(made)}


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
        self.encoded: list[Tensor] = []

    def add(self, picture: Image.Image) -> None:
        """Keep a grid."""
        if len(self.encoded) >= MAX_FRAMES:
            del self.encoded[::2]
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=WEBP_QUALITY)
        self.encoded.append(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))

    def frames(self) -> list[Image.Image]:
        """All of them."""
        return [Image.open(io.BytesIO(each.numpy().tobytes())) for each in self.encoded]

    def state_dict(self) -> dict[str, Any]:
        """The grids."""
        return {"encoded": self.encoded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.encoded = [each.cpu() for each in state["encoded"]]


def draw_image_grid(pictures: Tensor, columns: int = 8) -> Image.Image:
    """Pictures ``(N, C, H, W)`` uint8 side by side, small ones enlarged."""
    from torchvision.utils import make_grid

    factor = max(1, 64 // pictures.shape[-1])
    pictures = pictures.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    page = make_grid(pictures, nrow=columns, padding=2, pad_value=255)
    return image_io.convert_array_to_image(page.permute(1, 2, 0).numpy())
