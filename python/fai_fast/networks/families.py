"""What transformers' networks are, by their own configurations: classes, task, input, and how their library reads them.

Nothing here needs transformers: configurations and image processors are only asked for their fields. Every rule is the
``post_process_*`` of that family's image processor in transformers 5; docs/networks.md says what differs.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fai_fast import _ade20k
from fai_fast._arguments import check_choice, check_int, check_items, check_number
from fai_fast._coco import CATEGORIES, STUFF
from fai_fast._rules import Panoptic, Resampling
from fai_fast._sizes import LARGEST_SIDE, STRIDE, square_or_sides
from fai_fast.registry import ModelSpec, NetworkConfig

__all__ = ["FAMILIES", "Family", "describe", "processor_fields"]

_log = logging.getLogger("fai_fast")

TASKS = ("instance", "semantic", "panoptic")
# Of ImageNet's pixels, on 0..1: what every image processor starts from.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# To which Mask2Former's processor resizes all mask logits, whatever the size of the image was.
_MASK2FORMER_SIZE = (384, 384)
_CITYSCAPES_THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_CITYSCAPES_STUFF = ("road", "sidewalk", "building", "vegetation", "sky")


@dataclass(frozen=True)
class Family:
    """One of transformers' kinds of networks.

    Attributes:
        class_name: of the network, in transformers.
        outputs: the names of its mask and class logits.
        tasks: that it can have.
        side: of a square input, where neither processor nor configuration tells; None where they always do.
        needs_task: whether the network itself is told the task.
    """

    class_name: str
    outputs: tuple[str, str] = ("masks_queries_logits", "class_queries_logits")
    tasks: tuple[str, ...] = TASKS
    side: int | None = 640
    needs_task: bool = False


FAMILIES = {
    "mask2former": Family("Mask2FormerForUniversalSegmentation", side=384),
    "maskformer": Family("MaskFormerForInstanceSegmentation"),
    "oneformer": Family("OneFormerForUniversalSegmentation", needs_task=True),
    "eomt": Family("EomtForUniversalSegmentation", side=None),
    "eomt_dinov3": Family("EomtDinov3ForUniversalSegmentation", side=None),
    "rf_detr": Family("RfDetrForInstanceSegmentation", ("pred_masks", "logits"), ("instance",), side=None),
}
"""By ``config.model_type``, which is ``ModelSpec.family`` too."""


def describe(config: Any, processor: Any, name: str, task: str | None) -> ModelSpec:
    """The record of a network.

    Args:
        config: transformers' configuration of it.
        processor: its image processor, or a processor that has one; None for what its family has by default.
        name: what the record is called; where it names a task, that is the network's.
        task: "instance", "semantic" or "panoptic"; None for what name or classes tell, which is said once.

    Raises:
        TypeError, ValueError: `config` does not name all classes, or has no such task; the text names what came.
    """
    family_name = config.model_type
    family = FAMILIES[family_name]
    classes = _classes(config)
    fields = processor_fields(processor)
    if task is None:
        task = _task_of(family, fields, classes, name)
    check_choice("task", task, TASKS)
    if task not in family.tasks:
        raise ValueError(
            f"task: got {task!r} for a network of the family {family_name!r}, expected {' or '.join(family.tasks)}"
        )
    size, stride = _size(family, config, fields, name)
    mean, std = _normalization(fields)
    settings = _rules(family_name, task, size, fields)
    if task == "panoptic":
        settings["panoptic"] = Panoptic(
            stuff=_stuff(processor, fields, classes, name), weighted=not family_name.startswith("eomt")
        )
    return ModelSpec(
        name=name,
        family=family_name,
        task=task,
        classes=classes,
        im_size=square_or_sides(size),
        config=NetworkConfig(
            num_classes=len(classes),
            num_queries=_queries(config),
            pixel_mean=mean,
            pixel_std=std,
            postprocessing_type=task,  # type: ignore[arg-type]  # checked above
            stride=stride,
            **settings,
        ),
    )


def processor_fields(processor: Any) -> dict[str, Any]:
    """What an image processor does, as the JSON file of it has it; {} for None.

    A field that is null there says nothing, as in its library.
    """
    if processor is None:
        return {}
    inner = getattr(processor, "image_processor", processor)
    if isinstance(inner, Mapping):
        return {key: value for key, value in inner.items() if value is not None}
    if not callable(getattr(inner, "to_dict", None)):
        raise TypeError(
            f"processor: got {type(processor).__name__}, expected an image processor of transformers"
        )
    return {key: value for key, value in inner.to_dict().items() if value is not None}


def _rules(family: str, task: str, size: tuple[int, int], fields: Mapping[str, Any]) -> dict[str, Any]:
    """How a result becomes of the outputs, in the family's own library."""
    of_eomt = family in ("eomt", "eomt_dinov3")
    if task == "semantic":
        # Every pixel has a class, however unsure.
        sizes = {"mask2former": _MASK2FORMER_SIZE, "eomt": size, "eomt_dinov3": size}
        return {
            "combine": "sum",
            "threshold": 0.0,
            "resampling": Resampling(logits_size=sizes[family]) if family in sizes else None,
            "resize": "crops" if of_eomt and fields.get("do_split_image") else "stretch",
        }
    if of_eomt:
        return {
            "threshold": 0.8,
            "use_mask_score": task == "instance",
            "resampling": Resampling(logits_size=size, of="logits"),
            "resize": "pad",
        }
    if family == "rf_detr":
        return {"cls_sigmoid": True, "multi_label": True, "resampling": Resampling(of="logits")}
    logits_size = _MASK2FORMER_SIZE if family == "mask2former" else None
    if task == "panoptic":
        return {"resampling": None if logits_size is None else Resampling(logits_size=logits_size)}
    if family == "oneformer":
        return {"multi_label": True, "overlap_threshold": 0.8, "resampling": Resampling(of="logits")}
    return {
        "multi_label": True,
        "use_mask_score": True,
        "resampling": Resampling(logits_size=logits_size, nearest=True),
    }


# ------------------------------------------------------------------------------------------------ classes


def _classes(config: Any) -> tuple[str, ...]:
    """The names in the order of the class logits, each once."""
    labels = getattr(config, "id2label", None)
    if not isinstance(labels, Mapping) or not labels:
        raise ValueError(
            f"model: its config has no id2label (got {type(labels).__name__}), expected the name of each class: set "
            "config.id2label = {0: ..., 1: ...}"
        )
    by_id = {int(key): str(value).strip() for key, value in labels.items()}
    missing = [index for index in range(max(by_id) + 1) if index not in by_id]
    if missing or min(by_id) < 0:
        raise ValueError(
            f"model: its config.id2label has {len(by_id)} names for ids up to {max(by_id)}, and none for class "
            f"{missing[0] if missing else min(by_id)}, expected one for each class from 0"
        )
    names: list[str] = []
    for index in range(len(by_id)):
        name = by_id[index] or f"class {index}"
        count = 2
        unique = name
        while unique in names:
            unique = f"{name} ({count})"
            count += 1
        names.append(unique)
    return tuple(names)


def _queries(config: Any) -> int | None:
    for holder in (config, getattr(config, "decoder_config", None)):
        count = getattr(holder, "num_queries", None)
        if isinstance(count, int):
            return count
    return None


def _task_of(family: Family, fields: Mapping[str, Any], classes: Sequence[str], name: str) -> str:
    if len(family.tasks) == 1:
        return family.tasks[0]
    words = re.split(r"[^a-z]+", name.lower())
    for task in TASKS:
        if task in words:
            return task
    if fields.get("do_split_image"):
        return "semantic"  # crops side by side are what EoMT's semantic models see
    task = "panoptic" if set(classes) >= {*CATEGORIES, *STUFF} else "instance"
    _log.warning(
        "%s: neither its name nor its processor says whether it is of instances, semantic or panoptic; taken as %s: "
        "pass task= for another",
        name,
        task,
    )
    return task


def _stuff(processor: Any, fields: Mapping[str, Any], classes: Sequence[str], name: str) -> tuple[int, ...]:
    """The ids of classes that are fused: as the processor says, or of data sets whose classes are known by name."""
    metadata = fields.get("metadata")
    if metadata is None:
        metadata = getattr(getattr(processor, "image_processor", processor), "metadata", None)
    if isinstance(metadata, Mapping) and metadata.get("thing_ids"):
        said = check_items("processor.metadata.thing_ids", metadata["thing_ids"], "ids of classes")
        countable = {check_int("processor.metadata.thing_ids", index) for index in said}
        return tuple(index for index in range(len(classes)) if index not in countable)
    for things, stuff in (
        (tuple(CATEGORIES), tuple(STUFF)),
        (_CITYSCAPES_THINGS, _CITYSCAPES_STUFF),
    ):
        if set(classes) >= {*things, *stuff}:
            return tuple(index for index, label in enumerate(classes) if label not in things)
    if (known := _ade20k.stuff_in(tuple(classes))) is not None:
        return known
    _log.warning(
        "%s: which of its classes are stuff is not known, so that no segments are fused; say it with spec=: "
        "dataclasses.replace(spec, config=dataclasses.replace(spec.config, panoptic=fai_fast.Panoptic(stuff=...)))",
        name,
    )
    return ()


# -------------------------------------------------------------------------------------------------- input


def _normalization(
    fields: Mapping[str, Any],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation on 0..255, of pixels that the processor may have scaled first."""
    scale = 1.0
    if fields.get("do_rescale", True):
        scale = check_number("processor.rescale_factor", fields.get("rescale_factor", 1 / 255))
    if scale <= 0:
        raise ValueError(f"processor.rescale_factor: got {scale}, expected a positive number")
    mean, std = fields.get("image_mean", _MEAN), fields.get("image_std", _STD)
    if not fields.get("do_normalize", True):
        mean, std = 0.0, 1.0
    channels = []
    for field, value in (("image_mean", mean), ("image_std", std)):
        name = f"processor.{field}"
        items = [value] * 3 if isinstance(value, (int, float)) else check_items(name, value, "(R, G, B)")
        # By the inverse, so that 1/255 gives what is written as 123.675.
        factor = 1 / scale
        channels.append(tuple(round(check_number(name, item) * factor, 6) for item in items))
    return channels[0], channels[1]  # type: ignore[return-value]  # three each, or NetworkConfig refuses them


def _size(family: Family, config: Any, fields: Mapping[str, Any], name: str) -> tuple[tuple[int, int], int]:
    """(height, width) of the input, and what its sides are multiples of."""
    backbone: Any = getattr(config, "backbone_config", None)
    if config.model_type in ("eomt", "eomt_dinov3"):
        # Its positions are of one size.
        return _pair(config.image_size), math.gcd(*_pair(config.patch_size))
    stride = STRIDE
    if config.model_type == "rf_detr":
        stride = max(_pair(backbone.patch_size)) * max(1, int(getattr(backbone, "num_windows", 1)))
    asked, said = _asked_for(_sides_in(fields.get("size", {})), name), "processor.size"
    if asked is None and family.side is not None:
        asked = (family.side, family.side)
    elif asked is None:
        asked, said = _pair(backbone.image_size), "model: its config's backbone_config.image_size"
    if max(asked) > LARGEST_SIDE:
        raise ValueError(
            f"{said}: got {asked[0]} x {asked[1]} (height x width), expected sides of at most {LARGEST_SIDE} pixels; "
            "say another with processor="
        )
    rounded = tuple(min(LARGEST_SIDE // stride, max(1, -(-side // stride))) * stride for side in asked)
    return (rounded[0], rounded[1]), stride


def _asked_for(size: Mapping[str, int], name: str) -> tuple[int, int] | None:
    """(height, width) of a processor's size, None where it says nothing; its fields in the order of its library.

    Raises ValueError where it says what that library refuses too: a single bound, or one side alone.
    """
    if "shortest_edge" in size:
        shortest, longest = size["shortest_edge"], size.get("longest_edge")
        side = shortest if longest is None else min(shortest, longest)
        if longest != shortest:
            _log.info(
                "%s: its processor makes the %s side of each picture %d, and leaves the other to the picture; "
                "here all are resized to one size: pass im_size= or frame= for other pictures than square ones",
                name,
                "shorter" if side == shortest else "longer",
                side,
            )
        return side, side
    if "max_height" in size and "max_width" in size:
        bounds = (size["max_height"], size["max_width"])
        _log.info(
            "%s: its processor makes each picture as large as %d x %d (height x width) has room for, and keeps its "
            "aspect; here all are resized to that size: pass im_size= or frame= for pictures of another aspect",
            name,
            *bounds,
        )
        return bounds
    if "height" in size and "width" in size:
        return size["height"], size["width"]
    if size:
        raise ValueError(
            f"processor.size: got {dict(size)!r:.80}, expected height and width, shortest_edge, or max_height and "
            "max_width, as its library does"
        )
    return None


def _sides_in(size: Any) -> dict[str, int]:
    """A processor's size by names: a number is both sides, and two are height and width."""
    if isinstance(size, int):
        size = {"height": size, "width": size}
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    try:
        named = dict(size)
    except (TypeError, ValueError):
        raise TypeError(
            f"processor.size: got {size!r:.80}, expected a number, a pair, or sides by name"
        ) from None
    sides = {key: check_int(f"processor.size.{key}", side) for key, side in named.items() if side is not None}
    for key, side in sides.items():
        if side < 1:
            raise ValueError(f"processor.size.{key}: got {side}, expected a positive number of pixels")
    return sides


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)
