"""Models by name: where a name leads, published weights, and a cache of what was fetched."""

from proscale.zoo.catalogue import CATALOGUE, PublishedModel
from proscale.zoo.find import (
    FoundModel,
    find_model,
    find_weights,
    is_model,
    model_names,
    shipped_models,
)

__all__ = [
    "CATALOGUE",
    "FoundModel",
    "PublishedModel",
    "find_model",
    "find_weights",
    "is_model",
    "model_names",
    "shipped_models",
]
