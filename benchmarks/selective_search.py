"""Our Selective Search beside OpenCV's on the same photographs: how well boxes cover the objects, and in what time.

    python benchmarks/selective_search.py fast|quality [--every 1] [--orders] [--trial]

The photographs are those of `voc-animals`, both parts, or every so many of them: VOC's layout in a folder or an archive
of this name in `$FUKAMI_DATA`. Nothing is learned from them. OpenCV is `opencv-contrib-python-headless`
(`pip install --group bench`), with its own settings of the same name. The two take turns at each photograph, on one
thread each.

An object, but for those that VOC calls difficult, is covered by the box of the first 500, 1,000 and 2,000 that overlaps
it most (intersection over union). Recall is the share of the objects covered by at least 0.5. MABO, the mean average
best overlap, is the mean over the classes of the mean over their objects of that overlap. The ratio of the times is the
median over the photographs. With --orders, ours alone: how much these numbers change where other random numbers order
the same boxes. Results go to results.csv; with --trial, they do not.
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


def opened():
    """A function that reads a file of the data set by its path inside."""
    for folder in locations.list_data_folders():
        if (folder / "voc-animals").is_dir():
            return lambda name: (folder / "voc-animals" / name).read_bytes()
        if (folder / "voc-animals.zip").is_file():
            archive = zipfile.ZipFile(folder / "voc-animals.zip")
            inside = {name.removeprefix("voc-animals/"): name for name in archive.namelist()}
            return lambda name: archive.read(inside[name])
    raise UsageError("there is no voc-animals and no voc-animals.zip; set FUKAMI_DATA to the folder that has one")


def objects(annotation):
    """The class and the box of each object that is not difficult; VOC counts pixels from 1, the last ones inside."""
    for each in ElementTree.parse(io.BytesIO(annotation)).iter("object"):
        if each.findtext("difficult", "0") != "1":
            left, top, right, bottom = (
                float(each.findtext(f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")
            )
            yield each.findtext("name"), (left - 1, top - 1, right, bottom)


def overlaps(truth, boxes):
    """Intersection over union of each of the one with each of the others."""
    sides = np.minimum(truth[:, None, 2:], boxes[None, :, 2:]) - np.maximum(truth[:, None, :2], boxes[None, :, :2])
    common = np.clip(sides, 0, None).prod(2)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (truth, boxes)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def theirs(image, mode):
    """The boxes of OpenCV."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality}[mode]()
    boxes = search.process().astype(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


@dataclass
class Judged:
    """How well boxes cover objects, as photographs come in."""

    best: dict = field(default_factory=lambda: {count: defaultdict(list) for count in COUNTS})
    sizes: list = field(default_factory=list)

    def add(self, annotated, boxes):
        """The boxes of a photograph, the likeliest first, and what is in it."""
        self.sizes.append(len(boxes))
        if annotated:
            each = overlaps(np.array([box for _, box in annotated]), boxes.astype(np.float64))
            for count in COUNTS:
                for (label, _), best in zip(annotated, each[:, :count].max(1).tolist(), strict=True):
                    self.best[count][label].append(best)

    def recall(self, count):
        """Share of the objects that are covered by at least a half."""
        return statistics.mean(float(best >= 0.5) for each in self.best[count].values() for best in each)

    def mabo(self, count):
        """Mean over the classes of the mean best overlap."""
        return statistics.mean(statistics.mean(each) for each in self.best[count].values())


def photographs(every):
    """The images and what is in them."""
    read = opened()
    parts = [read(f"ImageSets/Main/{part}.txt").decode().split() for part in ("train", "val")]
    for name in sorted(name for part in parts for name in part)[::every]:
        image = np.asarray(image_io.read_image(read(f"JPEGImages/{name}.jpg")).convert("RGB"))
        yield image, list(objects(read(f"Annotations/{name}.xml")))


def compare(mode, every, tell):
    """The two in turn, at each photograph."""
    search = {"fukami": selective_search_search.propose_regions, "opencv": theirs}
    for propose in search.values():
        propose(np.zeros((32, 32, 3), np.uint8), mode)  # our kernels are compiled, or read
    judged = {who: Judged() for who in search}
    seconds = defaultdict(list)
    for image, annotated in photographs(every):
        for who, propose in search.items():
            began = time.perf_counter()
            boxes = propose(image, mode)
            seconds[who].append(time.perf_counter() - began)
            judged[who].add(annotated, boxes)
    for who, each in judged.items():
        note = f"{statistics.mean(each.sizes):.0f} boxes a photograph; opencv {cv2.__version__}"
        for count in COUNTS:
            tell(f"recall at IoU 0.5, {count} boxes, {who}", each.recall(count), note)
            tell(f"MABO, {count} boxes, {who}", each.mabo(count), note)
    ratio = statistics.median(their / our for our, their in zip(seconds["fukami"], seconds["opencv"], strict=True))
    medians = ", ".join(f"{who} {statistics.median(times):.3f} s" for who, times in seconds.items())
    tell("speed, fukami / opencv", ratio, f"medians {medians}; one thread each, in turn")


def orders(mode, every, tell):
    """The same boxes in other orders: what the random numbers are good for."""
    judged = [Judged() for _ in range(10)]
    for image, annotated in photographs(every):
        found = list(selective_search_search.build_hierarchies(image, selective_search_search.SETTINGS[mode]))
        for seed, each in enumerate(judged):
            each.add(annotated, selective_search_search.rank_boxes(found, np.random.default_rng(seed)))
    for count in COUNTS:
        for metric, measure in (("recall at IoU 0.5", Judged.recall), ("MABO", Judged.mabo)):
            values = [measure(each, count) for each in judged]
            note = f"of 10 orders, from {min(values):.4f} to {max(values):.4f}"
            tell(f"{metric}, {count} boxes, standard deviation", statistics.stdev(values), note)


def main():
    """Measure, and record."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("mode", choices=("fast", "quality"))
    options.add_argument("--every", type=int, default=1)
    options.add_argument("--orders", action="store_true")
    options.add_argument("--trial", action="store_true")
    options = options.parse_args()
    command = f"python benchmarks/selective_search.py {options.mode} --every {options.every}"
    command += " --orders" * options.orders
    part = f"one in {options.every} of" if options.every > 1 else "all"

    def tell(metric, value, note):
        note = f"{part} 750 photographs of voc-animals; {note}"
        print(metric, f"{value:.4f}", note, flush=True)
        if not options.trial:
            record(f"selective search {options.mode}", metric, value, command=command, seed=0, note=note)

    cv2.setNumThreads(1)
    with threadpool_limits(1):
        (orders if options.orders else compare)(options.mode, options.every, tell)


if __name__ == "__main__":
    main()
