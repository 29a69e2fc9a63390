"""Task: an update, a judgement and an answer; one subclass per family of systems."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypedDict

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fukami.engine.runtime import Runtime
from fukami.engine.schedules import ReduceOnPlateau, Schedule, compute_constant_factor
from fukami.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

OptimizerFactory = Callable[[Iterable[nn.Parameter] | list[dict[str, Any]]], torch.optim.Optimizer]


class TrainingOptions(TypedDict, total=False):
    """How a network is trained, whatever it learns: the keyword arguments that every :class:`Task` takes."""

    optimizer: OptimizerFactory
    lr_schedule: Schedule
    epochs: int
    eval_every: int
    accumulate: int
    clip_norm: float


class ModelSignature(NamedTuple):
    """How another program would talk to a network.

    Attributes:
        model_type: what it is given and what it answers.
        input_shape: ``(C, H, W)`` of an image, as it is given to the network.
        metadata: how to prepare an input and how to read the answer, text by name; the metadata of an ONNX file.
    """

    model_type: Literal["classifier", "detector", "segmenter"]
    input_shape: tuple[int, int, int]
    metadata: dict[str, str]


class Task:
    """One model trained by one optimizer; a family overrides what it does otherwise.

    ``step`` owns the update and not only the loss, so that two optimizers (a GAN), data made on the way (a Q-learner)
    and an image being optimised (style) need no loop of their own.

    Args:
        model: the network.
        optimizer: makes the optimizer of its parameters.
        lr_schedule: the learning rate's course, as a factor of it.
        epochs, eval_every: passes over the data, and passes between two evaluations.
        accumulate: parts in which a batch passes through the network, one after another, for less memory.
        clip_norm: the greatest norm of the gradient, to which a greater one is scaled down (Pascanu et al. 2013); 0:
            any.
    """

    supports_cuda_graph = (
        False  # True: every step is the same GPU work on the same shapes, so the loop may capture it whole
    )

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        lr_schedule: Schedule = compute_constant_factor,
        epochs: int = 1,
        eval_every: int = 1,
        accumulate: int = 1,
        clip_norm: float = 0.0,
    ) -> None:
        self.model = model
        self.make_optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.epochs = epochs
        self.eval_every = eval_every
        self.accumulate = accumulate
        self.clip_norm = clip_norm

    def setup(self, runtime: Runtime) -> None:
        """Move to the device and make ready to train; what is frozen keeps its statistics, too."""
        self.runtime = runtime
        self.model = runtime.move_to_device(self.model)
        for module in self.model.modules():
            own = list(module.parameters())
            if own and not any(parameter.requires_grad for parameter in own):
                module.eval()
        self.ddp_model = runtime.replicate(self.model)
        self.training_model: Callable[..., Any] = self.ddp_model
        self.optimizer = runtime.prepare_optimizer(self.make_optimizer(self.model.parameters()))
        self.scaler = runtime.build_grad_scaler()
        self.supports_cuda_graph = self.supports_cuda_graph and _supports_capture(self.optimizer, self.scaler)

    def compile(self) -> None:
        """From now on train a compiled network."""
        self.training_model = self.runtime.compile(self.ddp_model)

    def get_stateful_objects(self) -> dict[str, Any]:
        """All that a resumed run needs: objects with ``state_dict`` and ``load_state_dict``, by name."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts | ({"decay": self.lr_schedule} if isinstance(self.lr_schedule, ReduceOnPlateau) else {})

    def get_modules(self) -> dict[str, nn.Module]:
        """The modules that answer; they become ``weights.safetensors``."""
        return {"model": self.model}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Answer with other modules of these names, such as ones of fewer bits; they are not trained."""
        self.model = modules["model"]

    def prepare_inputs(self, batch: Any) -> Tensor:
        """What the network is given for a batch, ``(N, ...)``."""
        raise UsageError(f"{type(self).__name__} cannot be calibrated: it does not define prepare_inputs(batch)")

    def get_signature(self) -> ModelSignature:
        """How another program would talk to the network."""
        raise UsageError(
            f"{type(self).__name__} cannot be exported to another program: it does not define get_signature()"
        )

    def count_steps(self, train: Any) -> tuple[int, int]:
        """Updates in the whole training, and between two evaluations; by default ``epochs`` passes, ``eval_every``."""
        return self.epochs * len(train), self.eval_every * len(train)

    def count_work(self, step: int) -> float:
        """The work before a step, in any unit, by which the time that is left is told; by default steps are alike."""
        return step

    def iterate_batches(self, train: Any) -> Iterable[Any]:
        """The batches of the training, without end; by default pass after pass over the loader."""
        while True:
            yield from train

    def schedule(self, progress: float) -> float:
        """Set the learning rate for the share ``progress`` of the training, in [0, 1); returns it for the log."""
        factor = self.lr_schedule(progress)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(group["initial_lr"] * factor)
        return float(self.optimizer.param_groups[0]["initial_lr"] * factor)

    def on_evaluation(self, metrics: dict[str, float]) -> None:
        """Hear what an evaluation in the training found, for a learning rate that waits for a plateau."""
        if isinstance(self.lr_schedule, ReduceOnPlateau):
            self.lr_schedule.on_evaluation(metrics)

    def step(self, batch: Any) -> dict[str, Tensor]:
        """One update; returns scalars for the log, still on the device."""
        clock = self.runtime.clock
        self.optimizer.zero_grad()
        found: dict[str, Tensor] = {}
        for share, part, last in self.split_batch(batch):
            with self.runtime.no_sync(self.ddp_model, not last):
                with clock("forward"), self.runtime.autocast():
                    loss, metrics = self.compute_loss(part)
                with clock("backward"):
                    self.scaler.scale(share * loss).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.detach(), **metrics}.items():
                found[name] = share * value + found[name] if name in found else share * value
        with clock("optimizer"):
            self.apply_gradients(self.optimizer, self.scaler)
            self.on_step()
        return found

    def apply_gradients(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Follow the gradients that there are, scaled down where their norm is too great."""
        if self.clip_norm:
            scaler.unscale_(optimizer)
            every = (parameter for group in optimizer.param_groups for parameter in group["params"])
            nn.utils.clip_grad_norm_(every, self.clip_norm)
        if scaler.is_enabled():
            _init_momentum_buffers(optimizer)
        scaler.step(optimizer)
        scaler.update()

    def split_batch(self, batch: Any) -> Iterator[tuple[float, Any, bool]]:
        """The batch in ``accumulate`` parts: the share of the batch that each is, the part, and whether it is the last.

        Raises:
            UsageError: there are not as many samples in the batch.
        """
        if self.accumulate == 1:
            yield 1.0, batch, True
            return
        leaves, form = pytree.tree_flatten(batch)
        size = len(leaves[0])
        if size < self.accumulate:
            raise UsageError(f"{size} samples cannot pass in {self.accumulate} parts; lower --accumulate")
        for number, part in enumerate(zip(*(leaf.tensor_split(self.accumulate) for leaf in leaves), strict=True), 1):
            yield len(part[0]) / size, pytree.tree_unflatten(part, form), number == self.accumulate

    def on_step(self) -> None:
        """Follow an update of the weights; nothing by default."""

    def compute_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, a scalar, and what else to log; call the network as ``self.training_model``."""
        raise NotImplementedError(f"{type(self).__name__} defines neither compute_loss nor step")

    def evaluate(self, batches: Iterable[Any]) -> dict[str, Any]:
        """The family's metrics and ``count``; changes no weight, and sums counts across processes.

        The first metric is the main one. Numbers, but for those of each class, which may be nested at the end.
        """
        raise UsageError(f"{type(self).__name__} cannot be judged: it does not define evaluate(batches)")

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """One answer per input, plain Python ready for JSON; ``{"file", "error"}`` for one that cannot be read."""
        raise UsageError(f"{type(self).__name__} gives no answers: it does not define predict(inputs)")

    def draw_prediction(self, source: Any, prediction: dict[str, Any]) -> "Image":
        """The answer to ``source`` as an image."""
        raise UsageError(f"{type(self).__name__} cannot draw its answers; predict without --out")

    def render_maps(self, prediction: dict[str, Any]) -> "dict[str, Image]":
        """What else of an answer can be kept as images, by name; nothing by default."""
        return {}

    def preview(self) -> "Image | None":
        """What a training has made so far, as it was evaluated last, where that is an image; None: it is none."""
        return None

    def plot_evaluation(self, batches: Iterable[Any]) -> "Iterator[tuple[str, Figure | Sequence[Image]]]":
        """Titled figures of the judgement for the run's report; of several images an animation."""
        yield from ()

    def with_views(self, num_views: int) -> Self:
        """This task answering from so many views of each input, the input itself first (test-time augmentation)."""
        if num_views == 1:
            return self
        raise UsageError(f"{type(self).__name__} answers from one view; leave out --views")

    def ensemble_with(self, others: Sequence[Self], *, vote: bool = False) -> Self:
        """This task answering together with ``others``: averaged, or by the vote of the majority."""
        raise UsageError(f"runs of {type(self).__name__} cannot answer together; give one run")


def _supports_capture(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Whether a CUDA graph can record an update, in which the processor may not ask for a number on the device.

    Adagrad counts its steps on the processor, and after it was resumed asks for them; the scaler asks whether gradients
    are finite, but for optimizers that see to that themselves.
    """
    asks = scaler.is_enabled() and not getattr(optimizer, "_step_supports_amp_scaling", False)
    return not (asks or isinstance(optimizer, torch.optim.Adagrad))


def _init_momentum_buffers(optimizer: torch.optim.Optimizer) -> None:
    """Let the momentum of torch's fused SGD begin at 0, with which the first step is what it would be anyway.

    torch leaves it to that step to write into memory that may hold anything. Where the scaler leaves the step out, as
    gradients are not finite, the next one would add to the weights what the memory holds.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum"):
            for parameter in group["params"]:
                if parameter.grad is not None and "momentum_buffer" not in optimizer.state[parameter]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
