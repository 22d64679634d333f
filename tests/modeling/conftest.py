"""Fixtures of the tests of models."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def plain():
    """The module `plain_postprocessing.py` beside this file, an oracle."""
    path = Path(__file__).parent / "plain_postprocessing.py"
    spec = importlib.util.spec_from_file_location("plain_postprocessing", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
