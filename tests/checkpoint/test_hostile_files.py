"""Checkpoint files that somebody else made: refused in one sentence, within memory, or loaded as
they are."""

import hashlib
import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._utils import _rebuild_tensor_v2

from proscale.checkpoint import Checkpointer, read_checkpoint
from proscale.checkpoint.convert import convert
from proscale.checkpoint.files import SAFETENSORS, find_damage, write_checkpoint
from proscale.cli import convert as convert_command
from proscale.errors import CheckpointError
from proscale_cli import main

WEIGHT = torch.arange(12.0).view(3, 4)


class Call:
    """Is the result of a call when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def deflated(content: bytes, *, digest: bool = False) -> bytes:
    """An archive with its members compressed, and perhaps with a digest as ours have."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    whole = target.getvalue()
    if not digest:
        return whole
    comment = b"sha256:" + hashlib.sha256(whole).hexdigest().encode()
    return whole[:-2] + struct.pack("<H", len(comment)) + comment


def program() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), buffer)
    return buffer.getvalue()


def expanded(rows: int) -> torch.Tensor:
    return torch.ones(4).as_strided((rows, rows), (0, 0))


ZEROS = torch.zeros(4_000_000)
PAGE = b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>"
OF_PYTORCH = r"it is no checkpoint: expected a file of torch\.save; plain pickles have the suffix"
QUANTISED = torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8)
NESTED = torch.nested.nested_tensor([WEIGHT, WEIGHT])

REFUSED = {
    # Files of another kind.
    "page.pth": (PAGE, "it is no checkpoint: it is a web page: download the file itself"),
    "page.pkl": (PAGE, "it is no checkpoint: it is a web page"),
    "page.safetensors": (PAGE, "it is no checkpoint: it is a web page"),
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
    "answer.pth": (b'{"error": "not found"}', "it is a text file"),
    "model.pth": (b"\x1f\x8b\x08\x00" + bytes(50), "it is a compressed file: unpack it"),
    "program.pt": (program(), "a TorchScript program: expected a file of torch.save"),
    "zeros.pth": (bytes(100), OF_PYTORCH),
    "python2.pth": (pickle.dumps({"weight": WEIGHT.numpy()}, 0), OF_PYTORCH),
    "old.pth": (pickle.dumps({"weight": WEIGHT.numpy()}, 2), OF_PYTORCH),
    "new.pth": (pickle.dumps({"weight": WEIGHT.numpy()}, 4), OF_PYTORCH),
    # Files that would need far more memory than they have bytes.
    "deflated.pth": (deflated(saved({"weight": ZEROS})), "it is damaged: its .* unpack to 16000"),
    "digest.pth": (deflated(saved({"weight": ZEROS}), digest=True), "unpack to 16000"),
    "strides.pth": (saved({"weight": WEIGHT, "x": expanded(9999)}), "its tensors have 399920052"),
    "fill.pth": (saved({"x": Call(bytearray, 2**32)}), "it has builtins.bytearray in it"),
    "fill.pt": (
        saved({"x": Call(bytearray, 2**32)}, _use_new_zipfile_serialization=False),
        "it has builtins.bytearray in it",
    ),
    "longer.pth": (
        saved(
            {"x": Call(_rebuild_tensor_v2, ZEROS[:4].clone().storage(), 0, (2**30,), (1,), 0, {})}
        ),
        "it is no checkpoint: Trying to resize storage",
    ),
    "fill.pkl": (b"\x80\x05\x96" + struct.pack("<Q", 2**32) + b".", "it is no checkpoint: "),
    "array.pkl": (b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.", "it is no checkpoint: "),
    "array2.pkl": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01btR.",
        "it has an array of .* in it",
    ),
    "inner.pkl": (
        pickle.dumps({"x": Call(torch.storage._load_from_bytes, deflated(saved(ZEROS)))}),
        "it has an archive in it",
    ),
    # The functions that pickles may call are not theirs to change.
    "state.pkl": (b"\x80\x02c_codecs\nencode\n}U\x01aU\x01bsb.", "it has the state of a function"),
    # Tensors that are none of dense numbers.
    "meta.pth": (saved({"weight": torch.empty(3, 4, device="meta")}), "weight is a meta tensor"),
    "quantised.pth": (saved({"weight": QUANTISED}), "weight is a quantised tensor: expected"),
    "sparse.pth": (saved({"weight": WEIGHT.to_sparse()}), "weight is a sparse tensor: expected"),
    "rows.pth": (saved({"model": {"weight": WEIGHT.to_sparse_csr()}}), "weight is a sparse tensor"),
    "nested.pth": (saved({"weight": NESTED}), "weight is a nested tensor: expected"),
    "float8.pth": (saved({"weight": WEIGHT.to(torch.float8_e4m3fn)}), r"weight is .*float8_e4m3fn"),
    "objects.pkl": (pickle.dumps({"weight": np.array([1, None])}), "weight is an array of object"),
    "texts.pkl": (pickle.dumps({"weight": np.array(["a"])}), "weight is an array of <U1: expected"),
    "long.pkl": (
        pickle.dumps({"weight": np.ones(1, np.longdouble)}),
        "weight is an array of float",
    ),
    "text.pth": (saved({"weight": "text", "index": torch.arange(3)}), "no tensor in it fits"),
    "text2.pth": (saved({"weight": WEIGHT, "index": "text"}), "index is a str: expected a tensor"),
    # Numbers that would silently be others in the model.
    "int8.pth": (saved({"weight": WEIGHT.to(torch.int8)}), r"weight is of torch\.int8: expected t"),
    "bool.pth": (saved({"weight": WEIGHT.bool()}), r"weight is of torch\.bool: expected torch\.fl"),
    "complex.pth": (
        saved({"weight": WEIGHT.to(torch.complex64)}),
        r"of torch\.complex64: expected",
    ),
    "index.pth": (saved({"weight": WEIGHT, "index": torch.ones(3).long()}), "index has other ind"),
    # Names.
    "digits.pth": (saved({f"layers.{'9' * 5000}.0.projection.weight": WEIGHT}), "no tensor in it"),
    "control.pth": (saved({"backbone.\x1b[31m\nweight": WEIGHT}), r"backbone\.\\x1b\[31m\\nweight"),
    "long.pth": (saved({"x" * 10**6: WEIGHT}), "x{119}…, …$"),
    "numbers.pth": (saved({1: WEIGHT}), "the file has nothing"),
    "list.pth": (saved({"model": [WEIGHT]}), "the file has nothing"),
    "blobs.pkl": (pickle.dumps({"blobs": [1]}), "cannot be matched"),
    "scalar.pkl": (pickle.dumps({"conv1_w": np.float32(1), "fc_w": np.float32(1)}), "fits|matched"),
    # Shapes that a scheme's names do not have.
    "openmmlab.pth": (
        saved(
            {
                "layers.0.0.projection.weight": torch.ones(()),
                "layers.0.1.0.attn.attn.in_proj_weight": torch.ones(()),
            }
        ),
        r"openmmlab\.pth: its tensors have other shapes than their names say",
    ),
    "swin.pth": (
        saved(
            {
                "layers.3.downsample.reduction.weight": WEIGHT,
                "layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(999**2, 1),
            }
        ),
        r"998001 rows of a bias table: expected \(2·window - 1\)²",
    ),
}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 4))
        self.register_buffer("index", torch.arange(3))


def load(path: Path) -> Model:
    model = Model()
    Checkpointer(model).load(str(path))
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(tmp_path, name):
    content, reason = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable() and len(message) < 1000
    assert "weights_only" not in message and "PyTorch 2" not in message


@pytest.mark.parametrize(
    "content",
    [
        saved({"weight": WEIGHT}),
        saved({"weight": WEIGHT}, _use_new_zipfile_serialization=False),
        deflated(saved({"weight": WEIGHT})),
        saved({"weight": nn.Parameter(WEIGHT), "index": torch.arange(3, dtype=torch.int32)}),
        saved({"weight": WEIGHT.double()}),
        saved({"model": {"weight": WEIGHT.half()}, "tied": [WEIGHT, WEIGHT, WEIGHT]}),
        saved({"model": {"module.weight": WEIGHT}, "mask": expanded(100), "steps": WEIGHT.bool()}),
    ],
    ids=["archive", "legacy", "deflated", "parameter", "double", "tied", "expanded"],
)
def test_others_are_loaded(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    assert torch.equal(load(tmp_path / "w.pth").weight, WEIGHT)


def test_lengths_of_headers_are_no_signs_of_other_files(tmp_path):
    """A safetensors file begins with the length of its header, such as 60, the number of ``<``."""
    for length in range(1, 150):
        path = tmp_path / f"w{SAFETENSORS}"
        write_checkpoint(path, {"w" * length: WEIGHT}, container=None)
        assert torch.equal(read_checkpoint(path)["w" * length], WEIGHT)


def test_numbers_in_a_pickle_take_no_memory(tmp_path):
    """A memo's number would make a table of as many entries."""
    path = tmp_path / "w.pkl"
    path.write_bytes(b"\x80\x04}r\x00\x00\x00\x10.")
    tracemalloc.start()
    assert read_checkpoint(path) == {}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**7


def test_values_that_hold_themselves(tmp_path):
    values = [WEIGHT]
    values.append(values)
    torch.save({"weight": WEIGHT, "values": values}, tmp_path / "w.pth")
    assert torch.equal(load(tmp_path / "w.pth").weight, WEIGHT)


def test_folders_are_no_files(tmp_path):
    (tmp_path / "w.pth").mkdir()
    with pytest.raises(CheckpointError, match=r"w\.pth: it is a folder: expected a file"):
        read_checkpoint(tmp_path / "w.pth")
    assert find_damage(tmp_path / "w.pth") == "it is a folder: expected a file"


def test_layers_without_a_number(tmp_path):
    """In the names of the encoder's layers, by which weights are adapted to another depth."""
    name = "sem_seg_head.pixel_decoder.transformer.encoder.layers.x.norm1.weight"
    (tmp_path / "w.pth").write_bytes(saved({name: torch.ones(()), f"{name}\n": torch.ones(1)}))
    assert convert(read_checkpoint(tmp_path / "w.pth")).source == "proscale"
    model = ["--config-file", "coco/panoptic/proscale_r50_333"]
    with pytest.raises(SystemExit, match=r"w\.pth: no tensor in it fits the model of"):
        main(["convert", str(tmp_path / "w.pth"), str(tmp_path / "new.pth"), *model])


def test_names_are_printed_on_one_line(tmp_path, capsys):
    (tmp_path / "w.pth").write_bytes(saved({"backbone.x": WEIGHT, "backbone.\x1b[2J\n": WEIGHT}))
    main(["convert", str(tmp_path / "w.pth"), str(tmp_path / "new.pth")])
    convert_command._print_names("Names", ["a\x1b[2J\n"])
    assert r"  a\x1b[2J\n" in capsys.readouterr().out.splitlines()
