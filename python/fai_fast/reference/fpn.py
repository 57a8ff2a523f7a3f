"""The pixel decoder of fai_mf: a feature pyramid, with a transformer encoder on its coarsest level.

Lin et al., Feature Pyramid Networks for Object Detection, 2017; Cheng et al., Per-Pixel Classification is Not
All You Need for Semantic Segmentation (MaskFormer), 2021.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fai_fast.reference.blocks import NormedConv, sine_position
from fai_fast.registry import ModelConfig


class EncoderLayer(nn.Module):
    """Pre-norm self attention and feed-forward; the position goes to queries and keys, not to values."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.self_attn(y + position, y + position, y, need_weights=False)[0]
        return x + self.linear2(F.relu(self.linear1(self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, position)
        return self.norm(x)


class Transformer(nn.Module):
    """Attention between all places of a map (B, F, h, w)."""

    def __init__(self, dim: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.encoder = Encoder(dim, heads, hidden, layers)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        position = sine_position(height, width, x.shape[1], x.device, x.dtype)
        return self.encoder(tokens, position).transpose(1, 2).unflatten(2, (height, width))


class FPN(nn.Module):
    """Images' features -> mask features (B, M, H/4, W/4), and the levels 1/32, 1/16, 1/8 for the decoder."""

    stride = 4

    def __init__(self, backbone: nn.Module, backbone_dims: list[int], config: ModelConfig) -> None:
        super().__init__()
        dim = config.pixel_decoder_feat_dim
        self.backbone = backbone
        self.has_encoder = config.pixel_decoder_transformer_layers > 0
        if self.has_encoder:
            self.input_proj = nn.Conv2d(backbone_dims[3], dim, 1)
            self.transformer = Transformer(
                dim,
                config.pixel_decoder_transformer_nheads,
                config.pixel_decoder_transformer_dim_feedforward,
                config.pixel_decoder_transformer_layers,
            )
        for level in (1, 2, 3):
            self.add_module(f"adapter_{level}", NormedConv(backbone_dims[level - 1], dim, 1, relu=False))
            self.add_module(f"layer_{level}", NormedConv(dim, dim, 3, relu=True))
        self.layer_4 = NormedConv(dim if self.has_encoder else backbone_dims[3], dim, 3, relu=True)
        self.mask_features = nn.Conv2d(dim, config.pixel_decoder_out_dim, 3, padding=1)
        self.level_dims = [dim] * 3

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.backbone(images)
        x = features[3]
        if self.has_encoder:
            x = self.transformer(self.input_proj(x))
        x = self.layer_4(x)
        levels = [x]
        for level in (3, 2, 1):
            fine = self.get_submodule(f"adapter_{level}")(features[level - 1])
            x = fine + F.interpolate(x, size=fine.shape[-2:], mode="nearest")
            x = self.get_submodule(f"layer_{level}")(x)
            levels.append(x)
        return self.mask_features(levels.pop()), levels
