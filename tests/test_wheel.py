"""The wheel: what it carries, and that it runs in a folder that is no checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import proscale

ROOT = Path(__file__).parents[1]
SOURCES = (
    *("LICENSE", "README.md", "pyproject.toml", "setup.py"),
    *("configs", "proscale", "proscale_cli.py", "proscale_completion.py", "proscale_setup.py"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the content of the wheel."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(source / "wheels"), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = (source / "wheels").glob("*.whl")
    assert wheel.name.startswith(f"proscale-{proscale.__version__}-py3-none-any")
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_files_are_those_of_the_checkout(installed):
    def files(folder: Path) -> set[str]:
        there = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
        return {str(path.relative_to(folder)) for path in there}

    assert files(installed / "proscale" / "configs") == files(ROOT / "configs")
    packaged = {f for f in files(installed / "proscale") if not f.startswith("configs/")}
    assert packaged == files(ROOT / "proscale")
    assert "py.typed" in packaged


def test_runs_in_an_empty_folder(installed, tmp_path):
    program = "import proscale_cli; proscale_cli.main()"
    words = "flops --size 64x96 --config-file coco/panoptic/proscale_r50_333"
    done = subprocess.run(
        [sys.executable, "-c", program, *words.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "proscale_r50_333" in done.stdout
