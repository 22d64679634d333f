"""Weights: files that run code, swell, are damaged, of another kind or of another model."""

import io
import json
import logging
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from proscale.checkpoint import Checkpointer
from proscale.checkpoint.files import read_checkpoint
from proscale.config import setup_cfg
from proscale.predict import Predictor
from tests.hostile.cases import Case, Place, command, train


class Call:
    """Pickled, it is the call of a function when it is read."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def _raw_pickle(name: str, *arguments: str) -> bytes:
    """A pickle of protocol 0 that calls ``module name`` with texts."""
    module, _, function = name.rpartition(".")
    texts = "".join(f"V{argument}\n" for argument in arguments)
    return f"c{module}\n{function}\n({texts}tR.".encode()


def _shell(place: Place) -> str:
    return f"touch {place.canary}"


def _python(place: Place) -> str:
    return f"open({str(place.canary)!r}, 'w')"


# Functions by which a pickle runs code, and their argument.
_CALLS: dict[str, Callable[[Place], str]] = {
    "os.system": _shell,
    "posix.system": _shell,
    "os.popen": _shell,
    "subprocess.getoutput": _shell,
    "builtins.eval": _python,
    "builtins.exec": _python,
    "__builtin__.eval": _python,
    "builtins.__import__": lambda place: "antigravity",
    "importlib.import_module": lambda place: "antigravity",
    "timeit.timeit": _python,
    "pydoc.locate": lambda place: "os.system",
    "code.interact": _python,
    "pathlib.Path.touch": lambda place: str(place.canary),
    "numpy.testing._private.utils.runstring": _python,
    "numpy.f2py.crackfortran.myeval": _python,
    "torch.load": lambda place: str(place.material / "weights.pth"),
    "torch.hub.load": _shell,
    "torch.jit._load": _shell,
    "numpy.load": lambda place: str(place.outside / "secret.txt"),
    "torch.storage._load_from_bytes": lambda place: "nothing",
    "urllib.request.urlopen": lambda place: "http://127.0.0.1:9/",
    "webbrowser.open": lambda place: "http://127.0.0.1:9/",
    "builtins.open": lambda place: str(place.outside / "secret.txt"),
    "shutil.rmtree": lambda place: str(place.outside),
    "os.unlink": lambda place: str(place.outside / "secret.txt"),
}


def _write_raw(content: bytes, path: Path) -> None:
    """A pickle by itself, or as the ``data.pkl`` of PyTorch's archive."""
    if path.suffix == ".pkl":
        path.write_bytes(content)
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")


def _calling(name: str, argument: Callable[[Place], str], suffix: str) -> Case:
    def run(place: Place) -> object:
        path = place / f"weights{suffix}"
        _write_raw(_raw_pickle(name, argument(place)), path)
        return read_checkpoint(path)

    return Case(f"calls {name}, {suffix}", run, ("weights",))


# Objects that hold a call of os.system, pickled or saved by PyTorch.
_HIDDEN: dict[str, Callable[[Call], Any]] = {
    "among the tensors": lambda call: {"model": {"a": torch.ones(2), "b": call}},
    "beside the model": lambda call: {"model": {"backbone.a": torch.ones(2)}, "trainer": call},
    "as a key": lambda call: {"model": {(1, call): torch.ones(2)}},
    "in an ordered dictionary": lambda call: OrderedDict(a=torch.ones(2), b=call),
    "in a list of a list": lambda call: {"model": {"a": [[[call]]]}},
    "in an array of objects": lambda call: {"model": {"a": np.array([call], dtype=object)}},
    "in another pickle": lambda call: {
        "model": Call(torch.storage._load_from_bytes, _saved({"a": call}))
    },
}


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


_SAVERS: dict[str, Callable[[Any, Path], object]] = {
    ".pkl": lambda content, path: path.write_bytes(pickle.dumps(content)),
    ".pth": torch.save,
    ".pt": lambda content, path: path.write_bytes(_saved(content)),
    ".bin": lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
}


def _hiding(name: str, hide: Callable[[Call], Any], suffix: str) -> Case:
    def run(place: Place) -> object:
        path = place / f"weights{suffix}"
        _SAVERS[suffix](hide(Call(os.system, _shell(place))), path)
        return read_checkpoint(path)

    return Case(f"a call {name}, {suffix}", run, ("weights",))


# How a sound file becomes a checkpoint of no use; most keep the suffix .pth.
def _model(place: Place) -> dict[str, torch.Tensor]:
    return torch.load(place.material / "weights.pth", weights_only=True)["model"]


def _with(place: Place, change: Callable[[dict[str, Any]], object]) -> None:
    state = _model(place)
    changed = change(state)
    torch.save({"model": changed if isinstance(changed, dict) else state}, place / "weights.pth")


def _first(change: Callable[[torch.Tensor], Any]) -> Callable[[Place], None]:
    """The first weight of the model replaced."""

    def write(place: Place) -> None:
        def replace(state: dict[str, Any]) -> None:
            name = next(name for name in state if name.endswith("weight"))
            state[name] = change(state[name])

        _with(place, replace)

    return write


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Place], object]:
    return lambda place: place.write(
        "weights.pth", change((place.material / "weights.pth").read_bytes())
    )


def _text(text: str | bytes) -> Callable[[Place], object]:
    return lambda place: place.write("weights.pth", text)


def _members(change: Callable[[str, bytes], tuple[str, bytes]], **options: Any) -> Callable:
    """The archive written anew with other members."""

    def write(place: Place) -> None:
        source = zipfile.ZipFile(place.material / "weights.pth")
        with zipfile.ZipFile(place / "weights.pth", "w", **options) as archive:
            for name in source.namelist():
                archive.writestr(*change(name, source.read(name)))

    return write


def _swollen(place: Place) -> None:
    """400 MB of zeros, deflated to less than half a megabyte."""
    _with(place, lambda state: {**state, "x": torch.zeros(10**8)})
    packed = place / "packed.pth"
    with (
        zipfile.ZipFile(place / "weights.pth") as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    packed.rename(place / "weights.pth")


def _tar(place: Place) -> None:
    """PyTorch's oldest format, with a name that leads out and a pickle that runs code."""
    with tarfile.open(place / "weights.pth", "w") as archive:
        for name, content in {
            "../../outside/secret.txt": b"overwritten",
            "storages": pickle.dumps(1),
            "tensors": pickle.dumps(Call(os.system, _shell(place))),
            "pickle": pickle.dumps(Call(os.system, _shell(place))),
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def _instead(make: Callable[[Path], object]) -> Callable[[Place], object]:
    return lambda place: make(place / "weights.pth")


def _sparse_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**36)


_GIT_LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
_HTML = "<!DOCTYPE html><html><head><title>404</title></head></html>"

# Files by name, which Predictor is to refuse with these words.
_FILES: dict[str, tuple[Callable[[Place], object], tuple[str, ...]]] = {
    "empty": (_text(""), ()),
    "a web page": (_text(_HTML), ()),
    "a pointer of Git LFS": (_text(_GIT_LFS), ()),
    "JSON": (_text("{}"), ()),
    "zeros": (_text(bytes(4096)), ()),
    "bytes in a row": (_text(bytes(range(256))), ()),
    "a pickle of protocol 9": (_text(b"\x80\x09."), ()),
    "a pickle without end": (_text(b"\x80\x02" + b"]" * 10**6), ()),
    "a pickle nested absurdly": (_text(b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b"."), ()),
    "a pickle that claims 2**62 bytes": (
        _text(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x."),
        (),
    ),
    "a pickle that asks for memo 2**31": (_text(b"\x80\x02Nr\xff\xff\xff\x7f."), ()),
    "a pickle that multiplies": (
        _text(b"\x80\x02]" + b"(" + b"".join(b"2" for _ in range(3)) + b"l."),
        (),
    ),
    "the magic number alone": (_text(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)), ()),
    "cut short": (_bytes(lambda data: data[: len(data) // 2]), ()),
    "cut short by a byte": (_bytes(lambda data: data[:-1]), ()),
    "without its beginning": (_bytes(lambda data: data[100:]), ()),
    "a bit of a tensor wrong": (
        _bytes(lambda data: data[:9000] + bytes([data[9000] ^ 1]) + data[9001:]),
        ("damaged",),
    ),
    "the first bytes wrong": (_bytes(lambda data: b"XXXX" + data[4:]), ()),
    "deflated to a thousandth": (_swollen, ()),
    "members that lead out": (
        _members(lambda name, data: (f"../../outside/{Path(name).name}", data)),
        (),
    ),
    "members at absolute paths": (_members(lambda name, data: (f"/tmp/x/{name}", data)), ()),
    "no pickle in the archive": (_members(lambda name, data: (name.replace(".pkl", ""), data)), ()),
    "tensors of no bytes": (
        _members(lambda name, data: (name, b"" if "/data/" in name else data)),
        (),
    ),
    "of PyTorch's oldest format": (_tar, ()),
    "a tensor alone": (lambda place: torch.save(torch.ones(3), place / "weights.pth"), ()),
    "a list": (lambda place: torch.save([torch.ones(3)], place / "weights.pth"), ()),
    "no tensors": (lambda place: torch.save({"model": {}}, place / "weights.pth"), ()),
    "a model that is a number": (lambda place: torch.save({"model": 3}, place / "weights.pth"), ()),
    "names that are numbers": (
        lambda place: torch.save({"model": {1: torch.ones(2)}}, place / "weights.pth"),
        (),
    ),
    "another architecture": (
        lambda place: _with(place, lambda state: {"encoder.layer.0.weight": torch.ones(2)}),
        (),
    ),
    "another width": (_first(lambda tensor: torch.cat([tensor, tensor])), ("do not fit",)),
    "a scalar": (_first(lambda tensor: torch.tensor(1.0)), ("do not fit",)),
    "no elements": (_first(lambda tensor: tensor[:0]), ("do not fit",)),
    "NaN": (_first(lambda tensor: tensor.fill_(float("nan"))), ("finite",)),
    "infinity": (_first(lambda tensor: tensor.fill_(float("inf"))), ("finite",)),
    "complex numbers": (_first(lambda tensor: tensor.to(torch.complex64)), ()),
    "whole numbers": (_first(lambda tensor: tensor.to(torch.int8)), ()),
    "truths": (_first(lambda tensor: tensor > 0), ()),
    "sparse": (_first(lambda tensor: tensor.flatten(1).to_sparse()), ()),
    "sparse rows": (_first(lambda tensor: tensor.flatten(1).to_sparse_csr()), ()),
    "quantised": (
        _first(lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
        (),
    ),
    "on the meta device": (_first(lambda tensor: tensor.to("meta")), ()),
    "all on the meta device": (
        lambda place: _with(place, lambda state: {k: v.to("meta") for k, v in state.items()}),
        (),
    ),
    "a view of 10**10 elements": (_first(lambda tensor: torch.zeros(1).expand(10**5, 10**5)), ()),
    "a text for a tensor": (_first(lambda tensor: "tensor"), ()),
    "a name of a megabyte": (
        lambda place: _with(place, lambda state: {"backbone." + "a" * 2**20: torch.ones(1)}),
        (),
    ),
    "a name with escapes": (
        lambda place: _with(place, lambda state: {"backbone.\x1b[31m\n\0": torch.ones(1)}),
        (),
    ),
    "a pipe": (_instead(os.mkfifo), ()),
    "a folder": (_instead(Path.mkdir), ()),
    "an endless device": (_instead(lambda path: path.symlink_to("/dev/zero")), ()),
    "64 GiB of zeros": (_instead(_sparse_file), ()),
    "a link to itself": (_instead(lambda path: path.symlink_to(path)), ()),
    "not there": (lambda place: None, ()),
}


def _file(name: str, write: Callable[[Place], object], words: tuple[str, ...]) -> Case:
    def run(place: Place) -> object:
        write(place)
        cfg = setup_cfg(str(place.material / "absolute.yaml"))
        return Predictor(cfg, str(place / "weights.pth"))

    return Case(f"weights: {name}", run, ("weights.pth", *words), is_light=False)


class TinyModel(nn.Module):
    """A backbone of two layers and a head."""

    def __init__(self, width=4, name="backbone"):
        super().__init__()
        self.add_module(name, nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)))
        self.sem_seg_head = nn.Conv2d(width, 2, 1)


def _save(path, model):
    torch.save({"model": model.state_dict()}, path)


def _with_value(path, name, value):
    model = TinyModel()
    model.state_dict()[name].view(-1)[0] = value
    _save(path, model)


# What is written to weights.pth, and what is told.
_LOADED: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "empty": (lambda p: p.write_bytes(b""), ("it is no checkpoint",)),
    "text": (lambda p: p.write_text("git-lfs pointer"), ("it is no checkpoint",)),
    "truncated": (
        lambda p: (_save(p, TinyModel()), p.write_bytes(p.read_bytes()[:900])),
        ("weights.pth",),
    ),
    "a tensor alone": (lambda p: torch.save(torch.ones(3), p), ("expected a dictionary",)),
    "missing": (lambda p: None, ("weights.pth",)),
    "another architecture": (
        lambda p: torch.save({"model": {"encoder.layer.0.weight": torch.ones(2)}}, p),
        ("no tensor in it fits the model", "backbone.0.weight", "encoder.layer.0.weight"),
    ),
    "another width": (
        lambda p: _save(p, TinyModel(width=8)),
        ("the weights do not fit the model", "backbone.0.weight", "(8, 3, 1, 1)", "(4, 3, 1, 1)"),
    ),
    "a part of the model missing": (
        lambda p: _save(p, nn.ModuleDict({"backbone": TinyModel().backbone})),
        ("sem_seg_head",),
    ),
    "parts that the model lacks": (
        lambda p: torch.save(
            {"model": {**TinyModel().state_dict(), "criterion.x": torch.ones(1)}}, p
        ),
        ("criterion.x",),
    ),
    "NaN in a weight": (
        lambda p: _with_value(p, "backbone.0.weight", float("nan")),
        ("1 of 9 tensors have values that are no finite numbers: backbone.0.weight",),
    ),
    "infinity in a running variance": (
        lambda p: _with_value(p, "backbone.1.running_var", float("inf")),
        ("no finite numbers: backbone.1.running_var",),
    ),
}


# Told by a warning.
_WARNED = ("a part of the model missing", "parts that the model lacks")


def _loaded(name: str, write: Callable[[Path], object], words: tuple[str, ...]) -> Case:
    def run(place: Place) -> object:
        path = place / "weights.pth"
        write(path)
        checkpointer = Checkpointer(TinyModel(), str(place.folder), fine_tune=False)
        checkpointer.logger = logging.getLogger("proscale.test")
        return checkpointer.resume_or_load(str(path), resume=False)

    return Case(f"loaded: {name}", run, words, is_refused=name not in _WARNED)


def _safetensors(content: bytes) -> Callable[[Place], object]:
    return lambda place: read_checkpoint(place.write("weights.safetensors", content))


def _header(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(dtype: str, shape: list[int], offsets: list[int]) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


_SAFETENSORS = {
    "empty": b"",
    "a header of 2**62 bytes": _header({}, length=2**62),
    "a header that is no JSON": _header(b"{"),
    "a header that is a list": _header([]),
    "a header nested absurdly": _header(b"[" * 10**5),
    "offsets beyond the end": _header(_entry("F32", [10**6], [0, 4 * 10**6])),
    "offsets backwards": _header(_entry("F32", [1], [4, 0]), bytes(4)),
    "a shape that does not fit": _header(_entry("F32", [3], [0, 4]), bytes(4)),
    "a shape that overflows": _header(_entry("F32", [2**62, 4], [0, 4]), bytes(4)),
    "an unknown type": _header(_entry("X99", [1], [0, 4]), bytes(4)),
    "tensors that overlap": _header(
        {k: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for k in "ab"}, bytes(4)
    ),
    "bytes left over": _header(_entry("F32", [1], [0, 4]), bytes(9)),
    "a pickle": pickle.dumps({"a": 1}),
}


def _convert(*words: str, write: Callable[[Place], object]) -> Callable[[Place], object]:
    def run(place: Place) -> object:
        write(place)
        return command("convert", *words)(place)

    return run


def _trusting_config(place: Place) -> None:
    """A configuration beside its weights that asks to trust them."""
    shutil.copytree(place.material / "run", place / "run")
    config = place / "run" / "config.yaml"
    config.write_text(config.read_text().replace("TRUST_WEIGHTS: false", "TRUST_WEIGHTS: true"))
    text = config.read_text()
    if "TRUST_WEIGHTS" not in text:
        config.write_text(text.replace("MODEL:\n", "MODEL:\n  TRUST_WEIGHTS: true\n", 1))
    torch.save({"model": Call(os.system, _shell(place))}, place / "run" / "model_final.pth")


def _predict_trusting(place: Place) -> object:
    _trusting_config(place)
    place.copy("image.png")
    return command(
        *("predict", "--config-file", "run/config.yaml", "--weights", "run/model_final.pth"),
        *("--output", "out", "image.png"),
    )(place)


def _train_trusting(*words: str) -> Callable[[Place], object]:
    def run(place: Place) -> object:
        _trusting_config(place)
        weights = ("MODEL.WEIGHTS", str(place / "run" / "model_final.pth"))
        return train("--config-file", "run/config.yaml", *words, *weights, "OUTPUT_DIR", "run")

    return run


_SOUND: dict[str, tuple[str, Callable[[dict[str, Any], Path], object]]] = {
    "PyTorch": (".pth", torch.save),
    "PyTorch before archives": (".pt", lambda content, path: path.write_bytes(_saved(content))),
    "a pickle of arrays": (
        ".pkl",
        lambda content, path: path.write_bytes(
            pickle.dumps({"model": {k: v.numpy() for k, v in content["model"].items()}})
        ),
    ),
    "safetensors": (
        ".safetensors",
        lambda content, path: save_file(
            {k: v.clone().contiguous() for k, v in content["model"].items()}, path
        ),
    ),
}


def _sound(name: str, suffix: str, save: Callable[[dict[str, Any], Path], object]) -> Case:
    def run(place: Place) -> object:
        state = _model(place)
        save({"model": state}, place / f"weights{suffix}")
        content = read_checkpoint(place / f"weights{suffix}")
        read = content.get("model", content)
        return read.keys() == state.keys() and all(
            torch.equal(torch.as_tensor(read[name]), state[name]) for name in state
        )

    return Case(f"sound: {name}", run, (), is_refused=False, is_right=lambda _, same: same)


CASES = [
    *(
        _calling(name, argument, suffix)
        for name, argument in _CALLS.items()
        for suffix in (".pkl", ".pth")
    ),
    *(_hiding(name, hide, suffix) for name, hide in _HIDDEN.items() for suffix in _SAVERS),
    *(_file(name, *spec) for name, spec in _FILES.items()),
    *(_loaded(name, *spec) for name, spec in _LOADED.items()),
    *(
        Case(f"safetensors: {name}", _safetensors(content), ("weights.safetensors",))
        for name, content in _SAFETENSORS.items()
    ),
    Case(
        "converted: a web page",
        _convert("weights.pth", "out.pth", write=_text(_HTML)),
        ("weights.pth",),
    ),
    Case(
        "converted: a suffix that is not known",
        _convert("weights.pth", "out.exe", write=_text("")),
        ("out.exe",),
    ),
    Case(
        "converted: a view of 10**10 elements",
        _convert(
            *("weights.pth", "out.safetensors"),
            write=_first(lambda tensor: torch.zeros(1).expand(10**5, 10**5)),
        ),
        ("weights.pth",),
        is_light=False,
    ),
    Case(
        "converted: deflated to a thousandth",
        _convert("weights.pth", "out.pth", write=_swollen),
        ("weights.pth",),
        is_light=False,
    ),
    Case("trusted by its own configuration, predict", _predict_trusting, ("model_final.pth",)),
    Case(
        "trusted by its own configuration, evaluation",
        _train_trusting("--eval-only"),
        ("model_final.pth",),
        is_light=False,
    ),
    Case(
        "trusted by its own configuration, training",
        _train_trusting(),
        ("run",),
        is_light=False,
    ),
    *(_sound(name, *spec) for name, spec in _SOUND.items()),
]
