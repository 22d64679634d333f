"""Makes of downloaded data sets the files that Detectron2's and Mask2Former's names read.

Every step can be interrupted and called again: complete files are kept, missing ones are made.
"""

from collections.abc import Callable
from pathlib import Path

from proscale.data.prepare import ade20k, cityscapes, coco, jbd, labelme, nuclei, yolo
from proscale.data.prepare.conversion import Tally

__all__ = ["PREPARATIONS", "prepare"]

PREPARATIONS: dict[str, tuple[Callable[[Path, int], list[Tally]], ...]] = {
    "coco": (coco.prepare_semantic, coco.prepare_stuff),
    "coco-semantic": (coco.prepare_semantic,),
    "coco-stuff": (coco.prepare_stuff,),
    "ade20k": (ade20k.prepare_semantic, ade20k.prepare_panoptic, ade20k.prepare_instance),
    "ade20k-semantic": (ade20k.prepare_semantic,),
    "ade20k-panoptic": (ade20k.prepare_panoptic,),
    "ade20k-instance": (ade20k.prepare_instance,),
    "cityscapes": (cityscapes.prepare_semantic, cityscapes.prepare_panoptic),
    "cityscapes-semantic": (cityscapes.prepare_semantic,),
    "cityscapes-panoptic": (cityscapes.prepare_panoptic,),
    "jbd": (jbd.prepare_poses,),
    "labelme": (labelme.prepare_instances,),
    "yolo": (yolo.prepare_instances,),
    "nuclei": (nuclei.prepare_images, nuclei.prepare_panoptic, nuclei.prepare_instances),
}
"""By name the steps: from the folder of all data sets and a number of threads to tallies."""


def prepare(name: str, root: Path, *, workers: int) -> list[Tally]:
    """Run one of ``PREPARATIONS`` in ``root``, the folder of all data sets, on so many threads.

    Returns:
        a tally for every step and every split that is there.

    Raises:
        DataError: a source is missing or not as expected; names the file and the segment.
        UserError: Cityscapes needs ``cityscapesscripts``.
    """
    return [tally for step in PREPARATIONS[name] for tally in step(root, workers)]
