"""From a picture to Detections: :func:`load` makes a :class:`Model` ready, ``model.infer(image)`` runs it."""

from fai_fast.model.loading import _loaded_again as _loaded_again
from fai_fast.model.loading import load
from fai_fast.model.running import STAGES as STAGES
from fai_fast.model.running import Model

__all__ = ["Model", "load"]
