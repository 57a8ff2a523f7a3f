"""What a network found in a frame: :class:`Detections`, which holds its masks as :class:`PackedMasks`.

masks.py has the masks, result.py the result, rows.py and selection.py its rows and the choice among them,
conversions.py and formats.py what other libraries take. Its picture: showing.py has the methods, drawing.py makes it
from palettes.py's colors and lettering.py's texts, source.py finds the frame.
"""

from fai_fast.detections.masks import PackedMasks
from fai_fast.detections.result import Detections, Latency, _rebuild
from fai_fast.detections.rows import MaskSequence, Row
from fai_fast.detections.source import Source

# Pickles of a Detections name _rebuild here.
__all__ = ["Detections", "Latency", "MaskSequence", "PackedMasks", "Row", "Source", "_rebuild"]
