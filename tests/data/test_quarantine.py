"""Images that are lost while a run is under way: said once, listed, and bounded."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pharmclf.config import ConfigError
from pharmclf.core.events import ImagesQuarantined, Note
from pharmclf.data.manifest import Manifest
from pharmclf.data.quarantine import Quarantine


def test_each_image_is_said_once_a_handful_by_name_and_the_rest_by_count(drawn_manifest: Manifest, tmp_path: Path):
    """Of eight five are named; the list holds all, and the splits and classes of the rest stay as they were."""
    said: list[str] = []
    place = tmp_path / "quarantine.csv"
    quarantine = Quarantine(drawn_manifest, 0.1, said.append, str(place))
    quarantine.on_event(ImagesQuarantined(reasons={3: "not there", 4: "changed"}))
    quarantine.on_event(Note(text="9"))
    for _ in range(2):  # every epoch meets them again
        quarantine.on_event(ImagesQuarantined(reasons=dict.fromkeys(range(4, 11), "changed")))
    quarantine.write()
    paths = drawn_manifest.table["path"]
    assert said[:2] == [f"warning: quarantined: {paths[3]}: not there", f"warning: quarantined: {paths[4]}: changed"]
    assert said[5:] == [f"warning: quarantined: 3 more images, listed in {place}"]
    assert len(said) == 6
    with place.open() as file:
        listed = {row["path"]: row["status"] for row in csv.DictReader(file)}
    assert listed == {paths[3]: "not there"} | {paths[row]: "changed" for row in range(4, 11)}
    left = quarantine.manifest
    assert len(left.ok) == len(drawn_manifest.ok) - 8
    assert left.class_names == drawn_manifest.class_names
    assert not quarantine.exceeds_limit
    quarantine.check()


def test_those_of_the_manifest_count_and_one_beyond_the_share_is_refused_by_name(drawn_manifest: Manifest):
    """Of 80 images 10 % may be bad: six of the manifest and two are, a third one lost is refused, and is named."""
    manifest = drawn_manifest.with_status(dict.fromkeys(range(70, 76), "truncated"))
    quarantine = Quarantine(manifest, 0.1, lambda _: None)
    quarantine.add({0: "not there", 1: "changed"})
    assert not quarantine.exceeds_limit
    quarantine.add({0: "not there", 2: "changed"})
    assert quarantine.exceeds_limit
    with pytest.raises(
        ConfigError, match=r"^9 of 80 images are bad \(11\.2%\), expected at most 10\.0%; 3 of them have "
    ):
        quarantine.check()
    with pytest.raises(ConfigError) as refused:
        quarantine.check()
    assert f"{manifest.table['path'][2]}: changed" in str(refused.value)
    assert "accept more with --max-invalid" in str(refused.value)
