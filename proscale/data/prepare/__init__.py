"""Makes of downloaded data sets the files that Detectron2's and Mask2Former's names read.

Every step can be interrupted and called again: what is complete is kept, what is missing is made.
"""

from proscale.data.prepare.steps import PREPARATIONS, prepare

__all__ = ["PREPARATIONS", "prepare"]
