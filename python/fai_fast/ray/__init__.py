"""Beyond one machine, on Ray: :class:`Detector`, :class:`VideoDetector` for ``Dataset.map_batches``, and :mod:`serve`
for requests. See docs/ray.md and docs/ray_serve.md.

The engine of that is Ray Data: reading, scheduling, retries and back pressure are Ray's, and what runs on a worker is
:func:`fai_fast.load` and :meth:`fai_fast.Model.infer`. Ray is imported when something of this is used.
"""

from __future__ import annotations

from fai_fast.ray import serve
from fai_fast.ray.detector import Detector
from fai_fast.ray.shipping import ShippedCache, ship_cache
from fai_fast.ray.video import VideoDetector

__all__ = ["Detector", "ShippedCache", "VideoDetector", "serve", "ship_cache"]
