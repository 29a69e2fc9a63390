"""ImageNet (ILSVRC2012): 1.28 million training images of 1,000 classes, read by torchvision."""

from collections import Counter
from pathlib import Path

from fukami.data import image_folder
from fukami.data.locations import list_data_folders, lock_folder
from fukami.data.splits import Split
from fukami.errors import Error


def scan_imagenet() -> dict[Split, image_folder.FolderSplit]:
    """Return the training and the validation split; class names are those of WordNet (``tench``).

    Two classes of the same name, the cranes, also have their WordNet numbers: ``crane (n02012849)``.

    ``imagenet/`` in ``$FUKAMI_DATA`` contains the original archives, which torchvision unpacks, or ``train/`` and
    ``val/`` with one folder per class, whose names are then the class names.

    Raises:
        Error: there is no such folder. Downloading ImageNet requires an account.
    """
    for folder in list_data_folders():
        root = folder / "imagenet"
        if (root / "meta.bin").is_file() or any(root.glob("ILSVRC2012_devkit_t12.tar*")):
            return {split: _load_split(root, split) for split in ("train", "val")}
        if (root / "train").is_dir():
            return image_folder.scan_folder(root)
    roots = ", ".join(str(folder / "imagenet") for folder in list_data_folders())
    raise Error(
        f"ImageNet was not found in {roots}; get ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar from image-net.org into a folder imagenet, and set FUKAMI_DATA to its parent folder"
    )


def _load_split(root: Path, split: Split) -> image_folder.FolderSplit:
    from torchvision.datasets import ImageNet

    folder = root / split
    try:
        with lock_folder(root, ".unpacking.lock"):  # one process unpacks, and the others wait
            if not (folder.is_dir() and (root / "meta.bin").is_file()):
                ImageNet(str(root), split=split)
        if file := next((file for kind in ("*.tar", "*.JPEG") for file in folder.glob(kind)), None):
            raise Error(f"{folder} was not unpacked completely ({file.name} is left); delete the folder, and try again")
        dataset = ImageNet(str(root), split=split)
    except Error:
        raise
    except Exception as error:  # readers raise errors of any type on a corrupted file
        raise Error(
            f"{root} does not contain the complete ImageNet ({error}); put the three original archives there, and "
            f"delete {folder} if it exists"
        ) from error
    names = [", ".join(synonyms) for synonyms in dataset.classes]
    counts = Counter(names)
    names = [f"{name} ({wnid})" if counts[name] > 1 else name for name, wnid in zip(names, dataset.wnids, strict=True)]
    return image_folder.FolderSplit(
        tuple(Path(file) for file, _ in dataset.samples), tuple(names[target] for _, target in dataset.samples)
    )
