"""R-CNN's second and third stage: what is solved on the features of regions, and not learned by gradients."""

import math
from typing import TYPE_CHECKING, Any

import torch
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn

from fukami.data.samples import CROWD, REGULAR
from fukami.detection.rcnn_task import REGION_BATCH_SIZE, RCNNTask, RegionSettings
from fukami.errors import UsageError
from fukami.image.transform import ResizeTransform
from fukami.layers import boxes

if TYPE_CHECKING:
    from fukami.data.samples import PaddedBatch
    from fukami.engine.runtime import Runtime

TARGET_NORM = 20.0  # to which the features are scaled, on average: the costs below are meant for such
INTERCEPT_SCALING = 10.0  # what the machines' constant feature is, lest its weight be held back
NORM_SAMPLES = 8  # regions of an image whose features' norm is looked at
HARD_MARGIN, EASY_MARGIN = -1.0, -1.2  # margins from which on a negative is kept, and below which one leaves
RETRAIN_INTERVAL = 2000  # negatives more, and a machine is trained again
ABSENT_CLASS_MARGIN = -10.0  # the margin of a class without an object


class RCNNSolverTask(RCNNTask):
    """A stage of one step for each image, which keeps the network as it is."""

    min_score = 1 / (1 + math.exp(1.5))  # a margin of -1.5
    num_passes = 1  # over the images
    num_images = 0  # of the training part, once its duration was asked for

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready.

        Raises:
            UsageError: there are several processes.
        """
        if runtime.world_size > 1:
            raise UsageError(
                f"the SVMs and boxes of R-CNN are solved by one process, not {runtime.world_size}; start one"
            )
        for parameter in self.model.parameters():
            parameter.requires_grad = False
        super().setup(runtime)
        self.collected = TensorStore()

    def count_steps(self, train: Any) -> tuple[int, int]:
        """A step for each image and pass; judged at the end."""
        self.num_images = len(train)
        steps = self.num_passes * self.num_images
        return steps, steps

    def schedule(self, progress: float) -> float:
        """Nothing is learned by gradients."""
        return 0.0

    def get_stateful_objects(self) -> dict[str, Any]:
        """The network with what was solved, and what was collected."""
        return {"model": self.model, "tally": self.collected}

    def score_regions(self, fc7: Tensor) -> Tensor:
        """The margins of the machines as numbers in [0, 1]; a half is on the boundary. They are no probabilities."""
        return torch.sigmoid(self.model.svm(fc7).float())  # type: ignore[operator]

    def step(self, batch: "PaddedBatch") -> dict[str, Tensor]:
        """Look at one image."""
        self.on_step()
        with self.runtime.clock("forward"), torch.inference_mode():
            batch = self.move_to_device(batch)
            image = self.normalize_images(batch.images, batch.sizes)[0]
            return self.process_image(image, batch, next(self.iterate_proposals(batch)))

    def process_image(self, image: Tensor, batch: "PaddedBatch", proposals: Tensor) -> dict[str, Tensor]:
        """Collect from an image and its proposals, and solve when it is time; returns scalars for the log."""
        raise NotImplementedError(f"{type(self).__name__} does not define process_image(image, batch, proposals)")


class TensorStore:
    """Tensors by name that grow in the course of a stage, and are saved with it."""

    def __init__(self) -> None:
        self.chunks: dict[str, list[Tensor]] = {}

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of a name, on the CPU."""
        if len(self.chunks[name]) > 1:
            self.chunks[name] = [torch.cat(self.chunks[name])]
        return self.chunks[name][0]

    def __setitem__(self, name: str, rows: Tensor) -> None:
        self.chunks[name] = [rows.cpu()]

    def append(self, **rows: Tensor) -> None:
        """Append rows to the tensors of these names."""
        for name, own in rows.items():
            self.chunks.setdefault(name, []).append(own.cpu())

    def state_dict(self) -> dict[str, Tensor]:
        """All of them."""
        return {name: self[name] for name in self.chunks}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with these."""
        for name, rows in state.items():
            self[name] = rows


class SVMTask(RCNNSolverTask):
    """Stage 2: a linear SVM of each class, its negatives mined from all images (section 2.3, appendix B).

    The first pass collects the positives, which are the objects themselves, and the features' norm. In the second one,
    regions that overlap every object of a class by less than ``max_iou`` are its negatives: those that its machine does
    not tell by a margin are kept, and at each 2,000 new ones, and at the end, it is trained again and the easy ones
    leave. Regions on difficult objects and crowds are neither.

    Args:
        cost: the SVMs' C; positives count twice.
        max_iou: IoU.
        seed: of the solver.
        model, labels, prepare, region_settings: as for :class:`RegionCNN`.
    """

    num_passes = 2

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        prepare: ResizeTransform,
        region_settings: RegionSettings,
        *,
        cost: float = 1e-3,
        max_iou: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__(model, labels, prepare, region_settings)
        self.cost, self.max_iou, self.seed = cost, max_iou, seed

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready."""
        super().setup(runtime)
        svm: Any = self.model.svm
        classes, hidden = svm.out_features, svm.in_features
        nothing = torch.zeros(0, hidden, dtype=torch.float16)
        self.collected.append(
            looked=torch.zeros(1, dtype=torch.int64),
            norm=torch.zeros(2, dtype=torch.float64),  # sum, and of how many
            positives=nothing,
            classes=torch.zeros(0, dtype=torch.int64),
            negatives=nothing,
            members=torch.zeros(0, classes, dtype=torch.bool),  # of which classes each is a negative
            fresh=torch.zeros(classes, dtype=torch.int64),  # negatives since the last training
        )

    def process_image(self, image: Tensor, batch: "PaddedBatch", proposals: Tensor) -> dict[str, Tensor]:
        """Collect the positives in the first pass, and mine negatives in the second."""
        tally = self.collected
        tally["looked"] = tally["looked"] + 1
        looked, hard = int(tally["looked"]), 0
        if looked <= self.num_images:
            self.collect_positives(image, batch, proposals)
            if looked == self.num_images:
                self.initialize_svms()
        else:
            hard = self.mine_hard_negatives(image, batch, proposals)
            last = looked == self.num_passes * self.num_images
            for number in (tally["fresh"] >= (1 if last else RETRAIN_INTERVAL)).nonzero().flatten().tolist():
                self.train_svm(number)
        counts = {"hard": hard, "negatives": len(tally["negatives"]), "positives": len(tally["positives"])}
        return {name: torch.tensor(float(count)) for name, count in counts.items()}

    def collect_positives(self, image: Tensor, batch: "PaddedBatch", proposals: Tensor) -> None:
        """The positives of an image, and the norm of some features."""
        objects = (batch.classes[0] >= 0) & (batch.kinds[0] == REGULAR)
        found = self.extract_features(image, torch.cat([batch.boxes[0][objects], proposals[:NORM_SAMPLES]]))
        norms = found.float().norm(dim=1)
        self.collected["norm"] = self.collected["norm"] + torch.tensor(
            [norms.sum().item(), len(norms)], dtype=torch.float64
        )
        self.collected.append(positives=found[: int(objects.sum())], classes=batch.classes[0][objects])

    def initialize_svms(self) -> None:
        """Machines of which every region is a hard negative; none of a class without positives."""
        there = self.collected["classes"].bincount(minlength=len(self.labels)) > 0
        svm: Any = self.model.svm
        svm.weight.zero_()
        svm.bias.copy_(torch.where(there, 0.0, ABSENT_CLASS_MARGIN))

    def mine_hard_negatives(self, image: Tensor, batch: "PaddedBatch", proposals: Tensor) -> int:
        """Keep the hard negatives of an image; returns how many there are."""
        features = self.get_features(image, proposals)
        margins = self.model.svm(features.float())  # type: ignore[operator]
        hard = (margins > HARD_MARGIN) & find_negatives(batch, proposals, len(self.labels), self.max_iou)
        rows = hard.any(1)
        self.collected.append(negatives=features[rows], members=hard[rows])
        self.collected["fresh"] = self.collected["fresh"] + hard.sum(0).cpu()
        return int(hard.sum())

    def train_svm(self, class_index: int) -> None:
        """Train the machine of a class on its positives and what it has of negatives; the easy ones leave."""
        tally, members = self.collected, self.collected["members"][:, class_index]
        positives, negatives = tally["positives"][tally["classes"] == class_index], tally["negatives"][members]
        scale = TARGET_NORM / max(float(tally["norm"][0] / tally["norm"][1].clamp(min=1)), 1e-12)
        x = torch.cat([positives, negatives]).double() * scale
        y = torch.arange(len(x)) < len(positives)
        weight, bias = fit_svm(x, y, self.cost, self.seed)
        svm: Any = self.model.svm
        svm.weight[class_index] = scale * weight
        svm.bias[class_index] = bias
        left = members.clone()
        left[members] = (x[len(positives) :] @ weight + bias) >= EASY_MARGIN
        every = tally["members"].clone()
        every[:, class_index] = left
        needed = every.any(1)
        tally["members"], tally["negatives"] = every[needed], tally["negatives"][needed]
        fresh = tally["fresh"].clone()
        fresh[class_index] = 0
        tally["fresh"] = fresh


def find_negatives(batch: "PaddedBatch", proposals: Tensor, num_classes: int, max_iou: float) -> Tensor:
    """``(P, classes)``: which proposals of an image overlap no object of a class by ``max_iou``.

    Of a crowd, those are taken out that lie in it by half.
    """
    known = batch.classes[0] >= 0
    objects, numbers, kinds = batch.boxes[0][known], batch.classes[0][known], batch.kinds[0][known]
    near = boxes.compute_iou(proposals, objects) >= max_iou
    inside = boxes.compute_intersection(proposals, objects) >= 0.5 * boxes.compute_area(proposals).unsqueeze(1)
    taken = torch.where(kinds == CROWD, inside, near)
    own = nn.functional.one_hot(numbers, num_classes).bool()
    return ~(taken.unsqueeze(2) & own).any(1)


def fit_svm(x: Tensor, y: Tensor, cost: float, seed: int) -> tuple[Tensor, Tensor]:
    """A linear SVM of samples ``(n, d)`` of which ``y`` are positives: weights ``(d,)`` and bias."""
    solver = LinearSVC(
        C=cost, loss="hinge", intercept_scaling=INTERCEPT_SCALING, class_weight={True: 2.0}, tol=0.01, max_iter=20_000,
        random_state=seed,
    )  # fmt: skip
    with threadpool_limits(torch.get_num_threads(), "blas"):  # which decide how sums are rounded
        solver.fit(x.numpy(), y.numpy())
    return torch.from_numpy(solver.coef_[0]), torch.from_numpy(solver.intercept_)[0]


class BoxRegressionTask(RCNNSolverTask):
    """Stage 3: how far an object is from a region that overlaps it, by ridge regression on pool5 (appendix C).

    Args:
        ridge: the weight of the penalty, λ, for features of norm 20.
        min_iou: IoU with an object from which on a region is learned from.
        max_pairs: regions of a class at most; of more, the first in the order of the pass, which the seed shuffles.
        model, labels, prepare, region_settings: as for :class:`RegionCNN`.
    """

    def __init__(
        self,
        model: nn.Module,
        labels: tuple[str, ...],
        prepare: ResizeTransform,
        region_settings: RegionSettings,
        *,
        ridge: float = 1000.0,
        min_iou: float = 0.6,
        max_pairs: int = 4000,
    ) -> None:
        super().__init__(model, labels, prepare, region_settings)
        self.ridge, self.min_iou, self.max_pairs = ridge, min_iou, max_pairs

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and make ready."""
        super().setup(runtime)
        box: Any = self.model.bbox
        self.collected.append(
            looked=torch.zeros(1, dtype=torch.int64),
            features=torch.zeros(0, box.in_features, dtype=torch.float16),
            classes=torch.zeros(0, dtype=torch.int64),
            goals=torch.zeros(0, 4),
        )

    def process_image(self, image: Tensor, batch: "PaddedBatch", proposals: Tensor) -> dict[str, Tensor]:
        """Collect the regions that overlap an object; at the end, solve."""
        tally = self.collected
        tally["looked"] = tally["looked"] + 1
        objects = (batch.classes[0] >= 0) & (batch.kinds[0] == REGULAR)
        if objects.any() and len(proposals):
            truth, numbers = batch.boxes[0][objects], batch.classes[0][objects]
            most, which = boxes.compute_iou(proposals, truth).max(1)
            full = tally["classes"].bincount(minlength=len(self.labels)) >= self.max_pairs
            used = (most >= self.min_iou) & ~full.to(which.device)[numbers[which]]
            near, goals = proposals[used], truth[which[used]]
            features = self.extract_features(image, near, "pool5")
            tally.append(features=features, classes=numbers[which[used]], goals=boxes.encode_boxes(goals, near))
        if int(tally["looked"]) == self.num_images:
            self.fit_regressors()
        return {"pairs": torch.tensor(float(len(tally["classes"])))}

    def fit_regressors(self) -> None:
        """The regressors of every class that has regions, whose features are needed no more."""
        tally = self.collected
        box: Any = self.model.bbox
        norms = [part.float().norm(dim=1) for part in torch.split(tally["features"], REGION_BATCH_SIZE)]
        scale = TARGET_NORM / max(float(torch.cat(norms).mean().nan_to_num()), 1e-12)
        for number in sorted(set(tally["classes"].tolist())):
            own = tally["classes"] == number
            solver = Ridge(self.ridge, solver="cholesky")  # in as many unknowns as there are features, or samples
            features, goals = scale * tally["features"][own].double(), tally["goals"][own].double()
            with threadpool_limits(torch.get_num_threads(), "blas"):
                solver.fit(features.numpy(), goals.numpy())
            rows = slice(4 * number, 4 * number + 4)
            box.weight[rows] = torch.from_numpy(scale * solver.coef_)
            box.bias[rows] = torch.from_numpy(solver.intercept_)
        tally["features"] = tally["features"][:0].clone()

    def refine_boxes(self, image: Tensor, regions: Tensor, classes: Tensor) -> Tensor:
        """Where the regressors of their classes see the objects."""
        kind = next(self.model.parameters()).dtype
        deltas = self.model.bbox(self.extract_features(image, regions, "pool5").to(kind))  # type: ignore[operator]
        own = deltas.float().unflatten(1, (len(self.labels), 4))[torch.arange(len(regions)), classes]
        return boxes.decode_boxes(own, regions)
