"""What a network found in a frame: :class:`Detections`, which holds its masks as :class:`PackedMasks`.

masks.py has the masks, result.py the result, rows.py and selection.py its rows and the choice among them,
conversions.py and formats.py what other libraries take, drawing.py the picture of it.
"""

from fai_fast.detections.masks import PackedMasks
from fai_fast.detections.result import Detections, Latency, _rebuild
from fai_fast.detections.rows import MaskSequence, Row

# Pickles of a Detections name _rebuild here.
__all__ = ["Detections", "Latency", "MaskSequence", "PackedMasks", "Row", "_rebuild"]
