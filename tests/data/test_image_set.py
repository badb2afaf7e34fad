"""The files of a manifest as those who decode them are given them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pharmclf.data.batch_sampler import PADDING
from pharmclf.data.decoded_image import Crop
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest


def test_each_row_keeps_its_own_sum_however_rows_are_taken(drawn_manifest: Manifest):
    """Taken in any order, sliced and joined, a path stands beside its own sha256; padding has neither."""
    images, table = ImageSet.of(drawn_manifest), drawn_manifest.table
    sums = dict(zip(table["path"], table["sha256"], strict=True))
    assert images.paths.to_pylist() == table["path"].tolist()
    taken = ImageSet.join([images.select([7, PADDING, 3]), images.slice(78, 10)])
    wanted = [table["path"][7], "", table["path"][3], *table["path"][78:]]
    assert taken.paths.to_pylist() == wanted
    assert taken.sha256.to_pylist() == [sums.get(path, "") for path in wanted]
    assert len(taken) == 5
    crops = np.arange(240, dtype=np.float32).reshape(80, 3)
    cropped = replace(images, crops=crops)
    mixed = ImageSet.join([cropped.select([7, 3]), images.slice(0, 1), cropped.slice(78, 10)])
    assert mixed.crops is not None
    np.testing.assert_array_equal(mixed.crops, np.stack([crops[7], crops[3], [np.nan] * 3, *crops[78:]]))
    assert [mixed.crop(place) for place in (0, 2)] == [Crop(21, 22, 23), None]
    assert ImageSet.of_paths(["a", "b"]).sha256.to_pylist() == ["", ""]
