"""Which preparations there are, by the names of ``proscale prepare``."""

from collections.abc import Callable
from pathlib import Path

from proscale.data.prepare import ade20k, cityscapes, coco
from proscale.data.prepare.conversion import Tally

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
}
"""Of every name the steps: from the folder of all data sets and a number of threads to tallies."""


def prepare(name: str, root: Path, *, workers: int) -> list[Tally]:
    """Run a preparation, with a progress bar where there is a terminal.

    Args:
        name: one of ``PREPARATIONS``.
        root: the folder of all data sets, with ``coco``, ``cityscapes`` or ``ADEChallengeData2016``
            in it; what is made is written there.
        workers: images converted at a time.

    Returns:
        what was done for every split that is there.

    Raises:
        FileNotFoundError: what is converted is not there.
        ImportError: Cityscapes needs ``cityscapesscripts``.
        ValueError: a file is not as it should be; names it, and the segment if it is one.
    """
    return [tally for step in PREPARATIONS[name] for tally in step(root, workers)]
