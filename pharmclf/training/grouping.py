"""Which runs may train side by side as one program: those that train the head alone, on the same numbers; pure."""

from __future__ import annotations

from pharmclf.config import RunConfig, to_dict
from pharmclf.core.hashing import fingerprint
from pharmclf.training.phases import build_phases

PER_HEAD_SETTINGS = (
    # numbers that each head has of its own
    "phase1.learning_rate", "phase1.schedule", "phase1.warmup",
    "phase2.learning_rate", "phase2.schedule", "phase2.warmup",
    "head.dropout", "optimizer.label_smoothing", "optimizer.weight_decay", "optimizer.clip_norm",
    "stopping.early_patience", "stopping.plateau_patience", "stopping.plateau_factor", "stopping.learning_rate_floor",
    # where and how a run goes on, which no number depends on
    "name", "storage", "workers", "failures", "activations", "checkpoint_every_s", "keep_checkpoints",
    "wait_for_nodes", "hang_after_s", "allow_open_cluster", "skip_checks", "hardware_every_s", "extra_test",
    "max_error", "tensorboard", "mlflow", "microbatch",
    # 0 wherever phase 2 is trained; without it, it says nothing
    "unfreeze_blocks",
)  # fmt: skip
"""Settings in which the members of a group may differ, as dotted paths."""


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
    for path in PER_HEAD_SETTINGS:
        *groups, last = path.split(".")
        inner = common
        for group in groups:
            inner = inner[group]
        del inner[last]
    return fingerprint(common)
