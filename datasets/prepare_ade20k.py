#!/usr/bin/env python3
"""ADE20K's semantic, panoptic and instance annotations: ``proscale prepare ade20k``."""

import sys

from proscale_cli import main

if __name__ == "__main__":
    main(["prepare", "ade20k", *sys.argv[1:]])
