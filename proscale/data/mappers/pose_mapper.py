"""From the record of a person to its crop, for top-down pose estimation.

A record is an entry in Detectron2's format with exactly one annotation. Its keypoints are in
Detectron2's coordinates, 0.5 more than COCO's pixel indices; here and in the model they are pixel
indices. Boxes are COCO's in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import BoxMode
from scipy.special import ndtr, ndtri

from proscale.data.mappers.mapper import read_entry_image, to_tensor
from proscale.data.person_crop import PersonCrop
from proscale.data.skeleton import flip_indices, upper_body
from proscale.errors import DataError, shown

# Labelled keypoints that the upper and the lower half of a body need to be seen alone.
_MIN_UPPER, _MIN_LOWER = 2, 3


@dataclass
class Person:
    """A person in an image ``(H, W, C)``, pixel indices.

    Attributes:
        center, scale: ``(2,)``, of the crop: x and y, width and height.
        keypoints, visible: ``(K, 2)`` and ``(K,)``, 1 where labelled, else 0.
        rotation: of the crop, degrees.
    """

    image: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray
    rotation: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PersonAugmentation:
    """Random views of a person as SegFormer++ trains with them, in the published order.

    Attributes:
        flip_indices: of each keypoint its counterpart on the other side of the body.
        upper_body: indices of the keypoints above the hips; without any there are no half bodies.
        flip_prob, half_body_prob, shift_prob, rotation_prob: probabilities of each step.
        half_body_min_keypoints, half_body_upper_prob, half_body_padding: labelled keypoints that a
            body needs to be halved, probability of its upper half, and size of the crop over the
            extent of the half's keypoints.
        scale_factor, shift_factor, rotation: the crop's relative size, its place relative to its
            sides, and its angle in degrees change by these times draws from the standard normal
            distribution within [−1, 1].
    """

    flip_indices: Sequence[int]
    upper_body: Sequence[int]
    flip_prob: float
    half_body_prob: float
    half_body_min_keypoints: int
    half_body_upper_prob: float
    half_body_padding: float
    scale_factor: float
    shift_prob: float
    shift_factor: float
    rotation_prob: float
    rotation: float

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "PersonAugmentation":
        """That of ``INPUT.POSE``, for the skeleton of the data set."""
        numbers = {name.lower(): value for name, value in cfg.INPUT.POSE.items()}
        return cls(flip_indices=flip_indices(cfg), upper_body=upper_body(cfg), **numbers)

    def __call__(self, person: Person) -> None:
        """Change the view of ``person``, by draws from NumPy's generator."""
        if np.random.rand() < self.flip_prob:
            self._flip(person)
        # Of bodies of which enough is seen, now and then one half alone.
        labelled = person.visible.sum()
        if labelled >= self.half_body_min_keypoints and np.random.rand() < self.half_body_prob:
            self._see_half(person)
        # Size, place and angle; the crop moves by its sides as they were.
        size = 1 + self.scale_factor * _truncated_normal(1)
        moves, shift = np.random.rand() < self.shift_prob, _truncated_normal(2)
        turns, angle = np.random.rand() < self.rotation_prob, _truncated_normal(1)
        person.center = person.center + moves * self.shift_factor * shift * person.scale
        person.scale = person.scale * size
        person.rotation = float(turns * self.rotation * angle[0])

    def _flip(self, person: Person) -> None:
        """Mirror the image; left becomes right."""
        # Column x becomes column width − 1 − x.
        last = person.image.shape[1] - 1
        person.image = np.ascontiguousarray(person.image[:, ::-1])
        person.center = np.array([last - person.center[0], person.center[1]])
        indices = list(self.flip_indices)
        person.keypoints = person.keypoints[indices] * [-1, 1] + [last, 0]
        person.visible = person.visible[indices]

    def _see_half(self, person: Person) -> None:
        """Crop around the keypoints of the upper or the lower half of the body."""
        if not self.upper_body:
            return
        is_upper = np.isin(np.arange(len(person.visible)), list(self.upper_body))
        upper = person.keypoints[is_upper & (person.visible > 0)]
        lower = person.keypoints[~is_upper & (person.visible > 0)]
        has_upper, has_lower = len(upper) >= _MIN_UPPER, len(lower) >= _MIN_LOWER
        if not (has_upper or has_lower):
            return
        # One half where the other has too few; of two the upper one more often.
        takes_upper = has_upper
        if has_upper and has_lower:
            takes_upper = np.random.rand() < self.half_body_upper_prob
        half = upper if takes_upper else lower
        # Keypoints at one place have no extent that could be cropped.
        extent = np.ptp(half, axis=0)
        if not extent.any():
            return
        # The new centre is the mean of its keypoints, not the middle of their extent.
        person.center = half.mean(axis=0)
        person.scale = self.half_body_padding * extent


class PoseMapper:
    """Maps the record of a person to what :class:`~proscale.modeling.pose.PoseEstimator` takes.

    Args:
        image_format: order of the channels, such as ``RGB``.
        input_size: (W, H) of the crop, pixels.
        padding: size of the crop over the box.
        num_keypoints: K, in training.
        augmentation: of training; None evaluates.
    """

    @configurable
    def __init__(
        self,
        *,
        image_format: str,
        input_size: Sequence[int],
        padding: float,
        num_keypoints: int,
        augmentation: PersonAugmentation | None,
    ) -> None:
        self.image_format = image_format
        self.input_size = tuple(input_size)
        self.padding = padding
        self.num_keypoints = num_keypoints
        self.augmentation = augmentation

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict[str, Any]:
        return {
            "image_format": cfg.INPUT.FORMAT,
            "input_size": cfg.MODEL.POSE.INPUT_SIZE,
            "padding": cfg.MODEL.POSE.BOX_PADDING,
            "num_keypoints": cfg.MODEL.POSE_HEAD.NUM_KEYPOINTS,
            "augmentation": PersonAugmentation.from_config(cfg) if is_train else None,
        }

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Map a record, which is not changed.

        Its annotation has ``bbox`` and ``bbox_mode``; in training ``keypoints``, 3K numbers; and
        may have ``id`` and, in evaluation, ``score``, the box's, 1 by default.

        Returns:
            ``file_name``, ``image_id`` if the record has one, ``annotation_id``, which may be None,
            ``height`` and ``width`` of the image; ``image`` (3, H, W) uint8, the crop; and
            in training ``keypoints`` (K, 2), pixel indices in the crop, and ``visible`` (K,), 1
            where labelled, else 0; in evaluation the rest of :meth:`view`.

        Raises:
            DataError: the image is missing, cannot be read, or has another size than stated; the
                record has not exactly one annotation, or that has an empty box or no keypoints.
        """
        # 1. Read the image, and the one person of the record.
        image = read_entry_image(record, self.image_format)
        file_name, annotations = record["file_name"], record.get("annotations", ())
        if len(annotations) != 1:
            raise DataError(f"{file_name}: {len(annotations)} annotations: expected one person")
        (annotation,) = annotations
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        if not (box[2] > box[0] and box[3] > box[1]):
            raise DataError(f"{file_name}: bbox is {shown(list(box))}: expected width and height")
        # 2. What evaluators join results by.
        sample = {key: record[key] for key in ("file_name", "image_id") if key in record}
        sample["annotation_id"] = annotation.get("id")
        # 3. The crop: the padded box, or a random view of it.
        if self.augmentation is None:
            return sample | self.view(image, box, annotation.get("score", 1.0))
        keypoints = self._keypoints(file_name, annotation)
        return sample | self._augmented(image, np.array(box), keypoints)

    def view(self, image: np.ndarray, box: Sequence[float], score: float = 1.0) -> dict[str, Any]:
        """A person as it is evaluated.

        Args:
            image: (H, W, 3) uint8.
            box: left, top, right, bottom; used as it is, also outside of the image.
            score: of the box.

        Returns:
            ``image``, ``height`` and ``width`` as from the call; ``crop``, the
            :class:`~proscale.data.PersonCrop`, ``box`` (4,) float32 and ``box_score``.
        """
        crop = PersonCrop(box, self.input_size, self.padding)
        return {
            "height": image.shape[0],
            "width": image.shape[1],
            "image": to_tensor(crop.apply_image(image)),
            "crop": crop,
            "box": torch.tensor(box, dtype=torch.float32),
            "box_score": float(score),
        }

    def _augmented(
        self, image: np.ndarray, box: np.ndarray, keypoints: np.ndarray
    ) -> dict[str, Any]:
        """A random view of a person with ``keypoints`` (K, 3), pixel indices and visibility."""
        assert self.augmentation is not None  # the call has looked
        person = Person(
            image=image,
            center=(box[:2] + box[2:]) / 2,
            scale=self.padding * (box[2:] - box[:2]),
            keypoints=keypoints[:, :2],
            # “Occluded” counts as labelled.
            visible=np.minimum(keypoints[:, 2], 1),
        )
        self.augmentation(person)
        crop = PersonCrop.around(person.center, person.scale, self.input_size, person.rotation)
        # Keypoints outside of the crop keep their place: their Gaussians may reach into it.
        return {
            "height": image.shape[0],
            "width": image.shape[1],
            "image": to_tensor(crop.apply_image(person.image)),
            "keypoints": torch.from_numpy(crop.to_input(person.keypoints)).float(),
            "visible": torch.from_numpy(person.visible).float(),
        }

    def _keypoints(self, file_name: str, annotation: Mapping[str, Any]) -> np.ndarray:
        """(K, 3): x and y as pixel indices, and COCO's visibility."""
        numbers, expected = annotation.get("keypoints", ()), 3 * self.num_keypoints
        if len(numbers) != expected:
            raise DataError(
                f"{file_name}: {len(numbers)} numbers of keypoints: expected {expected}, since "
                f"MODEL.POSE_HEAD.NUM_KEYPOINTS is {self.num_keypoints}"
            )
        # Detectron2's loader has added half a pixel.
        return np.array(numbers, np.float64).reshape(-1, 3) - [0.5, 0.5, 0]


def _truncated_normal(count: int) -> np.ndarray:
    """``(count,)`` draws from the standard normal distribution within [−1, 1]."""
    # By the inverse of its distribution function.
    return ndtri(np.random.uniform(ndtr(-1), ndtr(1), count))
