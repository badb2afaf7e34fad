"""What a run's record says of its settings."""

from __future__ import annotations

from pharmclf.config import RunConfig, SplitConfig
from pharmclf.core.hashing import fingerprint
from pharmclf.runs.record import flatten, result_settings


def test_settings_that_came_later_leave_a_run_with_their_defaults_as_it_was():
    """The fingerprint of the plain settings is that of records which lack them; another value makes another run."""
    assert fingerprint(result_settings(RunConfig())) == "bca1e7f28668826a8eac4299918eecd2"
    other = flatten(result_settings(RunConfig(label_level=-2, min_images=5, split=SplitConfig(ignore_folders=True))))
    assert {name: other[name] for name in set(other) - set(flatten(result_settings(RunConfig())))} == {
        "label_level": -2,
        "min_images": 5,
        "split.ignore_folders": True,
    }
