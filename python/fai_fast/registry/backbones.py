"""What a backbone is: a typed record that checks itself."""

from __future__ import annotations

from dataclasses import dataclass

from fai_fast._arguments import check_choice, check_items
from fai_fast.registry._checks import check_count, check_fixed

__all__ = ["BackboneConfig"]

RESNET_DEPTHS = (50, 101)


@dataclass(frozen=True)
class BackboneConfig:
    """The backbone: a ResNet (``depth`` 50 or 101, variant d) or an STDC (``base``, ``layers``).

    Attributes:
        model_type: "resnet" or "stdc".
        in_chans: channels of the images, 3.
        depth, variant, act: of a ResNet: 50 or 101, "d", "relu".
        base, layers, block_num, block_type: of an STDC: its stem's width (a multiple of 8), blocks in each of its
            three stages, convolutions in a block (4), and "cat".

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

    def __post_init__(self) -> None:
        check_choice("backbone_config.model_type", self.model_type, ("resnet", "stdc"))
        check_fixed("backbone_config.in_chans", self.in_chans, 3)
        if self.model_type == "resnet":
            if self.depth not in RESNET_DEPTHS:
                raise ValueError(f"backbone_config.depth: got {self.depth!r}, expected 50 or 101")
            check_fixed("backbone_config.variant", self.variant, "d", None)
            check_fixed("backbone_config.act", self.act, "relu", None)
            others = {"base", "layers", "block_num", "block_type"}
        else:
            check_count("backbone_config.base", self.base, multiple=8)
            if self.layers is None:
                raise ValueError(
                    "backbone_config.layers: got None, expected the blocks of three stages, such as (4, 5, 3)"
                )
            layers = tuple(check_items("backbone_config.layers", self.layers, "the blocks of three stages"))
            if len(layers) != 3:
                raise ValueError(
                    f"backbone_config.layers: got {len(layers)} values, expected the blocks of three stages"
                )
            for count in layers:
                check_count("backbone_config.layers", count, largest=100)
            object.__setattr__(self, "layers", layers)
            check_fixed("backbone_config.block_num", self.block_num, 4, None)
            check_fixed("backbone_config.block_type", self.block_type, "cat", None)
            others = {"depth", "variant", "act"}
        for name in sorted(others):
            check_fixed(f"backbone_config.{name}", getattr(self, name), None)
