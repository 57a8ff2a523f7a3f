"""The network: a backbone, a pixel decoder and a masked transformer decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fai_fast.reference.bisenet import BiSeNet
from fai_fast.reference.convnext import ConvNeXtV2
from fai_fast.reference.csp_darknet import CSPDarknet
from fai_fast.reference.decoder import MaskedDecoder, Prediction
from fai_fast.reference.fpn import FPN
from fai_fast.reference.mobilenet import MobileNetV2
from fai_fast.reference.resnet import ResNet
from fai_fast.reference.stdc import STDC
from fai_fast.reference.swin import Swin
from fai_fast.registry import BackboneConfig, ModelSpec, own_config
from fai_fast.registry.shapes import decoder_levels

__all__ = ["BACKBONES", "Output", "QueryMaskModel"]

BACKBONES: dict[str, Callable[[BackboneConfig], nn.Module]] = {
    "resnet": ResNet,
    "stdc": STDC,
    "mobilenet_v2": MobileNetV2,
    "convnextv2": ConvNeXtV2,
    "swin": Swin,
    "csp_darknet": CSPDarknet,
}


class Output(NamedTuple):
    """What a network says of a batch of images.

    Attributes:
        mask_logits: (B, Q, h, w), before the sigmoid, at 1/4 (fai_mf) or 1/8 (bisenetformer) of the images' size.
        class_logits: (B, Q, C+1), before the softmax, or the sigmoid where ``cls_sigmoid``; the last column is
            'no object', which counts in a softmax only.
        aux: in training mode the predictions of the untouched queries and of every layer but the last.
    """

    mask_logits: Tensor
    class_logits: Tensor
    aux: tuple[Prediction, ...] = ()


class Criterion(nn.Module):
    """Holds the loss's class weights where checkpoints keep them; :mod:`fai_fast.losses` computes it."""

    empty_weight: Tensor

    def __init__(self, num_classes: int, eos_coef: float) -> None:
        super().__init__()
        weight = torch.ones(num_classes + 1)
        weight[-1] = eos_coef
        self.register_buffer("empty_weight", weight)


class Head(nn.Module):
    def __init__(self, predictor: MaskedDecoder, criterion: Criterion) -> None:
        super().__init__()
        self.criterion = criterion
        self.predictor = predictor


class QueryMaskModel(nn.Module):
    """A network of the fai_mf or bisenetformer family.

    Attributes:
        spec: the :class:`fai_fast.ModelSpec` it was built from.
        stride: of its mask logits, 4 or 8.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        config = own_config(spec)
        backbone = BACKBONES[config.backbone_config.model_type](config.backbone_config)
        pixel_decoder = (FPN if spec.family == "fai_mf" else BiSeNet)(
            backbone, list(config.backbone_config.out_dims()), config
        )
        self.stride = pixel_decoder.stride
        self.pixel_decoder = pixel_decoder
        self.head = Head(
            MaskedDecoder(pixel_decoder.level_dims[: decoder_levels(spec)], config),
            Criterion(config.num_classes, config.criterion_eos_coef),
        )
        for name in ("pixel_mean", "pixel_std"):
            value = torch.tensor(getattr(config, name)).view(-1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images: Tensor) -> Output:
        """Runs the network.

        Args:
            images: (B, 3, H, W) float, RGB, 0..255, H and W multiples of 32.

        Raises:
            ValueError: the images have another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % 32 or images.shape[3] % 32:
            raise ValueError(
                f"images: got shape {tuple(images.shape)}, expected (B, 3, H, W) with H and W multiples of 32"
            )
        predictions = self.predict((images - self.pixel_mean) / self.pixel_std)
        return Output(*predictions[-1], aux=tuple(predictions[:-1]) if self.training else ())

    def predict(self, normalized: Tensor) -> list[Prediction]:
        """The predictions of every layer, first that of the untouched queries, for normalized images."""
        return self.head.predictor(*self.pixel_decoder(normalized))
