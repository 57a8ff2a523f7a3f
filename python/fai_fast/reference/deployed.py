"""A network as a GPU runs it through PyTorch: the same function of the same weights, in far fewer kernels.

What does not depend on the image becomes a constant: batch normalization (folded into the convolutions), positions,
the first layer's queries. Resizing is linear, so that mask features are resized once a level instead of masks once a
layer. Nothing in :meth:`Deployed.forward` waits for the device or depends on values, so that it can be captured.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fai_fast._foreign import explained
from fai_fast.reference import QueryMaskModel
from fai_fast.reference.bisenet import AttentionRefinement
from fai_fast.reference.blocks import ConvBN, ConvNorm, NormedConv, sine_position
from fai_fast.reference.csp_darknet import SiLUConv
from fai_fast.reference.decoder import HEADS, CrossAttention, FeedForward, MaskedDecoder, SelfAttention
from fai_fast.reference.fpn import FPN, EncoderLayer, Transformer
from fai_fast.reference.mobilenet import ReLU6Conv
from fai_fast.reference.resnet import BasicBlock, Bottleneck
from fai_fast.reference.stdc import AddBlock, CatBlock

__all__ = ["Deployed"]

Kind = TypeVar("Kind", bound=nn.Module)

# Added to a blocked place's score. The same for all places it changes nothing, so that a query whose places are all
# blocked looks everywhere; far enough below any score, and near enough to round scores by less than 1e-4.
BLOCKED = -1000.0


class Deployed(nn.Module):
    """Normalized images (B, 3, H, W) -> mask logits (B, Q, h, w) and class logits (B, Q, C+1).

    Where classes come from a sigmoid, class logits are (B, Q, C): 'no object' has no say in them.

    Args:
        network: in evaluation mode, float32 or float64; it is taken apart and cannot be used afterwards.
        size: (H, W) of the images, fixed from here on.
    """

    def __init__(self, network: QueryMaskModel, size: tuple[int, int]) -> None:
        super().__init__()
        with torch.no_grad():
            _fold(network.pixel_decoder)
            if isinstance(network.pixel_decoder, FPN) and network.pixel_decoder.has_encoder:
                transformer = FixedTransformer(
                    network.pixel_decoder.transformer, (size[0] // 32, size[1] // 32)
                )
                network.pixel_decoder.transformer = transformer  # type: ignore[assignment]
            self.stride = network.stride
            self.pixel_decoder = network.pixel_decoder
            strides = (32, 16, 8)[: len(network.head.predictor.input_proj)]
            self.decoder = FixedDecoder(
                network.head.predictor,
                [(size[0] // stride, size[1] // stride) for stride in strides],
                network.spec.config.cls_sigmoid,
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mask_features, levels = self.pixel_decoder(images.contiguous(memory_format=torch.channels_last))
        return self.decoder(mask_features, levels)

    def fused(self) -> tuple[int, int]:
        """How many convolutions run in one kernel with what follows them, once run on a GPU; and how many there are."""
        convolutions = [module for module in self.modules() if isinstance(module, FoldedConv)]
        return sum(module.fused is True for module in convolutions), len(convolutions)


class FoldedConv(nn.Module):
    """A convolution that holds its batch normalization, and where asked a sum and ReLU: ``relu(conv(x) + add)``."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, relu: bool) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach(), requires_grad=False)
        assert not isinstance(conv.padding, str)
        self.stride, self.padding, self.groups = conv.stride, conv.padding, conv.groups
        self.relu = relu
        self.fused = None if relu else False
        """Whether cuDNN's one kernel for all of it is used on the GPU; None before the first run there."""

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if x.is_cuda:
            if self.fused is None:
                self.fused = self._works_in_one(x, add)
            if self.fused:
                return self._in_one(x, add)
        return self._in_turn(x, add)

    def _in_turn(self, x: Tensor, add: Tensor | None) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)
        if add is not None:
            x = x + add
        return F.relu(x) if self.relu else x

    def _works_in_one(self, x: Tensor, add: Tensor | None) -> bool:
        """cuDNN lacks this kernel for some shapes and GPUs, and versions of it were wrong: only trying tells."""
        expected = self._in_turn(x, add)
        # The kernel's output is likely to get the same memory, and must not depend on what it held.
        torch.full_like(expected, torch.nan)
        try:
            found = self._in_one(x, add)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not explained(error, "torch"):
                raise
            return False
        return bool((found - expected).abs().max() <= 0.01 * expected.abs().max())

    def _in_one(self, x: Tensor, add: Tensor | None) -> Tensor:
        place = (self.stride, self.padding, (1, 1), self.groups)
        if add is None:
            return torch.cudnn_convolution_relu(x, self.weight, self.bias, *place)
        return torch.cudnn_convolution_add_relu(x, self.weight, add, 1.0, self.bias, *place)


class FoldedBottleneck(nn.Module):
    """:class:`~fai_fast.reference.resnet.Bottleneck` whose last convolution adds the shortcut."""

    branch2a: nn.Module
    branch2b: nn.Module
    short: nn.Module

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        for name in ("branch2a", "branch2b", "short"):
            setattr(self, name, _folded(getattr(block, name)))
        _fold(self)
        self.branch2c = FoldedConv(block.branch2c.conv, block.branch2c.norm, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch2c(self.branch2b(self.branch2a(x)), self.short(x))


class FoldedBasicBlock(nn.Module):
    """:class:`~fai_fast.reference.resnet.BasicBlock` whose last convolution adds the shortcut."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.branch2a, self.short = _folded(block.branch2a), _folded(block.short)
        self.branch2b = FoldedConv(block.branch2b.conv, block.branch2b.norm, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch2b(self.branch2a(x), self.short(x))


class FoldedReLU6Conv(nn.Module):
    """:class:`~fai_fast.reference.mobilenet.ReLU6Conv` with its normalization in the convolution."""

    def __init__(self, conv: ReLU6Conv) -> None:
        super().__init__()
        self.conv = FoldedConv(conv, conv.norm, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.conv(x))


class FoldedSiLUConv(nn.Module):
    """:class:`~fai_fast.reference.csp_darknet.SiLUConv` with its normalization in the convolution."""

    def __init__(self, conv: SiLUConv) -> None:
        super().__init__()
        self.conv = FoldedConv(conv.conv, conv.bn, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv(x))


def _fold(module: nn.Module) -> None:
    """Folds every batch normalization below `module` into its convolution."""
    for name, child in list(module.named_children()):
        setattr(module, name, _folded(child))


def _folded(module: nn.Module) -> nn.Module:
    if isinstance(module, ConvNorm):
        return FoldedConv(module.conv, module.norm, module.relu)
    if isinstance(module, ConvBN):
        return FoldedConv(module.conv, module.bn, relu=True)
    if isinstance(module, NormedConv):
        return FoldedConv(module, module.norm, module.relu)
    if isinstance(module, Bottleneck):
        return FoldedBottleneck(module)
    if isinstance(module, BasicBlock):
        return FoldedBasicBlock(module)
    if isinstance(module, ReLU6Conv):
        return FoldedReLU6Conv(module)
    if isinstance(module, SiLUConv):
        return FoldedSiLUConv(module)
    if isinstance(module, (CatBlock, AddBlock)) and module.halve:
        module.avd_layer = _folded_pairs(module.avd_layer)
        if isinstance(module, AddBlock):
            module.skip = _folded_pairs(module.skip)
    elif isinstance(module, AttentionRefinement):
        module.conv_atten = FoldedConv(module.conv_atten, module.bn_atten, relu=False)  # type: ignore[assignment]
        module.bn_atten = nn.Identity()  # type: ignore[assignment]
    _fold(module)
    return module


def _folded_pairs(layers: nn.Sequential) -> nn.Sequential:
    """Convolutions that are each followed by its batch normalization."""
    return nn.Sequential(
        *(
            FoldedConv(_typed(conv, nn.Conv2d), _typed(norm, nn.BatchNorm2d), relu=False)
            for conv, norm in zip(list(layers)[::2], list(layers)[1::2], strict=True)
        )
    )


class Constant(nn.Module):
    """``x W^T + offset``: a linear layer whose offset differs from token to token."""

    def __init__(self, weight: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("offset", offset.detach().clone())

    weight: Tensor
    offset: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, E)."""
        return F.linear(x, self.weight) + self.offset


class FixedSelfAttention(nn.Module):
    """Attention of tokens (B, N, D) to each other, with positions (N, D) in queries and keys."""

    def __init__(self, attention: nn.MultiheadAttention, position: Tensor) -> None:
        super().__init__()
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        dim = weight.shape[1]
        offset = bias.expand(len(position), -1).clone()
        offset[:, : 2 * dim] += position @ weight[: 2 * dim].T
        self.heads = attention.num_heads
        self.project = Constant(weight, offset)
        self.out = attention.out_proj

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(_joined(F.scaled_dot_product_attention(query, key, value)))


class FixedEncoderLayer(nn.Module):
    """:class:`~fai_fast.reference.fpn.EncoderLayer` for fixed positions (N, D)."""

    def __init__(self, layer: EncoderLayer, position: Tensor) -> None:
        super().__init__()
        self.attend = FixedSelfAttention(layer.self_attn, position)
        self.norm1, self.norm2 = layer.norm1, layer.norm2
        self.linear1, self.linear2 = layer.linear1, layer.linear2

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.linear2(F.relu(self.linear1(self.norm2(x))))


class FixedTransformer(nn.Module):
    """:class:`~fai_fast.reference.fpn.Transformer` for maps of one size."""

    def __init__(self, transformer: Transformer, size: tuple[int, int]) -> None:
        super().__init__()
        self.norm = transformer.encoder.norm
        dim, dtype = len(self.norm.weight), self.norm.weight.dtype
        position = sine_position(*size, dim, self.norm.weight.device, dtype)
        self.layers = nn.Sequential(
            *(
                FixedEncoderLayer(_typed(layer, EncoderLayer), position)
                for layer in transformer.encoder.layers
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.layers(x.flatten(2).transpose(1, 2)))
        return tokens.transpose(1, 2).unflatten(2, x.shape[-2:])


class FixedLayer(nn.Module):
    """A layer of the decoder: queries look at a level, at each other, and think."""

    def __init__(
        self, cross: CrossAttention, attend: SelfAttention, feed: FeedForward, embed: Tensor
    ) -> None:
        super().__init__()
        dim = embed.shape[1]
        weight = cross.multihead_attn.in_proj_weight[:dim]
        self.norm = cross.norm
        self.query = Constant(weight, embed @ weight.T + cross.multihead_attn.in_proj_bias[:dim])
        self.out = cross.multihead_attn.out_proj
        self.attend_norm = attend.norm
        self.attend = FixedSelfAttention(attend.self_attn, embed)
        self.feed = feed

    def forward(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """x, query (B, Q, D); key, value (B, N, heads, D / heads); mask (B, Q, N) -> (B, Q, D)."""
        query = query.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        taken = F.scaled_dot_product_attention(
            query, key.transpose(1, 2), value.transpose(1, 2), mask[:, None]
        )
        x = x + self.out(_joined(taken))
        x = x + self.attend(self.attend_norm(x))
        return self.feed(x)


class FixedDecoder(nn.Module):
    """:class:`~fai_fast.reference.decoder.MaskedDecoder` for levels of fixed sizes, and only its last prediction."""

    start: Tensor
    start_query: Tensor
    start_embedding: Tensor
    shut: Tensor
    open: Tensor

    def __init__(self, decoder: MaskedDecoder, sizes: list[tuple[int, int]], cls_sigmoid: bool) -> None:
        super().__init__()
        self.sizes = sizes
        embed, start = decoder.query_embed.weight, decoder.query_feat.weight
        cross = [_typed(layer, CrossAttention) for layer in decoder.transformer_cross_attention_layers]
        layers = [
            FixedLayer(one, _typed(attend, SelfAttention), _typed(feed, FeedForward), embed)
            for one, attend, feed in zip(
                cross,
                decoder.transformer_self_attention_layers,
                decoder.transformer_ffn_layers,
                strict=True,
            )
        ]
        self.layers = nn.ModuleList(layers)
        self.sources = nn.ModuleList(
            _keys_and_values(_typed(project, nn.Conv2d), cross[index :: len(sizes)], size)
            for index, (project, size) in enumerate(zip(decoder.input_proj, sizes, strict=True))
        )
        heads = decoder.forward_prediction_heads
        self.norm, self.classifier, self.embedding = (
            heads.decoder_norm,
            heads.classifier,
            heads.mask_classifier,
        )
        if cls_sigmoid:
            classifier = self.classifier
            self.classifier = nn.Linear(classifier.in_features, classifier.out_features - 1, device="meta")
            self.classifier.weight = nn.Parameter(classifier.weight[:-1].clone(), requires_grad=False)
            self.classifier.bias = nn.Parameter(classifier.bias[:-1].clone(), requires_grad=False)
        # Nothing before the first layer depends on the image.
        first = layers[0]
        constants = {
            "start": start,
            "start_query": first.query(first.norm(start)),
            "start_embedding": self.embedding(self.norm(start)),
            "shut": start.new_tensor(BLOCKED),
            "open": start.new_tensor(0.0),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.detach().clone())

    def forward(self, mask_features: Tensor, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        batch, _, height, width = mask_features.shape
        small = [
            F.interpolate(mask_features, size=size, mode="bilinear", align_corners=False).flatten(2)
            for size in self.sizes
        ]
        # (B, h * w, 2 * layers, heads, D / heads)
        sources = [
            source(level.flatten(2).transpose(1, 2)).unflatten(-1, (-1, HEADS, self.start.shape[1] // HEADS))
            for source, level in zip(self.sources, levels[: len(self.sources)], strict=True)
        ]
        x, query, embedding = (
            value.expand(batch, -1, -1) for value in (self.start, self.start_query, self.start_embedding)
        )
        normal = x
        for index, module in enumerate(self.layers):
            layer = _typed(module, FixedLayer)
            level, turn = index % len(sources), 2 * (index // len(sources))
            if index > 0:
                query = layer.query(layer.norm(x))
            mask = torch.where(torch.bmm(embedding, small[level]) < 0, self.shut, self.open)
            x = layer(x, query, sources[level][:, :, turn], sources[level][:, :, turn + 1], mask)
            normal = self.norm(x)
            embedding = self.embedding(normal)
        mask_logits = torch.bmm(embedding, mask_features.flatten(2)).unflatten(2, (height, width))
        return mask_logits, self.classifier(normal)


def _keys_and_values(project: nn.Conv2d, layers: list[CrossAttention], size: tuple[int, int]) -> Constant:
    """Keys and values of all layers that look at a level, in one product: (B, h * w, C) -> (B, h * w, 2 layers D)."""
    before, bias = project.weight.flatten(1), project.bias
    assert bias is not None
    dim = len(before)
    position = sine_position(*size, dim, before.device, before.dtype)
    weights, offsets = [], []
    for layer in layers:
        _, key, value = layer.multihead_attn.in_proj_weight.chunk(3)
        _, key_bias, value_bias = layer.multihead_attn.in_proj_bias.chunk(3)
        weights += [key @ before, value @ before]
        offsets += [
            (position + bias) @ key.T + key_bias,
            (value @ bias + value_bias).expand(len(position), -1),
        ]
    return Constant(torch.cat(weights), torch.cat(offsets, 1))


def _typed(module: nn.Module, kind: type[Kind]) -> Kind:
    """A container's module as what it is."""
    assert isinstance(module, kind)
    return module


def _joined(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B, N, heads * d)."""
    return x.transpose(1, 2).flatten(2)
