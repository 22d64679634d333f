"""Data sets and what becomes of their entries: registration, mappers, and the demo's generator.

Importing this package registers COCO's additional names and the demo's with Detectron2.
"""

from proscale.data.coco import register_coco
from proscale.data.mappers import MAPPERS, build_mapper
from proscale.data.registration import register_coco_panoptic
from proscale.data.shapes import register_shapes

__all__ = ["MAPPERS", "build_mapper", "register_coco_panoptic"]

register_coco()
register_shapes()
