"""Data sets: what Detectron2's catalogs get, and how entries are loaded."""
