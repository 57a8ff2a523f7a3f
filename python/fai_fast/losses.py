"""The losses of query-mask networks: Hungarian matching, then classes, masks and dice on sampled points.

Cheng et al., Mask2Former, 2022 (losses, point sampling); Carion et al., DETR, 2020 (matching); Kirillov et al.,
PointRend, 2020 (points where a mask is uncertain). Every prediction of the network, the auxiliary ones too, is matched
and judged alone.

Sums and products over thousands of points do not fit into half precision, so everything here is float32, whatever
autocast, the default dtype or the dtype of the logits is around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    """What is in an image.

    Attributes:
        labels: int64 (n,), classes.
        masks: (n, H, W), bool, or numbers that are all 0 or 1.
        ignore: (H, W), as masks: pixels of which nothing is known, which count in no loss of masks; None for none.
    """

    labels: Tensor
    masks: Tensor
    ignore: Tensor | None = None

    @classmethod
    def from_label_map(cls, label_map: Tensor, ignore_index: int | None = 255) -> Target:
        """The target of a semantic picture: one mask per class that is in it.

        Args:
            label_map: integers (H, W), the class of each pixel.
            ignore_index: of the pixels of which nothing is known; None where there are none.

        Raises:
            TypeError, ValueError: label_map is not as said here.

        Example:
            >>> Target.from_label_map(torch.tensor([[0, 0, 2], [2, 2, 255]])).labels.tolist()
            [0, 2]
        """
        if not isinstance(label_map, Tensor):
            raise TypeError(
                f"label_map: got {type(label_map).__name__}, expected a tensor of integers (H, W)"
            )
        if label_map.is_floating_point() or label_map.is_complex() or label_map.dtype == torch.bool:
            raise TypeError(f"label_map: got {label_map.dtype}, expected integers")
        if label_map.ndim != 2 or not label_map.numel():
            raise ValueError(f"label_map: got shape {tuple(label_map.shape)}, expected (H, W)")
        label_map = label_map.long()
        labels = label_map.unique()
        ignore = None
        if ignore_index is not None and bool((labels == ignore_index).any()):
            labels = labels[labels != ignore_index]
            ignore = label_map == ignore_index
        return cls(labels, label_map == labels[:, None, None], ignore)


def point_sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of maps at points; outside of a map is zero.

    Args:
        maps: (N, h, w) of any real dtype.
        points: float32 (N, P, 2) or (1, P, 2), each an (x, y) in 0..1 of the map's width and height.

    Returns:
        float32 (N, P).
    """
    maps = maps.float()
    if points.shape[0] == 1:
        # One set of points for all maps: they are the channels of a single picture.
        return F.grid_sample(maps[None], 2 * points[:, :, None] - 1, align_corners=False)[0, :, :, 0]
    return F.grid_sample(maps[:, None], 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


class SetCriterion(nn.Module):
    """loss_ce, loss_mask and loss_dice of each prediction of a network; float32 under any autocast.

    Args:
        config: a :class:`fai_fast.ModelConfig`; its ``num_classes`` and its ``criterion_*``, ``matcher_*`` and
            ``weight_dict_*`` figures are used.
        generator: draws the points, for results that can be repeated; None for PyTorch's own.

    Raises:
        TypeError: `config` is not a ModelConfig.

    Attributes:
        weights: what :meth:`total` multiplies loss_ce, loss_mask and loss_dice with.

    Example:
        >>> criterion = SetCriterion(model.spec.config)
        >>> losses = criterion(model(images), targets)
        >>> criterion.total(losses).backward()
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise TypeError(
                f"config: got {type(config).__name__}, expected a ModelConfig, such as spec.config"
            )
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
            output: the network's, with B images, in any floating-point dtype.
            targets: B of them: :class:`Target`, or a mapping with its fields; they may be on another device.

        Returns:
            float32 scalars ``loss_ce``, ``loss_mask``, ``loss_dice`` of the final prediction, and the same with the
            suffix ``_0``, ``_1``, ... of the auxiliary ones in order, unless ``criterion_deep_supervision`` is False;
            not yet weighted.

        Raises:
            TypeError, ValueError: output or targets are not as said here, or do not fit; the text says which.
        """
        checked = self._check(output, targets)
        device = output.mask_logits.device
        predictions = [
            output,
            *(getattr(output, "aux", ()) if self.config.criterion_deep_supervision else ()),
        ]
        with _no_autocast(device):
            count = torch.tensor(
                sum(len(target.labels) for target in checked), dtype=torch.float32, device=device
            )
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(count)
                count = count / torch.distributed.get_world_size()
            count = count.clamp(min=1)

            points = self._uniform(1, self.config.criterion_num_points, device)
            sampled = [_sampled(target, points) for target in checked]
            losses: dict[str, Tensor] = {}
            for index, prediction in enumerate(predictions):
                pairs = self._match(prediction, checked, points, sampled)
                for name, loss in self._losses(prediction, checked, pairs, count).items():
                    losses[name if index == 0 else f"{name}_{index - 1}"] = loss
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum of all losses times their weights; float32.

        Raises:
            ValueError: `losses` has another name than :meth:`forward` gives.
        """
        kinds = {name: name.rstrip("0123456789").rstrip("_") for name in losses}
        if unknown := [name for name, kind in kinds.items() if kind not in self.weights]:
            raise ValueError(
                f"losses: got {unknown[0]!r}, expected {', '.join(self.weights)}, or one with a number"
            )
        if not losses:
            raise ValueError("losses: got none, expected those of forward()")
        return torch.stack([self.weights[kinds[name]] * loss.float() for name, loss in losses.items()]).sum()

    @torch.no_grad()
    def match(
        self, prediction: Output | Prediction, targets: Sequence[Target | Mapping[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """The cheapest one-to-one assignment of queries to targets: per image int64 (queries, targets).

        With more targets than queries, those that would cost most are left without one.

        Raises:
            TypeError, ValueError: as :meth:`forward`.
        """
        checked = self._check(prediction, targets)
        device = prediction.mask_logits.device
        with _no_autocast(device):
            points = self._uniform(1, self.config.criterion_num_points, device)
            return self._match(prediction, checked, points, [_sampled(target, points) for target in checked])

    @torch.no_grad()
    def _match(
        self,
        prediction: Output | Prediction,
        targets: Sequence[Target],
        points: Tensor,
        sampled: Sequence[tuple[Tensor, Tensor | None]],
    ) -> list[tuple[Tensor, Tensor]]:
        """:meth:`match` at points (1, P, 2), where the targets are `sampled`: see :func:`_sampled`."""
        from scipy.optimize import linear_sum_assignment

        config = self.config
        batch, queries = prediction.class_logits.shape[:2]
        logits = point_sample(prediction.mask_logits.flatten(0, 1), points).unflatten(0, (batch, queries))
        probability = logits.sigmoid()
        class_logits = prediction.class_logits.float()
        classes = class_logits.sigmoid() if config.cls_sigmoid else class_logits.softmax(-1)
        # Binary cross-entropy is softplus(x) - x * t, so that all pairs of masks are one product.
        empty = F.softplus(logits)
        pairs = []
        for image, (target, (truth, known)) in enumerate(zip(targets, sampled, strict=True)):
            weight = torch.ones_like(points[0, :, 0]) if known is None else known
            counted = weight.sum().clamp(min=1)
            aim = truth * weight
            cost_mask = ((empty[image] @ weight)[:, None] - logits[image] @ aim.T) / counted
            cost_dice = 1 - (2 * probability[image] @ aim.T + 1) / (
                (probability[image] @ weight)[:, None] + aim.sum(1) + 1
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
        losses = {"loss_ce": self._class_loss(class_logits, labels, count)}

        logits = torch.cat(
            [masks[queries] for masks, (queries, _) in zip(prediction.mask_logits, pairs, strict=True)]
        ).float()
        if len(logits) == 0:
            # Zero, but part of the graph: every process has the same gradients to exchange. A sum over no values is
            # zero whatever the logits are, and half precision could not hold their own.
            nothing = prediction.mask_logits[:, :0].float().sum()
            return losses | {"loss_mask": nothing, "loss_dice": nothing}
        matches = [
            (target, matched) for target, (_, matched) in zip(targets, pairs, strict=True) if len(matched)
        ]
        points = self._uncertain(logits.detach(), matches)
        sampled = point_sample(logits, points)
        with torch.no_grad():
            shares = points.split([len(matched) for _, matched in matches])
            truth = torch.cat(
                [
                    point_sample(target.masks[matched], share)
                    for (target, matched), share in zip(matches, shares, strict=True)
                ]
            )
            known = _known_at(matches, points)
        probability = sampled.sigmoid()
        bce = F.binary_cross_entropy_with_logits(sampled, truth, reduction="none")
        if known is None:
            bce = bce.mean(1)
        else:
            bce = (bce * known).sum(1) / known.sum(1).clamp(min=1)
            probability, truth = probability * known, truth * known
        dice = 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
        return losses | {"loss_mask": bce.sum() / count, "loss_dice": dice.sum() / count}

    def _class_loss(self, class_logits: Tensor, labels: Tensor, count: Tensor) -> Tensor:
        """Of logits (B, Q, C+1) and the labels (B, Q) that they should have, C for 'no object'."""
        no_object = class_logits.shape[-1] - 1
        if self.config.cls_sigmoid:
            # Each class on its own, and 'no object' is none of them: the last column has no part in it.
            truth = F.one_hot(labels, no_object + 1)[..., :-1].float()
            loss = F.binary_cross_entropy_with_logits(class_logits[..., :-1], truth, reduction="sum")
            return loss / count
        weight = torch.ones(no_object + 1, dtype=torch.float32, device=class_logits.device)
        weight[no_object] = self.config.criterion_eos_coef
        return F.cross_entropy(class_logits.flatten(0, 1), labels.flatten(), weight)

    @torch.no_grad()
    def _uncertain(self, logits: Tensor, matches: Sequence[tuple[Target, Tensor]]) -> Tensor:
        """Points (N, P, 2) for each mask, most of them where its logit is nearest to zero and the truth is known."""
        total = self.config.criterion_num_points
        chosen = int(UNCERTAIN_SHARE * total)
        candidates = self._uniform(len(logits), OVERSAMPLE * total, logits.device)
        doubt = point_sample(logits, candidates).abs()
        if (known := _known_at(matches, candidates)) is not None:
            doubt = doubt.masked_fill(known == 0, torch.inf)
        nearest = doubt.topk(chosen, dim=1, largest=False, sorted=False).indices
        picked = candidates.gather(1, nearest[:, :, None].expand(-1, -1, 2))
        return torch.cat([picked, self._uniform(len(logits), total - chosen, logits.device)], 1)

    def _uniform(self, sets: int, points: int, device: torch.device) -> Tensor:
        drawn_on = self.generator.device if self.generator is not None else device
        drawn = torch.rand(sets, points, 2, generator=self.generator, device=drawn_on, dtype=torch.float32)
        return drawn.to(device)

    def _check(self, output: Output | Prediction, targets: Sequence[Any]) -> list[Target]:
        """The targets on the output's device, masks and ignore as float32 of 0 and 1."""
        device = self._check_output(output)
        batch = output.mask_logits.shape[0]
        if not isinstance(targets, Sequence):
            raise TypeError(f"targets: got {type(targets).__name__}, expected a list of one Target per image")
        if len(targets) != batch:
            raise ValueError(f"targets: got {len(targets)}, expected one for each of {batch} images")
        return [self._check_target(f"targets[{index}]", item, device) for index, item in enumerate(targets)]

    def _check_output(self, output: Output | Prediction) -> torch.device:
        for index, prediction in enumerate([output, *getattr(output, "aux", ())]):
            name = "output" if index == 0 else f"output.aux[{index - 1}]"
            masks, classes = (getattr(prediction, key, None) for key in ("mask_logits", "class_logits"))
            if not (isinstance(masks, Tensor) and isinstance(classes, Tensor)):
                raise TypeError(
                    f"{name}: got {type(prediction).__name__}, expected mask_logits and class_logits of a network"
                )
            if not (masks.is_floating_point() and classes.is_floating_point()):
                raise TypeError(
                    f"{name}: got logits of {masks.dtype} and {classes.dtype}, expected floating point"
                )
            if masks.ndim != 4 or classes.ndim != 3 or masks.shape[:2] != classes.shape[:2]:
                raise ValueError(
                    f"{name}: got mask_logits {tuple(masks.shape)} and class_logits {tuple(classes.shape)}, expected "
                    "(B, Q, h, w) and (B, Q, C + 1)"
                )
            if classes.shape[-1] != self.config.num_classes + 1:
                raise ValueError(
                    f"{name}: got {classes.shape[-1]} class logits, expected num_classes + 1 = "
                    f"{self.config.num_classes + 1}"
                )
        return output.mask_logits.device

    def _check_target(self, name: str, target: Any, device: torch.device) -> Target:
        if isinstance(target, Mapping):
            if missing := [key for key in ("labels", "masks") if key not in target]:
                raise ValueError(
                    f"{name}: has no {' and no '.join(missing)}, expected the fields of a Target"
                )
            target = Target(target["labels"], target["masks"], target.get("ignore"))
        if not isinstance(target, Target):
            raise TypeError(
                f"{name}: got {type(target).__name__}, expected a Target or a mapping with its fields"
            )
        labels, masks, ignore = target
        for field, value in (("labels", labels), ("masks", masks), ("ignore", ignore)):
            if not isinstance(value, Tensor) and not (field == "ignore" and value is None):
                raise TypeError(f"{name}.{field}: got {type(value).__name__}, expected a tensor")
        if labels.ndim != 1 or labels.dtype != torch.int64:
            raise TypeError(f"{name}.labels: got {labels.dtype} {tuple(labels.shape)}, expected int64 (n,)")
        if masks.ndim != 3 or len(masks) != len(labels) or 0 in masks.shape[1:]:
            raise ValueError(
                f"{name}.masks: got shape {tuple(masks.shape)}, expected ({len(labels)}, H, W), as many as labels"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.config.num_classes:
            raise ValueError(
                f"{name}.labels: got values from {int(labels.min())} to {int(labels.max())}, "
                f"expected 0..{self.config.num_classes - 1}"
            )
        masks = _as_bool(f"{name}.masks", masks)
        if ignore is not None:
            if ignore.shape != masks.shape[1:]:
                raise ValueError(
                    f"{name}.ignore: got shape {tuple(ignore.shape)}, expected {tuple(masks.shape[1:])} as the masks"
                )
            ignore = _as_bool(f"{name}.ignore", ignore).to(device).float()
        # Once, not for each prediction that samples them.
        return Target(labels.to(device), masks.to(device).float(), ignore)


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:  # a kind of device that has no autocast
        return nullcontext()


def _as_bool(name: str, masks: Tensor) -> Tensor:
    """Masks of 0 and 1 as bool."""
    if masks.dtype == torch.bool:
        return masks
    if masks.is_complex():
        raise TypeError(f"{name}: got {masks.dtype}, expected bool, or numbers that are all 0 or 1")
    one = masks == 1
    if bool((~one & (masks != 0)).any()):
        low, high = masks.min().item(), masks.max().item()
        raise ValueError(
            f"{name}: got {masks.dtype} from {low:g} to {high:g}, expected bool, or numbers that are all 0 or 1 (of 0 "
            "and 255 make bool by `masks > 127`, of a label map by `Target.from_label_map`)"
        )
    return one


@torch.no_grad()
def _sampled(target: Target, points: Tensor) -> tuple[Tensor, Tensor | None]:
    """A target at points (1, P, 2): its masks (n, P), and (P,) 1 where the truth is known, else 0; None for all."""
    known = None if target.ignore is None else _known(target.ignore, points)[0]
    return point_sample(target.masks, points), known


def _known(ignore: Tensor, points: Tensor) -> Tensor:
    """(N, P): 0 at points (N, P, 2) that an ignored pixel has any part in, else 1."""
    sampled = point_sample(ignore[None], points.reshape(1, -1, 2)).view(points.shape[:2])
    return (sampled == 0).float()


def _known_at(matches: Sequence[tuple[Target, Tensor]], points: Tensor) -> Tensor | None:
    """:func:`_known` for the matched masks of all pictures, whose points are one after another; None for all ones."""
    if all(target.ignore is None for target, _ in matches):
        return None
    shares = points.split([len(matched) for _, matched in matches])
    return torch.cat(
        [
            torch.ones_like(share[:, :, 0]) if target.ignore is None else _known(target.ignore, share)
            for (target, _), share in zip(matches, shares, strict=True)
        ]
    )
