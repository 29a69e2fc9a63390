"""Padded batches: sizes as in torchvision, boxes and masks transformed together, resumption in mid-epoch."""

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


def count_equal_batches(one, other):
    """Assert that the batches are identical, and return their number."""
    count = 0
    for batch, other_batch in zip(one, other, strict=True):
        assert all(torch.equal(*pair) for pair in zip(batch, other_batch, strict=True))
        count += 1
    return count


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Create 22 noise images of three shapes, one of them grayscale, with up to nine boxes each."""
    root = tmp_path_factory.mktemp("padded")
    random = np.random.default_rng(0)
    dataset = []
    for index in range(22):
        width, height = ((60, 30), (30, 60), (41, 40))[index % 3]
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        path = root / f"{index}.png"
        (image.convert("L") if index == 4 else image).save(path)
        count = index % 10
        corners = np.sort(random.uniform(0, 1, (count, 2, 2)), 1).reshape(count, 4) * [width, height, width, height]
        classes, kinds = random.integers(0, 2, count), random.integers(0, 3, count).astype(np.uint8)
        dataset.append(Sample(path, (width, height), corners.astype(np.float32), classes, kinds, f"{index}.png"))
    return dataset


@pytest.fixture(params=[4.0, 0.0], ids=["resident", "streamed"])
def build_loader(request, samples):
    """Return a function that builds loaders of the images, in memory or streamed."""
    return lambda **options: padded_loader.build_padded_loader(
        samples, LABELS, PREPARE, memory_limit=request.param, **options
    )


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_images_are_resized_as_in_torchvision(random):
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
        resized = prepare(image)
        assert torch.equal(resized, expected)
        assert prepare.compute_size(width, height) == (expected.shape[2], expected.shape[1])
        sample = Sample(image.permute(1, 2, 0).numpy(), (width, height), boxes.numpy(), np.zeros(1, np.int64),
                           np.zeros(1, np.uint8), "x")  # fmt: skip
        batch = next(iter(padded_loader.build_padded_loader([sample], LABELS, prepare, batch_size=1)))
        torch.testing.assert_close(batch.boxes[0, :1], target["boxes"])
        # except for ties, which several threads may round differently
        assert (batch.images[0, :, : resized.shape[1], : resized.shape[2]] - resized).abs().max() <= 0.501
        assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0


def test_a_resized_strip_keeps_one_pixel():
    assert ResizeTransform(60, 100).compute_size(10_000, 4) == (100, 1)
    assert ResizeTransform(60, 100)(torch.zeros(3, 4, 10_000, dtype=torch.uint8)).shape == (3, 1, 100)
    assert ResizeTransform(60, 100).describe()["shortest"] == 60


# ---- batches --------------------------------------------------------------------------------------------------------


def test_evaluation_uses_all_images_grouped_by_shape(build_loader, samples):
    batches = list(build_loader(batch_size=4))
    assert torch.cat([batch.indices for batch in batches]).sort().values.tolist() == list(range(22))
    assert [len(batch.indices) for batch in batches] == [4, 4, 4, 4, 4, 2]
    for batch in batches:
        assert batch.seeds.tolist() == [0] * len(batch.indices)
        for row, index in enumerate(batch.indices.tolist()):
            sample = samples[index]
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
    assert mixed <= 2  # at the boundaries between shape groups


def test_an_epoch_has_each_image_at_most_once_in_full_batches(build_loader):
    loader = build_loader(batch_size=4, seed=3)
    epochs = [list(loader) for _ in range(3)]
    indices = [torch.cat([batch.indices for batch in batches]).tolist() for batches in epochs]
    for batches, numbers in zip(epochs, indices, strict=True):
        assert len(batches) == len(loader) == 5
        assert len(set(numbers)) == 20
        assert sum(len(batch.original_sizes.unique(dim=0)) > 1 for batch in batches) <= 2
        assert all(0 <= draw < 2**31 for batch in batches for draw in batch.seeds.tolist())
    assert len({frozenset(numbers) for numbers in indices}) > 1  # the dropped images differ
    assert len({tuple(numbers) for numbers in indices}) == 3
    assert "image" in loader.describe_batch(7)


def test_streamed_batches_equal_those_from_memory(samples):
    augmentation = augment_boxes.parse_box_augmentation(["flip", "rotate=20", "brightness", "erase=1"])
    options = {"batch_size": 4, "seed": 5, "augmentation": augmentation}
    in_memory, streamed = (
        padded_loader.build_padded_loader(samples, LABELS, PREPARE, memory_limit=limit, **options) for limit in (4, 0)
    )
    assert isinstance(streamed, padded_loader.PaddedStreamingLoader)
    assert streamed.compute_wait_fraction() is not None
    assert in_memory.compute_wait_fraction() is None
    assert count_equal_batches(in_memory, streamed) == 5
    assert count_equal_batches(in_memory.iterate_in_order(), streamed.iterate_in_order()) == 6
    assert count_equal_batches(in_memory, streamed) == 5


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_an_epoch_resumes_at_its_position(build_loader, steps):
    augmentation = augment_boxes.parse_box_augmentation(["flip", "shift=3"])

    def take(loader, count):
        batches = []
        while len(batches) < count:
            for batch in loader:
                batches.append(batch)
                if len(batches) == count:
                    break
        return batches

    uninterrupted = take(build_loader(batch_size=4, seed=2, augmentation=augmentation), 9)
    first, second = (build_loader(batch_size=4, seed=2, augmentation=augmentation) for _ in range(2))
    start = take(first, steps)
    second.load_state_dict(first.state_dict())
    assert count_equal_batches(start + take(second, 9 - steps), uninterrupted) == 9


def test_two_processes_split_every_batch(build_loader):
    @dataclass
    class TwoProcesses:
        rank: int
        device = torch.device("cpu")
        world_size = 2
        clock = PhaseTimer(torch.device("cpu"))

    def load(rank, **options):
        loader = build_loader(batch_size=4, **options)
        loader.setup(TwoProcesses(rank))
        return list(loader)

    options = {"seed": 4, "augmentation": augment_boxes.parse_box_augmentation(["flip", "rotate"])}
    for batch, *slices in zip(
        build_loader(batch_size=4, **options), load(0, **options), load(1, **options), strict=True
    ):
        for rank, part in enumerate(slices):
            assert count_equal_batches([part], [PaddedBatch(*(tensor[rank::2] for tensor in batch))])
    indices = torch.cat([batch.indices for rank in (0, 1) for batch in load(rank)])
    assert indices.sort().values.tolist() == list(range(22))
    with pytest.raises(UsageError, match="--batch-size"):
        build_loader(batch_size=3, seed=4).setup(TwoProcesses(0))


def damage(samples, tmp_path):
    """Return nine samples; the second has an empty file, and the sixth a file of another size."""
    modified = list(samples[:9])
    for index, content in ((1, b""), (5, None)):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (9, 9)).save(path) if content is None else path.write_bytes(content)
        modified[index] = replace(modified[index], source=path, name=str(path))
    return modified


def test_unreadable_images_are_skipped_and_reported(samples, tmp_path, caplog):
    """An image whose size has changed since its boxes were read is unreadable, too."""
    incomplete_samples = damage(samples, tmp_path)
    for limit in (4, 0):
        caplog.clear()
        loader = padded_loader.build_padded_loader(
            incomplete_samples, LABELS, PREPARE, batch_size=3, memory_limit=limit
        )
        names = [loader.samples[index].name for batch in loader for index in batch.indices.tolist()]
        assert sorted(names) == sorted(sample.name for i, sample in enumerate(incomplete_samples) if i not in (1, 5))
        assert "1.png is empty" in caplog.text
        assert "5.png has 9×9 pixels, but its header stated 41×40" in caplog.text
        with pytest.raises(Error, match="--max-unreadable allows 1"):
            list(
                padded_loader.build_padded_loader(
                    incomplete_samples, LABELS, PREPARE, batch_size=3, memory_limit=limit, max_unreadable=1
                )
            )


@pytest.mark.parametrize("size", [2, 3])
def test_a_streamed_training_batch_has_its_size(samples, tmp_path, size):
    """A readable image takes the place of an unreadable one, so that the batch can be accumulated in parts."""
    loader = padded_loader.build_padded_loader(
        damage(samples, tmp_path), LABELS, PREPARE, batch_size=size, seed=0, memory_limit=0
    )
    batches = list(loader)
    for batch in batches:
        assert len(batch.images) == len(batch.indices) == len(batch.classes) == size
        if batch.images.any():
            assert not {1, 5} & {*batch.indices.tolist()}
            assert batch.images.flatten(1).any(1).all()
    assert len(loader.unreadable_images) == 2 or size == 2


def test_a_streamed_batch_without_readable_images_has_no_targets(samples, tmp_path):
    """The batch is not skipped, because other processes take the step as well."""
    loader = padded_loader.build_padded_loader(
        damage(samples, tmp_path), LABELS, PREPARE, batch_size=1, seed=0, memory_limit=0
    )
    batches = {int(batch.indices): batch for batch in loader}
    assert sorted(batches) == list(range(9))
    for index, batch in batches.items():
        readable = index not in (1, 5)
        assert bool(batch.images.any()) == readable
        assert int((batch.classes >= 0).sum()) == readable * len(samples[index].boxes)
        assert readable or not batch.boxes.any()
    with pytest.raises(Error, match="--max-unreadable allows 1"):
        list(
            padded_loader.build_padded_loader(
                loader.samples, LABELS, PREPARE, batch_size=1, seed=0, memory_limit=0, max_unreadable=1
            )
        )


def test_training_without_images_is_an_error():
    from fukami.engine.runtime import Runtime

    with pytest.raises(Error, match="no training image"):
        padded_loader.build_padded_loader([], LABELS, PREPARE, batch_size=3, seed=0).setup(
            Runtime(torch.device("cpu"), "float32")
        )
    assert list(padded_loader.build_padded_loader([], LABELS, PREPARE, batch_size=3)) == []


# ---- boxes and masks are transformed with the pixels ----------------------------------------------------------------


@pytest.fixture(scope="module")
def batch():
    """Build a batch of six scenes, each padded to a larger size."""
    samples = scenes.generate_box_samples(0, 6)
    return next(
        iter(padded_loader.build_padded_loader(samples, scenes.LABELS, ResizeTransform(100, 160), batch_size=6))
    )


def compute_outlines(masks):
    """Compute the bounding boxes of masks ``(M, H, W)``; NaN for empty masks."""
    boxes = torch.full((len(masks), 4), torch.nan)
    for box, mask in zip(boxes, masks > 0, strict=True):
        if mask.any():
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            box[:] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return boxes


def fill_boxes(batch):
    """Return the batch with boxes rounded to integers, and masks ``(N, M, H, W)`` uint8 of these boxes."""
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
def test_transformed_boxes_bound_transformed_masks(batch, words):
    """Masks of the boxes, transformed with the pixels, lie within the transformed boxes.

    These are tight without rotation and shear, and otherwise where they are not cut. The padding stays empty.
    """
    augmentation = augment_boxes.parse_box_augmentation(words.split())
    before, masks = fill_boxes(batch)
    random_values = torch.rand(len(masks), augmentation.num_random_values, generator=torch.Generator().manual_seed(1))
    after = augment_boxes.augment_batch(augmentation, before, random_values)
    matrix = augmentation.compute_matrix(random_values, *before.sizes.unbind(1))
    moved = augment_boxes.warp_images(augmentation, masks, matrix, before.sizes)
    assert moved.dtype == torch.uint8
    for images in (moved, after.images):
        assert not (images * ~augment_boxes.compute_valid_mask(before.sizes, images)).any()
    kept = after.classes >= 0
    assert kept.any()
    assert not after.boxes[~kept].any()
    slack = 1e-4 if set(words.split()) <= {"flip=1", "flip-vertical=1"} else 1.5
    outlines = torch.stack([compute_outlines(image_masks) for image_masks in moved])
    margins = (outlines - after.boxes)[kept] * torch.tensor([1, 1, -1, -1])
    assert (margins > -slack).all()
    sides = before.sizes.flip(1).repeat(1, 2).unsqueeze(1).expand_as(outlines)
    uncut = (after.boxes[..., :2] > 0).all(2) & (after.boxes < sides)[..., 2:].all(2)
    tight = uncut[kept] if "rotate" in words or "shear" in words else torch.ones_like(uncut[kept])
    assert (margins[tight] < slack).all()
    if words.startswith("shift"):  # a shift keeps areas; dropped boxes have a visible fraction below 0.3
        areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (outlines.nan_to_num(0), before.boxes)]
        visible_fraction = areas[0] / areas[1].clamp(min=1)
        assert (visible_fraction[kept] > 0.25).all()
        assert (visible_fraction[~kept] < 0.35).all()


def test_flips_keep_every_pixel(batch):
    augmentation = augment_boxes.parse_box_augmentation(["flip=1"])
    after = augment_boxes.augment_batch(
        augmentation, batch, torch.zeros(len(batch.indices), augmentation.num_random_values)
    )
    assert after.images.dtype == torch.uint8
    for row, (height, width) in enumerate(batch.sizes.int().tolist()):
        assert torch.equal(after.images[row, :, :height, :width], batch.images[row, :, :height, :width].flip(2))
    restored = augment_boxes.augment_batch(
        augmentation, after, torch.zeros(len(batch.indices), augmentation.num_random_values)
    )
    assert torch.equal(restored.images, batch.images)
    torch.testing.assert_close(restored.boxes, batch.boxes, atol=1e-4, rtol=0)


def test_padding_does_not_change_the_augmentation(batch):
    """A padded image is augmented like an image without padding."""
    words = ["rotate=30", "shift=5", "flip", "contrast=0.9", "brightness", "hue", "saturation", "grayscale", "erase=1"]
    augmentation = augment_boxes.parse_box_augmentation(words)
    random_values = torch.rand(
        len(batch.indices), augmentation.num_random_values, generator=torch.Generator().manual_seed(2)
    )
    after = augment_boxes.augment_batch(augmentation, batch, random_values)
    for row, (height, width) in enumerate(batch.sizes.int().tolist()):
        unpadded_augmentation = augment.parse_augmentation(words, size=0)
        unpadded = batch.images[row : row + 1, :, :height, :width]
        expected, _ = unpadded_augmentation(unpadded, torch.zeros(1), random_values[row : row + 1])
        difference = (after.images[row, :, :height, :width] - expected[0]).abs()
        assert difference.max() < 0.05


@pytest.mark.parametrize("word", ["mixup", "cutmix=0.5", "trivial", "rand"])
def test_augmentations_that_do_not_apply_to_boxes_are_rejected(word):
    with pytest.raises(UsageError, match="use one of rotate, shift"):
        augment_boxes.parse_box_augmentation(["flip", word])
    assert augment_boxes.parse_box_augmentation([]) is None
