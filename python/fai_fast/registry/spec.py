"""What a model is: its configuration, classes and published figures, as typed records that check themselves."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from fai_fast._arguments import check_bool, check_choice, check_items, check_names, check_number
from fai_fast._coco import category_ids_of
from fai_fast._redaction import redacted
from fai_fast._rules import COMBINES, Combine
from fai_fast._sizes import STRIDE, ImSize, check_input_size, sides_of
from fai_fast.registry._checks import LARGEST
from fai_fast.registry._checks import check_count as _check_count
from fai_fast.registry._checks import check_text as _check_text
from fai_fast.registry._checks import record_of as _record
from fai_fast.registry.backbones import BackboneConfig
from fai_fast.registry.network_config import NETWORK_TASKS, NetworkConfig

__all__ = [
    "BackboneConfig",
    "ModelConfig",
    "ModelSpec",
    "NetworkConfig",
    "PublishedLatency",
    "own_config",
    "stride_of",
]

# Of FocoosAI's networks, whose config is a ModelConfig; of all others it is a NetworkConfig.
OWN_FAMILIES = ("fai_mf", "bisenetformer")
FAMILIES = (
    *OWN_FAMILIES,
    "mask2former",
    "maskformer",
    "oneformer",
    "eomt",
    "eomt_dinov3",
    "rf_detr",
    "custom",
)
# Of FocoosAI's networks; "panoptic" is a task of others alone.
OWN_TASKS = ("instance", "semantic")
TASKS = NETWORK_TASKS
# The decoder's heads are not in any configuration: every published network has 8.
DECODER_HEADS = 8
_LARGEST_SIDE = 32736  # the greatest multiple of 32 that a frame's side can be


@dataclass(frozen=True)
class ModelConfig:
    """The network, its postprocessing and its losses; field names and defaults are those of FocoosAI's configurations.

    Attributes:
        num_classes: C, without 'no object'.
        backbone_config: the backbone.
        num_queries: Q.
        pixel_mean, pixel_std: of R, G, B on 0..255, subtracted and divided by.
        pixel_decoder_feat_dim, pixel_decoder_out_dim: channels inside the pixel decoder and of its mask features.
        pixel_decoder_transformer_layers, _nheads, _dim_feedforward: the encoder on the coarsest level (fai_mf only).
        transformer_predictor_hidden_dim, _dec_layers, _dim_feedforward: of the masked transformer decoder.
        transformer_predictor_out_dim: channels of the mask embeddings, equal to pixel_decoder_out_dim.
        head_out_dim: kept for FocoosAI's files; nothing of the network depends on it.
        cls_sigmoid: classes come from a sigmoid each, not from a softmax; 'no object' has no say then.
        postprocessing_type: "instance" or "semantic".
        mask_threshold, threshold, predict_all_pixels, use_mask_score: defaults of postprocessing.
        combine: of a semantic result with predict_all_pixels, "contest" or "sum", see :func:`fai_fast.postprocess`. No
            file of FocoosAI's has it: ``dataclasses.replace(spec.config, combine="sum")``.
        top_k: objects at most in an instance result, the best; None for all. No limit on semantic results, whose pixels
            would lose their class.
        criterion_*, weight_dict_loss_*, matcher_cost_*: of the losses.

    Raises:
        TypeError, ValueError: a field is not as said here; the text names it.
    """

    num_classes: int
    backbone_config: BackboneConfig
    num_queries: int = 100
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    pixel_decoder_out_dim: int = 256
    pixel_decoder_feat_dim: int = 256
    pixel_decoder_transformer_layers: int = 0
    pixel_decoder_transformer_nheads: int = 8
    pixel_decoder_transformer_dim_feedforward: int = 1024
    transformer_predictor_out_dim: int = 256
    transformer_predictor_hidden_dim: int = 256
    transformer_predictor_dec_layers: int = 6
    transformer_predictor_dim_feedforward: int = 1024
    head_out_dim: int = 256
    cls_sigmoid: bool = False
    postprocessing_type: str = "semantic"
    mask_threshold: float = 0.5
    predict_all_pixels: bool = False
    use_mask_score: bool = False
    threshold: float = 0.5
    top_k: int | None = None
    criterion_deep_supervision: bool = True
    criterion_eos_coef: float = 0.1
    criterion_num_points: int = 12544
    weight_dict_loss_dice: float = 5
    weight_dict_loss_mask: float = 5
    weight_dict_loss_ce: float = 2
    matcher_cost_class: float = 2
    matcher_cost_mask: float = 5
    matcher_cost_dice: float = 5
    combine: Combine = "contest"

    def __post_init__(self) -> None:
        if isinstance(self.backbone_config, Mapping):
            object.__setattr__(
                self, "backbone_config", _record(BackboneConfig, "backbone_config", self.backbone_config)
            )
        if not isinstance(self.backbone_config, BackboneConfig):
            raise TypeError(
                f"config.backbone_config: got {type(self.backbone_config).__name__}, expected a BackboneConfig"
            )
        for name in ("pixel_mean", "pixel_std"):
            values = check_items(f"config.{name}", getattr(self, name), "(R, G, B)")
            if len(values) != 3:
                raise ValueError(f"config.{name}: got {len(values)} values, expected (R, G, B)")
            object.__setattr__(self, name, tuple(check_number(f"config.{name}", value) for value in values))
        if min(self.pixel_std) <= 0:
            raise ValueError(f"config.pixel_std: got {self.pixel_std}, expected positive numbers")
        for name in ("num_classes", "num_queries", "criterion_num_points", "head_out_dim"):
            _check_count(f"config.{name}", getattr(self, name))
        if self.top_k is not None:
            _check_count("config.top_k", self.top_k)
        for name in ("pixel_decoder_transformer_dim_feedforward", "transformer_predictor_dim_feedforward"):
            _check_count(f"config.{name}", getattr(self, name))
        _check_count("config.pixel_decoder_transformer_layers", self.pixel_decoder_transformer_layers, 0, 100)
        _check_count("config.transformer_predictor_dec_layers", self.transformer_predictor_dec_layers, 1, 100)
        _check_count("config.pixel_decoder_transformer_nheads", self.pixel_decoder_transformer_nheads)
        # A sine embedding has a sine and a cosine of each of two coordinates, and the fusion a quarter of the width.
        heads = self.pixel_decoder_transformer_nheads if self.pixel_decoder_transformer_layers else 1
        _check_count(
            "config.pixel_decoder_feat_dim", self.pixel_decoder_feat_dim, multiple=math.lcm(4, heads)
        )
        _check_count(
            "config.transformer_predictor_hidden_dim",
            self.transformer_predictor_hidden_dim,
            multiple=DECODER_HEADS,
        )
        _check_count("config.pixel_decoder_out_dim", self.pixel_decoder_out_dim)
        if self.transformer_predictor_out_dim != self.pixel_decoder_out_dim:
            raise ValueError(
                f"config.transformer_predictor_out_dim: got {self.transformer_predictor_out_dim!r}, expected "
                f"pixel_decoder_out_dim = {self.pixel_decoder_out_dim}, as masks are products of the two"
            )
        for name in ("cls_sigmoid", "predict_all_pixels", "use_mask_score", "criterion_deep_supervision"):
            check_bool(f"config.{name}", getattr(self, name))
        check_choice("config.postprocessing_type", self.postprocessing_type, OWN_TASKS)
        check_choice("config.combine", self.combine, COMBINES)
        if self.combine == "sum" and not (self.postprocessing_type == "semantic" and self.predict_all_pixels):
            raise ValueError(
                "config.combine: got 'sum', expected 'contest', or a semantic result with predict_all_pixels"
            )
        if self.combine == "sum" and self.use_mask_score:
            raise ValueError("config.use_mask_score: got True with combine='sum', expected False")
        for name in ("mask_threshold", "threshold"):
            if not 0 <= check_number(f"config.{name}", getattr(self, name)) <= 1:
                raise ValueError(f"config.{name}: got {getattr(self, name)}, expected 0 to 1")
        for loss in ("dice", "mask", "ce"):
            _check_weight(f"config.weight_dict_loss_{loss}", getattr(self, f"weight_dict_loss_{loss}"))
        for cost in ("class", "mask", "dice"):
            _check_weight(f"config.matcher_cost_{cost}", getattr(self, f"matcher_cost_{cost}"))
        _check_weight("config.criterion_eos_coef", self.criterion_eos_coef)

    @property
    def class_columns(self) -> int:
        """How many class logits the deployed graph gives for a query: with a softmax one more for 'no object'."""
        return self.num_classes if self.cls_sigmoid else self.num_classes + 1


@dataclass(frozen=True)
class PublishedLatency:
    """FocoosAI's own measurement of the engine alone: mean milliseconds, and frames per second cut to an integer."""

    engine: str
    device: str
    im_size: ImSize
    mean_ms: float
    fps: int

    def __post_init__(self) -> None:
        for name in ("engine", "device"):
            _check_text(f"published_latency.{name}", getattr(self, name))
        _set_im_size(self, "im_size", "published_latency.im_size")
        if check_number("published_latency.mean_ms", self.mean_ms) <= 0:
            raise ValueError(f"published_latency.mean_ms: got {self.mean_ms}, expected a positive number")
        _check_count("published_latency.fps", self.fps, 0)


# Fields of the configuration that decide which weights fit, apart from the depth.
_NETWORK = (
    "num_classes",
    "backbone_config",
    "num_queries",
    "pixel_decoder_out_dim",
    "pixel_decoder_feat_dim",
    "pixel_decoder_transformer_nheads",
    "pixel_decoder_transformer_dim_feedforward",
    "transformer_predictor_out_dim",
    "transformer_predictor_hidden_dim",
    "transformer_predictor_dim_feedforward",
)
# Queries are left out, which are None until a graph is known.
_FOREIGN_NETWORK = ("num_classes", "cls_sigmoid")
# What is known of one set of classes, and what of one network.
_OF_CLASSES = ("metrics", "metrics_im_size", "per_class")
_OF_NETWORK = (
    *_OF_CLASSES,
    "dataset",
    "weights_url",
    "published_latency",
    "documentation_fps_t4_tensorrt_640",
    "note",
    "bundled_weights",
    "weights_path",
    "weights_problem",
)


# What a record in a file must say.
_NEEDED_OF_OTHERS = ("task", "classes", "im_size")
_NEEDED = (*_NEEDED_OF_OTHERS, "config")


class _Facts(NamedTuple):
    """What a record knows, and of what."""

    network: tuple[Any, ...]
    figures: tuple[Any, ...]
    im_size: ImSize
    values: dict[str, Any]


@dataclass(frozen=True, repr=False)
class ModelSpec:
    """One model: everything that is known of it but its weights. Equal and hashed by value, picklable, checked.

    Its repr is one line; :meth:`card` tells what is worth reading, :meth:`to_dict` everything.

    ``dataclasses.replace`` keeps only what stays true. With other class names, metrics and per_class of the old ones
    go. With another network (num_classes, queries, widths, backbone, family; not its depth, which is read off a
    checkpoint) everything published goes, and the weights, which fit no longer. What is given in the same call stays.

    Attributes:
        name: how it is called.
        family: "fai_mf" or "bisenetformer", FocoosAI's; "mask2former", "maskformer", "oneformer", "eomt",
            "eomt_dinov3" or "rf_detr", which transformers has; "custom" for any other network.
        task: "instance", "semantic" or, of a network that is not FocoosAI's, "panoptic".
        classes: C names, each once, in the order of the network's class logits.
        config: the network: a :class:`fai_fast.ModelConfig` of FocoosAI's two families, a
            :class:`fai_fast.NetworkConfig` of all others; left out of those, one with so many classes and this task.
        im_size: the network's input that it was trained and evaluated at, pixels: an int for a square, or (height,
            width), each a multiple of 32, or of a ``NetworkConfig``'s ``stride``. A pair of equal sides is given back
            as the int; :attr:`input_size` is a pair always.
        dataset: what it was trained on.
        weights_url: where its published checkpoint is, http or https.
        metrics: published, percent.
        metrics_im_size: the size they were measured at, where it is published; as ``im_size``, of any multiple.
        per_class: AP (instance) or IoU (semantic) of each class, percent, published.
        published_latency: FocoosAI's own measurements.
        documentation_fps_t4_tensorrt_640: an older figure that FocoosAI's documentation still shows.
        note: what else to know.
        bundled_weights: a file in the package that holds its weights.
        weights_path: a file of the user's that holds them, for models from a folder; neither compared nor saved.
        weights_problem: why there is none, for models from a folder; neither compared nor saved.

    Raises:
        TypeError, ValueError: a field is not as said here; the text names it.

    Example:
        >>> base = fai_fast.spec("fai-mf-s-coco-ins")
        >>> config = dataclasses.replace(base.config, num_classes=2)
        >>> pears = dataclasses.replace(base, name="pears", classes=("ripe", "unripe"), config=config)
        >>> pears.metrics, pears.weights_url
        ({}, None)
        >>> theirs = fai_fast.ModelSpec(name="pears", task="instance", classes=("ripe", "unripe"), im_size=640)
        >>> theirs.family, theirs.config.num_classes
        ('custom', 2)
    """

    # What has a default only because the fields before it have one is checked like the rest: none of those is right.
    name: str
    family: str = "custom"
    task: str = ""
    classes: tuple[str, ...] = ()
    config: ModelConfig | NetworkConfig = None  # type: ignore[assignment]  # made where it is left out
    im_size: ImSize = 0
    dataset: str | None = None
    weights_url: str | None = field(default=None, repr=False)
    metrics: Mapping[str, float] = field(default_factory=dict)
    metrics_im_size: ImSize | None = None
    per_class: Mapping[str, float] = field(default_factory=dict)
    published_latency: tuple[PublishedLatency, ...] = ()
    documentation_fps_t4_tensorrt_640: int | None = None
    note: str | None = None
    bundled_weights: str | None = None
    weights_path: str | None = field(default=None, compare=False)
    weights_problem: str | None = field(default=None, compare=False, repr=False)
    _before: _Facts | None = field(default=None, compare=False, repr=False)
    """What dataclasses.replace() was called on knows; of the record itself once it is made."""

    def __post_init__(self) -> None:
        _check_text("name", self.name)
        check_choice("family", self.family, FAMILIES)
        check_choice("task", self.task, OWN_TASKS if self.family in OWN_FAMILIES else TASKS)
        kind = ModelConfig if self.family in OWN_FAMILIES else NetworkConfig
        if self.config is None and kind is NetworkConfig:
            names = check_names("classes", self.classes)
            object.__setattr__(
                self, "config", NetworkConfig(max(1, len(names or ())), postprocessing_type=self.task)
            )
        if isinstance(self.config, Mapping):
            object.__setattr__(self, "config", _record(kind, "config", self.config))
        if not isinstance(self.config, kind):
            raise TypeError(
                f"config: got {type(self.config).__name__}, expected a {kind.__name__} for the family {self.family!r}"
            )
        self._check_classes()
        self._check_against_config()
        # Before it is compared with what it was.
        _set_im_size(self, "im_size", "im_size", largest=_LARGEST_SIDE, multiple=stride_of(self.config))
        if getattr(self.config, "resize", None) == "crops" and not isinstance(self.im_size, int):
            raise ValueError(f"im_size: got {self.im_size} with config.resize='crops', expected a square")
        if self._before is not None:
            self._drop_what_is_not_true(self._before)
        for name in ("dataset", "note", "weights_path", "weights_problem"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        if self.weights_url is not None:
            check_url("weights_url", self.weights_url)
        if self.metrics_im_size is not None:
            _set_im_size(self, "metrics_im_size", "metrics_im_size")
        if self.documentation_fps_t4_tensorrt_640 is not None:
            _check_count("documentation_fps_t4_tensorrt_640", self.documentation_fps_t4_tensorrt_640)
        object.__setattr__(self, "metrics", _numbers("metrics", self.metrics))
        object.__setattr__(self, "per_class", _numbers("per_class", self.per_class))
        if unknown := [name for name in self.per_class if name not in self.classes]:
            raise ValueError(
                f"per_class: got {unknown[0]!r}, which is not in classes; leave out or rename it"
            )
        latencies = tuple(
            _record(PublishedLatency, "published_latency", item) if isinstance(item, Mapping) else item
            for item in check_items(
                "published_latency", self.published_latency, "a sequence of PublishedLatency"
            )
        )
        for item in latencies:
            if not isinstance(item, PublishedLatency):
                raise TypeError(
                    f"published_latency: got {type(item).__name__} in it, expected PublishedLatency"
                )
        object.__setattr__(self, "published_latency", latencies)
        if self.bundled_weights is not None:
            _check_text("bundled_weights", self.bundled_weights)
            if PurePath(self.bundled_weights).name != self.bundled_weights or "\\" in self.bundled_weights:
                raise ValueError(
                    f"bundled_weights: got {self.bundled_weights!r}, expected a file name without folders"
                )
        object.__setattr__(self, "_before", self._facts())

    def __repr__(self) -> str:
        classes = len(self.classes)
        return (
            f"<ModelSpec {self.name}: {self.family}, {self.task}, {classes} class{'' if classes == 1 else 'es'}, "
            f"input {self.im_size}>"
        )

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of ``im_size``."""
        return sides_of(self.im_size)

    @property
    def category_ids(self) -> tuple[int, ...] | None:
        """COCO's id of each class, which go from 1 to 90 with gaps; None where the classes are not COCO's 80."""
        return category_ids_of(self.classes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # What was pickled is not the same object any more.
        object.__setattr__(self, "_before", self._facts())

    def _facts(self) -> _Facts:
        config = self.config
        decisive = _NETWORK if isinstance(config, ModelConfig) else _FOREIGN_NETWORK
        return _Facts(
            network=(self.family, *(getattr(config, name) for name in decisive)),
            figures=(self.classes, self.task),
            im_size=self.im_size,
            values={name: getattr(self, name) for name in _OF_NETWORK},
        )

    def _drop_what_is_not_true(self, before: _Facts) -> None:
        """Drops what replace() handed on of a record with another network or other classes."""
        now = self._facts()
        gone: tuple[str, ...] = ()
        if now.network != before.network:
            gone = _OF_NETWORK
        elif now.figures != before.figures:
            gone = _OF_CLASSES
        elif now.im_size != before.im_size and self.metrics and self.metrics_im_size is None:
            object.__setattr__(self, "metrics_im_size", before.im_size)
        for item in dataclasses.fields(self):
            # What is the same object was handed on, not given.
            if item.name in gone and getattr(self, item.name) is before.values[item.name]:
                empty = (
                    item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
                )
                object.__setattr__(self, item.name, empty)

    def _check_classes(self) -> None:
        classes = check_names("classes", self.classes)
        if not classes:
            raise ValueError("classes: got none, expected at least one name")
        object.__setattr__(self, "classes", classes)
        if len(classes) != self.config.num_classes:
            raise ValueError(
                f"classes: got {len(classes)} names, expected config.num_classes = {self.config.num_classes}"
            )
        if twice := [name for name, count in Counter(classes).items() if count > 1]:
            raise ValueError(
                f"classes: got {', '.join(map(repr, twice[:5]))} more than once, expected each name once: figures per "
                "class go by their names"
            )

    def _check_against_config(self) -> None:
        if self.config.postprocessing_type != self.task:
            raise ValueError(
                f"config.postprocessing_type: got {self.config.postprocessing_type!r}, expected {self.task!r}, the task"
            )
        if self.family == "bisenetformer" and own_config(self).pixel_decoder_transformer_layers:
            raise ValueError(
                f"config.pixel_decoder_transformer_layers: got {own_config(self).pixel_decoder_transformer_layers}, "
                "expected 0: bisenetformer has no encoder"
            )

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types; fields that say nothing (None, or empty) are left out.

        It is written into files that travel, so the address of the weights goes without what may be a secret in it, its
        query and fragment.
        """
        plain = _plain(self)
        assert isinstance(plain, dict)
        if self.weights_url is not None:
            plain["weights_url"] = redacted(self.weights_url)
        plain.pop("weights_path", None)
        plain.pop("weights_problem", None)
        if isinstance(self.config, ModelConfig) and self.config.combine == "contest":
            del plain["config"]["combine"]  # which FocoosAI's files do not have
        if self.family == "bisenetformer":
            for item in dataclasses.fields(ModelConfig):
                if (
                    item.name.startswith("pixel_decoder_transformer")
                    and plain["config"][item.name] == item.default
                ):
                    del plain["config"][item.name]
        return plain

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModelSpec:
        """The record of :meth:`to_dict`; fields that are None are as good as left out.

        Raises:
            TypeError, ValueError: a field is missing, unknown, or not as it must be; the text names it.
        """
        own = isinstance(record, Mapping) and record.get("family") in OWN_FAMILIES
        return _record(cls, "spec", record, _NEEDED if own else _NEEDED_OF_OTHERS)

    def card(self) -> str:
        """The model card as plain text: architecture, input and output, classes, published figures and their source."""
        from fai_fast.registry.card import model_card

        return model_card(self)


def own_config(spec: ModelSpec) -> ModelConfig:
    """The configuration of one of FocoosAI's networks. Raises TypeError for a network of others."""
    if not isinstance(spec.config, ModelConfig):
        raise TypeError(
            f"model: {spec.name} is a network of the family {spec.family!r}, whose layers are not described here; "
            f"expected one of {' or '.join(map(repr, OWN_FAMILIES))}"
        )
    return spec.config


def stride_of(config: ModelConfig | NetworkConfig) -> int:
    """What the sides of a network's input must be multiples of."""
    return STRIDE if isinstance(config, ModelConfig) else config.stride


class ReadOnly(Mapping[str, float]):
    """A mapping that cannot be changed, and unlike types.MappingProxyType can be copied and pickled."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, float]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> float:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def check_url(name: str, value: object) -> str:
    """`value` as an http or https address; TypeError, ValueError otherwise."""
    text = _check_text(name, value)
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        valid = valid and parts.username is None  # it would end up in logs
    except ValueError:
        valid = False
    if not valid or any(character.isspace() for character in text) or not text.isprintable():
        raise ValueError(
            f"{name}: got {redacted(text)!r}, expected an address that starts with http:// or https://"
        )
    return text


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in dataclasses.fields(value) if item.name[0] != "_"]
        items = {name: _plain(getattr(value, name)) for name in names}
        return {key: item for key, item in items.items() if item is not None and item != {} and item != []}
    if isinstance(value, Mapping):
        return dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _numbers(name: str, items: object) -> ReadOnly:
    if not isinstance(items, Mapping):
        raise TypeError(f"{name}: got {type(items).__name__}, expected a mapping of names to numbers")
    for key, value in items.items():
        _check_text(name, key)
        check_number(f"{name}[{key!r}]", value)
    return ReadOnly(items)


def _set_im_size(record: Any, field: str, name: str, largest: int = LARGEST, multiple: int = 1) -> None:
    """Puts a field's checked value in the place of what came; errors call it `name`."""
    object.__setattr__(record, field, check_input_size(name, getattr(record, field), largest, multiple))


def _check_weight(name: str, value: object) -> None:
    if check_number(name, value) < 0:
        raise ValueError(f"{name}: got {value}, expected 0 or more")
