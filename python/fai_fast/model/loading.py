"""A :class:`fai_fast.Model` of arguments, here and in other processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fai_fast import _again
from fai_fast._crops import sees_crops
from fai_fast._options import Device, EngineName, Precision
from fai_fast._pictures import MOST, Pictures
from fai_fast._prepare import prepare
from fai_fast._requests import AspectNotice
from fai_fast._rules import Combine
from fai_fast._sizes import step_of
from fai_fast.model.running import Model
from fai_fast.quantizer import PRECISION as INT8
from fai_fast.quantizer import SUBSET
from fai_fast.registry import stride_of

__all__ = ["load"]


def load(
    name_or_path: Any,
    *,
    weights: Any = None,
    engine: EngineName = "auto",
    device: Device | int = "auto",
    precision: Precision = "auto",
    im_size: int | Sequence[int] | None = None,
    frame: Sequence[int] | None = None,
    num_threads: int | None = None,
    cache_dir: Any = None,
    batch_size: int = 1,
    pictures: Any = None,
    verify_precision: bool = True,
    spec: Any = None,
    processor: Any = None,
    task: str | None = None,
) -> Model:
    """Makes a model ready to run.

    The first time, weights are fetched, the deployed graph is exported, verified against the reference network, and
    compiled for the engine; all of it is kept in the cache, so that the next start takes a moment.

    Args:
        name_or_path: a name of :func:`fai_fast.models`; a folder or file with FocoosAI's ``model_info.json``; a
            :class:`fai_fast.ModelSpec`; or an ``.onnx`` or ``.engine`` file that :func:`fai_fast.export` wrote; or,
            with `spec`, a network of somebody else: an ``.onnx`` file or a ``torch.nn.Module`` (docs/foreign.md). Or a
            network of transformers: a model, a folder of ``save_pretrained``, or a name such as
            "facebook/mask2former-swin-tiny-coco-instance" (docs/networks.md).
        weights: a path (.pth, .safetensors), an http(s) address, a state dict, "random" (to measure speed), or None
            for those that belong to the model. A .pth file and "random" need PyTorch, the extra ``torch``.
        engine: "auto", or one that ``fai-fast doctor`` lists, such as "tensorrt", "torch-cuda" and "openvino".
        device: "auto", "cpu", "cuda" or "cuda:1", which the number 1 says too; "auto" is the first GPU where one can be
            used.
        precision: "fp32", "fp16", "bf16", or "auto": the fastest that the device computes natively and that finds on
            pictures what fp32 finds (docs/low_precision.md); ``info()["precision_reason"]`` has the figures.
        im_size: the network's input, an int for a square or (height, width), multiples of 32; None for the size that
            the model was trained at.
        frame: in place of ``im_size``: (height, width) of the camera's frames, for which :func:`fai_fast.fit_size`
            chooses the size, with about as many pixels as the model's own. Frames of other sizes are taken too. With
            neither, the first frame whose aspect is more than 1.2 times the input's, or less than its 1.2th, is told in
            one line at level INFO. docs/frame_shape.md says what a frame's shape does to accuracy.
        num_threads: of the engine and of postprocessing; None for all cores that this process may use.
        cache_dir: where weights, graphs and compiled engines are kept; None for ``FAI_FAST_CACHE`` in the environment,
            else the platform's usual place.
        batch_size: frames that the engine takes at once, for :meth:`Model.infer_batch`.
        pictures: those to hold a low precision against fp32 on: a folder, or several pictures, each as
            :meth:`Model.infer` takes it. Up to 32 are looked at, spread evenly. None for shapes that are drawn.
        verify_precision: False takes a precision that is asked for by its name as it is, in order to measure it.
        spec: of a network of somebody else, what it is: a :class:`fai_fast.ModelSpec`, what its ``to_dict()`` gives,
            or a JSON file of that.
        processor: of a network of transformers, its image processor; None for the one beside it, or what networks of
            its kind have by default (docs/networks.md).
        task: of a network of transformers, "instance", "semantic" or "panoptic"; None for what its name, its processor
            or its classes say.

    Raises:
        TypeError, ValueError: an argument is wrong; the text names it.
        WeightsError, ExportError, EngineError: weights, export or engine failed; the text says what to do.
        CudaError: a GPU is asked for, and there is none, or its driver is too old, or its memory is full.

    Example:
        >>> with fai_fast.load("fai-mf-n-shapes") as model:  # doctest: +SKIP
        ...     print(model.infer("shapes.jpg"))
    """
    arguments = {
        "name_or_path": name_or_path,
        "weights": weights,
        "engine": engine,
        "device": device,
        "precision": precision,
        "im_size": im_size,
        "frame": frame,
        "num_threads": num_threads,
        "cache_dir": cache_dir,
        "batch_size": batch_size,
        "verify_precision": verify_precision,
        "spec": spec,
        "processor": processor,
        "task": task,
    }
    # Ranges for int8 are taken from more of them than a verdict is.
    most = SUBSET if precision == INT8 else MOST
    chosen = None if pictures is None else Pictures.given(pictures, most)
    prepared = prepare(**arguments, pictures=chosen)
    model = Model(prepared)
    model._arguments = _again.kept({**arguments, "pictures": None if chosen is None else chosen.argument})
    # A file of export() has no other size, and whoever asked for one knows it.
    if im_size is None and frame is None and prepared.resizable and not sees_crops(prepared.spec):
        step = step_of(stride_of(prepared.spec.config))
        model._look = AspectNotice(prepared.spec.name, prepared.size, step)
    return model


def _loaded_again(arguments: dict[str, Any], combine: Combine | None = None) -> Model:
    """The model of these arguments, or a clone of it, where it combines semantic results otherwise."""
    model = load(**arguments)
    if combine is None or model.spec.config.combine == combine:
        return model
    with model:
        return model._combining(combine)
