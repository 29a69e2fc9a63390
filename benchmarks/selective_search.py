"""Selective Search: recall, mean average best overlap and time compared with OpenCV.

    python benchmarks/selective_search.py fast|quality [--every 1] [--orders] [--trial]

The photographs are both splits of `voc-animals`, or one in EVERY of them: VOC's layout in a folder or an archive of
this name in `$FUKAMI_DATA`. Nothing is trained. OpenCV is `opencv-contrib-python-headless` (`pip install --group
bench`), with its own settings of the same name. The two run in turn on each photograph, with one thread each.

For each object that is not difficult, the best overlap is the maximum IoU with the first 500, 1,000 and 2,000 boxes.
Recall is the fraction of objects with a best overlap of at least 0.5. MABO, the mean average best overlap, is its mean
over the objects of a class, averaged over the classes. The ratio of the times is the median over the photographs.
`--orders` measures only ours: the effect of other random numbers in the ranking of the same boxes. Results go to
results.csv, except with --trial.
"""

import argparse
import io
import statistics
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from collections import defaultdict
from dataclasses import dataclass, field

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from common.record import record
from fukami.data import locations
from fukami.errors import UsageError
from fukami.image import io as image_io
from fukami.selective_search import search as selective_search_search

COUNTS = (500, 1000, 2000)


def open_dataset():
    """Return a function that reads a file of the dataset by its relative path."""
    for folder in locations.list_data_folders():
        if (folder / "voc-animals").is_dir():
            return lambda name: (folder / "voc-animals" / name).read_bytes()
        if (folder / "voc-animals.zip").is_file():
            archive = zipfile.ZipFile(folder / "voc-animals.zip")
            archive_names = {name.removeprefix("voc-animals/"): name for name in archive.namelist()}
            return lambda name: archive.read(archive_names[name])
    raise UsageError("no folder contains voc-animals or voc-animals.zip; set FUKAMI_DATA to one that does")


def read_objects(annotation):
    """Yield class and box of each object that is not difficult; VOC's coordinates start at 1 and are inclusive."""
    for item in ElementTree.parse(io.BytesIO(annotation)).iter("object"):
        if item.findtext("difficult", "0") != "1":
            left, top, right, bottom = (
                float(item.findtext(f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")
            )
            yield item.findtext("name"), (left - 1, top - 1, right, bottom)


def compute_iou(truth, boxes):
    """Compute the pairwise IoU."""
    sides = np.minimum(truth[:, None, 2:], boxes[None, :, 2:]) - np.maximum(truth[:, None, :2], boxes[None, :, :2])
    intersection = np.clip(sides, 0, None).prod(2)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(1) for corners in (truth, boxes)]
    return intersection / (areas[0][:, None] + areas[1][None] - intersection)


def propose_with_opencv(image, mode):
    """Propose boxes by OpenCV's Selective Search."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality}[mode]()
    boxes = search.process().astype(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


@dataclass
class OverlapMetrics:
    """Recall and MABO, accumulated over photographs."""

    best: dict = field(default_factory=lambda: {count: defaultdict(list) for count in COUNTS})
    sizes: list = field(default_factory=list)

    def add(self, annotated, boxes):
        """Add the annotated objects and the ranked boxes of a photograph."""
        self.sizes.append(len(boxes))
        if annotated:
            ious = compute_iou(np.array([box for _, box in annotated]), boxes.astype(np.float64))
            for count in COUNTS:
                for (label, _), best in zip(annotated, ious[:, :count].max(1).tolist(), strict=True):
                    self.best[count][label].append(best)

    def recall(self, count):
        """Compute the fraction of objects with a best overlap of at least 0.5."""
        return statistics.mean(float(best >= 0.5) for overlaps in self.best[count].values() for best in overlaps)

    def mabo(self, count):
        """Compute the mean over the classes of the mean best overlap."""
        return statistics.mean(statistics.mean(overlaps) for overlaps in self.best[count].values())


def load_photographs(every):
    """Yield images with their annotated objects."""
    read = open_dataset()
    splits = [read(f"ImageSets/Main/{split}.txt").decode().split() for split in ("train", "val")]
    for name in sorted(name for split in splits for name in split)[::every]:
        image = np.asarray(image_io.read_image(read(f"JPEGImages/{name}.jpg")).convert("RGB"))
        yield image, list(read_objects(read(f"Annotations/{name}.xml")))


def compare(mode, every, record_metric):
    """Measure both methods in turn on each photograph."""
    methods = {"fukami": selective_search_search.propose_regions, "opencv": propose_with_opencv}
    for propose in methods.values():
        propose(np.zeros((32, 32, 3), np.uint8), mode)  # compiles our kernels, or loads them from the cache
    metrics = {method: OverlapMetrics() for method in methods}
    seconds = defaultdict(list)
    for image, annotated in load_photographs(every):
        for method, propose in methods.items():
            start = time.perf_counter()
            boxes = propose(image, mode)
            seconds[method].append(time.perf_counter() - start)
            metrics[method].add(annotated, boxes)
    for method, method_metrics in metrics.items():
        note = f"opencv {cv2.__version__}"
        record_metric(f"boxes per photograph, {method}", statistics.mean(method_metrics.sizes), note)
        for count in COUNTS:
            record_metric(f"recall at IoU 0.5, {count} boxes, {method}", method_metrics.recall(count), note)
            record_metric(f"MABO, {count} boxes, {method}", method_metrics.mabo(count), note)
    note = "median over the photographs; one thread each, in turn"
    for method, times in seconds.items():
        record_metric(f"seconds per photograph, {method}", statistics.median(times), note)
    ratio = statistics.median(opencv / ours for ours, opencv in zip(seconds["fukami"], seconds["opencv"], strict=True))
    record_metric("speed, fukami / opencv", ratio, note)


def compare_orders(mode, every, record_metric):
    """Measure the effect of the random ranking of the same boxes."""
    metrics = [OverlapMetrics() for _ in range(10)]
    for image, annotated in load_photographs(every):
        hierarchies = list(selective_search_search.build_hierarchies(image, selective_search_search.SETTINGS[mode]))
        for seed, seed_metrics in enumerate(metrics):
            seed_metrics.add(annotated, selective_search_search.rank_boxes(hierarchies, np.random.default_rng(seed)))
    for count in COUNTS:
        for metric, compute in (("recall at IoU 0.5", OverlapMetrics.recall), ("MABO", OverlapMetrics.mabo)):
            values = [compute(seed_metrics, count) for seed_metrics in metrics]
            note = f"of 10 orders, from {min(values):.4f} to {max(values):.4f}"
            record_metric(f"{metric}, {count} boxes, standard deviation", statistics.stdev(values), note)


def main():
    """Run the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("mode", choices=("fast", "quality"))
    options.add_argument("--every", type=int, default=1, help="Use one in this number of photographs.")
    options.add_argument("--orders", action="store_true", help="Measure the effect of the random ranking.")
    options.add_argument("--trial", action="store_true", help="Do not record the results.")
    options = options.parse_args()
    command = f"python benchmarks/selective_search.py {options.mode} --every {options.every}"
    command += " --orders" * options.orders
    subset = f"one in {options.every} of" if options.every > 1 else "all"

    def record_metric(metric, value, note):
        note = f"{subset} 750 photographs of voc-animals; {note}"
        print(metric, f"{value:.4f}", note, flush=True)
        if not options.trial:
            record(f"selective search {options.mode}", metric, value, command=command, seed=0, note=note, device="cpu")

    cv2.setNumThreads(1)
    with threadpool_limits(1):
        (compare_orders if options.orders else compare)(options.mode, options.every, record_metric)


if __name__ == "__main__":
    main()
