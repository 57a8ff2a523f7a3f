"""The losses against a slow NumPy computation on the same points."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fai_fast.losses import SetCriterion, Target, point_sample
from fai_fast.reference import Output, Prediction, build
from helpers.networks import small_spec

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
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    totals = []
    for _ in range(30):
        total = criterion.total(criterion(model(image.expand(2, -1, -1, -1)), target * 2))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
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
        (lambda t: [t[0], {"masks": t[1].masks}], r"targets\[1\]: has no labels"),
        (lambda t: [t[0], (t[1].labels, t[1].masks)], r"targets\[1\]: got tuple, expected a Target"),
        (lambda t: [t[0]._replace(labels=[0, 1]), t[1]], r"targets\[0\].labels: got list, expected a tensor"),
        (lambda t: [t[0]._replace(masks=t[0].masks.numpy()), t[1]], r"targets\[0\].masks: got ndarray"),
        (lambda t: [t[0]._replace(masks=t[0].masks[:, :, :0]), t[1]], r"targets\[0\].masks: got shape"),
        (
            lambda t: [t[0]._replace(ignore=t[0].masks[0, :4]), t[1]],
            r"targets\[0\].ignore: got shape \(4, 48\), expected \(32, 48\)",
        ),
        (lambda t: iter(t), r"targets: got list_iterator"),
    ],
)
def test_targets_that_do_not_fit_are_refused(config, change, message):
    prediction, targets = scene()
    with pytest.raises((TypeError, ValueError), match=message):
        SetCriterion(config)(Output(*prediction), change(targets))


def test_outputs_that_are_none_are_refused(config):
    prediction, targets = scene()
    criterion = SetCriterion(config)
    for wrong, message in (
        ({"mask_logits": 1}, "output: got dict"),
        (Output(prediction.mask_logits[0], prediction.class_logits), "output: got mask_logits"),
        (Output(prediction.mask_logits, prediction.class_logits[..., 1:]), "output: got 3 class logits"),
        (Output(prediction.mask_logits.long(), prediction.class_logits), "output: got logits of torch.int64"),
        (
            Output(*prediction, aux=(prediction._replace(class_logits=prediction.class_logits[:1]),)),
            r"output.aux\[0\]: got",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            criterion(wrong, targets)
    with pytest.raises(TypeError, match="config: got ModelSpec, expected a ModelConfig"):
        SetCriterion(small_spec("fai_mf"))
    with pytest.raises(ValueError, match="losses: got 'loss_box'"):
        criterion.total({"loss_box": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="losses: got none"):
        criterion.total({})


# ------------------------------------------------------------------ Mask2Former's own formulas, in float64, any dtype


def mask2former(masks, classes, labels, truths, known, pairs, points):
    """The three losses of one picture by Mask2Former's formulas; everything float64 NumPy, pairs given.

    masks (Q, h, w), classes (Q, C+1), truths (n, H, W), known (H, W) bool, points (pairs, P, 2).
    """
    probability = np.exp(classes - classes.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    label = {q: int(labels[j]) for q, j in pairs}
    no_object = classes.shape[1] - 1
    weights = [1.0 if q in label else 0.1 for q in range(len(classes))]
    likely = [probability[q, label.get(q, no_object)] for q in range(len(classes))]
    loss_ce = -(np.log(likely) * weights).sum() / np.sum(weights)
    loss_mask = loss_dice = 0.0
    for (q, j), where in zip(pairs, points, strict=True):
        counted = at(1.0 - known, where) == 0
        x, t = at(masks[q], where)[counted], at(truths[j].astype(float), where)[counted]
        loss_mask += (np.logaddexp(0, x) - x * t).sum() / max(len(x), 1)
        p = sigmoid(x)
        loss_dice += 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    return loss_ce, loss_mask / max(len(labels), 1), loss_dice / max(len(labels), 1)


def cheapest(masks, classes, labels, truths, known, points):
    """Mask2Former's assignment by trying all of them, sorted by query."""
    probability = np.exp(classes - classes.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    counted = at(1.0 - known, points) == 0
    n, queries = len(labels), len(masks)
    cost = np.zeros((queries, n))
    for q, j in np.ndindex(queries, n):
        x, t = at(masks[q], points)[counted], at(truths[j].astype(float), points)[counted]
        p = sigmoid(x)
        # Not as one product, but as the positive and the negative part that the paper's code adds up.
        each = np.logaddexp(0, -x) * t + np.logaddexp(0, x) * (1 - t)
        cost[q, j] = (
            5 * each.sum() / max(len(x), 1)
            + 5 * (1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
            - 2 * probability[q, labels[j]]
        )
    few = min(n, queries)
    options = (
        (sum(cost[q, j] for q, j in zip(rows, columns, strict=True)), sorted(zip(rows, columns, strict=True)))
        for columns in itertools.combinations(range(n), few)
        for rows in itertools.permutations(range(queries), few)
    )
    return min(options)[1]


def _points_used(criterion, masks, pairs, known):
    """The points of each pair, chosen from what was drawn as PointRend does, unknown places last."""
    candidates, rest = criterion.drawn[1], criterion.drawn[2]
    chosen = []
    for row, (q, _) in enumerate(pairs):
        doubt = np.abs(at(masks[q], candidates[row]))
        doubt[at(1.0 - known, candidates[row]) > 0] = np.inf
        nearest = np.argsort(doubt, kind="stable")[: int(0.75 * P)]
        chosen.append(np.concatenate([candidates[row][nearest], rest[row]]))
    return chosen


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("ignored", [False, True], ids=["known", "ignored"])
@pytest.mark.parametrize("count", [0, 1, 2, 5], ids=["none", "one", "two", "more than queries"])
@pytest.mark.parametrize("around", ["as is", "autocast"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_losses_are_those_of_mask2former_in_any_precision(config, dtype, around, count, ignored):
    r = np.random.default_rng(7)
    # Logits of a network that is sure of itself: sums over points are beyond float16.
    masks = torch.from_numpy(r.standard_normal((1, 3, 8, 12)) * 300).to(dtype).requires_grad_()
    classes = torch.from_numpy(r.standard_normal((1, 3, 4))).to(dtype).requires_grad_()
    truth = torch.from_numpy(np.kron(r.random((count, 4, 6)) < 0.4, np.ones((8, 8))) > 0).reshape(
        count, 32, 48
    )
    known = np.ones((32, 48), bool)
    if ignored:
        known[:20, :24] = False
    labels = torch.from_numpy(r.integers(0, 3, count))
    target = Target(labels, truth, torch.from_numpy(~known) if ignored else None)
    criterion = RecordedPoints(config)
    with torch.autocast(
        "cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype, enabled=around == "autocast"
    ):
        losses = criterion(Output(masks, classes), [target])
        total = criterion.total(losses)
    assert {loss.dtype for loss in [*losses.values(), total]} == {torch.float32}

    exact = [x.detach().double().numpy()[0] for x in (masks, classes)]
    points = criterion.drawn[0][0]
    pairs = cheapest(*exact, labels.numpy(), truth.numpy(), known, points)
    assert len(pairs) == min(count, 3)
    found = SetCriterion(config, torch.Generator().manual_seed(5)).match(Output(masks, classes), [target])
    assert list(zip(*(side.tolist() for side in found[0]), strict=True)) == pairs
    places = _points_used(criterion, exact[0], pairs, known) if pairs else []
    expected = mask2former(*exact, labels.numpy(), truth.numpy(), known, pairs, places)
    # Samples of logits of 300 in float32 are good to a few 1e-5.
    assert [losses[name].item() for name in ("loss_ce", "loss_mask", "loss_dice")] == pytest.approx(
        expected, rel=1e-4, abs=1e-6
    )

    total.backward()
    assert torch.isfinite(masks.grad).all()
    assert bool(masks.grad.any()) == (count > 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_to_find_costs_nothing_however_sure_the_logits_are(config, dtype):
    masks = torch.full((2, 5, 64, 64), -60000.0).to(dtype).requires_grad_()
    empty = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8, 8, dtype=torch.bool))
    losses = SetCriterion(config)(Output(masks, torch.zeros(2, 5, 4, dtype=dtype)), [empty, empty])
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    assert not masks.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_matching_under_autocast_sums_thousands_of_sure_points(config, dtype):
    import dataclasses

    # 8000 points of a logit of 20 are 160000 together, and float16 ends at 65504.
    config = dataclasses.replace(config, criterion_num_points=8000)
    truth = torch.zeros(1, 16, 16, dtype=torch.bool)
    truth[0, 3:] = True
    masks = torch.full((1, 3, 16, 16), 20.0)
    masks[0, 1] = -20.0
    masks[0, 2] = torch.where(truth[0], 20.0, -20.0)
    target = Target(torch.tensor([1]), truth)
    with torch.autocast("cpu", dtype=dtype):
        [(queries, _)] = SetCriterion(config).match(Output(masks, torch.zeros(1, 3, 4)), [target])
    assert queries.tolist() == [2]


def test_the_default_dtype_does_not_matter(config):
    prediction, targets = scene()
    expected = SetCriterion(config, torch.Generator().manual_seed(1))(Output(*prediction), targets)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        found = SetCriterion(config, torch.Generator().manual_seed(1))(Output(*prediction), targets)
    finally:
        torch.set_default_dtype(before)
    assert {name: loss.item() for name, loss in found.items()} == {k: v.item() for k, v in expected.items()}


def test_deep_supervision_can_be_switched_off(config):
    import dataclasses

    prediction, targets = scene()
    alone = dataclasses.replace(config, criterion_deep_supervision=False)
    output = Output(*prediction, aux=(prediction, prediction))
    assert set(SetCriterion(alone)(output, targets)) == {"loss_ce", "loss_mask", "loss_dice"}
    assert len(SetCriterion(config)(output, targets)) == 9


def test_what_is_under_an_ignored_region_changes_nothing(config):
    prediction, targets = scene()
    ignore = torch.zeros(32, 48, dtype=torch.bool)
    ignore[:, 20:] = True
    changed = []
    for fill in (False, True):
        masks = [target.masks.clone() for target in targets]
        for mask in masks:
            mask[:, ignore] = fill
        given = [Target(t.labels, mask, ignore) for t, mask in zip(targets, masks, strict=True)]
        criterion = SetCriterion(config, torch.Generator().manual_seed(1))
        changed.append({name: loss.item() for name, loss in criterion(Output(*prediction), given).items()})
    assert changed[0] == changed[1]
    # And the network is not pushed anywhere there.
    masks = prediction.mask_logits.clone().requires_grad_()
    given = [{"labels": t.labels, "masks": t.masks, "ignore": ignore} for t in targets]
    criterion = SetCriterion(config, torch.Generator().manual_seed(1))
    criterion.total(criterion(Output(masks, prediction.class_logits), given)).backward()
    assert masks.grad[..., :4].any()
    assert not masks.grad[..., 6:].any()  # a logit at 6 / 12 of the width reaches back to a pixel at 22 / 48


def test_a_picture_of_which_nothing_is_known_gives_no_mask_loss(config):
    prediction, targets = scene()
    given = [Target(t.labels, t.masks, torch.ones(32, 48, dtype=torch.bool)) for t in targets]
    losses = SetCriterion(config)(Output(*prediction), given)
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
    assert torch.isfinite(losses["loss_ce"])


def test_a_label_map_becomes_a_mask_per_class():
    label_map = torch.tensor([[7, 7, 255], [0, 7, 0]], dtype=torch.uint8)
    labels, masks, ignore = Target.from_label_map(label_map)
    assert labels.tolist() == [0, 7]
    assert labels.dtype == torch.int64
    assert masks.tolist() == [[[0, 0, 0], [1, 0, 1]], [[1, 1, 0], [0, 1, 0]]]
    assert ignore.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert Target.from_label_map(label_map.long(), None).labels.tolist() == [0, 7, 255]
    assert Target.from_label_map(label_map[:, :2]).ignore is None
    nothing = Target.from_label_map(torch.full((2, 3), 255))
    assert nothing.masks.shape == (0, 2, 3)
    assert nothing.ignore.all()


@pytest.mark.parametrize(
    ("label_map", "kind", "message"),
    [
        ([[0]], TypeError, "label_map: got list"),
        (torch.zeros(2, 2), TypeError, "label_map: got torch.float32, expected integers"),
        (torch.zeros(2, 2, dtype=torch.bool), TypeError, "label_map: got torch.bool"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), ValueError, r"label_map: got shape \(1, 2, 2\)"),
    ],
)
def test_what_is_no_label_map_is_refused(label_map, kind, message):
    with pytest.raises(kind, match=message):
        Target.from_label_map(label_map)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float16], ids=str)
def test_masks_may_be_numbers_of_0_and_1_and_nothing_else(config, dtype):
    prediction, targets = scene()

    def losses(given):
        criterion = SetCriterion(config, torch.Generator().manual_seed(1))
        return {name: loss.item() for name, loss in criterion(Output(*prediction), given).items()}

    numbers = [Target(t.labels, t.masks.to(dtype)) for t in targets]
    assert losses(numbers) == losses(targets)
    for factor in (2, 255):
        wrong = [numbers[0], Target(numbers[1].labels, numbers[1].masks * factor)]
        for call in (losses, lambda given: SetCriterion(config).match(prediction, given)):
            with pytest.raises(ValueError, match=r"targets\[1\]\.masks: got torch.* to .*expected bool"):
                call(wrong)
    with pytest.raises(ValueError, match=r"targets\[0\]\.ignore: got torch.* to 255, expected bool"):
        losses([numbers[0]._replace(ignore=torch.full((32, 48), 255, dtype=torch.uint8)), numbers[1]])
