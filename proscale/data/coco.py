"""Names of COCO data sets beyond those that Detectron2 registers.

Detectron2 registers ``coco_2017_train_panoptic`` and ``coco_2017_val_panoptic`` below the folder
that ``$DETECTRON2_DATASETS`` names when it is imported. The names here share their files.
"""

from detectron2.data import MetadataCatalog

from proscale.data.registration import register

# Photographs of 640×480 pixels with few and large segments, things and stuff, and without crowds:
# small enough a task for a model to learn it by heart on a CPU.
_EIGHT_TRAIN_IMAGES = (9, 144, 194, 387, 443, 450, 508, 510)


def register_coco() -> None:
    """Register the names.

    - ``coco_2017_val_panoptic_with_sem_seg``: the validation split under the name that
      Mask2Former's configuration files test on. Semantic truth needs no files of its own: it
      follows from the panoptic PNG files.
    - ``coco_2017_train_panoptic_8``: eight images of the training split.
    """
    _register_as("coco_2017_val_panoptic_with_sem_seg", "coco_2017_val_panoptic")
    _register_as(
        "coco_2017_train_panoptic_8", "coco_2017_train_panoptic", image_ids=_EIGHT_TRAIN_IMAGES
    )


def _register_as(name: str, original: str, *, image_ids: tuple[int, ...] | None = None) -> None:
    metadata = MetadataCatalog.get(original).as_dict()
    del metadata["name"]
    register(name, metadata, image_ids=image_ids)
