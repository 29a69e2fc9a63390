"""fukami shard."""

import json
from pathlib import Path

from fukami.cli.main import run_cli
from fukami.errors import UsageError


def command(arguments: list[str]) -> None:
    """Write a dataset as WebDataset shards."""
    import tyro

    def run(
        data: tyro.conf.Positional[str],
        out: tyro.conf.Positional[Path | None] = None,
        holdout: float = 0.2,
        samples: int | None = None,
        megabytes: float = 100.0,
        seed: int = 0,
        index: bool = False,
    ) -> None:
        """Write a data set as shards, tar files in the WebDataset layout, with an index; prints one JSON object.

        Args:
            data: Known name (mnist, cifar10 ...), folder or archive of images by class, CSV file, or shards.
            out: Folder for the shards: new or empty. With --index the folder for the index; by default the shards'
                own, or the cache folder where that is at a URL or cannot be written.
            holdout: Share of each class that becomes the test part, where the data have none of their own.
            samples: Images in a shard. Default: as many as --megabytes allows.
            megabytes: Size of a shard, about; there are at least eight for each part.
            seed: Decides the order of the images.
            index: Write only the index of shards that others wrote.
        """
        from fukami.data import webdataset_writer

        if index:
            found = webdataset_writer.write_index(data, out)
        elif out is None:
            raise UsageError("give the folder for the shards: fukami shard DATA OUT")
        else:
            found = webdataset_writer.write_shards(
                data, out, holdout=holdout, samples_per_shard=samples, shard_megabytes=megabytes, seed=seed
            )
        print(json.dumps(found, ensure_ascii=False))

    run_cli(run, arguments, "fukami shard")
