"""Data sets: the right images, the right parts, and errors that name the file."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fukami import Error, UsageError
from fukami.data import digits, image_folder, labelled_images, mnist
from fukami.data.loader import InMemoryLoader
from fukami.image.transform import SquareTransform
from fukami.timing import PhaseTimer


def plain(size=28, channels=1):
    return lambda labels: SquareTransform(channels=channels, size=size)


def test_mnist_is_the_original(mnist_folder):
    """Counts per class as published with the set, and images that torchvision's reader agrees with."""
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


def test_a_damaged_mnist_is_named(mnist_folder, tmp_path, monkeypatch):
    shutil.copytree(mnist_folder / "mnist", tmp_path / "mnist")
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    victim = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    victim.chmod(0o644)
    good = victim.read_bytes()
    victim.write_bytes(good[:1000])
    with pytest.raises(Error, match=r"t10k-labels-idx1-ubyte\.gz cannot be unpacked"):
        mnist.load_mnist()
    content = bytearray(gzip.decompress(good))
    content[500] ^= 1
    victim.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(Error, match="md5"):
        mnist.load_mnist()


def test_without_mnist_the_error_says_where_it_was_looked_for(tmp_path, monkeypatch):
    import torchvision.datasets

    def offline(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(Error, match=r"nowhere.*no network.*FUKAMI_DATA"):
        mnist.load_mnist()


def test_digits_have_mnists_form():
    """1,797 images in the 20×20 box within 28×28, each still its own 8×8 original when averaged back."""
    from sklearn.datasets import load_digits

    images, labels = digits.load_digits()
    originals, expected = load_digits(return_X_y=True)
    assert images.shape == (1797, 28, 28)
    assert labels.tolist() == expected.tolist()
    assert not images[:, :4].any()
    assert not images[:, :, 24:].any()
    for image, original in zip(images[:20], originals[:20], strict=True):
        back = np.asarray(Image.fromarray(image[4:24, 4:24]).resize((8, 8), Image.Resampling.BOX))
        assert np.corrcoef(back.ravel(), original)[0, 1] > 0.97


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_held_out_is_the_same_share_of_each_class_every_time(share):
    classes = ["a"] * 100 + ["b"] * 30 + ["c"] * 2 + ["d"]
    held = image_folder.select_holdout(classes, share)
    assert np.array_equal(held, image_folder.select_holdout(classes, share))
    counts = [held[:100].sum(), held[100:130].sum(), held[130:132].sum(), held[132:].sum()]
    assert counts == [round(share * 100), round(share * 30), 1, 0]
    assert image_folder.select_holdout(classes, 1.0).all()
    assert not image_folder.select_holdout(classes, 0.0).any()


def paint(path, value, size=(30, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def read(spec, prepare, holdout):
    """Both parts of a data set, in memory, and its labels."""
    train, test, labels = labelled_images.load_labelled_images(spec, holdout)
    prepared = prepare(labels)
    return train.decode(prepared), test.decode(prepared), labels


@pytest.fixture
def parted(tmp_path):
    """Two classes with a training and a test part, with things in them that are no images."""
    root = tmp_path / "set"
    for part, count in (("train", 4), ("val", 2)):
        for label, value in (("dark", 10), ("light", 240)):
            for number in range(count):
                paint(root / part / label / f"{number}.png", value + number)
    (root / "train" / "dark" / "notes.txt").write_text("not an image")
    (root / "train" / "dark" / ".hidden.png").write_text("not an image")
    (root / ".cache" / "x").mkdir(parents=True)
    return root


def test_parts_of_a_folder(parted):
    train, test, labels = read(str(parted), plain(), 0.2)
    assert labels == ("dark", "light")
    assert (len(train.images), len(test.images)) == (8, 4)
    assert train.targets.tolist() == [0] * 4 + [1] * 4
    assert train.images[:, 0, 14, 14].tolist() == [10, 11, 12, 13, 240, 241, 242, 243]
    assert test.names[0].endswith("val/dark/0.png")


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_is_its_folder(parted, tmp_path, kind):
    archive = shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path, "set")
    train, test, labels = read(archive, plain(), 0.2)
    assert (len(train.images), len(test.images), labels) == (8, 4, ("dark", "light"))
    again, _, _ = read(archive, plain(), 0.2)
    assert torch.equal(again.images, train.images)


def test_a_folder_without_parts_is_split(tmp_path):
    for label in ("a", "b"):
        for number in range(10):
            paint(tmp_path / "set" / label / "deeper" / f"{number}.bmp", 20 * number)
    train, test, _ = read(str(tmp_path / "set"), plain(), 0.3)
    assert (len(train.images), len(test.images)) == (14, 6)
    assert set(train.names).isdisjoint(test.names)
    assert torch.bincount(test.targets).tolist() == [3, 3]


def test_broken_images_are_left_out_and_named(parted, caplog):
    (parted / "train" / "dark" / "9.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (parted / "train" / "light" / "empty.jpg").write_bytes(b"")
    train, _, _ = read(str(parted), plain(), 0.2)
    assert len(train.images) == 8
    assert "2 of 10 images are left out" in caplog.text
    assert "9.png" in caplog.text
    assert "empty.jpg" in caplog.text


def test_what_is_no_data_set_is_refused_by_name(tmp_path):
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
            read(str(tmp_path / name), plain(), 0.2)
    with pytest.raises(UsageError, match="'mnist'"):
        read("mnsit", plain(), 0.2)


def test_processes_that_unpack_an_archive_at_the_same_time(parted, tmp_path, monkeypatch):
    """The second one to finish takes what the first one has left, and leaves nothing of its own."""
    archive = Path(shutil.make_archive(str(tmp_path / "images"), "zip", parted))
    alone = image_folder.unpack_archive(archive)
    shutil.rmtree(alone)
    real = shutil.unpack_archive

    def overtaken(file, target):
        monkeypatch.setattr(shutil, "unpack_archive", real)
        assert image_folder.unpack_archive(archive) == alone
        real(file, target)

    monkeypatch.setattr(shutil, "unpack_archive", overtaken)
    assert image_folder.unpack_archive(archive) == alone
    assert list(alone.parent.iterdir()) == [alone]


@pytest.mark.parametrize(("size", "channels"), [(28, 3), (32, 1), (16, 3)])
def test_known_sets_come_in_the_networks_size(size, channels):
    train, test, _ = read("digits", plain(size, channels), 0.2)
    assert train.images.shape[1:] == test.images.shape[1:] == (channels, size, size)
    assert len(train.images) + len(test.images) == 1797


# ---- the loader -----------------------------------------------------------------------------------------------------


def numbered(count=10, **options):
    """A loader of images whose pixel tells their number."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return InMemoryLoader(images, torch.arange(count), ("x",) * count, **options)


def seen(loader):
    return [targets.tolist() for _, targets in loader]


def test_training_shuffles_every_pass_and_drops_the_rest():
    loader = numbered(batch_size=3, seed=0)
    first, second = seen(loader), seen(loader)
    assert [len(batch) for batch in first] == [3, 3, 3] == [3] * len(loader)
    assert first != second
    assert len({number for batch in first for number in batch}) == 9
    assert seen(numbered(batch_size=3, seed=0)) == first
    assert seen(numbered(batch_size=3, seed=1)) != first


def test_judging_sees_every_image_once_in_order():
    assert seen(numbered(batch_size=4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(numbered(batch_size=4)) == 3


def test_images_and_targets_stay_together():
    for images, targets in numbered(batch_size=3, seed=5):
        assert images.flatten().tolist() == targets.tolist()


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 7])
def test_loader_goes_on_where_it_was(steps):
    def stream(loader, count):
        found = []
        while len(found) < count:
            for _, targets in loader:
                found.append(targets.tolist())
                if len(found) == count:
                    break
        return found

    undisturbed = stream(numbered(batch_size=3, seed=0), 10)
    first, second = numbered(batch_size=3, seed=0), numbered(batch_size=3, seed=0)
    begun = stream(first, steps)
    second.load_state_dict(first.state_dict())
    assert begun + stream(second, 10 - steps) == undisturbed


def test_what_is_only_looked_at_has_the_networks_size():
    """Though it is kept larger, for the crops that are taken of it."""
    images = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8)
    loader = InMemoryLoader(images, torch.arange(300), ("x",) * 300, batch_size=9, seed=0, image_size=4)
    found = torch.cat([each for each, _ in loader.iterate_in_order()])
    assert found.shape == (300, 1, 4, 4)
    assert torch.cat([targets for _, targets in loader.iterate_in_order()]).tolist() == list(range(300))
    means = torch.nn.functional.interpolate(images.float(), 4, mode="bilinear", antialias=True)
    torch.testing.assert_close(found.float(), means, atol=0.51, rtol=0)
    assert next(numbered(batch_size=3, seed=0).iterate_in_order())[0].shape == (10, 1, 1, 1)


def test_processes_share_every_batch():
    class Two:
        device, world_size, clock = torch.device("cpu"), 2, PhaseTimer(torch.device("cpu"))

        def capture(self, function, enabled):
            return function

    def share(rank, **options):
        runtime = Two()
        runtime.rank = rank
        loader = numbered(batch_size=4, **options)
        loader.setup(runtime)
        return seen(loader)

    whole = seen(numbered(batch_size=4, seed=3))
    for batch, first, second in zip(whole, share(0, seed=3), share(1, seed=3), strict=True):
        assert first == batch[0::2]
        assert second == batch[1::2]
    judged = [number for rank in (0, 1) for batch in share(rank) for number in batch]
    assert sorted(judged) == list(range(10))
    with pytest.raises(UsageError, match="--batch-size"):
        numbered(batch_size=3, seed=0).setup(Two())
