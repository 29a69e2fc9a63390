"""Command ``fukami shard``."""

from pathlib import Path

from fukami.cli.arguments import run_cli
from fukami.cli.inputs import format_json_line
from fukami.errors import UsageError

MEGABYTES = 100.0  # approximate size of a shard


def command(arguments: list[str]) -> None:
    """Write a dataset as WebDataset shards."""
    import tyro

    def run(
        data: tyro.conf.Positional[str],
        out: tyro.conf.Positional[Path | None] = None,
        val_fraction: float | None = None,
        samples: int | None = None,
        megabytes: float = MEGABYTES,
        seed: int = 0,
        index: bool = False,
    ) -> None:
        """Write a dataset as tar shards in the WebDataset layout, with an index. Prints one JSON object.

        Args:
            data: Built-in dataset (mnist, cifar10 ...), folder or archive of images by class, CSV file, or shards.
            out: Folder for the shards, new or empty. With --index: folder for the index; by default that of the shards,
                or the cache folder if it is a URL or not writable.
            val_fraction: Fraction of each class of the training images used for validation, if the dataset has no
                validation split. Default: 0.2, at most 5,000 images; 0 for mnist and cifar.
            samples: Number of images in a shard. Default: as many as --megabytes allows.
            megabytes: Approximate size of a shard; a split of 50 images or more has at least eight shards.
            seed: Random seed of the image order.
            index: Write only the index of existing shards.
        """
        from fukami.data import webdataset_writer

        if index:
            if (val_fraction, samples, megabytes, seed) != (None, None, MEGABYTES, 0):
                raise UsageError("--val-fraction, --samples, --megabytes and --seed are for new shards; omit --index")
            summary = webdataset_writer.write_index(data, out)
        elif out is None:
            raise UsageError("name the folder for the shards: fukami shard DATA OUT")
        else:
            if samples is not None and megabytes != MEGABYTES:
                raise UsageError("--samples and --megabytes both determine the size of a shard; omit one of them")
            summary = webdataset_writer.write_shards(
                data, out, val_fraction=val_fraction, samples_per_shard=samples, shard_megabytes=megabytes, seed=seed
            )
        print(format_json_line(summary))

    run_cli(run, arguments, "fukami shard")
