"""Detection of formats by content: images of noise with annotations in folders of any names, for every family."""

import csv
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fukami.data import annotation_files, captions, coco, formats, image_folder, label_tables, mask_folders, voc, yolo
from fukami.data.annotations import build_samples
from fukami.data.sources import KINDS, identify_source
from fukami.errors import Error, UsageError
from fukami.segmentation import data as segmentation_data

COUNT = 6  # images of each split
SIDE = 24
XML = (
    "<annotation><size><width>24</width><height>24</height></size><object><name>kangaroo</name><bndbox>"
    "<xmin>{0}</xmin><ymin>3</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>"
)
RECIPES = {
    "labels": "resnet18",
    "boxes": "faster-rcnn-vgg16",
    "masks": "segnet-basic",
    "captions": "show-and-tell",
}


def write_image(path, seed=0):
    """Write an image of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.as_posix().encode()]).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path, index, dtype=np.uint8):
    """Write a mask with the values 0, 1 and 2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((SIDE, SIDE), dtype)
    pixels[3:9], pixels[9:12] = 1, 1 + index % 2
    Image.fromarray(pixels).save(path)


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_coco(path, **fields):
    """Write COCO's JSON with a box or other fields for each image."""
    images = [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(COUNT)]
    fields = fields or {"bbox": [3, 3, 9, 9], "category_id": 1}
    annotations = [{"id": i, "image_id": i, **fields} for i in range(COUNT)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "kangaroo"}]}
    write_text(path, json.dumps(content))


# for each layout: template of the images and of the annotations, kind, the format's sentence in front of the recipes
XML_LAYOUTS = {
    "images and annots": ("images/{}.png", "annots/{}.xml"),
    "photos and boxes": ("photos/{}.png", "boxes/{}.xml"),
    "nested": ("deep/photos/{}.png", "deep/boxes/voc/{}.xml"),
    "one subfolder": ("kangaroos/{}.png", "kangaroos/{}.xml"),
}
SHAPES = [
    {"label": "kangaroo", "points": [[9, 4], [3, 8], [6, 20]], "shape_type": "polygon"},
    {"label": "wallaby", "points": [[12, 10], [12, 15]], "shape_type": "circle"},
    {"label": "kangaroo", "points": [[20, 3], [12, 9]], "shape_type": "rectangle"},
]
TEXT_LAYOUTS = {"beside": ("{}.png", "{}.txt"), "txt": ("photos/{}.png", "txt/{}.txt")}
MASK_LAYOUTS = {
    "odd": ("photos/{}.png", "marks/{}.png"),
    "suffix": ("photos/{}.jpg", "marks/{}_mask.png"),
    "of a split": ("train/{}.png", "train_x/{}.png"),
    "splits outside": ("train/photos/{}.png", "train/marks/{}.png"),
    "splits inside": ("photos/train/{}.png", "marks/train/{}.png"),
}


def write_layout(root, template, write):
    """Write the files of a layout."""
    images, annotations = template
    for index in range(COUNT):
        write_image(root / images.format(index))
        write(root / annotations.format(index), index)
    return root


def write_dataset(root, kind, layout):
    """Write a dataset; return the kind of its annotations and the sentence that describes it."""
    if kind == "XML":
        write_layout(root, XML_LAYOUTS[layout], lambda path, index: write_text(path, XML.format(index + 2)))
        return "boxes", "VOC boxes: 6 images, 1 class; for faster-rcnn-vgg16, rcnn and other detection recipes"
    if kind == "text":
        write_layout(root, TEXT_LAYOUTS[layout], lambda path, index: write_text(path, f"{index % 2} .5 .5 .4 .4\n"))
        return "boxes", "YOLO boxes: 6 images, 2 classes; for faster-rcnn-vgg16, rcnn and other detection recipes"
    if kind == "labelme":
        text = json.dumps({"imageWidth": SIDE, "imageHeight": SIDE, "shapes": SHAPES})
        write_layout(root, TEXT_LAYOUTS[layout], lambda path, _: write_text(path.with_suffix(".json"), text))
        return "boxes", "labelme boxes: 6 images, 2 classes; for faster-rcnn-vgg16, rcnn and other detection recipes"
    if kind == "masks":
        write_layout(root, MASK_LAYOUTS[layout], write_mask)
        return "masks", "masks in files: 6 images, 3 classes; for fcn8s-vgg16, segnet-basic and other segmentation"
    if kind == "JSON":
        for index in range(COUNT):
            write_image(root / "photos" / f"{index}.png")
        write_coco(root / "notes" / "all.json")
        return "boxes", "COCO boxes: 6 images, 1 class; for faster-rcnn-vgg16"
    if kind == "caption":
        write_layout(root, TEXT_LAYOUTS[layout], lambda path, index: write_text(path, f"kangaroo {index}\n2 animals\n"))
        return "captions", "captions: 6 images, 12 captions; for show-and-tell"
    for index in range(COUNT):
        write_image(root / "photos" / f"{index}.png")
    rows = "".join(f"photos/{index}.png,{'ab'[index % 2]}\n" for index in range(COUNT))
    write_text(root / "table.csv", f"Path, Label\n{rows}")
    return "labels", "CSV of labels: 6 images, 2 classes; for resnet18, vgg16 and other classification recipes"


DATASETS = [
    *(("XML", layout) for layout in XML_LAYOUTS),
    *(("text", layout) for layout in TEXT_LAYOUTS),
    *(("labelme", layout) for layout in TEXT_LAYOUTS),
    *(("masks", layout) for layout in MASK_LAYOUTS),
    *(("caption", layout) for layout in TEXT_LAYOUTS),
    ("JSON", ""),
    ("CSV", ""),
]


@pytest.mark.parametrize(("kind", "layout"), DATASETS)
def test_doctor_says_what_it_found(kind, layout, tmp_path, fukami):
    """The dataset has one kind of annotations, without any problem; only labelme's polygons are boxes and masks."""
    found, sentence = write_dataset(tmp_path / "data", kind, layout)
    source = identify_source(str(tmp_path / "data"))
    kinds = {found, *(["masks"] if kind == "labelme" else [])}
    assert {other for other in KINDS if source.has(other)} == {*kinds, "images"}
    result = fukami("doctor", "data")
    assert (result.status, result.out) == (0, ""), result
    assert result.err.startswith(sentence)
    assert "no problem among 6 readable images" in result.err
    for other in RECIPES.keys() - kinds:
        with pytest.raises(UsageError) as error:
            source.require(other)
        assert f"data contains {sentence}" in str(error.value)
        assert len(str(error.value)) < 450 + len(str(tmp_path))


def test_a_recipe_of_another_family_refuses(tmp_path, fukami):
    write_dataset(tmp_path / "data", "XML", "images and annots")
    for recipe in ("resnet18", "segnet-basic", "show-and-tell"):
        result = fukami("train", recipe, "--data", "data", "--epochs", "1")
        assert result.status == 2
        assert "data contains VOC boxes: 6 images, 1 class; for faster-rcnn-vgg16, rcnn and other" in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("files", "images", "expected"),
    [
        (["2024/05/05/1.xml"], ["2024/05/01/1.jpg", "2024/05/05/1.jpg"], ["2024/05/05/1.jpg"]),
        (["boxes/01/02/1.xml"], ["photos/02/01/1.jpg", "photos/01/02/1.jpg"], ["photos/01/02/1.jpg"]),
        (["train/labels/1.txt", "test/labels/1.txt"], ["test/images/1.png", "train/images/1.png"],
         ["train/images/1.png", "test/images/1.png"]),
        (["boxes/train/1.xml", "boxes/2.xml", "boxes/3.xml"], ["photos/test/1.jpg", "photos/train/1.jpg", "x/2.jpg"],
         ["photos/train/1.jpg", "x/2.jpg"]),
    ],
)  # fmt: skip
def test_annotations_belong_to_the_image_with_most_folders_in_common(files, images, expected):
    pairs = annotation_files.pair_with_images([Path(file) for file in files], [Path(image) for image in images])
    assert [image.as_posix() for image in pairs.values()] == expected


def test_many_folders_with_equal_names_are_paired_quickly():
    """Each annotation would otherwise be compared with 400 images."""
    folders = [f"{n:03}" for n in range(400)]
    files = [Path("boxes", folder, f"{n}.xml") for folder in folders for n in range(50)]
    images = [Path("photos", folder, f"{n}.jpg") for folder in folders for n in range(50)]
    pairs = annotation_files.pair_with_images(files, images)
    assert list(pairs.values()) == images


def test_an_annotation_is_compared_with_at_most_100_images():
    """Of 400 images of the same name, it belongs to the one whose folder has its folder's name."""
    folders = [f"{n:03}" for n in range(400)]
    files = [Path("boxes", folder, "1.xml") for folder in folders]
    images = [Path("photos", folder, "1.jpg") for folder in folders]
    assert list(annotation_files.pair_with_images(files, images).values()) == images


def test_labelme_shapes(tmp_path):
    """The corners were computed by hand; a broken file is named."""
    write_dataset(tmp_path, "labelme", "txt")
    (tmp_path / "txt" / "5.json").write_text('{"shapes": [{}]}')
    dataset = formats.read_boxes(identify_source(str(tmp_path)).require("boxes"))
    assert len(dataset.splits[""]) == COUNT - 1
    assert [(box.label, box.corners) for box in dataset.splits[""][0].boxes] == [
        ("kangaroo", (3, 4, 9, 20)),
        ("wallaby", (7, 5, 17, 15)),
        ("kangaroo", (12, 3, 20, 9)),
    ]
    (problem,) = dataset.unreadable_images
    assert (problem.kind, problem.file.name) == ("unreadable", "5.json")
    assert "is not labelme's JSON (KeyError: 'label')" in problem.detail


def test_masks_of_labelme_shapes(tmp_path):
    """Later shapes are on top; a line has no area; ``__ignore__`` is ignored; circles are those of NumPy."""
    shapes = [
        {"label": "pond", "points": [[2, 2], [10, 12]], "shape_type": "rectangle"},
        {"label": "island", "points": [[4, 4], [8, 4], [8, 8], [4, 8]], "shape_type": "polygon"},
        {"label": "sun", "points": [[17, 8], [17, 12]], "shape_type": "circle"},
        {"label": "__ignore__", "points": [[0, 20], [24, 20], [24, 24], [0, 24]], "shape_type": "polygon"},
        {"label": "path", "points": [[0, 0], [9, 9]], "shape_type": "line"},
    ]
    write_image(tmp_path / "a.png")
    write_text(tmp_path / "a.json", json.dumps({"imageWidth": SIDE, "imageHeight": SIDE, "shapes": shapes}))
    source = identify_source(str(tmp_path))
    index = segmentation_data.index_dataset(source)
    assert index.class_table.labels == ("background", "island", "path", "pond", "sun")
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    expected = np.ones((SIDE, SIDE), int)
    expected[2:12, 2:10] = 4
    expected[4:8, 4:8] = 2
    expected[20:] = 0
    is_circle = np.hypot(columns - 17, rows - 8) < 4
    ((image, mask),) = index.splits[""]
    assert image == tmp_path / "a.png"
    labels = mask.read()
    np.testing.assert_array_equal(labels[~is_circle & (labels != 5)], expected[~is_circle & (labels != 5)])
    assert (labels == 5).sum() == pytest.approx(16 * np.pi, abs=5)
    (problem,) = index.orphans
    assert (problem.kind, problem.file.name) == ("no area", "a.json")
    assert problem.detail.startswith("shape 5 has no area")
    write_text(tmp_path / "a.json", json.dumps({"shapes": [shapes[0]]}))  # a rectangle alone is a box
    assert not source.has("masks")


@pytest.mark.parametrize("description", [False, True])
def test_masks_of_yolo_polygons(description, tmp_path):
    """A box of the whole line is drawn, too; the smaller object is on top; the third image has no object."""
    folder = tmp_path / "train" if description else tmp_path
    for index in range(3):
        write_image(folder / "images" / f"{index}.png")
    write_text(folder / "labels" / "0.txt", "1 .25 .25 .75 .25 .75 .75 .25 .75\n0 .5 .5 .25 .25\n")
    write_text(folder / "labels" / "1.txt", "0 0 0 .5 0 0 .5\n9 0 0 .5 0 0 .5\n")
    write_text(folder / "classes.txt", "pond\nfield\n")
    if description:
        write_text(tmp_path / "data.yaml", "train: train/images\nnames: [pond, field]\n")
    source = identify_source(str(tmp_path))
    assert [sentence.partition(";")[0] for sentence in source.describe()] == [
        "YOLO boxes: 3 images, 2 classes",
        "YOLO masks: 3 images, 3 classes",
    ]
    index = segmentation_data.index_dataset(source)
    assert index.class_table.labels == ("background", "pond", "field")
    masks = {image.name: mask.read() for image, mask in index.splits["train" if description else ""]}
    expected = np.ones((SIDE, SIDE), int)
    expected[6:18, 6:18] = 3
    expected[9:15, 9:15] = 2
    np.testing.assert_array_equal(masks["0.png"], expected)
    assert (masks["1.png"] == 2).sum() == pytest.approx(72, abs=8)  # a triangle of 12×12 / 2 pixels
    assert (masks["2.png"] == 1).all()
    assert [problem.kind for problem in index.orphans] == ["no class"]
    for index in range(3):
        write_text(folder / "labels" / f"{index}.txt", "0 .5 .5 .25 .25\n")
    assert not source.has("masks")


BOX_TABLE = """filename,width,height,class,xmin,ymin,xmax,ymax
0.png,24,24,kangaroo,3,4,9,20
0.png,24,24,wallaby,7,5,17,15
1.png,24,24,kangaroo,0,0,12,nothing
2.png,24,24,,,,,
missing.png,24,24,kangaroo,0,0,5,5
"""


def test_boxes_in_a_table(tmp_path, fukami):
    """The first image has two boxes, the second an invalid one, the third none, the fourth does not exist."""
    for index in range(4):
        write_image(tmp_path / "shop" / "photos" / f"{index}.png")
    write_text(tmp_path / "shop" / "boxes.csv", BOX_TABLE)
    source = identify_source(str(tmp_path / "shop"))
    assert source.describe() == [
        "CSV of boxes: 3 images, 2 classes; for faster-rcnn-vgg16, rcnn and other detection recipes"
    ]
    dataset = formats.read_boxes(source.require("boxes"))
    assert dataset.labels == ("kangaroo", "wallaby")
    boxes = {
        entry.image_path.name: [(box.label, box.corners, box.line) for box in entry.boxes]
        for entry in dataset.splits[""]
    }
    assert boxes["0.png"] == [("kangaroo", (3, 4, 9, 20), 2), ("wallaby", (7, 5, 17, 15), 3)]
    assert boxes["1.png"][0][0] == "kangaroo"
    assert boxes["2.png"] == []
    assert [problem.line for problem in dataset.unreadable_images] == [6]
    assert [image.name for image in dataset.unannotated_images] == ["3.png"]
    result = fukami("doctor", "shop")
    assert "the kangaroo box is not four finite numbers" in (tmp_path / "problems.jsonl").read_text()
    assert result.status == 1


@pytest.mark.parametrize("layout", ["files", "folders", "column"])
def test_splits_of_box_tables(layout, tmp_path):
    """Fractions of the image, in a table for each split or in one; images of equal names belong to their split."""
    header, row = "image,x1,y1,x2,y2,label", "1.png,0.25,0.5,0.75,1,kangaroo"
    for split in ("train", "valid"):
        write_image(tmp_path / split / "1.png")
        name = {"files": f"{split}_labels.csv", "folders": f"{split}/_annotations.csv"}.get(layout)
        if name:
            write_text(tmp_path / name, f"{header}\n{row}\n")
    if layout == "column":
        write_text(tmp_path / "all.csv", f"{header},split\n{row},train\n{row},valid\n")
    dataset = formats.read_boxes(identify_source(str(tmp_path)).require("boxes"))
    assert {split: entry.image_path.parent.name for split, (entry,) in dataset.splits.items()} == {
        "train": "train", "val": "valid"
    }  # fmt: skip
    samples = build_samples(dataset.splits["val"], dataset.labels, (), 0)
    np.testing.assert_array_equal(samples[0].boxes, [[6, 12, 18, 24]])


def test_a_table_of_boxes_is_none_of_labels(tmp_path):
    write_image(tmp_path / "1.png")
    write_text(tmp_path / "table.csv", "path,label,x1,y1,x2,y2\n1.png,cat,1,2,9,9\n")
    for spec in (tmp_path, tmp_path / "table.csv"):
        source = identify_source(str(spec))
        assert (source.has("labels"), source.has("boxes")) == (False, True)
    write_text(tmp_path / "table.csv", "path,label,x1,y1,x2,y2\n1.png,cat,1,2,9,9\n,cat,1,2,9,9\n")
    with pytest.raises(Error, match=r"table\.csv, line 3: names no image"):
        formats.read_boxes(source.require("boxes"))
    write_text(tmp_path / "other.csv", BOX_TABLE)
    with pytest.raises(Error, match=r"several annotation files.*other\.csv \(no split\), table\.csv \(no split\)"):
        formats.read_boxes(identify_source(str(tmp_path)).require("boxes"))


def test_json_of_other_contents_is_no_annotation(tmp_path):
    for folder in ("cat", "dog"):
        for index in range(COUNT):
            write_image(tmp_path / folder / f"{index}.png")
            write_text(tmp_path / folder / f"{index}.json", '{"author": "someone", "tags": []}')
    source = identify_source(str(tmp_path))
    assert [kind for kind in KINDS if source.has(kind)] == ["labels", "images"]


@pytest.mark.parametrize("inside", [False, True])
def test_folders_of_xml_files_may_have_splits(inside, tmp_path):
    """Files of the same name in two splits belong to the images of their own split."""
    for split, left in (("train", 3), ("valid", 5)):
        image, annotations = ("{1}/{0}/1", "{2}/{0}/1") if inside else ("{0}/{1}/1", "{0}/{2}/1")
        write_image(tmp_path / f"{image.format(split, 'photos', 'x')}.png")
        write_text(tmp_path / f"{annotations.format(split, 'photos', 'x')}.xml", XML.format(left))
    dataset = formats.read_boxes(identify_source(str(tmp_path)).require("boxes"))
    assert {split: [entry.boxes[0].corners[0] for entry in entries] for split, entries in dataset.splits.items()} == {
        "train": [2],
        "val": [4],
    }
    for entries in dataset.splits.values():
        (entry,) = entries
        assert {*entry.image_path.parts} & {"train", "valid"} == {*entry.annotation_path.parts} & {"train", "valid"}
    assert dataset.unannotated_images == []


def test_images_in_several_folders_with_boxes_are_no_classes(tmp_path):
    for index, folder in enumerate(("monday", "tuesday")):
        write_image(tmp_path / folder / f"{index}.png")
        write_text(tmp_path / folder / f"{index}.xml", XML.format(3))
    assert not identify_source(str(tmp_path)).has("labels")
    assert identify_source(str(tmp_path)).has("boxes")


def test_a_few_boxes_do_not_change_classes(tmp_path):
    for folder in ("cat", "dog"):
        for index in range(COUNT):
            write_image(tmp_path / folder / f"{index}.png")
    write_text(tmp_path / "cat" / "1.xml", XML.format(3))
    assert identify_source(str(tmp_path)).has("labels")


@pytest.mark.parametrize("values", [2, 40, 256])
def test_folders_of_drawings_are_classes(values, tmp_path):
    """Images of few values are not masks of each other, although their names are the same."""
    random = np.random.default_rng(0)
    for folder in ("0", "1"):
        for index in range(COUNT):
            path = tmp_path / folder / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(random.integers(0, values, (8, 8), dtype=np.uint8)).save(path)
    source = identify_source(str(tmp_path))
    assert source.has("labels")
    assert not source.has("masks")


def test_masks_of_another_size_are_classes(tmp_path):
    for index in range(COUNT):
        write_image(tmp_path / "photos" / f"{index}.png")
        write_mask(tmp_path / "icons" / f"{index}.png", index)
        Image.open(tmp_path / "icons" / f"{index}.png").resize((9, 9)).save(tmp_path / "icons" / f"{index}.png")
    assert not identify_source(str(tmp_path)).has("masks")


def test_masks_of_sixteen_bits_and_flat_images(tmp_path):
    """Images of few colors have masks if these have one channel."""
    for index in range(COUNT):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), (index, 9, 80)).save(tmp_path / "photos" / f"{index}.png")
        write_mask(tmp_path / "marks" / f"{index}.png", index, np.uint16)
    found = identify_source(str(tmp_path)).require("masks")
    assert mask_folders.index_folder(found.root).class_table.labels == ("0", "1", "2")


def test_captions_of_another_file_name(tmp_path):
    for index in range(COUNT):
        write_image(tmp_path / "photos" / f"{index}.png")
    write_coco(tmp_path / "notes" / "all.json", caption="a kangaroo")
    source = identify_source(str(tmp_path))
    assert source.describe() == ["captions: 6 images, 6 captions; for show-and-tell"]


# names of files and folders


def test_hidden_folders_and_macos_metadata_are_skipped(tmp_path):
    for folder in ("cat", "dog", "cat/.hidden", "cat/__MACOSX/cat"):
        write_image(tmp_path / folder / "1.png")
    splits = image_folder.scan_folder(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in splits["train"].files] == ["cat/1.png", "dog/1.png"]
    for name in ("game.sgf", "more/game.SGF", ".git/game.sgf", "__MACOSX/._game.sgf"):
        write_text(tmp_path / "games" / name, "(;)")
    found = sorted(file.relative_to(tmp_path).as_posix() for file in formats.list_sgf_files(tmp_path / "games"))
    assert found == ["games/game.sgf", "games/more/game.SGF"]
    for folder in ("images", "masks", "images/__MACOSX", "masks/.hidden"):
        write_mask(tmp_path / "pairs" / folder / "1.png", 0)
    assert len(list(mask_folders.index_folder(tmp_path / "pairs").iterate_pairs())) == 1


def test_a_class_may_be_called_train(tmp_path):
    for folder in ("train", "bus", "tram"):
        write_image(tmp_path / "vehicles" / folder / "1.png")
        write_image(tmp_path / "splits" / "train" / folder / "1.png")
        write_image(tmp_path / "splits" / "other" / "1.png")
    splits = image_folder.scan_folder(tmp_path / "vehicles")
    assert splits.keys() == {"train"}
    assert splits["train"].class_names == ("bus", "train", "tram")
    assert identify_source(str(tmp_path / "vehicles")).describe() == [
        "class folders: 3 images, 3 classes; for resnet18, vgg16 and other classification recipes"
    ]
    assert image_folder.scan_folder(tmp_path / "splits")["train"].class_names == ("bus", "train", "tram")
    for folder in ("train", "test", "other"):
        write_image(tmp_path / "no classes" / folder / "1.png")
    with pytest.raises(Error, match="no images in the folders of"):
        image_folder.scan_folder(tmp_path / "no classes")


def test_a_top_level_folder_may_contain_only_a_training_split(tmp_path):
    for label in ("rose", "tulip"):
        write_image(tmp_path / "flowers" / "train" / label / "1.png")
    assert image_folder.scan_folder(tmp_path)["train"].class_names == ("rose", "tulip")


@pytest.mark.parametrize(("kind", "suffix"), [("VOC", ".XML"), ("YOLO", ".TXT")])
def test_annotations_with_suffixes_in_upper_case(kind, suffix, tmp_path):
    for index in range(COUNT):
        write_image(tmp_path / "images" / f"{index}.PNG")
        text = XML.format(3) if kind == "VOC" else "0 .5 .5 .4 .4\n"
        write_text(tmp_path / "labels" / f"{index}{suffix}", text)
    dataset = formats.read_boxes(identify_source(str(tmp_path)).require("boxes"))
    assert [len(image.boxes) for image in dataset.splits[""]] == [1] * COUNT


def test_backslashes_separate_folders(tmp_path):
    r"""As in files written on Windows; a file whose name contains a ``\\`` is found, too."""
    for name in ("photos/1.png", "photos/a\\b.png"):
        write_image(tmp_path / name)
    names = ("photos\\1.png", "photos/a\\b.png")
    expected = [tmp_path / "photos" / "1.png", tmp_path / "photos" / "a\\b.png"]
    write_text(tmp_path / "labels.csv", "path,label\n" + "".join(f"{name},cat\n" for name in names))
    assert [*label_tables.read_csv(tmp_path / "labels.csv")["train"].files] == expected
    write_text(tmp_path / "captions.csv", "image,caption\n" + "".join(f"{name},a cat\n" for name in names))
    assert [*captions.parse_caption_files(tmp_path / "captions.csv").splits[""]] == expected
    write_text(tmp_path / "data.yaml", "train: train.txt\nnames: [cat]\n")
    write_text(tmp_path / "train.txt", "".join(f"{name}\n" for name in names))
    assert [image.image_path for image in yolo.read_yolo(tmp_path).splits["train"]] == expected
    images = [{"id": id, "file_name": name, "width": SIDE, "height": SIDE} for id, name in enumerate(names)]
    write_text(tmp_path / "all.json", json.dumps({"images": images, "annotations": [], "categories": []}))
    assert [image.image_path for image in coco.read_coco(tmp_path / "all.json").splits[""]] == expected


def test_several_coco_files_of_a_split_are_rejected(tmp_path):
    for index in range(COUNT):
        write_image(tmp_path / "images" / f"{index}.png")
    write_coco(tmp_path / "train.json")
    write_coco(tmp_path / "val.json")
    write_text(tmp_path / "image_info_test.json", json.dumps({"images": []}))
    assert coco.read_coco(tmp_path).splits.keys() == {"train", "val"}
    write_coco(tmp_path / "keypoints_val.json")
    with pytest.raises(Error, match=r"keypoints_val\.json \(val\), train\.json \(train\), val\.json \(val\)"):
        coco.read_coco(tmp_path)
    for split in ("train", "val"):
        write_coco(tmp_path / "folders" / split / "labels.json")
    assert coco.read_coco(tmp_path / "folders").splits.keys() == {"train", "val"}
    (tmp_path / "keypoints_val.json").rename(tmp_path / "all.json")
    with pytest.raises(Error, match=r"all\.json \(no split\)"):
        coco.read_coco(tmp_path)


def test_caption_files_of_splits_with_equal_image_names(tmp_path):
    """Each split has an image ``1.png`` and its own table; metadata called dataset-metadata.json has no captions."""
    for split in ("train", "val"):
        write_image(tmp_path / split / "1.png")
        write_text(tmp_path / split / "captions.csv", f"image,caption\n1.png,a {split} image\n")
    write_text(tmp_path / "dataset-metadata.json", '{"title": "photos"}')
    splits = captions.parse_caption_files(tmp_path).splits
    assert splits == {split: {tmp_path / split / "1.png": [f"a {split} image"]} for split in ("train", "val")}
    rows = [f"1.png,a {split} image,{split}\n" for split in ("val", "train")]
    write_text(tmp_path / "all.csv", "image,caption,split\n" + "".join(rows))
    assert captions.parse_caption_files(tmp_path / "all.csv").splits == splits


@pytest.mark.parametrize("prefix", ["", "./", "images/", "C:\\data\\images\\"])
def test_images_of_equal_names_are_distinguished_by_their_folders(prefix, tmp_path):
    """Paths are relative to a folder below that of the table, or absolute on another computer."""
    folders = [f"video{index}" for index in range(120)]
    for folder in folders:
        write_image(tmp_path / "images" / folder / "frames" / "1.png")
    names = [f"{prefix}{folder}/frames/1.png" for folder in folders]
    write_text(tmp_path / "a" / "captions.csv", "image,caption\n" + "".join(f"{name},a {name}\n" for name in names))
    write_text(
        tmp_path / "b" / "boxes.csv", "image,x1,y1,x2,y2,label\n" + "".join(f"{name},1,2,9,9,cat\n" for name in names)
    )
    found = captions.parse_caption_files(tmp_path / "a", tmp_path).splits[""]
    assert [path.parent.parent.name for path in found] == folders
    dataset = formats.read_boxes(formats.SourceFormat("box CSV", tmp_path / "b"), tmp_path)
    assert [entry.image_path.parent.parent.name for entry in dataset.splits[""]] == folders


@pytest.mark.parametrize(("names", "splits"), [(("train", "test"), {"train": 4, "test": 2}), (("a", "b"), None)])
def test_tables_of_labels_are_splits(names, splits, tmp_path, fukami):
    for index in range(6):
        write_image(tmp_path / "shop" / "images" / f"{index}.png")
    for name, rows in zip(names, (range(4), range(4, 6)), strict=True):
        lines = "".join(f"images/{index}.png,{'ab'[index % 2]}\n" for index in rows)
        write_text(tmp_path / "shop" / f"{name}.csv", f"path,label\n{lines}")
    source = identify_source(str(tmp_path / "shop"))
    assert source.get_title("labels") == "CSV of labels"
    if splits is None:
        with pytest.raises(Error, match=r"several annotation files.*a\.csv \(no split\), b\.csv \(no split\)"):
            label_tables.read_csv(tmp_path / "shop")
        assert "several annotation files" in fukami("doctor", "shop").out
        return
    assert {split: len(part.files) for split, part in label_tables.read_csv(tmp_path / "shop").items()} == splits
    result = fukami("doctor", "shop")
    assert "no problem among 6 readable images of 2 classes" in result.err, result.err


def test_polygons_of_a_description_elsewhere(tmp_path):
    """As in Ultralytics' layout, in which the images are in another folder."""
    for index in range(COUNT):
        write_image(tmp_path / "datasets" / "images" / "train" / f"{index}.png")
        write_text(tmp_path / "datasets" / "labels" / "train" / f"{index}.txt", "0 .1 .1 .5 .3 .4 .9\n")
    write_text(tmp_path / "project" / "seg.yaml", "path: ../datasets\ntrain: images/train\nnames: [cat]\n")
    for spec in (tmp_path / "project", tmp_path / "project" / "seg.yaml"):
        train, _, _, labels = segmentation_data.load_dataset(str(spec), 0.0)
        assert (len(train), labels) == (COUNT, ("background", "cat"))


def test_tables_with_quotation_marks(tmp_path):
    write_image(tmp_path / "1.png")
    write_text(tmp_path / "labels.csv", '"path", "label"\n"1.png","cat"\n')
    assert identify_source(str(tmp_path)).get_title("labels") == "CSV of labels"
    write_text(tmp_path / "labels.csv", 'path,label\n1.png,"cat\n' + "x" * 200_000)  # longer than a field may be
    assert identify_source(str(tmp_path)).describe() == [
        "CSV of labels; for resnet18, vgg16 and other classification recipes"
    ]


# two places


def write_places(root, kind):
    """Write images and their annotations to two places without a common folder of the dataset."""
    for index in range(COUNT):
        write_image(root / "a" / "photos" / f"{index}.png")
        name = root / "b" / "more" / str(index)
        if kind == "VOC":
            write_text(name.with_suffix(".xml"), XML.format(3))
        elif kind == "YOLO":
            write_text(name.with_suffix(".txt"), "0 .5 .5 .4 .4\n")
        elif kind == "labelme":
            write_text(name.with_suffix(".json"), json.dumps({"shapes": SHAPES[:1]}))
        elif kind == "masks":
            write_mask(name.with_suffix(".png"), index)
        elif kind == "texts":
            write_text(name.with_suffix(".txt"), "a kangaroo\n")
    if kind == "COCO":
        write_coco(root / "b" / "all.json")
    return str(root / "a" / "photos"), str(root / "b" / "all.json" if kind == "COCO" else root / "b" / "more")


@pytest.mark.parametrize("kind", ["VOC", "YOLO", "COCO", "labelme"])
def test_boxes_in_two_places(kind, tmp_path, fukami):
    images, annotations = write_places(tmp_path, kind)
    source = identify_source(annotations, images=images)
    assert source.describe()[0].startswith(f"{kind} boxes: 6 images, 1 class; for faster-rcnn-vgg16")
    dataset = formats.read_boxes(source.require("boxes"), source.images)
    assert sorted(str(entry.image_path) for entry in dataset.splits[""]) == [f"{images}/{i}.png" for i in range(COUNT)]
    assert all(len(entry.boxes) == 1 for entry in dataset.splits[""])
    assert not source.has("labels")
    result = fukami("doctor", "--images", images, "--annotations", annotations)
    assert result.status == 0, result
    assert "no problem among 6 readable images with 6 boxes of 1 class" in result.err


def test_masks_in_two_places(tmp_path):
    images, annotations = write_places(tmp_path, "masks")
    source = identify_source(annotations, images=images)
    assert source.describe() == [
        "masks in files: 6 images, 3 classes; for fcn8s-vgg16, segnet-basic and other segmentation recipes"
    ]
    index = mask_folders.index_folder(source.require("masks").root, source.images)
    assert [(pair.image_path.parent.name, pair.mask_path.parent.name) for pair in index.splits[""]] == [
        ("photos", "more")
    ] * COUNT


def test_captions_in_two_places(tmp_path, fukami):
    images, annotations = write_places(tmp_path, "texts")
    result = fukami("doctor", "--images", images, "--annotations", annotations)
    assert result.status == 0
    assert result.err.startswith("captions: 6 images, 6 captions; for show-and-tell\n")
    write_text(tmp_path / "b" / "table.csv", "image,caption\n1.png,a kangaroo\n")
    parsed = captions.parse_caption_files(tmp_path / "b" / "table.csv", tmp_path / "a")
    assert parsed.splits == {"": {tmp_path / "a" / "photos" / "1.png": ["a kangaroo"]}}


def test_labels_in_two_places(tmp_path, fukami):
    images, _ = write_places(tmp_path, "none")
    with (tmp_path / "table.csv").open("w") as file:
        csv.writer(file).writerows([("path", "label"), *((f"{index}.png", "ab"[index % 2]) for index in range(COUNT))])
    result = fukami("doctor", "--images", images, "--annotations", "table.csv")
    assert result.status == 0, result
    assert result.err.startswith("CSV of labels: 6 images, 2 classes; for resnet18")


def test_missing_places(tmp_path):
    images, annotations = write_places(tmp_path, "VOC")
    with pytest.raises(UsageError, match="there is no file or folder nowhere"):
        identify_source(annotations, images="nowhere")
    with pytest.raises(UsageError, match="there is no file or folder nowhere"):
        identify_source("nowhere", images=images)
    with pytest.raises(Error, match="contains no images with masks"):
        identify_source(images, images=str(tmp_path / "b")).require("masks")
    assert not voc.has_xml_files(tmp_path / "b", tmp_path / "b")


@pytest.mark.report
def test_a_run_of_images_and_annotations_in_two_places(tmp_path, fukami, caplog):
    """The run is evaluated on the same two places, or on another dataset; one place alone is refused."""
    photos = tmp_path / "photos"
    lines = ["path,label"]
    for index in range(20):
        photos.mkdir(exist_ok=True)
        Image.new("L", (12, 12), 12 * index).save(photos / f"{index}.png")
        lines.append(f"{index}.png,{'dark' if index < 10 else 'light'}")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "labels.csv").write_text("\n".join(lines))
    places = ("--images", photos, "--annotations", tmp_path / "lists" / "labels.csv")
    arguments = ("--epochs", "1", "--batch-size", "8", "--channels", "1", "--size", "16", "--device", "cpu")
    trained = fukami("train", "resnet20", *places, *arguments, "--out", "run")
    assert trained.status == 0, trained.err
    (result,) = fukami("eval", "run").json
    assert (result["count"], result["data"]) == (4, str(tmp_path / "lists" / "labels.csv"))
    assert f"reading the dataset that the run names: {photos}" in caplog.text
    for label in ("dark", "light"):
        (tmp_path / "folders" / label).mkdir(parents=True)
    for index in range(20):
        (photos / f"{index}.png").rename(tmp_path / "folders" / ("dark" if index < 10 else "light") / f"{index}.png")
    (result,) = fukami("eval", "run", "--data", "folders").json
    assert result["count"] == 20
    refused = fukami("train", "resnet20", "--images", photos, "--out", "other")
    assert refused.status == 2
    assert "--images and --annotations belong together" in refused.err


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("a-train", "a-test"),
    ],
)
def test_splits_are_words_of_folder_names(tmp_path, train, test):
    """Layouts of archives on Kaggle; a further folder without classes is no split."""
    for split, name in ((train, "1"), (test, "2")):
        for label in ("cat", "dog"):
            write_image(tmp_path / split / label / f"{name}.png")
    write_image(tmp_path / "seg_pred" / "3.png")
    splits = image_folder.scan_folder(tmp_path)
    assert {split: folder.class_names for split, folder in splits.items()} == {
        "train": ("cat", "dog"),
        "test": ("cat", "dog"),
    }


def test_classes_may_contain_words_of_splits(tmp_path):
    for label in ("train_station", "test_tube"):
        write_image(tmp_path / label / "1.png")
    assert image_folder.scan_folder(tmp_path)["train"].class_names == ("test_tube", "train_station")


def test_a_test_folder_without_classes_is_omitted(tmp_path, caplog):
    for label in ("cat", "dog"):
        write_image(tmp_path / "train" / label / "1.png")
    write_image(tmp_path / "test" / "2.png")
    assert image_folder.scan_folder(tmp_path).keys() == {"train"}
    assert "test has no folders of classes, and is not used" in caplog.text


def test_composed_and_decomposed_names_are_equal(tmp_path):
    """macOS decomposes the characters of file names."""
    write_image(tmp_path / unicodedata.normalize("NFD", "ガ.png"))
    (tmp_path / "labels.csv").write_text(unicodedata.normalize("NFC", "path,label\nガ.png,a\n"), encoding="utf-8")
    (file,) = label_tables.read_csv(tmp_path / "labels.csv")["train"].files
    assert file.is_file()
    composed, decomposed = (unicodedata.normalize(form, "ガ") for form in ("NFC", "NFD"))
    for kind, suffix, text in (("VOC", "xml", XML.format(2)), ("YOLO", "txt", "0 .5 .5 .4 .4\n")):
        write_image(tmp_path / kind / "images" / f"{decomposed}.png")
        write_text(tmp_path / kind / "labels" / f"{composed}.{suffix}", text)
        dataset = formats.read_boxes(identify_source(str(tmp_path / kind)).require("boxes"))
        assert [len(entry.boxes) for entry in dataset.splits[""]] == [1]
    write_image(tmp_path / "masks" / "images" / f"{decomposed}.png")
    write_mask(tmp_path / "masks" / "masks" / f"{composed}.png", 0)
    assert len(segmentation_data.load_dataset(str(tmp_path / "masks"), 0.0).train) == 1
    index = annotation_files.ImageIndex(tmp_path, [*tmp_path.iterdir()])
    assert index.find(unicodedata.normalize("NFC", "ガ.png"), tmp_path / "a.json", "") == file


# ---- datasets as they are distributed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [("asl_train/asl_train", "asl_test/asl_test"), ("train", "test1"), ("train_images", "test_images")],
)
def test_folders_of_a_competition_are_no_classes(tmp_path, train, test):
    """The test images, or all of them, have no folders of classes."""
    has_classes = "/" in train
    for index in range(4):
        write_image(tmp_path / train / ("AB"[index % 2] if has_classes else "") / f"{index}.png", index)
        write_image(tmp_path / test / f"{index}.png", 10 + index)
    if has_classes:
        assert image_folder.scan_folder(tmp_path)["train"].class_names == ("A", "A", "B", "B")
    else:
        assert not identify_source(str(tmp_path)).has("labels")


@pytest.mark.parametrize("other_images", ["test/{}.png", "test/part_1/{}.png"])
def test_a_table_of_labels_comes_before_folders_of_images_of_the_training_split(other_images, tmp_path):
    """The images of the training split are in two folders, which are no classes; the others have no labels."""
    names = [f"train/{folder}/{index}.png" for folder in ("part_1", "part_2") for index in range(2)]
    for index, name in enumerate((*names, *map(other_images.format, range(2)))):
        write_image(tmp_path / name, index)
    rows = "".join(f"{name},{label}\n" for name, label in zip(names, "abab", strict=True))
    write_text(tmp_path / "train.csv", f"path,label\n{rows}")
    assert formats.find_format("labels", tmp_path) == ("CSV", tmp_path / "train.csv")


def test_a_table_of_a_few_images_does_not_replace_folders_of_classes(tmp_path):
    for split in ("train", "test"):
        for index in range(4):
            write_image(tmp_path / split / ("cat", "dog")[index % 2] / f"{index}.png", index)
    write_text(tmp_path / "corrections.csv", "path,label\ntrain/cat/0.png,ambiguous\n")
    assert formats.find_format("labels", tmp_path) == ("image folder", tmp_path)


def test_a_table_of_labels_comes_before_folders_of_images(tmp_path):
    """The images are in two folders, which are no classes; the dataset is in a folder of an archive."""
    for folder in ("part_1", "part_2"):
        for index in range(2):
            write_image(tmp_path / "data" / folder / f"{index}.png", index)
    rows = "".join(f"{folder}/{index}.png,{'ab'[index]}\n" for folder in ("part_1", "part_2") for index in range(2))
    write_text(tmp_path / "data" / "labels.csv", f"path,label\n{rows}")
    found = formats.find_format("labels", tmp_path)
    assert found == ("CSV", tmp_path / "data" / "labels.csv")
    assert formats.count_contents("labels", found) == "4 images, 2 classes"


def test_a_split_without_any_class_of_the_training_split_is_omitted(tmp_path, caplog):
    """Tiny ImageNet has its validation images in one folder."""
    for label in ("n01", "n02"):
        write_image(tmp_path / "train" / label / "images" / "1.png")
    write_image(tmp_path / "val" / "images" / "2.png")
    assert image_folder.scan_folder(tmp_path).keys() == {"train"}
    assert "has none of the classes of the training split" in caplog.text


@pytest.mark.parametrize(
    ("image_suffix", "mask_suffix", "mask_folder"),
    [("jpg", "png", "trimaps"), ("png", "bmp", "trimaps"), ("jpg", "gif", "masks"), ("png", "jpg", "masks")],
)
def test_boxes_of_pets_belong_to_the_named_images(image_suffix, mask_suffix, mask_folder, tmp_path):
    """Masks of the same stem are nearer to the XML files; the masks match by name."""
    for index in range(3):
        write_image(tmp_path / "images" / f"{index}.{image_suffix}")
        write_mask(tmp_path / "annotations" / mask_folder / f"{index}.{mask_suffix}", index)
        text = XML.format(index + 2).replace("<annotation>", f"<annotation><filename>{index}.{image_suffix}</filename>")
        write_text(tmp_path / "annotations" / "xmls" / f"{index}.xml", text)
    dataset = formats.read_boxes(identify_source(str(tmp_path)).require("boxes"))
    assert [entry.image_path.parent.name for entry in dataset.splits[""]] == ["images"] * 3
    if mask_suffix != "jpg":  # JPEG changes the values of masks
        masks = segmentation_data.index_dataset(identify_source(str(tmp_path)))
        assert [(image.name, mask.path.name) for image, mask in masks.splits[""]] == [
            (f"{index}.{image_suffix}", f"{index}.{mask_suffix}") for index in range(3)
        ]


def test_a_mask_does_not_replace_an_image_that_was_converted(tmp_path):
    """The XML file names the PNG file that a JPEG file replaced."""
    write_image(tmp_path / "v1" / "img" / "1.jpg")
    write_mask(tmp_path / "v1" / "mask" / "1.png", 0)
    text = XML.format(3).replace("<annotation>", "<annotation><filename>1.png</filename>")
    write_text(tmp_path / "v1" / "xml" / "1.xml", text)
    (entry,) = voc.read_voc(tmp_path).splits[""]
    assert entry.image_path == tmp_path / "v1" / "img" / "1.jpg"


def test_a_named_image_that_has_an_annotation_of_its_own_is_not_used_again(tmp_path):
    """Counters restart in each folder, and a camera writes its suffix in capitals."""
    for folder, suffix in (("cam1", "JPG"), ("cam2", "jpg")):
        write_image(tmp_path / folder / "img" / f"1.{suffix}")
        text = XML.format(3).replace("<annotation>", "<annotation><filename>1.jpg</filename>")
        write_text(tmp_path / folder / "xml" / "1.xml", text)
    entries = voc.read_voc(tmp_path).splits[""]
    assert [entry.image_path.parent.parent.name for entry in entries] == ["cam1", "cam2"]


def test_a_named_image_of_another_split_is_missing(tmp_path):
    """The image of the training split was deleted."""
    for name in ("1.png", "2.png"):
        write_image(tmp_path / "test" / name)
    write_image(tmp_path / "train" / "2.png")
    for name, file in (("1.png", "a"), ("2.png", "b")):
        text = XML.format(3).replace("<annotation>", f"<annotation><filename>{name}</filename>")
        write_text(tmp_path / "train" / f"{file}.xml", text)
    dataset = voc.read_voc(tmp_path)
    assert [entry.image_path for entry in dataset.splits["train"]] == [tmp_path / "train" / "2.png"]
    assert [problem.file.name for problem in dataset.unreadable_images] == ["a.xml"]


def test_many_images_of_the_name_in_xml_files_are_read_quickly(tmp_path, monkeypatch):
    """An XML file is compared with at most 100 images: those in a folder of its name if there are more."""
    count = 0

    def count_parts(*parts):
        nonlocal count
        count += 1
        return 0

    monkeypatch.setattr(annotation_files, "count_common_parts", count_parts)
    write_image(tmp_path / "image.png")
    content = (tmp_path / "image.png").read_bytes()
    for index in range(300):
        (tmp_path / f"folder {index}").mkdir()
        (tmp_path / f"folder {index}" / "1.png").write_bytes(content)
        text = XML.format(3).replace("<annotation>", "<annotation><filename>1.png</filename>")
        folder = f"folder {index}" if index % 2 else "others"
        write_text(tmp_path / "xml" / folder / f"{index + 2}.xml", text)
    dataset = voc.read_voc(tmp_path)
    folders = [(entry.annotation_path.parent.name, entry.image_path.parent.name) for entry in dataset.splits[""]]
    assert sum(folder == image_folder for folder, image_folder in folders) == 150
    assert 0 < count <= 150 * 100


def test_coco_of_2017_in_a_top_level_folder(tmp_path):
    """An archive contains one folder with instances, keypoints and captions of each split."""
    root = tmp_path / "coco2017"
    for split in ("train", "val"):
        for kind in ("instances", "person_keypoints"):
            write_coco(root / "annotations" / f"{kind}_{split}2017.json")
        for index in range(COUNT):
            write_image(root / f"{split}2017" / f"{index}.png", index)
    found = formats.find_format("boxes", tmp_path)
    assert {split: len(entries) for split, entries in formats.read_boxes(found).splits.items()} == {
        "train": COUNT,
        "val": COUNT,
    }


def test_images_of_coco_are_not_those_of_a_split_without_annotations(tmp_path):
    """An image was deleted, and the test images have the same names."""
    for split in ("train", "val"):
        write_coco(tmp_path / "annotations" / f"instances_{split}.json")
        for index in range(1, COUNT):
            write_image(tmp_path / split / f"{index}.png", index)
    write_image(tmp_path / "test" / "0.png")
    dataset = formats.read_boxes(identify_source(str(tmp_path)).require("boxes"))
    images = [entry.image_path for entries in dataset.splits.values() for entry in entries]
    assert tmp_path / "test" / "0.png" not in images
    assert len(dataset.unreadable_images) == 2


def test_a_table_of_test_images_is_not_read_instead_of_class_folders(tmp_path):
    """The sample submission of a competition, whose test images have no class folders."""
    for index in range(4):
        write_image(tmp_path / "train" / "ab"[index % 2] / f"{index}.png", index)
        write_image(tmp_path / "test" / f"{index}.png", 10 + index)
    write_text(tmp_path / "sample_submission.csv", "path,label\ntest/1.png,0\n")
    assert formats.find_format("labels", tmp_path).name == "image folder"


def test_boxes_beside_poses_without_a_description_of_keypoints(tmp_path):
    """The keypoints of a line are not its polygon; their number is odd with the box."""
    write_image(tmp_path / "images" / "train" / "1.png")
    write_text(tmp_path / "labels" / "train" / "1.txt", "0 .5 .5 .4 .4 .5 .5 2 .6 .6 1 .4 .4 2\n0 .5 .5 .2 .2\n")
    write_text(tmp_path / "data.yaml", "train: images/train\nval: images/train\nnames: [person]\n")
    assert not yolo.has_polygons(tmp_path)
    write_text(tmp_path / "labels" / "train" / "2.txt", "0 .1 .1 .2 .1 .2 .2\n")
    write_image(tmp_path / "images" / "train" / "2.png")
    index = segmentation_data.index_dataset(identify_source(str(tmp_path)))
    masks = {image.stem: mask.read() for image, mask in index.splits["train"]}
    rows, columns = np.nonzero(masks["1"] == 2)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == pytest.approx((0.3 * 24, 0.7 * 24) * 2, abs=1)


def test_labels_without_an_image_do_not_stop_segmentation(tmp_path):
    for index in range(4):
        write_image(tmp_path / "images" / "train" / f"{index}.png", index)
    for index in range(8):
        write_text(tmp_path / "labels" / "train" / f"{index}.txt", "0 .1 .1 .8 .1 .8 .8\n")
    write_text(tmp_path / "data.yaml", "train: images/train\nval: images/train\nnames: [thing]\n")
    samples = segmentation_data.load_dataset(str(tmp_path), 0.0, max_unreadable=0)
    assert len(samples.train) + len(samples.val) >= 4


def test_images_of_trainval_are_counted_once(tmp_path):
    for index in range(4):
        write_image(tmp_path / "JPEGImages" / f"{index}.jpg", index)
        write_mask(tmp_path / "SegmentationClass" / f"{index}.png", index)
    for split, indices in (("train", (0, 1)), ("val", (2, 3)), ("trainval", range(4))):
        text = "".join(f"{index}\n" for index in indices)
        write_text(tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt", text)
    assert formats.count_contents("masks", formats.find_format("masks", tmp_path)).startswith("4 images")


def test_folders_of_a_competition_beside_other_folders(tmp_path, caplog):
    """The first folders by name contain tables, and the validation images have no classes."""
    for index in range(4):
        write_image(tmp_path / "train_images" / "AB"[index % 2] / f"{index}.png", index)
        write_image(tmp_path / "test_images" / "AB"[index % 2] / f"{index}.png", 10 + index)
        write_image(tmp_path / "val_images" / f"{index}.png", 20 + index)
    for split in ("train", "test"):
        write_text(tmp_path / f"{split}_annotations" / "boxes.txt", "")
    assert {split: part.class_names for split, part in image_folder.scan_folder(tmp_path).items()} == {
        "train": ("A", "A", "B", "B"),
        "test": ("A", "A", "B", "B"),
    }
    assert "val_images has no folders of classes" in caplog.text


def test_a_table_of_the_classes_of_folders_is_not_read(tmp_path):
    """It has no splits, and the folders have."""
    rows = []
    for split in ("train", "test"):
        for index in range(2):
            write_image(tmp_path / split / "ab"[index] / f"{index}.png", index)
            rows.append(f"{split}/{'ab'[index]}/{index}.png,{'ab'[index]}\n")
    write_text(tmp_path / "metadata.csv", f"path,label\n{''.join(rows)}")
    assert formats.find_format("labels", tmp_path).name == "image folder"


@pytest.mark.parametrize("name", ["1.jpg", "x.jpg"])
def test_the_image_beside_an_xml_file_is_not_replaced(tmp_path, name):
    """The images were converted after the annotation."""
    write_image(tmp_path / "train" / "1.png")
    text = XML.format(3).replace("<annotation>", f"<annotation><filename>{name}</filename>")
    write_text(tmp_path / "train" / "1.xml", text)
    for folder in ("test", "originals"):
        write_image(tmp_path / folder / name)
    (entry,) = formats.read_boxes(identify_source(str(tmp_path)).require("boxes")).splits["train"]
    assert entry.image_path == tmp_path / "train" / "1.png"


def test_masks_of_classes_in_folders_are_not_one_mask(tmp_path):
    for index in range(2):
        write_image(tmp_path / "images" / f"{index}.png", index)
        for label in ("road", "car"):
            write_mask(tmp_path / "masks" / label / f"{index}.png", index)
    with pytest.raises(Error, match="no mask of the same name"):
        segmentation_data.index_dataset(identify_source(str(tmp_path)))


def test_binary_masks_in_jpeg(tmp_path):
    """Kvasir-SEG; the compression changes values of 0 and 255 by a few levels."""
    random = np.random.default_rng(0)
    for index in range(2):
        write_image(tmp_path / "images" / f"{index}.jpg", index)
        pixels = np.zeros((SIDE, SIDE), np.uint8)
        pixels[4:12, 4:12] = 255
        path = tmp_path / "masks" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        noise = random.integers(0, 8, pixels.shape).astype(np.uint8)
        Image.fromarray(np.where(pixels > 0, 255 - noise, noise)).save(path, quality=100)
    index = segmentation_data.index_dataset(identify_source(str(tmp_path)))
    assert index.class_table.labels == ("background", "foreground")
    labels = index.splits[""][0][1].read()
    assert (labels[4:12, 4:12] == 2).all()
    assert (labels == 2).sum() == 64
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.full((SIDE, SIDE), 1, np.uint8)).save(path, quality=100)
    assert segmentation_data.index_dataset(identify_source(str(tmp_path))).class_table.labels == ("1",)


def test_keypoints_without_a_description(tmp_path):
    """Each line of poses has a box and ``x y visibility`` of each keypoint, and a polygon may touch the corner."""
    poses = ["0 .5 .5 .4 .4 .4 .4 2 .6 .6 1", "0 .5 .5 .2 .2 .5 .45 1 0 0 0"]
    polygons = ["0 .4 .1 .4 .3 .2 .5 0 .5 0 0", "0 .1 .1 .2 .1 .2 .2"]
    for folder, lines in (("poses", poses), ("polygons", polygons)):
        for index, line in enumerate(lines):
            write_image(tmp_path / folder / "images" / f"{index}.png")
            write_text(tmp_path / folder / "labels" / f"{index}.txt", f"{line}\n")
    entries = [yolo.read_yolo(tmp_path / folder).splits[""][0] for folder in ("poses", "polygons")]
    assert entries[0].boxes[0].corners == pytest.approx((0.3, 0.3, 0.7, 0.7))
    assert entries[1].boxes[0].corners == pytest.approx((0, 0, 0.4, 0.5))
    assert [yolo.has_polygons(tmp_path / folder) for folder in ("poses", "polygons")] == [False, True]
    (tmp_path / "poses" / "labels" / "0.txt").write_text("0 .5 .5 .4 .4 .4 .4 2 .6 .6 1 .5 .5 2\n")  # odd
    assert yolo.read_yolo(tmp_path / "poses").splits[""][0].boxes[0].corners == pytest.approx((0.3, 0.3, 0.7, 0.7))


def test_yolo_splits_with_years_and_classes_beside_the_labels(tmp_path):
    for split in ("train2007", "train2012", "val2012"):
        write_image(tmp_path / "images" / split / "1.png")
        write_text(tmp_path / "labels" / split / "1.txt", "1 .5 .5 .4 .4\n")
    write_text(tmp_path / "labels" / "train2007" / "classes.txt", "cat\ndog\n")
    dataset = yolo.read_yolo(tmp_path)
    assert {split: len(entries) for split, entries in dataset.splits.items()} == {"train": 2, "val": 1}
    assert dataset.labels == ("cat", "dog")
    assert dataset.splits["val"][0].boxes[0].label == "dog"


def test_lists_of_voc_name_images_in_subfolders(tmp_path):
    for camera in ("a", "b"):
        write_image(tmp_path / "JPEGImages" / camera / "1.png")
        write_text(tmp_path / "Annotations" / camera / "1.xml", XML.format(3 if camera == "a" else 5))
    write_image(tmp_path / "JPEGImages" / "2.png")
    write_text(tmp_path / "Annotations" / "2.xml", XML.format(4))
    write_text(tmp_path / "ImageSets" / "Main" / "train.txt", "a/1\nb/1\n")
    write_text(tmp_path / "ImageSets" / "Main" / "val.txt", "2\n")
    dataset = formats.read_boxes(identify_source(str(tmp_path)).require("boxes"))
    paths = [entry.image_path.relative_to(tmp_path / "JPEGImages").as_posix() for entry in dataset.splits["train"]]
    assert paths == ["a/1.png", "b/1.png"]
    assert len(dataset.splits["val"]) == 1


def test_masks_beside_their_images(tmp_path):
    """Roboflow's semantic segmentation masks."""
    for split in ("train", "valid"):
        for index in range(2):
            write_image(tmp_path / split / f"{index}.jpg", index)
            write_mask(tmp_path / split / f"{index}_mask.png", index)
        write_text(tmp_path / split / "_classes.csv", "Pixel Value, Class\n0, background\n1, road\n2, car\n3, x\n")
    index = segmentation_data.index_dataset(identify_source(str(tmp_path)))
    assert {split: [image.name for image, _ in pairs] for split, pairs in index.splits.items()} == {
        "train": ["0.jpg", "1.jpg"],
        "val": ["0.jpg", "1.jpg"],
    }
    assert index.splits["train"][1][1].path.name == "1_mask.png"


def test_a_coco_file_of_another_split_may_have_any_name(tmp_path):
    """The name ``instances_`` only selects among the files of one split."""
    for name in ("train/instances_default.json", "train/poses.json", "val/labels.json"):
        write_coco(tmp_path / name)
    assert sorted(coco.find_coco_files(tmp_path)) == [
        ("train", tmp_path / "train" / "instances_default.json"),
        ("val", tmp_path / "val" / "labels.json"),
    ]


def test_a_coco_file_of_all_splits_comes_before_those_of_each(tmp_path):
    for name in ("instances_default.json", "train.json", "test.json"):
        write_coco(tmp_path / "annotations" / name)
    assert coco.find_coco_files(tmp_path) == [("", tmp_path / "annotations" / "instances_default.json")]


def test_masks_come_before_outlines_of_coco_below_a_single_folder_too(tmp_path):
    for index in range(3):
        write_image(tmp_path / "top" / "data" / "images" / f"{index}.png", index)
        write_mask(tmp_path / "top" / "data" / "masks" / f"{index}.png", index)
    outline = {"bbox": [3, 3, 9, 9], "segmentation": [[3, 3, 12, 3, 12, 12]], "category_id": 1}
    write_coco(tmp_path / "top" / "data" / "annotations" / "instances_default.json", **outline)
    found = [formats.find_format("masks", path) for path in (tmp_path / "top" / "data", tmp_path, tmp_path / "top")]
    assert {(item.name, item.root) for item in found} == {("mask folder", tmp_path / "top" / "data")}


def test_coco_files_in_a_single_folder_of_an_export_belong_to_images_elsewhere(tmp_path):
    for index in range(COUNT):
        write_image(tmp_path / "photos" / f"{index}.png", index)
    write_coco(tmp_path / "export" / "task" / "annotations" / "instances_default.json")
    found = formats.find_format("boxes", tmp_path / "export", tmp_path / "photos")
    assert len(formats.read_boxes(found, tmp_path / "photos").splits[""]) == COUNT


def test_coco_files_in_folders_of_annotations_of_each_split(tmp_path):
    """Supervisely's export."""
    for split in ("train", "val"):
        for index in range(COUNT):
            write_image(tmp_path / split / "images" / f"{index}.png")
        write_coco(tmp_path / split / "annotations" / "instances.json")
    dataset = formats.read_boxes(identify_source(str(tmp_path)).require("boxes"))
    assert {split: len(entries) for split, entries in dataset.splits.items()} == {"train": COUNT, "val": COUNT}
