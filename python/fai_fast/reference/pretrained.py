"""Where training on one's own classes starts: the weights of a model that was trained on others."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from fai_fast._arguments import check_names
from fai_fast.reference.network import QueryMaskModel
from fai_fast.registry import ModelConfig, ModelSpec, load_spec
from fai_fast.registry.shapes import is_optional
from fai_fast.weights import load_weights

__all__ = ["Pretrained", "pretrained"]

_CLASSIFIER = "head.predictor.forward_prediction_heads.classifier."

_log = logging.getLogger("fai_fast")


class Pretrained(NamedTuple):
    """What :func:`pretrained` gives.

    Attributes:
        network: float32 on the CPU, in training mode; its ``spec`` is that of the new model.
        fresh: names of the parameters that have PyTorch's default initialization, as in ``network.state_dict()``.
    """

    network: QueryMaskModel
    fresh: tuple[str, ...]


def pretrained(
    name_or_spec: str | os.PathLike[str] | ModelSpec,
    classes: Sequence[str] | None = None,
    *,
    name: str | None = None,
    weights: Any = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **config: Any,
) -> Pretrained:
    """A network with a model's weights but for the heads that do not fit, which it names: a start for training.

    Args:
        name_or_spec: the model that was trained; see :func:`build`.
        classes: the new model's; the classifier is fresh then, also where there are as many as before. None for the
            old ones.
        name: the new model's; None for the old one with the number of classes behind it where these are new.
        weights: of the old model; as for :func:`fai_fast.load`.
        cache_dir: where downloaded weights are kept.
        config: fields of :class:`fai_fast.ModelConfig` that the new model has others of, such as ``num_queries=50``,
            ``postprocessing_type="semantic"`` (which changes the task), or those of the losses.

    Raises:
        TypeError, ValueError: an argument is wrong; the text names it.
        WeightsError: the weights cannot be found, fetched or read.

    Example:
        >>> network, fresh = fai_fast.reference.pretrained("fai-mf-n-shapes", classes=("ripe", "unripe"))
        >>> network.spec.name, [name.rpartition("classifier.")[2] for name in fresh]
        ('fai-mf-n-shapes-2-classes', ['weight', 'bias'])
    """
    if unknown := [key for key in config if key not in ModelConfig.__dataclass_fields__]:
        raise TypeError(f"{unknown[0]}: no argument, and no field of ModelConfig")
    if "num_classes" in config:
        raise TypeError("num_classes: follows from classes; pass their names")
    names = check_names("classes", classes)
    found = load_weights(load_spec(name_or_spec), weights, cache_dir=cache_dir)
    spec = _derived(found.spec, names, name, config)
    network = QueryMaskModel(spec)
    old = {key: torch.from_numpy(value) for key, value in found.state.items()}
    fresh = []
    state = network.state_dict()
    for key, value in state.items():
        replaced = names is not None and key.startswith(_CLASSIFIER)
        if not replaced and key in old and old[key].shape == value.shape:
            # What configures the losses is the new model's.
            state[key] = value if key.endswith("empty_weight") else old[key].to(value.dtype)
        elif not is_optional(key):
            fresh.append(key)
    network.load_state_dict(state)
    _log.info("%s: from %s; fresh: %s", spec.name, found.source, ", ".join(fresh) or "nothing")
    return Pretrained(network, tuple(fresh))


def _derived(
    spec: ModelSpec, classes: tuple[str, ...] | None, name: str | None, config: dict[str, Any]
) -> ModelSpec:
    if classes is not None:
        config = {**config, "num_classes": len(classes)}
        name = name or f"{spec.name}-{len(classes)}-classes"
    changed = dataclasses.replace(spec.config, **config)
    return dataclasses.replace(
        spec,
        name=name or spec.name,
        task=changed.postprocessing_type,
        classes=spec.classes if classes is None else classes,
        config=changed,
        # Those of the old model; the new one has none yet.
        weights_url=None,
        bundled_weights=None,
        weights_path=None,
        metrics={},
        per_class={},
        metrics_im_size=None,
        dataset=None,
        note=None,
        published_latency=(),
        documentation_fps_t4_tensorrt_640=None,
    )
