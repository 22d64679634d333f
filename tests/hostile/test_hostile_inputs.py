"""Hostile inputs are refused in one line or accepted rightly; see benchmarks/hostile_inputs.py."""

import subprocess
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.hostile import material
from tests.hostile.cases import HELD, ROOT, Case, Place, all_cases, attempt

FAMILIES = all_cases()
LIGHT = [
    pytest.param(case, id=f"{family}, {case.name}")
    for family, cases in FAMILIES.items()
    for case in cases
    if case.is_light
]


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    catalogs = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    material.make(folder)
    for catalog, content in catalogs:
        catalog.data = content
    return folder


@pytest.mark.parametrize("case", LIGHT)
def test_input_is_refused_in_one_line_or_accepted_rightly(
    case: Case, sound_files, tmp_path, restored_catalogs
):
    outcome = attempt(case, Place(tmp_path, sound_files))
    assert outcome.verdict == HELD, outcome.text


def test_there_are_enough_cases():
    assert len(FAMILIES) == 12
    assert sum(map(len, FAMILIES.values())) >= 400
    for cases in FAMILIES.values():
        assert len({case.name for case in cases}) == len(cases)


@pytest.mark.slow
def test_table_of_all_inputs_has_only_zeros():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "benchmarks/hostile_inputs.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
