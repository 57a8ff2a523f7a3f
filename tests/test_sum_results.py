"""A semantic result by sum is a result as others are: what is made of it, and of what is left after a choice."""

from __future__ import annotations

import pickle

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections

SIZE = (64, 80)
NAMES = tuple("abcdefg")


@pytest.fixture(scope="module")
def found():
    rng = np.random.default_rng(0)
    masks = rng.normal(scale=4, size=(20, 16, 16)).astype(np.float32)
    classes = rng.normal(scale=2, size=(20, len(NAMES) + 1)).astype(np.float32)
    return fai_fast.postprocess(
        masks, classes, SIZE, predict_all_pixels=True, combine="sum", threshold=0.0, class_names=NAMES
    )


def test_rows_are_classes(found):
    assert len(found) > 3
    assert len(set(found.class_id.tolist())) == len(found)
    np.testing.assert_array_equal(found.query, found.class_id)
    assert found.is_thing is None
    label_map = found.label_map
    np.testing.assert_array_equal(found.area, [(label_map == i).sum() for i in found.class_id])
    for row in found.rows():
        np.testing.assert_array_equal(row.mask, label_map == row.class_id)


def test_what_is_left_out_has_no_label(found):
    kept = found.filter(classes=[found.class_name[0]])
    np.testing.assert_array_equal(
        kept.label_map, np.where(found.label_map == found.class_id[0], found.class_id[0], -1)
    )
    assert found.nms(iou=0.0, class_agnostic=True) == found
    assert (found.clean(largest_part=True).label_map == -1).any()


def test_it_goes_to_other_forms_and_back(found):
    assert pickle.loads(pickle.dumps(found)) == found
    assert Detections.from_supervision(found.to_supervision(), class_names=NAMES) == found
    np.testing.assert_array_equal(Detections.from_label_png(found.to_label_png()).label_map, found.label_map)
    again = Detections.from_json(found.to_json())
    np.testing.assert_array_equal(again.mask, found.mask)
    assert len(found.to_coco(1)) == len(found)
    rows = np.choose(found.segment_map(), [-1, *found.class_id])
    np.testing.assert_array_equal(rows, found.label_map)
    with pytest.raises(ValueError, match=r"^panoptic_png: got a result that is not panoptic"):
        found.panoptic_png()


def test_it_is_drawn_as_areas(found):
    image = np.zeros((*SIZE, 3), np.uint8)
    assert found.plot(image).shape[1] > SIZE[1]  # the legend
    drawn = found.plot(image, labels=False, opacity=1.0)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) >= len(found)
