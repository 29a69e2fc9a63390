"""R-CNN's second and third stage: SVMs and box regressors, fitted to the features of regions by solvers."""

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

TARGET_NORM = 20.0  # mean norm that the features are scaled to; the SVM costs and the ridge penalty assume it
INTERCEPT_SCALING = 10.0  # value of the constant feature; a large one keeps the bias almost unregularized
NORM_SAMPLES = 8  # proposals per image in the estimate of the mean norm
HARD_MARGIN, EASY_MARGIN = -1.0, -1.2  # a negative is kept above the first and removed below the second
RETRAIN_INTERVAL = 2000  # new negatives after which an SVM is trained again
ABSENT_CLASS_MARGIN = -10.0  # bias of a class without objects


class RCNNSolverTask(RCNNTask):
    """Base class of a stage with a frozen network and one step per image."""

    min_score = 1 / (1 + math.exp(1.5))  # a margin of -1.5
    num_epochs = 1
    num_images = 0  # of the training split; set by count_steps

    def setup(self, runtime: "Runtime") -> None:
        """Move to the device and prepare for training.

        Raises:
            UsageError: there are several processes.
        """
        if runtime.world_size > 1:
            raise UsageError(
                f"one process fits the SVMs and box regressors of R-CNN, not {runtime.world_size}; start one"
            )
        for parameter in self.model.parameters():
            parameter.requires_grad = False
        super().setup(runtime)
        self.store = TensorStore()

    def count_steps(self, train: Any) -> tuple[int, int]:
        """Return the number of steps, one per image and epoch, and the evaluation interval, which is the same."""
        self.num_images = len(train)
        steps = self.num_epochs * self.num_images
        return steps, steps

    def schedule(self, progress: float) -> float:
        """Return 0: there is no learning rate."""
        return 0.0

    def get_stateful_objects(self) -> dict[str, Any]:
        """Return the network with the fitted layers, and the tensors that were collected."""
        return {"model": self.model, "store": self.store}

    def score_regions(self, fc7: Tensor) -> Tensor:
        """Map the SVM margins to [0, 1] by a sigmoid; 0.5 is on the boundary. The scores are not probabilities."""
        return torch.sigmoid(self.model.svm(fc7).float())  # type: ignore[operator]

    def step(self, batch: "PaddedBatch") -> dict[str, Tensor]:
        """Process one image."""
        self.on_step()
        with self.runtime.clock("forward"), torch.inference_mode():
            batch = self.move_to_device(batch)
            image = self.normalize_images(batch.images, batch.sizes)[0]
            return self.process_image(image, batch, next(self.iterate_proposals(batch)))

    def process_image(self, image: Tensor, batch: "PaddedBatch", proposals: Tensor) -> dict[str, Tensor]:
        """Collect features of an image and its proposals, and fit when it is due; returns scalars for the log."""
        raise NotImplementedError(f"{type(self).__name__} does not define process_image(image, batch, proposals)")


class TensorStore:
    """Growing tensors by name, saved in the checkpoint of a stage."""

    def __init__(self) -> None:
        self.chunks: dict[str, list[Tensor]] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor of a name, on the CPU."""
        if len(self.chunks[name]) > 1:
            self.chunks[name] = [torch.cat(self.chunks[name])]
        return self.chunks[name][0]

    def __setitem__(self, name: str, rows: Tensor) -> None:
        self.chunks[name] = [rows.cpu()]

    def append(self, **rows: Tensor) -> None:
        """Append rows to the tensors of these names."""
        for name, new_rows in rows.items():
            self.chunks.setdefault(name, []).append(new_rows.cpu())

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {name: self[name] for name in self.chunks}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors."""
        for name, rows in state.items():
            self[name] = rows


class SVMTask(RCNNSolverTask):
    """Stage 2: a linear SVM per class, with hard negative mining over all images (section 2.3, appendix B).

    The first epoch collects the positives, which are the objects themselves, and the mean norm of the features. In the
    second, regions that overlap every object of a class by less than ``max_iou`` are its negatives. Hard negatives,
    with an SVM margin above -1, are kept. After 2,000 new ones, and at the end, the SVM is trained again and easy
    negatives are removed. Regions on difficult objects and crowds are neither positives nor negatives.

    Args:
        cost: C of the SVMs; positives have weight 2.
        max_iou: IoU threshold of a negative.
        seed: seed of the solver.
        model, labels, prepare, region_settings: as for :class:`RCNNTask`.
    """

    num_epochs = 2

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
        """Move to the device and prepare for training."""
        super().setup(runtime)
        svm: Any = self.model.svm
        classes, hidden = svm.out_features, svm.in_features
        no_features = torch.zeros(0, hidden, dtype=torch.float16)
        self.store.append(
            num_processed=torch.zeros(1, dtype=torch.int64),
            norm=torch.zeros(2, dtype=torch.float64),  # sum and count
            positives=no_features,
            classes=torch.zeros(0, dtype=torch.int64),
            negatives=no_features,
            is_negative=torch.zeros(0, classes, dtype=torch.bool),  # whether each row is a negative of each class
            num_new=torch.zeros(classes, dtype=torch.int64),  # negatives since the last training
        )

    def process_image(self, image: Tensor, batch: "PaddedBatch", proposals: Tensor) -> dict[str, Tensor]:
        """Collect the positives in the first epoch, and mine hard negatives in the second."""
        store = self.store
        store["num_processed"] = store["num_processed"] + 1
        num_processed, num_hard = int(store["num_processed"]), 0
        if num_processed <= self.num_images:
            self.collect_positives(image, batch, proposals)
            if num_processed == self.num_images:
                self.initialize_svms()
        else:
            num_hard = self.mine_hard_negatives(image, batch, proposals)
            is_last = num_processed == self.num_epochs * self.num_images
            for number in (store["num_new"] >= (1 if is_last else RETRAIN_INTERVAL)).nonzero().flatten().tolist():
                self.train_svm(number)
        counts = {
            "hard_negatives": num_hard,
            "negatives": len(store["negatives"]),
            "positives": len(store["positives"]),
        }
        return {name: torch.tensor(float(count)) for name, count in counts.items()}

    def collect_positives(self, image: Tensor, batch: "PaddedBatch", proposals: Tensor) -> None:
        """Collect the positives of an image, and the norms of some features."""
        is_object = (batch.classes[0] >= 0) & (batch.kinds[0] == REGULAR)
        features = self.extract_features(image, torch.cat([batch.boxes[0][is_object], proposals[:NORM_SAMPLES]]))
        norms = features.float().norm(dim=1)
        self.store["norm"] = self.store["norm"] + torch.tensor([norms.sum().item(), len(norms)], dtype=torch.float64)
        self.store.append(positives=features[: int(is_object.sum())], classes=batch.classes[0][is_object])

    def initialize_svms(self) -> None:
        """Initialize the SVMs so that every region is a hard negative, except for classes without positives."""
        is_present = self.store["classes"].bincount(minlength=len(self.labels)) > 0
        svm: Any = self.model.svm
        svm.weight.zero_()
        svm.bias.copy_(torch.where(is_present, 0.0, ABSENT_CLASS_MARGIN))

    def mine_hard_negatives(self, image: Tensor, batch: "PaddedBatch", proposals: Tensor) -> int:
        """Keep the hard negatives of an image; returns their number."""
        features = self.get_features(image, proposals)
        margins = self.model.svm(features.float())  # type: ignore[operator]
        is_hard = (margins > HARD_MARGIN) & find_negatives(batch, proposals, len(self.labels), self.max_iou)
        rows = is_hard.any(1)
        self.store.append(negatives=features[rows], is_negative=is_hard[rows])
        self.store["num_new"] = self.store["num_new"] + is_hard.sum(0).cpu()
        return int(is_hard.sum())

    def train_svm(self, class_index: int) -> None:
        """Train the SVM of a class on its positives and the kept negatives, and remove the easy ones."""
        store, is_negative = self.store, self.store["is_negative"][:, class_index]
        positives, negatives = store["positives"][store["classes"] == class_index], store["negatives"][is_negative]
        scale = TARGET_NORM / max(float(store["norm"][0] / store["norm"][1].clamp(min=1)), 1e-12)
        x = torch.cat([positives, negatives]).double() * scale
        y = torch.arange(len(x)) < len(positives)
        weight, bias = fit_svm(x, y, self.cost, self.seed)
        svm: Any = self.model.svm
        svm.weight[class_index] = scale * weight
        svm.bias[class_index] = bias
        is_kept = is_negative.clone()
        is_kept[is_negative] = (x[len(positives) :] @ weight + bias) >= EASY_MARGIN
        all_classes = store["is_negative"].clone()
        all_classes[:, class_index] = is_kept
        rows = all_classes.any(1)
        store["is_negative"], store["negatives"] = all_classes[rows], store["negatives"][rows]
        num_new = store["num_new"].clone()
        num_new[class_index] = 0
        store["num_new"] = num_new


def find_negatives(batch: "PaddedBatch", proposals: Tensor, num_classes: int, max_iou: float) -> Tensor:
    """Find the proposals that are negatives of each class, as a mask ``(P, classes)``.

    A negative overlaps every object of the class by an IoU below ``max_iou``, and lies by less than half in a crowd.
    """
    is_annotated = batch.classes[0] >= 0
    objects, classes, kinds = (values[0][is_annotated] for values in (batch.boxes, batch.classes, batch.kinds))
    is_near = boxes.compute_iou(proposals, objects) >= max_iou
    is_inside = boxes.compute_intersection(proposals, objects) >= 0.5 * boxes.compute_area(proposals).unsqueeze(1)
    is_excluded = torch.where(kinds == CROWD, is_inside, is_near)
    is_class = nn.functional.one_hot(classes, num_classes).bool()
    return ~(is_excluded.unsqueeze(2) & is_class).any(1)


def fit_svm(x: Tensor, y: Tensor, cost: float, seed: int) -> tuple[Tensor, Tensor]:
    """Fit a linear SVM to samples ``(n, d)``, positive where ``y`` is true; returns weights ``(d,)`` and bias."""
    solver = LinearSVC(
        C=cost, loss="hinge", intercept_scaling=INTERCEPT_SCALING, class_weight={True: 2.0}, tol=0.01, max_iter=20_000,
        random_state=seed,
    )  # fmt: skip
    with threadpool_limits(torch.get_num_threads(), "blas"):  # the number of threads affects the rounding of sums
        solver.fit(x.numpy(), y.numpy())
    return torch.from_numpy(solver.coef_[0]), torch.from_numpy(solver.intercept_)[0]


class BoxRegressionTask(RCNNSolverTask):
    """Stage 3: bounding-box regression per class, by ridge regression on pool5 features (appendix C).

    Args:
        ridge: regularization parameter λ, for features of norm 20.
        min_iou: minimum IoU of a training region with an object.
        max_pairs: maximum number of training regions per class; the first ones in the shuffled order are used.
        model, labels, prepare, region_settings: as for :class:`RCNNTask`.
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
        """Move to the device and prepare for training."""
        super().setup(runtime)
        box: Any = self.model.bbox
        self.store.append(
            num_processed=torch.zeros(1, dtype=torch.int64),
            features=torch.zeros(0, box.in_features, dtype=torch.float16),
            classes=torch.zeros(0, dtype=torch.int64),
            targets=torch.zeros(0, 4),
        )

    def process_image(self, image: Tensor, batch: "PaddedBatch", proposals: Tensor) -> dict[str, Tensor]:
        """Collect the regions that overlap an object, and fit the regressors after the last image."""
        store = self.store
        store["num_processed"] = store["num_processed"] + 1
        is_object = (batch.classes[0] >= 0) & (batch.kinds[0] == REGULAR)
        if is_object.any() and len(proposals):
            truth, classes = batch.boxes[0][is_object], batch.classes[0][is_object]
            max_iou, nearest = boxes.compute_iou(proposals, truth).max(1)
            is_full = store["classes"].bincount(minlength=len(self.labels)) >= self.max_pairs
            is_used = (max_iou >= self.min_iou) & ~is_full.to(nearest.device)[classes[nearest]]
            regions, objects = proposals[is_used], truth[nearest[is_used]]
            features = self.extract_features(image, regions, "pool5")
            targets = boxes.encode_boxes(objects, regions)
            store.append(features=features, classes=classes[nearest[is_used]], targets=targets)
        if int(store["num_processed"]) == self.num_images:
            self.fit_regressors()
        return {"pairs": torch.tensor(float(len(store["classes"])))}

    def fit_regressors(self) -> None:
        """Fit the regressor of each class that has regions, and discard the features."""
        store = self.store
        box: Any = self.model.bbox
        norms = [chunk.float().norm(dim=1) for chunk in torch.split(store["features"], REGION_BATCH_SIZE)]
        scale = TARGET_NORM / max(float(torch.cat(norms).mean().nan_to_num()), 1e-12)
        for number in sorted(set(store["classes"].tolist())):
            is_class = store["classes"] == number
            solver = Ridge(
                self.ridge, solver="cholesky"
            )  # solves for the smaller of the number of features and samples
            features, targets = scale * store["features"][is_class].double(), store["targets"][is_class].double()
            with threadpool_limits(torch.get_num_threads(), "blas"):
                solver.fit(features.numpy(), targets.numpy())
            rows = slice(4 * number, 4 * number + 4)
            box.weight[rows] = torch.from_numpy(scale * solver.coef_)
            box.bias[rows] = torch.from_numpy(solver.intercept_)
        store["features"] = store["features"][:0].clone()

    def refine_boxes(self, image: Tensor, regions: Tensor, classes: Tensor) -> Tensor:
        """Predict the boxes of objects detected in regions, by the regressors of their classes."""
        dtype = next(self.model.parameters()).dtype
        deltas = self.model.bbox(self.extract_features(image, regions, "pool5").to(dtype))  # type: ignore[operator]
        class_deltas = deltas.float().unflatten(1, (len(self.labels), 4))[torch.arange(len(regions)), classes]
        return boxes.decode_boxes(class_deltas, regions)
