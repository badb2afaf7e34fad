"""Which runs may train side by side as one program: those that train the head alone, on the same numbers; pure."""

from __future__ import annotations

from pharmclf.config import RunConfig, to_dict
from pharmclf.config.fields import select_names
from pharmclf.core.hashing import fingerprint
from pharmclf.training.phases import build_phases


def group_key(config: RunConfig) -> str | None:
    """What runs must have in common to train side by side: equal for those that may, a hash of their settings.

    Args:
        config: the run; give it the precision that "auto" comes to on the device, where that is known.

    Returns:
        None where the run must train alone: it trains more than the head, nothing is kept for it, or it has a loss
        scale (mixed_float16), which all weights of a program would share.
    """
    trains_backbone = any(phase.unfreeze_blocks > 0 for phase in build_phases(config))
    nothing_kept = config.views == 0 or config.activations == "never"
    if trains_backbone or nothing_kept or config.precision == "mixed_float16":
        return None
    common = to_dict(config)
    for path in select_names(RunConfig, "per_head", True):
        *groups, last = path.split(".")
        inner = common
        for group in groups:
            inner = inner[group]
        del inner[last]
    return fingerprint(common)
