"""R-CNN's second and third stage: SVMs and bounding-box regressors, fitted to the features of regions."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fukami.data.loader import Loader
from fukami.data.samples import CROWD, REGULAR
from fukami.detection.rcnn_task import REGION_BATCH_SIZE, RCNNTask, RegionSettings
from fukami.engine import padded_images
from fukami.errors import UsageError, require_extra
from fukami.image.transform import ResizeTransform
from fukami.layers import boxes
from fukami.models.rcnn import RCNN

with require_extra("detect", "R-CNN"):
    from sklearn.linear_model import Ridge
    from sklearn.svm import LinearSVC
    from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from fukami.data.samples import PaddedBatch

TARGET_NORM = 20.0  # mean norm that the features are scaled to; the SVM costs and the ridge penalty assume it
INTERCEPT_SCALING = 10.0  # value of the constant feature; a large one keeps the bias almost unregularized
NORM_SAMPLES = 8  # proposals per image in the estimate of the mean norm
HARD_NEGATIVE_THRESHOLD = -1.0  # decision value above which a negative is added
EASY_NEGATIVE_THRESHOLD = -1.2  # decision value below which a negative is removed
RETRAIN_INTERVAL = 2000  # new negatives after which an SVM is fitted again
ABSENT_CLASS_BIAS = -10.0  # bias of a class without objects


class FrozenFeatureTask(RCNNTask):
    """Stage that collects features of a frozen network, one image per step, and fits layers to them.

    Args:
        fitter: collects the features and fits the layers.
        model, labels, transform, region_settings, confidence: as for :class:`RCNNTask`.
    """

    metric_mode = None
    min_score = 1 / (1 + math.exp(1.5))  # a decision value of -1.5

    def __init__(
        self,
        model: RCNN,
        labels: tuple[str, ...],
        transform: ResizeTransform,
        region_settings: RegionSettings,
        fitter: "SVMFitter | BoxRegressionFitter",
        confidence: float | None = None,
    ) -> None:
        super().__init__(
            model,
            labels,
            transform,
            region_settings,
            confidence=confidence,
            epochs=fitter.num_epochs,
            eval_every=fitter.num_epochs,
        )
        self.fitter = fitter

    def prepare_training(self) -> None:
        """Freeze the network.

        Raises:
            UsageError: there are several processes.
        """
        if self.runtime.world_size > 1:
            raise UsageError(
                f"one process fits the SVMs and box regressors of R-CNN, not {self.runtime.world_size}; start one"
            )
        self.model.requires_grad_(False)
        super().prepare_training()
        self.fitter.start(self)
        self.optimizers = []  # there is no learning rate
        self.state = {"model": self.model, "store": self.fitter.store}

    def iterate_batches(self, loader: Loader) -> "Iterable[PaddedBatch]":
        """Iterate over the images, one per batch."""
        self.num_images = len(loader)
        return super().iterate_batches(loader)

    def score_regions(self, fc7: Tensor) -> Tensor:
        """Map the decision values of the SVMs to scores in [0, 1] by a sigmoid; they are not probabilities."""
        decision_values: Tensor = self.model.svm(fc7)
        return torch.sigmoid(decision_values.float())

    def refine_boxes(self, image: Tensor, regions: Tensor, classes: Tensor) -> Tensor:
        """Predict the boxes of the objects detected in regions, if the box regressors are fitted."""
        return self.fitter.refine_boxes(self, image, regions, classes)

    def step(self, batch: "PaddedBatch") -> dict[str, Tensor]:
        """Process one image."""
        with self.runtime.clock("forward"), torch.inference_mode():
            batch = padded_images.move_batch(batch, self.runtime.device)
            image = self.normalize_images(batch.images, batch.sizes)[0]
            return self.fitter.process_image(self, image, batch, next(self.iterate_proposals(batch)))


class TensorStore:
    """Tensors by name that grow by rows and are saved in the checkpoint of a stage."""

    def __init__(self) -> None:
        self.chunks: dict[str, list[Tensor]] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor with this name, on the CPU."""
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


class SVMFitter:
    """Stage 2: a linear SVM per class, fitted with hard negative mining (Girshick et al. 2014, section 2.3).

    The first epoch collects the positives, the annotated objects, and the mean norm of the features. The second epoch
    mines negatives: regions whose IoU with every object of the class is below ``negative_iou_threshold``. Negatives
    with a decision value above -1 are hard and are added. After 2,000 new ones, and at the end, the SVM is fitted
    again and easy negatives are removed. Regions on difficult objects and crowds are neither positives nor negatives.

    Args:
        cost: C of the SVMs; positives have weight 2.
        negative_iou_threshold: IoU with every object of a class below which a region is a negative.
        seed: seed of the solver.
    """

    num_epochs = 2

    def __init__(self, *, cost: float = 1e-3, negative_iou_threshold: float = 0.3, seed: int = 0) -> None:
        self.cost, self.negative_iou_threshold, self.seed = cost, negative_iou_threshold, seed

    def start(self, task: FrozenFeatureTask) -> None:
        """Create an empty store."""
        self.store = TensorStore()
        self.svm = task.model.svm
        classes, hidden = self.svm.out_features, self.svm.in_features
        no_features = torch.zeros(0, hidden, dtype=torch.float16)
        self.store.append(
            num_processed=torch.zeros(1, dtype=torch.int64),
            norm=torch.zeros(2, dtype=torch.float64),  # sum and count
            positives=no_features,
            classes=torch.zeros(0, dtype=torch.int64),
            negatives=no_features,
            is_negative=torch.zeros(0, classes, dtype=torch.bool),  # whether each row is a negative of each class
            num_new=torch.zeros(classes, dtype=torch.int64),  # negatives since the last fit
        )

    def process_image(
        self, task: FrozenFeatureTask, image: Tensor, batch: "PaddedBatch", proposals: Tensor
    ) -> dict[str, Tensor]:
        """Collect the positives in the first epoch, and mine hard negatives in the second."""
        store = self.store
        store["num_processed"] = store["num_processed"] + 1
        num_processed, num_hard = int(store["num_processed"]), 0
        if num_processed <= task.num_images:
            self.collect_positives(task, image, batch, proposals)
            if num_processed == task.num_images:
                self.initialize_svms()
        else:
            num_hard = self.mine_hard_negatives(task, image, batch, proposals)
            is_last = num_processed == self.num_epochs * task.num_images
            is_due = store["num_new"] >= (1 if is_last else RETRAIN_INTERVAL)
            for class_index in is_due.nonzero().flatten().tolist():
                self.update_svm(class_index)
        counts = {
            "hard_negatives": num_hard,
            "negatives": len(store["negatives"]),
            "positives": len(store["positives"]),
        }
        return {name: torch.tensor(float(count)) for name, count in counts.items()}

    def collect_positives(
        self, task: FrozenFeatureTask, image: Tensor, batch: "PaddedBatch", proposals: Tensor
    ) -> None:
        """Collect the positives of an image, and the norms of some features."""
        is_object = (batch.classes[0] >= 0) & (batch.kinds[0] == REGULAR)
        features = task.extract_features(image, torch.cat([batch.boxes[0][is_object], proposals[:NORM_SAMPLES]]))
        norms = features.float().norm(dim=1)
        self.store["norm"] = self.store["norm"] + torch.tensor([norms.sum().item(), len(norms)], dtype=torch.float64)
        self.store.append(positives=features[: int(is_object.sum())], classes=batch.classes[0][is_object])

    def initialize_svms(self) -> None:
        """Initialize the SVMs so that every region is a hard negative, except for classes without positives."""
        is_present = self.store["classes"].bincount(minlength=self.svm.out_features) > 0
        self.svm.weight.zero_()
        self.svm.bias.copy_(torch.where(is_present, 0.0, ABSENT_CLASS_BIAS))

    def mine_hard_negatives(
        self, task: FrozenFeatureTask, image: Tensor, batch: "PaddedBatch", proposals: Tensor
    ) -> int:
        """Add the hard negatives of an image, and return their number."""
        features = task.get_features(image, proposals)
        decision_values = self.svm(features.float())
        is_negative = find_negatives(batch, proposals, self.svm.out_features, self.negative_iou_threshold)
        is_hard = (decision_values > HARD_NEGATIVE_THRESHOLD) & is_negative
        rows = is_hard.any(1)
        self.store.append(negatives=features[rows], is_negative=is_hard[rows])
        self.store["num_new"] = self.store["num_new"] + is_hard.sum(0).cpu()
        return int(is_hard.sum())

    def update_svm(self, class_index: int) -> None:
        """Fit the SVM of a class to its positives and negatives, and remove the easy negatives."""
        store, is_negative = self.store, self.store["is_negative"][:, class_index]
        positives, negatives = store["positives"][store["classes"] == class_index], store["negatives"][is_negative]
        scale = TARGET_NORM / max(float(store["norm"][0] / store["norm"][1].clamp(min=1)), 1e-12)
        x = torch.cat([positives, negatives]).double() * scale
        y = torch.arange(len(x)) < len(positives)
        weight, bias = fit_svm(x, y, self.cost, self.seed)
        self.svm.weight[class_index] = scale * weight
        self.svm.bias[class_index] = bias
        is_kept = is_negative.clone()
        is_kept[is_negative] = (x[len(positives) :] @ weight + bias) >= EASY_NEGATIVE_THRESHOLD
        all_classes = store["is_negative"].clone()
        all_classes[:, class_index] = is_kept
        rows = all_classes.any(1)
        store["is_negative"], store["negatives"] = all_classes[rows], store["negatives"][rows]
        num_new = store["num_new"].clone()
        num_new[class_index] = 0
        store["num_new"] = num_new

    def refine_boxes(self, task: FrozenFeatureTask, image: Tensor, regions: Tensor, classes: Tensor) -> Tensor:
        """Return the regions themselves."""
        return regions


class BoxRegressionFitter:
    """Stage 3: bounding-box regression per class, fitted to pool5 features (Girshick et al. 2014, appendix C).

    Args:
        ridge: regularization parameter λ, for features of norm 20.
        min_iou: minimum IoU of a training region with an object.
        max_training_regions: maximum number of training regions per class, the first ones in shuffled order.
    """

    num_epochs = 1

    def __init__(self, *, ridge: float = 1000.0, min_iou: float = 0.6, max_training_regions: int = 4000) -> None:
        self.ridge, self.min_iou, self.max_training_regions = ridge, min_iou, max_training_regions

    def start(self, task: FrozenFeatureTask) -> None:
        """Create an empty store."""
        self.store = TensorStore()
        self.regressor = task.model.bbox
        self.store.append(
            num_processed=torch.zeros(1, dtype=torch.int64),
            features=torch.zeros(0, self.regressor.in_features, dtype=torch.float16),
            classes=torch.zeros(0, dtype=torch.int64),
            targets=torch.zeros(0, 4),
        )

    def process_image(
        self, task: FrozenFeatureTask, image: Tensor, batch: "PaddedBatch", proposals: Tensor
    ) -> dict[str, Tensor]:
        """Collect the regions that overlap an object, and fit the regressors after the last image."""
        store = self.store
        store["num_processed"] = store["num_processed"] + 1
        is_object = (batch.classes[0] >= 0) & (batch.kinds[0] == REGULAR)
        if is_object.any() and len(proposals):
            ground_truth_boxes, classes = batch.boxes[0][is_object], batch.classes[0][is_object]
            best_iou, nearest = boxes.compute_iou(proposals, ground_truth_boxes).max(1)
            is_full = store["classes"].bincount(minlength=len(task.labels)) >= self.max_training_regions
            is_used = (best_iou >= self.min_iou) & ~is_full.to(nearest.device)[classes[nearest]]
            regions, objects = proposals[is_used], ground_truth_boxes[nearest[is_used]]
            features = task.extract_features(image, regions, "pool5")
            targets = boxes.encode_boxes(objects, regions)
            store.append(features=features, classes=classes[nearest[is_used]], targets=targets)
        if int(store["num_processed"]) == task.num_images:
            self.fit_regressors()
        return {"training_regions": torch.tensor(float(len(store["classes"])))}

    def fit_regressors(self) -> None:
        """Fit the regressor of each class that has regions, and discard the features."""
        store = self.store
        norms = [chunk.float().norm(dim=1) for chunk in torch.split(store["features"], REGION_BATCH_SIZE)]
        scale = TARGET_NORM / max(float(torch.cat(norms).mean().nan_to_num()), 1e-12)
        for class_index in sorted(set(store["classes"].tolist())):
            is_class = store["classes"] == class_index
            # this solver's matrix has the smaller of the numbers of features and samples
            estimator = Ridge(self.ridge, solver="cholesky")
            features, targets = scale * store["features"][is_class].double(), store["targets"][is_class].double()
            with threadpool_limits(torch.get_num_threads(), "blas"):
                estimator.fit(features.numpy(), targets.numpy())
            rows = slice(4 * class_index, 4 * class_index + 4)
            self.regressor.weight[rows] = torch.from_numpy(scale * estimator.coef_)
            self.regressor.bias[rows] = torch.from_numpy(estimator.intercept_)
        store["features"] = store["features"][:0].clone()

    def refine_boxes(self, task: FrozenFeatureTask, image: Tensor, regions: Tensor, classes: Tensor) -> Tensor:
        """Predict the boxes of objects detected in regions, by the regressors of their classes."""
        dtype = next(task.model.parameters()).dtype
        deltas: Tensor = task.model.bbox(task.extract_features(image, regions, "pool5").to(dtype))
        class_deltas = torch.unflatten(deltas.float(), 1, (len(task.labels), 4))[torch.arange(len(regions)), classes]
        return boxes.decode_boxes(class_deltas, regions)


def find_negatives(batch: "PaddedBatch", proposals: Tensor, num_classes: int, negative_iou_threshold: float) -> Tensor:
    """Find the proposals that are negatives of each class, as a mask ``(P, classes)``.

    The IoU of a negative with every object of the class is below ``negative_iou_threshold``. Less than half of its
    area is inside a crowd of the class.
    """
    is_annotated = batch.classes[0] >= 0
    objects, classes, kinds = (values[0][is_annotated] for values in (batch.boxes, batch.classes, batch.kinds))
    overlaps_object = boxes.compute_iou(proposals, objects) >= negative_iou_threshold
    is_inside = boxes.compute_intersection(proposals, objects) >= 0.5 * boxes.compute_area(proposals).unsqueeze(1)
    is_excluded = torch.where(kinds == CROWD, is_inside, overlaps_object)
    is_class = nn.functional.one_hot(classes, num_classes).bool()
    return ~(is_excluded.unsqueeze(2) & is_class).any(1)


def fit_svm(x: Tensor, y: Tensor, cost: float, seed: int) -> tuple[Tensor, Tensor]:
    """Fit a linear SVM to samples ``(n, d)``, positive where ``y`` is true; return weights ``(d,)`` and bias."""
    estimator = LinearSVC(
        C=cost, loss="hinge", intercept_scaling=INTERCEPT_SCALING, class_weight={True: 2.0}, tol=0.01, max_iter=20_000,
        random_state=seed,
    )  # fmt: skip
    with threadpool_limits(torch.get_num_threads(), "blas"):  # the number of threads affects the rounding of sums
        estimator.fit(x.numpy(), y.numpy())
    return torch.from_numpy(estimator.coef_[0]), torch.from_numpy(estimator.intercept_)[0]
