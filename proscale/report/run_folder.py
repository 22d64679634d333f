"""What a training leaves in its folder, and what is missing there."""

from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode

from proscale.checkpoint import LAST_CHECKPOINT
from proscale.config import setup_cfg
from proscale.errors import ConfigError, RunFolderError
from proscale.report.evaluations import Evaluation, read_evaluations
from proscale.report.log_file import LogFacts, read_log
from proscale.report.metrics_file import Points, read_metrics

CONFIG_FILE, METRICS_FILE, LOG_FILE = "config.yaml", "metrics.json", "log.txt"
"""As Detectron2 names them."""

_LACKS = {
    CONFIG_FILE: "no configuration, no cost and no pictures",
    METRICS_FILE: "no curves",
    LOG_FILE: "no versions",
}
_NUMBERED = 5  # damaged lines that are told


@dataclass(frozen=True)
class Run:
    """A folder of a training or evaluation.

    Attributes:
        path: of the folder.
        cfg: the configuration, on a device that this machine has; None if there is none that can
            be used.
        curves: logged metrics by name.
        evaluations: latest results.
        log: what the log tells.
        weights: the latest checkpoint, None if there is none.
        missing: a sentence for everything that is not there or damaged.
    """

    path: Path
    cfg: CfgNode | None
    curves: dict[str, Points]
    evaluations: list[Evaluation]
    log: LogFacts
    weights: Path | None
    missing: list[str]

    @property
    def steps(self) -> int:
        """Iterations that are done as far as they are logged; 0 for an evaluation alone."""
        points = self.curves.get("total_loss", [])
        return points[-1][0] + 1 if points else 0


def read_run(path: Path) -> Run:
    """Read a folder.

    Raises:
        RunFolderError: there is no such folder, or nothing of a training or evaluation in it.
    """
    evaluations, missing = read_evaluations(path)
    names = (CONFIG_FILE, METRICS_FILE, LOG_FILE)
    there = [name for name in names if (path / name).is_file()]
    if not there and not evaluations:
        fault = "has none of them" if path.is_dir() else "is no folder"
        raise RunFolderError(
            f"RUN_DIR is {path}: expected the OUTPUT_DIR of a training or evaluation, with "
            f"{', '.join(names)} or results.json; it {fault}"
        )
    missing += [f"There is no {name}: {_LACKS[name]}." for name in names if name not in there]
    cfg = _configuration(path / CONFIG_FILE, missing) if CONFIG_FILE in there else None
    curves = _curves(path / METRICS_FILE, missing) if METRICS_FILE in there else {}
    if not evaluations:
        missing.append("There are no results of an evaluation yet.")
    weights = _weights(path, cfg, has_trained=bool(curves.get("total_loss")))
    log = _log(path / LOG_FILE, missing) if LOG_FILE in there else LogFacts()
    return Run(path, cfg, curves, evaluations, log, weights, missing)


def _configuration(path: Path, missing: list[str]) -> CfgNode | None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return setup_cfg(str(path), ["MODEL.DEVICE", device])
    except ConfigError as error:
        missing.append(f"The configuration cannot be used: {error}.")
        return None


def _curves(path: Path, missing: list[str]) -> dict[str, Points]:
    try:
        curves, damaged = read_metrics(path)
    except OSError as error:
        missing.append(f"{path.name} cannot be read: {error.strerror}.")
        return {}
    if damaged:
        told = ", ".join(map(str, damaged[:_NUMBERED])) + ", …" * (len(damaged) > _NUMBERED)
        missing.append(f"{len(damaged)} damaged lines of {path.name} are left out: {told}.")
    if not curves:
        missing.append(f"{path.name} has no curves yet.")
    return curves


def _log(path: Path, missing: list[str]) -> LogFacts:
    try:
        return read_log(path)
    except OSError as error:
        missing.append(f"{path.name} cannot be read: {error.strerror}.")
        return LogFacts()


def _weights(path: Path, cfg: CfgNode | None, *, has_trained: bool) -> Path | None:
    """The checkpoint in the folder; for an evaluation alone the one that it was of."""
    pointer = path / LAST_CHECKPOINT
    name = pointer.read_text("utf-8", "replace").strip() if pointer.is_file() else ""
    if name:
        found = path / Path(name).name
    elif cfg is not None and not has_trained and cfg.MODEL.WEIGHTS:
        found = Path(cfg.MODEL.WEIGHTS)
    else:
        return None
    return found if found.is_file() else None
