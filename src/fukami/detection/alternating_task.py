"""4-step alternating training of Faster R-CNN (Ren et al. 2017, section 3.2)."""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fukami.detection.task import DetectionTask
from fukami.layers.detection_types import Detections
from fukami.models.faster_rcnn import FasterRCNN

if TYPE_CHECKING:
    from fukami.data.samples import PaddedBatch

STEP_BOUNDARIES = (0, 1 / 3, 1 / 2, 5 / 6, 1)  # the authors' code: 80,000, 40,000, 80,000 and 40,000 iterations
NOT_STARTED, TRAIN_RPN, TRAIN_DETECTOR, FINETUNE_RPN, FINETUNE_DETECTOR = range(-1, 4)


class AlternatingDetectionTask(DetectionTask):
    """Alternating training of both stages, first on two backbones and then on a shared one.

    1. A separate network learns to propose regions. 2. The detector trains on its proposals, with its own backbone.
    3. The detector's region proposal network (RPN) starts from the first network's and trains on the detector's
    backbone, which is frozen from now on. 4. The detection head trains on the proposals of this RPN.
    """

    metric_mode = None
    model: FasterRCNN
    min_steps = 6  # with fewer, one of the four training steps has none
    current_step = NOT_STARTED  # of the four training steps

    def prepare_training(self) -> None:
        """Create the network that proposes regions in the first two steps, and one optimizer for both networks."""
        super().prepare_training()
        self.proposal_network = copy.deepcopy(self.model)
        self.step_counter = StepCounter().to(self.runtime.device)
        parameters = [*self.model.parameters(), *self.proposal_network.parameters()]
        self.trainable_ids = {id(parameter) for parameter in parameters if parameter.requires_grad}
        self.optimizer = self.runtime.prepare_optimizer(self.make_optimizer(parameters))
        self.optimizers = [self.optimizer]
        self.state |= {
            "optimizer": self.optimizer,
            "proposal_network": self.proposal_network,
            "step_counter": self.step_counter,
        }

    def compile(self) -> None:
        """Compile both networks."""
        super().compile()
        self.compile_network(self.proposal_network)

    def schedule(self, progress: float) -> float:
        """Set the learning rate, whose schedule restarts in each training step, and start the steps that are due."""
        step = max(index for index in range(4) if progress >= STEP_BOUNDARIES[index])
        if step != self.current_step:
            self._start_step(step)
        return super().schedule(
            (progress - STEP_BOUNDARIES[step]) / (STEP_BOUNDARIES[step + 1] - STEP_BOUNDARIES[step])
        )

    def _start_step(self, step: int) -> None:
        """Initialize a training step, once even if the run is resumed, and select the parameters that it trains."""
        if int(self.step_counter.step) < step:
            if step == TRAIN_RPN:
                self.proposal_network.load_state_dict(self.model.state_dict())  # initialized after setup
            if step == FINETUNE_RPN:
                self.model.rpn.load_state_dict(self.proposal_network.rpn.state_dict())
            self.optimizer.state.clear()
            self.step_counter.step.fill_(step)
        self.current_step = step
        trained_ids = {id(parameter) for module in self._select_modules(step) for parameter in module.parameters()}
        for module in (module for network in (self.model, self.proposal_network) for module in network.modules()):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(id(parameter) in trained_ids & self.trainable_ids)
                parameter.grad = None
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # frozen layers keep their statistics, too
                module.train(any(parameter.requires_grad for parameter in module.parameters()))
        self.ddp_model = self.training_model = self.runtime.replicate(
            self.proposal_network if step == TRAIN_RPN else self.model
        )

    def _select_modules(self, step: int) -> Iterator[nn.Module]:
        """Yield the modules that a training step trains."""
        network = self.proposal_network if step == TRAIN_RPN else self.model
        if step in (TRAIN_RPN, TRAIN_DETECTOR):
            yield network.backbone
        yield network.rpn if step in (TRAIN_RPN, FINETUNE_RPN) else network.roi_heads

    def compute_loss(self, batch: "PaddedBatch") -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of the stage that the current step trains; the losses of the other stage are 0."""
        if self.current_step == NOT_STARTED:  # schedule() was not called, as in a learning-rate range test
            self._start_step(TRAIN_RPN)
        images, sizes, truth = self.prepare_training_inputs(batch)
        if self.current_step in (TRAIN_RPN, FINETUNE_RPN):
            samples, _ = self.training_model(images, sizes, truth, stage="rpn")
            losses = self.compute_stage_losses(samples, "objectness", "anchor_boxes")
        else:
            proposals = self.proposal_network.propose(images, sizes) if self.current_step == TRAIN_DETECTOR else None
            _, samples = self.training_model(images, sizes, truth, proposals, stage="regions")
            losses = self.compute_stage_losses(samples, "classification", "region_boxes")
        zero = torch.zeros((), device=images.device)
        all_losses = {
            name: losses.get(name, zero) for name in ("objectness", "anchor_boxes", "classification", "region_boxes")
        }
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in all_losses.items()}

    def detect(self, images: Tensor, sizes: Tensor) -> list[Detections]:
        """Detect objects in images; in the first two steps the separate network proposes the regions."""
        if self.current_step not in (TRAIN_RPN, TRAIN_DETECTOR):
            return super().detect(images, sizes)
        normalized = self.normalize_images(images, sizes)
        proposals = self.proposal_network.propose(normalized, sizes)
        detections: list[Detections] = self.model(normalized, sizes, proposals=proposals)
        return detections


class StepCounter(nn.Module):
    """Number of the last training step that was started, saved in the checkpoint; -1: none."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(-1))
