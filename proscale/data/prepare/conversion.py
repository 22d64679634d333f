"""Converts many images in parallel, so that it can be interrupted at any time and resumed.

A file is written beside its place and moved there when it is complete. The parts of a common JSON
file are noted in a journal, a line for every image, until that file is written.
"""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from proscale.data.formats.image_file import id_to_rgb
from proscale.data.formats.json_file import TEXT, Keys, check_lists, read_json
from proscale.data.formats.run_lengths import describe_segments
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


def coco_part(
    image: Mapping[str, Any],
    ids: np.ndarray,
    category_of: Callable[[int], int | None],
    png: Path | None,
) -> CocoPart:
    """The part of an image in a panoptic file, whose PNG is written, or in one of instances.

    Args:
        image: its ``id`` and ``file_name``.
        ids: segment ids ``(H, W)``.
        category_of: the category of a segment id; None leaves the segment out.
        png: None for instances.
    """
    annotations: list[dict[str, Any]] = []
    for id_, (area, bbox, code) in describe_segments(ids).items():
        category = category_of(id_)
        if category is None:
            continue
        segment = {"category_id": category, "iscrowd": 0, "area": area, "bbox": bbox}
        keys = {"id": id_} if png else {"image_id": image["id"], "segmentation": code}
        annotations.append(segment | keys)
    if png:
        # One annotation with all segments, where instances are an annotation each.
        write_png(png, id_to_rgb(ids))
        names = {"image_id": image["id"], "file_name": png.name}
        annotations = [names | {"segments_info": annotations}]
    return CocoPart({**image, "height": ids.shape[0], "width": ids.shape[1]}, annotations)


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
    """Make those files below ``folder`` that are not there, on so many threads.

    ``convert`` writes a target from its source in ``files``, with ``write_png``.
    """
    # Each file is written whole, so one that is there is complete.
    missing = [target for target in files if not target.is_file()]
    for parent in {target.parent for target in missing}:
        parent.mkdir(parents=True, exist_ok=True)
        remove_partial(parent)
    _run(lambda target: convert(files[target], target), missing, folder.name, workers)
    return Tally(folder, made=len(missing), kept=len(files) - len(missing))


def convert_to_coco(
    sources: Mapping[str, Path],
    convert: Callable[[str, Path, Path], CocoPart],
    *,
    target: Path,
    categories: Sequence[Mapping[str, Any]],
    png_suffix: str = "",
    png_folder: Path | None = None,
    workers: int,
) -> Tally:
    """Make a COCO file, panoptic or of instances.

    Args:
        sources: of the images, by id.
        convert: makes an image's part of its id, source and PNG file, which it writes first.
        target: the JSON file.
        categories: its ``categories``.
        png_suffix: of the PNG files, after the id; empty: there are none. Missing ones are made
            again.
        png_folder: where they are; None is the folder of the JSON file's name.
        workers: threads; reading, writing and most of NumPy release Python's lock.
    """
    folder = png_folder or target.with_suffix("")
    target.parent.mkdir(parents=True, exist_ok=True)
    if png_suffix:
        folder.mkdir(exist_ok=True)
        remove_partial(folder)
    pngs = {id_: folder / f"{id_}{png_suffix}" for id_ in sources}
    known: dict[str, CocoPart] = {}
    # Of an earlier run: the finished file, and the journal of an interrupted one.
    if target.is_file():
        content = read_json(target)
        needed: dict[str, Keys] = {"images": {"id": TEXT}, "annotations": {"image_id": TEXT}}
        check_lists(content, needed, target)
        known = {image["id"]: CocoPart(image, []) for image in content["images"]}
        for annotation in content["annotations"]:
            if annotation["image_id"] in known:
                known[annotation["image_id"]].annotations.append(annotation)
    journal = target.with_name(target.name + ".partial")
    for line in journal.read_text().splitlines() if journal.is_file() else ():
        with suppress(json.JSONDecodeError):  # a line that was cut off
            id_, *part = json.loads(line)
            known[id_] = CocoPart(*part)
    # A part counts if its PNG file is there, too.
    parts = {i: known[i] for i in sources if i in known and (not png_suffix or pngs[i].is_file())}
    missing = [id_ for id_ in sources if id_ not in parts]
    if missing or not target.is_file():
        with journal.open("a", buffering=1) as file:
            file.write("\n")  # ends a line that was cut off

            def make(id_: str) -> None:
                parts[id_] = convert(id_, sources[id_], pngs[id_])
                file.write(json.dumps([id_, *parts[id_]]) + "\n")

            _run(make, missing, target.name, workers)
        annotations = [a for id_ in sources for a in parts[id_].annotations]
        # Instances are numbered through; panoptic annotations have no number of their own.
        for number, annotation in enumerate(annotations, start=1):
            if "segments_info" not in annotation:
                annotation["id"] = number
        images = [parts[id_].image for id_ in sources]
        content = {"images": images, "annotations": annotations, "categories": list(categories)}
        with whole_file(target) as partial:
            partial.write_text(json.dumps(content))
        journal.unlink()
    return Tally(target, made=len(missing), kept=len(sources) - len(missing))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) uint8 so that the file is there completely or not at all."""
    with whole_file(path) as part, part.open("wb") as file:
        Image.fromarray(pixels).save(file, "PNG")


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
