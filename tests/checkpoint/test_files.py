import pickle

import pytest
import torch

from proscale.checkpoint import CheckpointError, read_checkpoint, write_checkpoint


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_round_trip(tmp_path, suffix):
    whole = torch.arange(6.0).view(2, 3)
    state = {"a": whole.T, "b": whole[1:], "c": torch.tensor(3)}
    path = tmp_path / "new" / f"weights{suffix}"
    write_checkpoint(path, state, container=None)
    read = read_checkpoint(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_container_of_pickles(tmp_path):
    write_checkpoint(tmp_path / "w.pth", {"a": torch.ones(1)}, container="state_dict")
    assert list(read_checkpoint(tmp_path / "w.pth")) == ["state_dict"]


class Harmful:
    def __reduce__(self):
        return pytest.fail, ("code from the file was run",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_pickles_is_refused(tmp_path, legacy):
    path = tmp_path / "harmful.pth"
    content = {"a": torch.ones(1), "meta": Harmful()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"harmful\.pth: refused, because it has \S*Fail"):
        read_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all, but long enough"])
def test_other_content_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"broken\{suffix}: "):
        read_checkpoint(path)


def test_pickled_list_is_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"list\.pth: it holds a list: accepts a dictionary"):
        read_checkpoint(tmp_path / "list.pth")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*nowhere\.pth"):
        read_checkpoint(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("name", ["model.pkl", "model"])
def test_other_suffixes_are_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({}))
    for call in (read_checkpoint, lambda path: write_checkpoint(path, {}, container=None)):
        with pytest.raises(CheckpointError, match=r"accepts files \.pth, \.pt, \.bin, \.safetens"):
            call(path)
