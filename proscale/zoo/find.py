"""From a word to a model: its configuration, its weights and its classes.

The word is a checkpoint file that describes its model, the name of a model that comes with the
package or is in the catalogue, or a repository on the Hugging Face Hub, ``hf://OWNER/NAME``. Names
of configurations are not looked up here: they come without weights.
"""

from pathlib import Path
from typing import Any, NamedTuple

from proscale.checkpoint.description import ModelDescription, read_description
from proscale.checkpoint.files import READABLE
from proscale.errors import CheckpointError
from proscale.zoo.cache import fetch
from proscale.zoo.catalogue import CATALOGUE
from proscale.zoo.hugging_face import PREFIX, fetch_file, fetch_weights, keys_of, repository_of

_SHIPPED = Path(__file__).parent / "weights"


class FoundModel(NamedTuple):
    """What a word stands for.

    Attributes:
        weights: checkpoint file on this machine.
        config: name of the configuration below the keys; empty where those are complete.
        keys: configuration keys, as a YAML file has them.
        description: what the file says of itself; its classes are the model's.
    """

    weights: Path
    config: str = ""
    keys: dict[str, Any] = {}  # noqa: RUF012  a default that is never changed
    description: ModelDescription | None = None


def shipped_models() -> dict[str, Path]:
    """The files that come with the package, by name."""
    return {file.stem: file for file in sorted(_SHIPPED.glob("*.safetensors"))}


def model_names() -> list[str]:
    """All names, those of configurations apart."""
    return [*shipped_models(), *CATALOGUE]


def is_model(word: str) -> bool:
    """Whether ``word`` is for :func:`find_model`; else it is a configuration."""
    return (
        word.startswith(PREFIX)
        or word in model_names()
        or (word.endswith(READABLE) and "://" not in word)
    )


def find_model(word: str) -> FoundModel:
    """The model that ``word`` stands for; fetches it if it is not on this machine.

    Raises:
        CheckpointError: the file is no checkpoint, or does not describe its model.
        ConfigError: it cannot be fetched.
    """
    if word.startswith(PREFIX):
        return _of_repository(word)
    if word in CATALOGUE:
        published = CATALOGUE[word]
        if published.source.startswith(PREFIX):
            return _of_repository(published.source)
        file = fetch(published.source, sha256=published.sha256)
        return FoundModel(file, published.config)
    file = shipped_models().get(word) or Path(word).expanduser()
    if not file.exists():
        raise CheckpointError(f"there is no file {file}")
    description = None if file.suffix == ".pkl" else read_description(file)
    if description is None:
        raise CheckpointError(
            f"{file} does not say of which model it is: expected a configuration, and this file as "
            "its weights"
        )
    return FoundModel(file, description=description)


def find_weights(word: str) -> str:
    """``word`` as a file, where it is a model's name or a repository; all else as it is.

    Raises:
        ConfigError: it cannot be fetched.
        CheckpointError: see :func:`~proscale.zoo.cache.fetch`.
    """
    if word.startswith(PREFIX):
        return str(fetch_weights(repository_of(word)))
    if Path(word).is_file() or word not in model_names():
        return word
    if word in CATALOGUE and not CATALOGUE[word].source.startswith(PREFIX):
        return str(fetch(CATALOGUE[word].source, sha256=CATALOGUE[word].sha256))
    return str(shipped_models().get(word) or find_weights(CATALOGUE[word].source))


def _of_repository(word: str) -> FoundModel:
    repository = repository_of(word)
    # A file of this project says all; others have a configuration beside them.
    weights = fetch_weights(repository)
    description = read_description(weights)
    if description is not None:
        return FoundModel(weights, description=description)
    config, keys, classes = keys_of(repository, fetch_file(repository, "config.json"))
    described = ModelDescription(config="", dataset=repository, classes=classes)
    return FoundModel(weights, config, keys, described if classes else None)
