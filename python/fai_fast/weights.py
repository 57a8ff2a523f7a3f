"""Weights: found, fetched, read, and held against the network that they are for."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fai_fast import cache
from fai_fast._foreign import explained
from fai_fast._redaction import redacted
from fai_fast.checkpoint import Unreadable, file_problem, import_torch, read_file, state_in, without_torch
from fai_fast.errors import WeightsError
from fai_fast.registry import ModelSpec, bundled_path, load_spec, models, own_config, spec
from fai_fast.registry.shapes import MAPS, decoder_levels, is_optional, state_shapes
from fai_fast.registry.spec import check_url

__all__ = ["Located", "Weights", "check_state", "load_weights", "locate", "read_file", "state_shapes"]

State = dict[str, npt.NDArray[np.float32]]

RANDOM_SEED = 0
_MAX_LAYERS = 100
# Every network has it, so what stands before it is what a wrapper put before all names.
_ANCHOR = "head.predictor.query_feat.weight"
_DECODER_LAYER = re.compile(
    r"head\.predictor\.transformer_(?:self_attention|cross_attention|ffn)_layers\.(\d+)\."
)
_ENCODER_LAYER = re.compile(r"pixel_decoder\.transformer\.encoder\.layers\.(\d+)\.")

_log = logging.getLogger("fai_fast")


@dataclass(frozen=True)
class Weights:
    """The parameters of one network, checked against it.

    Attributes:
        state: every name of ``state_shapes(spec)`` in its order, float32; ``num_batches_tracked`` too.
        spec: of the network, its depth as in the checkpoint.
        source: where they are from, to read.
        sha256: of the file, or of the values where there is none; hexadecimal.
    """

    state: State
    spec: ModelSpec
    source: str
    sha256: str


@dataclass(frozen=True)
class Located:
    """Weights that are there, but not read yet.

    Attributes:
        spec: of the network that they are for.
        source: where they are from, to read.
        sha256: what ``read().sha256`` will be.
        path: the file; None for random weights and those that came as a state dict.
    """

    spec: ModelSpec
    source: str
    sha256: str
    path: Path | None
    _read: Callable[[], Weights] = dataclasses.field(repr=False, compare=False)

    def read(self) -> Weights:
        """Reads and checks them.

        Raises:
            WeightsError: they cannot be read, or do not fit the network.
        """
        return self._read()


def load_weights(
    spec: ModelSpec | str,
    weights: Any = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Weights:
    """The weights of a model, checked against its network.

    Args:
        spec: the model, or its name.
        weights: a path (.pth, .pt, .bin, .safetensors; no code in it is run); an http(s) address; a
            state dict; "random" for PyTorch's default initialization, always the same; or None for those that belong to
            the model: in the package, beside its model_info.json, or behind its ``weights_url``. Files and state dicts
            are taken as trainers write them: under a key such as "state_dict", "model" or "ema", and with the prefixes
            of DDP, torch.compile, Lightning and AveragedModel, see :func:`check_state`.
        cache_dir: where downloads are kept; see :func:`fai_fast.cache.cache_folder`.
        progress: whether downloads draw a bar where standard error is a terminal.

    Raises:
        TypeError, ValueError: an argument is not as said here.
        WeightsError: they cannot be found, fetched or read, or do not fit the network.
    """
    return locate(spec, weights, cache_dir=cache_dir, progress=progress).read()


def locate(
    spec: ModelSpec | str,
    weights: Any = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Located:
    """As :func:`load_weights`, but reads nothing yet; downloads where there is no file. Raises the same."""
    spec = load_spec(spec)
    if weights is None:
        weights = _own(spec)
    if isinstance(weights, Mapping):
        return _located_state(spec, weights)
    if not isinstance(weights, (str, os.PathLike)):
        module = " (of a module its state_dict())" if callable(getattr(weights, "state_dict", None)) else ""
        raise TypeError(
            f"weights: got {type(weights).__name__}, expected a path, an address, a state dict{module}, 'random' or "
            "None"
        )
    text = os.fsdecode(weights)
    if isinstance(weights, str) and text == "random":
        return _located_random(spec)
    # Any file that is there is a file, also http:/a.pth in a folder called "http:".
    address = isinstance(weights, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
    if address and not os.path.exists(text):
        return _located_url(spec, check_url("weights", text), cache.cache_folder(cache_dir), progress)
    try:
        path = Path(text) if os.path.exists(text) else Path(text).expanduser()
    except RuntimeError:
        raise WeightsError(
            f"weights: got {text!r}, but no home folder is known for it; give a path without ~"
        ) from None
    return _located_file(spec, path, cache.cache_folder(cache_dir))


def check_state(
    spec: ModelSpec, state: Mapping[str, Any], source: str = "state dict"
) -> tuple[State, ModelSpec]:
    """A checkpoint's state as float32 in the network's order, and the spec with the checkpoint's depth.

    Args:
        spec: the network's. Where `state` shows another number of decoder or encoder layers, that number is taken, and
            one log line says so.
        state: names to arrays (NumPy or torch), as they are or behind the prefix of a wrapper, such as ``module.``
            (DataParallel, DDP, AveragedModel), ``_orig_mod.`` (torch.compile), ``model.`` (Lightning) or any chain
            of those; names without the prefix are then left out. ``num_batches_tracked`` and ``empty_weight`` may be
            missing, or be there where the network has none.
        source: what errors and the log call it.

    Raises:
        WeightsError: a name or shape is not the network's, or a value is not finite; the text names the first ones.
    """
    given = state
    state = _without_prefix(given, source)
    found = _with_depth_of(spec, state, source)
    expected = state_shapes(found)
    used = _without_unused_maps(found, state)
    if problem := _mismatch(expected, used):
        raise WeightsError(
            f"{source} does not fit {spec.name}: {problem}.{_about_names(given, state)}{_guess(spec, state)}"
        )
    checked: State = {}
    for key, shape in expected.items():
        if is_optional(key) and (key not in used or _shape(used[key]) != shape):
            checked[key] = _default(key, shape, found)
        else:
            checked[key] = _float32(key, used[key], source)
    for kind, field in (
        ("decoder", "transformer_predictor_dec_layers"),
        ("encoder", "pixel_decoder_transformer_layers"),
    ):
        before, now = getattr(spec.config, field), getattr(found.config, field)
        if before != now:
            _log.warning(
                "%s: %s has %d %s layers, not %d: taking %d", spec.name, source, now, kind, before, now
            )
    return checked, found


def _own(spec: ModelSpec) -> str | Path:
    """Where the weights are that belong to the model."""
    if spec.weights_path is not None:
        return Path(spec.weights_path)
    if spec.bundled_weights is not None:
        return bundled_path(spec.bundled_weights)
    if spec.weights_url is not None:
        return spec.weights_url
    if spec.weights_problem is not None:
        raise WeightsError(f"weights: {spec.name} has none of its own: {spec.weights_problem}")
    raise WeightsError(
        f"weights: {spec.name} has none of its own; pass a path, an address, a state dict, or 'random' as weights="
    )


def _located_state(spec: ModelSpec, state: Mapping[str, Any]) -> Located:
    source = "the given state dict"
    checked, found = check_state(spec, state_in(state, source), source)
    digest = hashlib.sha256()
    for key, value in checked.items():
        digest.update(f"{key}{value.shape}".encode())
        digest.update(value.data)
    weights = Weights(checked, found, source, digest.hexdigest())
    return Located(spec, source, weights.sha256, None, lambda: weights)


def _located_random(spec: ModelSpec) -> Located:
    import importlib.metadata

    source = f"random, seed {RANDOM_SEED}"
    try:
        version = importlib.metadata.version("torch")  # importing it only to name it takes seconds
    except importlib.metadata.PackageNotFoundError as error:
        raise without_torch('weights="random"', error) from None
    said = json.dumps([source, version, spec.to_dict()], sort_keys=True)
    sha256 = hashlib.sha256(said.encode()).hexdigest()

    def read() -> Weights:
        torch = import_torch('weights="random"')
        from fai_fast import reference

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            state = reference.build(spec).state_dict()
        checked, found = check_state(spec, state, source)
        return Weights(checked, found, source, sha256)

    return Located(spec, source, sha256, None, read)


def _located_file(spec: ModelSpec, path: Path, folder: Path) -> Located:
    if not path.is_file():
        problem = "is a folder, expected a file" if path.is_dir() else f"does not exist{_meant(path)}"
        raise WeightsError(f"weights: {redacted(str(path))} {problem}")
    try:
        sha256 = cache.remembered_sha256(path, folder)
    except OSError as error:
        if not explained(error):
            raise
        raise WeightsError(f"weights: {path} cannot be read: {error.strerror}") from None
    return Located(spec, str(path), sha256, path, lambda: _checked_file(spec, path, str(path), sha256))


def _meant(path: Path) -> str:
    """A word that is nearly "random" is no file that somebody forgot."""
    text = str(path)
    near = text != "random" and difflib.get_close_matches(text.casefold(), ["random"], cutoff=0.7)
    return "; did you mean 'random'?" if near else ""


def _checked_file(spec: ModelSpec, path: Path, source: str, sha256: str) -> Weights:
    content = read_file(path)
    # What is made of them is kept under this hash, which may have been taken long ago.
    if cache.sha256_of(path) != sha256:
        raise Unreadable(
            f"weights: {path} changed while it was in use, or is damaged: it is not what its hash was taken of; put "
            "the right file there, or touch it if this is the one, and start again"
        )
    state, found = check_state(spec, content, source)
    return Weights(state, found, source, sha256)


def _located_url(spec: ModelSpec, url: str, folder: Path, progress: bool) -> Located:
    from fai_fast import download  # with it comes Python's HTTP, which few starts need

    path = download.cached_path(url, folder)
    source = f"{redacted(url)} (in {path})"
    record = _fetched(url, path, progress)
    sha256 = cache.remembered_sha256(path, folder) if record is None else record.sha256

    def read() -> Weights:
        try:
            weights = _checked_file(spec, path, source, sha256)
        except Unreadable as error:
            if record is None:
                raise WeightsError(f"{error}; replace it, or delete it to have it downloaded") from None
            if cache.sha256_of(path) == sha256:
                raise WeightsError(f"{error}; delete it to have it downloaded again, it came so") from None
            _log.warning("%s is corrupt (%s): downloading it again", path, error)
            try:
                path.unlink(missing_ok=True)
            except OSError as refused:
                raise WeightsError(cache.explain(refused, path.parent)) from refused
            return _located_url(spec, url, folder, progress).read()
        if record is None:
            _keep_record(path, url)
        return weights

    return Located(spec, source, sha256, path, read)


def _fetched(url: str, path: Path, progress: bool) -> cache.Record | None:
    """The record of the whole file at `path`, downloaded where needed; None for a file that somebody put there."""
    from fai_fast import download

    record, problem = _kept(path)
    if problem is None:
        return record
    try:
        with cache.lock(path, "downloads"):
            record, problem = _kept(path)
            if problem is None:
                return record
            if problem:
                _log.warning("%s is corrupt (%s): downloading it again", path, problem)
            return download.download(url, path, progress=progress, problem=file_problem)
    except OSError as error:
        if not explained(error):
            raise
        raise WeightsError(cache.explain(error, path.parent)) from error


def _kept(path: Path) -> tuple[cache.Record | None, str | None]:
    """The record of a file that can be trusted; with why not: None if it can be, '' if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None, ""
    try:
        record = cache.Record.read(cache.record_path(path))
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as error:
        if not explained(error, "json"):
            raise
        return None, f"its record is unreadable: {error}"
    if status.st_size != record.size:
        return None, f"{status.st_size} bytes, expected {record.size}"
    # Hashing hundreds of megabytes at every start would take longer than the rest of it.
    if status.st_mtime_ns != record.info.get("mtime_ns") and cache.sha256_of(path) != record.sha256:
        return None, "its SHA-256 is not the one on record"
    return record, None


def _keep_record(path: Path, url: str) -> None:
    """A file that was put there by hand and fits is from now on checked like a downloaded one."""
    info = {"url": redacted(url), "by_hand": True, "mtime_ns": path.stat().st_mtime_ns}
    try:
        with cache.lock(path, "records"):
            cache.remove_leftovers(path)
            cache.Record.of(path, {"url": redacted(url)}, info).write(cache.record_path(path))
    except OSError as error:
        _log.info("no record of %s is kept: %s", path, error.strerror)


def _without_prefix(state: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """The network's own names, without what wrappers put before them: "module.", "_orig_mod.", "model.", ..."""
    if not state:
        raise WeightsError(f"{source} is empty")
    if not all(isinstance(key, str) for key in state):
        raise WeightsError(f"{source} has a key that is no str, expected names of parameters")
    prefixes = [key.removesuffix(_ANCHOR) for key in state if key.endswith(_ANCHOR)]
    prefixes = [prefix for prefix in prefixes if prefix == "" or prefix.endswith(".")]
    if not prefixes or "" in prefixes:
        return state
    if len(prefixes) > 1:
        shown = ", ".join(map(repr, prefixes[:5]))
        raise WeightsError(
            f"{source} holds {len(prefixes)} networks, whose names begin with {shown}; pass one of them as a state "
            f"dict: weights={{k.removeprefix({prefixes[0]!r}): v for k, v in state.items() if "
            f"k.startswith({prefixes[0]!r})}}"
        )
    [prefix] = prefixes
    if others := [key for key in state if not key.startswith(prefix)]:
        _log.info(
            "%s: of its names those that begin with %r are the network's; %d others are left out: %s",
            source,
            prefix,
            len(others),
            ", ".join(others[:5]),
        )
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _about_names(given: Mapping[str, Any], taken: Mapping[str, Any]) -> str:
    """What an error says of the prefix of all names of a state, of which `taken` are those without one."""
    if len(taken) < len(given) or taken.keys() != given.keys():
        prefix = next(key for key in given if key.endswith(_ANCHOR)).removesuffix(_ANCHOR)
        others = [key for key in given if not key.startswith(prefix)]
        left = f", and {len(others)} others were left out: {', '.join(others[:3])}" if others else ""
        return f" Its names were taken without {prefix!r}{left}."
    parts = [key.split(".")[:-1] for key in given]
    shared = list(takewhile(lambda same: len(set(same)) == 1, zip(*parts, strict=False)))
    return f" All its names begin with {'.'.join(same[0] for same in shared)!r}." if shared else ""


def _with_depth_of(spec: ModelSpec, state: Mapping[str, Any], source: str) -> ModelSpec:
    decoder = _layers(_DECODER_LAYER, state)
    encoder = _layers(_ENCODER_LAYER, state) if spec.family == "fai_mf" else 0
    if max(decoder, encoder) > _MAX_LAYERS:
        raise WeightsError(
            f"{source} has a layer with the number {max(decoder, encoder) - 1}, expected at most {_MAX_LAYERS}"
        )
    if not decoder:  # no checkpoint of such a network: its depth would say nothing
        return spec
    try:
        config = dataclasses.replace(
            own_config(spec),
            transformer_predictor_dec_layers=decoder,
            pixel_decoder_transformer_layers=encoder,
        )
        return dataclasses.replace(spec, config=config)
    except ValueError as error:  # a width that the encoder of the checkpoint could not have
        raise WeightsError(f"{source} does not fit {spec.name}: {error}") from None


def _without_unused_maps(spec: ModelSpec, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without what makes tokens of the maps that a decoder of fewer layers than maps never gets to."""
    unused = tuple(
        f"head.predictor.input_proj.{level}." for level in range(decoder_levels(spec), MAPS[spec.family])
    )
    return {key: value for key, value in state.items() if not key.startswith(unused)}


def _layers(pattern: re.Pattern[str], state: Mapping[str, Any]) -> int:
    return max((int(match[1]) + 1 for key in state if (match := pattern.match(key))), default=0)


def _mismatch(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Any]) -> str:
    """What of `state` is not as expected, the first few of each kind; empty if all is."""
    missing = [key for key in expected if key not in state and not is_optional(key)]
    unknown = [key for key in state if key not in expected and not is_optional(key)]
    shapes = [
        f"{key} is {_shape(state[key])}, expected {shape}"
        for key, shape in expected.items()
        if key in state and not is_optional(key) and _shape(state[key]) != shape
    ]
    parts = []
    for what, items in (("missing", missing), ("not of the network", unknown), ("of another shape", shapes)):
        if items:
            more = f" and {len(items) - 3} more" if len(items) > 3 else ""
            parts.append(f"{what}: {', '.join(items[:3])}{more}")
    return "; ".join(parts)


def _guess(given: ModelSpec, state: Mapping[str, Any]) -> str:
    """Which model's weights they are, if they are those of another one."""
    for name in models():
        other = spec(name)
        if name != given.name and not _mismatch(state_shapes(_with_depth_of(other, state, name)), state):
            return f" They fit {name}."
    return ""


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", np.shape(value)))


def _default(key: str, shape: tuple[int, ...], spec: ModelSpec) -> npt.NDArray[np.float32]:
    value = np.zeros(shape, np.float32)
    if key.endswith("empty_weight"):
        value[:] = 1
        value[-1] = own_config(spec).criterion_eos_coef
    return value


def _float32(key: str, value: Any, source: str) -> npt.NDArray[np.float32]:
    if type(value).__module__.partition(".")[0] == "torch":
        # Others have no values of their own (meta), or not all of them (sparse), or in units of theirs (quantized).
        kind = "meta" if value.is_meta else "quantized" if value.is_quantized else str(value.layout)
        if kind != "torch.strided":
            raise WeightsError(
                f"{source}: {key} is a tensor of kind {kind}, expected a dense one with values"
            )
        value = value.detach().cpu()
        # NumPy has no bfloat16.
        value = (value.float() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind != "f" and not (is_optional(key) and array.dtype.kind in "iu"):
        raise WeightsError(
            f"{source}: {key} is {array.dtype}, expected floating point (quantized ones are not supported)"
        )
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32).reshape(array.shape)
    if not np.isfinite(array).all():
        raise WeightsError(f"{source}: {key} has values that are NaN or infinite; the checkpoint is damaged")
    if key.endswith("running_var") and array.size and array.min() < 0:
        raise WeightsError(
            f"{source}: {key} has negative values, which no variance has; the checkpoint is damaged"
        )
    return array
