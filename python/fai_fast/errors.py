"""What fai_fast raises beyond TypeError and ValueError, which mean that an argument is wrong."""

from __future__ import annotations

__all__ = ["CudaError", "EngineError", "ExportError", "FaiFastError", "WeightsError"]


class FaiFastError(RuntimeError):
    """Something that fai_fast depends on failed; the text says what and what to do."""


class WeightsError(FaiFastError):
    """Weights could not be found, fetched, read, or do not fit the network."""


class ExportError(FaiFastError):
    """A graph could not be exported, or is not equal to the reference network."""


class EngineError(FaiFastError):
    """An engine is not available, cannot load a graph, or failed while running."""


class CudaError(EngineError):
    """No driver, no device, out of the device's memory, or built without CUDA; the text says what to do."""
