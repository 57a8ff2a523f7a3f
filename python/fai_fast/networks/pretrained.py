"""Networks of transformers: a model in memory, a folder that ``save_pretrained`` wrote, or a name of its hub.

transformers itself reads folders and looks names up, in its own cache first; nothing here knows where it looks.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fai_fast._extras import install
from fai_fast._foreign import explained
from fai_fast._redaction import redacted
from fai_fast.errors import WeightsError
from fai_fast.networks import Network, Reference, foreign
from fai_fast.networks.families import FAMILIES, describe
from fai_fast.networks.remembered import Memory
from fai_fast.registry import ModelSpec, models

__all__ = ["Pretrained", "find", "is_folder", "is_pretrained"]

VERSION = 3
"""Counts changes of what is made of these networks: a graph of another version is made again."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_LARGEST_CONFIG = 1 << 24
_CLOSED = -1e9
_COMPILED = "_orig_mod."
"""What ``torch.compile`` puts before the names of weights."""
_PACKAGES = ("transformers", "huggingface_hub", "torch", "safetensors", "tokenizers", "pickle", "_pickle")


@dataclass(frozen=True)
class Pretrained:
    """A network that was recognised.

    Attributes:
        spec: of it.
        network: reads its weights where they are not in memory yet, and makes its graphs.
    """

    spec: ModelSpec
    network: Callable[[], Network]


def is_pretrained(model: object) -> bool:
    """Whether it is a model of transformers; where that was not imported, nothing is."""
    kind = getattr(sys.modules.get("transformers"), "PreTrainedModel", None)
    return kind is not None and isinstance(foreign.plain(model), kind)


def is_folder(model: object) -> bool:
    """Whether it is a folder as transformers' ``save_pretrained`` writes one, and none of FocoosAI's."""
    if not isinstance(model, (str, os.PathLike)) or "\0" in os.fsdecode(model):
        return False
    folder = Path(os.fsdecode(model))
    return (folder / "config.json").is_file() and not (folder / "model_info.json").is_file()


def find(
    model: Any,
    processor: Any = None,
    task: str | None = None,
    spec: ModelSpec | None = None,
    *,
    memory: Path | None = None,
) -> Pretrained | None:
    """The network that `model` is; None where it is none of transformers.

    Args:
        model: a model of transformers, or a name or path.
        processor: its image processor, or a processor with one; None for the one beside it, where there is one.
        task: see :func:`fai_fast.networks.families.describe`.
        spec: in place of what its configuration says.
        memory: the cache, where what transformers said of a folder or name is kept; None where it is asked each time.

    Raises:
        TypeError, ValueError: it is of transformers, and not of a kind that is known here, or `task` is none of its
            own; or there is no such folder or name.
        WeightsError: transformers is not installed, or cannot read it.
    """
    if is_pretrained(model):
        model = foreign.plain(model)
        return _of_module(model, processor, task, spec, _name_of(model), f"the {type(model).__name__}")
    if isinstance(model, str) and model in models():
        return None
    if is_folder(model):
        return _of_place(os.fsdecode(model), processor, task, spec, memory, local=True)
    # A file or folder of that name comes first, as everywhere.
    if (
        isinstance(model, str)
        and _HUB_NAME.fullmatch(model)
        and not _is_file_name(model)
        and not os.path.exists(model)
    ):
        return _of_place(model, processor, task, spec, memory, local=False)
    return None


def _is_file_name(name: str) -> bool:
    return name.lower().endswith((".onnx", ".engine", ".openvino", ".json", ".pth", ".pt", ".safetensors"))


def _of_place(
    place: str,
    processor: Any,
    task: str | None,
    spec: ModelSpec | None,
    memory: Path | None,
    *,
    local: bool,
) -> Pretrained:
    shown = redacted(place)
    if local:
        # Told apart before transformers is imported, which takes seconds.
        _check_kind(_kind_in(Path(place)), shown)
    name = Path(place).resolve().name if local else place.rpartition("/")[2]
    # A processor that is given is in memory, and transformers with it.
    if memory is None or processor is not None:
        return _asked(place, name, processor, task, spec, local=local)
    # What the network is told of its task is among the weights, so to say.
    about = {"version": VERSION, "task": task, "own_task": None if spec is None else spec.task}
    remembered = Memory(memory, place, name, local=local, asked=about)
    facts = remembered.recall()
    if facts is None:
        return _asked(place, name, None, task, spec, remembered, local=local)
    _check_kind(facts.config.model_type, shown)
    said = describe(facts.config, facts.processor, name, task) if spec is None else _own(spec, task)

    @functools.cache
    def whole() -> Network:
        found = _asked(place, name, None, None, said, local=local).network()
        if found.sha256 != facts.sha256:
            raise WeightsError(f"model: {shown} was changed while it was in use; load it again")
        return found

    def module(size: tuple[int, int], batch: int) -> Any:
        made = whole().module
        assert made is not None  # of a network that transformers has read
        return made(size, batch)

    def network() -> Network:
        return Network(
            spec=said,
            source=shown,
            sha256=facts.sha256,
            graph=lambda size, batch: whole().graph(size, batch),
            reference=lambda size, batch: whole().reference(size, batch),
            fixed_size=_fixed_size(facts.config),
            module=module,
        )

    return Pretrained(said, network)


def _asked(
    place: str,
    name: str,
    processor: Any,
    task: str | None,
    spec: ModelSpec | None,
    memory: Memory | None = None,
    *,
    local: bool,
) -> Pretrained:
    """The network as transformers says it is; its facts go to `memory` when its weights are read."""
    shown = redacted(place)
    transformers = _transformers(shown)
    reader = _Reader(transformers, place, local)
    config = reader.read(lambda **options: transformers.AutoConfig.from_pretrained(place, **options))
    family = _check_kind(config.model_type, shown)
    if processor is None:
        processor = reader.processor(config.model_type)
    said = describe(config, processor, name, task) if spec is None else _own(spec, task)
    tokens = _task_tokens(config, processor, said.task) if family.needs_task else None

    def network() -> Network:
        module = reader.module(getattr(transformers, family.class_name))
        found = _network(module, said, tokens, shown)
        if memory is not None:
            memory.keep(config, processor, found.sha256)
        return found

    return Pretrained(said, network)


def _of_module(
    module: Any, processor: Any, task: str | None, spec: ModelSpec | None, name: str, shown: str
) -> Pretrained | None:
    kind = getattr(module.config, "model_type", None)
    family = FAMILIES.get(str(kind))
    if family is None or family.class_name not in [item.__name__ for item in type(module).__mro__]:
        if spec is not None:
            return None  # a module like any other
        expected = ", ".join(item.class_name for item in FAMILIES.values())
        raise ValueError(
            f"model: got a {type(module).__name__}, which is no network that can be run here as it is, expected one of "
            f"{expected}; or spec=, with what gives mask and class logits"
        )
    if processor is None:
        processor = _processor_beside(module)
    said = describe(module.config, processor, name, task) if spec is None else _own(spec, task)
    tokens = _task_tokens(module.config, processor, said.task) if family.needs_task else None
    return Pretrained(said, lambda: _network(module, said, tokens, shown))


def _own(spec: ModelSpec, task: str | None) -> ModelSpec:
    """The user's own spec. Raises ValueError where a task is asked for beside it that is not the spec's."""
    if task is not None and task != spec.task:
        raise ValueError(f"task: got {task!r} with a spec= of the task {spec.task!r}, expected that, or None")
    return spec


# ------------------------------------------------------------------------------------------------ network


def _network(module: Any, spec: ModelSpec, tokens: Any, shown: str) -> Network:
    import torch

    from fai_fast.networks.module import Recorder, check_weights, has_other_code, in_float32

    check_weights(module, shown)
    module = in_float32(module)
    # A spec of the user's own need not name the family.
    kind = str(module.config.model_type)
    masks, classes = FAMILIES[kind].outputs

    def logits(module: Any, images: Any, **words: Any) -> tuple[Any, Any]:
        given = {name: value.expand(len(images), -1) for name, value in words.items()}
        outputs = module(pixel_values=images, **given)
        return getattr(outputs, masks), getattr(outputs, classes)

    recorder = Recorder(module, logits, shown, {} if tokens is None else {"task_inputs": tokens})
    ours = foreign.with_our_names(spec)

    def graph(size: tuple[int, int], batch: int) -> Any:
        theirs = _with_finite_masks(recorder.graph(size, batch))
        return foreign.graph_of(theirs, ours, size, batch, shown, exact=False)

    digest = _digest(module, tokens, shown)
    if has_other_code(module):
        # As of any module, nothing but its graph says what it computes.
        digest.update(recorder.graph(spec.input_size, 1).SerializeToString(deterministic=True))
    return Network(
        spec=spec,
        source=shown,
        sha256=digest.hexdigest(),
        graph=graph,
        reference=lambda size, batch: Reference(
            f"the module in PyTorch {torch.__version__}", recorder.run, exact=False
        ),
        fixed_size=_fixed_size(module.config),
        module=recorder.network,
    )


def _fixed_size(config: Any) -> tuple[int | None, int | None]:
    """(height, width) of the only input that a network takes; None for sides that are open."""
    side = getattr(config, "image_size", None) if str(config.model_type).startswith("eomt") else None
    fixed = (side, side) if isinstance(side, int) or side is None else tuple(side)
    return fixed[0], fixed[1]


def _with_finite_masks(model: Any) -> Any:
    """The graph with a large number in place of the infinity that closes a place to attention.

    A softmax gives 0 for both; but what flows through the network stays finite, from which int8's ranges are taken.
    """
    from onnx import numpy_helper

    tensors = [*model.graph.initializer]
    tensors += [
        attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")
    ]
    for tensor in tensors:
        if math.prod(tensor.dims) != 1:
            continue
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and np.isneginf(value).all():
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(value, _CLOSED), tensor.name))
    return model


def _digest(module: Any, tokens: Any, shown: str) -> Any:
    """The SHA-256 of all that a graph of the module depends on, besides its size."""
    import torch
    import transformers

    digest = hashlib.sha256(
        f"transformers {VERSION} {transformers.__version__} {torch.__version__} ".encode()
    )
    config = {key: value for key, value in module.config.to_dict().items() if key != "_name_or_path"}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    state = {**module.state_dict(), **({} if tokens is None else {"task_inputs": tokens})}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{shown} has {name!r:.80} of the type {type(value).__name__} among its weights, expected tensors "
                "alone: give the model as it was before it was quantized"
            )
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest


def _task_tokens(config: Any, processor: Any, task: str) -> Any:
    """The words that tell OneFormer its task, as its processor writes them; int64 (1, L)."""
    import torch

    tokenizer = (
        processor.get("tokenizer")
        if isinstance(processor, Mapping)
        else getattr(processor, "tokenizer", None)
    )
    if tokenizer is None:
        came = "None" if processor is None else type(processor).__name__
        raise ValueError(
            f"processor: got {came}, expected a OneFormerProcessor: the network is told its task in words, which "
            "the processor's tokenizer writes"
        )
    length = int(config.task_seq_len)
    written = tokenizer([f"the task is {task}"], padding="max_length", max_length=length, truncation=True)
    ids, real = torch.tensor(written["input_ids"]), torch.tensor(written["attention_mask"])
    return (ids * real).to(torch.int64)


# ------------------------------------------------------------------------------------------------- places


def _name_of(module: Any) -> str:
    """What the model is called where it came from, else what kind it is."""
    place = str(getattr(module.config, "_name_or_path", "") or "").replace("\\", "/").rstrip("/")
    return place.rpartition("/")[2] or str(getattr(module.config, "model_type", "network"))


def _kind_in(folder: Path) -> Any:
    path = folder / "config.json"
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ValueError(f"{path.stat().st_size} bytes are no configuration")
        said = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"model: {redacted(str(path))} cannot be read as JSON: {error}") from None
    return said.get("model_type") if isinstance(said, dict) else None


def _check_kind(kind: Any, shown: str) -> Any:
    """The family of a ``model_type``. Raises ValueError where there is none."""
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f"model: {shown} is of the type {kind!r} of transformers (config.json, model_type), expected one of "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[kind]


def _transformers(shown: str) -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise WeightsError(
            f"model: {shown} is a network of transformers, and {error.name or 'a package'} is not installed: "
            f"{install('networks')}"
        ) from error
    return transformers


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers lists weights that it draws at random: of a compiled module all, which then are read after all."""
    log = logging.getLogger("transformers.modeling_utils")

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)


class _Reader:
    """Reads by transformers: from a folder, or from its cache, and only then from afar."""

    def __init__(self, transformers: Any, place: str, local: bool) -> None:
        self._transformers = transformers
        self._place = place
        self._local = local

    def module(self, kind: Any) -> Any:
        """The network with all its weights: those that are missing, its library would draw at random."""

        def told(**more: Any) -> tuple[Any, Mapping[str, Any]]:
            def how(**options: Any) -> Any:
                return kind.from_pretrained(
                    self._place, output_loading_info=True, ignore_mismatched_sizes=True, **more, **options
                )

            with _without_report():
                found: tuple[Any, Mapping[str, Any]] = self.read(how)
            return found

        module, said = told()
        if any(str(name).startswith(_COMPILED) for name in said["unexpected_keys"]):
            module, said = told(key_mapping={f"^{re.escape(_COMPILED)}": ""})
        shown = f"model: the weights of {redacted(self._place)}"
        if others := sorted(said["mismatched_keys"]):
            name, came, expected = others[0]
            raise WeightsError(
                f"{shown} are of another network than its config.json: {name!r:.80} has the shape {tuple(came)}, "
                f"expected {tuple(expected)}" + (f"; so have {len(others) - 1} more" if others[1:] else "")
            )
        # Tables that the network computes itself need not be there.
        missing = sorted({*said["missing_keys"]} & {name for name, _ in module.named_parameters()})
        if missing:
            raise WeightsError(
                f"{shown} have no {', '.join(map(repr, missing[:3]))}"
                + (f" and {len(missing) - 3} more" if missing[3:] else "")
                + f", expected all of {kind.__name__}: save_pretrained() writes them"
            )
        return module

    def read(self, how: Callable[..., Any]) -> Any:
        try:
            return how(local_files_only=True)
        except Exception as error:
            if not explained(error, *_PACKAGES):
                raise
            if type(error).__name__ == "UnpicklingError":
                raise WeightsError(
                    f"model: the weights of {redacted(self._place)} hold something else than tensors, or are damaged, "
                    "and are not read; expected a file of safetensors, or a state dict as torch.save() writes it"
                ) from error
            if self._local:
                raise WeightsError(
                    f"model: transformers cannot read {redacted(self._place)}: {_line(error)}"
                ) from error
        try:
            return how()
        except Exception as error:
            if not explained(error, *_PACKAGES):
                raise
            # What the hub's library says is about accounts of its own, which nobody needs here.
            raise ValueError(
                f"model: got {redacted(self._place)!r}, no such file or folder; as a name of transformers, it "
                f"{_why_not(error)}; as a name of fai_fast's own models, expected one of {', '.join(models())}"
            ) from None

    def processor(self, kind: str) -> Any:
        """What is said of the image processor, and for OneFormer its tokenizer; None where nothing is."""
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            fields, _ = ImageProcessingMixin.get_image_processor_dict(
                self._place, local_files_only=self._local
            )
        except Exception as error:
            if not explained(error, "transformers", "huggingface_hub"):
                raise
            fields = None
        if not FAMILIES[kind].needs_task:
            return fields
        tokenizer = self.read(
            lambda **options: self._transformers.AutoTokenizer.from_pretrained(self._place, **options)
        )
        return {**(fields or {}), "tokenizer": tokenizer}


def _processor_beside(module: Any) -> Any:
    """What is said of the image processor in the folder, or the part of the cache, that the model is from."""
    place = str(getattr(module.config, "_name_or_path", "") or "")
    if not place:
        return None
    reader = _Reader(sys.modules["transformers"], place, local=True)
    return (
        reader.processor(str(module.config.model_type))
        if is_folder(place) or _HUB_NAME.fullmatch(place)
        else None
    )


def _why_not(error: BaseException) -> str:
    names: set[str] = set()
    cause: BaseException | None = error
    while cause is not None and len(names) < 20:
        names.add(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    if names & {"RepositoryNotFoundError", "GatedRepoError", "RevisionNotFoundError"}:
        return "is not on its hub for everybody to read"
    if names & {
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
        "ConnectionError",
        "ConnectError",
        "ProxyError",
    }:
        return "is not in its cache, and its hub cannot be reached"
    return f"cannot be read ({type(error).__name__})"


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[
        :300
    ]
