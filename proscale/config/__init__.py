"""Configuration: keys, YAML files, accepted values, and the user's own data."""

from proscale.config.schema import add_proscale_config
from proscale.config.setup import (
    as_overrides,
    built_from_keys,
    check_datasets,
    check_output_dir,
    class_dataset,
    config_names,
    find_config,
    setup_cfg,
    without_trust,
)

__all__ = [
    "add_proscale_config",
    "as_overrides",
    "built_from_keys",
    "check_datasets",
    "check_output_dir",
    "class_dataset",
    "config_names",
    "find_config",
    "setup_cfg",
    "without_trust",
]
