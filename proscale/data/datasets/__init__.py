"""Data sets by name, as they are registered with Detectron2's catalogs."""
