"""Groups runs that can train as one program: those that train the head alone, on the same features; pure."""

from __future__ import annotations

from pharmclf.config import RunConfig, to_dict
from pharmclf.config.fields import select_names
from pharmclf.core.hashing import fingerprint
from pharmclf.training.phases import build_phases


def group_key(config: RunConfig) -> str | None:
    """A hash of the settings that runs must have in common to train as one program.

    Args:
        config: the run; with the precision that "auto" becomes on the device, if it is known.

    Returns:
        None if the run must train alone: it trains more than the head, or one that is not new, has a time budget, no
        feature cache, or a loss scale (mixed_float16), which all weights of a program would share.
    """
    phases = build_phases(config)
    trains_backbone = any(phase.unfreeze_blocks > 0 for phase in phases)
    is_uncached = config.views == 0 or config.feature_cache == "never" or any(phase.image_sizes for phase in phases)
    if config.init_from or config.time_budget or trains_backbone or is_uncached or config.precision == "mixed_float16":
        return None
    common = to_dict(config)
    for path in select_names(RunConfig, "per_head", True):
        *groups, last = path.split(".")
        inner = common
        for group in groups:
            inner = inner[group]
        del inner[last]
    return fingerprint(common)
