"""Is an exported graph the reference network? Runs both on the same images and compares what they say.

A place is open to a query's attention where its mask logit is not negative. A logit that is zero but for rounding may
fall on either side, and then the query sees one place more or less: two correct programs differ by more than rounding.
So where outputs differ by more than the tolerance, the reference runs again with the graph's own decisions put in; then
the outputs must agree, and the decisions must differ nowhere but where the reference's logit is zero but for rounding.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fai_fast import _gate, _scenes
from fai_fast._extras import install
from fai_fast._foreign import explained
from fai_fast.engines.base import PACKAGES, reason
from fai_fast.errors import EngineError, ExportError
from fai_fast.exporter.builder import Array
from fai_fast.registry import ModelSpec, bundled_path, own_config

if TYPE_CHECKING:
    from fai_fast.weights import Weights

__all__ = [
    "TIE",
    "TOLERANCE",
    "Verification",
    "compared",
    "make_reference_file",
    "normalized",
    "outputs_of",
    "picture",
    "verify",
]

Float32 = npt.NDArray[np.float32]

TOLERANCE = 1e-4
"""The largest difference of a mask or class probability, fp32."""
TIE = 1e-4
"""A mask logit that is smaller than this part of its query's root mean square is zero but for rounding."""
FRAMES = 2
FRAMES_LOW = 3
"""Of a graph in a low precision, drawn pictures: some twenty shapes."""
REFERENCE_STEP = 4

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True)
class Verification:
    """What was measured, on all images and queries.

    Attributes:
        against: "reference" (PyTorch), or "stored" (outputs of the reference that the package brings).
        engine: what ran the graph, and its version.
        images: how many.
        mask_difference, class_difference: the largest of a probability.
        mask_iou: intersection over union of the masks (probability at least 0.5), all queries together.
        ties: attention decisions that fell otherwise than in the reference, where its logit is zero but for rounding;
            None if outputs agreed without looking.
        mask_difference_with_ties, class_difference_with_ties: from a reference with the graph's decisions; None as
            above.
        agreement: of a graph in a low precision: whether it finds what the reference finds, see fai_fast._gate.
    """

    against: str
    engine: str
    images: int
    mask_difference: float
    class_difference: float
    mask_iou: float
    ties: int | None = None
    mask_difference_with_ties: float | None = None
    class_difference_with_ties: float | None = None
    agreement: dict[str, Any] | None = None

    @property
    def differences(self) -> tuple[float, float]:
        """Of mask and class probabilities, that are not from ties."""
        if self.mask_difference_with_ties is None or self.class_difference_with_ties is None:
            return self.mask_difference, self.class_difference
        return self.mask_difference_with_ties, self.class_difference_with_ties

    @property
    def equal(self) -> bool:
        """Whether the differences are within the tolerance; False where there is a NaN."""
        return all(difference <= TOLERANCE for difference in self.differences)

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def batches(spec: ModelSpec, size: tuple[int, int], batch: int, *, low: bool) -> list[Float32]:
    """The images that a graph is verified on, whole batches (B, 3, h, w): drawn scenes for a low precision."""
    count = -(-max(batch, FRAMES_LOW) // batch) * batch if low else FRAMES * batch
    pictures = [
        _scenes.draw(seed, size).transpose(2, 0, 1) if low else picture(seed, size) for seed in range(count)
    ]
    return [normalized(np.stack(pictures[start : start + batch]), spec) for start in range(0, count, batch)]


def verify(
    model: Any, weights: Weights, size: tuple[int, int], batch: int, precision: str
) -> Verification | None:
    """Holds a graph against the reference network; None, with a line in the log, where there is nothing to hold it to.

    Args:
        model: the onnx.ModelProto that :func:`fai_fast.exporter.graph.build_graph` made of the others.

    Raises:
        ExportError: it is not equal, or there is no engine to run it.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        return _verify_stored(model, weights, size, batch, precision)
    low = precision != "fp32"
    images = batches(weights.spec, size, batch, low=low)
    count = batch * len(images)
    engine, runs = outputs_of(model, images)
    reference = _Reference(weights)
    expected = [reference(image) for image in images]
    found = compared("reference", engine, runs, expected, weights.spec.config.cls_sigmoid)
    if low:
        return _judge_low(found, runs, expected, weights.spec, size, precision, f"{count} drawn pictures")
    if not found.equal:
        found = _with_decisions(model, reference, images, found)
        if not found.equal:
            # The reference has rounding errors of its own; in float64 only the graph's are left.
            found = _with_decisions(model, _Reference(weights, exact=True), images, found)
    return _judge(found, weights.spec)


def picture(seed: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A made-up picture (3, h, w), RGB: colored shapes, large and small, on a gradient, with noise."""
    height, width = size
    r = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = r.uniform(0, 255, (3, 1, 1)) + r.uniform(-90, 90, (3, 1, 1)) * (y / height)
    image = image + r.uniform(-90, 90, (3, 1, 1)) * (x / width)
    for _ in range(24):
        cy, cx = r.uniform(0, height), r.uniform(0, width)
        ry, rx = r.uniform(0.02, 0.3, 2) * min(size)
        distance = np.abs((y - cy) / ry) ** 2 + np.abs((x - cx) / rx) ** 2
        image = np.where(distance < 1, r.uniform(0, 255, (3, 1, 1)), image)
    image = image + r.normal(0, 8, (3, height, width))
    result: npt.NDArray[np.uint8] = image.clip(0, 255).round().astype(np.uint8)
    return result


def normalized(images: Array, spec: ModelSpec) -> Float32:
    """(B, 3, h, w) as the network takes them."""
    mean = np.array(spec.config.pixel_mean, np.float32)[:, None, None]
    std = np.array(spec.config.pixel_std, np.float32)[:, None, None]
    result: Float32 = (images.astype(np.float32) - mean) / std
    return result


def make_reference_file(
    weights: Weights, path: Path, size: tuple[int, int] | None = None, seed: int = 0
) -> None:
    """Writes what the reference network says of one picture, to verify graphs where PyTorch is not installed.

    Args:
        weights: of the model.
        path: an .npz file, for a bundled model beside its weights as ``<name>.reference.npz``.
        size: of the picture; None for the size that the model was trained at.
    """
    size = size or weights.spec.input_size
    masks, classes = _Reference(weights)(normalized(picture(seed, size)[None], weights.spec))
    np.savez_compressed(
        path,
        sha256=np.array(weights.sha256),
        size=np.array(size),
        seed=np.array(seed),
        masks=masks[:, :, ::REFERENCE_STEP, ::REFERENCE_STEP],
        classes=classes,
    )


def _verify_stored(
    model: Any, weights: Weights, size: tuple[int, int], batch: int, precision: str
) -> Verification | None:
    spec = weights.spec
    path = bundled_path(spec.bundled_weights).with_suffix(".reference.npz") if spec.bundled_weights else None
    if path is None or not path.is_file():
        _log.warning("%s: not verified: torch is not installed (%s)", spec.name, install("torch"))
        return None
    with np.load(path) as stored:
        if str(stored["sha256"]) != weights.sha256 or tuple(stored["size"]) != size or batch != 1:
            _log.warning(
                "%s: not verified: torch is not installed, and %s is of other weights or another size",
                spec.name,
                path.name,
            )
            return None
        image = normalized(picture(int(stored["seed"]), size)[None], spec)
        expected = stored["masks"], stored["classes"]
    engine, ((masks, classes),) = outputs_of(model, [image])
    runs = [(masks[:, :, ::REFERENCE_STEP, ::REFERENCE_STEP], classes)]
    found = compared("stored", engine, runs, [expected], spec.config.cls_sigmoid)
    if precision != "fp32":
        return _judge_low(found, runs, [expected], spec, size, precision, "a made-up picture")
    return _judge(found, spec)


def _judge(found: Verification, spec: ModelSpec) -> Verification:
    if not found.equal:
        differences = "{:.3g} and {:.3g}".format(*found.differences)
        raise ExportError(
            f"{spec.name}: the fp32 graph is not equal to the reference network: mask and class probabilities "
            f"differ by {differences}, expected at most {TOLERANCE:g}; measured: {found.to_dict()}. This is a bug of "
            "fai_fast, or weights beyond the precision's range."
        )
    return found


def _judge_low(
    found: Verification,
    runs: Sequence[Sequence[Float32]],
    expected: Sequence[tuple[Float32, Float32]],
    spec: ModelSpec,
    size: tuple[int, int],
    precision: str,
    pictures: str,
) -> Verification:
    """By what is found: a low precision's logits are never equal."""
    comparison = _gate.Comparison(spec, size)
    for (masks, classes, *_), (true_masks, true_classes) in zip(runs, expected, strict=True):
        for index in range(len(masks)):
            one = slice(index, index + 1)
            comparison.add((masks[one], classes[one]), (true_masks[one], true_classes[one]))
    verdict = comparison.verdict(pictures)
    if not verdict.holds:
        raise ExportError(
            f"{spec.name}: the {precision} graph does not find what the reference network finds: {verdict}. These "
            "weights may be beyond the precision's range: export them in fp32"
        )
    return dataclasses.replace(found, agreement=verdict.to_dict())


def compared(
    against: str,
    engine: str,
    runs: Sequence[Sequence[Float32]],
    expected: Sequence[tuple[Float32, Float32]],
    cls_sigmoid: bool = False,
) -> Verification:
    """How far masks and classes of a graph are from those that are expected of it, image after image."""
    probabilities = _sigmoid if cls_sigmoid else _softmax
    both = either = 0
    mask_difference = class_difference = 0.0
    for (masks, classes, *_), (true_masks, true_classes) in zip(runs, expected, strict=True):
        inside, true_inside = masks >= 0, true_masks >= 0
        both += int((inside & true_inside).sum())
        either += int((inside | true_inside).sum())
        # np.maximum, unlike max(), keeps a NaN.
        mask_difference = np.maximum(mask_difference, np.abs(_sigmoid(masks) - _sigmoid(true_masks)).max())
        class_difference = np.maximum(
            class_difference, np.abs(probabilities(classes) - probabilities(true_classes)).max()
        )
    return Verification(
        against=against,
        engine=engine,
        images=sum(len(masks) for masks, _ in expected),
        mask_difference=float(mask_difference),
        class_difference=float(class_difference),
        mask_iou=both / either if either else 1.0,
    )


def _with_decisions(
    model: Any, reference: _Reference, images: list[Float32], found: Verification
) -> Verification:
    """As found, with what a reference says that attends where the graph does."""
    names = [
        f"head/layer{index}/mask/mask"
        for index in range(own_config(reference.spec).transformer_predictor_dec_layers)
    ]
    _, runs = outputs_of(model, images, names)
    ties = 0
    expected = []
    for image, (_, _, *decisions) in zip(images, runs, strict=True):
        outputs, flips = reference.follow(image, [mask < 0 for mask in decisions])
        ties += flips
        expected.append(outputs)
    sigmoid = reference.spec.config.cls_sigmoid
    followed = compared(found.against, found.engine, runs, expected, sigmoid)
    return dataclasses.replace(
        found,
        ties=ties,
        mask_difference_with_ties=followed.mask_difference,
        class_difference_with_ties=followed.class_difference,
    )


class _Reference:
    """The network of fai_fast.reference with these weights, for normalized images; exact: in float64."""

    def __init__(self, weights: Weights, exact: bool = False) -> None:
        import torch

        from fai_fast import reference

        with torch.device("meta"):
            network = reference.build(weights.spec)
        state = {key: torch.tensor(value) for key, value in weights.state.items()}
        network.load_state_dict(state, assign=True)
        self.spec = weights.spec
        self._dtype = torch.float64 if exact else torch.float32
        self._network = network.to(self._dtype).eval()

    def __call__(self, images: Float32) -> tuple[Float32, Float32]:
        """mask_logits and class_logits, the latter as the deployed graph has them."""
        import torch

        with torch.inference_mode():
            outputs = self._network.predict(torch.from_numpy(images).to(self._dtype))[-1]
        masks, classes = (value.to(torch.float32).numpy() for value in outputs)
        return masks, np.ascontiguousarray(classes[:, :, : self.spec.config.class_columns])

    def follow(self, images: Float32, decisions: list[Array]) -> tuple[tuple[Float32, Float32], int]:
        """mask_logits and class_logits where attention is blocked as in `decisions` (bool (B, Q, places), one a layer).

        Also the number of decisions that differ from the network's own.

        Raises:
            ExportError: one differs where the network's mask logit is not zero.
        """
        import torch

        predictor = self._network.head.predictor
        flips: list[int] = []
        logits: list[torch.Tensor] = []

        def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            logits.append(output.mask_logits)

        def replace(module: torch.nn.Module, inputs: Any) -> Any:
            *others, tokens, position, blocked = inputs
            wanted = torch.from_numpy(decisions[len(flips)])
            flips.append(_count_ties(logits[-1], wanted, blocked, len(flips)))
            return (*others, tokens, position, wanted)

        handles = [predictor.forward_prediction_heads.register_forward_hook(keep)]
        handles += [
            layer.register_forward_pre_hook(replace) for layer in predictor.transformer_cross_attention_layers
        ]
        try:
            outputs = self(images)
        finally:
            for handle in handles:
                handle.remove()
        return outputs, sum(flips)


def _count_ties(mask_logits: Any, wanted: Any, own: Any, layer: int) -> int:
    """How many of the decisions `wanted` differ from the network's `own`; ExportError if one of them is not a tie."""
    from torch.nn import functional as F

    height, width = mask_logits.shape[2:]
    factor = round((height * width / wanted.shape[-1]) ** 0.5)
    size = (height // factor, width // factor)
    logits = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False).flatten(2)
    limit = TIE * logits.square().mean(-1, keepdim=True).sqrt()
    open_, blocked = logits > limit, logits < -limit
    # A query that could look nowhere looks everywhere: with a tie for its highest logit, both are right.
    as_logits = ~(open_ & wanted).any(-1) & ~(blocked & ~wanted).any(-1)
    everywhere = ~open_.any(-1) & ~wanted.any(-1)
    wrong = ~(as_logits | everywhere)
    if wrong.any():
        raise ExportError(
            f"layer {layer}: attention is not blocked as in the reference network, for {int(wrong.sum())} queries. "
            "This is a bug of fai_fast"
        )
    return int((wanted != own).sum())


def outputs_of(
    model: Any, images: Sequence[Float32], extra: Sequence[str] = ()
) -> tuple[str, list[list[Float32]]]:
    """What ran the graph, and for each input mask_logits, class_logits and the values named `extra`."""
    import onnx

    precise = onnx.ModelProto()
    precise.CopyFrom(model)
    kind = precise.graph.input[0].type.tensor_type.elem_type
    precise.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in extra)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    names = ["mask_logits", "class_logits", *extra]
    problems = []
    for prepare in (_onnxruntime, _openvino):
        try:
            engine, run = prepare(precise.SerializeToString(), names)
        except EngineError as error:
            problems.append(str(error))
            continue
        except Exception as error:
            # ONNX Runtime has not every operator in every type, which graphs of others may ask for.
            if not explained(error, *PACKAGES):
                raise
            problems.append(f"{prepare.__name__.strip('_')}: {reason(error)}")
            continue
        return engine, [[np.array(value, np.float32) for value in run(item.astype(dtype))] for item in images]
    raise ExportError(f"no engine can run the graph to verify it: {'; '.join(problems)}")


def _onnxruntime(model: bytes, names: list[str]) -> tuple[str, Callable[[Array], Sequence[Array]]]:
    from fai_fast.engines import onnxruntime as engine

    # Imports the package as it must be imported, and says what to install.
    version = engine.version()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return f"onnxruntime {version}", lambda images: session.run(names, {"images": images})


def _openvino(model: bytes, names: list[str]) -> tuple[str, Callable[[Array], Sequence[Array]]]:
    from fai_fast.engines import openvino as engine

    version = engine.version()
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()

    def run(images: Array) -> list[Array]:
        request.infer({"images": images})
        return [request.get_tensor(name).data for name in names]

    return f"openvino {version}", run


def _sigmoid(x: Float32) -> Float32:
    # By way of tanh, which does not overflow.
    result: Float32 = 0.5 + 0.5 * np.tanh(0.5 * x)
    return result


def _softmax(x: Float32) -> Float32:
    exponents = np.exp(x - x.max(-1, keepdims=True))
    result: Float32 = exponents / exponents.sum(-1, keepdims=True)
    return result
