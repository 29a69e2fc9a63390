"""Images per second from shards, beside the same images from a folder, and beside the webdataset package.

    python benchmarks/shards.py [--workers 2] [--images 4000] [--rounds 3]

The images, the batches and what is done to them are those of streaming.py. The shards are written by `fukami shard`,
and all three read them (or the folder) from the same disk, in turn. Where webdataset is installed (`pip install
webdataset`; it is no dependency), its pipeline is the one of its documentation: shards shuffled, a shuffle buffer of
1,000, decoded by Pillow, then the reference transforms of torchvision. Results go to results.csv.
"""

import argparse
import statistics
import tempfile
from importlib.util import find_spec
from pathlib import Path

from common.record import record
from fukami.data import webdataset_writer
from fukami.engine.runtime import Runtime
from streaming import fill, ours, reference, speed


def webdataset(folder, workers):
    """The documented pipeline of the webdataset package, as a generator of batches on the device."""
    import webdataset as wds

    names = [str(path) for path in sorted(folder.glob("train-*.tar"))]
    samples = wds.WebDataset(names, shardshuffle=len(names)).shuffle(1000).decode("pil").to_tuple("jpg", "cls")
    batches = samples.map_tuple(reference(), int).batched(64, partial=False)
    for images, targets in wds.WebLoader(batches, batch_size=None, num_workers=workers):
        yield images.to(Runtime.start().device, non_blocking=True), targets


def main():
    """Time them in turn."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--images", type=int, default=4_000)
    options.add_argument("--rounds", type=int, default=3)
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, folder = Path(name) / "images", Path(name) / "shards"
        root.mkdir()
        fill(root, options.images)
        webdataset_writer.write_shards(str(root), folder, holdout=0.0, shard_megabytes=30)
        pipelines = {"folder": (ours, root), "shards": (ours, folder)}
        if find_spec("webdataset"):
            pipelines["webdataset"] = (webdataset, folder)
        found = {which: [] for which in pipelines}
        for _ in range(options.rounds):
            for which, (pipeline, place) in pipelines.items():
                found[which].append(speed(pipeline(place, options.workers)))
                print(which, round(found[which][-1], 1), flush=True)
    note = "; ".join(f"{which} {', '.join(f'{value:.0f}' for value in values)}/s" for which, values in found.items())
    command = f"python benchmarks/shards.py --workers {options.workers} --images {options.images}"
    for other in list(found):
        if other != "shards":
            ratio = statistics.median(mine / its for mine, its in zip(found["shards"], found[other], strict=True))
            metric = f"images per second, shards / {other}"
            record("shards jpeg", metric, ratio, command=f"{command} --rounds {options.rounds}", seed=0, note=note)


if __name__ == "__main__":
    main()
