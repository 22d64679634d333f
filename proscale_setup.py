"""``proscale setup``: install Detectron2, which this package needs and pip cannot find.

Detectron2 is not on PyPI under its own name. ``sal-detectron2`` 0.7.2 is upstream of April 2024
(a59f0563) with the projects DeepLab, PointRend and Panoptic-DeepLab and the configurations of the
model zoo; it differs in the version, a call of ``random.sample`` and a test helper. That one file
is downloaded by its hash, nothing of it is run, and a wheel named ``detectron2`` is made of it:
pure Python, without the operators compiled for one version of CUDA and Python, which nothing here
needs, and with the exact text replacements in ``REPAIRS``. Every replacement must match once, or
nothing is installed.

A Detectron2 that is already installed, 0.6 or the main branch, is left as it is. Only an earlier
product of this command is replaced, when its source or ``REPAIRS`` have changed since.

A module beside the package, because that cannot be imported before Detectron2 is there. It can also
be run by itself: python -m proscale_setup
"""

import argparse
import base64
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

VERSION = "0.7.2"
SOURCE = f"sal-detectron2=={VERSION}"
SOURCE_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"

# The wheel names Python 3.10 because of its compiled operators; the rest runs on later versions.
SOURCE_TAGS = ("--python-version=3.10", "--implementation=cp", "--abi=none", "--platform=any")

REPAIR_LIST = "REPAIRS.txt"
"""Name, below the installed package, of the file that lists the changes and their reasons."""

METADATA = f"""\
Metadata-Version: 2.1
Name: detectron2
Version: {VERSION}
Summary: Detectron2 without compiled operators; {REPAIR_LIST} lists the changes
License: Apache-2.0
Requires-Python: >=3.10
Requires-Dist: Pillow>=9.1
Requires-Dist: cloudpickle
Requires-Dist: fvcore>=0.1.5,<0.1.6
Requires-Dist: hydra-core>=1.1
Requires-Dist: iopath>=0.1.7,<0.1.10
Requires-Dist: matplotlib
Requires-Dist: numpy
Requires-Dist: omegaconf>=2.1,<2.4
Requires-Dist: packaging
Requires-Dist: pycocotools>=2.0.2
Requires-Dist: tabulate
Requires-Dist: tensorboard
Requires-Dist: termcolor>=1.1
Requires-Dist: torch
Requires-Dist: torchvision
Requires-Dist: tqdm>4.29.0
Requires-Dist: yacs>=0.1.8
"""

WHEEL = """\
Wheel-Version: 1.0
Generator: proscale
Root-Is-Purelib: true
Tag: py3-none-any
"""


class InstallError(Exception):
    """The installation cannot go on; the message is one sentence for the user."""


@dataclass(frozen=True)
class Repair:
    """One exact text replacement: `old`, which `file` has once, becomes `new`."""

    file: str
    old: str
    new: str
    why: str


REPAIRS = (
    Repair(
        "detectron2/layers/mask_ops.py",
        "np.array(mask, copy=False)",
        "np.asarray(mask)",
        "NumPy 2 refuses copy=False where a copy is needed",
    ),
    Repair(
        "detectron2/evaluation/sem_seg_evaluation.py",
        "np.array(Image.open(f), copy=copy, dtype=dtype)",
        "(np.array if copy else np.asarray)(Image.open(f), dtype=dtype)",
        "NumPy 2 refuses copy=False where a copy is needed",
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
        "detectron2/engine/train_loop.py",
        "from torch.cuda.amp import GradScaler\n\n            grad_scaler = GradScaler()\n",
        'grad_scaler = torch.amp.GradScaler("cuda")\n',
        "PyTorch 2.4 deprecated torch.cuda.amp.GradScaler",
    ),
    Repair(
        "detectron2/engine/train_loop.py",
        "        from torch.cuda.amp import autocast\n",
        "        from functools import partial\n\n"
        '        autocast = partial(torch.autocast, "cuda")\n',
        "PyTorch 2.4 deprecated torch.cuda.amp.autocast",
    ),
)


def describe(repairs: Sequence[Repair]) -> str:
    """The text of the installed list of changes, one paragraph per repair."""
    paragraphs = [f"Changes to {SOURCE} (sha256 {SOURCE_SHA256}), made at installation."]
    paragraphs += [f"{r.file}: {r.why}\n- {r.old!r}\n+ {r.new!r}" for r in repairs]
    return "\n\n".join(paragraphs) + "\n"


def apply_repairs(files: Mapping[str, bytes], repairs: Sequence[Repair]) -> dict[str, bytes]:
    """Return `files` with `repairs`, or raise `InstallError` naming the first that fails."""
    repaired = dict(files)
    for repair in repairs:
        if repair.file not in repaired:
            raise InstallError(f"cannot repair {repair.file} ({repair.why}): there is no such file")
        text = repaired[repair.file].decode()
        if (found := text.count(repair.old)) != 1:
            raise InstallError(
                f"cannot repair {repair.file} ({repair.why}): expected {repair.old!r} "
                f"once, found it {found} time(s)"
            )
        repaired[repair.file] = text.replace(repair.old, repair.new).encode()
    return repaired


def download(directory: Path, *, source: str = SOURCE, sha256: str = SOURCE_SHA256) -> Path:
    """Fetch the wheel into `directory` and return its path; pip compares the hash."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{source} --hash=sha256:{sha256}\n", encoding="utf-8")
    _pip(
        *("download", "--no-deps", "--only-binary", ":all:", *SOURCE_TAGS, "--require-hashes"),
        *("--requirement", str(requirements), "--dest", str(directory)),
        doing=f"download {source}",
    )
    (wheel,) = directory.glob("*.whl")
    return wheel


def read_package(wheel: Path) -> tuple[dict[str, bytes], bytes]:
    """Return the Python files and configurations of ``detectron2`` by name, and the licence."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".." not in name]
        kept = [n for n in names if n.startswith("detectron2/") and n.endswith((".py", ".yaml"))]
        licences = [name for name in names if name.endswith(".dist-info/LICENSE")]
        if not kept or len(licences) != 1:
            raise InstallError(f"{wheel.name} has no package detectron2 with a licence")
        return {name: archive.read(name) for name in kept}, archive.read(licences[0])


def write_wheel(source: Path, directory: Path) -> Path:
    """Write the repaired, pure-Python wheel made of the wheel `source`, and return its path."""
    package, licence = read_package(source)
    files = apply_repairs(package, REPAIRS)
    info = f"detectron2-{VERSION}.dist-info"
    files[f"detectron2/{REPAIR_LIST}"] = describe(REPAIRS).encode()
    files[f"{info}/LICENSE"] = licence
    files[f"{info}/METADATA"] = METADATA.encode()
    files[f"{info}/WHEEL"] = WHEEL.encode()
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]).encode()
    wheel = directory / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return wheel


def _digest(data: bytes) -> str:
    """SHA-256 in the form of a wheel's RECORD: base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


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
        if tuple(int(number) for number in version.split(".")[:2]) < (0, 6):
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
    if importlib.util.find_spec("torch") is None:
        raise InstallError(
            "torch is not installed: expected it, and what proscale depends on, before detectron2"
        )
    with tempfile.TemporaryDirectory() as folder:
        downloads, wheels = Path(folder, "downloads"), Path(folder, "wheels")
        downloads.mkdir()
        wheels.mkdir()
        wheel = write_wheel(download(downloads), wheels)
        # pip would keep an earlier product, which has the same version.
        _pip("uninstall", "--yes", "detectron2", doing="remove the earlier detectron2")
        _pip("install", str(wheel), doing="install the repaired detectron2")


def _pip(*arguments: str, doing: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise InstallError(f"pip could not {doing}:\n{done.stdout.strip()}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: what is installed is fixed by its hash."""


def run(_: argparse.Namespace) -> None:
    """Run the command."""
    sys.exit(main())


def main() -> int:
    """Install Detectron2 unless there is one; return the exit status."""
    try:
        if not is_installed():
            install()
            print(f"detectron2 {VERSION} is installed, with the changes listed in its REPAIRS.txt")
    except InstallError as error:
        print(f"proscale setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
