"""The scenes of tools/shapes.py, the stages of tools/train_shapes.py, and the model that comes with the package."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import registry
from PIL import Image

cv2 = pytest.importorskip("cv2")
TOOLS = Path(__file__).parents[1] / "tools"
sys.path.append(str(TOOLS))
import shapes  # noqa: E402

NAME = "fai-mf-n-shapes"
SEEDS = range(12)


@pytest.fixture(scope="module")
def scenes() -> list[shapes.Scene]:
    return [shapes.scene(seed, 128) for seed in SEEDS]


@pytest.fixture(scope="module")
def train_shapes():
    for package in ("torch", "scipy", "pycocotools"):
        pytest.importorskip(package)
    import train_shapes

    return train_shapes


def test_a_scene_follows_from_its_seed_alone(scenes: list[shapes.Scene]) -> None:
    np.random.seed(3)  # noqa: NPY002 - the global generator must not matter
    for seed, drawn in zip(SEEDS, scenes, strict=True):
        again = shapes.scene(seed, 128)
        assert all(map(np.array_equal, drawn, again))
    assert len({drawn.image.tobytes() for drawn in scenes}) == len(scenes)


def test_scenes_have_the_types_and_sizes_they_say(scenes: list[shapes.Scene]) -> None:
    for image, labels, masks in [*scenes, shapes.scene(5, (96, 160))]:
        height, width = image.shape[:2]
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8
        assert labels.dtype == np.int64
        assert masks.dtype == np.bool_
        assert masks.shape == (len(labels), height, width)
        assert 1 <= len(labels) <= shapes.MOST_OBJECTS
        assert labels.min() >= 0
        assert labels.max() < len(shapes.CLASSES)
    assert {int(label) for drawn in scenes for label in drawn.labels} == set(range(len(shapes.CLASSES)))


def test_masks_are_what_can_be_seen(scenes: list[shapes.Scene]) -> None:
    for drawn in scenes:
        assert drawn.masks.any((1, 2)).all()
        assert drawn.masks.sum(0).max() == 1


def test_a_mask_changes_only_where_a_later_shape_hides_it() -> None:
    # The first k shapes are drawn alike, however many follow.
    hidden = 0
    for seed in range(20):
        few, many = shapes.scene(seed, 128, 4), shapes.scene(seed, 128, 5)
        assert np.array_equal(many.labels[: len(few.labels)], few.labels)
        kept = many.masks[: len(few.labels)]
        added = many.masks[len(few.labels) :].any(0)
        assert np.array_equal(kept, few.masks & ~added)
        hidden += int((few.masks & added).sum())
    assert hidden > 0


def test_every_shape_looks_like_its_class() -> None:
    # A shape alone: the share of its smallest enclosing circle that it fills, and whether it has a hole.
    fills = {"disc": (0.6, 1.0), "square": (0.5, 0.75), "triangle": (0.3, 0.5), "star": (0.2, 0.5)}
    fills |= {"ring": (0.4, 0.8), "cross": (0.3, 0.75)}
    seen = set()
    for seed in range(80):
        _, labels, masks = shapes.scene(seed, 256, 1)
        mask = masks[0]
        if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
            continue
        name = shapes.CLASSES[labels[0]]
        outer, family = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        _, radius = cv2.minEnclosingCircle(np.concatenate(outer))
        assert (len(family[0]) == 2) == (name == "ring"), (seed, name)
        low, high = fills[name]
        assert low < mask.sum() / (np.pi * radius**2) < high, (seed, name)
        seen.add(name)
    assert seen == set(shapes.CLASSES)


def test_no_objects_is_an_error() -> None:
    with pytest.raises(ValueError, match="objects: got 0"):
        shapes.scene(0, 64, 0)


def test_the_entry_is_what_the_tool_trains(train_shapes) -> None:
    shipped = fai_fast.spec(NAME)
    trained = train_shapes.make_spec(
        metrics=shipped.metrics,
        per_class=shipped.per_class,
        metrics_im_size=shipped.metrics_im_size,
        note=shipped.note,
    )
    assert trained == shipped
    assert shipped.classes == shapes.CLASSES
    assert set(shipped.per_class) == set(shapes.CLASSES)
    assert np.mean(list(shipped.per_class.values())) == pytest.approx(shipped.metrics["segm/AP"], abs=0.01)


def test_the_package_stays_small() -> None:
    weights = registry.bundled_path(f"{NAME}.safetensors")
    sample = registry.FOLDER / "samples" / "shapes.jpg"
    assert weights.stat().st_size + sample.stat().st_size < 8e6
    with Image.open(sample) as picture:
        assert picture.size == (960, 720)


def test_training_batches_agree_with_their_scenes(train_shapes) -> None:
    scenes = train_shapes.Scenes(seed=0, fresh=2, most=30)
    for size, count in [((128, 128), 16), *train_shapes.BATCHES]:
        height, width = size
        images, labels, covers = scenes.batch(size, count)
        assert images.shape == (count, height, width, 3)
        assert covers.shape == (count, train_shapes.SLOTS, height // 4, width // 4)
        assert np.array_equal(covers.sum((2, 3)) > 0, labels >= 0)
        assert covers.sum(1).max() <= 1 + 1e-5
    assert len(scenes.pool) == 30
    assert scenes.batch((128, 128), 1)[0].shape[0] == 1


def test_a_full_pool_is_renewed(train_shapes) -> None:
    scenes = train_shapes.Scenes(seed=0, fresh=3, most=4)
    scenes.batch((128, 128), 1)
    before = [id(picture) for picture, _, _ in scenes.pool]
    held = [picture for picture, _, _ in scenes.pool]
    for _ in range(4):
        scenes.batch((128, 128), 1)
    assert len(scenes.pool) == len(held) == 4
    assert [id(picture) for picture, _, _ in scenes.pool] != before


def test_pictures_to_learn_from_are_small_first(train_shapes) -> None:
    rng = np.random.default_rng(0)
    assert {train_shapes.plan(0.4, 0.5, rng) for _ in range(9)} == {((128, 128), 16)}
    assert {train_shapes.plan(0.6, 0.5, rng) for _ in range(200)} == set(train_shapes.BATCHES)
    assert {train_shapes.plan(0.0, 0.0, rng) for _ in range(200)} == set(train_shapes.BATCHES)


def test_styles_are_kept() -> None:
    # Without a style the scenes are those of the published figures, whatever is added beside them.
    plain = shapes.scene(3, 96)
    assert np.array_equal(plain.image, shapes.scene(3, 96, None, shapes.PLAIN).image)
    shares, sides = [], []
    for seed in range(40):
        _, _, masks = shapes.scene(seed, 96, 1, shapes.VARIED)
        shares.append(masks.mean())
        rows, columns = (np.flatnonzero(masks[0].any(axis)) for axis in (1, 0))
        sides.append((rows[-1] - rows[0] + 1) / (columns[-1] - columns[0] + 1))
    assert min(shares) < 0.01
    assert max(shares) > 0.25
    assert max(sides) > 1.4
    assert min(sides) < 0.67


def test_dense_losses_are_those_of_the_library(train_shapes) -> None:
    # Masks constant in space, on as many places as points are drawn: then it does not matter where those lie.
    import torch
    from fai_fast.losses import SetCriterion, Target
    from fai_fast.reference import Output, Prediction

    generator = torch.Generator().manual_seed(0)
    config = train_shapes.make_spec().config
    side = 48
    assert side**2 == config.criterion_num_points
    layers = [
        Prediction(
            torch.randn(2, 25, 1, 1, generator=generator).expand(-1, -1, side, side),
            torch.randn(2, 25, len(shapes.CLASSES) + 1, generator=generator),
        )
        for _ in range(2)
    ]
    labels = torch.full((2, train_shapes.SLOTS), -1)
    labels[0, :2], labels[1, 0] = torch.tensor([4, 0]), 2
    covers = torch.zeros(2, train_shapes.SLOTS, side, side)
    covers[0, 0] = covers[1, 0] = 1
    ours = train_shapes.criterion(config, layers, labels, covers)

    # Samples of the outermost half pixel fade to zero, and count as uncertain: few, on maps this wide.
    wide = [Prediction(p.mask_logits[..., :1, :1].expand(-1, -1, 512, 512), p.class_logits) for p in layers]
    targets = [
        Target(row[row >= 0], cover[: int((row >= 0).sum()), :1, :1].expand(-1, 512, 512) > 0.5)
        for row, cover in zip(labels, covers, strict=True)
    ]
    losses = SetCriterion(config, generator)(Output(*wide[-1], aux=tuple(wide[:-1])), targets)
    for name, value in ours.items():
        assert value.item() == pytest.approx((losses[name] + losses[f"{name}_0"]).item(), rel=0.05)


def test_a_batch_can_be_learnt(train_shapes) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = train_shapes.make_spec()
    model = fai_fast.reference.build(spec)
    train_shapes.start(model)
    teacher = train_shapes.Teacher(spec.config.pixel_decoder_feat_dim, len(shapes.CLASSES))
    pixels, labels, covers = train_shapes.Scenes(seed=0, fresh=0, most=8).batch((64, 64), 4)
    images = train_shapes.as_tensor(pixels)
    optimizer = torch.optim.AdamW([*model.parameters(), *teacher.parameters()], 1e-3)
    course = []
    for _ in range(30):
        fine, levels = model.pixel_decoder((images - model.pixel_mean) / model.pixel_std)
        losses = train_shapes.criterion(spec.config, model.head.predictor(fine, levels), labels, covers)
        losses["teacher"] = teacher(fine, levels[-1], labels, covers)
        course.append({name: value.item() for name, value in losses.items()})
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    for name in ("loss_dice", "loss_mask", "teacher"):
        assert course[-1][name] < 0.8 * course[0][name]


def test_training_is_kept_and_resumed(train_shapes, tmp_path, monkeypatch, capsys) -> None:
    import argparse

    import torch

    torch.set_num_threads(1)
    draw = functools.cache(shapes.scene)
    monkeypatch.setattr(shapes, "scene", lambda seed, size, *rest: draw(seed % 5, size, *rest))
    args = argparse.Namespace(out=tmp_path / "x.pt", resume=False, pretrain=0.01, minutes=0.02, lr=1e-3)
    args.fresh, args.log_every, args.start = 1, 1, None
    train_shapes.train(args)
    first = torch.load(args.out, weights_only=True)
    assert "single shapes" in capsys.readouterr().out
    args.resume, args.minutes = True, 0.04
    train_shapes.train(args)
    second = torch.load(args.out, weights_only=True)
    assert "single shapes" not in capsys.readouterr().out
    assert 0 < first["step"] < second["step"]
    assert (first["seconds"], second["seconds"]) == pytest.approx((1.2, 2.4))
    assert second["pretrained_minutes"] == 0.01
    name = "head.predictor.query_embed.weight"
    assert not torch.equal(first["model"][name], second["model"][name])
    model = train_shapes.load(args.out)
    assert torch.equal(model.state_dict()[name], second["model"][name])

    args.resume, args.start, args.out, args.minutes = False, args.out, tmp_path / "y.pt", 1e-9
    train_shapes.train(args)
    third = torch.load(args.out, weights_only=True)
    assert "single shapes" not in capsys.readouterr().out
    assert torch.equal(third["model"][name], second["model"][name])
    assert (third["step"], third["small_share"], third["pretrained_minutes"]) == (0, 0, 0)


def test_the_shipped_model_finds_most_objects(train_shapes) -> None:
    import torch

    torch.set_num_threads(1)
    model = train_shapes.load(None)
    objects = found = right = 0
    for seed in range(100, 116):
        image, labels, masks = shapes.scene(seed, 192)
        detections = train_shapes.detect(model, image, threshold=0.2)
        guesses = detections.mask
        for label, mask in zip(labels, masks, strict=True):
            overlap = (guesses & mask).sum((1, 2)) / np.maximum((guesses | mask).sum((1, 2)), 1)
            objects += 1
            if overlap.size and overlap.max() > 0.5:
                found += 1
                right += int(detections.class_id[overlap > 0.5].tolist().count(int(label)) > 0)
    assert found > 0.5 * objects
    assert right > 0.35 * objects


def test_evaluation_gives_what_the_entry_says(train_shapes) -> None:
    import torch

    torch.set_num_threads(1)
    metrics, per_class = train_shapes.evaluate(train_shapes.load(None), train_shapes.held_out_scenes(25))
    shipped = fai_fast.spec(NAME)
    assert set(metrics) == set(shipped.metrics)
    assert set(per_class) == set(shipped.per_class)
    # 25 scenes tell 500 to within some points.
    assert metrics["segm/AP"] == pytest.approx(shipped.metrics["segm/AP"], abs=10)


def test_every_object_of_the_sample_is_found_once_and_nothing_else(train_shapes) -> None:
    sample = registry.FOLDER / "samples" / "shapes.jpg"
    _, labels, masks = shapes.scene(
        train_shapes.SAMPLE_SEED, train_shapes.SAMPLE_SIZE, train_shapes.SAMPLE_OBJECTS
    )
    with fai_fast.load(NAME, precision="fp32") as model:
        detections = model.infer(sample)
    assert len(detections) == len(labels) == train_shapes.SAMPLE_OBJECTS
    found = detections.mask
    for label, mask in zip(labels.tolist(), masks, strict=True):
        overlap = (found & mask).sum((1, 2)) / (found | mask).sum((1, 2))
        assert detections.class_id[overlap > 0.6].tolist() == [label]
