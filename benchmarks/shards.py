"""Images per second from shards, compared with a folder and with the webdataset package.

    python benchmarks/shards.py [--workers 2] [--images 4000] [--rounds 3]

Images, batches and preprocessing are those of streaming.py. `fukami shard` writes the shards, and the pipelines read
from the same disk in turn. If webdataset is installed (`pip install webdataset`; it is not a dependency), its pipeline
follows its documentation: shuffled shards, a shuffle buffer of 1,000, decoding by Pillow, then torchvision's reference
transforms. Results go to results.csv.
"""

import argparse
import statistics
import tempfile
from importlib.util import find_spec
from pathlib import Path

from common.record import record
from fukami.data import webdataset_writer
from fukami.engine.runtime import Runtime
from streaming import build_reference_transform, measure_rate, read_ours, write_images


def read_webdataset(folder, workers):
    """Yield batches on the device from the documented pipeline of the webdataset package."""
    import webdataset as wds

    names = [str(path) for path in sorted(folder.glob("train-*.tar"))]
    samples = wds.WebDataset(names, shardshuffle=len(names)).shuffle(1000).decode("pil").to_tuple("jpg", "cls")
    batches = samples.map_tuple(build_reference_transform(), int).batched(64, partial=False)
    for images, targets in wds.WebLoader(batches, batch_size=None, num_workers=workers):
        yield images.to(Runtime.start().device, non_blocking=True), targets


def main():
    """Measure the pipelines in turn."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--images", type=int, default=4_000)
    options.add_argument("--rounds", type=int, default=3)
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root, folder = Path(temporary) / "images", Path(temporary) / "shards"
        root.mkdir()
        write_images(root, options.images)
        webdataset_writer.write_shards(str(root), folder, val_fraction=0.0, shard_megabytes=30)
        pipelines = {"folder": (read_ours, root), "shards": (read_ours, folder)}
        if find_spec("webdataset"):
            pipelines["webdataset"] = (read_webdataset, folder)
        rates = {name: [] for name in pipelines}
        for _ in range(options.rounds):
            for name, (pipeline, source) in pipelines.items():
                rates[name].append(measure_rate(pipeline(source, options.workers)))
                print(name, round(rates[name][-1], 1), flush=True)
    note = "; ".join(f"{name} {', '.join(f'{value:.0f}' for value in values)}/s" for name, values in rates.items())
    command = f"python benchmarks/shards.py --workers {options.workers} --images {options.images}"
    for other in list(rates):
        if other != "shards":
            ratio = statistics.median(a / b for a, b in zip(rates["shards"], rates[other], strict=True))
            metric = f"images per second, shards / {other}"
            record("shards jpeg", metric, ratio, command=f"{command} --rounds {options.rounds}", seed=0, note=note)


if __name__ == "__main__":
    main()
