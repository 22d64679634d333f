"""Data sets: registration, loading, mappers, checks, preparation, and the demo's generator.

Importing this package registers the names of COCO, ADE20K, Cityscapes, Mapillary Vistas and JBD
that Detectron2 lacks or reads otherwise, of the nuclei, and the demo's. Their files are read when
they are used.
"""

from proscale.data.datasets.ade20k import register_ade20k
from proscale.data.datasets.cityscapes import register_cityscapes
from proscale.data.datasets.coco import register_coco
from proscale.data.datasets.jbd import register_jbd
from proscale.data.datasets.mapillary import register_mapillary
from proscale.data.datasets.nuclei import register_nuclei
from proscale.data.datasets.registration import register_coco_panoptic
from proscale.data.datasets.shapes import register_shapes
from proscale.data.mappers import MAPPERS, PoseMapper, build_mapper
from proscale.data.person_crop import PersonCrop
from proscale.data.training_loader import TrainingLoader, build_training_loader

__all__ = [
    "MAPPERS",
    "PersonCrop",
    "PoseMapper",
    "TrainingLoader",
    "build_mapper",
    "build_training_loader",
    "register_coco_panoptic",
]

register_coco()
register_ade20k()
register_cityscapes()
register_mapillary()
register_nuclei()
register_jbd()
register_shapes()
