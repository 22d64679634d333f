"""Skeletons of keypoints: names, links, and what is left and right."""

from dataclasses import dataclass

from detectron2.data.catalog import Metadata

from proscale.errors import ConfigError

LEFT, MIDDLE, RIGHT = "left", "middle", "right"


@dataclass(frozen=True)
class Skeleton:
    """The keypoints of a model, K of them.

    Attributes:
        names: of the keypoints.
        links: pairs of their positions.
        sides: of the person, on which the keypoints are: ``LEFT``, ``RIGHT`` or ``MIDDLE``.
    """

    names: tuple[str, ...]
    links: tuple[tuple[int, int], ...]
    sides: tuple[str, ...]

    @classmethod
    def of_metadata(cls, metadata: Metadata) -> "Skeleton":
        """The skeleton of a data set, from Detectron2's ``keypoint_names``, ``keypoint_flip_map``,
        which are pairs of left and right, and ``keypoint_connection_rules``.

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
        side_of: dict[str, str] = {}
        for left, right in metadata.get("keypoint_flip_map") or ():
            side_of |= {left: LEFT, right: RIGHT}
        rules = metadata.get("keypoint_connection_rules") or ()
        return cls(
            names=tuple(names),
            # The metadata may come with a foreign file of weights.
            links=tuple(
                (position[first], position[second])
                for first, second, _ in rules
                if first in position and second in position
            ),
            sides=tuple(side_of.get(name, MIDDLE) for name in names),
        )

    def link_side(self, link: tuple[int, int]) -> str:
        """The side of a link: that of its ends; in the middle where they are on both."""
        sides = {self.sides[end] for end in link} - {MIDDLE}
        return sides.pop() if len(sides) == 1 else MIDDLE
