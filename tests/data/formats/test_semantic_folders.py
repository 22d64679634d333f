"""Folders of images and label images: pairing, and counting of labels."""

import numpy as np
import pytest
from PIL import Image

from proscale.data.datasets.registration import semantic_metadata
from proscale.data.formats.semantic_folders import (
    count_labels,
    find_suffixes,
    load_semantic_folders,
    mask_files,
)


@pytest.fixture
def folders(tmp_path):
    """Returns a function: images, masks (names, with labels) → metadata."""

    def make(images, masks, **options):
        (tmp_path / "images").mkdir()
        (tmp_path / "masks").mkdir()
        for name in images:
            path = tmp_path / "images" / name
            path.parent.mkdir(exist_ok=True)
            path.touch()
        for name, labels in masks.items():
            path = tmp_path / "masks" / name
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.array(labels)).save(path)
        roots = {"image_root": tmp_path / "images", "mask_root": tmp_path / "masks"}
        return semantic_metadata(["a", "b"], **roots, **options)

    return make


LABELS = np.zeros((2, 2), np.uint8)


def names(metadata):
    return [
        tuple(path.split("/", 3)[-1].rsplit("/", 1)[-1] for path in entry.values())
        for entry in load_semantic_folders(metadata)
    ]


def test_pairs_have_the_same_name_in_the_same_subfolder(folders, tmp_path):
    metadata = folders(["b.jpg", "x/a.PNG", "notes.txt"], {"b.png": LABELS, "x/a.png": LABELS})
    assert load_semantic_folders(metadata) == [
        {
            "file_name": str(tmp_path / "images" / image),
            "sem_seg_file_name": str(tmp_path / "masks" / mask),
        }
        for image, mask in (("b.jpg", "b.png"), ("x/a.PNG", "x/a.png"))
    ]


def test_suffixes_tell_what_to_leave_out(folders):
    metadata = folders(
        ["a_photo.jpg", "a_depth.jpg"],
        {"a_labels.png": LABELS, "a_ids.png": LABELS},
        image_suffix="_photo.jpg",
        mask_suffix="_labels.png",
    )
    assert names(metadata) == [("a_photo.jpg", "a_labels.png")]
    assert [mask.name for mask in mask_files(metadata)] == ["a_labels.png"]


@pytest.mark.parametrize(
    ("images", "masks", "found"),
    [
        (["a.jpg", "b.jpg"], ["a.png", "b.png"], (None, ".png")),
        (["a.jpg", "b.JPG"], ["a.png", "b.png", "a_mask.png"], (None, ".png")),
        (["a.jpg", "b.jpg"], ["a_mask.png", "b_mask.png", "b_old.png"], (None, "_mask.png")),
        (["x/a.jpg", "b.jpg"], ["x/a.TIF", "b.TIF"], (None, ".TIF")),
        (["0_img.png", "1_img.png"], ["0_seg.png", "1_seg.png"], ("_img.png", "_seg.png")),
        (["a.jpg"], ["x/a_mask.png"], (None, ".png")),
        ([], [], (None, ".png")),
    ],
)
def test_suffixes_are_found(folders, tmp_path, images, masks, found):
    folders(images, dict.fromkeys(masks, LABELS))
    assert find_suffixes([(tmp_path / "images", tmp_path / "masks")]) == found


def test_suffixes_of_one_folder_are_found(folders, tmp_path):
    root = tmp_path / "images"
    folders(["a.png", "b.png", "a_mask.png", "b_mask.png"], {})
    assert find_suffixes([(root, root)]) == (None, "_mask.png")
    metadata = semantic_metadata(["a"], image_root=root, mask_root=root, mask_suffix="_mask.png")
    assert names(metadata) == [("a.png", "a_mask.png"), ("b.png", "b_mask.png")]


def test_several_suffixes_are_named(folders, tmp_path):
    folders(["a.jpg"], {"a_color.png": LABELS, "a_ids.png": LABELS})
    with pytest.raises(ValueError, match=r"end with _color\.png or _ids\.png"):
        find_suffixes([(tmp_path / "images", tmp_path / "masks")])


def test_image_without_labels_is_named(folders):
    metadata = folders(["a.jpg", "b.jpg"], {"a.png": LABELS})
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .* first being .*images/b\.jpg"):
        load_semantic_folders(metadata)


def test_no_images(folders):
    with pytest.raises(ValueError, match=r"no images \(\*\.jpg, \*\.jpeg, \*\.png"):
        load_semantic_folders(folders(["a.txt"], {}))


def test_labels_are_counted_without_the_ignored(folders, caplog):
    masks = {"a.png": [[0, 3]], "b.png": [[255, 1]], "c.png": [[255, 255]]}
    metadata = folders([], {name: np.array(m, np.uint8) for name, m in masks.items()})
    files = mask_files(metadata)
    files[1].write_text("no image")
    assert count_labels(files) == 4
    assert "Skipped when counting classes" in caplog.text
    assert "b.png" in caplog.text
    with pytest.raises(ValueError, match="no labels in 2 label images"):
        count_labels(files[1:])
    assert count_labels(files[:1], ignored=(3,)) == 1


def test_black_and_white_masks_are_told(folders, caplog):
    metadata = folders([], {"a.png": np.array([[0, 255]], np.uint8)})
    assert count_labels(mask_files(metadata)) == 1
    assert "`LABELS: {background: 0, object: 255}` in DATASETS.OWN makes them two" in caplog.text
    assert count_labels(mask_files(metadata), ignored=(0,)) == 256
    assert len(caplog.records) == 1


def test_colours_are_given_or_chosen(folders):
    assert folders([], {}, colors=[[1, 2, 3]])["stuff_colors"][0] == [1, 2, 3]


def test_sixteen_bits(folders):
    metadata = folders([], {"a.png": np.array([[300, 255]], np.uint16)})
    assert count_labels(mask_files(metadata)) == 301
