"""Count the project's files and functions that a run enters: how much a reader has to follow.

    python tools/entered_files.py train      # train_net.py to the first loss
    python tools/entered_files.py predict    # one image, command line to files

A file counts when one of its functions is called by anything but an import. ``--list`` names the
files. The demo's images are generated if they are missing, and without the demo's weights random
ones are loaded.
"""

import argparse
import os
import runpy
import sys
import tempfile
import threading
from collections import defaultdict
from inspect import CO_NEWLOCALS, CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (ROOT / "train_net.py", ROOT / "proscale_cli.py")
CONFIG = "configs/demo/proscale_r18_111.yaml"
IS_FUNCTION = CO_OPTIMIZED | CO_NEWLOCALS  # neither a module's nor a class's body


class FirstLoss(BaseException):
    """The model has returned its losses. (No Exception: nothing on the way may catch it.)"""


class Recorder:
    """Notes the functions of the project that are called, in all threads.

    Attributes:
        functions: by file, relative to the checkout.
    """

    def __init__(self, *, until_loss: bool):
        self.functions: dict[str, set[CodeType]] = defaultdict(set)
        self.until_loss = until_loss

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & IS_FUNCTION == IS_FUNCTION:
            file = Path(code.co_filename)
            is_ours = file.is_relative_to(ROOT / "proscale") or file in SCRIPTS
            if is_ours and not _is_importing(frame):
                self.functions[str(file.relative_to(ROOT))].add(code)
        if event == "return" and self.until_loss and code.co_qualname == "MaskFormer.forward":
            raise FirstLoss


def prepare(folder: Path) -> tuple[Path, Path]:
    """An image and weights of the demo."""
    images, weights = ROOT / "output/shapes", ROOT / "output/demo/model_final.pth"
    if not images.is_dir():
        from proscale.data.datasets.shapes import generate

        generate(images)
    if not weights.is_file():
        import torch
        from detectron2.modeling import build_model

        from proscale.config import setup_cfg

        weights = folder / "random.pth"
        model = build_model(setup_cfg(CONFIG, ["MODEL.DEVICE", "cpu"]))
        torch.save({"model": model.state_dict()}, weights)
    return next((images / "val").glob("*.jpg")), weights


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def main() -> None:
    """Run the training or the prediction and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("run", choices=("train", "predict"))
    parser.add_argument("--list", action="store_true", help="name the files, too")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        image, weights = prepare(Path(folder))
        if options.run == "train":
            argv = ["train_net.py", "--config-file", CONFIG, "OUTPUT_DIR", folder]
            argv += ["DATALOADER.NUM_WORKERS", "0", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
        else:
            argv = ["proscale", "predict", "--config-file", CONFIG, "--output", f"{folder}/out"]
            argv += ["--weights", str(weights), str(image)]
        recorder = Recorder(until_loss=options.run == "train")
        sys.argv = argv
        threading.setprofile(recorder)
        sys.setprofile(recorder)
        try:
            if options.run == "train":
                runpy.run_path(str(ROOT / "train_net.py"), run_name="__main__")
            else:
                from proscale_cli import main as proscale

                proscale()
        except FirstLoss:
            pass
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
    if options.list:
        print(*sorted(recorder.functions), sep="\n")
    functions = sum(map(len, recorder.functions.values()))
    print(f"{options.run}: {len(recorder.functions)} files, {functions} functions")


if __name__ == "__main__":
    main()
