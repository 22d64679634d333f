"""Install Detectron2 0.6 from its source distribution on PyPI, repaired for today's dependencies.

Detectron2 is not on PyPI under its own name; ``pb1-detectron2`` is the source distribution of its
v0.6 tag without the C++ sources, so a plain ``pip install`` of it fails to compile. Nothing that
this project uses needs those operators. This script therefore downloads that one file (pip refuses
any other content), applies the exact text replacements in ``REPAIRS``, and installs the result as
a pure-Python package named ``detectron2``. Every replacement must match as often as it says, or
nothing is installed.

Run it with the interpreter that is to have Detectron2, after torch, setuptools and wheel:

    .venv/bin/python tools/install_detectron2.py

A Detectron2 that is already installed, 0.6 or the main branch, is left as it is. Only an earlier
product of this script is replaced, when ``REPAIRS`` has changed since.
"""

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

SOURCE = "pb1-detectron2==0.6"
SOURCE_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"

PIP_BELOW = "26.3"
"""The first pip that refuses this file: an optional dependency in its metadata is a web address.

Nothing is ever fetched from that address: the file is downloaded without its dependencies.
"""

PROJECTS = {
    "projects/DeepLab/deeplab": "deeplab",
    "projects/PointRend/point_rend": "point_rend",
    "projects/Panoptic-DeepLab/panoptic_deeplab": "panoptic_deeplab",
}
"""Directory in the source distribution → its name below ``detectron2.projects``."""

REPAIR_LIST = "REPAIRS.txt"
"""Name, below the installed package, of the file that says what was changed and why."""

PYPROJECT = f"""\
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "detectron2"
version = "0.6"
description = "Detectron2 0.6 without compiled operators; {REPAIR_LIST} lists the changes"
requires-python = ">=3.10"
dependencies = [
    "cloudpickle", "fvcore>=0.1.5,<0.1.6", "hydra-core>=1.1", "iopath>=0.1.7,<0.1.10", "matplotlib",
    "numpy", "omegaconf>=2.1", "Pillow>=9.1", "pycocotools>=2.0.2", "tabulate", "tensorboard",
    "termcolor>=1.1", "torch", "torchvision", "tqdm>4.29.0", "yacs>=0.1.8",
]

[tool.setuptools]
license-files = ["LICENSE"]

[tool.setuptools.packages.find]
include = ["detectron2", "detectron2.*"]

[tool.setuptools.package-data]
detectron2 = ["{REPAIR_LIST}", "model_zoo/configs/**/*"]
"""


class InstallError(Exception):
    """The installation cannot go on; the message is one sentence for the user."""


@dataclass(frozen=True)
class Repair:
    """One exact text replacement: `old`, which `file` has `count` times, becomes `new`."""

    file: str
    old: str
    new: str
    why: str
    count: int = 1


def _without_operators(file: str) -> Repair:
    return Repair(
        file,
        "from detectron2 import _C\n",
        "try:\n    from detectron2 import _C\nexcept ImportError:\n    _C = None\n",
        "only rotated boxes and deformable convolution need the compiled operators",
    )


def _numpy_alias(file: str, old: str, count: int = 1) -> Repair:
    why = f"numpy 1.24 removed {old[:-1]}, an alias of the builtin"
    return Repair(file, old, old.removeprefix("np."), why, count)


REPAIRS = (
    _without_operators("detectron2/layers/deform_conv.py"),
    _without_operators("detectron2/layers/roi_align_rotated.py"),
    _without_operators("detectron2/layers/rotated_boxes.py"),
    Repair(
        "detectron2/evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        "\ntry:\n"
        "    from detectron2.evaluation.fast_eval_api import COCOeval_opt\n"
        "except ImportError:\n"
        "    COCOeval_opt = None\n\n",
        "the faster evaluation of boxes and masks is a compiled operator",
    ),
    Repair(
        "detectron2/evaluation/coco_evaluation.py",
        "        self._use_fast_impl = use_fast_impl\n",
        "        self._use_fast_impl = use_fast_impl and COCOeval_opt is not None\n",
        "without it pycocotools' own evaluation is used, and the log says so",
    ),
    Repair(
        "detectron2/evaluation/coco_evaluation.py",
        "(COCOeval_opt if use_fast_impl else COCOeval)",
        "(COCOeval_opt if use_fast_impl and COCOeval_opt is not None else COCOeval)",
        "this function's own default also asks for the compiled operator",
    ),
    Repair(
        "detectron2/export/__init__.py",
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:\n    pass\n",
        "it needs caffe2, which PyTorch no longer brings; counting FLOPs needs the rest only",
    ),
    Repair(
        "detectron2/model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "from importlib import resources\n",
        "setuptools no longer brings pkg_resources",
    ),
    Repair(
        "detectron2/model_zoo/model_zoo.py",
        "pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )",
        'str(resources.files("detectron2.model_zoo").joinpath("configs", config_path))',
        "setuptools no longer brings pkg_resources",
    ),
    Repair(
        "detectron2/data/transforms/transform.py",
        "Image.LINEAR",
        "Image.BILINEAR",
        "Pillow 10 removed Image.LINEAR, another name of Image.BILINEAR",
    ),
    Repair(
        "detectron2/engine/train_loop.py",
        "from torch.cuda.amp import GradScaler\n\n            grad_scaler = GradScaler()\n",
        'grad_scaler = torch.amp.GradScaler("cuda")\n',
        "PyTorch 2.4 deprecated torch.cuda.amp.GradScaler",
    ),
    Repair(
        "detectron2/engine/train_loop.py",
        "        from torch.cuda.amp import autocast\n",
        "",
        "PyTorch 2.4 deprecated torch.cuda.amp.autocast",
    ),
    Repair(
        "detectron2/engine/train_loop.py",
        "        with autocast():\n",
        '        with torch.autocast("cuda"):\n',
        "PyTorch 2.4 deprecated torch.cuda.amp.autocast",
    ),
    _numpy_alias("detectron2/data/build.py", "np.int)"),
    _numpy_alias("detectron2/data/build.py", "np.int\n"),
    _numpy_alias("detectron2/data/datasets/pascal_voc.py", "np.str)"),
    _numpy_alias("detectron2/evaluation/pascal_voc_evaluation.py", "np.bool)", 2),
    _numpy_alias("detectron2/evaluation/sem_seg_evaluation.py", "np.int)", 2),
    _numpy_alias("detectron2/evaluation/sem_seg_evaluation.py", "np.float)", 5),
    _numpy_alias("detectron2/structures/masks.py", "np.bool)", 3),
    _numpy_alias("detectron2/utils/video_visualizer.py", "np.bool)"),
    _numpy_alias("detectron2/utils/visualizer.py", "np.bool)", 3),
)


def describe(repairs: Sequence[Repair]) -> str:
    """The text of the installed list of changes, one paragraph per repair."""
    paragraphs = [f"Changes to {SOURCE} (sha256 {SOURCE_SHA256}), made at installation."]
    paragraphs += [f"{r.file}: {r.why}\n- {r.old!r}\n+ {r.new!r}" for r in repairs]
    return "\n\n".join(paragraphs) + "\n"


def apply_repairs(root: Path, repairs: Sequence[Repair]) -> None:
    """Repair the files below `root`, or raise `InstallError` naming the first repair that fails."""
    for repair in repairs:
        path = root / repair.file
        if not path.is_file():
            raise InstallError(f"cannot repair {repair.file} ({repair.why}): there is no such file")
        text = path.read_text(encoding="utf-8")
        found = text.count(repair.old)
        if found != repair.count:
            raise InstallError(
                f"cannot repair {repair.file} ({repair.why}): expected {repair.old!r} "
                f"{repair.count} time(s), found it {found} time(s)"
            )
        path.write_text(text.replace(repair.old, repair.new), encoding="utf-8")


def download(directory: Path, *, source: str = SOURCE, sha256: str = SOURCE_SHA256) -> Path:
    """Fetch the source distribution into `directory` and return its path.

    pip compares the hash before it runs anything of the file (its ``setup.py``, for the metadata).
    """
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{source} --hash=sha256:{sha256}\n", encoding="utf-8")
    _pip(
        *("download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"),
        *("--require-hashes", "--requirement", str(requirements), "--dest", str(directory)),
        doing=f"download {source}",
    )
    (archive,) = directory.glob("*.tar.gz")
    return archive


def unpack(archive: Path, directory: Path) -> Path:
    """Write the regular files of `archive` below `directory` and return the one folder at its top.

    Raises `InstallError` for a member that would land elsewhere. (`tarfile`'s own filters do not
    exist in the first releases of Python 3.10 and 3.11.)
    """
    with tarfile.open(archive) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise InstallError(f"{archive.name} contains the unsafe file name {member.name!r}")
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(tar.extractfile(member).read())
    (top,) = directory.iterdir()
    return top


def prepare(source: Path, tree: Path) -> None:
    """Fill `tree` with an installable pure-Python project made of the unpacked `source`."""
    shutil.copytree(source / "detectron2", tree / "detectron2")
    for folder, name in PROJECTS.items():
        shutil.copytree(source / folder, tree / "detectron2" / "projects" / name)
    shutil.copy(source / "LICENSE", tree / "LICENSE")
    apply_repairs(tree, REPAIRS)
    (tree / "detectron2" / REPAIR_LIST).write_text(describe(REPAIRS), encoding="utf-8")
    (tree / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")


def is_installed() -> bool:
    """Whether this interpreter has a Detectron2 to keep; `InstallError` when it is too old."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return False
    package = Path(spec.origin).parent
    try:
        version = metadata.version("detectron2")
    except metadata.PackageNotFoundError:  # a source tree on the path, used as it is
        version = "of unknown version"
    else:
        if _release(version) < (0, 6):
            raise InstallError(
                f"detectron2 {version} in {package} is older than 0.6; uninstall it first"
            )
    repair_list = package / REPAIR_LIST
    if repair_list.is_file() and repair_list.read_text(encoding="utf-8") != describe(REPAIRS):
        return False
    print(f"detectron2 {version} is already installed in {package}; it is left as it is")
    return True


def install() -> None:
    """Download, repair and install Detectron2 into the running interpreter's environment."""
    for package in ("torch", "setuptools", "wheel"):
        if importlib.util.find_spec(package) is None:
            raise InstallError(
                f"{package} must be installed before detectron2; `make env` does both"
            )
    if _release(metadata.version("pip")) >= _release(PIP_BELOW):
        raise InstallError(
            f"pip {metadata.version('pip')} refuses {SOURCE}; run "
            f"`{sys.executable} -m pip install 'pip<{PIP_BELOW}'` first"
        )
    with tempfile.TemporaryDirectory() as folder:
        downloads, unpacked, tree = (
            Path(folder, name) for name in ("downloads", "unpacked", "tree")
        )
        for directory in (downloads, unpacked, tree):
            directory.mkdir()
        prepare(unpack(download(downloads), unpacked), tree)
        _pip("install", "--no-build-isolation", str(tree), doing="install the repaired detectron2")


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(number) for number in version.split(".")[:2])


def _pip(*arguments: str, doing: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise InstallError(f"pip could not {doing}:\n{done.stdout.strip()}")


def main() -> int:
    """Install Detectron2 unless there is one; return the exit status."""
    try:
        if not is_installed():
            install()
            print("detectron2 0.6 is installed, with the changes listed in its REPAIRS.txt")
    except InstallError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
