"""The losses of query-mask networks: Hungarian matching, then classes, masks and dice on sampled points.

Cheng et al., Mask2Former, 2022 (losses, point sampling); Carion et al., DETR, 2020 (matching); Kirillov et al.,
PointRend, 2020 (points where a mask is uncertain). Every prediction of the network, the auxiliary ones too, is matched
and judged alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fai_fast.reference import Output, Prediction
from fai_fast.registry import ModelConfig

__all__ = ["SetCriterion", "Target", "point_sample"]

OVERSAMPLE = 3
UNCERTAIN_SHARE = 0.75


class Target(NamedTuple):
    """What is in an image: labels int64 (n,), masks bool (n, H, W)."""

    labels: Tensor
    masks: Tensor


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of maps at points; outside of a map is zero.

    Args:
        maps: float (N, h, w).
        points: (N, P, 2) or (1, P, 2), each an (x, y) in 0..1 of the map's width and height.

    Returns:
        (N, P).
    """
    if points.shape[0] == 1:
        # One set of points for all maps: they are the channels of a single picture.
        return F.grid_sample(maps[None], 2 * points[:, :, None] - 1, align_corners=False)[0, :, :, 0]
    return F.grid_sample(maps[:, None], 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


class SetCriterion(nn.Module):
    """loss_ce, loss_mask and loss_dice of each prediction of a network.

    Args:
        config: a :class:`fai_fast.ModelConfig`; its ``num_classes`` and its ``criterion_*``, ``matcher_*`` and
            ``weight_dict_*`` figures are used.
        generator: draws the points, for results that can be repeated; None for PyTorch's own.

    Attributes:
        weights: what :meth:`total` multiplies loss_ce, loss_mask and loss_dice with.

    Example:
        >>> criterion = SetCriterion(model.spec.config)
        >>> losses = criterion(model(images), targets)
        >>> criterion.total(losses).backward()
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.generator = generator
        self.weights = {
            "loss_ce": config.weight_dict_loss_ce,
            "loss_mask": config.weight_dict_loss_mask,
            "loss_dice": config.weight_dict_loss_dice,
        }

    def forward(
        self, output: Output | Prediction, targets: Sequence[Target | Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The losses of a batch.

        Args:
            output: the network's, with B images.
            targets: B of them: :class:`Target`, or a mapping with its fields.

        Returns:
            Scalars ``loss_ce``, ``loss_mask``, ``loss_dice`` of the final prediction, and the same with the suffix
            ``_0``, ``_1``, ... of the auxiliary ones in order; not yet weighted.

        Raises:
            TypeError, ValueError: targets do not fit the output; the text says which.
        """
        checked = self._check(output, targets)
        device = output.mask_logits.device
        count = torch.tensor(
            sum(len(target.labels) for target in checked), dtype=torch.float32, device=device
        )
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(count)
            count = count / torch.distributed.get_world_size()
        count = count.clamp(min=1)

        points = self._uniform(1, self.config.criterion_num_points, device)
        with torch.no_grad():
            checked = [Target(target.labels, target.masks.float()) for target in checked]
            truths = [point_sample(target.masks, points) for target in checked]
        losses: dict[str, Tensor] = {}
        for index, prediction in enumerate([output, *getattr(output, "aux", ())]):
            pairs = self._match(prediction, checked, points, truths)
            for name, loss in self._losses(prediction, checked, pairs, count).items():
                losses[name if index == 0 else f"{name}_{index - 1}"] = loss
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum of all losses times their weights."""
        kinds = {name: name.rstrip("0123456789").rstrip("_") for name in losses}
        return torch.stack([self.weights[kinds[name]] * loss for name, loss in losses.items()]).sum()

    @torch.no_grad()
    def match(
        self, prediction: Output | Prediction, targets: Sequence[Target]
    ) -> list[tuple[Tensor, Tensor]]:
        """The cheapest one-to-one assignment of queries to targets: per image int64 (queries, targets)."""
        points = self._uniform(1, self.config.criterion_num_points, prediction.mask_logits.device)
        return self._match(
            prediction, targets, points, [point_sample(t.masks.float(), points) for t in targets]
        )

    @torch.no_grad()
    def _match(
        self,
        prediction: Output | Prediction,
        targets: Sequence[Target],
        points: Tensor,
        truths: Sequence[Tensor],
    ) -> list[tuple[Tensor, Tensor]]:
        """:meth:`match` at points (1, P, 2), where the targets are truths (n, P)."""
        from scipy.optimize import linear_sum_assignment

        config = self.config
        batch, queries = prediction.class_logits.shape[:2]
        logits = point_sample(prediction.mask_logits.float().flatten(0, 1), points).unflatten(
            0, (batch, queries)
        )
        probability = logits.sigmoid()
        classes = prediction.class_logits.float().softmax(-1)
        # Binary cross-entropy is softplus(x) - x * t, so that all pairs of masks are one product.
        empty_mask, total = F.softplus(logits).mean(-1), probability.sum(-1)
        pairs = []
        for image, (target, truth) in enumerate(zip(targets, truths, strict=True)):
            cost_mask = empty_mask[image][:, None] - logits[image] @ truth.T / logits.shape[-1]
            cost_dice = 1 - (2 * probability[image] @ truth.T + 1) / (
                total[image][:, None] + truth.sum(1) + 1
            )
            cost = (
                config.matcher_cost_mask * cost_mask
                + config.matcher_cost_dice * cost_dice
                - config.matcher_cost_class * classes[image][:, target.labels]
            )
            # A network that diverged must end in a loss of NaN, which its owner sees, not in a solver's error.
            rows, columns = linear_sum_assignment(cost.nan_to_num(1e6, 1e6, -1e6).cpu().numpy())
            pairs.append(
                (torch.as_tensor(rows, device=cost.device), torch.as_tensor(columns, device=cost.device))
            )
        return pairs

    def _losses(
        self,
        prediction: Output | Prediction,
        targets: list[Target],
        pairs: list[tuple[Tensor, Tensor]],
        count: Tensor,
    ) -> dict[str, Tensor]:
        class_logits = prediction.class_logits.float()
        no_object = class_logits.shape[-1] - 1
        labels = torch.full(class_logits.shape[:2], no_object, dtype=torch.int64, device=class_logits.device)
        for row, target, (queries, matched) in zip(labels, targets, pairs, strict=True):
            row[queries] = target.labels[matched]
        weight = torch.ones(no_object + 1, device=class_logits.device)
        weight[no_object] = self.config.criterion_eos_coef
        losses = {"loss_ce": F.cross_entropy(class_logits.flatten(0, 1), labels.flatten(), weight)}

        logits = torch.cat(
            [masks[queries] for masks, (queries, _) in zip(prediction.mask_logits, pairs, strict=True)]
        ).float()
        if len(logits) == 0:
            # Zero, but part of the graph: every process has the same gradients to exchange.
            nothing = prediction.mask_logits.sum() * 0.0
            return losses | {"loss_mask": nothing, "loss_dice": nothing}
        points = self._uncertain(logits.detach())
        sampled = point_sample(logits, points)
        shares = points.split([len(queries) for queries, _ in pairs])
        with torch.no_grad():
            truth = torch.cat(
                [
                    point_sample(target.masks[matched], share)
                    for target, (_, matched), share in zip(targets, pairs, shares, strict=True)
                    if len(matched)
                ]
            )
        probability = sampled.sigmoid()
        dice = 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
        bce = F.binary_cross_entropy_with_logits(sampled, truth, reduction="none").mean(1)
        return losses | {"loss_mask": bce.sum() / count, "loss_dice": dice.sum() / count}

    @torch.no_grad()
    def _uncertain(self, logits: Tensor) -> Tensor:
        """Points (N, P, 2) for each mask, most of them where its logit is nearest to zero."""
        total = self.config.criterion_num_points
        chosen = int(UNCERTAIN_SHARE * total)
        candidates = self._uniform(len(logits), OVERSAMPLE * total, logits.device)
        doubt = point_sample(logits, candidates).abs()
        nearest = doubt.topk(chosen, dim=1, largest=False, sorted=False).indices
        picked = candidates.gather(1, nearest[:, :, None].expand(-1, -1, 2))
        return torch.cat([picked, self._uniform(len(logits), total - chosen, logits.device)], 1)

    def _uniform(self, sets: int, points: int, device: torch.device) -> Tensor:
        drawn_on = self.generator.device if self.generator is not None else device
        return torch.rand(sets, points, 2, generator=self.generator, device=drawn_on).to(device)

    def _check(self, output: Output | Prediction, targets: Sequence[Any]) -> list[Target]:
        batch, columns = output.mask_logits.shape[0], output.class_logits.shape[-1]
        if columns != self.config.num_classes + 1:
            raise ValueError(
                f"output: got {columns} class logits, expected num_classes + 1 = {self.config.num_classes + 1}"
            )
        if len(targets) != batch:
            raise ValueError(f"targets: got {len(targets)}, expected one for each of {batch} images")
        checked = []
        for index, target in enumerate(targets):
            if isinstance(target, Mapping):
                target = Target(target["labels"], target["masks"])
            labels, masks = target.labels, target.masks
            if labels.ndim != 1 or labels.dtype != torch.int64:
                raise TypeError(
                    f"targets[{index}].labels: got {labels.dtype} {tuple(labels.shape)}, expected int64 (n,)"
                )
            if masks.ndim != 3 or len(masks) != len(labels):
                raise ValueError(
                    f"targets[{index}].masks: got shape {tuple(masks.shape)}, expected ({len(labels)}, H, W)"
                )
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.config.num_classes:
                raise ValueError(
                    f"targets[{index}].labels: got values from {int(labels.min())} to {int(labels.max())}, "
                    f"expected 0..{self.config.num_classes - 1}"
                )
            checked.append(Target(labels, masks))
        return checked
