"""Writing an evaluator's results as JSON."""

import json
import math
import os
from typing import Any

from detectron2.utils.file_io import PathManager


def write_results(output_dir: str, file_name: str, results: dict[str, Any]) -> None:
    """Write `results` as `<output_dir>/<file_name>`; figures that are nan become null.

    Raises:
        ValueError: a figure is infinite.
    """
    text = json.dumps(_without_nan(results), indent=2, allow_nan=False)
    PathManager.mkdirs(output_dir)
    with PathManager.open(os.path.join(output_dir, file_name), "w") as file:
        file.write(text + "\n")


def _without_nan(value: Any) -> Any:
    # JSON has no nan; readers in other languages stop at the one that Python would write.
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
