"""Task: training step, evaluation and prediction, with one subclass per family of systems."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypedDict

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from torch.utils import _pytree as pytree

from fukami.data.loader import Loader, StateDict
from fukami.engine.prediction import Prediction, iterate_predictions
from fukami.engine.runtime import Runtime
from fukami.engine.schedules import ReduceOnPlateau, Schedule, compute_constant_factor
from fukami.errors import UsageError
from fukami.image.channels import ChannelSource
from fukami.image.transform import ResizeTransform, SquareTransform, get_normalization

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    # content of a figure of a report: a figure, the frames of an animation, or a grid of captions and images or figures
    FigureContent: TypeAlias = Figure | Sequence[Image] | Sequence[tuple[str, Figure | Image]]

Batch: TypeAlias = Any  # a tree of tensors, which each family defines
Metrics: TypeAlias = dict[str, Any]  # numbers, and dicts of the numbers of each class
OptimizerFactory = Callable[[ParamsT], torch.optim.Optimizer]


class TrainingOptions(TypedDict, total=False):
    """Training options: the keyword arguments of every :class:`Task`."""

    optimizer: OptimizerFactory
    lr_schedule: Schedule
    epochs: int
    eval_every: int
    patience: int
    accumulate: int
    clip_norm: float


class ModelSignature(NamedTuple):
    """Signature of a network for other programs.

    Attributes:
        model_type: kind of network, which determines its inputs and outputs.
        input_shape: shape ``(C, H, W)`` of an input image.
        metadata: preprocessing, labels and meaning of the outputs, as strings by name; the metadata of an ONNX file.
        prepare_inputs: returns the network's inputs for a batch, ``(N, ...)``; needed to calibrate int8.
    """

    model_type: Literal["classifier", "detector", "segmenter", "board", "go"]
    input_shape: tuple[int, int, int]
    metadata: dict[str, str]
    prepare_inputs: Callable[[Batch], Tensor] | None = None


class Results(Protocol):
    """Results of an evaluation: predictions and ground truth, over all processes."""

    def compute_metrics(self) -> Metrics:
        """Compute the metrics and ``count``; the first metric is the main one."""


class Stateful(Protocol):
    """Object whose state a checkpoint saves."""

    def state_dict(self) -> StateDict:
        """Return the state."""

    def load_state_dict(self, state: StateDict, /) -> object:
        """Restore the state."""


class Task:
    """Base class of tasks: one model trained by one optimizer.

    A subclass defines ``compute_loss`` (or ``step``), ``collect_results`` (or ``evaluate``) and ``predict_batch`` with
    ``transform`` (or ``prepare_image``). It may define ``draw``, ``plot_evaluation`` and ``get_signature``, and
    override what the training loop calls: ``setup``, ``prepare_training``, ``compile``, ``iterate_batches``,
    ``schedule`` and ``on_evaluation``. ``step`` includes the optimizer step, so two optimizers (a GAN), data generated
    during training (Q-learning) and the optimization of an image (style transfer) need no training loop of their own.

    Args:
        model: the network.
        optimizer: returns the optimizer of the parameters that it is called with.
        lr_schedule: learning-rate schedule, as a factor of the learning rate.
        epochs, eval_every: number of epochs, and evaluation interval in epochs.
        patience: early stopping after this number of evaluations in a row without a better main metric; 0 disables it.
        accumulate: gradient accumulation: number of micro-batches per step, for less memory.
        clip_norm: maximum gradient norm (gradient clipping, Pascanu et al. 2013); 0 disables it.
    """

    labels: tuple[str, ...] = ()  # names of the classes
    label_noun = "class"  # what a label names, for messages
    transform: SquareTransform | ResizeTransform | None = None  # preprocessing of images
    supports_cuda_graph = False  # whether every step launches the same GPU work on the same shapes
    # whether the best weights have the greatest or the smallest main metric of the validation data; None: the last
    # weights are the result
    metric_mode: Literal["max", "min"] | None = "max"
    ensemble_methods: tuple[str, ...] = ()  # of average and vote, those of which an ensemble of these tasks is capable
    reads_positions = False  # whether inputs are files of positions of a game, and not images
    min_steps = 1  # minimum number of optimizer steps of a training run
    predict_batch_size = 1  # maximum number of images per prediction batch

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerFactory = torch.optim.AdamW,
        lr_schedule: Schedule = compute_constant_factor,
        epochs: int = 1,
        eval_every: int = 1,
        patience: int = 0,
        accumulate: int = 1,
        clip_norm: float = 0.0,
    ) -> None:
        self.model = model
        self.make_optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.epochs = epochs
        self.eval_every = eval_every
        self.patience = patience
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.state: dict[str, Stateful] = {}  # what a checkpoint saves, by name
        self.last_evaluation: tuple[Iterable[Batch], Results] | None = None  # its batches and results

    def __repr__(self) -> str:
        size = sum(parameter.numel() for module in self.get_modules().values() for parameter in module.parameters())
        return f"{type(self).__name__}({len(self.labels)} labels, {size:,} parameters)"

    def setup(self, runtime: Runtime) -> None:
        """Move the networks to the device, for training or inference."""
        self.runtime = runtime
        self.model = runtime.move_to_device(self.model)
        if self.transform is not None:
            self.mean, self.std = get_normalization(self.transform, runtime.device)

    def prepare_training(self) -> None:
        """Create the optimizer and what else only training needs, after :meth:`setup`; fill ``state``.

        Frozen modules keep their statistics, too.
        """
        runtime = self.runtime
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        self.ddp_model = runtime.replicate(self.model)
        self.training_model: Callable[..., Any] = self.ddp_model
        self.optimizer = runtime.prepare_optimizer(self.make_optimizer(self.model.parameters()))
        self.optimizers = [self.optimizer]  # those whose learning rate is scheduled
        self.scaler = runtime.build_grad_scaler()
        self.supports_cuda_graph = self.supports_cuda_graph and supports_capture(self.optimizer, self.scaler)
        self.state |= {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        if isinstance(self.lr_schedule, ReduceOnPlateau):
            self.state["lr_schedule"] = self.lr_schedule

    def compile(self) -> None:
        """Compile the network for the following steps."""
        self.training_model = self.runtime.compile(self.ddp_model)

    def get_modules(self) -> dict[str, nn.Module]:
        """Return the modules used for inference by name; ``weights.safetensors`` contains their tensors."""
        return {"model": self.model}

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Replace the modules used for inference by name, such as by quantized ones; they are not trained."""
        self.model = modules["model"]

    def iterate_batches(self, loader: Loader) -> Iterable[Batch]:
        """Iterate over the batches of the training without end, by default epoch after epoch."""
        while True:
            yield from loader.iterate_epoch()

    def schedule(self, progress: float) -> float:
        """Set the learning rate at ``progress`` in [0, 1) of the training, and return it for the log."""
        self.last_evaluation = None  # the weights are about to change
        factor = self.lr_schedule(progress)
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group in groups:
            group["lr"].fill_(group["initial_lr"] * factor)
        return float(groups[0]["initial_lr"] * factor) if groups else 0.0

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Run one training step, and return scalars for the log, on the device."""
        clock = self.runtime.clock
        self.optimizer.zero_grad()
        totals: dict[str, Tensor] = {}
        parts = list(split_batch(batch, self.accumulate))
        counts = [self.count_targets(part) for _, part, _ in parts] if len(parts) > 1 else []
        if targets := [count for count in counts if count is not None]:
            values = self.runtime.all_reduce_sum(torch.stack(targets).float())
            fractions = values / values.sum().clamp(min=1e-6)
            parts = [(fraction, *part[1:]) for fraction, part in zip(fractions, parts, strict=True)]
        for fraction, micro_batch, is_last in parts:
            with self.runtime.no_sync(self.ddp_model, not is_last):
                with clock("forward"), self.runtime.autocast():
                    loss, metrics = self.compute_loss(micro_batch)
                with clock("backward"):
                    torch.autograd.backward(self.scaler.scale(fraction * loss))
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = fraction * value + totals[name] if name in totals else fraction * value
        with clock("optimizer"):
            apply_gradients(self.optimizer, self.scaler, self.clip_norm)
        return totals

    def count_targets(self, batch: Batch) -> Tensor | None:
        """Count what the loss of a batch is averaged over, for gradient accumulation; None: its samples."""
        return None

    def compute_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch, a scalar, and other metrics for the log; call ``self.training_model``."""
        raise NotImplementedError(f"{type(self).__name__} defines neither compute_loss nor step")

    def collect_results(self, batches: Iterable[Batch]) -> Results:
        """Collect predictions and ground truth of ``batches`` over all processes; the networks are in eval mode.

        Raises:
            UsageError: the data contain a class that the task does not have.
        """
        raise UsageError(f"{type(self).__name__} cannot be evaluated: it defines neither collect_results nor evaluate")

    @torch.inference_mode()
    def evaluate(self, batches: Iterable[Batch]) -> Metrics:
        """Compute the metrics and ``count`` over all processes, without a change of the weights.

        The first metric is the main one. All values are numbers; metrics of each class may follow in nested dicts. If
        ``batches`` has ``labels``, classes are matched by name.

        Raises:
            UsageError: the data contain a class that the task does not have.
            Error: there is nothing to evaluate.
        """
        self.last_evaluation = None
        return self._get_results(batches).compute_metrics()

    def _get_results(self, batches: Iterable[Batch]) -> Results:
        """Return the results for ``batches``, those of the last evaluation if it was of them."""
        if self.last_evaluation is None or self.last_evaluation[0] is not batches:
            with torch.inference_mode(), self.evaluation_mode():
                self.last_evaluation = batches, self.collect_results(batches)
        return self.last_evaluation[1]

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Switch all networks to evaluation mode within the context, and restore the mode of each module after it."""
        networks = [*self.get_modules().values(), *self.state.values()]
        modules = {module for network in networks if isinstance(network, nn.Module) for module in network.modules()}
        modes = {module: module.training for module in modules}
        for module in modules:
            module.training = False
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def on_evaluation(self, metrics: Metrics) -> "Image | None":
        """Run after each evaluation during training; return an image for the run's folder, if the task has one."""
        return None

    def predict(self, inputs: Iterable[ChannelSource]) -> list[Prediction]:
        """Predict each input: one dict per input, ready for JSON.

        Args:
            inputs: paths, PIL images or arrays as :func:`fukami.image.channels.read_channels` accepts them.

        Returns:
            Dicts that begin with ``file`` for a path; ``{"file", "error"}`` if an input cannot be read.
        """
        return [result for _, result in self.iterate_predictions(inputs)]

    def iterate_predictions(
        self, inputs: Iterable[ChannelSource], *, keep_images: bool = False
    ) -> "Iterator[tuple[Image | None, Prediction]]":
        """Iterate over the image and the prediction of each input, as for :meth:`predict`.

        ``keep_images`` returns the images that :meth:`draw` needs; otherwise they are None.
        """
        yield from iterate_predictions(self, inputs, keep_images=keep_images)

    def prepare_image(self, image: Any) -> Tensor:
        """Convert an upright image to an element of a prediction batch, ``(C, H, W)`` in 0..255.

        By default ``transform`` does it. For a task without ``transform``, the image is in mode L or RGB.

        Raises:
            Error: the image cannot be used.
        """
        if self.transform is None:
            raise UsageError(f"{type(self).__name__} cannot predict: it does not define prepare_image(image)")
        return self.transform.convert_to_tensor(image)

    def predict_batch(self, images: Tensor) -> list[Prediction]:
        """Predict a batch of images ``(N, C, H, W)`` of :meth:`prepare_image`: one dict per image."""
        raise UsageError(f"{type(self).__name__} cannot predict: it does not define predict_batch(images)")

    def draw(self, image: "Image", prediction: Prediction) -> "Image":
        """Draw the prediction of an image, which is upright and in mode L or RGB."""
        raise UsageError(f"{type(self).__name__} cannot draw its predictions; predict without --out")

    def plot_evaluation(self, batches: Iterable[Batch]) -> "Iterator[tuple[str, FigureContent]]":
        """Plot titled figures of the evaluation for the run's report, those of errors last.

        A sequence of images is an animation, a sequence of captions and images or figures is a grid.
        """
        yield from ()

    def get_signature(self) -> ModelSignature:
        """Return the signature of the network for other programs."""
        raise UsageError(
            f"{type(self).__name__} cannot be exported to another program: it does not define get_signature()"
        )


def match_labels(labels: tuple[str, ...], batches: Iterable[Batch]) -> list[int]:
    """Return the index in ``labels`` of each class of ``batches``; data without class names have these classes.

    Raises:
        UsageError: the data have a class that is not in ``labels``.
    """
    data_labels: tuple[str, ...] = getattr(batches, "labels", ()) or labels
    unknown = [label for label in data_labels if label not in labels]
    if unknown:
        known = ", ".join(labels[:20])
        raise UsageError(f"the data have classes that the run does not have: {', '.join(unknown)}; it has {known}")
    return [labels.index(label) for label in data_labels]


def split_batch(batch: Batch, num_parts: int) -> Iterator[tuple[float | Tensor, Batch, bool]]:
    """Split a batch into micro-batches: fraction of the batch, micro-batch, whether it is the last one.

    Raises:
        UsageError: the batch has fewer samples than parts.
    """
    if num_parts == 1:
        yield 1.0, batch, True
        return
    leaves, spec = pytree.tree_flatten(batch)
    size = len(leaves[0])
    if size < num_parts:
        raise UsageError(f"cannot split a batch of {size} samples into {num_parts} parts; lower --accumulate")
    for index, part in enumerate(zip(*(leaf.tensor_split(num_parts) for leaf in leaves), strict=True), 1):
        yield len(part[0]) / size, pytree.tree_unflatten(part, spec), index == num_parts


def apply_gradients(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip_norm: float) -> None:
    """Run an optimizer step with the current gradients, after gradient clipping."""
    if clip_norm:
        scaler.unscale_(optimizer)
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    if scaler.is_enabled():
        _init_momentum_buffers(optimizer)
    scaler.step(optimizer)
    scaler.update()


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
