"""Faster R-CNN trained in four steps, as the paper did (Ren et al. 2015, section 3.2)."""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fukami.ops.regions import Found
from fukami.tasks.detection import Detection

if TYPE_CHECKING:
    from fukami.data.boxes import Batch
    from fukami.runtime import Runtime

STEPS = (0, 1 / 3, 1 / 2, 5 / 6, 1)  # as its code had them: 80,000, 40,000, 80,000 and 40,000 updates
PROPOSER, REGIONS, SHARED, LAST = range(4)


class Alternating(Detection):
    """Proposals and regions learned in turn, first by two networks and then with shared convolutions.

    1. A network of its own learns to propose. 2. The detector learns from its proposals, on convolutions of its own.
    3. The detector's part for proposals, begun with the first network's, learns on those convolutions, which stay as
    they are from now on. 4. So does its part for regions, from these proposals.
    """

    alternates = True

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready to train."""
        super().setup(runtime)
        if self.alternates:
            self.proposer = copy.deepcopy(self.model)
            self.begun = Begun().to(runtime.device)
            self.current = -1
            every = [*self.model.parameters(), *self.proposer.parameters()]
            self.trainable = {id(parameter) for parameter in every if parameter.requires_grad}
            self.optimizer = runtime.steer(self.make_optimizer(every))

    def replace(self, modules: dict[str, nn.Module]) -> None:
        """Answer with another network, which is not trained."""
        super().replace(modules)
        self.alternates = False

    def state(self) -> dict[str, Any]:
        """Also the network that proposes, and which step it is."""
        return super().state() | {"proposer": self.proposer, "begun": self.begun}

    def schedule(self, progress: float) -> float:
        """The learning rate, whose course begins anew in each step; begins the steps."""
        step = max(number for number in range(4) if progress >= STEPS[number])
        if step != self.current:
            self._begin(step)
        return super().schedule((progress - STEPS[step]) / (STEPS[step + 1] - STEPS[step]))

    def _begin(self, step: int) -> None:
        """What a step begins with (once, however often the run is resumed), and what it trains."""
        if int(self.begun.step) < step:
            if step == PROPOSER:
                self.proposer.load_state_dict(self.model.state_dict())  # which has been initialised meanwhile
            if step == SHARED:
                self.model.rpn.load_state_dict(self.proposer.rpn.state_dict())  # type: ignore[union-attr]
            self.optimizer.state.clear()
            self.begun.step.fill_(step)
        self.current = step
        trained = {id(parameter) for part in self._trained(step) for parameter in part.parameters()}
        for parameter in [*self.model.parameters(), *self.proposer.parameters()]:
            parameter.requires_grad_(id(parameter) in trained & self.trainable)
            parameter.grad = None
        self.parallel = self.replica = self.runtime.replicate(self.proposer if step == PROPOSER else self.model)

    def _trained(self, step: int) -> Iterator[nn.Module]:
        """The modules that a step trains."""
        whole: Any = self.proposer if step == PROPOSER else self.model
        if step in (PROPOSER, REGIONS):
            yield whole.backbone
        yield whole.rpn if step in (PROPOSER, SHARED) else whole.roi_heads

    def loss(self, batch: "Batch") -> tuple[Tensor, dict[str, Tensor]]:
        """That of the stage which learns in this step; the other's are 0."""
        pictures, sizes, truth = self.asked(batch)
        if self.current in (PROPOSER, SHARED):
            samples, _ = self.replica(pictures, sizes, truth, part="rpn")
            losses = self.losses(samples, "objectness", "anchor_boxes")
        else:
            proposals = self.proposer.propose(pictures, sizes) if self.current == REGIONS else None  # type: ignore[operator]
            _, samples = self.replica(pictures, sizes, truth, proposals, part="regions")
            losses = self.losses(samples, "classification", "region_boxes")
        nothing = torch.zeros((), device=pictures.device)
        every = {
            name: losses.get(name, nothing) for name in ("objectness", "anchor_boxes", "classification", "region_boxes")
        }
        return torch.stack(list(losses.values())).sum(), {name: loss.detach() for name, loss in every.items()}

    def detect(self, pictures: Tensor, sizes: Tensor) -> list[Found]:
        """What is in pictures; until the detector can propose itself, the other network proposes."""
        if not self.alternates or self.current > REGIONS:
            return super().detect(pictures, sizes)
        normalised = self.normalised(pictures, sizes)
        found: list[Found] = self.model(normalised, sizes, proposals=self.proposer.propose(normalised, sizes))  # type: ignore[operator]
        return found


class Begun(nn.Module):
    """The last step that was begun, which a resumed run has to know."""

    step: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", torch.tensor(-1))
