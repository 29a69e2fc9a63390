"""Batches of images with boxes: sizes as torchvision has them, boxes that move with masks, passes that resume."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from fukami import Error, UsageError
from fukami.data import augment, augment_boxes, padded_loader, scenes
from fukami.data.samples import PaddedBatch, Sample
from fukami.image.transform import ResizeTransform
from fukami.timing import PhaseTimer

LABELS = ("one", "other")
PREPARE = ResizeTransform(24, 40)


def same(one, other):
    """The same batches, bit for bit; returns how many."""
    count = 0
    for batch, another in zip(one, other, strict=True):
        assert all(torch.equal(*each) for each in zip(batch, another, strict=True))
        count += 1
    return count


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Twenty-two noisy images, of three shapes, one of them grey, with up to nine boxes."""
    root = tmp_path_factory.mktemp("framed")
    random = np.random.default_rng(0)
    found = []
    for number in range(22):
        width, height = ((60, 30), (30, 60), (41, 40))[number % 3]
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        path = root / f"{number}.png"
        (image.convert("L") if number == 4 else image).save(path)
        count = number % 10
        corners = np.sort(random.uniform(0, 1, (count, 2, 2)), 1).reshape(count, 4) * [width, height, width, height]
        classes, kinds = random.integers(0, 2, count), random.integers(0, 3, count).astype(np.uint8)
        found.append(Sample(path, (width, height), corners.astype(np.float32), classes, kinds, f"{number}.png"))
    return found


@pytest.fixture(params=[4.0, 0.0], ids=["resident", "streamed"])
def make(request, samples):
    """Makes loaders of the images, from memory or streamed."""
    return lambda **options: padded_loader.build_padded_loader(
        samples, LABELS, PREPARE, memory_limit=request.param, **options
    )


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_images_are_resized_as_torchvision_does_it(random):
    reference = GeneralizedRCNNTransform(60, 100, [0, 0, 0], [1, 1, 1])
    for width, height in [
        (60, 60),
        (61, 60),
        (249, 160),
        (7, 100),
        (100, 8),
        *random.integers(20, 300, (20, 2)).tolist(),
    ]:
        image = torch.from_numpy(random.integers(0, 256, (3, height, width), dtype=np.uint8))
        boxes = torch.tensor([[1.0, 2.0, width - 1, height - 2]])
        expected, target = reference.resize(image.float(), {"boxes": boxes})
        prepare = ResizeTransform(60, 100)
        found = prepare(image)
        assert torch.equal(found, expected)
        assert prepare.compute_size(width, height) == (expected.shape[2], expected.shape[1])
        sample = Sample(image.permute(1, 2, 0).numpy(), (width, height), boxes.numpy(), np.zeros(1, np.int64),
                           np.zeros(1, np.uint8), "x")  # fmt: skip
        batch = next(iter(padded_loader.build_padded_loader([sample], LABELS, prepare, batch_size=1)))
        torch.testing.assert_close(batch.boxes[0, :1], target["boxes"])
        # to a tie: several threads may round one otherwise
        assert (batch.images[0, :, : found.shape[1], : found.shape[2]] - found).abs().max() <= 0.501
        assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0


def test_a_strip_keeps_a_pixel():
    assert ResizeTransform(60, 100).compute_size(10_000, 4) == (100, 1)
    assert ResizeTransform(60, 100)(torch.zeros(3, 4, 10_000, dtype=torch.uint8)).shape == (3, 1, 100)
    assert ResizeTransform(60, 100).describe()["shortest"] == 60


# ---- batches --------------------------------------------------------------------------------------------------------


def test_what_is_judged_on_comes_whole_and_by_shape(make, samples):
    batches = list(make(batch_size=4))
    assert torch.cat([batch.indices for batch in batches]).sort().values.tolist() == list(range(22))
    assert [len(batch.indices) for batch in batches] == [4, 4, 4, 4, 4, 2]
    for batch in batches:
        assert batch.seeds.tolist() == [0] * len(batch.indices)
        for row, number in enumerate(batch.indices.tolist()):
            sample = samples[number]
            count = len(sample.boxes)
            assert batch.original_sizes[row].tolist() == list(sample.size[::-1])
            height, width = batch.sizes[row].int().tolist()
            assert (width, height) == PREPARE.compute_size(*sample.size)
            assert not batch.images[row, :, height:].any()
            assert not batch.images[row, :, :, width:].any()
            assert batch.classes[row].tolist() == [*sample.classes, *[-1] * (batch.classes.shape[1] - count)]
            assert batch.kinds[row, :count].tolist() == sample.kinds.tolist()
            factor = np.array([width, height, width, height]) / [*sample.size, *sample.size]
            np.testing.assert_allclose(batch.boxes[row, :count], sample.boxes * factor, rtol=1e-5)
            assert not batch.boxes[row, count:].any()
    mixed = sum(len(batch.original_sizes.unique(dim=0)) > 1 for batch in batches)
    assert mixed <= 2  # where one shape ends and the next begins


def test_a_pass_sees_each_image_at_most_once_in_full_batches(make):
    loader = make(batch_size=4, seed=3)
    passes = [list(loader) for _ in range(3)]
    seen = [torch.cat([batch.indices for batch in batches]).tolist() for batches in passes]
    for batches, numbers in zip(passes, seen, strict=True):
        assert len(batches) == len(loader) == 5
        assert len(set(numbers)) == 20
        assert sum(len(batch.original_sizes.unique(dim=0)) > 1 for batch in batches) <= 2
        assert all(0 <= draw < 2**31 for batch in batches for draw in batch.seeds.tolist())
    assert len({frozenset(numbers) for numbers in seen}) > 1  # others are left out
    assert len({tuple(numbers) for numbers in seen}) == 3
    assert "image" in loader.describe_batch(7)


def test_memory_or_not_makes_no_difference(samples):
    change = augment_boxes.parse_box_augmentation(["flip", "rotate=20", "brightness", "erase=1"])
    options = {"batch_size": 4, "seed": 5, "augment": change}
    one, other = (
        padded_loader.build_padded_loader(samples, LABELS, PREPARE, memory_limit=memory, **options) for memory in (4, 0)
    )
    assert isinstance(other, padded_loader.PaddedStreamingLoader)
    assert hasattr(other, "compute_wait_fraction")
    assert not hasattr(one, "compute_wait_fraction")
    assert same(one, other) == 5
    assert same(one.iterate_in_order(), other.iterate_in_order()) == 6
    assert same(one, other) == 5


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_a_pass_goes_on_where_it_was(make, steps):
    change = augment_boxes.parse_box_augmentation(["flip", "shift=3"])

    def take(loader, count):
        found = []
        while len(found) < count:
            for batch in loader:
                found.append(batch)
                if len(found) == count:
                    break
        return found

    undisturbed = take(make(batch_size=4, seed=2, augment=change), 9)
    first, second = (make(batch_size=4, seed=2, augment=change) for _ in range(2))
    begun = take(first, steps)
    second.load_state_dict(first.state_dict())
    assert same(begun + take(second, 9 - steps), undisturbed) == 9


def test_two_processes_share_every_batch(make):
    @dataclass
    class Two:
        rank: int
        device = torch.device("cpu")
        world_size = 2
        clock = PhaseTimer(torch.device("cpu"))

    def share(rank, **options):
        loader = make(batch_size=4, **options)
        loader.setup(Two(rank))
        return list(loader)

    options = {"seed": 4, "augment": augment_boxes.parse_box_augmentation(["flip", "rotate"])}
    for whole, *shares in zip(make(batch_size=4, **options), share(0, **options), share(1, **options), strict=True):
        for rank, part in enumerate(shares):
            assert same([part], [PaddedBatch(*(each[rank::2] for each in whole))])
    judged = torch.cat([batch.indices for rank in (0, 1) for batch in share(rank)])
    assert judged.sort().values.tolist() == list(range(22))
    with pytest.raises(UsageError, match="--batch-size"):
        make(batch_size=3, seed=4).setup(Two(0))


def damaged(samples, tmp_path):
    """Nine samples, of which the second has an empty file, and the sixth a file of another size."""
    broken = list(samples[:9])
    for number, content in ((1, b""), (5, None)):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (9, 9)).save(path) if content is None else path.write_bytes(content)
        broken[number] = replace(broken[number], source=path, name=str(path))
    return broken


def test_broken_images_are_named_and_left_out(samples, tmp_path, caplog):
    """Also one that is no longer as large as when its boxes were read."""
    broken = damaged(samples, tmp_path)
    for memory in (4, 0):
        caplog.clear()
        loader = padded_loader.build_padded_loader(broken, LABELS, PREPARE, batch_size=3, memory_limit=memory)
        names = [loader.samples[number].name for batch in loader for number in batch.indices.tolist()]
        assert sorted(names) == sorted(each.name for i, each in enumerate(broken) if i not in (1, 5))
        assert "1.png is empty" in caplog.text
        assert "5.png has 9×9 pixels, and had 41×40" in caplog.text
        with pytest.raises(Error, match="--max-broken allows 1"):
            list(
                padded_loader.build_padded_loader(
                    broken, LABELS, PREPARE, batch_size=3, memory_limit=memory, max_broken=1
                )
            )


def test_a_streamed_batch_of_which_nothing_can_be_read_teaches_nothing(samples, tmp_path):
    """It comes all the same: other processes make a step, too."""
    loader = padded_loader.build_padded_loader(
        damaged(samples, tmp_path), LABELS, PREPARE, batch_size=1, seed=0, memory_limit=0
    )
    batches = {int(batch.indices): batch for batch in loader}
    assert sorted(batches) == list(range(9))
    for number, batch in batches.items():
        known = number not in (1, 5)
        assert bool(batch.images.any()) == known
        assert int((batch.classes >= 0).sum()) == known * len(samples[number].boxes)
        assert known or not batch.boxes.any()
    with pytest.raises(Error, match="--max-broken allows 1"):
        list(
            padded_loader.build_padded_loader(
                loader.samples, LABELS, PREPARE, batch_size=1, seed=0, memory_limit=0, max_broken=1
            )
        )


def test_nothing_to_train_on():
    from fukami.engine.runtime import Runtime

    with pytest.raises(Error, match="no image to train on"):
        padded_loader.build_padded_loader([], LABELS, PREPARE, batch_size=3, seed=0).setup(
            Runtime(torch.device("cpu"), "float32")
        )
    assert list(padded_loader.build_padded_loader([], LABELS, PREPARE, batch_size=3)) == []


# ---- boxes and masks move with the pixels ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch():
    """Six scenes, each in a frame that is larger, with a mask of every object."""
    found = scenes.generate_box_samples(0, 6)
    return next(iter(padded_loader.build_padded_loader(found, scenes.LABELS, ResizeTransform(100, 160), batch_size=6)))


def outlined(masks):
    """The boxes of masks ``(M, H, W)``; nan where there is nothing."""
    boxes = torch.full((len(masks), 4), torch.nan)
    for box, mask in zip(boxes, masks > 0, strict=True):
        if mask.any():
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            box[:] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return boxes


def filled(batch):
    """Masks ``(N, M, H, W)`` uint8 of the boxes themselves, at whole pixels, and these boxes."""
    boxes = batch.boxes.round()
    masks = torch.zeros(*batch.boxes.shape[:2], *batch.images.shape[-2:], dtype=torch.uint8)
    for row in range(len(boxes)):
        for at, (left, top, right, bottom) in enumerate(boxes[row].int().tolist()):
            masks[row, at, top:bottom, left:right] = 255
    return batch._replace(boxes=boxes), masks


@pytest.mark.parametrize(
    "words",
    ["flip=1", "flip-vertical=1 flip=1", "shift=20", "scale=0.4", "crop=0.3", "rotate=90", "shear=0.5 flip",
     "rotate=40 scale=0.3 shift=9 crop=0.5"],
)  # fmt: skip
def test_moved_boxes_bound_moved_masks(batch, words):
    """Boxes painted into masks and moved with the pixels lie within the moved boxes, which are tight where they were
    neither turned nor slanted, and else where they were not cut; nothing comes to lie beyond an image's own sides.
    """
    change = augment_boxes.parse_box_augmentation(words.split())
    before, masks = filled(batch)
    draws = torch.rand(len(masks), change.num_draws, generator=torch.Generator().manual_seed(1))
    after = augment_boxes.augment_batch(change, before, draws)
    geometry = change.compute_matrix(draws, *before.sizes.unbind(1))
    moved = augment_boxes.warp_images(change, masks, geometry, before.sizes)
    assert moved.dtype == torch.uint8
    for changed in (moved, after.images):
        assert not (changed * ~augment_boxes.compute_valid_mask(before.sizes, changed)).any()
    kept = after.classes >= 0
    assert kept.any()
    assert not after.boxes[~kept].any()
    slack = 1e-4 if set(words.split()) <= {"flip=1", "flip-vertical=1"} else 1.5
    outlines = torch.stack([outlined(each) for each in moved])
    apart = (outlines - after.boxes)[kept] * torch.tensor([1, 1, -1, -1])
    assert (apart > -slack).all()
    sides = before.sizes.flip(1).repeat(1, 2).unsqueeze(1).expand_as(outlines)
    uncut = (after.boxes[..., :2] > 0).all(2) & (after.boxes < sides)[..., 2:].all(2)
    tight = uncut[kept] if "rotate" in words or "shear" in words else torch.ones_like(uncut[kept])
    assert (apart[tight] < slack).all()
    if words.startswith("shift"):  # which keeps areas: of those that are lost, less than 0.3 is seen
        areas = [(each[..., 2:] - each[..., :2]).prod(-1) for each in (outlines.nan_to_num(0), before.boxes)]
        share = areas[0] / areas[1].clamp(min=1)
        assert (share[kept] > 0.25).all()
        assert (share[~kept] < 0.35).all()


def test_mirrors_keep_every_pixel(batch):
    change = augment_boxes.parse_box_augmentation(["flip=1"])
    after = augment_boxes.augment_batch(change, batch, torch.zeros(len(batch.indices), change.num_draws))
    assert after.images.dtype == torch.uint8
    for row, (height, width) in enumerate(batch.sizes.int().tolist()):
        assert torch.equal(after.images[row, :, :height, :width], batch.images[row, :, :height, :width].flip(2))
    again = augment_boxes.augment_batch(change, after, torch.zeros(len(batch.indices), change.num_draws))
    assert torch.equal(again.images, batch.images)
    torch.testing.assert_close(again.boxes, batch.boxes, atol=1e-4, rtol=0)


def test_a_frame_changes_nothing(batch):
    """An image in a larger frame comes out as it does in one of its own size, whatever is done to it."""
    words = ["rotate=30", "shift=5", "flip", "contrast=0.9", "brightness", "hue", "saturation", "grey", "erase=1"]
    change = augment_boxes.parse_box_augmentation(words)
    draws = torch.rand(len(batch.indices), change.num_draws, generator=torch.Generator().manual_seed(2))
    after = augment_boxes.augment_batch(change, batch, draws)
    for row, (height, width) in enumerate(batch.sizes.int().tolist()):
        alone = augment.parse_augmentation(words, size=0)
        own = batch.images[row : row + 1, :, :height, :width]
        expected, _ = alone(own, torch.zeros(1), draws[row : row + 1])
        difference = (after.images[row, :, :height, :width] - expected[0]).abs()
        assert difference.max() < 0.05


@pytest.mark.parametrize("word", ["mixup", "cutmix=0.5", "trivial", "rand"])
def test_words_that_make_no_sense_with_boxes(word):
    with pytest.raises(UsageError, match="use of these: rotate, shift"):
        augment_boxes.parse_box_augmentation(["flip", word])
    assert augment_boxes.parse_box_augmentation([]) is None
