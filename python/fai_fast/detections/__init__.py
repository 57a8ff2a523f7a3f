"""What a network found in a frame: :class:`Detections`, which holds its masks as :class:`PackedMasks`.

masks.py has the masks, result.py the rows, formats.py what other libraries take, drawing.py the picture of them.
"""

from fai_fast.detections.masks import PackedMasks
from fai_fast.detections.result import Detections, Latency, _rebuild

# Pickles of a Detections name _rebuild here.
__all__ = ["Detections", "Latency", "PackedMasks", "_rebuild"]
