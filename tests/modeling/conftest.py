"""Fixtures of the tests of models."""

import pytest

from proscale.analysis import plain as plain_path


@pytest.fixture(scope="session")
def plain():
    """The straightforward computation of results, an oracle."""
    return plain_path
