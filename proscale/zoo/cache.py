"""Files from the web, fetched once: with progress, resumed where they broke off, checked."""

import hashlib
import os
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse

from tqdm import tqdm

from proscale.errors import CheckpointError, ConfigError
from proscale.utils.untrusted import os_error

_BLOCK = 2**20
_TIMEOUT = 30  # seconds without a byte
_RANGE_IS_EMPTY = 416


def cache_folder() -> Path:
    """``$PROSCALE_CACHE``, else ``~/.cache/proscale``."""
    return Path(os.environ.get("PROSCALE_CACHE") or "~/.cache/proscale").expanduser()


def fetch(address: str, *, sha256: str = "") -> Path:
    """The local copy of a file on the web.

    Raises:
        ConfigError: it cannot be fetched; the message says which file to put where.
        CheckpointError: its digest is not ``sha256``.
    """
    parts = urlparse(address)
    place = cache_folder() / parts.netloc / parts.path.lstrip("/")
    if place.is_file():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_name(f"{place.name}.unfinished")
        _download(address, unfinished)
    # HTTPException, ValueError: what is no address of the web.
    except (OSError, HTTPException, ValueError) as error:
        reason = os_error(error, address, "fetched")
        raise ConfigError(f"{reason}: expected a network, or that file as {place}") from error
    if sha256 and (found := _digest(unfinished)) != sha256:
        unfinished.unlink()
        raise CheckpointError(f"{address}: its SHA-256 is {found}: expected {sha256}")
    # Whole, and only now under its name.
    unfinished.replace(place)
    return place


def _download(address: str, file: Path) -> None:
    """Append what is missing of ``address`` to ``file``."""
    there = file.stat().st_size if file.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except HTTPError as error:
        # All of it is there, or it has become shorter: from the beginning.
        if error.code != _RANGE_IS_EMPTY:
            raise
        file.unlink()
        there, response = 0, urllib.request.urlopen(address, timeout=_TIMEOUT)
    with response:
        # A server may send all, although a part was asked for.
        resumes = response.status == 206
        length = int(response.headers.get("Content-Length") or 0)
        total = length + there * resumes
        with (
            file.open("ab" if resumes else "wb") as opened,
            tqdm(
                total=total or None,
                initial=there * resumes,
                desc=file.stem,
                unit="B",
                unit_scale=True,
                file=sys.stderr,
                disable=None,  # where no one watches
            ) as bar,
        ):
            while block := response.read(_BLOCK):
                opened.write(block)
                bar.update(len(block))
    # A connection that breaks off may end like one that is closed.
    if total and file.stat().st_size != total:
        raise OSError(f"{file.stat().st_size} of {total} bytes came; the next try goes on there")


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
