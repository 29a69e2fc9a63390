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

    alternates = True
    current = NOT_STARTED  # step of the training

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        super().setup(runtime)
        if self.alternates:
            self.proposer = copy.deepcopy(self.model)
            self.begun = StepCounter().to(runtime.device)
            every = [parameter for network in self.networks() for parameter in network.parameters()]
            self.trainable = {id(parameter) for parameter in every if parameter.requires_grad}
            self.optimizer = runtime.steer(self.make_optimizer(every))

    def networks(self) -> list[nn.Module]:
        """The detector, and the network that proposes while they are trained."""
        return [self.model, self.proposer] if self.alternates else [self.model]

    def duration(self, train: Any) -> tuple[int, int]:
        """As for every detector.

        Raises:
            UsageError: there are not enough updates for all steps to have one.
        """
        steps, interval = super().duration(train)
        if steps < MIN_STEPS:
            raise UsageError(
                f"the four steps of --training alternating need {MIN_STEPS} updates, and {self.epochs} epochs have "
                f"{steps}; give more --epochs"
            )
        return steps, interval

    def replace(self, modules: dict[str, nn.Module]) -> None:
        """Answer with another network, which is not trained."""
        super().replace(modules)
        self.alternates = False

    def state(self) -> dict[str, Any]:
        """Also the network that proposes, and which step it is."""
        return super().state() | {"proposer": self.proposer, "begun": self.begun}

    def schedule(self, progress: float) -> float:
        """The learning rate, whose course begins anew in each step; begins the steps."""
        step = max(number for number in range(4) if progress >= STEP_BOUNDARIES[number])
        if step != self.current:
            self._begin(step)
        return super().schedule(
            (progress - STEP_BOUNDARIES[step]) / (STEP_BOUNDARIES[step + 1] - STEP_BOUNDARIES[step])
        )

    def _begin(self, step: int) -> None:
        """What a step begins with (once, however often the run is resumed), and what it trains."""
        if int(self.begun.step) < step:
            if step == TRAIN_RPN:
                self.proposer.load_state_dict(self.model.state_dict())  # which has been initialised meanwhile
            if step == FINETUNE_RPN:
                self.model.rpn.load_state_dict(self.proposer.rpn.state_dict())  # type: ignore[union-attr]
            self.optimizer.state.clear()
            self.begun.step.fill_(step)
        self.current = step
        trained = {id(parameter) for part in self._trained(step) for parameter in part.parameters()}
        for module in (module for network in self.networks() for module in network.modules()):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(id(parameter) in trained & self.trainable)
                parameter.grad = None
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # what stays as it is keeps its statistics, too
                module.train(any(parameter.requires_grad for parameter in module.parameters()))
        self.parallel = self.replica = self.runtime.replicate(self.proposer if step == TRAIN_RPN else self.model)

    def _trained(self, step: int) -> Iterator[nn.Module]:
        """The modules that a step trains."""
        whole: Any = self.proposer if step == TRAIN_RPN else self.model
        if step in (TRAIN_RPN, TRAIN_DETECTOR):
            yield whole.backbone
        yield whole.rpn if step in (TRAIN_RPN, FINETUNE_RPN) else whole.roi_heads

    def loss(self, batch: "PaddedBatch") -> tuple[Tensor, dict[str, Tensor]]:
        """That of the stage which learns in this step; the other's are 0."""
        if self.current == NOT_STARTED:  # nobody asks for a learning rate, as in a range test
            self._begin(TRAIN_RPN)
        pictures, sizes, truth = self.asked(batch)
        if self.current in (TRAIN_RPN, FINETUNE_RPN):
            samples, _ = self.replica(pictures, sizes, truth, part="rpn")
            losses = self.losses(samples, "objectness", "anchor_boxes")
        else:
            proposals = self.proposer.propose(pictures, sizes) if self.current == TRAIN_DETECTOR else None  # type: ignore[operator]
            _, samples = self.replica(pictures, sizes, truth, proposals, part="regions")
            losses = self.losses(samples, "classification", "region_boxes")
        nothing = torch.zeros((), device=pictures.device)
        every = {
            name: losses.get(name, nothing) for name in ("objectness", "anchor_boxes", "classification", "region_boxes")
        }
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in every.items()}

    def detect(self, pictures: Tensor, sizes: Tensor) -> list[Detections]:
        """What is in pictures; until the detector can propose itself, the other network proposes."""
        if self.current not in (TRAIN_RPN, TRAIN_DETECTOR):
            return super().detect(pictures, sizes)
        normalised = self.normalised(pictures, sizes)
        found: list[Detections] = self.model(normalised, sizes, proposals=self.proposer.propose(normalised, sizes))  # type: ignore[operator]
        return found


class StepCounter(nn.Module):
    """The last step that was begun, which a resumed run has to know."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(-1))
