"""Query-mask segmentation with the least latency from a camera frame to Detections.

The functional API works on the outputs of any query-mask network (Mask2Former, MaskFormer, OneFormer,
BiSeNetFormer): :func:`preprocess` makes the network's input, :func:`postprocess` makes :class:`Detections`.
"""

from __future__ import annotations

from fai_fast._core import __version__
from fai_fast.detections import Detections, PackedMasks
from fai_fast.letterbox import Letterbox
from fai_fast.ops import build_info, postprocess, postprocess_batch, preprocess

__all__ = [
    "Detections",
    "Letterbox",
    "PackedMasks",
    "__version__",
    "build_info",
    "postprocess",
    "postprocess_batch",
    "preprocess",
]
