"""Take the benchmarks to a machine with a GPU and no network: wheels and cut-down data sets; see ``gpu.py``."""

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
MAX_BYTES = 15_000_000  # of the data
PYTHON = "3.12"  # there
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64"]
# fukami with what the benchmarks and the tests on a GPU need besides, and what builds it
WANTED = ["hatchling", "editables", "pytest", "pytest-xdist", "av", "opencv-python-headless", "stable-baselines3",
          "segmentation-models-pytorch"]  # fmt: skip
PRESENT = ("torch", "torchvision")  # on any machine with a GPU
IMAGES = {"cifar10": 2000, "bccd": 40, "camvid": 40}


def pack(folder: Path, installed: Path | None) -> None:
    """Make the folder: wheels of what is missing there, and the data.

    Args:
        folder: new or empty.
        installed: output of ``pip freeze`` on the machine; without it, only torch and torchvision are there.
    """
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty; remove it, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    pack_data(folder / "data")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        sys.exit(f"the data take {size / 1e6:.1f} MB, and should take {MAX_BYTES / 1e6:g} MB at most")
    wheels = download_wheels(folder / "wheels", read_versions(installed) if installed else {})
    both = sum(path.stat().st_size for path in wheels)
    print(f"{folder}: data of {size / 1e6:.1f} MB, {len(wheels)} wheels of {both / 1e6:.1f} MB")


# data


def pack_data(folder: Path) -> None:
    """Cut the data sets in ``$FUKAMI_DATA`` down: MNIST whole, the first images of the others."""
    from fukami.data import mnist
    from fukami.data.image_folder import unpack_archive
    from fukami.data.locations import find_dataset

    place = mnist.find_mnist()
    (folder / "mnist").mkdir(parents=True)
    for name, digest in mnist.CHECKSUMS.items():
        content = mnist.read_unpacked(place / name, digest)
        (folder / "mnist" / f"{name}.bz2").write_bytes(bz2.compress(content))  # a seventh smaller than gzip
    choose = {"cifar10": choose_cifar, "bccd": choose_bccd, "camvid": choose_camvid}
    for name, count in IMAGES.items():
        root = unpack_archive(find_dataset(name, "the data set"))
        root = root / name if (root / name).is_dir() else root
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path, content in choose[name](root, count):
                kind = zipfile.ZIP_STORED if path.endswith(".jpg") else zipfile.ZIP_DEFLATED
                archive.writestr(zipfile.ZipInfo(path), content, kind)
    root = unpack_archive(find_dataset("style", "images of the literature on neural style"))
    for part in ("content", "style"):
        first = min(path for path in root.rglob("*.jpg") if path.parent.name == part)
        (folder / "style" / part).mkdir(parents=True)
        shutil.copyfile(first, folder / "style" / part / first.name)


def choose_cifar(root: Path, count: int) -> list[tuple[str, bytes]]:
    """Four training images of a class for each test image."""
    files = []
    for part, share in (("train", 0.8), ("test", 0.2)):
        for folder in sorted((root / part).iterdir()):
            chosen = sorted(folder.glob("*.jpg"))[: round(count * share / 10)]
            files += [(f"cifar10/{part}/{folder.name}/{path.name}", path.read_bytes()) for path in chosen]
    return files


def choose_bccd(root: Path, count: int) -> list[tuple[str, bytes]]:
    """The first images of each part with their annotations, and lists of them."""
    files, parts = [], {"train": 0.6, "val": 0.2, "test": 0.2}
    for part, share in parts.items():
        names = (root / "ImageSets" / "Main" / f"{part}.txt").read_text().split()[: round(count * share)]
        files.append((f"bccd/ImageSets/Main/{part}.txt", "".join(f"{name}\n" for name in names).encode()))
        for name in names:
            for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
                files.append((f"bccd/{folder}/{name}{suffix}", (root / folder / f"{name}{suffix}").read_bytes()))
    return files


def choose_camvid(root: Path, count: int) -> list[tuple[str, bytes]]:
    """The first images of each part with their masks."""
    files = []
    for part, share in {"train": 0.5, "val": 0.25, "test": 0.25}.items():
        for path in sorted((root / part).glob("*.jpg"))[: round(count * share)]:
            mask = root / f"{part}annot" / f"{path.stem}.png"
            files += [(f"camvid/{part}/{path.name}", path.read_bytes())]
            files += [(f"camvid/{part}annot/{mask.name}", mask.read_bytes())]
    return files


# wheels


def download_wheels(folder: Path, installed: dict[str, str]) -> list[Path]:
    """Download wheels of all that fukami and the benchmarks need and is not installed on the other machine.

    pip resolves the versions. Empty wheels of torch and torchvision, in the versions that are installed here, keep it
    from downloading these and what they need.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name, parse_wheel_filename

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["atari"], *WANTED]
    with tempfile.TemporaryDirectory() as stand_ins:
        for name in PRESENT:
            version = f"{importlib.metadata.version(name).partition('+')[0]}+standin"
            write_empty_wheel(Path(stand_ins), name, version)
            wanted.append(f"{name}=={version}")
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), "--find-links", stand_ins,
                 "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON]  # fmt: skip
        subprocess.run([*words, *(word for each in PLATFORMS for word in ("--platform", each)), *wanted], check=True)
    wheels = sorted(folder.glob("*.whl"))
    names = {wheel: parse_wheel_filename(wheel.name)[0] for wheel in wheels}
    requirements = [Requirement(each) for each in wanted]
    requirements += [each for wheel in wheels for each in read_requirements(wheel)]
    for wheel in wheels:
        version = installed.get(names[wheel])
        needed = [each for each in requirements if canonicalize_name(each.name) == names[wheel]]
        if names[wheel] in PRESENT or (version and all(each.specifier.contains(version, True) for each in needed)):
            wheel.unlink()
    return sorted(folder.glob("*.whl"))


def write_empty_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel with a name and a version, and nothing in it."""
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def read_requirements(wheel: Path) -> list:
    """What a wheel requires without extras, on Linux with that Python."""
    from email.parser import Parser

    from packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        lines = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    there = {"python_version": PYTHON, "sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}
    found = map(Requirement, lines)
    return [each for each in found if each.marker is None or each.marker.evaluate(there)]


def read_versions(freeze: Path) -> dict[str, str]:
    """The versions of a file that ``pip freeze`` wrote, or ``pip list`` with its lines of a name and a version."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:==| +)(\d[^\s;]*)", freeze.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


# on the other machine


def install(folder: Path) -> tuple[str, Path]:
    """Install what is missing here from a packed folder; returns the interpreter that has it, and the data's folder.

    The environment lies in the cache folder, one for each checkout, pack and interpreter. It sees all that is installed
    for this interpreter, which stays as it is.
    """
    made_of = [sys.executable, str(ROOT), *sorted(path.name for path in (folder / "wheels").iterdir())]
    name = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fukami" / "gpu" / name
    python = cache / "environment" / "bin" / "python"
    if not (cache / "complete").exists():
        shutil.rmtree(cache, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", cache / "environment"], check=True)
        (site,) = (cache / "environment").glob("lib/python*/site-packages")
        seen = dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))
        (site / "parent.pth").write_text("\n".join(seen) + "\n")
        words = [python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", folder / "wheels"]
        words += ["--disable-pip-version-check"]
        subprocess.run([*words, "hatchling", "editables"], check=True)
        subprocess.run([*words, "--no-build-isolation", "--editable", ROOT], check=True)
        for name in (*WANTED, "gymnasium", "ale-py"):
            if subprocess.run([*words, name]).returncode:
                print(f"{name} is not in {folder / 'wheels'} and is left out", file=sys.stderr)
        unpack_data(folder / "data", cache / "data")
        (cache / "complete").touch()
    return str(python), cache / "data"


def unpack_data(folder: Path, target: Path) -> None:
    """The packed data as fukami finds them."""
    shutil.copytree(folder, target)
    for file in (target / "mnist").glob("*.bz2"):
        file.with_suffix("").write_bytes(bz2.decompress(file.read_bytes()))
        file.unlink()
