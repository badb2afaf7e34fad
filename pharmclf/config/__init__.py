"""The configuration of one run."""

from pharmclf.config.schema import (
    DEMO,
    AugmentConfig,
    BackboneName,
    ConfigError,
    DemoConfig,
    HeadConfig,
    OptimizerConfig,
    PhaseConfig,
    RunConfig,
    SplitConfig,
    StoppingConfig,
    parse_duration,
    parse_share,
    parse_workers,
)
from pharmclf.config.text import from_dict, load_yaml, to_dict, to_yaml

__all__ = [
    "DEMO", "AugmentConfig", "BackboneName", "ConfigError", "DemoConfig", "HeadConfig", "OptimizerConfig",
    "PhaseConfig", "RunConfig", "SplitConfig", "StoppingConfig", "from_dict", "load_yaml",
    "parse_duration", "parse_share", "parse_workers", "to_dict", "to_yaml",
]  # fmt: skip
