"""A deployed graph in int8 for CPUs: made from pictures, verified, and written as one file.

:func:`write` makes one, :func:`read_info` says what a file is. What users call is :func:`fai_fast.quantize`, in
``quantization.py``, which knows of models and labels too.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fai_fast import _gate, exporter
from fai_fast._arguments import check_int
from fai_fast._core import __version__
from fai_fast._gate import Verdict
from fai_fast._pictures import MOST, Pictures
from fai_fast._redaction import redacted
from fai_fast.engines import openvino, openvino_file, precision
from fai_fast.engines.openvino_file import SUFFIX
from fai_fast.errors import EngineError, ExportError
from fai_fast.quantizer import calibration
from fai_fast.registry import ModelSpec, stride_of

__all__ = [
    "PRECISION",
    "SUBSET",
    "SUFFIX",
    "VERSION",
    "Accuracy",
    "QuantizedInfo",
    "Subject",
    "check_installed",
    "read_info",
    "write",
]

VERSION = 1
"""Counts changes of what is made: a file of another version is made again."""
PRECISION = "int8"
SUBSET = 300
"""Pictures that ranges are taken from, where there are so many. More change nothing."""
_RESTS = ("bf16", "fp16", "fp32")

_log = logging.getLogger("fai_fast")

Accuracy = Callable[[Path, str], tuple[str, float]]
"""Of a graph's file and a precision of the engine: the metric and its value, percent."""


@dataclass(frozen=True)
class Subject:
    """A deployed graph in fp32, and what it is of."""

    path: Path
    sha256: str
    spec: ModelSpec
    size: tuple[int, int]
    batch: int
    weights_sha256: str


@dataclass(frozen=True)
class QuantizedInfo:
    """What a file of :func:`write` says of itself.

    Attributes:
        spec: of the model, its depth as in the weights.
        size: (height, width) of the images.
        batch: how many at once.
        weights_sha256, graph_sha256: of the weights' file, and of the deployed graph in fp32.
        kept: which products are not int8, in words; "" for none.
        rest: what all that is not int8 may be computed in, "fp32" among them: for these it was verified.
        verification: of each of those the verdict of the gate, and "accuracy" where there were labels; JSON types.
        pictures: from which the ranges are, in words.
        versions: of what made it, by name.
    """

    spec: ModelSpec
    size: tuple[int, int]
    batch: int
    weights_sha256: str
    graph_sha256: str
    kept: str
    rest: tuple[str, ...]
    verification: dict[str, Any]
    pictures: str
    versions: dict[str, str]

    @property
    def verdict(self) -> str:
        """How near it is to fp32, in a sentence."""
        rest = self.rest[0]
        said = self.verification[rest]
        if "accuracy" in said:
            found = said["accuracy"]
            return (
                f"{found['metric']} {found['value']:.2f} on {found['of']}, {found['fp32']:.2f} in fp32 "
                f"(the rest in {rest})"
            )
        return f"{Verdict.from_dict(said['gate'])} (the rest in {rest})"


def write(
    subject: Subject,
    place: Path,
    pictures: Pictures,
    *,
    accuracy: Accuracy | None = None,
    labels: str = "",
    tolerance: float = 0.5,
    required: bool = True,
    progress: bool | None = None,
) -> QuantizedInfo:
    """Quantizes a graph into the file at `place`: all products first, then with those kept that cost most.

    Args:
        subject: the graph.
        pictures: to take ranges from, and some of them to verify on.
        accuracy: measures a graph on labeled pictures; None without any: then the gate decides.
        labels: what `accuracy` measures on, in words.
        tolerance: percentage points that it may fall by.
        required: False writes the first that is made, whatever it loses, in order to measure it.
        progress: a bar on stderr; None for one if that is a terminal.

    Raises:
        ExportError: NNCF is not installed or fails, or every way loses too much; the text has the figures.
        EngineError: OpenVINO fails.
        OSError, ValueError: a picture or the file.
    """
    check_installed()
    rests = list(precision.candidates(openvino.NAME))
    exact = None if accuracy is None else accuracy(subject.path, "fp32")
    refused = []
    attempts = calibration.attempts_for(subject.spec)
    for attempt in attempts:
        with _bar(pictures.count, progress) as bar:
            model = calibration.calibrate(
                subject.path,
                -(-pictures.count // subject.batch),
                lambda: _inputs(subject, pictures, bar),
                attempt,
            )
        account = _account(subject, attempt.name, pictures)
        openvino_file.write(place, model, {**account, "rest": rests, "verification": {}}, openvino.package())
        verification = {}
        for rest in rests:
            # OpenVINO's kernels do not take every scale that NNCF finds, such as for few tokens of attention, nor all
            # in every precision.
            try:
                verification[rest] = _verified(subject, place, rest, pictures)
            except EngineError as error:
                _log.info("%s: int8 with the rest in %s is left out: %s", subject.spec.name, rest, error)
                failure = error
        if "fp32" not in verification:
            if attempt is attempts[-1]:
                raise failure
            continue
        if accuracy is not None and exact is not None:
            for rest, said in verification.items():
                metric, value = accuracy(place, f"{PRECISION}+{rest}")
                said["accuracy"] = {
                    "metric": metric, "value": value, "fp32": exact[1], "of": labels, "tolerance": tolerance,
                }  # fmt: skip
        good = [rest for rest, said in verification.items() if _holds(said) or not required]
        if "fp32" in good:
            account |= {"rest": good, "verification": verification}
            openvino_file.write(place, model, account, openvino.package())
            return read_info(place)
        refused.append(f"{_said(attempt)}: {_figures(verification['fp32'])}")
    raise ExportError(
        f"{subject.spec.name}: int8 loses too much against fp32. {'; '.join(refused)}. More pictures, of what the "
        "model is for, may help; labels (coco=, ade=, panoptic=) with tolerance= decide what may be lost"
    )


def check_installed() -> None:
    """Raises ExportError, EngineError where NNCF or OpenVINO cannot be imported."""
    openvino.package()
    calibration.nncf()


def read_info(path: str | os.PathLike[str]) -> QuantizedInfo:
    """What a file of :func:`write` says of itself.

    Raises:
        FileNotFoundError: there is no such file.
        EngineError: it was not written by it, or is damaged.
    """
    said = openvino_file.read_account(path)
    try:
        if said["version"] != VERSION:
            raise ValueError(f"version {said['version']!r}, expected {VERSION}")
        rest = tuple(said["rest"])
        if "fp32" not in rest or not set(rest) <= set(_RESTS):
            raise ValueError(f"rest: got {rest}, expected some of {_RESTS}, with fp32")
        spec = ModelSpec.from_dict(said["spec"])
        info = QuantizedInfo(
            spec=spec,
            size=exporter.check_im_size(said["im_size"], stride_of(spec.config)),
            batch=_positive(said["batch"]),
            weights_sha256=_text(said["weights_sha256"]),
            graph_sha256=_text(said["graph_sha256"]),
            kept=_text(said["kept"]),
            rest=rest,
            verification=dict(said["verification"]),
            pictures=_text(said["pictures"]),
            versions={_text(name): _text(version) for name, version in said["versions"].items()},
        )
        # Asked for now, so that what cannot be said is found here.
        if info.verification:
            _text(info.verdict)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise EngineError(
            f"{redacted(os.fsdecode(path))} was not written by this version of fai_fast.quantize ({error!r}); make it "
            "again"
        ) from None
    return info


def _account(subject: Subject, kept: str, pictures: Pictures) -> dict[str, Any]:
    return {
        "version": VERSION,
        "spec": subject.spec.to_dict(),
        "im_size": list(subject.size),
        "batch": subject.batch,
        "precision": PRECISION,
        "weights_sha256": subject.weights_sha256,
        "graph_sha256": subject.sha256,
        "kept": kept,
        "pictures": _without_folders(pictures.source),
        "versions": {
            "fai_fast": __version__,
            "openvino": openvino.version(),
            "nncf": calibration.version(),
        },
    }


def _without_folders(source: str) -> str:
    """Where pictures are from, with the end of a folder's path: the file goes to others, where the rest is not."""
    count, of, folder = source.partition(" of ")
    return f"{count}{of}{'/'.join(Path(folder).parts[-2:])}"


def _inputs(subject: Subject, pictures: Pictures, bar: Any) -> Iterator[Any]:
    """Normalized images in the graph's shape; of the last batch the rest is filled from its start."""
    bar.reset()
    frames = pictures.frames()
    while group := list(islice(frames, subject.batch)):
        bar.update(len(group))
        images = [_gate.normalized(frame, subject.spec, subject.size) for frame in group]
        yield np.concatenate([images[index % len(images)] for index in range(subject.batch)])


def _verified(subject: Subject, place: Path, rest: str, pictures: Pictures) -> dict[str, Any]:
    """The gate's verdict with what is not int8 computed in `rest`."""
    low = openvino.load(place, precision=f"{PRECISION}+{rest}")
    try:
        exact = openvino.load(subject.path)
        try:
            some = Pictures.given(pictures.argument, MOST)
            return {"gate": _gate.verify(low, exact, some, subject.spec).to_dict()}
        finally:
            exact.close()
    finally:
        low.close()


def _holds(said: Mapping[str, Any]) -> bool:
    """Labels have the last word, where there are any."""
    if "accuracy" in said:
        found = said["accuracy"]
        # What a sum of floats is off by is no loss.
        return bool(found["value"] >= found["fp32"] - found["tolerance"] - 1e-9)
    return bool(said["gate"]["holds"])


def _figures(said: Mapping[str, Any]) -> str:
    text = str(Verdict.from_dict(said["gate"]))
    if "accuracy" in said:
        found = said["accuracy"]
        text = (
            f"{found['metric']} {found['value']:.2f}, {found['fp32']:.2f} in fp32 (it may fall by "
            f"{found['tolerance']:g}); {text}"
        )
    return text


def _said(attempt: calibration.Attempt) -> str:
    return f"without {attempt.name}" if attempt.name else "with all products in int8"


def _bar(count: int, progress: bool | None) -> Any:
    from tqdm import tqdm  # type: ignore[import-untyped]

    disable = None if progress is None else not progress
    return tqdm(
        total=count, unit="picture", desc="calibrating", file=sys.stderr, leave=False, disable=disable
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"got {type(value).__name__}, expected str")
    return value


def _positive(value: object) -> int:
    number = check_int("batch", value)
    if not 1 <= number <= exporter.MAX_BATCH:
        raise ValueError(f"batch: got {number}, expected 1..{exporter.MAX_BATCH}")
    return number
