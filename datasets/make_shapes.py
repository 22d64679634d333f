#!/usr/bin/env python3
"""Generate the demo's data set of shapes; see ``proscale/data/datasets/shapes.py``."""

import argparse
from pathlib import Path

from proscale.data.datasets.shapes import DEFAULT_ROOT, generate


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("root", type=Path, nargs="?", default=DEFAULT_ROOT, help="folder")
    parser.add_argument("--num-train", type=int, default=400, help="training images")
    parser.add_argument("--num-val", type=int, default=100, help="held-out images")
    parser.add_argument("--image-size", type=int, default=128, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    print(f"data set in {generate(**options)}")


if __name__ == "__main__":
    main()
