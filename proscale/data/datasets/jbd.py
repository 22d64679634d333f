"""The jump broadcast data set: athletes in triple, high and long jump, 20 keypoints.

Ludwig et al., All Keypoints You Need, CVPRW 2023. Its files are made by ``proscale prepare jbd``.
"""

from pathlib import Path

from proscale.data.datasets.registration import data_root, keypoint_metadata, register_builtin
from proscale.data.formats.coco_format import load_coco_keypoints

FOLDER = "jump_broadcast"
SPLITS = ("train", "val")
CATEGORY = {"id": 1, "name": "athlete"}
# Head, neck; shoulder, elbow, wrist, hand of each side; hip, knee, ankle, heel, toe of each side.
KEYPOINT_NAMES = (
    *("head", "neck", "rsho", "relb", "rwri", "rhan", "lsho", "lelb", "lwri", "lhan"),
    *("rhip", "rkne", "rank", "rhee", "rtoe", "lhip", "lkne", "lank", "lhee", "ltoe"),
)
LINKS = (
    *((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (1, 6), (6, 7), (7, 8), (8, 9)),
    *((2, 10), (10, 11), (11, 12), (12, 13), (13, 14)),
    *((6, 15), (15, 16), (16, 17), (17, 18), (18, 19)),
)
"""Of the skeleton, places of keypoints."""


def register_jbd(root: Path | None = None) -> None:
    """Register ``keypoints_jbd_{train,val}``.

    ``root``, ``data_root()`` when None, has the folder ``jump_broadcast``.
    """
    root = (root or data_root()) / FOLDER
    for split in SPLITS:
        metadata = keypoint_metadata(
            CATEGORY,
            KEYPOINT_NAMES,
            flip_pairs=[("l" + name[1:], name) for name in KEYPOINT_NAMES if name[0] == "r"],
            links=LINKS,
            sigmas=[0.1] * len(KEYPOINT_NAMES),
            upper_body=KEYPOINT_NAMES[:10],
            image_root=root / "images" / split,
            json_file=root / "annotations" / f"{split}_jump.json",
        )
        register_builtin(f"keypoints_jbd_{split}", load_coco_keypoints, metadata, preparation="jbd")
