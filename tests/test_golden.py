"""The golden postprocessing cases, checked against FocoosAI's own processor when they were made."""

from __future__ import annotations

import fai_fast
import numpy as np
import pytest
import reference
from helpers.golden import CASES, load, settings_of, truth_of


def test_all_cases_are_here():
    assert len(CASES) == 11


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path, dtype):
    case = load(path)
    height, width = case["size"].tolist()
    mask_logits, class_logits = case["mask_logits"], case["class_logits"]
    truth = truth_of(path)
    result = fai_fast.postprocess(
        mask_logits.astype(dtype), class_logits.astype(dtype), (height, width), **settings_of(case)
    )

    order = np.lexsort((result.query, -result.confidence))
    assert order.tolist() == list(range(len(result)))
    by_query = np.argsort(result.query)
    np.testing.assert_array_equal(result.query[by_query], case["query"])
    np.testing.assert_array_equal(result.class_id[by_query], case["class_id"])
    np.testing.assert_allclose(result.confidence[by_query], case["confidence"], rtol=0, atol=1e-5)

    golden = np.unpackbits(case["masks_packed"], axis=-1, count=width).astype(bool)
    differs = result.mask[by_query] != golden
    margin = truth.margin if case["predict_all_pixels"] else truth.margin[case["query"]]
    assert not (differs & (margin >= reference.PIXEL_TOLERANCE)).any()
    for row, query in enumerate(case["query"]):
        if not differs[row].any():
            inclusive = result.xyxy[by_query[row]] - [0, 0, 1, 1]
            np.testing.assert_array_equal(inclusive, case["xyxy_inclusive"][row], err_msg=f"query {query}")
    # Boxes and areas of the masks that do differ are those of the masks returned.
    reference.assert_matches(truth, result)
    if case["predict_all_pixels"]:
        reference.assert_disjoint(result)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_reference_agrees_with_golden(path):
    case = load(path)
    truth = truth_of(path)
    query, score = truth.rows()
    by_query = np.argsort(query)
    query = query[by_query]
    np.testing.assert_array_equal(query, case["query"])
    np.testing.assert_array_equal(truth.class_id[query], case["class_id"])
    np.testing.assert_allclose(score[by_query], case["confidence"], rtol=0, atol=1e-6)
    golden = np.unpackbits(case["masks_packed"], axis=-1, count=case["size"][1]).astype(bool)
    np.testing.assert_array_equal(truth.inside[query], golden)
    boxes = np.array([reference.tight_box(truth.inside[q]) for q in query]).reshape(-1, 4)
    np.testing.assert_array_equal(boxes - [0, 0, 1, 1], case["xyxy_inclusive"])
