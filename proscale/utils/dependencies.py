"""Check, before anything else of proscale is imported, that the packages it needs are there.

Detectron2 cannot be declared to pip (it is not on PyPI under its own name), and a torchvision built
for another torch fails only when it is imported, with an obscure message. :func:`require` turns
both, and a missing or old package, into one sentence with the command to run.
"""

import re
import sys
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

MINIMUM = {
    "cv2": None,  # several distributions provide it
    "detectron2": "0.6",
    "fvcore": "0.1.5",
    "pycocotools": "2.0.6",
    "scipy": "1.10",
    "torch": "2.6",
    "torchvision": "0.21",
}
"""Module → the lowest version of the distribution of the same name (the bounds of setup.py)."""


def require() -> None:
    """Raise ``ImportError`` with reason and remedy, unless all of :data:`MINIMUM` is usable.

    Versions are read from the packages' metadata. Only torchvision is imported.
    """
    wrong = {}
    for module, minimum in MINIMUM.items():
        # A source tree on the path has no metadata, and is used as it is.
        with suppress(PackageNotFoundError):
            if find_spec(module) is None:
                wrong[module] = f"{module} is not installed"
            elif minimum and _release(found := version(module)) < _release(minimum):
                wrong[module] = f"{module} {found} is older than {minimum}"
    if not wrong:
        # A pair that does not fit fails when torchvision registers its operators.
        try:
            import_module("torchvision")
            return
        except (ImportError, RuntimeError) as error:
            pair = f"torchvision {version('torchvision')} and torch {version('torch')}"
            wrong = {"torchvision": f"{pair} do not fit together ({error})"}
    if set(wrong) == {"detectron2"}:
        remedy = f"`proscale setup`, or `{sys.executable} -m proscale_setup`"
    else:
        remedy = "`make env` in a checkout of proscale and use its .venv/bin/python"
    reason = f"proscale cannot be imported: {', '.join(wrong.values())}; run {remedy}"
    raise ImportError(reason, name="proscale")


def _release(text: str) -> tuple[int, ...]:
    # Suffixes such as rc1 and +cu121 make no difference.
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in numbers[0].split(".")) if numbers else ()
