"""Networks that are not FocoosAI's: others' files and modules, as deployed graphs are made of them.

Whatever a network comes from, it becomes a :class:`Network`, which ``exporter.write`` takes in place of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fai_fast.registry import ModelSpec

__all__ = ["Network", "Reference"]


@dataclass(frozen=True)
class Reference:
    """What a deployed graph is held against.

    Attributes:
        name: what it is, to read: "the original file in onnxruntime 1.31".
        run: from normalized images float32 (B, 3, h, w) to mask_logits (B, Q, h', w') and class_logits (B, Q, K).
        exact: whether it is computed as the graph is, so that what differs is rounding alone. A PyTorch module is not:
            where a network decides by a threshold inside, as masked attention does, the two may fall on either side.
    """

    name: str
    run: Callable[[Any], tuple[Any, Any]]
    exact: bool


@dataclass(frozen=True)
class Network:
    """A network of somebody else.

    Attributes:
        spec: of it.
        source: where it is from, to read.
        sha256: of all that its graphs depend on besides size and batch; hexadecimal.
        graph: the deployed graph in float32, an ``onnx.ModelProto``, of a size (height, width) and a batch. Raises
            ExportError, ValueError.
        reference: what to hold that graph against. Raises EngineError where there is nothing that runs it.
        fixed_size: (height, width) of the only input that it takes, None for a side that is open.
        fixed_batch: images that it takes at once, None where that is open.
        module: the same as a ``torch.nn.Module`` on the CPU, of a size and a batch: from images float32 (B, 3, h, w) to
            mask_logits and class_logits, both float32. It may share its parameters, and is not to be changed. Raises as
            `graph`. None where there is nothing but a graph.
    """

    spec: ModelSpec
    source: str
    sha256: str
    graph: Callable[[tuple[int, int], int], Any]
    reference: Callable[[tuple[int, int], int], Reference]
    fixed_size: tuple[int | None, int | None] = (None, None)
    fixed_batch: int | None = None
    module: Callable[[tuple[int, int], int], Any] | None = None
