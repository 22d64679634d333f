"""PRO-SCALE on Detectron2: efficient universal image segmentation.

Importing this package registers its models and data sets with Detectron2.
"""

from proscale import data, modeling
from proscale.config import add_proscale_config

__all__ = ["add_proscale_config", "data", "modeling"]
