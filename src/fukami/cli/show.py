"""Command ``fukami show``."""

import json
from pathlib import Path

from fukami.cli.arguments import run_cli
from fukami.errors import UsageError


def command(arguments: list[str]) -> None:
    """Show images before and after augmentation."""
    import tyro

    def run(
        data: tyro.conf.Positional[str],
        augment: tuple[str, ...] = (),
        size: int = 0,
        channels: int = 3,
        num_images: int = 6,
        num_variants: int = 7,
        seed: int = 0,
        out: Path = Path("augmented.png"),
    ) -> None:
        """Draw a grid of training images and their augmented variants.

        Args:
            data: Built-in dataset (mnist, digits, cifar10 ...), folder or archive of images by class, CSV file or
                shards; or a dataset with boxes (scenes, voc2007 ... or a path), masks (camvid ... or a path) or
                captions. Boxes and masks are drawn.
            augment: Data augmentation as in fukami train, such as flip crop=0.3 rotate=15 trivial mixup=0.2.
            size: Input size: side of the square input image, in pixels; with boxes or masks the shorter side.
                0: size of the first image, at most 224; 224 with boxes or masks.
            channels: Input channels: 1 grayscale, 3 color, or the number that the images have.
            num_images: Number of training images (rows), balanced over the classes.
            num_variants: Number of augmented variants of each image (columns).
            seed: Random seed of the images and the augmentation.
            out: Image file to write.
        """
        from fukami.cli import augmentation_grids
        from fukami.data.sources import identify_source
        from fukami.engine.channels import check_channels
        from fukami.image import plots as image_plots

        if out.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
            raise UsageError(f"--out should name a .png, .jpg, .pdf or .svg file, not {out}")
        check_channels(channels, augment)
        source = identify_source(data)
        options = augmentation_grids.GridOptions(augment, size, channels, num_images, num_variants, seed)
        if not augment and num_variants != augmentation_grids.GridOptions.num_variants:
            raise UsageError("--num-variants is the number of augmented variants; add --augment, or omit it")
        if source.has("boxes"):
            boxed_rows = augmentation_grids.sample_boxed_images(data, options)
            figure = image_plots.plot_boxes(boxed_rows)
            labels = [", ".join(sorted({name for _, name in row[0][1]})) for row in boxed_rows]
        else:
            if source.has("masks"):
                rows = augmentation_grids.sample_masked_images(data, options)
            elif source.has("captions"):
                rows = augmentation_grids.sample_captioned_images(data, options)
            else:
                rows = augmentation_grids.sample_images(data, options)
            figure, labels = image_plots.plot_variants(rows), [name for name, _ in rows]
        augmentation_grids.save_grid(figure, out)
        print(json.dumps({"file": str(out), "labels": labels, "variants": num_variants if augment else 0}))

    run_cli(run, arguments, "fukami show")
