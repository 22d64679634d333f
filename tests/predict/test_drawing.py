"""Pictures of segmentations."""

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from proscale.predict.drawing import object_colors, side_by_side, text_color
from proscale.predict.mask_drawing import MaskDrawing, deepest_places, indices_of, outlines
from proscale.predict.pictures import draw_panoptic
from proscale.predict.result import ClassMetadata

COLORS = [(200, 0, 0), (0, 0, 200)]


@pytest.fixture
def index_map():
    index_map = np.zeros((40, 60), np.int64)
    index_map[10:30, 5:25] = 1
    index_map[10:30, 25:55] = 2
    return index_map


def test_segments_are_tinted_and_the_rest_is_left(index_map):
    image = np.full((40, 60, 3), 100, np.uint8)
    picture = MaskDrawing(COLORS, ["", ""], index_map).over(image)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    assert (picture[index_map == 0] == 100).all()
    assert picture[13, 10].tolist() == [150, 50, 50]
    assert picture[29, 7].tolist() == [200, 0, 0]  # the outline
    assert (image == 100).all()


def test_captions_are_drawn(index_map):
    image = np.zeros((40, 60, 3), np.uint8)
    without = MaskDrawing(COLORS, ["", ""], index_map).over(image)
    with_text = MaskDrawing(COLORS, ["Tür", "Bär"], index_map).over(image)
    assert (without != with_text).any(-1)[15:25].any()


def test_a_label_hides_no_smaller_segment(index_map):
    image = np.zeros((40, 60, 3), np.uint8)
    drawing = MaskDrawing(COLORS, ["a caption longer than a segment is wide"] * 2, index_map)
    assert np.array_equal(drawing.over(image), drawing.tinted(image))


def test_outlines_are_pixels_of_segments_beside_others(index_map):
    on_outline = outlines(index_map)
    assert not on_outline[index_map == 0].any()
    assert on_outline[10:30, [5, 24, 25, 54]].all()
    assert on_outline[[10, 29], 5:55].all()
    assert not on_outline[12:28, 7:23].any()


def test_labels_lie_deep_inside_large_segments_first(index_map):
    index_map[0, 0] = 3  # a pixel, less than a thousandth
    places = deepest_places(index_map)
    assert list(places) == [2, 1]
    for index, (x, y) in places.items():
        assert (index_map[y - 8 : y + 8, x - 8 : x + 8] == index).all()


def test_ids_become_indices():
    ids = np.array([[7, 7, 0], [9, 4, 4]])
    assert indices_of(ids, [4, 7]).tolist() == [[2, 2, 0], [0, 1, 1]]


def test_objects_of_a_class_differ_in_shade():
    classes = ClassMetadata(("cat", "sky"), (1, 2), (True, False), ((200, 40, 40), (40, 40, 200)))
    colors = object_colors(classes, [0, 1, 0, 1, 0])
    assert colors[0] == (200, 40, 40)
    assert colors[1] == colors[3] == (40, 40, 200)
    assert len({colors[0], colors[2], colors[4]}) == 3


def test_text_is_readable():
    assert text_color((255, 255, 0)) == (0, 0, 0)
    assert text_color((0, 0, 142)) == (255, 255, 255)


def test_panoptic_with_the_names_of_a_data_set():
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    panoptic = torch.zeros(30, 40, dtype=torch.int32)
    panoptic[5:25, 5:35] = 3
    picture = draw_panoptic(
        np.zeros((30, 40, 3), np.uint8), panoptic, [{"id": 3, "category_id": 0}], metadata, scale=2
    )
    assert picture.shape == (60, 80, 3)
    assert picture[10, 40].tolist() == metadata.thing_colors[0]


def test_side_by_side():
    pictures = [np.zeros((4, 5, 3), np.uint8), np.ones((4, 6, 3), np.uint8)]
    row = side_by_side(pictures, gap=2)
    assert row.shape == (4, 13, 3)
    assert (row[:, 5:7] == 255).all()
