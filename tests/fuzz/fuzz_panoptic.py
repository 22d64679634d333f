"""Fuzzes the readers of panoptic annotation files: a JSON file, and the PNG file that goes with it.

Whatever the bytes, reading may end with a DataError that names the file, and with nothing else.
Atheris (coverage-guided, https://github.com/google/atheris) is no dependency, and pytest does not
collect this file; run it by hand, from the root of the repository:

    pip install atheris
    python tests/fuzz/fuzz_panoptic.py -max_total_time=60 [FOLDER]

FOLDER keeps inputs that reached something new, for the next run. An input that crashes is written
to ``crash-…`` in the current folder; ``python tests/fuzz/fuzz_panoptic.py crash-…`` runs it again.
"""

import copy
import io
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import numpy as np

# Only what reads: instrumenting PyTorch would take minutes.
with atheris.instrument_imports(include=["proscale.data", "PIL", "json"]):
    from PIL import Image

    from proscale.data.datasets.registration import panoptic_metadata
    from proscale.data.formats.coco_format import (
        PANOPTIC_CATEGORIES,
        load_coco_panoptic,
        read_categories,
    )
    from proscale.data.formats.image_file import id_to_rgb, read_panoptic_png
    from proscale.data.formats.run_lengths import run_lengths
    from proscale.errors import DataError

CATEGORIES = [{"id": i, "name": str(i), "isthing": i % 2} for i in (1, 2)]
CONTENT = {
    "images": [{"id": 1, "file_name": "1.jpg", "height": 4, "width": 4}],
    "annotations": [
        {
            "image_id": 1,
            "file_name": "1.png",
            "segments_info": [
                {"id": 7, "category_id": 1, "iscrowd": 0, "area": 8, "bbox": [0, 0, 4, 2]}
            ],
        }
    ],
    "categories": CATEGORIES,
    "segmentation": {"size": [4, 4], "counts": "41;4"},
}


VALUES = (
    *(None, True, -1, 0, 1, 7, 2**31, 2**70, 0.5, 1e300, "", "1", "..", "../x", "/x", "a\0", "é/ü"),
    *([], {}, [0], [[0, 0, 3, 0, 3, 3]], [[1, 1, 1e9, 1, 1, 1e9]], [16], [-1, 17], "PPP", "o" * 20),
)
"""What may stand anywhere in a mutated annotation file."""


def mutate(data: bytes) -> bytes:
    """The sound annotation file with up to four of its values replaced or left out."""
    provider = atheris.FuzzedDataProvider(data)
    root = [copy.deepcopy(CONTENT)]
    for _ in range(provider.ConsumeIntInRange(1, 4)):
        node, key = root, 0
        while isinstance(node[key], (dict, list)) and node[key] and provider.ConsumeBool():
            node = node[key]
            keys = sorted(node) if isinstance(node, dict) else range(len(node))
            key = provider.PickValueInList(list(keys))
        if provider.ConsumeIntInRange(0, 7):
            node[key] = copy.deepcopy(provider.PickValueInList(list(VALUES)))
        else:
            del node[key]
        if not root:
            return b""
    return json.dumps(root[0]).encode()


def seeds() -> list[bytes]:
    """A sound file of each kind, to start from."""
    image = Image.fromarray(id_to_rgb(np.array([[7, 7, 0, 0]] * 4)))
    buffers = {name: io.BytesIO() for name in ("PNG", "GIF", "TIFF", "BMP", "JPEG")}
    for name, buffer in buffers.items():
        image.save(buffer, name)
    return [
        b"j" + json.dumps(CONTENT).encode(),
        b"m" + bytes(range(60)),
        *(b"p" + buffer.getvalue() for buffer in buffers.values()),
    ]


def read(data: bytes, folder: Path) -> None:
    """Read ``data`` as training does; its first byte tells text, mutations and images apart."""
    path = folder / ("panoptic.json" if data[:1] in (b"j", b"m") else "1.png")
    path.write_bytes(mutate(data[1:]) if data[:1] == b"m" else data[1:])
    try:
        if path.suffix == ".png":
            read_panoptic_png(path)
            return
        categories = read_categories(path, PANOPTIC_CATEGORIES)
        metadata = panoptic_metadata(
            categories, image_root=folder, panoptic_root=folder, panoptic_json=path
        )
        load_coco_panoptic(metadata)
        try:
            run_lengths(json.loads(path.read_bytes()).get("segmentation"), 4, 4)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
    except DataError as error:
        assert str(path) in str(error), f"{error} does not name {path}"


def main() -> None:
    logging.disable()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name, "seeds")
        corpus.mkdir()
        for index, seed in enumerate(seeds()):
            (corpus / str(index)).write_bytes(seed)
        atheris.Setup([*sys.argv, str(corpus)], lambda data: read(data, Path(name)))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
