"""Skeletons of keypoints: names, links, and what is left and right."""

from dataclasses import dataclass

import numpy as np
from detectron2.data.catalog import Metadata

from proscale.errors import ConfigError

LEFT, MIDDLE, RIGHT = -1, 0, 1

# Of left_knee, l_knee, lkne and LeftKnee.
_SIDES = {"l": LEFT, "r": RIGHT}


@dataclass(frozen=True)
class Skeleton:
    """The keypoints of a model, K of them.

    Attributes:
        names: of the keypoints.
        links: pairs of their positions.
        sides: of the keypoints: ``LEFT`` or ``RIGHT`` of the person, or ``MIDDLE``.
    """

    names: tuple[str, ...]
    links: tuple[tuple[int, int], ...]
    sides: tuple[int, ...]

    @classmethod
    def of_metadata(cls, metadata: Metadata) -> "Skeleton":
        """The skeleton of a data set, from Detectron2's ``keypoint_names``, ``keypoint_flip_map``
        and ``keypoint_connection_rules``.

        Raises:
            ConfigError: the data set has no keypoints.
        """
        names = metadata.get("keypoint_names")
        if not names:
            raise ConfigError(
                f"DATASETS.TEST is {metadata.name}: expected a data set with keypoint_names, the "
                "names of the keypoints"
            )
        position = {name: index for index, name in enumerate(names)}
        # Only keypoints that a mirror exchanges have a side, which their names begin with: "neck"
        # of a skeleton without a pair is in the middle, though "lneck" would be left.
        paired = {name for pair in metadata.get("keypoint_flip_map") or () for name in pair}
        sides = tuple(_SIDES.get(name[:1].lower(), MIDDLE) * (name in paired) for name in names)
        links = tuple(
            (position[first], position[second])
            for first, second, *_ in metadata.get("keypoint_connection_rules") or ()
            if first in position and second in position
        )
        return cls(tuple(names), links, sides)

    def link_side(self, link: tuple[int, int]) -> int:
        """The side of a link: that of its ends; in the middle where they are on both."""
        first, second = (self.sides[end] for end in link)
        return (LEFT, MIDDLE, RIGHT)[int(np.sign(first + second)) + 1]
