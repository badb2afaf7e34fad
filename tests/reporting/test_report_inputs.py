"""What a report says of a data set: that of a run by its splits, one that a model is tested on as a whole."""

from __future__ import annotations

from pharmclf.data.manifest import Manifest
from pharmclf.reporting.report_inputs import build_dataset_report


def test_a_set_that_a_model_is_tested_on_counts_as_a_whole(drawn_manifest: Manifest):
    """Eighty images of ten classes, whatever splits a list gives them; of a run's own data those of its splits."""
    facts = build_dataset_report(drawn_manifest, has_splits=False)
    assert not facts.has_splits
    assert facts.counts == [*((name, 0, 0, 8) for name in drawn_manifest.class_names), ("all", 0, 0, 80)]
    own = build_dataset_report(drawn_manifest)
    sizes = [len(drawn_manifest.rows(split)) for split in ("train", "validation", "test")]
    assert own.has_splits
    assert own.counts[-1] == ("all", *sizes)
    assert sum(sizes) == 80
