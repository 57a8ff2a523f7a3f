"""Puts the deployed graph together, and says what may not be in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fai_fast.exporter.backbone import backbone
from fai_fast.exporter.builder import Builder, Value
from fai_fast.exporter.decoder import decoder
from fai_fast.exporter.fold import Params
from fai_fast.exporter.pixel_decoder import bisenet, fpn
from fai_fast.registry import ModelSpec, own_config

if TYPE_CHECKING:
    import onnx

__all__ = ["DTYPES", "build_graph", "float32_products"]

DTYPES: dict[str, npt.DTypeLike] = {"fp32": np.float32, "fp16": np.float16}
PRODUCTS = ("Conv", "MatMul", "Gemm")


def build_graph(
    spec: ModelSpec,
    state: Mapping[str, npt.NDArray[Any]],
    size: tuple[int, int],
    batch: int = 1,
    precision: str = "fp32",
) -> onnx.ModelProto:
    """The deployed graph of a network.

    Args:
        spec: the network.
        state: its parameters, as :func:`fai_fast.weights.check_state` gives them.
        size: (height, width) of the images, multiples of 32.
        batch: number of images.
        precision: "fp32" or "fp16", of weights, input, outputs and all products.

    Returns:
        A model with the input ``images`` (B, 3, height, width), normalized, and the outputs ``mask_logits``
        (B, Q, height / s, width / s) with s 4 for fai_mf and 8 for bisenetformer, and ``class_logits`` (B, Q, C+1).

    Raises:
        ExportError: a weight does not fit into the precision.
    """
    config = own_config(spec)
    b = Builder(DTYPES[precision])
    images = Value("images", (batch, 3, *size), b.dtype)
    pixels = Params(state).at("pixel_decoder")
    features = backbone(b, pixels.at("backbone"), config.backbone_config, images)
    mask_features, levels = (fpn if spec.family == "fai_mf" else bisenet)(b, pixels, config, features)
    predictor = Params(state).at("head").at("predictor")
    mask_logits, class_logits = decoder(b, predictor, config, mask_features, levels)
    outputs = [(mask_logits, "mask_logits"), (class_logits, "class_logits")]
    model: onnx.ModelProto = b.model([images], outputs)
    return model


def float32_products(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions and matrix products that have a float32 operand.

    TensorRT-RTX refuses them on compute capability 7.5, and they are slow on every GPU.
    """
    import onnx

    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    types = {item.name: item.data_type for item in typed.graph.initializer}
    types |= {
        item.name: item.type.tensor_type.elem_type
        for item in (*typed.graph.value_info, *typed.graph.input, *typed.graph.output)
    }
    return [
        node.name
        for node in typed.graph.node
        if node.op_type in PRODUCTS and any(types[name] == onnx.TensorProto.FLOAT for name in node.input)
    ]
