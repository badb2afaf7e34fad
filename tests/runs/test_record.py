"""What a run's record says of its settings."""

from __future__ import annotations

from pharmclf.config import RunConfig, SplitConfig
from pharmclf.config.fields import select_names
from pharmclf.core.hashing import fingerprint
from pharmclf.runs.record import flatten, result_settings


def test_settings_that_came_later_leave_a_run_with_their_defaults_as_it_was():
    """The fingerprint of the plain settings is that of records which lack them; another value makes another run."""
    assert fingerprint(result_settings(RunConfig())) == "bca1e7f28668826a8eac4299918eecd2"
    other = flatten(
        result_settings(
            RunConfig(
                label_level=-2,
                min_images=5,
                split=SplitConfig(ignore_folders=True),
                all_reduce_dtype="bfloat16",
                crop="auto",
                folds=5,
                labels="corrected.csv",
            )
        )
    )
    assert {name: other[name] for name in set(other) - set(flatten(result_settings(RunConfig())))} == {
        "label_level": -2,
        "min_images": 5,
        "split.ignore_folders": True,
        "all_reduce_dtype": "bfloat16",
        "crop": "auto",
        "folds": 5,
        "labels": "corrected.csv",
    }


def test_the_settings_that_no_result_depends_on_are_these():
    """A run that is resumed may differ in them; a setting that joins or leaves them changes what may be resumed."""
    assert set(select_names(RunConfig, "affects_result", False)) == {
        "data", "storage", "name", "weights", "init_from", "mlflow", "tensorboard", "xla", "microbatch", "skip_checks",
        "accelerator", "num_workers", "max_failures", "node_timeout", "step_timeout_s", "monitor_interval_s",
        "allow_unauthenticated_cluster", "checkpoint_interval_s", "num_checkpoints_to_keep", "feature_cache",
        "feature_cache_dtype", "image_cache",
        "eval_data", "unknown", "max_invalid", "target_error", "price_per_hour",
    }  # fmt: skip
