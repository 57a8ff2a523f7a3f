"""FocoosAI's configuration of a network as ours: what decides on it, what does not, and what only FocoosAI has.

What is left out is as FocoosAI's own classes have it by default. A field that we do not have changes nothing where it
has the value that our networks are built for: that is silent, any other value is an error or, where no output
of a trained network depends on it, a warning.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from fai_fast.registry.backbones import KINDS, BackboneConfig
from fai_fast.registry.spec import ModelConfig

__all__ = ["read_config"]

# What training and export write, and no output of a trained network depends on.
_WITHOUT_EFFECT = {
    "resolution",
    "filter_empty_masks",
    "use_pretrained",
    "pretrained",
    "backbone_url",
    "pretrain_img_size",
    "freeze_at",
    "freeze_norm",
    "frozen_stages",
    "use_conv_last",
    "use_checkpoint",
    "drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
}
# Of these a value other than the first is only told: networks differ in training, or by pictures filled up.
_EXPECTED: dict[str, tuple[object, ...]] = {
    "size_divisibility": (0, 1, 2, 4, 8, 16, 32),
    "pixel_decoder_transformer_dropout": (0,),
}
_FEATURES = ("res2", "res3", "res4", "res5")
# Of these a value other than those listed makes another network.
_FIXED: dict[str, tuple[object, ...]] = {
    "out_features": (_FEATURES,),
    "out_indices": ((0, 1, 2, 3),),
    "num_stages": (4,),
    "norm": ("BN", "SyncBN", "FrozenBN"),
    "strides": ((1, 2, 2, 2, 1, 2, 1),),
    "dilations": ((1,) * 7,),
    "patch_size": (4,),
    "patch_norm": (True,),
    "ape": (False,),
    "qk_scale": (),
}
_FIXED_OF: dict[str, tuple[str, ...]] = {
    "resnet": ("num_stages",),
    "stdc": (),
    "mobilenet_v2": ("norm", "strides", "dilations"),
    "convnextv2": (),
    "swin": ("out_indices", "patch_size", "patch_norm", "ape", "qk_scale"),
    "csp_darknet": (),
}
_DEFAULTS: dict[str, dict[str, object]] = {
    "resnet": {"depth": 50, "variant": "d"},
    "stdc": {"base": 64, "layers": (4, 5, 3)},
    "mobilenet_v2": {},
    "convnextv2": {"model_size": "atto"},
    "swin": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7},
    "csp_darknet": {"size": "small"},
}
# The field that names a size, and what each size stands for, whatever the other fields say.
_SIZES: dict[str, tuple[str, dict[str, dict[str, object]]]] = {
    "stdc": (
        "size",
        {
            name: {"base": base, "layers": layers, "block_num": 4, "block_type": "cat"}
            for name, base, layers in (
                ("nano", 32, (2, 2, 2)),
                ("small", 64, (2, 2, 2)),
                ("large", 64, (4, 5, 3)),
            )
        },
    ),
    "convnextv2": (
        "model_size",
        {
            name: {"depths": depths, "embed_dims": tuple(width << stage for stage in range(4))}
            for name, width, depths in (
                ("atto", 40, (2, 2, 6, 2)),
                ("femto", 48, (2, 2, 6, 2)),
                ("pico", 64, (2, 2, 6, 2)),
                ("nano", 80, (2, 2, 8, 2)),
                ("tiny", 96, (3, 3, 9, 3)),
                ("base", 128, (3, 3, 27, 3)),
                ("large", 192, (3, 3, 27, 3)),
            )
        },
    ),
    "swin": (
        "model_size",
        {
            name: {
                "embed_dim": width,
                "depths": (2, 2, blocks, 2),
                "num_heads": tuple((width // 32) << stage for stage in range(4)),
                "window_size": window,
            }
            for name, width, blocks, window in (
                ("tiny", 96, 6, 7),
                ("small", 96, 18, 7),
                ("base", 128, 18, 12),
                ("large", 192, 18, 12),
            )
        },
    ),
    "csp_darknet": (
        "size",
        {
            name: {"base": base, "layers": layers}
            for name, base, layers in (
                ("small", 32, (1, 3, 3, 1)),
                ("medium", 48, (2, 6, 6, 2)),
                ("large", 64, (3, 9, 9, 3)),
            )
        },
    ),
}
_WAY_OUT = "run such a model with FocoosAI's own library, or train one that has what is expected"

_log = logging.getLogger("fai_fast")


def read_config(config: object, source: str) -> dict[str, Any]:
    """What :class:`ModelConfig` takes of the "config" in a ``model_info.json``.

    Args:
        config: what is there.
        source: what the log calls it.

    Raises:
        ValueError: it describes a network that we do not have; the text names the field, its value, and a way out.
    """
    ignored: list[str] = []
    fields = _known(config, "config", ModelConfig, ignored)
    if missing := [key for key in ("num_classes", "backbone_config") if key not in fields]:
        raise ValueError(f"config.{', config.'.join(missing)} missing")
    fields["backbone_config"] = _backbone(fields["backbone_config"], ignored)
    if ignored:
        _log.warning("%s: ignored what is not known here: %s", source, ", ".join(sorted(ignored)))
    return fields


def _backbone(items: object, ignored: list[str]) -> dict[str, Any]:
    name = "config.backbone_config"
    if not isinstance(items, Mapping):
        raise ValueError(f"{name}: got {type(items).__name__}, expected an object")
    kind = items.get("model_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(
            f"{name}.model_type: got {_shown(kind)}, expected one of {', '.join(map(repr, KINDS))}; {_WAY_OUT}"
        )
    given = {**_DEFAULTS[kind], **{key: value for key, value in items.items() if value is not None}}
    if kind in _SIZES:
        field, sizes = _SIZES[kind]
        # With sizes of one's own FocoosAI's default of the field, a size, is null.
        size = given.pop(field, None)
        if field in items and items[field] is None:
            size = None
        if size is not None:
            if not isinstance(size, str) or size not in sizes:
                raise ValueError(
                    f"{name}.{field}: got {_shown(size)}, expected one of {', '.join(map(repr, sizes))}; {_WAY_OUT}"
                )
            given.update(sizes[size])
    for key in ("out_features", *_FIXED_OF[kind]):
        value = given.pop(key, None)
        plain = tuple(value) if isinstance(value, (list, tuple)) else value
        if value is not None and not any(type(plain) is type(one) and plain == one for one in _FIXED[key]):
            expected = " or ".join(map(_shown, _FIXED[key])) or "null"
            raise ValueError(f"{name}.{key}: got {_shown(value)}, expected {expected}; {_WAY_OUT}")
    act = given.get("act")
    if act is not None and act != "relu":
        raise ValueError(f"{name}.act: got {_shown(act)}, expected 'relu'; {_WAY_OUT}")
    # Those of other kinds, such as the act that a record of an STDC may hold, belong to no network of this kind.
    return _known(given, name, BackboneConfig, ignored)


def _known(items: object, name: str, record_type: type, ignored: list[str]) -> dict[str, Any]:
    """The fields of `items` that `record_type` has and that are given; what else is told of goes to `ignored`."""
    if not isinstance(items, Mapping):
        raise ValueError(f"{name}: got {type(items).__name__}, expected an object")
    names = {item.name for item in dataclasses.fields(record_type)}
    for key, value in items.items():
        if key in names or key in _WITHOUT_EFFECT or value is None:
            continue
        if type(value) in (int, float) and value in _EXPECTED.get(key, ()):
            continue
        ignored.append(f"{name}.{key} = {_shown(value)}")
    return {key: value for key, value in items.items() if key in names and value is not None}


def _shown(value: object) -> str:
    """A value for a message, which may be anything."""
    text = repr(list(value)) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
