"""Package wheels and reduced datasets for a machine with a GPU and no network; see ``gpu.py``."""

import bz2
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_BYTES = 15_000_000  # maximum size of the datasets
PYTHON = "3.12"  # Python version of the other machine
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64"]
# packages that the benchmarks and GPU tests need in addition, and fukami's build dependencies
EXTRA_PACKAGES = [
    "hatchling", "editables", "pytest", "pytest-xdist", "av", "opencv-python-headless", "stable-baselines3",
    "segmentation-models-pytorch",
]  # fmt: skip
PREINSTALLED = ("torch", "torchvision")  # installed on any machine with a GPU
IMAGES = {"cifar10": 2000, "bccd": 40, "camvid": 40}


def pack(folder: Path, installed: Path | None) -> None:
    """Create the folder with the missing wheels and the datasets.

    Args:
        folder: a new or empty folder.
        installed: output of ``pip freeze`` on the other machine; None: only torch and torchvision are installed there.
    """
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty; remove it, or specify another folder")
    folder.mkdir(parents=True, exist_ok=True)
    pack_data(folder / "data")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        sys.exit(f"the datasets have {size / 1e6:.1f} MB, more than the limit of {MAX_BYTES / 1e6:g} MB")
    wheels = download_wheels(folder / "wheels", read_versions(installed) if installed else {})
    wheels_size = sum(path.stat().st_size for path in wheels)
    print(f"{folder}: datasets of {size / 1e6:.1f} MB, {len(wheels)} wheels of {wheels_size / 1e6:.1f} MB")


# datasets


def pack_data(folder: Path) -> None:
    """Pack all of MNIST and the first images of the other datasets in ``$FUKAMI_DATA``."""
    from fukami.data import archives, mnist
    from fukami.data.locations import find_dataset

    source = mnist.find_mnist()
    (folder / "mnist").mkdir(parents=True)
    for name, digest in mnist.CHECKSUMS.items():
        content = mnist.read_unpacked(source / name, digest)
        (folder / "mnist" / f"{name}.bz2").write_bytes(bz2.compress(content))  # 1/7 smaller than gzip
    selectors = {"cifar10": select_cifar, "bccd": select_bccd, "camvid": select_camvid}
    for name, count in IMAGES.items():
        root = archives.unpack(find_dataset(name, "the dataset"))
        root = root / name if (root / name).is_dir() else root
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path, content in selectors[name](root, count):
                compression = zipfile.ZIP_STORED if path.endswith(".jpg") else zipfile.ZIP_DEFLATED
                archive.writestr(zipfile.ZipInfo(path), content, compression)
    root = archives.unpack(find_dataset("style", "content and style images of neural style transfer"))
    for kind in ("content", "style"):
        first = min(path for path in root.rglob("*.jpg") if path.parent.name == kind)
        (folder / "style" / kind).mkdir(parents=True)
        shutil.copyfile(first, folder / "style" / kind / first.name)


def select_cifar(root: Path, count: int) -> list[tuple[str, bytes]]:
    """Select the first images of each class, four training images for each test image."""
    files = []
    for split, fraction in (("train", 0.8), ("test", 0.2)):
        for folder in sorted((root / split).iterdir()):
            paths = sorted(folder.glob("*.jpg"))[: round(count * fraction / 10)]
            files += [(f"cifar10/{split}/{folder.name}/{path.name}", path.read_bytes()) for path in paths]
    return files


def select_bccd(root: Path, count: int) -> list[tuple[str, bytes]]:
    """Select the first images of each split, their annotations and the lists of file names."""
    files, splits = [], {"train": 0.6, "val": 0.2, "test": 0.2}
    for split, fraction in splits.items():
        names = (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()[: round(count * fraction)]
        files.append((f"bccd/ImageSets/Main/{split}.txt", "".join(f"{name}\n" for name in names).encode()))
        for name in names:
            for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
                files.append((f"bccd/{folder}/{name}{suffix}", (root / folder / f"{name}{suffix}").read_bytes()))
    return files


def select_camvid(root: Path, count: int) -> list[tuple[str, bytes]]:
    """Select the first images of each split and their masks."""
    files = []
    for split, fraction in {"train": 0.5, "val": 0.25, "test": 0.25}.items():
        for path in sorted((root / split).glob("*.jpg"))[: round(count * fraction)]:
            mask = root / f"{split}annot" / f"{path.stem}.png"
            files += [(f"camvid/{split}/{path.name}", path.read_bytes())]
            files += [(f"camvid/{split}annot/{mask.name}", mask.read_bytes())]
    return files


# wheels


def download_wheels(folder: Path, installed: dict[str, str]) -> list[Path]:
    """Download the wheels of all requirements that are not installed on the other machine.

    pip resolves the versions. Empty wheels of torch and torchvision, with the versions installed here, prevent the
    download of these packages and their dependencies.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = [*project["dependencies"], *project["optional-dependencies"]["atari"], *EXTRA_PACKAGES]
    with tempfile.TemporaryDirectory() as placeholders:
        for name in PREINSTALLED:
            version = f"{importlib.metadata.version(name).partition('+')[0]}+placeholder"
            write_empty_wheel(Path(placeholders), name, version)
            packages.append(f"{name}=={version}")
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), "--find-links", placeholders,
            "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON,
        ]  # fmt: skip
        subprocess.run(
            [*command, *(word for platform in PLATFORMS for word in ("--platform", platform)), *packages], check=True
        )
    wheels = sorted(folder.glob("*.whl"))
    names = {wheel: parse_wheel_filename(wheel.name)[0] for wheel in wheels}
    requirements = [Requirement(package) for package in packages]
    requirements += [requirement for wheel in wheels for requirement in read_requirements(wheel)]
    for wheel in wheels:
        version = installed.get(names[wheel])
        specifiers = [item.specifier for item in requirements if canonicalize_name(item.name) == names[wheel]]
        if names[wheel] in PREINSTALLED or (
            version and all(specifier.contains(version, True) for specifier in specifiers)
        ):
            wheel.unlink()
    return sorted(folder.glob("*.whl"))


def write_empty_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel that contains only metadata."""
    info_folder = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info_folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info_folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info_folder}/RECORD", "")


def read_requirements(wheel: Path) -> list:
    """Return the requirements of a wheel without extras, on Linux with Python ``PYTHON``."""
    from email.parser import Parser

    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        name = next(path for path in archive.namelist() if path.endswith(".dist-info/METADATA"))
        lines = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    environment = {"python_version": PYTHON, "sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}
    requirements = map(Requirement, lines)
    return [item for item in requirements if item.marker is None or item.marker.evaluate(environment)]


def read_versions(freeze: Path) -> dict[str, str]:
    """Read package versions from the output of ``pip freeze`` or ``pip list``."""
    matches = re.findall(r"^([A-Za-z0-9._-]+)(?:==| +)(\d[^\s;]*)", freeze.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in matches}


# on the other machine


def install(folder: Path) -> tuple[str, Path]:
    """Install the missing packages from a packed folder into a new virtual environment.

    The environment is in the cache folder, one for each checkout, packed folder and interpreter. It can import the
    packages of this interpreter, whose environment is not changed.

    Returns:
        The interpreter of the environment, and the folder of the datasets.
    """
    parts = [sys.executable, str(ROOT), *sorted(path.name for path in (folder / "wheels").iterdir())]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fukami" / "gpu" / name
    python = cache / "environment" / "bin" / "python"
    if not (cache / "complete").exists():
        shutil.rmtree(cache, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", cache / "environment"], check=True)
        (site,) = (cache / "environment").glob("lib/python*/site-packages")
        parent_paths = dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
        (site / "parent.pth").write_text("\n".join(parent_paths) + "\n")
        command = [python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", folder / "wheels"]
        command += ["--disable-pip-version-check"]
        subprocess.run([*command, "hatchling", "editables"], check=True)
        subprocess.run([*command, "--no-build-isolation", "--editable", ROOT], check=True)
        for name in (*EXTRA_PACKAGES, "gymnasium", "ale-py"):
            if subprocess.run([*command, name]).returncode:
                print(f"{name} is not in {folder / 'wheels'}; it is skipped", file=sys.stderr)
        unpack_data(folder / "data", cache / "data")
        (cache / "complete").touch()
    return str(python), cache / "data"


def unpack_data(folder: Path, target: Path) -> None:
    """Unpack the datasets into a folder for ``FUKAMI_DATA``."""
    shutil.copytree(folder, target)
    for file in (target / "mnist").glob("*.bz2"):
        file.with_suffix("").write_bytes(bz2.decompress(file.read_bytes()))
        file.unlink()
