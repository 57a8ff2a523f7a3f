"""FocoosAI's ``model_info.json``, which its library writes beside the weights of every model that it trains.

Its fields are those of ``focoos.ports.ModelInfo``: name, model_family, classes, im_size, task, config, and optionally
weights_uri, val_dataset, val_metrics, latency, description.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fai_fast._arguments import check_choice
from fai_fast._sizes import STRIDE, size_text, square_or_sides
from fai_fast.registry.focoos_config import read_config
from fai_fast.registry.focoos_weights import WEIGHTS_SUFFIXES, find_weights, is_url
from fai_fast.registry.spec import OWN_FAMILIES, OWN_TASKS, ModelSpec, PublishedLatency

__all__ = ["FILE_NAME", "read", "read_record"]

FILE_NAME = "model_info.json"
_CHECKPOINT_SUFFIXES = (*WEIGHTS_SUFFIXES, ".ckpt", ".bin")
# How PyTorch's archives and pickles begin.
_CHECKPOINT_MAGIC = (b"PK\x03\x04", b"\x80")
_LARGEST_FILE = 1 << 24
_TASKS = {"instseg": "instance", "semseg": "semantic", "instance": "instance", "semantic": "semantic"}
_REQUIRED = ("name", "model_family", "classes", "im_size", "task", "config")
_log = logging.getLogger("fai_fast")


def read(path: Path) -> ModelSpec:
    """The record in a folder's ``model_info.json``, or in the JSON file itself.

    Raises:
        ValueError: there is none, it is not a JSON object, or a field is not as it must be; the text names file and
            field.
    """
    if path.is_dir():
        if not (path / FILE_NAME).is_file():
            raise ValueError(f"model: folder {path} has no {FILE_NAME}")
        path = path / FILE_NAME
    _refuse_other_files(path)
    try:
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise ValueError(
                f"{size} bytes are not a {FILE_NAME}; weights are passed as weights=, with the model's name here"
            )
        record = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"model: {path} cannot be read as JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(
            f"model: {path} holds a JSON {type(record).__name__}, expected an object as in {FILE_NAME}"
        )
    return read_record(record, str(path), path.parent)


def _refuse_other_files(path: Path) -> None:
    """ValueError that says where weights and graphs belong, which do not say what network they are for."""
    suffix = path.suffix.lower()
    if suffix in (".onnx", ".openvino", ".engine"):
        raise ValueError(
            f"model: {path} holds a graph, which fai_fast.load() and the commands that run a model take; here a name, "
            f"a folder or file with {FILE_NAME}, or a ModelSpec is expected"
        )
    try:
        with path.open("rb") as file:
            begins = file.read(4)
    except OSError:  # reading it as JSON says why
        return
    if suffix in _CHECKPOINT_SUFFIXES or begins.startswith(_CHECKPOINT_MAGIC):
        own = (path.parent / FILE_NAME).is_file()
        what = repr(str(path.parent)) if own else "NAME"
        name = "" if own else f", with a registry name, a folder with {FILE_NAME} or a ModelSpec for NAME"
        raise ValueError(
            f"model: {path} is a checkpoint, which does not say what network it is of: "
            f"load({what}, weights={str(path)!r}){name}"
        )


def read_record(record: Mapping[str, Any], source: str, folder: Path | None) -> ModelSpec:
    """The record in the object of a ``model_info.json``, or of ``ModelSpec.to_dict``.

    Args:
        record: the object.
        source: what errors call it.
        folder: where it was; its weights are looked for there.
    """
    try:
        if "model_family" not in record:
            if "family" not in record:
                raise ValueError(f"model_family missing; expected the fields {', '.join(_REQUIRED)}")
            spec = ModelSpec.from_dict(record)
            uri = None
        else:
            uri = record.get("weights_uri")
            spec = _from_model_info(record, source)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from None
    if folder is None:
        return spec
    weights, problem = find_weights(folder, uri, source)
    if spec.bundled_weights is not None or spec.weights_url is not None:
        problem = None
    return dataclasses.replace(
        spec, weights_path=None if weights is None else str(weights), weights_problem=problem
    )


def _from_model_info(record: Mapping[str, Any], source: str) -> ModelSpec:
    if missing := [key for key in _REQUIRED if record.get(key) is None]:
        raise ValueError(f"{', '.join(missing)} missing; expected the fields {', '.join(_REQUIRED)}")
    config = read_config(record["config"], source)
    task = _TASKS.get(str(record["task"]))
    if task is None:
        raise ValueError(
            f"task: got {record['task']!r}, expected instseg or semseg: other tasks are not supported"
        )
    of_config = check_choice(
        "config.postprocessing_type", config.setdefault("postprocessing_type", task), OWN_TASKS
    )
    if of_config != task:
        _log.warning(
            "%s: task is %s, config.postprocessing_type %s: taken as %s",
            source,
            record["task"],
            of_config,
            of_config,
        )
        task = of_config
    config["pixel_decoder_transformer_layers"] = (
        config.get("pixel_decoder_transformer_layers", 0) if record["model_family"] != "bisenetformer" else 0
    )
    uri = record.get("weights_uri")
    classes = _names(record["classes"])
    metrics, per_class = _metrics(record.get("val_metrics"), classes)
    check_choice("model_family", record["model_family"], OWN_FAMILIES)
    for name in ("val_dataset", "description"):
        if record.get(name) and not isinstance(record[name], str):
            raise TypeError(f"{name}: got {type(record[name]).__name__}, expected a str or null")
    return ModelSpec.from_dict(
        {
            "name": record["name"],
            "family": record["model_family"],
            "task": task,
            "classes": classes,
            "config": config,
            "im_size": _im_size(record["im_size"], source),
            "dataset": record.get("val_dataset") or None,
            "weights_url": uri if is_url(uri) else None,
            "metrics": metrics,
            "per_class": per_class,
            "published_latency": _latencies(record.get("latency")),
            "note": record.get("description") or None,
        }
    )


def _names(classes: object) -> object:
    """FocoosAI has spaces around some names, such as those of ADE20K's class 8, that are no part of them."""
    if not isinstance(classes, list):
        return classes
    return [name.strip() if isinstance(name, str) else name for name in classes]


def _im_size(value: object, source: str) -> object:
    """An int for a square or [height, width], as ModelSpec has it; what is neither is left to its check.

    FocoosAI pads pictures where a side is not a multiple of 32.
    """
    sides = value if isinstance(value, list) else [value, value]
    whole = [side for side in sides if type(side) is int and side >= 1]
    if len(sides) != 2 or whole != sides:
        return value
    height, width = (-(-side // STRIDE) * STRIDE for side in whole)
    if [height, width] != sides:
        _log.warning(
            "%s: im_size is %s, the network's input will be %s (height x width), multiples of %d",
            source,
            value,
            size_text((height, width), " x "),
            STRIDE,
        )
    return square_or_sides((height, width))


def _metrics(values: object, classes: object) -> tuple[dict[str, float], dict[str, float]]:
    """Overall and per-class figures among everything that a training run logs; absent classes are NaN there."""
    if not isinstance(values, Mapping) or not isinstance(classes, list):
        return {}, {}
    numbers = {
        str(key): float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }
    names = {name for name in classes if isinstance(name, str)}
    overall: dict[str, float] = {}
    per_class: dict[str, float] = {}
    for key, number in numbers.items():
        group, _, figure = key.partition("/")
        kind, dash, name = figure.partition("-")
        if group in ("segm", "sem_seg") and not dash:
            overall[key] = number
        elif group in ("segm", "sem_seg") and kind in ("AP", "IoU") and name.strip() in names:
            per_class[name.strip()] = number
    return overall, per_class


def _latencies(values: object) -> list[PublishedLatency]:
    found = []
    for item in values if isinstance(values, list) else []:
        try:
            found.append(
                PublishedLatency(item["engine"], item["device"], item["im_size"], item["mean"], item["fps"])
            )
        except (TypeError, ValueError, KeyError):  # a figure that nobody needs to run the model
            continue
    return found
