import collections
import io
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from proscale.checkpoint import convert_state_dict, read_checkpoint, write_checkpoint
from proscale.checkpoint.files import find_damage, save_archive, stored_iteration
from proscale.errors import CheckpointError
from proscale.utils.whole_files import partial_path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_round_trip(tmp_path, suffix):
    whole = torch.arange(6.0).view(2, 3)
    state = {"a": whole.T, "b": whole[1:], "c": torch.tensor(3), "tied": whole.T}
    path = tmp_path / "new" / f"weights{suffix}"
    write_checkpoint(path, state, container=None)
    read = read_checkpoint(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_container_of_pickles(tmp_path):
    write_checkpoint(tmp_path / "w.pth", {"a": torch.ones(1)}, container="state_dict")
    assert list(read_checkpoint(tmp_path / "w.pth")) == ["state_dict"]


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def write_zip(content, path):
    torch.save(content, path)


def write_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


def write_nested(content, path):
    """The storage of a tensor in a plain pickle is a PyTorch file of its own."""

    class Storage:
        def __reduce__(self):
            inner = io.BytesIO()
            torch.save(content, inner, _use_new_zipfile_serialization=False)
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    path.write_bytes(pickle.dumps({"a": Storage()}))


@pytest.fixture(
    params=[
        ("w.pth", write_zip),
        ("w.pt", write_legacy),
        ("w.bin", write_zip),
        ("w.pkl", write_pickle),
        ("w.pkl", write_zip),
        ("w.pkl", write_nested),
    ],
    ids=["pth", "legacy", "bin", "pkl", "zip_in_pkl", "nested_in_pkl"],
)
def harmful(request, tmp_path):
    """A file that runs code when it is unpickled, and what that code leaves behind."""
    name, write = request.param
    trace = tmp_path / "trace"
    write({"a": torch.ones(1), "meta": Harmful(trace)}, tmp_path / name)
    return tmp_path / name, trace


def test_code_in_pickles_is_refused(harmful):
    path, trace = harmful
    message = rf"{path.name}: refused, because it has posix.mkdir in it.*MODEL\.TRUST_WEIGHTS True"
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)
    assert not trace.exists()


def test_code_in_pickles_is_run_where_it_is_trusted(harmful):
    path, trace = harmful
    read_checkpoint(path, trust=True)
    assert trace.exists()


@pytest.mark.parametrize(
    "stranger", [eval, Path, torch.load, np.load, collections.Counter], ids=lambda x: x.__name__
)
def test_strangers_are_named(tmp_path, stranger):
    write_pickle({"a": stranger}, tmp_path / "w.pkl")
    with pytest.raises(CheckpointError, match=rf"because it has \S*{stranger.__name__} in it"):
        read_checkpoint(tmp_path / "w.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_tensors_in_pickles(tmp_path, protocol):
    state = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "half": np.ones(2, np.float16),
        "scalar": np.float64(2),
        "tensor": torch.arange(3.0)[1:],
        "parameter": torch.nn.Parameter(torch.ones(1)),
    }
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(OrderedDict(model=state, author="me"), protocol=protocol))
    read = read_checkpoint(path)
    assert read["author"] == "me"
    tensors = convert_state_dict({f"backbone.{k}": v for k, v in read["model"].items()})
    for name, value in state.items():
        assert tensors[f"backbone.{name}"].tolist() == value.tolist()
        assert str(tensors[f"backbone.{name}"].dtype) == f"torch.{value.dtype}".replace(
            "torch.torch", "torch"
        )


def test_arrays_of_older_numpy_and_python(tmp_path):
    content = pickle.dumps({"a": np.arange(3)}, protocol=0)
    path = tmp_path / "w.pkl"
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    assert read_checkpoint(path)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all, but long enough"])
def test_other_content_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"broken\{suffix}: "):
        read_checkpoint(path)


def test_pickled_list_is_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"list\.pth: it holds a list: expected a dictionary"):
        read_checkpoint(tmp_path / "list.pth")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*nowhere\.pth"):
        read_checkpoint(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [("model", r"\.pth, \.pt, \.bin, \.pkl, \.safetensors"), ("model.pyth", r"\.pth, ")],
)
def test_other_suffixes_are_refused(tmp_path, name, suffixes):
    path = tmp_path / name
    write_pickle({}, path)
    with pytest.raises(CheckpointError, match=f"expected files {suffixes}"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["model.pkl", "model"])
def test_only_tensor_files_are_written(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"expected files \.pth, \.pt, \.bin, \.safetensors"):
        write_checkpoint(tmp_path / name, {}, container=None)


CONTENT = {"model": {f"w{i}": torch.arange(9.0) + i for i in range(3)}, "iteration": 3}


@pytest.fixture(params=[None, 3], ids=["weights", "checkpoint"])
def path(request, tmp_path) -> Path:
    path = tmp_path / "model.pth"
    save_archive(path, CONTENT, iteration=request.param)
    return path


def equal(content: dict) -> bool:
    return content["iteration"] == 3 and all(
        torch.equal(content["model"][name], value) for name, value in CONTENT["model"].items()
    )


def test_what_was_saved_is_whole_and_read_by_pytorch(path):
    assert find_damage(path) is None
    assert equal(torch.load(path, weights_only=True))
    assert equal(read_checkpoint(path))
    assert [entry.name for entry in path.parent.iterdir()] == ["model.pth"]


def test_iteration_is_told_without_reading_tensors(path, tmp_path):
    assert stored_iteration(path) == 3
    assert stored_iteration(tmp_path / "none.pth") == -1
    (tmp_path / "model_0000012.pth").write_bytes(b"")
    assert stored_iteration(tmp_path / "model_0000012.pth") == 12


def test_every_flipped_bit_is_found_or_changes_nothing(path):
    whole = path.read_bytes()
    generator = random.Random(0)
    harmless = 0
    for place in generator.sample(range(len(whole)), 800) + list(
        range(len(whole) - 120, len(whole))
    ):
        changed = bytearray(whole)
        changed[place] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        if find_damage(path) is None:
            harmless += 1
            assert equal(torch.load(path, weights_only=True))
    assert harmless < 20


def test_every_truncation_is_found(path):
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 61), *range(len(whole) - 120, len(whole))]:
        path.write_bytes(whole[:length])
        assert find_damage(path), length


def test_files_of_others_are_checked_by_their_checksums(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(CONTENT, path)
    assert find_damage(path) is None
    whole = path.read_bytes()
    place = whole.index(CONTENT["model"]["w1"].numpy().tobytes())
    path.write_bytes(whole[: place + 3] + b"\x55" + whole[place + 4 :])
    assert find_damage(path).startswith("the checksum of other/data/")
    with pytest.raises(CheckpointError, match=r"other\.pth: it is damaged: the checksum"):
        read_checkpoint(path)


def test_missing_file_is_damage(tmp_path):
    assert find_damage(tmp_path / "none.pth") == "there is no such file"


@pytest.mark.parametrize("numbers", [1, 100_000])
def test_full_disk_leaves_the_old_file(path, numbers):
    before = path.read_bytes()
    partial_path(path).symlink_to("/dev/full")  # takes nothing, as a full disk
    with pytest.raises(CheckpointError) as error:
        save_archive(path, {"model": {f"w{i}": torch.ones(numbers) for i in range(3)}})
    assert str(error.value) == (
        f"{path}: cannot be written: No space left on device; what was written before is as it was"
    )
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["model.pth"]


def test_conversion_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    def fill_disk(state, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    path = tmp_path / "weights.safetensors"
    write_checkpoint(path, {"a": torch.ones(2)}, container=None)
    monkeypatch.setattr("proscale.checkpoint.files.save_file", fill_disk)
    with pytest.raises(
        CheckpointError, match=r"weights\.safetensors: cannot be written: No space left"
    ):
        write_checkpoint(path, {"a": torch.zeros(2)}, container=None)
    assert torch.equal(read_checkpoint(path)["a"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
