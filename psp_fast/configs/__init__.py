"""Recipes and the configuration they fill: `Config`, read from YAML files and the command line."""

from psp_fast.configs.loading import (
    config_from_dict,
    config_parser,
    config_to_yaml,
    option_parser,
    parse_config,
    parse_options,
    recipe_file,
)
from psp_fast.configs.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    ScenesConfig,
    TrainConfig,
)

__all__ = [
    "AugmentConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "OptimConfig",
    "ScenesConfig",
    "TrainConfig",
    "config_from_dict",
    "config_parser",
    "config_to_yaml",
    "option_parser",
    "parse_config",
    "parse_options",
    "recipe_file",
]
