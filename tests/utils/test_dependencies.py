"""A missing, old or mismatched dependency is reported in one sentence with the command to run."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from proscale.utils import dependencies

ROOT = Path(__file__).parents[2]


def pretend(monkeypatch, *, missing=(), versions=None):
    """Make `missing` look absent, and the versions of the others those of `versions` or plenty."""
    versions = versions or {}

    def fake_version(name):
        if versions.get(name, "") is None:
            raise PackageNotFoundError(name)
        return versions.get(name, "999.0")

    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name in missing else name)
    monkeypatch.setattr(dependencies, "version", fake_version)


def test_this_environment_is_complete():
    dependencies.require()


@pytest.mark.parametrize("module", sorted(set(dependencies.MINIMUM) - {"detectron2"}))
def test_missing_package(monkeypatch, module):
    pretend(monkeypatch, missing=[module])
    with pytest.raises(ImportError, match=f"{module} is not installed; run `make env`"):
        dependencies.require()


def test_missing_detectron2_names_its_installer(monkeypatch):
    pretend(monkeypatch, missing=["detectron2"])
    with pytest.raises(ImportError, match=r"not installed; run `proscale setup`"):
        dependencies.require()


def test_several_problems_make_one_sentence(monkeypatch):
    pretend(monkeypatch, missing=["detectron2"], versions={"torch": "2.5.1+cu121"})
    with pytest.raises(ImportError) as caught:
        dependencies.require()
    message = str(caught.value)
    assert "detectron2 is not installed, torch 2.5.1+cu121 is older than 2.6; run `make" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("module", "found"),
    [("torch", "2.10.0"), ("torch", "2.6.0+cu124"), ("detectron2", "0.6"), ("detectron2", None)],
)
def test_accepted_versions(monkeypatch, module, found):
    """Numbers are compared as numbers, and a source tree without metadata is accepted."""
    pretend(monkeypatch, versions={module: found})
    dependencies.require()


def test_torchvision_of_another_torch(monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision")
    with pytest.raises(ImportError, match=r"do not fit together .*nms does not exist.*`make env`"):
        dependencies.require()


def test_importing_proscale_checks_first():
    program = "import sys; sys.modules['detectron2'] = None; import proscale"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "proscale setup" in done.stderr.splitlines()[-1]


def test_bounds_are_those_of_setup():
    declared = dict(re.findall(r'"([\w-]+)>=([\d.]+\d)', (ROOT / "setup.py").read_text()))
    bounds = {k: v for k, v in dependencies.MINIMUM.items() if v and k != "detectron2"}
    assert {name: declared[name] for name in bounds} == bounds
