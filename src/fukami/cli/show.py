"""fukami show."""

import json
from pathlib import Path
from typing import Literal

from fukami.cli.main import run_cli
from fukami.errors import UsageError


def command(arguments: list[str]) -> None:
    """Show images before and after augmentation."""
    import tyro

    def run(
        data: tyro.conf.Positional[str],
        augment: tuple[str, ...] = (),
        size: int = 0,
        channels: Literal[1, 3] = 3,
        num_images: int = 6,
        num_variants: int = 7,
        seed: int = 0,
        out: Path = Path("augmented.png"),
    ) -> None:
        """Draw training images, and beside each what augmentation makes of it.

        Args:
            data: Known name (mnist, digits, cifar10 ...), folder or archive of images by class, CSV file or
                shards; or images with boxes (scenes, voc2007 ... or a path) or masks (camvid ... or a path), which
                are drawn; or images with sentences.
            augment: Changes as of fukami train, such as flip crop=0.3 rotate=15 trivial mixup=0.2.
            size: Side of the images that a network sees, in pixels; with boxes or masks the shorter one. Default:
                that of a small set, at most 224.
            channels: 1 grey, 3 colour.
            num_images: Rows: so many training images, of as many classes as there are.
            num_variants: Columns: so many changes of each.
            seed: Decides which images and which changes.
            out: Image file to write.
        """
        from fukami.captioning import data as captioning_data
        from fukami.cli import augmentation_grids
        from fukami.detection import data as detection_data
        from fukami.segmentation import data as segmentation_data

        if out.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
            raise UsageError(f"--out should name a .png, .jpg, .pdf or .svg file, not {out}")
        if detection_data.is_detection_dataset(data):
            if channels != 3:
                raise UsageError("images with boxes are in colour; leave out --channels")
            boxed = augmentation_grids.sample_boxed_images(
                data, augment, size=size, num_images=num_images, num_variants=num_variants, seed=seed
            )
            augmentation_grids.save_boxed_grid(boxed, out)
            labels = [", ".join(sorted({name for _, name in row[0][1]})) for row in boxed]
            print(json.dumps({"file": str(out), "labels": labels, "variants": num_variants}))
            return
        if segmentation_data.is_segmentation_dataset(data):
            if channels != 3:
                raise UsageError("images with masks are in colour; leave out --channels")
            rows = augmentation_grids.sample_masked_images(
                data, augment, size=size, num_images=num_images, num_variants=num_variants, seed=seed
            )
        elif captioning_data.is_caption_dataset(data):
            rows = augmentation_grids.sample_captioned_images(
                data, augment, size=size, num_images=num_images, num_variants=num_variants, seed=seed
            )
        else:
            rows = augmentation_grids.sample_images(
                data, augment, size=size, channels=channels, num_images=num_images, num_variants=num_variants, seed=seed
            )
        augmentation_grids.save_grid(rows, out)
        print(json.dumps({"file": str(out), "labels": [name for name, _ in rows], "variants": num_variants}))

    run_cli(run, arguments, "fukami show")
