"""The folder of a training: one process writes to it, and nothing in it is overwritten unasked."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.utils import comm

from proscale.checkpoint.checkpointer import LAST_CHECKPOINT, checkpoints_in
from proscale.errors import ConfigError, printable
from proscale.utils.untrusted import os_error
from proscale.utils.whole_files import remove_partial

LOCK_FILE, METRICS_FILE = ".proscale.lock", "metrics.json"

logger = logging.getLogger(__name__)

# Descriptors of the files that this process has locked, by folder.
_held: dict[str, int] = {}


@contextmanager
def writing_to(folder: str) -> Iterator[None]:
    """Within it no other process enters it for ``folder``; of a job's processes, rank 0 does.

    The lock is the system's, on a file in the folder: it goes with the process, however that ends.
    Files that died processes left incomplete are removed. May be entered again within itself.

    Raises:
        ConfigError: another process is within it, or the folder cannot be written.
    """
    key = os.path.realpath(folder)
    if key in _held or not comm.is_main_process():
        yield
        return
    _held[key] = _lock(folder)
    try:
        for name in remove_partial(Path(folder), is_locked=True):
            logger.warning("Removed %s, which was never completed", name)
        yield
    finally:
        os.close(_held.pop(key))


def check_unused(folder: str) -> None:
    """Refuse to begin a training where there is one.

    Raises:
        ConfigError: ``folder`` has a checkpoint or metrics.
    """
    if used := _files_of_training(folder):
        raise ConfigError(
            f"OUTPUT_DIR is {folder}: it has {used[0].name} of a training: expected --resume to go "
            "on with that, another OUTPUT_DIR, or --overwrite to remove it"
        )


def remove_training(folder: str) -> None:
    """Remove the checkpoints and metrics of a training in ``folder``, which ``writing_to`` locks.

    The new one's would be mixed up with them. Results and pictures stay until they are replaced.
    """
    files = _files_of_training(folder)
    for path in files:
        # The metrics may be open already, to be appended to.
        if path.name == METRICS_FILE:
            os.truncate(path, 0)
        else:
            path.unlink()
    if files:
        names = ", ".join(path.name for path in files)
        logger.warning("Removed the earlier training in %s: %s", folder, names)


def _files_of_training(folder: str) -> list[Path]:
    metrics = Path(folder, METRICS_FILE)
    # An empty one is left by a training that failed before its first lines.
    has_metrics = metrics.is_file() and metrics.stat().st_size > 0
    last = Path(folder, LAST_CHECKPOINT)
    checkpoints = sorted(checkpoints_in(Path(folder)))
    return [last] * last.is_file() + checkpoints + [metrics] * has_metrics


def _lock(folder: str) -> int:
    """The descriptor of the locked file."""
    path = os.path.join(folder, LOCK_FILE)
    # A link could lead to a file that the note below would replace, and a pipe would block.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        os.makedirs(folder, exist_ok=True)
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise ConfigError(os_error(error, path, "written")) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = printable(os.read(descriptor, 200).decode(errors="replace").strip() or "unknown")
        os.close(descriptor)
        raise ConfigError(
            f"OUTPUT_DIR is {folder}: another process writes to it ({holder}): expected a folder "
            "of this run alone, or that process ended"
        ) from error
    except OSError as error:
        # Some network file systems have no locks.
        reason = os_error(error, path, "locked")
        logger.warning("%s; two trainings in this folder would not notice each other", reason)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(os_error(error, path, "written")) from error
    return descriptor


def _leave_locks_to_parent() -> None:
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


# A data loader's worker outlives a killed training for seconds, and would keep its lock.
os.register_at_fork(after_in_child=_leave_locks_to_parent)
