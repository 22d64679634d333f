"""The notebooks of examples/ run from top to bottom."""

import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_runs(notebook, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    folder = tmp_path / "examples"
    folder.mkdir()
    shutil.copy(notebook, folder)
    # Example images lie beside the folder of notebooks.
    (tmp_path / "docs").symlink_to(EXAMPLES.parent / "docs")
    content = nbformat.read(folder / notebook.name, as_version=4)
    nbclient.NotebookClient(
        content,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    # They are kept without outputs, so that a change of the text is all that a diff shows.
    kept = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") for cell in kept.cells)
