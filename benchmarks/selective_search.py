"""Our Selective Search beside OpenCV's on the same photographs: how well boxes cover the objects, and in what time.

    python benchmarks/selective_search.py fast|quality [--every 1] [--trial]

The photographs are those of `voc-animals`, both parts, or every so many of them: VOC's layout in a folder or an archive
of this name in `$FUKAMI_DATA`. Nothing is learned from them. OpenCV is `opencv-contrib-python-headless`
(`pip install --group bench`), with its own settings of the same name. The two take turns at each photograph, on one
thread each.

An object, but for those that VOC calls difficult, is covered by the box of the first 500, 1,000 and 2,000 that overlaps
it most (intersection over union). Recall is the share of the objects covered by at least 0.5. MABO, the mean average
best overlap, is the mean over the classes of the mean over their objects of that overlap. The ratio of the times is the
median over the photographs. Results go to results.csv; with --trial, they do not.
"""

import argparse
import io
import statistics
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from collections import defaultdict

import cv2
import numpy as np

from fukami import image
from fukami.data import places
from fukami.errors import UsageError
from fukami.proposals import selective_search
from record import record

COUNTS = (500, 1000, 2000)


def opened():
    """A function that reads a file of the data set by its path inside."""
    for folder in places.candidates():
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


def theirs(picture, mode):
    """The boxes of OpenCV."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(picture[..., ::-1]))
    {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality}[mode]()
    boxes = search.process().astype(np.float64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def main():
    """Measure the two in turn."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("mode", choices=("fast", "quality"))
    options.add_argument("--every", type=int, default=1)
    options.add_argument("--trial", action="store_true")
    options = options.parse_args()
    cv2.setNumThreads(1)
    read = opened()
    parts = [read(f"ImageSets/Main/{part}.txt").decode().split() for part in ("train", "val")]
    names = sorted(name for part in parts for name in part)[:: options.every]
    search = {"fukami": selective_search.propose, "opencv": theirs}
    for each in search.values():
        each(np.zeros((32, 32, 3), np.uint8), options.mode)  # our kernels are compiled, or read
    found = {who: {count: defaultdict(list) for count in COUNTS} for who in search}
    seconds, sizes = defaultdict(list), defaultdict(list)
    for name in names:
        picture = np.asarray(image.read(read(f"JPEGImages/{name}.jpg")).convert("RGB"))
        annotated = list(objects(read(f"Annotations/{name}.xml")))
        for who, propose in search.items():
            began = time.perf_counter()
            boxes = propose(picture, options.mode)
            seconds[who].append(time.perf_counter() - began)
            sizes[who].append(len(boxes))
            if annotated:
                each = overlaps(np.array([box for _, box in annotated]), boxes.astype(np.float64))
                for count in COUNTS:
                    for (label, _), best in zip(annotated, each[:, :count].max(1), strict=True):
                        found[who][count][label].append(best)
    command = f"python benchmarks/selective_search.py {options.mode} --every {options.every}"
    part = f"{len(names)} of the 750 photographs of voc-animals"

    def tell(metric, value, note):
        print(metric, f"{value:.4f}", note, flush=True)
        if not options.trial:
            record(f"selective search {options.mode}", metric, value, command=command, seed=0, note=note)

    for who, classes in found.items():
        note = f"{part}; {who}, {statistics.mean(sizes[who]):.0f} boxes a picture; opencv is {cv2.__version__}"
        for count, best in classes.items():
            hits = [float(overlap >= 0.5) for each in best.values() for overlap in each]
            tell(f"recall at IoU 0.5, {count} boxes, {who}", statistics.mean(hits), f"{note}; {len(hits)} objects")
            mabo = statistics.mean(statistics.mean(each) for each in best.values())
            tell(f"MABO, {count} boxes, {who}", mabo, f"{note}; {len(best)} classes")
    ratio = statistics.median(their / our for our, their in zip(seconds["fukami"], seconds["opencv"], strict=True))
    medians = ", ".join(f"{who} {statistics.median(times):.3f} s" for who, times in seconds.items())
    tell("speed, fukami / opencv", ratio, f"{part}; medians {medians}; one thread each, in turn")


if __name__ == "__main__":
    main()
