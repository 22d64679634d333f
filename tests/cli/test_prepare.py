"""The command: what it makes and says, and how it fails."""

import numpy as np
import pytest
from PIL import Image

from proscale_cli import main


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "ADEChallengeData2016/annotations/validation"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).save(folder / f"{name}.png")
    return tmp_path


def test_it_says_what_was_made_and_kept(root, capsys):
    for made, kept in ((2, 0), (0, 2)):
        main(["prepare", "ade20k-semantic", "--root", str(root), "--workers", "1"])
        line = f"annotations_detectron2/validation: {made} images converted, {kept} were there\n"
        assert capsys.readouterr().out.endswith(line)


def test_faults_are_one_line(root, capsys):
    with pytest.raises(SystemExit, match=r"proscale: prepare ade20k-panoptic: there is no .*\.png"):
        main(["prepare", "ade20k-panoptic", "--root", str(root), "--workers", "1"])
    with pytest.raises(SystemExit, match=r"^proscale: --workers is 0: expected 1 or more"):
        main(["prepare", "ade20k-semantic", "--root", str(root), "--workers", "0"])
    with pytest.raises(SystemExit):
        main(["prepare", "ade30k"])
    assert "coco-semantic" in capsys.readouterr().err
