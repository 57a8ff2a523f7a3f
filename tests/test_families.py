"""What transformers' configurations say, as records; and their results of the same outputs, by their own processors."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import fai_fast
import numpy as np
import pytest
from fai_fast._coco import CATEGORIES, STUFF
from fai_fast._rules import arguments_of
from fai_fast.letterbox import Letterbox
from fai_fast.networks.families import FAMILIES, describe

LABELS = {0: "person", 1: "sky", 2: "car", 3: "road", 4: "tree"}
QUERIES = 20


def config(kind: str, **changes: Any) -> Any:
    backbone = SimpleNamespace(patch_size=14, num_windows=4, image_size=560)
    fields = {
        "model_type": kind,
        "id2label": LABELS,
        "num_queries": QUERIES,
        "image_size": 64,
        "patch_size": 16,
        "backbone_config": backbone,
    }
    return SimpleNamespace(**{**fields, **changes})


def spec_of(
    kind: str, task: str | None = "instance", processor: Any = None, name: str = "theirs", **changes: Any
):
    return describe(config(kind, **changes), processor, name, task)


# ------------------------------------------------------------------------------------------------ records


@pytest.mark.parametrize(
    ("kind", "size", "stride"),
    [
        ("mask2former", (384, 384), 32),
        ("maskformer", (640, 640), 32),
        ("oneformer", (640, 640), 32),
        ("eomt", (64, 64), 16),
        ("eomt_dinov3", (64, 64), 16),
        ("rf_detr", (560, 560), 56),
    ],
)
def test_a_configuration_alone_is_a_record(kind, size, stride):
    spec = spec_of(kind)
    assert spec.family == kind
    assert spec.classes == tuple(LABELS.values())
    assert spec.input_size == size
    assert (spec.config.num_queries, spec.config.stride) == (QUERIES, stride)
    assert spec.config.pixel_mean == (123.675, 116.28, 103.53)
    assert spec.config.pixel_std == (58.395, 57.12, 57.375)
    assert spec.config.cls_sigmoid == (kind == "rf_detr")
    assert spec.config.resize == ("pad" if kind.startswith("eomt") else "stretch")
    assert fai_fast.ModelSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({"do_rescale": False, "image_mean": [1, 2, 3], "image_std": [4, 5, 6]}, (1, 2, 3), (4, 5, 6)),
        ({"do_normalize": False}, (0, 0, 0), (255, 255, 255)),
        ({"rescale_factor": 0.5, "image_mean": 0.25, "image_std": [0.5] * 3}, (0.5,) * 3, (1, 1, 1)),
        ({"do_rescale": False, "do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"image_mean": 0.0, "image_std": 1.0}, (0, 0, 0), (255, 255, 255)),
    ],
)
def test_pixels_are_normalized_as_by_the_processor(processor, mean, std):
    settings = spec_of("mask2former", processor=processor).config
    assert settings.pixel_mean == pytest.approx(mean)
    assert settings.pixel_std == pytest.approx(std)
    pixel = np.array([10.0, 100.0, 200.0])
    scaled = pixel * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else pixel
    theirs = scaled
    if processor.get("do_normalize", True):
        theirs = (scaled - processor["image_mean"]) / processor["image_std"]
    assert (pixel - settings.pixel_mean) / settings.pixel_std == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"height": 384, "width": 640}, (384, 640)),
        ({"height": 400, "width": 630}, (416, 640)),
        ({"shortest_edge": 512, "longest_edge": 2048}, (512, 512)),
        ({"max_height": 500, "max_width": 700}, (512, 704)),
        ({"shortest_edge": 512, "max_height": 500, "max_width": 700}, (512, 512)),
        ({"max_height": 500, "max_width": 700, "height": 64, "width": 64}, (512, 704)),
        ({"shortest_edge": 800, "longest_edge": 512}, (512, 512)),
        ({"longest_edge": None}, (640, 640)),
        ({"height": 8192, "width": 8190}, (8192, 8192)),
        (480, (480, 480)),
        ([384, 640], (384, 640)),
        (None, (640, 640)),
    ],
)
def test_the_size_is_that_of_the_processor(size, expected, caplog):
    caplog.set_level(logging.INFO, "fai_fast")
    assert spec_of("maskformer", processor={"size": size}).input_size == expected
    kept = "shortest_edge" in str(size)
    assert (" side of each picture 512, and leaves the other to the picture" in caplog.text) == kept
    assert ("as large as 500 x 700" in caplog.text) == ("max_height" in str(size) and not kept)


@pytest.mark.parametrize(
    ("name", "classes", "processor", "task", "told"),
    [
        ("mask2former-swin-tiny-coco-instance", LABELS, None, "instance", False),
        ("maskformer_ade_semantic", LABELS, None, "semantic", False),
        ("coco_panoptic_eomt_large_640", LABELS, None, "panoptic", False),
        ("theirs", LABELS, {"do_split_image": True}, "semantic", False),
        ("theirs", LABELS, None, "instance", True),
        ("theirs", dict(enumerate([*CATEGORIES, *STUFF])), None, "panoptic", True),
    ],
)
def test_the_task_is_looked_for(name, classes, processor, task, told, caplog):
    spec = spec_of("eomt", None, processor, name, id2label=classes)
    assert spec.task == task
    assert ("pass task= for another" in caplog.text) == told


def test_stuff_is_known_by_names_or_said_by_the_processor(caplog):
    coco = spec_of("mask2former", "panoptic", id2label=dict(enumerate([*CATEGORIES, *STUFF])))
    assert coco.config.panoptic.stuff == tuple(range(80, 133))
    said = spec_of("oneformer", "panoptic", {"metadata": {"thing_ids": [0, 2]}})
    assert said.config.panoptic.stuff == (1, 3, 4)
    assert not caplog.text
    unknown = spec_of("mask2former", "panoptic")
    assert unknown.config.panoptic.stuff == ()
    assert "which of its classes are stuff is not known" in caplog.text


def test_the_stuff_of_ade20k_is_known_by_any_of_its_names(caplog):
    names = fai_fast.spec("fai-mf-l-ade").classes
    spec = spec_of("mask2former", "panoptic", id2label=dict(enumerate(names)))
    stuff = spec.config.panoptic.stuff
    assert (len(names), len(stuff)) == (150, 50)
    of_stuff = {names[index] for index in stuff}
    assert of_stuff >= {
        "wall",
        "sky",
        "road, route",
        "tree",
        "water",
        "pool",
        "escalator, moving staircase, moving stairway",
    }
    assert not of_stuff & {"person", "car", "bed", "window", "fence", "flower", "flag", "palm, palm tree"}
    # As transformers' own lists write them, which number them alike.
    short = [name.partition(",")[0] for name in names]
    short[7], short[8], short[89], short[109], short[141] = (
        "bed ",
        "windowpane",
        "television receiver",
        "swimming pool",
        "CRT screen",
    )
    other = spec_of("maskformer", "panoptic", id2label=dict(enumerate(short)))
    assert other.config.panoptic.stuff == stuff
    assert not caplog.text
    short[0] = "door"
    assert spec_of("mask2former", "panoptic", id2label=dict(enumerate(short))).config.panoptic.stuff == ()
    assert "which of its classes are stuff is not known" in caplog.text


def test_class_names_are_made_unique():
    spec = spec_of("mask2former", id2label={"0": "cat", "1": " cat", "2": "", "3": "cat"})
    assert spec.classes == ("cat", "cat (2)", "class 2", "cat (3)")


@pytest.mark.parametrize(
    ("kind", "changes", "task", "error", "message"),
    [
        ("eomt", {"id2label": None}, "instance", ValueError, "its config has no id2label"),
        ("eomt", {"id2label": {0: "a", 2: "b"}}, "instance", ValueError, "none for class 1"),
        ("rf_detr", {}, "semantic", ValueError, "task: got 'semantic' .* 'rf_detr', expected instance"),
        ("eomt", {}, "depth", ValueError, "task: got 'depth'"),
        ("eomt", {}, 3, TypeError, "task: got 3"),
    ],
)
def test_what_is_missing_is_named(kind, changes, task, error, message):
    with pytest.raises(error, match=message):
        spec_of(kind, task, **changes)


def test_a_field_that_is_null_says_nothing():
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "size", "metadata")
    assert spec_of("mask2former", processor=dict.fromkeys(names)) == spec_of("mask2former")


@pytest.mark.parametrize(
    ("processor", "error", "message"),
    [
        ({"image_mean": "abc"}, TypeError, "processor.image_mean: got 'abc'"),
        ({"image_std": [1, "x", 1]}, TypeError, "processor.image_std: got 'x'"),
        ({"rescale_factor": "x"}, TypeError, "processor.rescale_factor: got 'x'"),
        ({"rescale_factor": 0}, ValueError, "processor.rescale_factor: got 0"),
        ({"size": "640"}, TypeError, "processor.size: got '640'"),
        ({"size": [1, 2, 3]}, TypeError, r"processor.size: got \[1, 2, 3\]"),
        ({"size": {"height": -5, "width": 3}}, ValueError, "processor.size.height: got -5"),
        (
            {"size": {"longest_edge": 800}},
            ValueError,
            "processor.size: got {'longest_edge': 800}, expected height",
        ),
        (
            {"size": {"max_height": 800}},
            ValueError,
            "processor.size: got {'max_height': 800}, expected height",
        ),
        ({"size": {"width": 800}}, ValueError, "processor.size: got {'width': 800}, expected height"),
        ({"size": {"edge": 800}}, ValueError, "processor.size: got {'edge': 800}, expected height"),
        ({"size": 8193}, ValueError, "processor.size: got 8193 x 8193 .* at most 8192"),
        ({"size": {"shortest_edge": 100000}}, ValueError, "processor.size: got 100000 x 100000"),
        ({"metadata": {"thing_ids": ["a"]}}, TypeError, "processor.metadata.thing_ids: got 'a'"),
    ],
)
def test_a_wrong_field_of_a_processor_is_named(processor, error, message):
    with pytest.raises(error, match=message):
        spec_of("mask2former", "panoptic", processor)


def test_a_wrong_processor_is_refused():
    with pytest.raises(TypeError, match="processor: got int, expected an image processor"):
        spec_of("eomt", processor=3)


def test_a_processor_that_pads_does_not_cut():
    assert spec_of("eomt", "semantic", {"do_pad": True}).config.resize == "stretch"
    assert spec_of("eomt", "semantic", {"do_split_image": True}).config.resize == "crops"
    assert spec_of("eomt", "panoptic", {"do_split_image": True}).config.resize == "pad"


# ------------------------------------------------------------------------------------------------ results


def outputs(seed: int, size: tuple[int, int], columns: int, largest: float = 0.6) -> tuple[Any, Any]:
    """Mask logits (1, Q, h, w) of blobs that overlap, and class logits (1, Q, columns), of which some are sure."""
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float64)
    masks = []
    for _ in range(QUERIES):
        cy, cx = generator.uniform(0, height), generator.uniform(0, width)
        ry, rx = generator.uniform(0.1, largest, 2) * (height, width)
        masks.append(4 * (1 - ((y - cy) / ry) ** 2 - ((x - cx) / rx) ** 2))
    classes = generator.normal(0, 1, (1, QUERIES, columns))
    sure = generator.integers(0, columns, QUERIES)
    classes[0, np.arange(QUERIES), sure] += generator.uniform(2, 9, QUERIES)
    masks = np.clip(masks, -8, 8)[None] + generator.normal(0, 0.3, (1, QUERIES, height, width))
    return torch.tensor(masks, dtype=torch.float32), torch.tensor(classes, dtype=torch.float32)


def ours(spec: fai_fast.ModelSpec, masks: Any, classes: Any, frame: tuple[int, int]) -> fai_fast.Detections:
    settings = spec.config
    letterbox = None
    if settings.resize == "pad":
        picture = np.zeros((*frame, 3), np.uint8)
        _, letterbox = fai_fast.preprocess(picture, spec.input_size, mean=0, std=1, resize="pad")
        assert isinstance(letterbox, Letterbox)
    return fai_fast.postprocess(
        masks.numpy(),
        classes.numpy(),
        frame,
        threshold=settings.threshold,
        class_names=spec.classes,
        **arguments_of(settings),
        letterbox=letterbox,
    )


def theirs(kind: str, masks: Any, classes: Any) -> tuple[Any, Any]:
    """The family's image processor, and outputs as it takes them."""
    transformers = pytest.importorskip("transformers", reason="compares with transformers' own processors")
    names = {
        "mask2former": "Mask2FormerImageProcessorPil",
        "maskformer": "MaskFormerImageProcessorPil",
        "oneformer": "OneFormerImageProcessorPil",
        "eomt": "EomtImageProcessorPil",
    }
    settings = {"eomt": {"size": {"shortest_edge": 64, "longest_edge": 64}}}
    processor = getattr(transformers, names[kind])(**settings.get(kind, {}))
    given = SimpleNamespace(masks_queries_logits=masks, class_queries_logits=classes, patch_offsets=None)
    return processor, given


FRAMES = [(64, 64), (48, 91), (200, 150)]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("kind", ["mask2former", "maskformer", "oneformer", "eomt"])
def test_semantic_results_are_those_of_the_processor(kind, frame):
    masks, classes = outputs(1, (16, 16), len(LABELS) + 1)
    spec = spec_of(kind, "semantic")
    found = ours(spec, masks, classes, frame)
    processor, given = theirs(kind, masks, classes)
    [expected] = processor.post_process_semantic_segmentation(given, target_sizes=[frame])
    different = found.label_map != expected.numpy()
    # Where two classes are equal but for rounding either may win.
    assert different.mean() < 1e-3
    assert len(np.unique(expected)) > 2


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("kind", ["mask2former", "maskformer", "oneformer", "eomt"])
def test_panoptic_results_are_those_of_the_processor(kind, frame):
    masks, classes = outputs(2, (16, 16), len(LABELS) + 1, largest=0.25)
    stuff = (1, 3)
    spec = spec_of(kind, "panoptic", {"metadata": {"thing_ids": [0, 2, 4]}})
    found = ours(spec, masks, classes, frame)
    # OneFormer's own needs torchvision for this; its rule is MaskFormer's.
    processor, given = theirs("maskformer" if kind == "oneformer" else kind, masks, classes)
    named = {"stuff_classes": list(stuff)} if kind == "eomt" else {"label_ids_to_fuse": set(stuff)}
    [expected] = processor.post_process_panoptic_segmentation(
        given, threshold=spec.config.threshold, target_sizes=[frame], **named
    )
    # Their numbers may be given twice after a fused segment: what is compared is which class a pixel has.
    by_id = {info["id"]: info["label_id"] for info in expected["segments_info"]}
    nothing = {-1, 0} - set(by_id)
    true = np.full(frame, -1)
    for number, label in by_id.items():
        true[expected["segmentation"].numpy() == number] = label
    assert nothing
    assert (found.label_map != true).mean() < 1e-3
    classes_found = sorted(found.class_id.tolist())
    fused = {info["label_id"] for info in expected["segments_info"] if info["label_id"] in stuff}
    things = [info["label_id"] for info in expected["segments_info"] if info["label_id"] not in stuff]
    assert classes_found == sorted([*things, *fused])
    assert len(classes_found) > 2


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("kind", ["mask2former", "maskformer"])
def test_instances_are_those_of_the_processor(kind, frame):
    masks, classes = outputs(3, (16, 16), len(LABELS) + 1)
    spec = spec_of(kind)
    found = ours(spec, masks, classes, frame)
    processor, given = theirs(kind, masks, classes)
    [expected] = processor.post_process_instance_segmentation(
        given, target_sizes=[frame], return_binary_maps=True
    )
    _same_instances(found, expected["segmentation"].numpy().astype(bool), expected["segments_info"])


@pytest.mark.parametrize("frame", FRAMES)
def test_instances_of_eomt_are_those_of_the_processor(frame):
    masks, classes = outputs(4, (16, 16), len(LABELS) + 1)
    spec = spec_of("eomt")
    found = ours(spec, masks, classes, frame)
    processor, given = theirs("eomt", masks, classes)
    [expected] = processor.post_process_instance_segmentation(given, target_sizes=[frame])
    # It paints one instance over the other, so that masks are compared where they were painted last.
    infos = expected["segments_info"]
    assert sorted(found.class_id.tolist()) == sorted(info["label_id"] for info in infos)
    assert sorted(found.confidence.tolist()) == pytest.approx(
        sorted(info["score"] for info in infos), abs=1e-5
    )
    painted = expected["segmentation"].numpy()
    for info in infos:
        [row] = np.flatnonzero(np.abs(found.confidence - info["score"]) < 1e-5)
        outside = (painted == info["id"]) & ~found.masks[row]
        assert outside.sum() <= 2
    assert len(infos) > 2


@pytest.mark.parametrize("frame", FRAMES)
def test_instances_of_rf_detr_are_those_of_its_rule(frame):
    """Its processor needs torchvision: the rule, by PyTorch."""
    torch = pytest.importorskip("torch")
    masks, classes = outputs(5, (16, 16), len(LABELS))
    classes = classes - 2
    spec = spec_of("rf_detr")
    found = ours(spec, masks, classes, frame)
    scores, pairs = classes[0].sigmoid().flatten().topk(QUERIES)
    pairs = pairs[scores > 0.5]
    resized = torch.nn.functional.interpolate(masks, size=frame, mode="bilinear", align_corners=False)[0]
    infos, binary = [], []
    for pair, score in zip(pairs.tolist(), scores.tolist(), strict=False):
        query, label = divmod(pair, len(LABELS))
        if (resized[query] > 0).any():
            infos.append({"label_id": label, "score": score})
            binary.append((resized[query] > 0).numpy())
    _same_instances(found, np.stack(binary), infos)


def _same_instances(found: fai_fast.Detections, masks: Any, infos: list[dict[str, Any]]) -> None:
    order = sorted(range(len(infos)), key=lambda index: -infos[index]["score"])
    assert len(found) == len(order) > 2
    assert found.confidence.tolist() == pytest.approx([infos[index]["score"] for index in order], abs=1e-5)
    assert found.class_id.tolist() == [infos[index]["label_id"] for index in order]
    different = found.masks.dense() != masks[order] if hasattr(found.masks, "dense") else None
    if different is None:
        different = np.stack([mask != masks[index] for mask, index in zip(found.masks, order, strict=True)])
    assert different.mean() < 1e-3


def test_every_family_is_a_family_of_records():
    from fai_fast.registry.spec import FAMILIES as KNOWN

    assert set(FAMILIES) < set(KNOWN)
