"""Images with masks: dataset layouts, class tables, invalid masks and batches."""

import itertools
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fukami.data import augment_boxes, class_frequency, class_tables, mask_folders, masks, padded_loader, scenes
from fukami.data.masks import ArrayMask, MaskFile
from fukami.data.samples import PaddedBatch, Sample
from fukami.data.sources import identify_source
from fukami.errors import Error, UsageError
from fukami.image import io as image_io
from fukami.image.transform import ResizeTransform
from fukami.segmentation import data as segmentation_data


def save(path, pixels, palette=None):
    """Save an array as an image file, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    if palette:
        image = image.convert("P")
        image.putpalette(palette)
    image.save(path)
    return path


def save_pair(root, image, mask, pixels, color=(9, 9, 9)):
    """Save an image of one color, and its mask."""
    height, width = np.asarray(pixels).shape[:2]
    save(root / image, np.full((height, width, 3), color))
    return save(root / mask, pixels)


def read_maps(samples):
    """Return the label maps of samples by the stem of their images."""
    return {sample.source.stem: sample.mask.read().tolist() for sample in samples}


# class tables


@pytest.mark.parametrize(
    ("name", "text", "labels", "values", "colors"),
    [
        ("classes.txt", "road\ncar\n", ("road", "car"), {0: 0, 1: 1}, {}),
        ("classes.txt", "# value name\n3 road\n7 traffic light\n", ("road", "traffic light"), {3: 0, 7: 1}, {}),
        ("class_dict.csv", "name,r,g,b\nRoad,128,64,128\nVoid,0,0,0\n", ("Road",), {},
         {(128, 64, 128): 0, (0, 0, 0): -1}),
        ("label_colors.txt", "64 128 64\tAnimal\n192 0 128\tArchway\n", ("Animal", "Archway"), {},
         {(64, 128, 64): 0, (192, 0, 128): 1}),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nroad:128,64,128::\nsky:70,130,180::\n", ("road", "sky"), {},
         {(128, 64, 128): 0, (70, 130, 180): 1}),
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, crack\n", ("background", "crack"), {0: 0, 1: 1}, {}),
        ("labelmap.txt", "person:192,128,128:head,hand:jumping\n", ("person",), {}, {(192, 128, 128): 0}),
        ("classes.csv", "sky\nroad\n", ("sky", "road"), {0: 0, 1: 1}, {}),
        ("classes.csv", "name\nsky\nroad\n", ("sky", "road"), {0: 0, 1: 1}, {}),
        ("classes.csv", "category,parent\nsky\nroad\n", ("sky", "road"), {0: 0, 1: 1}, {}),
        ("classes.txt", "road:128:64:128\nsky:70:130:180\n", ("road", "sky"), {},
         {(128, 64, 128): 0, (70, 130, 180): 1}),
        ("codes.txt", "sky\nunlabeled\ntree\n", ("sky", "tree"), {0: 0, 1: -1, 2: 1}, {}),
    ],
)  # fmt: skip
def test_class_tables(name, text, labels, values, colors, tmp_path):
    """Formats written by users and by other programs."""
    (tmp_path / name).write_text(text)
    assert class_tables.find_class_table(tmp_path) == class_tables.ClassTable(labels, values, colors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no class"),
        ("road 1 2\n", "line 1: 'road 1 2' is not a class"),
        ("road 1 2 300\n", "is not a class"),
        ("1 2 3\n", "is not a class"),
        ("road 0\ncar\n", "classes with and without a value or color"),
        ("road 3\ncar 3\n", "two classes with 3"),
        ("void 3\n", "no class except unlabeled ones"),
    ],
)
def test_invalid_class_tables_are_rejected(text, message, tmp_path):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(Error, match=message):
        class_tables.find_class_table(tmp_path)


def test_voc_palette():
    """The first colors are those of the development kit."""
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert [class_tables.compute_voc_color(index) for index in range(7)] == expected
    assert class_tables.compute_voc_color(15) == (192, 128, 128)  # a person
    assert class_tables.compute_voc_color(255) == (224, 224, 192)


# masks in files


def test_masks_by_value_and_by_color(tmp_path):
    """All image modes that masks have."""
    pixels = np.array([[0, 1, 2], [2, 255, 1]], np.uint8)
    class_table = class_tables.build_class_table(("a", "b", "c"), ignored_values=(255,))
    expected = [[1, 2, 3], [3, 0, 2]]
    palette = [level for index in range(256) for level in (index, 7, 255 - index)]
    assert MaskFile(save(tmp_path / "gray.png", pixels), class_table).read().tolist() == expected
    assert MaskFile(save(tmp_path / "palette.png", pixels, palette), class_table).read().tolist() == expected
    assert MaskFile(save(tmp_path / "rgb.png", np.stack([pixels] * 3, 2)), class_table).read().tolist() == expected
    Image.fromarray(np.stack([pixels, np.full_like(pixels, 99)], 2)).save(tmp_path / "alpha.png")
    assert MaskFile(tmp_path / "alpha.png", class_table).read().tolist() == expected
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "deep.png")
    assert MaskFile(tmp_path / "deep.png", class_table).read().tolist() == expected
    by_color = class_tables.ClassTable(
        ("a", "b", "c"), color_to_class={(n, 7, 255 - n): n for n in range(3)} | {(255, 7, 0): -1}
    )
    assert MaskFile(tmp_path / "palette.png", by_color).read().tolist() == expected
    Image.fromarray(pixels < 1).save(tmp_path / "bits.png")
    assert MaskFile(tmp_path / "bits.png", class_table).read().tolist() == [[2, 1, 1], [1, 1, 1]]


def test_pixels_without_a_class_are_named(tmp_path):
    class_table = class_tables.build_class_table(("a", "b"))
    with pytest.raises(Error, match=r"m\.png has the value 7 at column 1 of row 0, which is none of the 2 values"):
        MaskFile(save(tmp_path / "m.png", [[0, 7], [1, 9]]), class_table).read()
    colored = save(tmp_path / "c.png", [[[1, 2, 3], [4, 5, 6]]])
    with pytest.raises(Error, match=r"c\.png is in color, and no class table"):
        MaskFile(colored, class_table).read()
    with pytest.raises(Error, match=r"the color \(4, 5, 6\) at column 1 of row 0"):
        MaskFile(colored, class_tables.ClassTable(("a",), color_to_class={(1, 2, 3): 0})).read()
    with pytest.raises(Error, match="does not exist"):
        MaskFile(tmp_path / "none.png", class_table).read()
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(Error, match="pixels of mode F"):
        MaskFile(tmp_path / "f.tif", class_table).read()


# layouts


def test_custom_folders(tmp_path):
    """Mask names with a suffix, and no class table: each value except 255 is a class."""
    save_pair(tmp_path, "Images/a.jpg", "masks/a.png", [[0, 3], [3, 255]])
    save_pair(tmp_path, "Images/b.jpg", "masks/b_mask.png", [[3, 0], [0, 0]])
    save_pair(tmp_path, "Images/deep/c.png", "masks/deep/c.png", [[0, 0], [0, 3]])
    train, val, _, labels = segmentation_data.load_dataset(str(tmp_path), 0.34)
    assert labels == ("0", "3")
    assert read_maps((*train, *val)) == {"a": [[1, 2], [2, 0]], "b": [[2, 1], [1, 1]], "c": [[1, 1], [1, 2]]}
    assert len(val) == 1
    train, val, _, labels = segmentation_data.load_dataset(str(tmp_path), 0.34, ignore_index=0)
    assert labels == ("3",)
    assert read_maps((*train, *val)) == {"a": [[0, 1], [1, 0]], "b": [[1, 0], [0, 0]], "c": [[0, 0], [0, 1]]}


@pytest.mark.parametrize(
    "layout", ["{split}/images/{name}|{split}/masks/{name}", "images/{split}/{name}|labels/{split}/{name}"]
)
def test_splits_on_either_folder_level(layout, tmp_path):
    for index, split in enumerate(("train", "val", "test")):
        image, mask = (pattern.format(split=split, name=f"{split}.png") for pattern in layout.split("|"))
        save_pair(tmp_path, image, mask, [[index, 0], [0, 0]])
    (tmp_path / "classes.txt").write_text("ground\nhouse\nvoid\n")
    train, val, test, labels = segmentation_data.load_dataset(str(tmp_path), 0.2)
    assert labels == ("ground", "house")
    assert read_maps(train) == {"train": [[1, 1], [1, 1]]}
    assert read_maps(val) == {"val": [[2, 1], [1, 1]]}
    assert read_maps(test) == {"test": [[0, 1], [1, 1]]}
    assert segmentation_data.load_dataset(str(tmp_path), 0.2, include_train=False)[0] == ()


def test_binary_masks(tmp_path):
    save_pair(tmp_path, "imgs/a.png", "gt/a.png", [[0, 255]])
    train, _, _, labels = segmentation_data.load_dataset(str(tmp_path), 0)
    assert labels == ("background", "foreground")
    assert read_maps(train) == {"a": [[1, 2]]}


def test_colors_need_a_class_table(tmp_path):
    save_pair(tmp_path, "images/a.png", "masks/a.png", [[[128, 64, 128], [0, 0, 0]]])
    with pytest.raises(Error, match="in color, and no class table"):
        segmentation_data.load_dataset(str(tmp_path), 0)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nroad,128,64,128\nvoid,0,0,0\n")
    train, _, _, labels = segmentation_data.load_dataset(str(tmp_path), 0)
    assert labels == ("road",)
    assert read_maps(train) == {"a": [[1, 0]]}


def test_voc(tmp_path):
    """Palette indices, 255 on the borders, and split lists; JPEGs without a mask are not listed."""
    palette = [level for index in range(256) for level in class_tables.compute_voc_color(index)]
    for name, pixels in (("one", [[0, 15]]), ("two", [[255, 12]])):
        save(tmp_path / f"JPEGImages/{name}.jpg", np.zeros((1, 2, 3)))
        save(tmp_path / f"SegmentationClass/{name}.png", pixels, palette)
    save(tmp_path / "JPEGImages/other.jpg", np.zeros((1, 2, 3)))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("one\none\n")  # a name listed twice is one image
    (lists / "val.txt").write_text("two\n")
    (lists / "trainval.txt").write_text("one\ntwo\n")
    train, val, _, labels = segmentation_data.load_dataset(str(tmp_path), 0.2)
    assert labels[:3] == ("background", "aeroplane", "bicycle")
    assert len(labels) == 21
    assert (len(train), len(val)) == (1, 1)
    assert read_maps(train) == {"one": [[1, 16]]}
    assert read_maps(val) == {"two": [[0, 13]]}
    save(
        tmp_path / "SegmentationClass/one.png",
        [[class_tables.compute_voc_color(0), class_tables.compute_voc_color(15)]],
    )
    save(
        tmp_path / "SegmentationClass/two.png",
        [[class_tables.compute_voc_color(255), class_tables.compute_voc_color(12)]],
    )
    train, val, _, _ = segmentation_data.load_dataset(str(tmp_path), 0.2)
    assert (read_maps(train), read_maps(val)) == ({"one": [[1, 16]]}, {"two": [[0, 13]]})
    save(tmp_path / "SegmentationClass/one.png", np.zeros((1, 2, 3)))  # without objects, so without colors
    (lists / "train.txt").write_text("JPEGImages/one.jpg\n")
    train, val, _, _ = segmentation_data.load_dataset(str(tmp_path), 0.2)
    assert (read_maps(train), read_maps(val)) == ({"one": [[1, 1]]}, {"two": [[0, 13]]})


@pytest.mark.parametrize(("ending", "road", "other"), [("labelIds", 7, 6), ("labelTrainIds", 0, 255)])
def test_cityscapes(ending, road, other, tmp_path):
    """Both label numberings; the val masks are not public, so the validation split is used for evaluation."""
    for split in ("train", "val", "test"):
        name = f"{split}/ulm/ulm_0_0"
        mask = f"gtFine/{name}_gtFine_{ending}.png"
        save_pair(tmp_path, f"leftImg8bit/{name}_leftImg8bit.png", mask, [[road, other]])
        save(tmp_path / f"gtFine/{name}_gtFine_color.png", [[[1, 1, 1], [2, 3, 4]]])
        save(tmp_path / f"gtFine/{name}_gtFine_instanceIds.png", [[99, 98]])
    train, val, _, labels = segmentation_data.load_dataset(str(tmp_path), 0.2)
    assert labels[0] == "road"
    assert len(labels) == 19
    assert [list(read_maps(split).values()) for split in (train, val)] == [[[[1, 0]]], [[[1, 0]]]]
    assert "val" in val[0].name


def test_camvid_in_an_archive(tmp_path):
    root = tmp_path / "inner" / "CamVid"
    save_pair(root, "train/a.png", "trainannot/a.png", [[0, 10]])
    save_pair(root, "test/b.png", "testannot/b.png", [[11, 3]])
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "inner"))
    train, val, test, labels = segmentation_data.load_dataset(str(tmp_path / "own.zip"), 0.0)
    assert labels == class_tables.CAMVID_LABELS
    assert val == ()
    assert (read_maps(train), read_maps(test)) == ({"a": [[1, 11]]}, {"b": [[0, 4]]})


def write_coco(root, names):
    """Write a COCO file of one image with a square of the last category."""
    Image.new("RGB", (9, 8)).save(root / "1.png")
    coco = {
        "images": [{"id": 1, "file_name": "1.png", "width": 9, "height": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": len(names) - 1, "bbox": [0, 0, 4, 4], "area": 16,
                         "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names)],
    }  # fmt: skip
    (root / "annotations.json").write_text(json.dumps(coco))


def test_a_category_of_coco_that_is_named_background_is_the_background(tmp_path):
    write_coco(tmp_path, ["background", "cat"])
    index = segmentation_data.index_dataset(identify_source(str(tmp_path), "masks"))
    assert index.class_table.labels == ("background", "cat")
    ((_, mask),) = index.splits[""]
    pixels = mask.read()
    assert (pixels[:4, :4] == 2).all()
    assert pixels.sum() == 72 + 16


def test_too_many_categories_of_coco_are_reported(tmp_path):
    write_coco(tmp_path, [f"c{n}" for n in range(300)])
    with pytest.raises(Error, match="has 301 classes, and masks support at most 254"):
        segmentation_data.index_dataset(identify_source(str(tmp_path), "masks"))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_coco_masks_equal_those_of_pycocotools(tmp_path):
    """Polygons of several parts, run lengths of both types and a crowd; smaller objects are drawn on top."""
    from pycocotools import mask as coco_mask

    blob = np.zeros((20, 30), np.uint8)
    blob[4:9, 10:25] = 1
    counts = coco_mask.encode(np.asfortranarray(blob))["counts"].decode()
    plain, run = [], 0
    flat = blob.T.ravel().tolist()
    for before, value in zip([0, *flat], flat, strict=False):
        if value != before:
            plain.append(run)
            run = 0
        run += 1
    plain.append(run)
    polygons = [[2, 2, 12, 2, 12, 14, 2, 14], [20.0, 12, 28, 12, 24, 18.5]]
    crowd = {"size": [20, 30], "counts": plain}
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 5, "segmentation": polygons, "area": 200, "bbox": [2, 2, 26, 17]},
        {"id": 2, "image_id": 1, "category_id": 9, "segmentation": {"size": [20, 30], "counts": counts}, "area": 75},
        {"id": 3, "image_id": 2, "category_id": 9, "segmentation": crowd, "area": 75, "iscrowd": 1},
    ]
    save(tmp_path / "1.png", np.zeros((20, 30, 3)))
    save(tmp_path / "2.png", np.zeros((20, 30, 3)))
    images = [{"id": n, "file_name": f"{n}.png", "width": 30, "height": 20} for n in (1, 2)]
    coco = {"images": images, "annotations": [{"iscrowd": 0, "bbox": [0, 0, 9, 9], **entry} for entry in annotations],
             "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}]}  # fmt: skip
    (tmp_path / "sheet.json").write_text(json.dumps(coco))
    for spec in (tmp_path / "sheet.json", tmp_path):
        train, _, _, labels = segmentation_data.load_dataset(str(spec), 0)
        assert labels == ("background", "cat", "dog")
        expected = np.ones((20, 30), np.uint8)
        expected[coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 20, 30))).astype(bool)] = 2
        expected[blob.astype(bool)] = 3
        label_maps = read_maps(train)
        assert label_maps["1"] == expected.tolist()
        assert label_maps["2"] == np.where(blob, 0, 1).tolist()


def test_original_camvid(monkeypatch, camvid):
    """367, 101 and 233 images of eleven classes, as in the paper."""
    train, val, test, labels = segmentation_data.load_dataset("camvid", 0.2)
    assert (len(train), len(val), len(test), len(labels)) == (367, 101, 233, 11)
    assert {sample.size for sample in (*train, *val, *test)} == {(480, 360)}
    class_pixels, image_pixels = class_frequency.count_class_pixels(train[:40], 11)
    expected = np.zeros(12, np.int64)
    for sample in train[:40]:
        expected += np.bincount(np.asarray(Image.open(sample.mask.path)).ravel(), minlength=12)
    assert class_pixels.tolist() == expected[:11].tolist()
    assert (image_pixels <= expected[:11].sum()).all()


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("camvd", UsageError, "did you mean 'camvid'"),
        ("cityscapes", Error, "leftImg8bit and gtFine"),
        ("voc2012", Error, "VOCtrainval_11-May-2012.tar"),
        ("coco", Error, "annotations_trainval2017.zip"),
    ],
)
def test_missing_datasets_are_errors(spec, error, message, monkeypatch, tmp_path):
    monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
    with pytest.raises(error, match=message):
        segmentation_data.load_dataset(spec, 0.2)


def test_folders_without_a_known_layout_are_rejected(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(Error, match="contains no images with masks; expected a folder of images and one of masks"):
        segmentation_data.load_dataset(str(tmp_path), 0.2)
    save(tmp_path / "images" / "a.png", np.zeros((2, 2, 3)))
    save(tmp_path / "masks" / "b.png", np.zeros((2, 2)))
    with pytest.raises(Error, match="no mask of the same name"):
        segmentation_data.load_dataset(str(tmp_path), 0.2)


def test_images_without_a_matching_mask_are_skipped_and_reported(tmp_path, caplog):
    for name in ("a", "b", "c", "d"):
        save_pair(tmp_path, f"images/{name}.png", f"masks/{name}.png", [[0, 1], [1, 1]])
    save(tmp_path / "masks" / "b.png", [[0, 1, 1]])
    (tmp_path / "masks" / "c.png").unlink()
    (tmp_path / "images" / "d.png").write_bytes(b"")
    train, _, _, _ = segmentation_data.load_dataset(str(tmp_path), 0)
    assert read_maps(train) == {"a": [[1, 2], [2, 2]]}
    assert "3 of 4 images are skipped" in caplog.text
    assert "2×2 pixels, and its mask" in caplog.text
    assert "c.png has no mask" in caplog.text
    with pytest.raises(Error, match="--max-unreadable allows 2"):
        segmentation_data.load_dataset(str(tmp_path), 0, 2)


def test_a_mask_without_a_class_is_skipped_when_read(tmp_path, caplog):
    for name, value in (("a", 1), ("b", 9)):
        save_pair(tmp_path, f"images/{name}.png", f"masks/{name}.png", np.full((40, 50), value))
    (tmp_path / "classes.txt").write_text("ground\nhouse\n")
    train, _, _, labels = segmentation_data.load_dataset(str(tmp_path), 0)
    for memory in (4, 0):
        loader = padded_loader.build_padded_loader(
            train, labels, ResizeTransform(0, 0), batch_size=1, memory_limit=memory
        )
        (batch,) = list(loader)
        assert batch.masks.unique().tolist() == [0, 2]
        assert "has the value 9 at column 0 of row 0" in caplog.text
        caplog.clear()


# batches


def generate_samples(count=6, seed=0):
    """Generate scenes with masks."""
    return scenes.generate_mask_samples(0, count, seed)


def test_batches_contain_the_masks_of_their_images():
    samples = generate_samples()
    for memory, prepare in ((4, ResizeTransform(0, 0)), (4, ResizeTransform(64, 0))):
        loader = padded_loader.build_padded_loader(
            samples, scenes.MASK_LABELS, prepare, batch_size=4, memory_limit=memory
        )
        for batch in loader:
            for row, index in enumerate(batch.indices.tolist()):
                height, width = batch.sizes[row].int().tolist()
                expected = masks.resize_mask(samples[index].mask.read(), width, height)
                assert np.array_equal(batch.masks[row, :height, :width].numpy(), expected)
                assert not batch.masks[row, height:].any()
                assert not batch.masks[row, :, width:].any()


def test_masks_are_transformed_with_their_images():
    """An image equal to its mask stays equal under geometric transforms; color changes affect only the image."""
    grown = np.kron(np.random.default_rng(0).integers(1, 6, (12, 16)), np.ones((8, 8))).astype(np.uint8)
    sample = Sample.from_mask(np.stack([40 * grown] * 3, 2), (128, 96), "own", ArrayMask(grown))
    words = ("flip", "flip-vertical", "rotate=20", "scale=0.2", "shift=9", "shear=0.2", "crop=0.4")
    for spec in ((word,) for word in words):
        loader = padded_loader.build_padded_loader(
            [sample] * 8,
            tuple("abcde"),
            ResizeTransform(0, 0),
            batch_size=8,
            seed=1,
            augmentation=augment_boxes.parse_box_augmentation(spec),
        )
        batch = next(iter(loader))
        gray, mask = batch.images[:, 0].float(), 40 * batch.masks.float()
        inner = (gray - mask).abs() < 1  # except at borders between two values, which are blended
        assert inner.float().mean() > 0.6, spec
        assert (gray - mask).abs().max() <= 200
        assert len({one_mask.numpy().tobytes() for one_mask in batch.masks}) > 1
    loader = padded_loader.build_padded_loader(
        [sample] * 2,
        tuple("abcde"),
        ResizeTransform(0, 0),
        batch_size=2,
        seed=1,
        augmentation=augment_boxes.parse_box_augmentation(["brightness"]),
    )
    batch = next(iter(loader))
    assert torch.equal(batch.masks, torch.from_numpy(grown).expand(2, -1, -1))
    assert not torch.equal(batch.images[0].round().byte(), torch.from_numpy(sample.source).permute(2, 0, 1))


def test_random_crops_of_larger_images():
    """Image and mask are cropped at the same random position; smaller images are not cropped."""
    rows, columns = np.mgrid[:100, :120]
    image = np.stack([rows, columns, rows + columns], 2).astype(np.uint8)
    mask = (rows // 10 + 1).astype(np.uint8)
    large = Sample.from_mask(image, (120, 100), "large", ArrayMask(mask))
    short = Sample.from_mask(image[:40], (120, 40), "short", ArrayMask(mask[:40]))
    loader = padded_loader.build_padded_loader(
        [large] * 10 + [short] * 10, tuple("abcdefghij"), ResizeTransform(0, 0), batch_size=20, seed=0, crop_size=64
    )
    corners = set()
    for batch in itertools.chain(loader, loader, loader):
        assert batch.images.shape == (20, 3, 64, 64)
        for pixels, cropped_mask, (height, width), index in zip(
            batch.images, batch.masks, batch.sizes.int().tolist(), batch.indices.tolist(), strict=True
        ):
            assert (height, width) == ((64, 64) if index < 10 else (40, 64))
            top, left = int(pixels[0, 0, 0]), int(pixels[1, 0, 0])
            corners.add((top, left))
            assert torch.equal(pixels[0, :height, 0].int(), torch.arange(top, top + height, dtype=torch.int32))
            assert torch.equal(pixels[1, 0, :width].int(), torch.arange(left, left + width, dtype=torch.int32))
            assert torch.equal(
                cropped_mask[:height, 0].int(), torch.arange(top, top + height, dtype=torch.int32) // 10 + 1
            )
            assert not pixels[:, height:].any()
            assert not cropped_mask[height:].any()
    assert len(corners) > 20
    loader = padded_loader.build_padded_loader(
        [large] * 2, tuple("abcdefghij"), ResizeTransform(0, 0), batch_size=2, seed=0, crop_size=512
    )
    assert next(iter(loader)).images.shape == (2, 3, 128, 128)


def test_streamed_batches_equal_those_from_memory(tmp_path):
    for index, sample in enumerate(generate_samples(8)):
        save(tmp_path / f"images/{index}.png", sample.source)
        save(tmp_path / f"masks/{index}.png", sample.mask.read() - 1)
    train, _, _, labels = segmentation_data.load_dataset(str(tmp_path), 0)
    augmentation = augment_boxes.parse_box_augmentation(["flip", "crop=0.5", "brightness"])
    options = {"batch_size": 3, "seed": 4, "augmentation": augmentation, "crop_size": 96}
    in_memory, streamed = (
        padded_loader.build_padded_loader(train, labels, ResizeTransform(0, 0), memory_limit=memory, **options)
        for memory in (4, 0)
    )
    assert type(in_memory) is not type(streamed)
    for _ in range(2):
        for batch, streamed_batch in zip(in_memory, streamed, strict=True):
            assert all(torch.equal(first, second) for first, second in zip(batch, streamed_batch, strict=True))
    assert isinstance(batch, PaddedBatch)


# frequencies


def test_class_frequencies_are_counted_once(tmp_path, monkeypatch):
    """Counts are correct, and come from the cache until a mask changes."""
    save_pair(tmp_path, "images/a.png", "masks/a.png", [[0, 0, 1, 2]])
    save_pair(tmp_path, "images/b.png", "masks/b.png", [[0, 1, 1, 255]])
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\ntree\n")
    train, _, _, _ = segmentation_data.load_dataset(str(tmp_path), 0)
    expected = [[3, 3, 1, 0], [7, 7, 4, 0]]
    assert class_frequency.count_class_pixels(train, 4).tolist() == expected
    monkeypatch.setattr(MaskFile, "read", None)
    assert class_frequency.count_class_pixels(train, 4).tolist() == expected
    monkeypatch.undo()
    save_pair(tmp_path, "images/b.png", "masks/b.png", [[0, 0, 0, 0, 0]])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    train, _, _, _ = segmentation_data.load_dataset(str(tmp_path), 0)
    assert class_frequency.count_class_pixels(train, 4).tolist() == [[7, 1, 1, 0], [9, 4, 4, 0]]


def test_unreadable_masks_are_not_counted(tmp_path):
    save_pair(tmp_path, "images/a.png", "masks/a.png", [[0, 1]])
    save_pair(tmp_path, "images/b.png", "masks/b.png", [[0, 7]])
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    train, _, _, _ = segmentation_data.load_dataset(str(tmp_path), 0)
    assert class_frequency.count_class_pixels(train, 2).tolist() == [[1, 1], [2, 2]]


def test_mask_names_are_matched_without_their_suffixes():
    names = ("a_mask", "a-label", "a_P", "a.seg", "0016E5_L", "x_gtFine_labelIds", "x_leftImg8bit", "mask", "a_L_gt")
    stems = [mask_folders._list_stems(Path(f"{name}.png"), Path())[-1] for name in names]
    assert stems == ["a", "a", "a", "a", "0016E5", "x", "x", "mask", "a"]


def test_images_whose_names_end_like_masks_keep_their_masks(tmp_path):
    for value, name in enumerate(("road_p", "road_l", "road", "0001_L")):
        save_pair(tmp_path, f"images/{name}.png", f"masks/{name}.png", [[0, value]])
    save_pair(tmp_path, "images/0002_L.png", "masks/0002_L_mask.png", [[0, 4]])
    train, _, _, _ = segmentation_data.load_dataset(str(tmp_path), 0)
    values = {Path(sample.name).stem: sample.mask.read().max() for sample in train}
    assert values == {"road_p": 1, "road_l": 2, "road": 3, "0001_L": 4, "0002_L": 5}


def test_an_image_that_coco_lists_twice_has_the_objects_of_both_entries(tmp_path):
    write_coco(tmp_path, ["cat"])
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["images"].append({**content["images"][0], "id": 2})
    outline = [[5, 4, 9, 4, 9, 8, 5, 8]]
    content["annotations"].append({**content["annotations"][0], "id": 2, "image_id": 2, "segmentation": outline})
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    ((_, mask),) = segmentation_data.index_dataset(identify_source(str(tmp_path), "masks")).splits[""]
    pixels = mask.read()
    assert (pixels[:4, :4] == 2).all()
    assert (pixels[4:, 5:] == 2).all()
    assert (pixels == 2).sum() == 32


@pytest.mark.parametrize("outline", [[[0, 0, 4, 4]], [[1.0]], [[0, 0, 4, 4], [1, 1]]])
def test_an_outline_without_area_is_not_drawn(tmp_path, outline):
    """The mask library would take four numbers as a box."""
    write_coco(tmp_path, ["cat"])
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["annotations"][0]["segmentation"] = outline
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    ((_, mask),) = segmentation_data.index_dataset(identify_source(str(tmp_path), "masks")).splits[""]
    assert (mask.read() == 1).all()


def test_an_object_without_an_outline_is_its_box(tmp_path):
    write_coco(tmp_path, ["cat"])
    content = json.loads((tmp_path / "annotations.json").read_text())
    box = {**content["annotations"][0], "id": 2, "bbox": [5, 4, 4, 4], "segmentation": []}
    content["annotations"] += [box, {**box, "bbox": [None, 0, 4, 4]}, {**box, "bbox": [0, 0, -4, 4]}]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    ((_, mask),) = segmentation_data.index_dataset(identify_source(str(tmp_path), "masks")).splits[""]
    pixels = mask.read()
    assert (pixels[:4, :4] == 2).all()
    assert (pixels[4:, 5:] == 2).all()
    assert (pixels == 2).sum() == 32


def test_outlines_of_a_stored_image_rotate_with_it(tmp_path):
    """The entry states the size of the stored image, which is rotated by its EXIF data; Pillow rotates the mark."""
    write_coco(tmp_path, ["cat"])
    image = Image.new("RGB", (9, 8), "white")
    image.paste((255, 0, 0), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "1.png", exif=exif)
    train, _, _, _ = segmentation_data.load_dataset(str(tmp_path), 0)
    pixels = np.asarray(image_io.read_image(tmp_path / "1.png"))
    assert pixels.shape == (9, 8, 3)
    assert np.array_equal(train[0].mask.read() == 2, (pixels == (255, 0, 0)).all(2))


def test_cached_counts_depend_on_the_classes_of_the_polygons(tmp_path, monkeypatch):
    """A class that is renamed in another split changes the values of all masks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    counts = []
    for names in (["cat", "zebra"], ["zebra", "cat"]):
        write_coco(tmp_path, names)
        train, _, _, labels = segmentation_data.load_dataset(str(tmp_path / "annotations.json"), 0)
        file = (tmp_path / "annotations.json").stat()
        os.utime(tmp_path / "annotations.json", ns=(file.st_atime_ns, 10**18))
        counts.append(dict(zip(labels, class_frequency.count_class_pixels(train, 3)[0].tolist(), strict=True)))
    assert counts == [{"background": 56, "cat": 0, "zebra": 16}, {"background": 56, "zebra": 0, "cat": 16}]


# splits


def write_coco_splits(root, **splits):
    """Write a COCO file per split with the images of the numbers; each has a square, unless its number is negative."""
    for split, numbers in splits.items():
        images, annotations = [], []
        for number in numbers:
            name = f"{abs(number)}.png"
            save(root / name, np.full((8, 9, 3), abs(number)))
            images.append({"id": abs(number), "file_name": name, "width": 9, "height": 8})
            if number > 0:
                annotations.append(
                    {"id": number, "image_id": number, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16,
                     "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
                )  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cup"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def write_folder_splits(root, **splits):
    """Write the images and masks of each split."""
    for split, numbers in splits.items():
        for number in numbers:
            save_pair(root, f"{split}/images/{number}.png", f"{split}/masks/{number}.png", [[0, 1]], (number,) * 3)
    return root


def write_voc_splits(root, **splits):
    """Write VOC's folders, with a list for each split."""
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for split, numbers in splits.items():
        for number in numbers:
            save_pair(root, f"JPEGImages/{number}.png", f"SegmentationClass/{number}.png", [[0, 1]], (number,) * 3)
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(map(str, numbers)))
    return root


@pytest.mark.parametrize("write", [write_coco_splits, write_voc_splits])
@pytest.mark.parametrize(
    ("splits", "train", "val"),
    [
        ({"train": (1, 2), "val": (3,), "trainval": (1, 2, 3)}, [1, 2], [3]),
        ({"val": (3,), "trainval": (1, 2, 3)}, [1, 2], [3]),
        ({"train": (1, 2), "trainval": (1, 2, 3)}, [1, 2], [3]),
    ],
)
def test_validation_images_in_trainval_are_not_trained_on(tmp_path, doctor, write, splits, train, val):
    dataset = segmentation_data.load_dataset(str(write(tmp_path / "data", **splits)), 0.5)
    assert [[int(sample.source.stem) for sample in part] for part in dataset[:2]] == [train, val]
    kinds = {problem["problem"] for problem in doctor(tmp_path / "data").json}
    assert not kinds & {"duplicate across splits", "unreadable"}


@pytest.mark.parametrize("write", [write_coco_splits, write_voc_splits, write_folder_splits])
def test_trainval_without_another_split_is_training_data(tmp_path, doctor, write):
    dataset = segmentation_data.load_dataset(str(write(tmp_path / "data", trainval=(1, 2, 3, 4), test=(5,))), 0.25)
    assert [len(part) for part in dataset[:3]] == [3, 1, 1]
    assert "bug" not in doctor(tmp_path / "data").err


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_objects_is_not_used_for_evaluation(tmp_path, split, caplog):
    write_coco_splits(tmp_path, **{"train": (1, 2, 3, 4), split: (-5, -6)})
    dataset = segmentation_data.load_dataset(str(tmp_path), 0.25)
    assert [len(part) for part in dataset[:3]] == [3, 1, 0]
    assert f"the {split} split has no mask and is not used for evaluation" in caplog.text


@pytest.mark.parametrize("write", [write_coco_splits, write_voc_splits])
@pytest.mark.parametrize("splits", [("train", "val", "trainval"), ("val", "trainval"), ("train", "trainval")])
def test_missing_images_of_trainval_are_counted_once(tmp_path, write, splits):
    numbers = {"train": (1, 2, 3), "val": (4, 5, 6), "trainval": (1, 2, 3, 4, 5, 6)}
    write(tmp_path, **{split: numbers[split] for split in splits})
    for number in (1, 4):
        for path in (*tmp_path.glob(f"{number}.png"), *tmp_path.glob(f"*/{number}.png")):
            path.unlink()
    dataset = segmentation_data.load_dataset(str(tmp_path), 0.5, 1)
    assert [len(part) for part in dataset[:2]] == [2, 2]


def test_missing_images_are_counted(tmp_path, caplog):
    write_coco_splits(tmp_path, train=(1, 2, 3), val=(4,))
    (tmp_path / "1.png").unlink()
    train, val, _, _ = segmentation_data.load_dataset(str(tmp_path), 0.25)
    assert (len(train), len(val)) == (2, 1)
    assert "1 of 3 images are skipped" in caplog.text
    with pytest.raises(Error, match="1 images are unreadable, and --max-unreadable allows 0"):
        segmentation_data.load_dataset(str(tmp_path), 0.25, 0)
    (tmp_path / "4.png").unlink()
    train, val, _, _ = segmentation_data.load_dataset(str(tmp_path), 0.5)
    assert (len(train), len(val)) == (1, 1)
    assert "the val split has no mask and is not used for evaluation" in caplog.text
