"""Built-in names: nothing is read before it is asked for, and what is missing is named."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from proscale.data.datasets.registration import LazyMetadata, register_builtin
from proscale.errors import MissingFileError


@pytest.fixture
def new_name():
    name = "test_builtin"
    yield name
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)


def test_a_name_can_be_registered_anew(new_name):
    register_builtin(new_name, lambda metadata: [{"old": True}], {"ignore_label": 0})
    register_builtin(new_name, lambda metadata: [dict(metadata)], {"ignore_label": 1})
    assert DatasetCatalog.get(new_name) == [{"name": new_name, "ignore_label": 1}]


def test_what_is_missing_names_data_set_and_command(new_name):
    def load(metadata):
        raise MissingFileError("there is no file.json")

    register_builtin(new_name, load, {}, preparation="coco-semantic")
    with pytest.raises(
        FileNotFoundError,
        match=rf"{new_name}: there is no file\.json; `proscale prepare coco-semantic --root",
    ):
        DatasetCatalog.get(new_name)
    register_builtin(new_name, load, {})
    with pytest.raises(FileNotFoundError, match=r"file\.json; the layout is in datasets/README"):
        DatasetCatalog.get(new_name)


def test_lazy_metadata_reads_once_and_only_for_lazy_keys():
    reads = []

    def read():
        reads.append(1)
        return {"stuff_classes": ["sky"], "more": 1}

    metadata = LazyMetadata(
        "test_lazy", known={"ignore_label": 255}, lazy_keys={"stuff_classes"}, read=read
    )
    assert metadata.ignore_label == 255
    assert metadata.name == "test_lazy"
    assert metadata.get("image_ids") is None
    with pytest.raises(AttributeError, match="thing_classes"):
        _ = metadata.thing_classes
    assert not reads
    assert metadata.stuff_classes == ["sky"]
    expected = {"name": "test_lazy", "ignore_label": 255, "stuff_classes": ["sky"]}
    assert metadata.as_dict() == expected
    assert len(reads) == 1


def test_lazy_metadata_reads_again_after_a_failure(tmp_path):
    path = tmp_path / "classes.txt"
    metadata = LazyMetadata(
        "test_lazy",
        known={},
        lazy_keys={"stuff_classes"},
        read=lambda: {"stuff_classes": path.read_text().split()},
    )
    with pytest.raises(FileNotFoundError):
        metadata.get("stuff_classes")
    path.write_text("sky grass")
    assert metadata.get("stuff_classes") == ["sky", "grass"]
