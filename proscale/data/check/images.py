"""Opens image files as training does, and tells what is unusual about them."""

import hashlib
from dataclasses import dataclass, field

from detectron2.data.detection_utils import convert_PIL_to_numpy

from proscale.data.check.faults import Fault
from proscale.data.formats.image_file import exif_orientation, open_image, to_eight_bits
from proscale.errors import DataError

# EXIF orientations that swap height and width, and those that only mirror or turn upside down.
_TURNED = range(5, 9)
_ORIENTATIONS = range(2, 9)


@dataclass
class ImageFacts:
    """What is known of an image.

    Attributes:
        size: (height, width) as training reads it; None if it cannot be read.
        digest: of its pixels in RGB; the same picture has the same, whatever the file's format.
        faults: what is wrong with it.
    """

    size: tuple[int, int] | None = None
    digest: str | None = None
    faults: list[Fault] = field(default_factory=list)


def inspect_image(path: str, stated_size: tuple[int, int] | None) -> ImageFacts:
    """Decode an image; compare its (height, width) with that of the annotation, if there is one."""
    facts = ImageFacts()

    def found(kind: str, detail: str) -> None:
        facts.faults.append(Fault(kind, path, detail))

    try:
        with open_image(path) as image:
            orientation = exif_orientation(image)
            mode, has_transparency = image.mode, "transparency" in image.info
            width, height = image.size
            pixels = convert_PIL_to_numpy(to_eight_bits(image, path), "RGB")
    except FileNotFoundError:
        found("image-missing", "there is no such file")
        return facts
    except DataError as error:
        found("image-unreadable", str(error).removeprefix(f"{path}: "))
        return facts

    if orientation in _TURNED:
        height, width = width, height
    facts.size = (height, width)
    facts.digest = hashlib.blake2b(
        repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16
    ).hexdigest()
    if orientation in _ORIENTATIONS:
        found("exif-rotation", f"EXIF orientation {orientation}, read as {_named(facts.size)}")
    if stated_size is not None and stated_size != facts.size:
        turned = ", turned by its EXIF orientation" if orientation in _TURNED else ""
        found("image-size", f"stated {_named(stated_size)}, is {_named(facts.size)}{turned}")
    if mode.startswith("I"):
        found("image-depth", f"mode {mode}")
    elif mode == "CMYK":
        found("image-cmyk", f"mode {mode}")
    elif mode in ("1", "L", "LA"):
        found("image-greyscale", f"mode {mode}")
    if "A" in mode or has_transparency:
        found("image-alpha", f"mode {mode}")
    return facts


def _named(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} (height x width)"
