"""Faster R-CNN trained in four steps, as the paper did (Ren et al. 2015, section 3.2)."""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fukami.detection.task import DetectionTask
from fukami.errors import UsageError
from fukami.layers.detection_types import Detections

if TYPE_CHECKING:
    from fukami.data.samples import PaddedBatch
    from fukami.engine.runtime import Runtime

STEP_BOUNDARIES = (0, 1 / 3, 1 / 2, 5 / 6, 1)  # as its code had them: 80,000, 40,000, 80,000 and 40,000 updates
NOT_STARTED, TRAIN_RPN, TRAIN_DETECTOR, FINETUNE_RPN, FINETUNE_DETECTOR = range(-1, 4)
MIN_STEPS = 6  # updates of which each step has one


class AlternatingDetectionTask(DetectionTask):
    """Proposals and regions learned in turn, first by two networks and then with shared convolutions.

    1. A network of its own learns to propose. 2. The detector learns from its proposals, on convolutions of its own.
    3. The detector's part for proposals, begun with the first network's, learns on those convolutions, which stay as
    they are from now on. 4. So does its part for regions, from these proposals.
    """

    is_alternating = True
    current_step = NOT_STARTED  # step of the training

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        super().setup(runtime)
        if self.is_alternating:
            self.proposal_network = copy.deepcopy(self.model)
            self.step_counter = StepCounter().to(runtime.device)
            every = [parameter for network in self.get_networks() for parameter in network.parameters()]
            self.trainable_ids = {id(parameter) for parameter in every if parameter.requires_grad}
            self.optimizer = runtime.prepare_optimizer(self.make_optimizer(every))

    def get_networks(self) -> list[nn.Module]:
        """The detector, and the network that proposes while they are trained."""
        return [self.model, self.proposal_network] if self.is_alternating else [self.model]

    def count_steps(self, train: Any) -> tuple[int, int]:
        """As for every detector.

        Raises:
            UsageError: there are not enough updates for all steps to have one.
        """
        steps, interval = super().count_steps(train)
        if steps < MIN_STEPS:
            raise UsageError(
                f"the four steps of --training alternating need {MIN_STEPS} updates, and {self.epochs} epochs have "
                f"{steps}; give more --epochs"
            )
        return steps, interval

    def replace_modules(self, modules: dict[str, nn.Module]) -> None:
        """Answer with another network, which is not trained."""
        super().replace_modules(modules)
        self.is_alternating = False

    def get_stateful_objects(self) -> dict[str, Any]:
        """Also the network that proposes, and which step it is."""
        return super().get_stateful_objects() | {"proposer": self.proposal_network, "begun": self.step_counter}

    def schedule(self, progress: float) -> float:
        """The learning rate, whose course begins anew in each step; begins the steps."""
        step = max(number for number in range(4) if progress >= STEP_BOUNDARIES[number])
        if step != self.current_step:
            self._begin_step(step)
        return super().schedule(
            (progress - STEP_BOUNDARIES[step]) / (STEP_BOUNDARIES[step + 1] - STEP_BOUNDARIES[step])
        )

    def _begin_step(self, step: int) -> None:
        """What a step begins with (once, however often the run is resumed), and what it trains."""
        if int(self.step_counter.step) < step:
            if step == TRAIN_RPN:
                self.proposal_network.load_state_dict(self.model.state_dict())  # which has been initialised meanwhile
            if step == FINETUNE_RPN:
                self.model.rpn.load_state_dict(self.proposal_network.rpn.state_dict())  # type: ignore[union-attr]
            self.optimizer.state.clear()
            self.step_counter.step.fill_(step)
        self.current_step = step
        trained = {id(parameter) for part in self._select_modules(step) for parameter in part.parameters()}
        for module in (module for network in self.get_networks() for module in network.modules()):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(id(parameter) in trained & self.trainable_ids)
                parameter.grad = None
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # what stays as it is keeps its statistics, too
                module.train(any(parameter.requires_grad for parameter in module.parameters()))
        self.ddp_model = self.training_model = self.runtime.replicate(
            self.proposal_network if step == TRAIN_RPN else self.model
        )

    def _select_modules(self, step: int) -> Iterator[nn.Module]:
        """The modules that a step trains."""
        whole: Any = self.proposal_network if step == TRAIN_RPN else self.model
        if step in (TRAIN_RPN, TRAIN_DETECTOR):
            yield whole.backbone
        yield whole.rpn if step in (TRAIN_RPN, FINETUNE_RPN) else whole.roi_heads

    def compute_loss(self, batch: "PaddedBatch") -> tuple[Tensor, dict[str, Tensor]]:
        """That of the stage which learns in this step; the other's are 0."""
        if self.current_step == NOT_STARTED:  # nobody asks for a learning rate, as in a range test
            self._begin_step(TRAIN_RPN)
        images, sizes, truth = self.prepare_training_inputs(batch)
        if self.current_step in (TRAIN_RPN, FINETUNE_RPN):
            samples, _ = self.training_model(images, sizes, truth, part="rpn")
            losses = self.compute_stage_losses(samples, "objectness", "anchor_boxes")
        else:
            proposals = self.proposal_network.propose(images, sizes) if self.current_step == TRAIN_DETECTOR else None  # type: ignore[operator]
            _, samples = self.training_model(images, sizes, truth, proposals, part="regions")
            losses = self.compute_stage_losses(samples, "classification", "region_boxes")
        nothing = torch.zeros((), device=images.device)
        every = {
            name: losses.get(name, nothing) for name in ("objectness", "anchor_boxes", "classification", "region_boxes")
        }
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in every.items()}

    def detect(self, images: Tensor, sizes: Tensor) -> list[Detections]:
        """What is in images; until the detector can propose itself, the other network proposes."""
        if self.current_step not in (TRAIN_RPN, TRAIN_DETECTOR):
            return super().detect(images, sizes)
        normalised = self.normalize_images(images, sizes)
        proposals = self.proposal_network.propose(normalised, sizes)  # type: ignore[operator]
        found: list[Detections] = self.model(normalised, sizes, proposals=proposals)
        return found


class StepCounter(nn.Module):
    """The last step that was begun, which a resumed run has to know."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(-1))
