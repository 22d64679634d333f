"""PRO-SCALE on Detectron2: efficient universal image segmentation.

Importing this package checks what it depends on and registers its models and data sets with
Detectron2.
"""

import warnings

from proscale.utils.dependencies import require

require()

with warnings.catch_warnings():
    # fvcore and Detectron2 script functions on import; the advice against it is not for our users.
    warnings.filterwarnings("ignore", ".*torch.jit.script.* is deprecated", FutureWarning)
    import detectron2.modeling  # noqa: F401

from proscale import data, modeling
from proscale.config.schema import add_proscale_config
from proscale.engine.training import train
from proscale.predict import Predictor, load

__version__ = "0.2.0"

__all__ = ["Predictor", "add_proscale_config", "data", "load", "modeling", "train"]
