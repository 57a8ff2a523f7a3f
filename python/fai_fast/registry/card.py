"""The model card: one entry as plain text."""

from __future__ import annotations

from collections.abc import Iterable

from fai_fast._redaction import redacted
from fai_fast._sizes import ImSize, size_text
from fai_fast.registry.shapes import count_parameters
from fai_fast.registry.spec import BackboneConfig, ModelSpec, NetworkConfig, own_config, stride_of

__all__ = ["model_card"]

_WIDTH = 100
_FIGURE = {"instance": "AP", "semantic": "IoU", "panoptic": "PQ"}


def model_card(spec: ModelSpec) -> str:
    """Architecture, input and output, metrics, latencies and classes, each figure with its source."""
    config = spec.config
    queries = "Q" if config.num_queries is None else config.num_queries
    size = spec.metrics_im_size or spec.im_size
    lines = [f"{spec.name}: {spec.task} segmentation, {len(spec.classes)} classes"]
    lines += _section("Architecture", _architecture(spec))
    multiples = f"h and w multiples of {stride_of(config)}, " if stride_of(config) > 1 else ""
    lines += _section(
        "Input",
        [
            ("images", f"(B, 3, h, w), {multiples}RGB 0..255, minus mean, divided by std"),
            ("size", f"{_size(spec.im_size)}; frames of other sizes are {_resized(spec)}"),
            ("mean", _numbers(config.pixel_mean)),
            ("std", _numbers(config.pixel_std)),
        ],
    )
    lines += _section(
        "Output",
        [
            (
                "mask_logits",
                f"(B, {queries}, {_masks(spec)}), a mask's probability is their sigmoid",
            ),
            (
                "class_logits",
                f"(B, {queries}, {config.class_columns}), "
                + ("sigmoid" if config.cls_sigmoid else "softmax; the last is 'no object'"),
            ),
            ("Detections", f"{_detections(spec)}"),
        ],
    )
    if spec.metrics:
        lines += _section(
            f"Metrics in percent, at {_size(size)}{' (published by FocoosAI)' if _published(spec) else ''}",
            [(name, f"{value:g}") for name, value in spec.metrics.items()],
        )
    lines += _latency(spec)
    lines += _classes(spec)
    origin = spec.weights_path or (spec.weights_url and redacted(spec.weights_url))
    if spec.bundled_weights:
        origin = f"{spec.bundled_weights}, in the package"
    lines += _section("Weights", [("from", origin)])
    if spec.note:
        lines += ["", "Note", *_wrapped([f"{word} " for word in spec.note.split()])]
    return "\n".join(line.rstrip() for line in lines)


def _architecture(spec: ModelSpec) -> list[tuple[str, str | None]]:
    if isinstance(spec.config, NetworkConfig):
        return [("family", spec.family), ("layers", "those of its graph"), ("trained on", spec.dataset)]
    config = own_config(spec)
    return [
        ("family", spec.family),
        ("backbone", _backbone(config.backbone_config)),
        ("pixel decoder", _pixel_decoder(spec)),
        (
            "decoder",
            f"masked transformer, {config.transformer_predictor_dec_layers} layers, "
            f"{config.num_queries} queries of {config.transformer_predictor_hidden_dim}",
        ),
        ("parameters", f"{count_parameters(spec) / 1e6:.1f} million"),
        ("trained on", spec.dataset),
    ]


def _resized(spec: ModelSpec) -> str:
    ways = {
        "letterbox": "put into its middle with their aspect",
        "pad": "put into its top left corner with their aspect",
        "crops": "seen as squares side by side along their longer side",
    }
    return ways.get(getattr(spec.config, "resize", "stretch"), "resized to it")


def _masks(spec: ModelSpec) -> str:
    """Their height and width."""
    stride = {"fai_mf": 4, "bisenetformer": 8}.get(spec.family)
    return "as its graph gives them" if stride is None else f"h/{stride}, w/{stride}"


def _size(im_size: ImSize) -> str:
    """Of a square it does not matter which side is which."""
    return size_text(im_size, " x ") + ("" if isinstance(im_size, int) else " (height x width)")


def _backbone(config: BackboneConfig) -> str:
    if config.model_type == "resnet":
        return f"ResNet-{config.depth}, variant {config.variant or 'd'}"
    if config.model_type == "mobilenet_v2":
        return f"MobileNetV2, {config.widened(32)} to {config.out_dims()[-1]} channels"
    blocks = " + ".join(map(str, config.layers or config.depths or ()))
    if config.model_type in ("convnextv2", "swin"):
        name = {"convnextv2": "ConvNeXt V2", "swin": "Swin"}[config.model_type]
        return f"{name}, {config.out_dims()[0]} to {config.out_dims()[-1]} channels, {blocks} blocks"
    kind = "STDC-2" if config.layers == (4, 5, 3) else "STDC-1" if config.layers == (2, 2, 2) else "STDC"
    if config.model_type == "csp_darknet":
        kind = "CSPDarknet"
    more = f" of {config.block_num} convolutions" if config.block_num not in (None, 4) else ""
    more += ", added" if config.block_type == "add" else ""
    return f"{kind}, base {config.base}, {blocks} blocks{more}"


def _published(spec: ModelSpec) -> bool:
    """Whether the figures are FocoosAI's; a user's model has its user's."""
    return (spec.weights_url or "").startswith("https://public.focoos.ai/")


def _pixel_decoder(spec: ModelSpec) -> str:
    config = own_config(spec)
    width = f"{config.pixel_decoder_feat_dim} channels"
    if spec.family == "bisenetformer":
        return f"BiSeNet context path and feature fusion, {width}"
    if layers := config.pixel_decoder_transformer_layers:
        return f"feature pyramid with a transformer encoder of {layers} layers at 1/32, {width}"
    return f"feature pyramid, {width}"


def _detections(spec: ModelSpec) -> str:
    config = spec.config
    what = "one per query that wins pixels, of a class that may have several"
    if spec.task == "instance":
        what = "one per object"
    elif spec.task == "panoptic":
        what = "one per thing, and one per class of stuff"
    elif getattr(config, "combine", "contest") == "sum":
        what = "one per class that has pixels"
    return f"{what}; threshold {config.threshold:g}, mask threshold {config.mask_threshold:g}"


def _latency(spec: ModelSpec) -> list[str]:
    rows = [
        (
            item.engine,
            f"{item.mean_ms:8.3f} ms  {item.fps:4d} fps  {item.device}, {_size(item.im_size)}",
        )
        for item in spec.published_latency
    ]
    lines = _section("Latency of the engine alone, mean (FocoosAI's measurement; not of this package)", rows)
    if fps := spec.documentation_fps_t4_tensorrt_640:
        lines += _section(
            "Older figure that FocoosAI's documentation shows",
            [("TensorRT", f"{fps} fps  Tesla T4, 640 x 640")],
        )
    return lines


def _classes(spec: ModelSpec) -> list[str]:
    if not spec.per_class:
        return ["", "Classes", *_wrapped([f"{name}; " for name in spec.classes[:-1]] + [spec.classes[-1]])]
    width = max(map(len, spec.classes))
    lines = [
        "",
        f"Classes, with the {'published ' if _published(spec) else ''}{_FIGURE[spec.task]} in percent",
    ]
    for index, name in enumerate(spec.classes):
        figure = f"{spec.per_class[name]:6.2f}" if name in spec.per_class else "     -"
        lines.append(f"  {index:4d}  {name:<{width}}  {figure}")
    return lines


def _section(title: str, rows: Iterable[tuple[str, str | None]]) -> list[str]:
    known = [(name, text) for name, text in rows if text]
    width = max((len(name) for name, _ in known), default=0)
    return ["", title, *(f"  {name:<{width}}  {text}" for name, text in known)] if known else []


def _wrapped(words: Iterable[str]) -> list[str]:
    """The words in lines; a class's name is one word, whatever spaces it has."""
    lines = ["  "]
    for word in words:
        if len(lines[-1]) + len(word.rstrip()) > _WIDTH and lines[-1].strip():
            lines.append("  ")
        lines[-1] += word
    return lines


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
