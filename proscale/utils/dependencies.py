"""Check, before anything else of proscale is imported, that the packages it needs are there.

Detectron2 cannot be declared to pip (it is not on PyPI under its own name), and a torchvision built
for another torch fails only when it is imported, with an obscure message. :func:`require` turns
both, and a missing or old package, into one sentence with the command to run.
"""

import re
import sys
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

    Versions are read from the packages' metadata; a package without any, such as a Detectron2
    source tree on the path, is used as it is. Only torchvision is imported.
    """
    wrong = {module: problem for module in MINIMUM if (problem := _problem(module))}
    if not wrong:
        # A pair that does not fit fails when torchvision registers its operators.
        try:
            import_module("torchvision")
        except (ImportError, RuntimeError) as error:
            pair = f"torchvision {version('torchvision')} and torch {version('torch')}"
            wrong = {"torchvision": f"{pair} do not fit together ({error})"}
    if not wrong:
        return
    if set(wrong) == {"detectron2"}:
        remedy = f"`{sys.executable} tools/install_detectron2.py` in a checkout of proscale"
    else:
        remedy = "`make env` in a checkout of proscale and use its .venv/bin/python"
    raise ImportError(f"proscale cannot be imported: {', '.join(wrong.values())}; run {remedy}")


def _problem(module: str) -> str | None:
    if find_spec(module) is None:
        return f"{module} is not installed"
    minimum = MINIMUM[module]
    # A source tree on the path has no metadata.
    try:
        found = version(module) if minimum else ""
    except PackageNotFoundError:
        return None
    if minimum and _release(found) < _release(minimum):
        return f"{module} {found} is older than {minimum}"
    return None


def _release(text: str) -> tuple[int, ...]:
    # Suffixes such as rc1 and +cu121 make no difference.
    numbers = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(number) for number in numbers[0].split(".")) if numbers else ()
