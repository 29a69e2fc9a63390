"""Task: training step, evaluation and prediction, with one subclass per family of systems."""

import functools
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
    """Training options: the keyword arguments of every :class:`Task`."""

    optimizer: OptimizerFactory
    lr_schedule: Schedule
    epochs: int
    eval_every: int
    accumulate: int
    clip_norm: float


class ModelSignature(NamedTuple):
    """Signature of a network for other programs.

    Attributes:
        model_type: kind of network, which determines its inputs and outputs.
        input_shape: shape ``(C, H, W)`` of an input image.
        metadata: preprocessing, labels and meaning of the outputs, as strings by name; the metadata of an ONNX file.
    """

    model_type: Literal["classifier", "detector", "segmenter"]
    input_shape: tuple[int, int, int]
    metadata: dict[str, str]


class Task:
    """Base class of tasks: one model trained by one optimizer; subclasses override what differs.

    ``step`` includes the optimizer step, so two optimizers (a GAN), data generated during training (Q-learning) and the
    optimization of an image (style transfer) need no training loop of their own.

    Args:
        model: the network.
        optimizer: returns the optimizer of the parameters that it is called with.
        lr_schedule: learning-rate schedule, as a factor of the learning rate.
        epochs, eval_every: number of epochs, and evaluation interval in epochs.
        accumulate: gradient accumulation: number of micro-batches per step, for less memory.
        clip_norm: maximum gradient norm (gradient clipping, Pascanu et al. 2013); 0 disables it.
    """

    supports_cuda_graph = (
        False  # True if every step launches the same GPU work on the same shapes, so that the loop may capture it
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
        """Move the task to the device and prepare it for training; frozen modules keep their statistics, too."""
        self.runtime = runtime
        self.model = runtime.move_to_device(self.model)
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        self.ddp_model = runtime.replicate(self.model)
        self.training_model: Callable[..., Any] = self.ddp_model
        self.scaler = runtime.build_grad_scaler()
        if runtime.device.type == "cuda":
            self.supports_cuda_graph = self.supports_cuda_graph and supports_capture(self.optimizer, self.scaler)

    @functools.cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Optimizer of the network, built on first use: inference needs none, and torch's imports take a second."""
        return self.runtime.prepare_optimizer(self.make_optimizer(self.model.parameters()))

    def compile(self) -> None:
        """Compile the network for the following steps."""
        self.training_model = self.runtime.compile(self.ddp_model)

    def get_stateful_objects(self) -> dict[str, Any]:
        """Return the objects that a checkpoint saves by name; each has ``state_dict`` and ``load_state_dict``."""
        objects = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        return objects | ({"lr_schedule": self.lr_schedule} if isinstance(self.lr_schedule, ReduceOnPlateau) else {})

    def get_modules(self) -> dict[str, nn.Module]:
        """Return the modules used for inference by name; ``weights.safetensors`` contains their tensors."""
        return {"model": self.model}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Replace the modules used for inference by name, such as by quantized ones; they are not trained."""
        self.model = modules["model"]

    def prepare_inputs(self, batch: Any) -> Tensor:
        """Return the network's inputs for a batch, ``(N, ...)``."""
        raise UsageError(f"{type(self).__name__} cannot be calibrated: it does not define prepare_inputs(batch)")

    def get_signature(self) -> ModelSignature:
        """Return the signature of the network for other programs."""
        raise UsageError(
            f"{type(self).__name__} cannot be exported to another program: it does not define get_signature()"
        )

    def count_steps(self, train: Any) -> tuple[int, int]:
        """Return the number of steps of the training and the evaluation interval in steps."""
        return self.epochs * len(train), self.eval_every * len(train)

    def count_work(self, step: int) -> float:
        """Return the work before a step, in any unit, for the estimate of the remaining time."""
        return step

    def iterate_batches(self, train: Any) -> Iterable[Any]:
        """Iterate over the batches of the training without end, by default epoch after epoch."""
        while True:
            yield from train

    def schedule(self, progress: float) -> float:
        """Set the learning rate at ``progress`` in [0, 1) of the training, and return it for the log."""
        factor = self.lr_schedule(progress)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(group["initial_lr"] * factor)
        return float(self.optimizer.param_groups[0]["initial_lr"] * factor)

    def on_evaluation(self, metrics: dict[str, float]) -> None:
        """Pass the metrics of an evaluation during training to a plateau schedule."""
        if isinstance(self.lr_schedule, ReduceOnPlateau):
            self.lr_schedule.on_evaluation(metrics)

    def step(self, batch: Any) -> dict[str, Tensor]:
        """Run one training step, and return scalars for the log, on the device."""
        clock = self.runtime.clock
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        for fraction, micro_batch, is_last in self.split_batch(batch):
            with self.runtime.no_sync(self.ddp_model, not is_last):
                with clock("forward"), self.runtime.autocast():
                    loss, metrics = self.compute_loss(micro_batch)
                with clock("backward"):
                    self.scaler.scale(fraction * loss).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = fraction * value + totals[name] if name in totals else fraction * value
        with clock("optimizer"):
            self.apply_gradients(self.optimizer, self.scaler)
            self.on_step()
        return totals

    def apply_gradients(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        """Run an optimizer step with the current gradients, after gradient clipping."""
        if self.clip_norm:
            scaler.unscale_(optimizer)
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if scaler.is_enabled():
            _init_momentum_buffers(optimizer)
        scaler.step(optimizer)
        scaler.update()

    def split_batch(self, batch: Any) -> Iterator[tuple[float, Any, bool]]:
        """Split the batch into ``accumulate`` micro-batches: fraction of the batch, micro-batch, whether it is last.

        Raises:
            UsageError: the batch has fewer samples.
        """
        if self.accumulate == 1:
            yield 1.0, batch, True
            return
        leaves, spec = pytree.tree_flatten(batch)
        size = len(leaves[0])
        if size < self.accumulate:
            raise UsageError(f"cannot split a batch of {size} samples into {self.accumulate} parts; lower --accumulate")
        for index, part in enumerate(zip(*(leaf.tensor_split(self.accumulate) for leaf in leaves), strict=True), 1):
            yield len(part[0]) / size, pytree.tree_unflatten(part, spec), index == self.accumulate

    def on_step(self) -> None:
        """Run after each optimizer step; does nothing by default."""

    def compute_loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, a scalar, and other metrics for the log; call ``self.training_model``."""
        raise NotImplementedError(f"{type(self).__name__} defines neither compute_loss nor step")

    def evaluate(self, batches: Iterable[Any]) -> dict[str, Any]:
        """Compute the metrics and ``count`` over all processes, without a change of the weights.

        The first metric is the main one. All values are numbers; metrics of each class may follow in nested dicts.
        """
        raise UsageError(f"{type(self).__name__} cannot be evaluated: it does not define evaluate(batches)")

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Predict each input: one dict per input, ready for JSON; ``{"file", "error"}`` if it cannot be read."""
        raise UsageError(f"{type(self).__name__} cannot predict: it does not define predict(inputs)")

    def draw_prediction(self, source: Any, prediction: dict[str, Any]) -> "Image":
        """Draw the prediction of ``source`` as an image."""
        raise UsageError(f"{type(self).__name__} cannot draw its predictions; predict without --out")

    def render_maps(self, prediction: dict[str, Any]) -> "dict[str, Image]":
        """Render further images of a prediction by name, such as label maps; none by default."""
        return {}

    def preview(self) -> "Image | None":
        """Return the image of the last evaluation during training, or None if the task has none."""
        return None

    def plot_evaluation(self, batches: Iterable[Any]) -> "Iterator[tuple[str, Figure | Sequence[Image]]]":
        """Plot titled figures of the evaluation for the run's report; a sequence of images is an animation."""
        yield from ()

    def with_views(self, num_views: int) -> Self:
        """Return this task with test-time augmentation over ``num_views`` views, the first being the input itself."""
        if num_views == 1:
            return self
        raise UsageError(f"{type(self).__name__} does not support test-time augmentation; omit --views")

    def ensemble_with(self, others: Sequence[Self], *, vote: bool = False) -> Self:
        """Return the ensemble of this task and ``others``: averaged, or by majority vote."""
        raise UsageError(f"{type(self).__name__} does not support ensembles; use one run")


def supports_capture(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> bool:
    """Return whether a CUDA graph can capture an optimizer step, in which the CPU may not read a value of the device.

    Adagrad counts its steps on the CPU, and reads them from the device after a resumption. The scaler reads whether the
    gradients are finite, except for optimizers that check it themselves.
    """
    reads_device = scaler.is_enabled() and not getattr(optimizer, "_step_supports_amp_scaling", False)
    return not (reads_device or isinstance(optimizer, torch.optim.Adagrad))


def _init_momentum_buffers(optimizer: torch.optim.Optimizer) -> None:
    """Initialize the momentum of torch's fused SGD to 0, which does not change the first step.

    torch allocates it uninitialized, for the first step to overwrite. If the scaler skips that step because gradients
    are not finite, the next one would add uninitialized memory to the weights.
    """
    for group in optimizer.param_groups:
        if group.get("fused") and group.get("momentum"):
            for parameter in group["params"]:
                if parameter.grad is not None and "momentum_buffer" not in optimizer.state[parameter]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.grad)
