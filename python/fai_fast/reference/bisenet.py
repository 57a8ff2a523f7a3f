"""The pixel decoder of bisenetformer: BiSeNet's context path, and its fusion with finer features.

Yu et al., BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation, 2018.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fai_fast.reference.blocks import ConvBN
from fai_fast.registry import ModelConfig


def global_mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class AttentionRefinement(nn.Module):
    """Weighs each channel by what the whole picture says of it."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, out_dim, 1, bias=False)
        self.conv = ConvBN(out_dim, out_dim, 3)
        self.conv_atten = nn.Conv2d(out_dim, out_dim, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.proj(x))
        return x * self.bn_atten(self.conv_atten(global_mean(x))).sigmoid()


class ContextPath(nn.Module):
    """res3, res4, res5 -> f8, f16, f32: coarse context handed down to finer maps."""

    def __init__(self, backbone_dims: list[int], dim: int) -> None:
        super().__init__()
        self.arm32 = AttentionRefinement(backbone_dims[3], dim)
        self.conv_avg = ConvBN(backbone_dims[3], dim, 1)
        self.conv_head32 = ConvBN(dim, dim, 3)
        self.arm16 = AttentionRefinement(backbone_dims[2], dim)
        self.conv_head16 = ConvBN(dim, dim, 3)

    def forward(self, res3: Tensor, res4: Tensor, res5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        f32 = self.arm32(res5) + self.conv_avg(global_mean(res5))
        f16 = self.arm16(res4) + self.conv_head32(resize_to(f32, res4))
        return self.conv_head16(resize_to(f16, res3)), f16, f32


class FeatureFusion(nn.Module):
    """Detail (res3) and context (f8) in one map."""

    def __init__(self, detail_dim: int, dim: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(detail_dim, dim, 1)
        self.proj2 = nn.Conv2d(dim, dim, 1)
        self.convblk = ConvBN(dim, dim, 1)
        self.conv1 = nn.Conv2d(dim, dim // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(dim // 4, dim, 1, bias=False)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(self.proj1(detail) + self.proj2(context))
        return x * self.conv2(F.relu(self.conv1(global_mean(x)))).sigmoid() + x


class BiSeNet(nn.Module):
    """Images' features -> mask features (B, M, H/8, W/8), and the levels 1/32, 1/16 for the decoder."""

    stride = 8

    def __init__(self, backbone: nn.Module, backbone_dims: list[int], config: ModelConfig) -> None:
        super().__init__()
        dim = config.pixel_decoder_feat_dim
        self.backbone = backbone
        self.cp = ContextPath(backbone_dims, dim)
        self.ffm = FeatureFusion(backbone_dims[1], dim)
        self.conv_out = ConvBN(dim, config.pixel_decoder_out_dim, 3)
        self.level_dims = [dim] * 2

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        _, res3, res4, res5 = self.backbone(images)
        f8, f16, f32 = self.cp(res3, res4, res5)
        return self.conv_out(self.ffm(res3, f8)), [f32, f16]
