"""What a backbone is: a typed record that checks itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fai_fast._arguments import check_bool, check_choice, check_items, check_number
from fai_fast.registry._checks import check_count, check_fixed

__all__ = ["KINDS", "RESNET_BLOCKS", "BackboneConfig", "InvertedBlock"]

# The fields of each kind, apart from those that all have.
KINDS: dict[str, tuple[str, ...]] = {
    "resnet": ("depth", "variant", "act"),
    "stdc": ("base", "layers", "block_num", "block_type"),
    "mobilenet_v2": ("widen_factor",),
    "convnextv2": ("depths", "embed_dims"),
    "swin": ("depths", "embed_dim", "num_heads", "window_size", "mlp_ratio", "qkv_bias"),
    "csp_darknet": ("base", "layers"),
}
RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks in each stage of a ResNet, by depth."""
# Of each layer of a MobileNetV2: how much wider its blocks are inside, its width, blocks, and stride.
_MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_RESNET_VARIANTS = ("a", "b", "c", "d")
_MOST_CONVOLUTIONS = 5
_STAGES = "the blocks of {} stages"


class InvertedBlock(NamedTuple):
    """A block of a MobileNetV2: which of which layer (1 to 7), and its channels; the stride is that of its middle."""

    layer: int
    number: int
    before: int
    hidden: int
    after: int
    stride: int

    @property
    def adds(self) -> bool:
        """Whether it adds its input to its output."""
        return self.stride == 1 and self.before == self.after


@dataclass(frozen=True)
class BackboneConfig:
    """The backbone. Fields that its kind does not have are None.

    Attributes:
        model_type: "resnet", "stdc", "mobilenet_v2", "convnextv2", "swin" or "csp_darknet".
        in_chans: channels of the images, 3.
        depth, variant, act: of a ResNet: 18, 34, 50 or 101; "a" to "d" (None for "d"); "relu".
        base, layers: of an STDC: its stem's width (a multiple of 8), and the blocks in each of its three stages; of a
            CSPDarknet the same (a multiple of 2), of four stages.
        block_num, block_type: of an STDC: convolutions in a block, 2 to 5 (None for 4), and "cat" or "add" (None for
            "cat").
        widen_factor: of a MobileNetV2: what its widths are multiplied with (None for 1).
        depths: of a ConvNeXt V2 or a Swin: the blocks in each of four stages.
        embed_dims: of a ConvNeXt V2: the width of each stage.
        embed_dim, num_heads, window_size, mlp_ratio, qkv_bias: of a Swin: the first stage's width, heads in each of
            four stages, the side of its windows, and the width of its feed-forward layers over its own (None for 4);
            whether queries, keys and values have a bias (None for yes).

    Raises:
        TypeError, ValueError: a field is not as said here; the text names it.
    """

    model_type: str
    in_chans: int = 3
    depth: int | None = None
    variant: str | None = None
    act: str | None = None
    base: int | None = None
    layers: tuple[int, ...] | None = None
    block_num: int | None = None
    block_type: str | None = None
    widen_factor: float | None = None
    depths: tuple[int, ...] | None = None
    embed_dims: tuple[int, ...] | None = None
    embed_dim: int | None = None
    num_heads: tuple[int, ...] | None = None
    window_size: int | None = None
    mlp_ratio: float | None = None
    qkv_bias: bool | None = None

    def __post_init__(self) -> None:
        check_choice("backbone_config.model_type", self.model_type, tuple(KINDS))
        check_fixed("backbone_config.in_chans", self.in_chans, 3)
        getattr(self, f"_check_{self.model_type}")()
        others = {name for names in KINDS.values() for name in names}.difference(KINDS[self.model_type])
        for name in sorted(others):
            check_fixed(f"backbone_config.{name}", getattr(self, name), None)

    def _check_resnet(self) -> None:
        if type(self.depth) is not int or self.depth not in RESNET_BLOCKS:
            raise ValueError(f"backbone_config.depth: got {self.depth!r}, expected 18, 34, 50 or 101")
        if self.variant is not None:
            check_choice("backbone_config.variant", self.variant, _RESNET_VARIANTS)
        check_fixed("backbone_config.act", self.act, "relu", None)

    def _check_stdc(self) -> None:
        check_count("backbone_config.base", self.base, multiple=8)
        self._check_counts("layers", 3, "such as (4, 5, 3)", largest=100)
        if self.block_num is not None:
            check_count("backbone_config.block_num", self.block_num, 2, _MOST_CONVOLUTIONS)
        if self.block_type is not None:
            check_choice("backbone_config.block_type", self.block_type, ("cat", "add"))

    def _check_mobilenet_v2(self) -> None:
        if (
            self.widen_factor is not None
            and not 1 / 16 <= check_number("backbone_config.widen_factor", self.widen_factor) <= 16
        ):
            raise ValueError(f"backbone_config.widen_factor: got {self.widen_factor}, expected 1/16 to 16")

    def _check_convnextv2(self) -> None:
        self._check_counts("depths", 4, "such as (2, 2, 6, 2)", largest=100)
        self._check_counts("embed_dims", 4, "such as (40, 80, 160, 320)", what="the width of {} stages")

    def _check_swin(self) -> None:
        check_count("backbone_config.embed_dim", self.embed_dim)
        self._check_counts("depths", 4, "such as (2, 2, 6, 2)", largest=100)
        self._check_counts("num_heads", 4, "such as (3, 6, 12, 24)", what="the heads of {} stages")
        assert self.embed_dim is not None
        assert self.num_heads is not None
        for stage, heads in enumerate(self.num_heads):
            if (width := self.embed_dim << stage) % heads:
                raise ValueError(
                    f"backbone_config.num_heads: got {heads} for stage {stage + 1}, expected a divisor of its width "
                    f"{width}"
                )
        check_count("backbone_config.window_size", self.window_size, 2, 64)
        if self.mlp_ratio is not None:
            ratio = check_number("backbone_config.mlp_ratio", self.mlp_ratio)
            if not 1 <= self.embed_dim * ratio <= 1 << 20:
                raise ValueError(
                    f"backbone_config.mlp_ratio: got {ratio}, expected one that leaves a width of 1 or more"
                )
        if self.qkv_bias is not None:
            check_bool("backbone_config.qkv_bias", self.qkv_bias)

    def _check_csp_darknet(self) -> None:
        check_count("backbone_config.base", self.base, multiple=2)
        self._check_counts("layers", 4, "such as (1, 3, 3, 1)", largest=100)

    def _check_counts(
        self, name: str, length: int, example: str, largest: int = 1 << 20, what: str = _STAGES
    ) -> None:
        """Makes a tuple of a field that has a number for each stage."""
        field = f"backbone_config.{name}"
        meant = what.format({3: "three", 4: "four"}[length])
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"{field}: got None, expected {meant}, {example}")
        counts = tuple(check_items(field, value, meant))
        if len(counts) != length:
            raise ValueError(f"{field}: got {len(counts)} values, expected {meant}")
        for count in counts:
            check_count(field, count, largest=largest)
        object.__setattr__(self, name, counts)

    def out_dims(self) -> tuple[int, int, int, int]:
        """Channels of res2, res3, res4, res5."""
        if self.model_type == "resnet":
            assert self.depth is not None
            first = 256 if self.depth >= 50 else 64
            return first, 2 * first, 4 * first, 8 * first
        if self.model_type == "mobilenet_v2":
            first, second, third, last = (self.widened(width) for width in (24, 32, 96, 320))
            return first, second, third, last
        if self.model_type == "convnextv2":
            assert self.embed_dims is not None
            first, second, third, last = self.embed_dims
            return first, second, third, last
        if self.model_type == "swin":
            assert self.embed_dim is not None
            return self.embed_dim, 2 * self.embed_dim, 4 * self.embed_dim, 8 * self.embed_dim
        assert self.base is not None
        if self.model_type == "csp_darknet":
            return 2 * self.base, 4 * self.base, 8 * self.base, 16 * self.base
        return self.base, 4 * self.base, 8 * self.base, 16 * self.base

    def widened(self, width: int) -> int:
        """A width of a MobileNetV2, times its factor."""
        return int(width * (1.0 if self.widen_factor is None else self.widen_factor))

    def inverted_blocks(self) -> Iterator[InvertedBlock]:
        """The blocks of a MobileNetV2, in order."""
        before = self.widened(32)
        for layer, (expansion, width, blocks, stride) in enumerate(_MOBILENET_V2, start=1):
            after = self.widened(width)
            for index in range(blocks):
                yield InvertedBlock(
                    layer, index, before, expansion * before, after, stride if index == 0 else 1
                )
                before = after

    def hidden_dim(self, dim: int) -> int:
        """The width inside the feed-forward layers of a Swin's stage that is `dim` wide."""
        return int(dim * (4.0 if self.mlp_ratio is None else self.mlp_ratio))

    def block_widths(self, width: int) -> list[int]:
        """The widths of the convolutions in a block of an STDC that is `width` wide: halved, and the last again."""
        count = 4 if self.block_num is None else self.block_num
        halved = [width >> place for place in range(1, count)]
        return [*halved, halved[-1]]
