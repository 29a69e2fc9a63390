"""Tests of the classification datasets and the in-memory loader: images, splits, order of batches and errors."""

import gzip
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fukami import Error, UsageError
from fukami.data import archives, digits, labeled_images, mnist, splits
from fukami.data.loader import InMemoryLoader
from fukami.image.transform import SquareTransform
from fukami.timing import PhaseTimer


def square_transform(size=28, channels=1):
    return lambda labels: SquareTransform(channels=channels, size=size)


def test_mnist_equals_the_published_dataset(mnist_folder):
    """The class counts equal the published ones, and pixels those of torchvision's reader."""
    (train, labels), (test, test_labels) = mnist.load_mnist()
    assert train.shape == (60_000, 28, 28)
    assert test.shape == (10_000, 28, 28)
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train[0, 5].tolist()[12:18] == [3, 18, 18, 18, 126, 136]


def test_mnist_unpacked_and_in_torchvisions_layout(mnist_folder, tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in mnist.CHECKSUMS:
        packed = mnist_folder / "mnist" / f"{name}.gz"
        (raw / name).write_bytes(gzip.decompress(packed.read_bytes()))
    expected = mnist.load_mnist()[1][0]
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    assert np.array_equal(mnist.load_mnist()[1][0], expected)


def test_a_corrupted_mnist_is_rejected(mnist_folder, tmp_path, monkeypatch):
    shutil.copytree(mnist_folder / "mnist", tmp_path / "mnist")
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    file = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    file.chmod(0o644)
    original = file.read_bytes()
    file.write_bytes(original[:1000])
    with pytest.raises(Error, match=r"t10k-labels-idx1-ubyte\.gz cannot be unpacked"):
        mnist.load_mnist()
    content = bytearray(gzip.decompress(original))
    content[500] ^= 1
    file.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(Error, match="md5"):
        mnist.load_mnist()


def test_the_error_for_missing_mnist_names_the_searched_folders(tmp_path, monkeypatch):
    import torchvision.datasets

    def offline(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(Error, match=r"nowhere.*no network.*FUKAMI_DATA"):
        mnist.load_mnist()


def test_digits_have_the_format_of_mnist():
    """Each of 1,797 digits fills 20×20 pixels within 28×28, and matches the original when averaged back to 8×8."""
    from sklearn.datasets import load_digits

    images, labels = digits.load_digits()
    originals, expected = load_digits(return_X_y=True)
    assert np.array_equal(digits.load_original_digits()[0].reshape(1797, 64), originals)
    assert images.shape == (1797, 28, 28)
    assert labels.tolist() == expected.tolist()
    assert not images[:, :4].any()
    assert not images[:, :, 24:].any()
    for image, original in zip(images[:20], originals[:20], strict=True):
        downsampled = np.asarray(Image.fromarray(image[4:24, 4:24]).resize((8, 8), Image.Resampling.BOX))
        assert np.corrcoef(downsampled.ravel(), original)[0, 1] > 0.97


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_validation_split_is_stratified_and_repeatable(fraction):
    classes = ["a"] * 100 + ["b"] * 30 + ["c"] * 2 + ["d"]
    is_val = splits.select_validation(classes, fraction)
    assert np.array_equal(is_val, splits.select_validation(classes, fraction))
    counts = [is_val[:100].sum(), is_val[100:130].sum(), is_val[130:132].sum(), is_val[132:].sum()]
    assert counts == [round(fraction * 100), round(fraction * 30), 1, 0]
    assert splits.select_validation(classes, 1.0).all()
    assert not splits.select_validation(classes, 0.0).any()


@pytest.mark.parametrize(("count", "expected"), [(100, 20), (20_000, 4000), (100_000, 5000)])
def test_default_validation_split_has_at_most_5000_samples(count, expected):
    assert splits.select_validation(np.arange(count) % 10, None).sum() == expected


def write_image(path, value, size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def load_decoded(spec, build_transform, val_fraction):
    """Load the training and the validation split of a dataset, decoded in memory, and its class names."""
    train, val, _, labels = labeled_images.load_labeled_images(spec, val_fraction)
    transform = build_transform(labels)
    return train.decode(transform), val.decode(transform), labels


@pytest.fixture
def split_folder(tmp_path):
    """An image folder of two classes with a training and a test split, and files that are not images."""
    root = tmp_path / "set"
    for split, count in (("train", 4), ("val", 2)):
        for label, value in (("dark", 10), ("light", 240)):
            for index in range(count):
                write_image(root / split / label / f"{index}.png", value + index)
    (root / "train" / "dark" / "notes.txt").write_text("not an image")
    (root / "train" / "dark" / ".hidden.png").write_text("not an image")
    (root / ".cache" / "x").mkdir(parents=True)
    return root


def test_folder_with_splits(split_folder):
    train, val, labels = load_decoded(str(split_folder), square_transform(), 0.2)
    assert labels == ("dark", "light")
    assert (len(train.images), len(val.images)) == (8, 4)
    assert train.targets.tolist() == [0] * 4 + [1] * 4
    assert train.images[:, 0, 14, 14].tolist() == [10, 11, 12, 13, 240, 241, 242, 243]
    assert val.names[0].endswith("val/dark/0.png")


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_is_read_like_its_folder(split_folder, tmp_path, kind):
    archive = shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path, "set")
    train, val, labels = load_decoded(archive, square_transform(), 0.2)
    assert (len(train.images), len(val.images), labels) == (8, 4, ("dark", "light"))
    repeated, _, _ = load_decoded(archive, square_transform(), 0.2)
    assert torch.equal(repeated.images, train.images)


def test_folder_without_splits_is_split(tmp_path):
    for label in ("a", "b"):
        for index in range(10):
            write_image(tmp_path / "set" / label / "deeper" / f"{index}.bmp", 20 * index)
    train, val, _ = load_decoded(str(tmp_path / "set"), square_transform(), 0.3)
    assert (len(train.images), len(val.images)) == (14, 6)
    assert set(train.names).isdisjoint(val.names)
    assert torch.bincount(val.targets).tolist() == [3, 3]


def test_unreadable_images_are_skipped_and_reported(split_folder, caplog):
    (split_folder / "train" / "dark" / "9.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (split_folder / "train" / "light" / "empty.jpg").write_bytes(b"")
    train, _, _ = load_decoded(str(split_folder), square_transform(), 0.2)
    assert len(train.images) == 8
    assert "2 of 10 images are skipped" in caplog.text
    assert "9.png" in caplog.text
    assert "empty.jpg" in caplog.text


def test_invalid_datasets_are_rejected(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "class").mkdir(parents=True)
    (tmp_path / "notes.zip").write_text("not an archive")
    (tmp_path / "bad" / "class").mkdir(parents=True)
    (tmp_path / "bad" / "class" / "x.png").write_text("no image")
    for name, hint in (
        ("empty", "one folder of images"),
        ("hollow", "no images"),
        ("notes.zip", "unpacked"),
        ("bad", "x.png"),
    ):
        with pytest.raises(Error, match=hint):
            load_decoded(str(tmp_path / name), square_transform(), 0.2)
    with pytest.raises(UsageError, match="'mnist'"):
        load_decoded("mnsit", square_transform(), 0.2)


def test_processes_that_unpack_an_archive_at_the_same_time(split_folder, tmp_path, monkeypatch):
    """Without locks, the second process to finish uses the folder of the first and leaves no files of its own."""
    archive = Path(shutil.make_archive(str(tmp_path / "images"), "zip", split_folder))
    target = archives.unpack(archive)
    shutil.rmtree(target)
    original, calls = archives._extract, []

    def extract_second(folder, *arguments):
        calls.append(folder)
        if len(calls) == 1:
            assert archives.unpack(archive) == target
        original(folder, *arguments)

    def acquire(lock):
        raise NotImplementedError

    monkeypatch.setattr(archives, "_extract", extract_second)
    monkeypatch.setattr(archives.FileLock, "acquire", acquire)
    assert archives.unpack(archive) == target
    assert len(calls) == 2
    assert list(target.parent.iterdir()) == [target]


def test_an_archive_is_unpacked_once_by_several_processes(split_folder, tmp_path, monkeypatch):
    """The others wait; a lock separates threads like processes."""
    archive = Path(shutil.make_archive(str(tmp_path / "images"), "zip", split_folder))
    original, calls = archives._extract, []

    def extract_slowly(*arguments):
        calls.append(arguments)
        time.sleep(0.2)
        original(*arguments)

    monkeypatch.setattr(archives, "_extract", extract_slowly)
    with ThreadPoolExecutor(4) as threads:
        targets = [*threads.map(archives.unpack, [archive] * 4)]
    assert len({*targets}) == len(calls) == 1
    assert list(targets[0].parent.iterdir()) == targets[:1]


@pytest.mark.parametrize(("size", "channels"), [(28, 3), (32, 1), (16, 3)])
def test_named_datasets_are_resized_to_the_input_size(size, channels):
    train, val, _ = load_decoded("digits", square_transform(size, channels), 0.2)
    assert train.images.shape[1:] == val.images.shape[1:] == (channels, size, size)
    assert len(train.images) + len(val.images) == 1797


# ---- the loader -----------------------------------------------------------------------------------------------------


def build_loader(count=10, **options):
    """Build a loader of one-pixel images, whose value is their index and target."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return InMemoryLoader(images, torch.arange(count), ("x",) * count, **options)


def collect_targets(loader):
    return [targets.tolist() for _, targets in loader]


def test_training_shuffles_every_epoch_and_drops_the_incomplete_batch():
    loader = build_loader(batch_size=3, seed=0)
    first, second = collect_targets(loader), collect_targets(loader)
    assert [len(batch) for batch in first] == [3, 3, 3] == [3] * len(loader)
    assert first != second
    assert len({index for batch in first for index in batch}) == 9
    assert collect_targets(build_loader(batch_size=3, seed=0)) == first
    assert collect_targets(build_loader(batch_size=3, seed=1)) != first


def test_evaluation_uses_every_image_once_in_order():
    assert collect_targets(build_loader(batch_size=4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(build_loader(batch_size=4)) == 3


def test_images_and_targets_stay_together():
    for images, targets in build_loader(batch_size=3, seed=5):
        assert images.flatten().tolist() == targets.tolist()


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 7])
def test_loader_resumes_at_its_position(steps):
    def take_batches(loader, count):
        batches = []
        while len(batches) < count:
            for _, targets in loader:
                batches.append(targets.tolist())
                if len(batches) == count:
                    break
        return batches

    uninterrupted = take_batches(build_loader(batch_size=3, seed=0), 10)
    first, second = build_loader(batch_size=3, seed=0), build_loader(batch_size=3, seed=0)
    batches = take_batches(first, steps)
    second.load_state_dict(first.state_dict())
    assert batches + take_batches(second, 10 - steps) == uninterrupted


def test_iteration_in_order_resizes_to_the_input_size():
    """The stored images are larger, to allow random crops."""
    images = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8)
    loader = InMemoryLoader(images, torch.arange(300), ("x",) * 300, batch_size=9, seed=0, image_size=4)
    resized = torch.cat([batch for batch, _ in loader.iterate_in_order()])
    assert resized.shape == (300, 1, 4, 4)
    assert torch.cat([targets for _, targets in loader.iterate_in_order()]).tolist() == list(range(300))
    expected = torch.nn.functional.interpolate(images.float(), 4, mode="bilinear", antialias=True)
    torch.testing.assert_close(resized.float(), expected, atol=0.51, rtol=0)
    assert next(build_loader(batch_size=3, seed=0).iterate_in_order())[0].shape == (10, 1, 1, 1)


def test_processes_divide_every_batch():
    class TwoProcessRuntime:
        device, world_size, clock = torch.device("cpu"), 2, PhaseTimer(torch.device("cpu"))

        def capture(self, function, enabled):
            return function

    def collect_rank(rank, **options):
        runtime = TwoProcessRuntime()
        runtime.rank = rank
        loader = build_loader(batch_size=4, **options)
        loader.setup(runtime)
        return collect_targets(loader)

    batches = collect_targets(build_loader(batch_size=4, seed=3))
    for batch, first, second in zip(batches, collect_rank(0, seed=3), collect_rank(1, seed=3), strict=True):
        assert first == batch[0::2]
        assert second == batch[1::2]
    evaluated = [index for rank in (0, 1) for batch in collect_rank(rank) for index in batch]
    assert sorted(evaluated) == list(range(10))
    with pytest.raises(UsageError, match="--batch-size"):
        build_loader(batch_size=3, seed=0).setup(TwoProcessRuntime())
