"""The losses against a slow NumPy computation on the same points."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fai_fast.losses import SetCriterion, Target, point_sample
from fai_fast.reference import Output, Prediction, build
from test_reference import small_spec

P = 40


def bilinear(image: np.ndarray, x: float, y: float) -> float:
    """The image at a point, in 0..1 of its size; nothing outside."""
    height, width = image.shape
    fx, fy = x * width - 0.5, y * height - 0.5
    total = 0.0
    for py in (int(np.floor(fy)), int(np.floor(fy)) + 1):
        for px in (int(np.floor(fx)), int(np.floor(fx)) + 1):
            if 0 <= py < height and 0 <= px < width:
                total += (1 - abs(fx - px)) * (1 - abs(fy - py)) * image[py, px]
    return total


def at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.array([bilinear(image, x, y) for x, y in points])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bce(x, t):
    return (-t * np.log(sigmoid(x)) - (1 - t) * np.log(1 - sigmoid(x))).mean()


def dice(x, t):
    p = sigmoid(x)
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


class RecordedPoints(SetCriterion):
    """Draws as the criterion does and remembers what it drew."""

    def __init__(self, config):
        super().__init__(config, torch.Generator().manual_seed(5))
        self.drawn = []

    def _uniform(self, sets, points, device):
        drawn = super()._uniform(sets, points, device)
        self.drawn.append(drawn.numpy().astype(np.float64))
        return drawn


@pytest.fixture
def config():
    import dataclasses

    return dataclasses.replace(small_spec("fai_mf").config, criterion_num_points=P)


def scene(seed=0, batch=2, queries=5, size=(8, 12), truth_size=(32, 48), counts=(2, 3)):
    r = np.random.default_rng(seed)
    masks = r.standard_normal((batch, queries, *size)).astype(np.float32) * 2
    classes = r.standard_normal((batch, queries, 4)).astype(np.float32)
    targets = [
        Target(
            torch.from_numpy(r.integers(0, 3, n)),
            torch.from_numpy(
                np.kron(r.random((n, 4, 6)) < 0.4, np.ones((truth_size[0] // 4, truth_size[1] // 6))) > 0
            ),
        )
        for n in counts
    ]
    return Prediction(torch.from_numpy(masks).double().float(), torch.from_numpy(classes)), targets


def test_every_loss_equals_the_slow_computation(config):
    prediction, targets = scene()
    criterion = RecordedPoints(config)
    losses = criterion(Output(*prediction), targets)
    drawn = iter(criterion.drawn)

    masks, classes = prediction.mask_logits.double().numpy(), prediction.class_logits.double().numpy()
    probability = np.exp(classes) / np.exp(classes).sum(-1, keepdims=True)
    pairs = []
    points = next(drawn)[0]
    for b, target in enumerate(targets):
        n = len(target.labels)
        cost = np.zeros((5, n))
        for q, j in np.ndindex(5, n):
            x, t = at(masks[b, q], points), at(target.masks[j].numpy().astype(float), points)
            cost[q, j] = -2 * probability[b, q, target.labels[j]] + 5 * bce(x, t) + 5 * dice(x, t)
        best = min(
            itertools.permutations(range(5), n), key=lambda rows: sum(cost[q, j] for j, q in enumerate(rows))
        )
        # The criterion lists pairs by query.
        pairs.append(sorted((q, j) for j, q in enumerate(best)))

    numerator = denominator = 0.0
    for b, target in enumerate(targets):
        label = dict(pairs[b])
        for q in range(5):
            c, w = (int(target.labels[label[q]]), 1.0) if q in label else (3, 0.1)
            numerator -= w * np.log(probability[b, q, c])
            denominator += w
    assert float(losses["loss_ce"]) == pytest.approx(numerator / denominator, rel=1e-5)

    candidates, rest = next(drawn), next(drawn)
    mask_loss = dice_loss = 0.0
    matched = [(b, q, j) for b in range(2) for q, j in pairs[b]]
    for row, (b, q, j) in enumerate(matched):
        doubt = np.abs(at(masks[b, q], candidates[row]))
        nearest = candidates[row][np.argsort(doubt)[: int(0.75 * P)]]
        points = np.concatenate([nearest, rest[row]])
        assert (len(candidates[row]), len(points)) == (3 * P, P)
        x, t = at(masks[b, q], points), at(targets[b].masks[j].numpy().astype(float), points)
        mask_loss += bce(x, t)
        dice_loss += dice(x, t)
    assert float(losses["loss_mask"]) == pytest.approx(mask_loss / 5, rel=1e-5)
    assert float(losses["loss_dice"]) == pytest.approx(dice_loss / 5, rel=1e-5)
    assert float(criterion.total(losses)) == pytest.approx(
        2 * float(losses["loss_ce"]) + 5 * float(losses["loss_mask"]) + 5 * float(losses["loss_dice"]),
        rel=1e-6,
    )
    assert next(drawn, None) is None


def test_auxiliary_predictions_are_judged_alone(config):
    prediction, targets = scene()
    other, _ = scene(seed=3)
    criterion = SetCriterion(config, torch.Generator().manual_seed(1))
    losses = criterion(Output(*prediction, aux=(other, prediction)), targets)
    names = {"loss_ce", "loss_mask", "loss_dice"}
    assert set(losses) == names | {f"{name}_{i}" for name in names for i in (0, 1)}
    alone = SetCriterion(config)(Output(*other), targets)
    assert float(losses["loss_ce_0"]) == pytest.approx(float(alone["loss_ce"]), rel=0.5)
    assert float(losses["loss_ce_1"]) != float(losses["loss_ce_0"])
    total = sum(
        criterion.weights[name.split("_0")[0].split("_1")[0]] * float(loss) for name, loss in losses.items()
    )
    assert float(criterion.total(losses)) == pytest.approx(total, rel=1e-6)


def test_images_without_objects_only_count_for_the_classes(config):
    prediction, _ = scene()
    empty = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 32, 48, dtype=torch.bool))
    prediction.mask_logits.requires_grad_()
    losses = SetCriterion(config)(Output(*prediction), [empty, empty])
    expected = torch.nn.functional.cross_entropy(prediction.class_logits.flatten(0, 1), torch.full((10,), 3))
    assert float(losses["loss_ce"]) == pytest.approx(float(expected), rel=1e-6)
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    losses["loss_mask"].backward()
    assert not prediction.mask_logits.grad.any()


def test_training_on_one_scene_makes_the_losses_fall(config):
    torch.manual_seed(0)
    model = build(small_spec("fai_mf", transformer_predictor_dec_layers=1, criterion_num_points=P))
    criterion = SetCriterion(model.spec.config)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 5:30, 8:50] = True
    masks[1, 35:60, 20:60] = True
    image = torch.full((1, 3, 64, 64), 60.0) + masks[0] * 150.0
    image[:, 1] += masks[1] * 120.0
    target = [{"labels": torch.tensor([0, 2]), "masks": masks}]
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    totals = []
    for _ in range(30):
        total = criterion.total(criterion(model(image.expand(2, -1, -1, -1)), target * 2))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        totals.append(total.item())
    assert np.mean(totals[-5:]) < 0.7 * np.mean(totals[:3])


def test_points_outside_of_a_map_are_zero():
    maps = torch.ones(2, 4, 4)
    points = torch.tensor([[[0.5, 0.5], [0.0, 0.5], [-1.0, 0.5]]]).expand(2, -1, -1)
    assert point_sample(maps, points).tolist() == [[1.0, 0.5, 0.0]] * 2
    assert point_sample(maps, points[:1]).tolist() == [[1.0, 0.5, 0.0]] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:1], r"targets: got 1, expected one for each of 2"),
        (
            lambda t: [t[0], Target(t[1].labels + 3, t[1].masks)],
            r"targets\[1\].labels: got values .*expected 0..2",
        ),
        (lambda t: [t[0], Target(t[1].labels, t[1].masks[:1])], r"targets\[1\].masks: got shape"),
        (
            lambda t: [Target(t[0].labels.float(), t[0].masks), t[1]],
            r"targets\[0\].labels: got torch.float32",
        ),
    ],
)
def test_targets_that_do_not_fit_are_refused(config, change, message):
    prediction, targets = scene()
    with pytest.raises((TypeError, ValueError), match=message):
        SetCriterion(config)(Output(*prediction), change(targets))
