"""PCK, OKS and suppression: golden numbers, and by hand."""

import numpy as np
import pytest

from proscale.evaluation import (
    keypoint_pck,
    object_keypoint_similarity,
    oks_nms,
    pose_scores,
)


@pytest.fixture
def case(golden):
    return golden("pose_metrics")


@pytest.fixture
def truth(case):
    """Keypoints (N, K, 3) and areas (N,) of the persons that the first predictions are of."""
    annotations = {a["id"]: a for a in case.meta["ground_truth"]["annotations"]}
    chosen = [annotations[id_] for id_ in case.meta["annotation_ids"] if id_ is not None]
    keypoints = np.array([a["keypoints"] for a in chosen], float).reshape(len(chosen), -1, 3)
    return keypoints, np.array([a["area"] for a in chosen])


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.2])
def test_golden_pck(case, truth, threshold):
    keypoints, n = truth[0], case.meta["num_true"]
    per_keypoint, mean = keypoint_pck(
        case.keypoints[:n], keypoints[..., :2], keypoints[..., 2], case.boxes[:n], threshold
    )
    assert mean == pytest.approx(case.meta["pck"][str(threshold)])
    # The file has -1 for the keypoint that never occurs.
    expected = getattr(case, f"pck_{threshold}").numpy()
    assert np.isnan(per_keypoint).tolist() == (expected < 0).tolist()
    np.testing.assert_allclose(np.nan_to_num(per_keypoint, nan=-1), expected)


def test_golden_oks_scores_and_suppression(case, truth):
    (keypoints, areas), meta = truth, case.meta
    oks = object_keypoint_similarity(
        case.keypoints[: meta["num_true"]],
        keypoints[..., :2],
        keypoints[..., 2],
        areas,
        meta["sigmas"],
    )
    np.testing.assert_allclose(oks, case.oks, rtol=1e-6)
    scores = pose_scores(case.keypoint_scores, case.box_scores, meta["keypoint_score_thresh"])
    np.testing.assert_allclose(scores, case.scores, rtol=1e-6)
    images = np.array(meta["image_ids"])
    kept = np.zeros(len(images), bool)
    for image in set(meta["image_ids"]):
        places = np.flatnonzero(images == image)
        poses = case.keypoints[places], case.scores[places], case.areas[places]
        kept[places[oks_nms(*poses, meta["sigmas"], meta["oks_nms_thresh"])]] = True
    assert kept.tolist() == case.kept.tolist()


def test_pck_is_strict_and_a_mean_over_keypoints():
    truth = np.zeros((3, 2, 2))
    predicted = truth.copy()
    predicted[0, 0, 0] = 10  # exactly 0.1 of the longer side: not below it
    predicted[1, 0, 0] = 9.99
    visible = [[1, 1], [2, 0], [1, 0]]
    boxes = [[0, 0, 100, 50], [5, 5, 25, 105], [3, 3, 3, 3]]  # the last has no size
    per_keypoint, mean = keypoint_pck(predicted, truth, visible, boxes, 0.1)
    assert per_keypoint.tolist() == [0.5, 1.0]
    assert mean == 0.75


def test_nobody_is_no_error():
    nobody = np.zeros((0, 5, 2))
    per_keypoint, mean = keypoint_pck(nobody, nobody, nobody[..., 0], np.zeros((0, 4)), 0.1)
    assert np.isnan(per_keypoint).all()
    assert np.isnan(mean)
    assert object_keypoint_similarity(nobody, nobody, nobody[..., 0], [], [0.1] * 5).shape == (0,)
    assert oks_nms(nobody, [], [], [0.1] * 5, 0.9).tolist() == []
    assert pose_scores(nobody[..., 0], [], 0.2).shape == (0,)


def test_scores_count_keypoints_above_the_threshold_alone():
    scores = pose_scores([[0.2, 0.5, 0.9], [0.1, 0.2, 0.0]], [0.5, 1.0], 0.2)
    assert scores.tolist() == pytest.approx([0.5 * 0.7, 0.0])


def test_the_better_of_two_equal_poses_stays():
    poses = np.stack([np.zeros((4, 3)), np.zeros((4, 3)), np.full((4, 3), 50.0)])
    assert oks_nms(poses, [0.3, 0.7, 0.1], [100.0] * 3, [0.1] * 4, 0.9).tolist() == [1, 2]
    # As released, the last of equal scores comes first.
    assert oks_nms(poses, [0.5, 0.5, 0.5], [100.0] * 3, [0.1] * 4, 0.9).tolist() == [2, 1]
