"""Types of the compiled module; tests/test_stubs.py compares them with the real one."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__version__: str

def build_info() -> dict[str, Any]: ...
def cpu_quota(root: str = "") -> int: ...
def preprocess(
    image: object,
    size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    color: str,
    resize: str,
    dtype: str,
    out: object,
    yuv_matrix: str,
    yuv_range: str,
) -> tuple[npt.NDArray[Any], tuple[int, int], tuple[int, int], tuple[int, int]]: ...
def letterbox(frame: Sequence[int], input: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]: ...
def shape_of(array: object, argument: str) -> tuple[int, ...]: ...
def postprocess(
    mask_logits: object,
    class_logits: object,
    batched: bool,
    sizes: Sequence[Sequence[int]],
    threshold: float,
    mask_threshold: float,
    use_mask_score: bool,
    predict_all_pixels: bool,
    softmax: bool,
    class_names: int,
    letterboxes: Sequence[tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None],
    num_threads: int,
    min_area: int = ...,
) -> list[dict[str, Any]]: ...
def masks_check(
    bits: npt.NDArray[np.uint64],
    offsets: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int32],
    size: tuple[int, int],
) -> None: ...
def masks_decode(
    bits: npt.NDArray[np.uint64],
    offsets: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int32],
    size: tuple[int, int],
    *,
    out: npt.NDArray[np.bool_] | None = None,
    num_threads: int = 0,
) -> npt.NDArray[np.bool_]: ...
def masks_crops(
    bits: npt.NDArray[np.uint64],
    offsets: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int32],
    size: tuple[int, int],
) -> list[npt.NDArray[np.bool_]]: ...
def masks_area(
    bits: npt.NDArray[np.uint64],
    offsets: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int32],
    size: tuple[int, int],
) -> npt.NDArray[np.int64]: ...
def masks_compact(
    bits: npt.NDArray[np.uint64],
    offsets: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int32],
    size: tuple[int, int],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int32]]: ...
def masks_rle(
    bits: npt.NDArray[np.uint64],
    offsets: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int32],
    size: tuple[int, int],
    *,
    num_threads: int = 0,
) -> list[bytes]: ...
def masks_encode(
    mask: npt.NDArray[np.bool_], *, num_threads: int = 0
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int32]]: ...
def masks_from_segments(
    segments: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    queries: npt.NDArray[np.int64],
    *,
    num_threads: int = 0,
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int32]]: ...
def label_map(
    segments: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
    queries: npt.NDArray[np.int64],
    class_ids: npt.NDArray[np.int64],
    *,
    num_threads: int = 0,
) -> npt.NDArray[np.int16]: ...
def cuda_versions() -> dict[str, str | None]: ...
def cuda_devices() -> list[dict[str, Any]]: ...
def enter_cuda_device(device: int) -> bool: ...
def leave_cuda_device(entered: bool) -> None: ...
def launch_host_function(stream: int, function: Callable[[], object]) -> None: ...
def pinned_array(shape: Sequence[int], device: int) -> npt.NDArray[np.uint8]: ...
def stage(
    image: object,
    out: npt.NDArray[np.uint8],
    *,
    threads: int,
    piece_bytes: int,
    past_cache: bool = False,
) -> tuple[int, int]: ...
def copy_to_device(address: int, array: npt.NDArray[Any]) -> None: ...
def copy_from_device(array: npt.NDArray[Any], address: int) -> None: ...

class DeviceMasks:
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(
        self, *, stream: object = ..., max_version: object = ..., dl_device: object = ..., copy: object = ...
    ) -> Any: ...

class FrameGraph:
    def __init__(
        self,
        *,
        device: int,
        batch: int,
        size: Sequence[int],
        dtype: str,
        mask_logits: Sequence[int],
        mask_dtype: str,
        class_logits: Sequence[int],
        class_dtype: str,
        mean: Sequence[float],
        std: Sequence[float],
        predict_all_pixels: bool,
        softmax: bool,
    ) -> None: ...
    @property
    def stream(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def mask_logits(self) -> int: ...
    @property
    def class_logits(self) -> int: ...
    def capture(self, enqueue: Callable[[int], object]) -> str | None: ...
    def run_uncaptured(self, enqueue: Callable[[int], object], reason: str) -> str: ...
    def enqueue_before(self) -> None: ...
    def enqueue_after(self) -> None: ...
    def adopt(self, graph: int, owner: object) -> None: ...
    def submit(
        self,
        frames: Sequence[tuple[object, str, str, str, str]],
        threshold: float,
        mask_threshold: float,
        use_mask_score: bool,
        after: FrameGraph | None = None,
    ) -> None: ...
    def set_staging(self, *, threads: int, piece_bytes: int, past_cache: bool) -> None: ...
    def wait(self, seconds: float) -> bool: ...
    def results(self, top_k: int, masks_device: bool = False) -> list[dict[str, Any]]: ...
    def times(self) -> dict[str, float]: ...
    def run_engine(
        self,
        enqueue: Callable[[int], object],
        images: npt.NDArray[Any],
        mask_logits: npt.NDArray[Any],
        class_logits: npt.NDArray[Any],
    ) -> None: ...
    def memory(self) -> dict[str, int]: ...
    def close(self) -> None: ...
