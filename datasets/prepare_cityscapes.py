#!/usr/bin/env python3
"""Cityscapes' train ids and panoptic annotations: ``proscale prepare cityscapes``."""

import sys

from proscale_cli import main

if __name__ == "__main__":
    main(["prepare", "cityscapes", *sys.argv[1:]])
