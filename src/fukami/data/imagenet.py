"""ImageNet (ILSVRC2012): 1.28 million photographs of 1,000 classes, through torchvision's reader."""

from pathlib import Path

from fukami.data import image_folder
from fukami.data.locations import list_data_folders
from fukami.errors import Error


def scan_imagenet() -> tuple[image_folder.FolderSplit, image_folder.FolderSplit]:
    """The training part and the validation part; classes are named as WordNet does (``tench``).

    ``imagenet/`` in ``$FUKAMI_DATA`` holds the original archives, which torchvision unpacks, or ``train/`` and ``val/``
    with a folder for each class, which are then named as those folders.

    Raises:
        Error: there is no such folder. ImageNet cannot be downloaded without an account of yours.
    """
    for place in list_data_folders():
        root = place / "imagenet"
        if (root / "meta.bin").is_file() or any(root.glob("ILSVRC2012_devkit_t12.tar*")):
            return _load_split(root, "train"), _load_split(root, "val")
        if (root / "train").is_dir():
            train, val = image_folder.scan_folder(root)
            return train, val or image_folder.FolderSplit((), ())
    places = ", ".join(str(place / "imagenet") for place in list_data_folders())
    raise Error(
        f"ImageNet was not found in {places}; get ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and "
        "ILSVRC2012_img_val.tar from image-net.org into such a folder, and set FUKAMI_DATA to the folder above it"
    )


def _load_split(root: Path, split: str) -> image_folder.FolderSplit:
    from torchvision.datasets import ImageNet

    try:
        found = ImageNet(str(root), split=split)
    except Exception as error:  # a damaged file can fail in any way
        raise Error(f"{root} holds no complete ImageNet ({error}); put the three original archives there") from error
    names = [", ".join(words) for words in found.classes]
    return image_folder.FolderSplit(
        tuple(Path(file) for file, _ in found.samples), tuple(names[number] for _, number in found.samples)
    )
