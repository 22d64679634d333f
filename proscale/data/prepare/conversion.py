"""Converts many images in parallel, so that it can be interrupted at any time and resumed.

A file is written beside its place and moved there when it is complete. The parts of a common JSON
file are noted in a journal, a line for every image, until that file is written.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from proscale.data.formats.json_file import check_lists, read_json
from proscale.errors import MissingFileError
from proscale.utils.whole_files import remove_partial, whole_file

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Tally:
    """Result of a conversion to ``target``: images that were ``made``, and ``kept`` as complete."""

    target: Path
    made: int
    kept: int


class CocoPart(NamedTuple):
    """The part of one image in a COCO file: its element of ``images`` and its ``annotations``."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]


def find_sources(folders: Mapping[_Key, Path], pattern: str) -> dict[_Key, list[Path]]:
    """The files of every folder that match a pattern, ordered; folders without any are left out."""
    found = {key: sorted(folder.glob(pattern)) for key, folder in folders.items()}
    if not any(found.values()):
        where = " or ".join(map(str, folders.values()))
        raise MissingFileError(f"there are no {pattern} in {where}")
    return {key: files for key, files in found.items() if files}


def convert_images(
    files: Mapping[Path, Path], convert: Callable[[Path, Path], None], *, folder: Path, workers: int
) -> Tally:
    """Make those files that are not there.

    Args:
        files: the source of every target; targets are below ``folder``.
        convert: writes a target from its source, with ``write_png``.
        folder: named in the tally and the progress bar.
        workers: threads; reading, writing and most of NumPy release Python's lock.
    """
    # Each file is written whole, so one that is there is complete.
    missing = [target for target in files if not target.is_file()]
    for parent in {target.parent for target in missing}:
        parent.mkdir(parents=True, exist_ok=True)
        remove_partial(parent)
    _run(lambda target: convert(files[target], target), missing, folder.name, workers)
    return Tally(folder, made=len(missing), kept=len(files) - len(missing))


def convert_to_coco(
    keys: Sequence[str],
    convert: Callable[[str], CocoPart],
    *,
    target: Path,
    categories: Sequence[Mapping[str, Any]],
    output: Callable[[str], Path] | None = None,
    workers: int,
) -> Tally:
    """Make a COCO file, panoptic or of instances, that covers ``keys``.

    Args:
        keys: ids of the images.
        convert: makes an image's part; writes ``output(key)`` before it returns.
        target: the JSON file.
        categories: its ``categories``.
        output: the file that an image has besides; one that is missing is made again.
        workers: threads.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if output is not None and keys:
        folder = output(keys[0]).parent
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial(folder)
    journal = target.with_name(target.name + ".partial")
    # Of an earlier run: the finished file, and the journal of an interrupted one.
    known = {**_read_parts(target), **_read_journal(journal)}
    # A part counts if its image file is there, too.
    parts = {
        key: known[key]
        for key in keys
        if key in known and (output is None or output(key).is_file())
    }
    missing = [key for key in keys if key not in parts]
    if missing or not target.is_file():
        with journal.open("a", buffering=1) as file:
            file.write("\n")  # ends a line that was cut off

            def make(key: str) -> None:
                parts[key] = convert(key)
                file.write(json.dumps([key, *parts[key]]) + "\n")

            _run(make, missing, target.name, workers)
        _write_coco(target, [parts[key] for key in keys], categories)
        journal.unlink()
    return Tally(target, made=len(missing), kept=len(keys) - len(missing))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) uint8 so that the file is there completely or not at all."""
    with whole_file(path) as part, part.open("wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


def _read_journal(path: Path) -> dict[str, CocoPart]:
    """Parts of a COCO file that is not complete yet; a line that was cut off is skipped."""
    parts = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            with suppress(json.JSONDecodeError):
                key, image, annotations = json.loads(line)
                parts[key] = CocoPart(image, annotations)
    return parts


def _read_parts(target: Path) -> dict[str, CocoPart]:
    if not target.is_file():
        return {}
    content = read_json(target)
    check_lists(content, {"images": {"id": (str,)}, "annotations": {"image_id": (str,)}}, target)
    annotations = defaultdict(list)
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    return {i["id"]: CocoPart(i, annotations[i["id"]]) for i in content["images"]}


def _write_coco(
    target: Path, parts: Sequence[CocoPart], categories: Sequence[Mapping[str, Any]]
) -> None:
    annotations = [annotation for part in parts for annotation in part.annotations]
    # Instances are numbered through; panoptic annotations have no number of their own.
    numbered = [
        annotation if "segments_info" in annotation else {**annotation, "id": number}
        for number, annotation in enumerate(annotations, start=1)
    ]
    images = [part.image for part in parts]
    content = {"images": images, "annotations": numbered, "categories": list(categories)}
    with whole_file(target) as part:
        part.write_text(json.dumps(content))


def _run(
    work: Callable[[Any], None], items: Sequence[Hashable], description: str, workers: int
) -> None:
    """Call ``work`` for every item, and stop at the first error or interruption."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, item) for item in items]
        progress = tqdm(
            as_completed(futures), description, len(futures), unit="image", disable=None
        )
        try:
            for future in progress:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
