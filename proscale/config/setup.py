"""From a configuration file and overrides to a complete configuration.

Mistakes in them are found here, before any model or data is built, and told in one sentence that
names the file or key.

Nothing that is written in a file is run. Detectron2 makes whatever Python object a tag such as
``!!python/object/apply:os.system`` names; published files need that for one form of list only,
which is computed here.
"""

import difflib
import logging
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from fvcore.common.config import BASE_KEY

from proscale.checkpoint.description import ModelDescription
from proscale.config.own_data import KEY, fit_to_own_data
from proscale.config.schema import (
    add_proscale_config,
    check_values,
    convert,
    key_values,
    quoted,
    set_value,
    value_of,
    walk,
)
from proscale.data.datasets.own import register_own_data
from proscale.errors import ConfigError, UserError, printable, shown
from proscale.utils.untrusted import fetched, read_bounded
from proscale.utils.whole_files import try_file, try_folder
from proscale.zoo import find_model, find_weights, is_model, model_names

MAX_NODES = 100_000
"""Values that a file may have once its aliases are replaced by what they stand for."""
MAX_BYTES = 2**20
"""Size of a file."""
MAX_FILES = 32
"""Files that a file may be based on, directly or not."""

# The installed package carries the configurations; in a checkout they are beside it.
_CONFIGS = Path(__file__).parents[1] / "configs"
if not _CONFIGS.is_dir():
    _CONFIGS = Path(__file__).parents[2] / "configs"

logger = logging.getLogger(__name__)


def setup_cfg(
    config_file: str = "", overrides: Sequence[Any] = (), *, saved: bool = False
) -> CfgNode:
    """Build the configuration of a command.

    ``MODEL.DEVICE``, where neither the file nor the overrides set it, is cuda if there is CUDA,
    else cpu, with a warning. ``DATASETS.OWN`` is registered in this process, and the keys that
    follow from it are set (:func:`~proscale.config.own_data.fit_to_own_data`).
    ``MODEL.TRUST_WEIGHTS`` counts among the overrides alone; in a file it is dropped, with a
    warning.

    Args:
        config_file: YAML file, or its name (:func:`proscale.config.find_config`); or a model
            (:func:`proscale.zoo.find_model`): a checkpoint that describes itself, a name of the
            catalogue, ``hf://OWNER/NAME``. ``MODEL.WEIGHTS`` is then its file. The empty string
            takes the defaults.
        overrides: KEY VALUE pairs in a row, values as texts of the command line or as they are.
        saved: ``config_file`` is one that a run saved, which has all keys: no ``_BASE_`` is read
            for it.

    Returns:
        the frozen configuration.

    Raises:
        ConfigError: an unknown key (the nearest known ones are named), a value of the wrong type or
            out of range, a file that is missing, no YAML or runs code, a device that this machine
            does not have, or own data that are not described as accepted.
        CheckpointError: a model cannot be found or does not describe itself.
        DataError: files of own data are wrong.
    """
    # 1. Defaults of Detectron2 and of this project.
    cfg = get_cfg()
    add_proscale_config(cfg)
    cfg.MODEL.DEVICE = ""
    # 2. The file on its bases, or what a model says of itself, then the command line.
    model = find_model(config_file) if is_model(config_file) else None
    if config_file:
        if model is not None and model.description and model.description.config:
            content = _load_described(model.description.config, config_file)
        else:
            config_file = find_config(model.config if model else config_file)
            content = load_config_file(config_file, bases_allowed=not saved)
            _merge(model.keys if model else {}, content)
        # Detectron2 would convert keys of version 1, whose names are not known here.
        if content.get("VERSION", cfg.VERSION) != cfg.VERSION:
            version, expected = printable(content["VERSION"]), f"expected {cfg.VERSION}, that of"
            raise ConfigError(
                f"{config_file}: VERSION is {version}: {expected} Detectron2's current keys"
            )
        try:
            _merge_block(cfg, content, cfg, "")
        except ConfigError as error:
            raise ConfigError(f"{config_file}: {error}") from error
        # A file may come with the weights: code in these is run at the user's own word alone.
        if cfg.MODEL.TRUST_WEIGHTS:
            logger.warning("%s: MODEL.TRUST_WEIGHTS is not obeyed in a file", config_file)
            cfg.MODEL.TRUST_WEIGHTS = False
    if model is not None:
        cfg.MODEL.WEIGHTS = str(model.weights)
    if len(overrides) % 2:
        raise ConfigError(f"overrides are pairs of KEY VALUE; {overrides[-1]} is left over")
    keys = dict(walk(cfg)).keys()
    # In order, so that the last of several values of a key counts.
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        if key not in keys:
            raise ConfigError(_unknown_key(cfg, key))
        default = value_of(cfg, key)
        if isinstance(default, CfgNode):
            raise ConfigError(f"{key} is a block: expected its keys, {', '.join(default)}")
        set_value(cfg, key, convert(key, value, default))
    for key in ("OUTPUT_DIR", "MODEL.WEIGHTS", "DATASETS.PERSON_BOXES_TEST"):
        set_value(cfg, key, _expand_home(key, value_of(cfg, key)))
    if "MODEL.WEIGHTS" in overrides[::2]:
        cfg.MODEL.WEIGHTS = find_weights(cfg.MODEL.WEIGHTS)
    # 3. Keys that follow from the user's data or the model's, and the device of this machine.
    is_described = model is not None and KEY not in overrides[::2]
    if cfg.DATASETS.OWN and not is_described:
        datasets = register_own_data(cfg.DATASETS.OWN)
        kept = keys_set_by_user("" if model else config_file, overrides)
        fit_to_own_data(cfg, datasets, kept=kept)
    if model is not None and is_described and model.description is not None:
        _use_described_classes(cfg, model.description, kept=overrides[::2])
    cfg.MODEL.DEVICE = _choose_device(cfg.MODEL.DEVICE)
    # 4. Values, each alone and together.
    check_values(cfg)
    cfg.freeze()
    return cfg


def as_overrides(keys: Mapping[str, Any]) -> list[Any]:
    """KEY VALUE pairs in a row, as :func:`setup_cfg` takes them, of keys and blocks of keys:
    ``{"SOLVER": {"MAX_ITER": 9}}`` is ``["SOLVER.MAX_ITER", 9]``."""
    return [word for pair in key_values(keys) for word in pair]


def without_trust(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` to be saved: trust in weights is given to one command, not to a folder."""
    copy = cfg.clone()
    copy.defrost()
    copy.MODEL.TRUST_WEIGHTS = False
    copy.freeze()
    return copy


def find_config(name: str) -> str:
    """The path of a configuration file.

    Args:
        name: a path, a URL, or the name of a file of this project, such as
            ``coco/panoptic/proscale_r50_333``, with or without ``configs/`` and ``.yaml``.

    Raises:
        ConfigError: there is no such file; names the nearest of this project.
    """
    path = os.path.expanduser(name)
    if "://" in name or os.path.exists(path):
        return path
    known, wanted = _configs(), _short(name)
    if wanted in known:
        return str(known[wanted])
    nearest = ", ".join(difflib.get_close_matches(wanted, [*known, *model_names()]))
    hint = f"; nearest are {nearest}" if nearest else ""
    raise ConfigError(f"there is no configuration file {name}{hint}")


def config_names() -> list[str]:
    """Names of the configurations of this project, those that others are based on apart."""
    return sorted(name for name in _configs() if not name.rpartition("/")[2].startswith("base"))


def load_config_file(path: str, *, bases_allowed: bool = True) -> dict[str, Any]:
    """The content of a YAML file on top of that of its ``_BASE_`` files.

    A base may be anywhere on this machine, because the user chose the file that names it; it is a
    YAML file by its suffix, and never an address: nothing is fetched.

    Args:
        path: file, or an address, which the user named.
        bases_allowed: False refuses a file with ``_BASE_``.

    Raises:
        ConfigError: see :func:`read_config_file`; or files are based on each other in a circle, or
            on too many.
    """
    files = 0

    def load(path: str, chain: Sequence[str]) -> dict[str, Any]:
        nonlocal files
        files += 1
        content, bases = read_config_file(path)
        if bases and not bases_allowed:
            found = f"{BASE_KEY} is {quoted(bases)}"
            raise ConfigError(f"{path}: {found}: expected none in the configuration of a run")
        if files + len(bases) > MAX_FILES:
            raise ConfigError(f"{path}: {BASE_KEY} leads to more than {MAX_FILES} files")
        merged: dict[str, Any] = {}
        chain = [*chain, path]
        for base in bases:
            if not os.path.isfile(base):
                raise ConfigError(
                    f"{path}: {BASE_KEY} is {printable(base)}, but there is no such file"
                )
            # Links and different spellings of a path are the same file.
            if os.path.realpath(base) in map(os.path.realpath, chain):
                circle = " -> ".join([*chain, base])
                raise ConfigError(f"{path}: {BASE_KEY} leads in a circle: {circle}")
            # Later bases take precedence over earlier ones, and the file itself over all.
            _merge(load(base, chain), merged)
        _merge(content, merged)
        return merged

    return load(path, [])


def read_config_file(path: str) -> tuple[dict[str, Any], list[str]]:
    """The content of a YAML file without its ``_BASE_``, and the paths of these files: relative to
    its folder, or names as :func:`find_config` takes them.

    Of a key that is there twice the last counts, with a warning.

    Raises:
        ConfigError: there is no such file, or it is no YAML of blocks and plain values; the
            message has the line where there is one, and nothing of a file that holds no keys.
    """
    local = fetched(path, raises=ConfigError) if "://" in path else os.path.expanduser(path)
    content = _parse(read_bounded(local, limit=MAX_BYTES, raises=ConfigError), path)
    bases = content.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: {BASE_KEY} is {quoted(bases)}: expected names of files")
    for i, base in enumerate(bases):
        beside = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        is_beside = os.path.exists(beside)
        bases[i] = beside if is_beside else str(_configs().get(_short(base), beside))
        # Other files may hold secrets, which messages would quote.
        if "://" in bases[i] or not bases[i].endswith((".yaml", ".yml")):
            expected = "expected YAML files (.yaml) of this machine"
            raise ConfigError(f"{path}: {BASE_KEY} is {printable(base)}: {expected}")
    return content, bases


def _parse(text: bytes, path: str) -> dict[str, Any]:
    """The blocks of a YAML text; ``path`` is for messages. See :func:`read_config_file`."""
    try:
        loader = _Loader(text.decode())
        loader.path = path
        # Nodes first: small files may describe huge values by aliases of aliases.
        root = loader.get_single_node()
        if root is not None and _count_nodes(root, {}) > MAX_NODES:
            raise ConfigError(f"{path}: its aliases stand for more than {MAX_NODES} values")
        content = {} if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: {error.problem or error.context}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: it is nested too deeply") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not a readable YAML file ({reason})") from error
    if not isinstance(content, dict):
        kind = "text" if isinstance(content, str) else type(content).__name__
        raise ConfigError(f"{path}: it holds a {kind}: expected keys with values")
    return content


def keys_set_by_user(config_file: str, overrides: Sequence[str] = ()) -> set[str]:
    """Full names of the keys that are set along with ``DATASETS.OWN`` or on top of it.

    Args:
        config_file: YAML file, which can be read with all its bases; or the empty string.
        overrides: KEY VALUE pairs in a row, which come after the file.
    """
    keys = set(overrides[::2])
    if KEY in keys or not config_file:
        return keys
    content, bases = read_config_file(config_file)
    in_file = {key for key, _ in key_values(content)}
    # Down to the first file that sets the key: those below it describe another data set.
    below = [] if KEY in in_file else map(keys_set_by_user, bases)
    in_base: set[str] = next((found for found in below if KEY in found), set())
    return keys | in_file | in_base if KEY in in_file | in_base else keys


def _load_described(text: str, path: str) -> dict[str, Any]:
    """The configuration in a checkpoint, without what is of the machine that trained it.

    Raises:
        ConfigError: it is no YAML of keys, is too long, or has a ``_BASE_``.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{path}: its configuration has {len(text)} characters: expected fewer")
    content = _parse(text.encode(), path)
    if BASE_KEY in content:
        raise ConfigError(f"{path}: its configuration has {BASE_KEY}: expected a complete one")
    content.pop("OUTPUT_DIR", None)
    for key in ("DEVICE", "WEIGHTS", "TRUST_WEIGHTS"):
        if isinstance(content.get("MODEL"), dict):
            content["MODEL"].pop(key, None)
    return content


def _use_described_classes(
    cfg: CfgNode, description: ModelDescription, kept: Collection[str]
) -> None:
    """Make the classes of a model known, and its own data where they are on this machine."""
    if cfg.DATASETS.OWN:
        try:
            register_own_data(cfg.DATASETS.OWN)
        except UserError as error:
            # Prediction needs the names of the classes alone; an evaluation misses the data set.
            logger.info("The data that the model was trained on are not used: %s", error)
            cfg.DATASETS.OWN = []
    name = description.register_classes()
    if not name:
        return
    is_own = name == description.dataset and name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for key in {"TRAIN", "TEST"} - {key.removeprefix("DATASETS.") for key in kept}:
        known = tuple(n for n in cfg.DATASETS[key] if n == name or n in DatasetCatalog)
        cfg.DATASETS[key] = known if is_own and known else (name,)


def check_datasets(names: Sequence[str], where: str = "", *, required: bool = False) -> None:
    """Make sure that data sets are registered; ``where`` is the key that has them.

    Raises:
        ConfigError: one is not; names the nearest that are. Or there is none although ``required``.
    """
    if required and not names:
        raise ConfigError(f"{where} is {quoted(names)}: expected one data set or more")
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            place, nearest = f"{where}: " * bool(where), nearest_names(str(name), known)
            raise ConfigError(f"{place}there is no data set {name}; nearest are {nearest}")


def class_dataset(cfg: CfgNode) -> str:
    """The data set that gives names and colours of classes: the first to test on, else to train on.

    Raises:
        ConfigError: there is neither.
    """
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        return name
    expected = "expected a data set in one, which gives names and colours of classes"
    raise ConfigError(f"DATASETS.TEST and DATASETS.TRAIN are empty: {expected}")


def check_output_dir(cfg: CfgNode) -> None:
    """Make ``OUTPUT_DIR`` and sure that it can be written, before there is something to lose.

    Raises:
        ConfigError: it cannot.
    """
    # A folder http: would be made.
    if "://" in cfg.OUTPUT_DIR:
        raise ConfigError(f"OUTPUT_DIR is {cfg.OUTPUT_DIR}: expected a folder of this machine")
    # The files that Detectron2 writes or goes on writing.
    folder = Path(cfg.OUTPUT_DIR)
    try_folder(folder, "OUTPUT_DIR")
    for name in ("config.yaml", "log.txt", "metrics.json"):
        try_file(folder / name, "OUTPUT_DIR")


@contextmanager
def built_from_keys() -> Iterator[None]:
    """Within it errors of constructors about their arguments are ConfigErrors: ValueErrors, and the
    assertions by which Detectron2 checks its own."""
    try:
        yield
    except (ValueError, AssertionError) as error:
        raise ConfigError(str(error)) from error


def nearest_names(name: str, known: Iterable[str]) -> str:
    """The likely meaning of an unknown ``name``: the nearest of ``known``, else some of them."""
    known = sorted(known)
    return ", ".join(difflib.get_close_matches(name, known) or known[:5])


def _configs() -> dict[str, Path]:
    """The files of this project, by their names."""
    return {str(f.relative_to(_CONFIGS).with_suffix("")): f for f in _CONFIGS.rglob("*.yaml")}


def _short(name: str) -> str:
    return name.removeprefix("configs/").removesuffix(".yaml")


def _merge_block(cfg: CfgNode, content: Mapping[str, Any], node: CfgNode, prefix: str) -> None:
    """Set the keys of ``node``, which stands at ``prefix`` in ``cfg``, from a file's block."""
    for name, value in content.items():
        key = prefix + name
        if name not in node:
            raise ConfigError(_unknown_key(cfg, key))
        if not isinstance(node[name], CfgNode):
            node[name] = convert(key, value, node[name])
        elif isinstance(value, Mapping):
            _merge_block(cfg, value, node[name], f"{key}.")
        else:
            keys = ", ".join(node[name])
            raise ConfigError(f"{key} is {quoted(value)}: expected a block of keys, {keys}")


def _unknown_key(cfg: CfgNode, key: str) -> str:
    keys, name = list(dict(walk(cfg))), key.rpartition(".")[2]
    # A key at the wrong place is likelier than a misspelt one.
    elsewhere = [known for known in keys if known.rpartition(".")[2] == name]
    nearest = ", ".join((elsewhere or difflib.get_close_matches(key, keys))[:3])
    return f"there is no config key {key}" + (f"; nearest are {nearest}" if nearest else "")


def _choose_device(wanted: str) -> str:
    # Detectron2's default is cuda, which fails late on a machine without it.
    has_cuda = torch.cuda.is_available()
    if not wanted:
        if not has_cuda:
            logger.warning("CUDA is not available: MODEL.DEVICE is cpu")
        return "cuda" if has_cuda else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        kind = "unknown"
    # On meta nothing is computed: within torch.device("meta") models are built for their shapes.
    if kind not in {"cpu", "cuda", "mps", torch.get_default_device().type}:
        raise ConfigError(f"MODEL.DEVICE is {printable(wanted)!r}: expected cpu, cuda, cuda:N")
    if kind == "cuda" and not has_cuda:
        lack = "but CUDA is not available; set MODEL.DEVICE cpu"
        raise ConfigError(f"MODEL.DEVICE is {wanted}, {lack}")
    return wanted


def _expand_home(key: str, path: str | None) -> str:
    """``path`` with the home folder in place of ``~``; of an unknown user it is a ConfigError."""
    # Detectron2 takes None for any value.
    if not isinstance(path, str):
        raise ConfigError(f"{key} is {path}: expected a path")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise ConfigError(
            f"{key} is {path}: expected a path, or ./{path} (there is no user {user})"
        )
    return expanded


def _merge(upper: Mapping[str, Any], lower: dict[str, Any]) -> None:
    for key, value in upper.items():
        if isinstance(value, dict) and isinstance(lower.get(key), dict):
            _merge(value, lower[key])
        else:
            lower[key] = value


def _count_nodes(node: yaml.Node, counts: dict[int, float]) -> float:
    """How many nodes there are with aliases written out; infinite if one stands for itself."""
    if id(node) not in counts:
        # The value while the children are counted, and so of a node among its own descendants.
        counts[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in children for part in pair]
        counts[id(node)] = 1 + sum(_count_nodes(child, counts) for child in children)
    return counts[id(node)]


class _Loader(yaml.SafeLoader):
    """Plain values only."""

    path = ""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ConfigError:
            raise
        # Of Python's own types: integers of thousands of digits, days that are on no calendar.
        except ValueError as error:
            place = f"{self.path}, line {node.start_mark.line + 1}"
            raise ConfigError(f"{place}: {shown(node.value)} is no number or day") from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            line = key.start_mark.line + 1
            # <<: merges another mapping; it is no key.
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(self.construct_object(key, deep=True), str):
                raise ConfigError(f"{self.path}, line {line}: {key.value!r} is no name of a key")
            if names.count(key.value) > 1:
                logger.warning("%s, line %d: %s is there twice", self.path, line, key.value)
        return super().construct_mapping(node, deep=deep)


_PUBLISHED = re.compile(
    r"\[int\(x \* (\d{1,9}\.?\d{0,9}) \* (\d{1,9})\) for x in range\((\d{1,9}), (\d{1,9})\)\]"
)


def _construct_eval(loader: _Loader, node: yaml.Node) -> list[int]:
    """The list of sizes in published files: [int(x * 0.1 * 640) for x in range(5, 21)]."""
    arguments = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    found = _PUBLISHED.fullmatch(str(arguments[0])) if len(arguments) == 1 else None
    if found is None:
        return _refuse_tag(loader, "object/apply:eval", node)
    factor, size, first, end = float(found[1]), int(found[2]), int(found[3]), int(found[4])
    return [int(x * factor * size) for x in range(first, min(end, MAX_NODES))]


def _refuse_tag(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    raise ConfigError(
        f"{loader.path}, line {node.start_mark.line + 1}: the tag !!python/{suffix} is refused, "
        "because it runs code: expected plain values, and lists as in published files, "
        "[int(x * 0.1 * 640) for x in range(5, 21)]"
    )


# The longer tag takes precedence over the prefix.
_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _construct_eval)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _refuse_tag)
