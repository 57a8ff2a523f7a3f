"""What it costs to get masks out of Detections in another form; the peers start from a boolean stack."""

from __future__ import annotations

from types import SimpleNamespace

import fai_fast
import numpy as np
import pytest

from bench import peers, scenes
from bench.floor import Floor

pytestmark = pytest.mark.parametrize("threads", [2], indirect=True)
full = pytest.mark.full


@pytest.fixture(params=[(640, 640), pytest.param((1080, 1920), marks=full)], ids=lambda s: f"{s[0]}x{s[1]}")
def scene(request):
    """Packed masks of the instance scene, and the same as a boolean stack."""
    logits = scenes.instances()
    size = request.param
    detections = fai_fast.postprocess(
        logits.mask_logits, logits.class_logits, size, use_mask_score=True, num_threads=2
    )
    return SimpleNamespace(
        detections=detections,
        packed=detections.packed,
        stack=detections.mask,
        name=f"{len(detections)} masks {size[0]}x{size[1]}",
    )


def _floor(scene, written: int) -> Floor:
    return Floor(scene.packed.bits.nbytes, written, "the packed bits; the result once")


def test_mask(scene, threads, compare) -> None:
    stack, bits = scene.stack, np.packbits(scene.stack, axis=-1, bitorder="little")
    out = np.empty_like(stack)
    rivals = {
        "fai_fast decode(out=)": lambda: scene.packed.decode(out=out, num_threads=threads),
        "np.unpackbits": lambda: np.unpackbits(bits, axis=-1, bitorder="little").view(bool),
    }
    if torch_steps := peers.load("torch_steps"):
        rivals["torch shifts"] = lambda: torch_steps.decode(bits)
    for run in rivals.values():
        np.testing.assert_array_equal(run(), stack)
    floor = _floor(scene, stack.nbytes)
    compare("Detections.mask", scene.name, threads, floor, lambda: scene.detections.mask, rivals)


def test_rle(scene, threads, compare) -> None:
    ours = [entry["counts"] for entry in scene.detections.to_rle()]
    rivals = {}
    if coco := peers.load("coco"):
        columns = coco.fortran(scene.stack)
        rivals["pycocotools encode"] = lambda: coco.rle(columns)
        assert [entry["counts"] for entry in coco.rle(columns)] == ours
    if supervision := peers.load("supervision_masks"):
        rivals["supervision mask_to_rle"] = lambda: supervision.rle(scene.stack)
        assert [counts.encode() for counts in supervision.rle(scene.stack)] == ours
    written = sum(map(len, ours))
    compare(
        "Detections.to_rle", scene.name, threads, _floor(scene, written),
        lambda: scene.detections.to_rle(num_threads=threads), rivals,
    )  # fmt: skip


def test_area(scene, threads, compare) -> None:
    area = scene.packed.area()
    rivals = {"NumPy sum": lambda: scene.stack.sum((1, 2))}
    np.testing.assert_array_equal(rivals["NumPy sum"](), area)
    # Detections.area is kept from postprocess, so what is timed is the count over the bits.
    compare("PackedMasks.area", scene.name, threads, _floor(scene, area.nbytes), scene.packed.area, rivals)


def test_boxes(scene, threads, compare) -> None:
    """Packing a stack, which finds its tight boxes on the way, against finding the boxes alone."""
    rivals = {}
    packed = fai_fast.PackedMasks.from_bool(scene.stack)
    np.testing.assert_array_equal(packed.boxes, scene.packed.boxes)
    if supervision := peers.load("supervision_masks"):
        rivals["supervision mask_to_xyxy"] = lambda: supervision.boxes(scene.stack)
        # supervision's boxes are inclusive.
        np.testing.assert_array_equal(np.add(supervision.boxes(scene.stack), (0, 0, 1, 1)), packed.boxes)
    floor = Floor(scene.stack.nbytes, packed.bits.nbytes, "the stack; the packed bits")
    compare(
        "PackedMasks.from_bool", scene.name, threads, floor,
        lambda: fai_fast.PackedMasks.from_bool(scene.stack, num_threads=threads), rivals,
    )  # fmt: skip


def test_polygons(scene, threads, compare) -> None:
    if (supervision := peers.load("supervision_masks")) is None or peers.load("opencv") is None:
        pytest.skip("to_polygons needs OpenCV and is only compared with supervision")
    ours = scene.detections.to_polygons()
    for mine, theirs in zip(ours, supervision.polygons(scene.stack), strict=True):
        # supervision also gives the holes, and leaves out contours of fewer than 3 points.
        outer = {polygon.tobytes() for polygon in theirs}
        assert all(polygon.tobytes() in outer for polygon in mine if len(polygon) >= 3)
    written = sum(polygon.nbytes for polygons in ours for polygon in polygons)
    compare(
        "Detections.to_polygons", scene.name, threads, _floor(scene, written), scene.detections.to_polygons,
        {"supervision mask_to_polygons": lambda: supervision.polygons(scene.stack)},
    )  # fmt: skip


def test_focoos_json(scene, threads, compare) -> None:
    """FocoosAI's JSON, against its encoder on the same boolean crops."""
    rivals = {}
    masks = scene.detections.crops()
    if focoos := peers.load("focoos_steps"):
        boxes = scene.packed.boxes
        rivals["FocoosAI's encoder"] = lambda: focoos.encode(scene.stack, boxes)
        for row, mask in zip(scene.detections.to_focoos()["detections"], masks, strict=True):
            np.testing.assert_array_equal(focoos.decode(row["mask"]), mask)
    written = sum(len(row["mask"]) for row in scene.detections.to_focoos()["detections"])
    compare(
        "Detections.to_focoos",
        scene.name,
        threads,
        _floor(scene, written),
        scene.detections.to_focoos,
        rivals,
    )


def test_nms(scene, threads, compare) -> None:
    rivals = {}
    if supervision := peers.load("supervision_masks"):
        found = scene.detections.to_supervision()
        rivals["supervision with_nms"] = lambda: supervision.nms(found, 0.5)
        # supervision compares masks that it has scaled down to 640 pixels.
        assert abs(len(supervision.nms(found, 0.5)) - len(scene.detections.nms())) <= 1
    compare("Detections.nms", scene.name, threads, _floor(scene, 0), scene.detections.nms, rivals)


def test_clean(scene, threads, compare) -> None:
    rivals = {}
    ours = scene.detections.clean(min_area=1, largest_part=True)
    if opencv := peers.load("opencv"):
        expected = opencv.largest_parts(scene.stack)
        assert (ours.mask == expected).mean() > 0.9999  # of two parts that are equal either may stay
        rivals["OpenCV connectedComponents"] = lambda: opencv.largest_parts(scene.stack)
    compare(
        "Detections.clean", scene.name, threads, _floor(scene, ours.packed.bits.nbytes),
        lambda: scene.detections.clean(min_area=1, largest_part=True), rivals,
    )  # fmt: skip
