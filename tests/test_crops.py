"""Crops side by side of a frame: where they lie, and the one result that is made of what a network says of them."""

from __future__ import annotations

import fai_fast
import numpy as np
import pytest
import reference
from fai_fast import _core
from fai_fast._crops import MOST, Crops, postprocess_crops
from fai_fast.ops import preprocess_frame
from helpers.crops import CLASSES, FRAMES, RESIZED, SIDE, logits, noise


def test_a_crop_is_a_part_of_the_stretched_frame():
    picture = noise((33, 57))
    crops = Crops.of((33, 57), (64, 64))
    whole = fai_fast.preprocess(picture, crops.whole, mean=0, std=1)
    for index, start in enumerate(crops.starts):
        part, _ = preprocess_frame(picture, (64, 64), mean=0, std=1, part=crops.part(index))
        assert np.array_equal(part, whole[:, :, :, start : start + 64])
    nv12 = np.concatenate([picture[:32, :56, 0], picture[:16, :56, 1]])
    crops = Crops.of((32, 56), (64, 64))
    whole = fai_fast.preprocess(nv12, crops.whole, mean=0, std=1, color="nv12")
    part, _ = preprocess_frame(nv12, (64, 64), mean=0, std=1, color="nv12", part=crops.part(1))
    assert np.array_equal(part, whole[:, :, :, crops.starts[1] :])


def test_where_the_processor_leaves_a_column_out_there_is_a_crop():
    """Its starts are truncated floating-point numbers, of which the last may come out a pixel short."""
    crops = Crops.of((40, 284), (40, 40))
    assert crops.starts[-1] + crops.side == 284
    assert len(crops.starts) == 8


def test_too_many_crops_are_refused():
    assert len(Crops.of((10, 10 * MOST), (64, 64)).starts) == MOST
    with pytest.raises(
        ValueError, match=r"image: got a frame of 10 x 641 .* 65 crops, expected at most 64; res"
    ):
        Crops.of((10, 10 * MOST + 1), (64, 64))
    # No side of the whole may have 32768 pixels.
    assert len(Crops.of((10, 630), (512, 512)).starts) == 63
    with pytest.raises(ValueError, match=r"image: got a frame of 640 x 10 .* 64 crops, expected at most 63;"):
        Crops.of((640, 10), (512, 512))
    with pytest.raises(ValueError, match=r"im_size: got 64 x 96 .* expected a square"):
        Crops.of((10, 20), (64, 96))


@pytest.mark.parametrize(
    "part", [((64, 100), (0, 37)), ((64, 63), (0, 0)), ((64, 100), (-1, 0)), ((0, 1), (0, 0))]
)
def test_a_part_outside_is_refused(part):
    with pytest.raises(ValueError, match="whole: got"):
        preprocess_frame(noise((64, 100)), (64, 64), mean=0, std=1, part=part)


@pytest.mark.parametrize("frame", [*FRAMES, *RESIZED])
def test_sums_are_put_together(frame):
    crops = Crops.of(frame, (SIDE, SIDE))
    masks, classes = logits(len(crops.starts), sum(frame))
    found = postprocess_crops(masks, classes, crops, num_threads=1)
    reference.assert_sums_match(reference.crop_sums(masks, classes, frame, crops.whole, crops.starts), found)
    assert len(found) > 1
    assert found == postprocess_crops(masks, classes, crops, num_threads=3)


def test_many_classes_and_logits_of_any_size():
    """Labels of two bytes, and float16 logits as large as the input, in an array with gaps."""
    crops = Crops.of((50, 95), (48, 48))
    masks, classes = (array.astype(np.float16) for array in logits(2, queries=20, side=48, classes=300))
    found = postprocess_crops(
        np.repeat(masks, 2, axis=3)[..., ::2], classes, crops, class_activation="sigmoid", threshold=0.3
    )
    truth = reference.crop_sums(
        masks,
        classes,
        (50, 95),
        crops.whole,
        crops.starts,
        class_activation="sigmoid",
        threshold=0.3,
    )
    reference.assert_sums_match(truth, found)
    assert found.class_id.max() > 255


def test_a_single_crop_is_one_picture():
    masks, classes = logits(1)
    for activation in ("softmax", "sigmoid"):
        crops = Crops.of((90, 90), (SIDE, SIDE))
        ours = postprocess_crops(masks, classes, crops, class_activation=activation, threshold=0.2)
        one = fai_fast.postprocess(
            masks,
            classes,
            (90, 90),
            threshold=0.2,
            predict_all_pixels=True,
            combine="sum",
            class_activation=activation,
            resampling=fai_fast.Resampling(logits_size=(SIDE, SIDE)),
        )
        assert ours == one
        assert len(ours)


def test_queries_with_nan_take_no_part():
    crops = Crops.of((64, 100), (SIDE, SIDE))
    masks, classes = logits(2)
    without = classes.copy()
    # 'No object' and nothing else: a query that adds nothing.
    without[0, 3] = without[1, 5] = np.where(np.arange(CLASSES + 1) == CLASSES, 0, -np.inf)
    expected = postprocess_crops(masks, without, crops)
    masks[0, 3, 7, 7] = classes[1, 5, 0] = np.nan
    found = postprocess_crops(masks, classes, crops)
    assert np.array_equal(found.label_map, expected.label_map)
    # A crop without any query has nobody, where no other has a part.
    masks[1] = np.nan
    labels = postprocess_crops(masks, classes, crops).label_map
    assert (labels[:, 64:] == -1).all()
    assert (labels[:, :63] >= 0).all()
    turned = postprocess_crops(
        masks.swapaxes(2, 3).copy(), classes, Crops.of((100, 64), (SIDE, SIDE))
    ).label_map
    assert (turned[64:] == -1).all()
    assert (turned[:63] >= 0).all()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"starts": [0]}, "starts: got 1, expected one for each of 2 crops"),
        ({"starts": [0, 65]}, "starts: got 65 where 64 pixels are covered"),
        ({"starts": [36, 0]}, "starts: got 36 where 0 pixels are covered"),
        ({"starts": [0, 30]}, "starts: got crops of 94 pixels, expected them to end at 100"),
        ({"side": 32}, "side: got 32, expected the shorter side of whole, 64 x 100"),
        ({"whole": (0, 5)}, "whole: got 0 x 5"),
        ({"size": (0, 5)}, "size: got 0 x 5"),
        (
            {"mask_logits": np.zeros((2, 3, 4), np.float32)},
            r"mask_logits: got shape \(2, 3, 4\), expected \(N, Q",
        ),
        ({"class_logits": np.zeros((3, 12, 6), np.float32)}, "class_logits: got 3 crops .* expected 2"),
        ({"class_logits": np.zeros((2, 11, 6), np.float32)}, "class_logits: got 11 queries"),
        ({"class_names": 6}, "class_names: got 6 names, expected 5"),
        ({"threshold": np.nan}, "threshold: got nan"),
    ],
)
def test_what_does_not_fit_is_named(changes, problem):
    masks, classes = logits(2)
    given = {"mask_logits": masks, "class_logits": classes, "size": (64, 100), "whole": (64, 100), "side": 64}
    given |= {"starts": [0, 36], "threshold": 0.0, "softmax": True, "class_names": -1, "num_threads": 1}
    with pytest.raises(ValueError, match=problem):
        _core.postprocess_crops(**{**given, **changes})
