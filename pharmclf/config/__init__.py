"""The configuration of one run."""

from pharmclf.config.parsing import (
    AUTO,
    check_batch_word,
    check_location,
    expand_home,
    has_credentials,
    parse_data_sets,
    parse_microbatch,
    parse_workers,
    refuse_auto,
    refuse_credentials,
)
from pharmclf.config.renamed import RENAMED
from pharmclf.config.schema import DEMO, BackboneName, RunConfig
from pharmclf.config.sections import (
    PIXEL_CHANGES,
    AugmentConfig,
    DemoConfig,
    HeadConfig,
    OptimizerConfig,
    PhaseConfig,
    SplitConfig,
    StoppingConfig,
)
from pharmclf.config.text import from_dict, load_yaml, to_dict, to_record, to_yaml
from pharmclf.core.errors import ConfigError

__all__ = [
    "AUTO", "DEMO", "PIXEL_CHANGES", "RENAMED", "AugmentConfig", "BackboneName", "ConfigError", "DemoConfig",
    "HeadConfig", "OptimizerConfig", "PhaseConfig", "RunConfig", "SplitConfig", "StoppingConfig", "check_batch_word",
    "check_location", "expand_home", "from_dict", "has_credentials", "load_yaml", "parse_data_sets", "parse_microbatch",
    "parse_workers", "refuse_auto", "refuse_credentials", "to_dict", "to_record", "to_yaml",
]  # fmt: skip
