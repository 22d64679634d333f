#!/usr/bin/env python3
"""COCO's semantic and stuff labels: ``proscale prepare coco``."""

import sys

from proscale_cli import main

if __name__ == "__main__":
    main(["prepare", "coco", *sys.argv[1:]])
