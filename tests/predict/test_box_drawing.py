"""Pictures of boxes and of skeletons."""

from dataclasses import replace

import numpy as np
import pytest

from proscale.predict.box_drawing import KEYPOINT_THRESHOLD, SIDE_COLORS
from proscale.predict.pictures import drawing_of
from proscale.predict.skeleton import LEFT, MIDDLE, RIGHT

BLACK = np.zeros((48, 64, 3), np.uint8)


def has_color(picture, color):
    return (np.abs(picture.astype(int) - color).max(-1) < 12).any()


def test_boxes_are_framed_and_tinted(detections, classes):
    drawing = drawing_of(detections, classes)
    picture = drawing.tinted(BLACK)
    cat, dog = drawing.colors
    assert picture[12, 4].tolist() == list(cat)  # the left edge
    assert picture[12, 43].tolist() == list(dog)  # the right edge lies within the box
    assert 0 < picture[12, 12].max() < 60
    assert not picture[24:, :28].any() and not picture[:, 46:].any()
    assert drawing.captions == ["cat 90%", "<b>dog</b> 60%"]


def test_labels_are_on_the_upper_edges_of_the_best_boxes_first(detections, classes):
    assert drawing_of(detections, classes).label_places() == {1: (12, 6), 2: (37, 8)}


def test_the_better_of_two_boxes_lies_on_top(detections, classes):
    cat, dog = detections.objects
    both = replace(detections, objects=(cat, replace(dog, box=cat.box)))
    drawing = drawing_of(both, classes)
    assert drawing.tinted(BLACK)[12, 4].tolist() == list(drawing.colors[0])


def test_sides_have_colors_of_their_own(poses, person_classes):
    assert person_classes.skeleton.sides == (MIDDLE, LEFT, RIGHT)
    assert [person_classes.skeleton.link_side(link) for link in ((0, 1), (1, 2))] == [LEFT, MIDDLE]
    skeletons, _ = drawing_of(poses, person_classes).layers()
    left, middle = skeletons[22, 38], skeletons[32, 37]
    assert left.tolist() == [*SIDE_COLORS[LEFT], 255]
    assert middle.tolist() == [*SIDE_COLORS[MIDDLE], 255]


def test_keypoints_below_the_threshold_are_not_drawn(poses, person_classes):
    assert poses.keypoints[0, 2, 2] < KEYPOINT_THRESHOLD
    skeletons, _ = drawing_of(poses, person_classes).layers()
    # Neither the right hip nor the link to it.
    assert not skeletons[16, 6:11, 3].any() and not skeletons[16, 12, 3]
    assert skeletons[12, 14, 3]  # from neck to left hip


def test_points_far_outside_do_no_harm(poses, person_classes):
    best = poses.objects[0]
    far = replace(best, keypoints=((-1e6, 1e6, 0.9), *best.keypoints[1:]))
    drawing_of(replace(poses, objects=(far,)), person_classes).over(BLACK)


@pytest.mark.parametrize("kind", ["detections", "poses"])
def test_twice_as_large(kind, classes, person_classes, request):
    prediction = request.getfixturevalue(kind)
    drawing = drawing_of(prediction, person_classes if kind == "poses" else classes)
    large = drawing.resized((96, 128))
    assert large.size == (96, 128)
    assert np.array_equal(large.boxes, 2 * drawing.boxes)
    assert large.layers()[0].shape == (96, 128, 4)
    if kind == "poses":
        # The centre of a pixel becomes the corner between four.
        assert large.keypoints[0, 0].tolist() == pytest.approx([24.5, 16.5, 0.9])


def test_nothing_is_drawn_of_nothing(detections, classes):
    drawing = drawing_of(replace(detections, objects=()), classes)
    assert not drawing.over(BLACK).any()
    assert drawing.resized((24, 32)).size == (24, 32)
