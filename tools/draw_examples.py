"""Draw docs/nuclei.jpg: images of docs/examples/nuclei beside what the model ``nuclei`` finds."""

from pathlib import Path

import cv2
import numpy as np

from proscale import Predictor
from proscale.predict.drawing import side_by_side
from proscale.predict.pictures import drawing_of
from proscale.predict.predictor import read_rgb

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = DOCS / "nuclei.jpg"
#: Of two kinds of microscopy, images of similar shapes.
IMAGES = ("1008.png", "1013.png", "1004.png")
HEIGHT = 256  # of all, pixels


def draw() -> np.ndarray:
    """The picture, ``(HEIGHT, W, 3)`` uint8 RGB."""
    predictor = Predictor("nuclei")
    parts = []
    for name in IMAGES:
        image = read_rgb(DOCS / "examples" / "nuclei" / name)
        prediction = predictor(image)
        for picture in (image, drawing_of(prediction, predictor.classes).over(image)):
            width = round(picture.shape[1] * HEIGHT / picture.shape[0])
            parts.append(cv2.resize(picture, (width, HEIGHT), interpolation=cv2.INTER_AREA))
    return side_by_side(parts, gap=4)


if __name__ == "__main__":
    cv2.imwrite(str(PICTURE), draw()[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    print(PICTURE)
