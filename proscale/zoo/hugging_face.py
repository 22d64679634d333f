"""Repositories of the Hugging Face Hub: files, and Mask2Former's and SegFormer's ``config.json``.

Files are fetched, resumed and kept by ``huggingface_hub``, in its cache.
"""

import logging
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from proscale.data.formats.json_file import read_json
from proscale.errors import ConfigError, DataError, shown
from proscale.utils.untrusted import is_name

PREFIX = "hf://"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in a repository; safetensors, which hold no code, come first."""

# Words in a repository's name: the folder of configurations that it belongs to.
_DATA_SETS = {
    "coco": "coco",
    "ade": "ade20k",
    "cityscapes": "cityscapes",
    "mapillary": "mapillary_vistas",
}
_TASKS = ("panoptic", "instance", "semantic")
_MIXED = re.compile("-(merged|other|stuff)")


def repository_of(address: str) -> str:
    """OWNER/NAME of ``hf://OWNER/NAME``.

    Raises:
        ConfigError: it is none.
    """
    repository = address.removeprefix(PREFIX)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"{shown(address)}: expected {PREFIX}OWNER/NAME")
    return repository


def fetch_weights(repository: str) -> Path:
    """The first of :data:`WEIGHTS` that the repository has.

    Raises:
        ConfigError: it has none, or cannot be reached.
    """
    # Without a network those in the cache do, of whichever kind.
    for find in (_cached, _fetch):
        for name in WEIGHTS:
            if (file := find(repository, name)) is not None:
                return file
    raise ConfigError(f"{PREFIX}{repository}: expected one of the files {', '.join(WEIGHTS)} in it")


def fetch_file(repository: str, name: str) -> Path:
    """A file of a repository, from the cache if it is there.

    Raises:
        ConfigError: it is not in it, or cannot be fetched.
    """
    file = _fetch(repository, name)
    if file is None:
        raise ConfigError(f"{PREFIX}{repository}: expected a file {name} in it")
    return file


def _cached(repository: str, name: str) -> Path | None:
    """A file that was fetched before; None if it was not."""
    if find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(repository, name)
    return Path(file) if isinstance(file, str) else None


def _fetch(repository: str, name: str) -> Path | None:
    """A file; None if the repository has none of this name.

    Raises:
        ConfigError: it cannot be reached; the message says what to do without a network.
    """
    if find_spec("huggingface_hub") is None:
        raise ConfigError(f"{PREFIX} needs huggingface_hub: run pip install huggingface_hub")
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    # Its warnings of single tries; the last one's reason is told.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(repository, name))
    except (OSError, ValueError, HfHubHTTPError) as error:
        is_offline = isinstance(error, LocalEntryNotFoundError)
        if isinstance(error, EntryNotFoundError) and not is_offline:
            return None
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        reason = "there is no network" if is_offline else reason
        raise ConfigError(
            f"{PREFIX}{repository}: {name} cannot be fetched ({reason}): expected a network, or "
            f"`hf download {repository}` run on a machine with one, and its cache copied to "
            f"{constants.HF_HUB_CACHE}"
        ) from error


def keys_of(repository: str, file: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What ``config.json`` says in this project's terms.

    Returns:
        the name of the configuration that it differs least from, the keys on top of it, and the
        classes' metadata; the last is empty where they are those of that configuration's data set.

    Raises:
        ConfigError: the model is none of this project's, or the task is not told.
    """
    try:
        settings = read_json(file)
    except DataError as error:
        raise ConfigError(str(error)) from error
    kind = settings.get("model_type")
    translate = {"mask2former": _mask2former, "segformer": _segformer}.get(str(kind))
    if translate is None:
        raise ConfigError(f"{file}: model_type is {shown(kind)}: expected mask2former, segformer")
    try:
        config, keys = translate(repository.lower(), settings)
        labels = settings["id2label"]
        names = [labels[str(index)] for index in range(len(labels))]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: it has no usable {error}") from error
    if not all(map(is_name, names)):
        raise ConfigError(f"{file}: id2label has {shown(names)}: expected names of classes")
    keys["MODEL"].setdefault("SEM_SEG_HEAD", {})["NUM_CLASSES"] = len(names)
    return config, keys, _classes(config, names)


def _mask2former(repository: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    words = repository.split("/")[1].split("-")
    tasks = [task for task in _TASKS if task in words]
    if not tasks:
        raise ConfigError(
            f"{PREFIX}{repository}: its name has no task: expected one with "
            f"{', '.join(_TASKS)}, or a configuration, and this as MODEL.WEIGHTS"
        )
    backbone = settings["backbone_config"]
    folder = next((name for word, name in _DATA_SETS.items() if word in words), "coco")
    is_swin = backbone["model_type"] == "swin"
    model: dict[str, Any] = {
        "MASK_FORMER": {
            "NUM_OBJECT_QUERIES": settings["num_queries"],
            "HIDDEN_DIM": settings["hidden_dim"],
            "NHEADS": settings["num_attention_heads"],
            "DIM_FEEDFORWARD": settings["dim_feedforward"],
            "DEC_LAYERS": settings["decoder_layers"],
        },
        "SEM_SEG_HEAD": {
            "CONVS_DIM": settings["feature_size"],
            "MASK_DIM": settings["mask_feature_size"],
            "TRANSFORMER_ENC_LAYERS": settings["encoder_layers"],
        },
    }
    if is_swin:
        model["SWIN"] = {
            "EMBED_DIM": backbone["embed_dim"],
            "DEPTHS": backbone["depths"],
            "NUM_HEADS": backbone["num_heads"],
            "WINDOW_SIZE": backbone["window_size"],
            "MLP_RATIO": backbone["mlp_ratio"],
        }
    elif backbone["model_type"] == "resnet":
        depths = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101}
        model["RESNETS"] = {"DEPTH": depths[tuple(backbone["depths"])]}
    else:
        raise ConfigError(
            f"{PREFIX}{repository}: its backbone is {shown(backbone['model_type'])}: expected "
            "swin, resnet"
        )
    # Each data set has configurations of some of the tasks.
    task = "semantic" if (folder, tasks[0]) == ("mapillary_vistas", "instance") else tasks[0]
    config = f"{folder}/{task}/mask2former_{'swin_tiny' if is_swin else 'r50'}"
    return config, {"MODEL": model}


def _segformer(repository: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    width = settings["hidden_sizes"][0] // settings["num_attention_heads"][0]
    model = {
        "MIT": {
            "VARIANT": "",
            "EMBED_DIM": width,
            "DEPTHS": settings["depths"],
            "NUM_HEADS": settings["num_attention_heads"],
            "SR_RATIOS": settings["sr_ratios"],
            "MLP_RATIO": float(settings["mlp_ratios"][0]),
        },
        "SEM_SEG_HEAD": {
            "SEGFORMER_FORM": "nvidia",
            "CONVS_DIM": settings["decoder_hidden_size"],
        },
    }
    folder = "cityscapes" if "cityscapes" in repository else "ade20k"
    return f"{folder}/semantic/segformer_b0", {"MODEL": model}


def _classes(config: str, names: list[str]) -> dict[str, Any]:
    """The classes' metadata; none where they are those of the configuration's own data set."""
    known = _known_classes(config)
    same = [_plain(a) == _plain(b) for a, b in zip(names, known, strict=False)]
    if len(names) == len(known) and sum(same) >= 0.8 * len(names):
        return {}
    ids = [[index, index] for index in range(len(names))]
    if "/instance/" in config or "/panoptic/" in config:
        # The file does not tell things from stuff: each is counted.
        return {
            "thing_classes": names,
            "stuff_classes": names,
            "thing_dataset_id_to_contiguous_id": ids,
        }
    return {"stuff_classes": names}


def _known_classes(config: str) -> list[str]:
    folder, task, _ = config.split("/")
    name = {
        "coco": {"panoptic": "coco_2017_val_panoptic", "instance": "coco_2017_val"},
        "ade20k": {"panoptic": "ade20k_panoptic_val", "semantic": "ade20k_sem_seg_val"},
        "cityscapes": {
            "panoptic": "cityscapes_fine_panoptic_val",
            "semantic": "cityscapes_fine_sem_seg_val",
        },
    }.get(folder, {}).get(task, "")
    if name not in MetadataCatalog.list():
        return []
    metadata = MetadataCatalog.get(name)
    return list(metadata.get("stuff_classes") or metadata.get("thing_classes") or [])


def _plain(name: str) -> str:
    """A class's name without what data sets add to it."""
    return _MIXED.sub("", name.split(",")[0]).strip().lower()
