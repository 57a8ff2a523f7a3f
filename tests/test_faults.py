"""What goes wrong around the library: disks, killed processes, files from strangers. Each is an error, or heals."""

from __future__ import annotations

import ast
import errno
import http.server
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import cache
from fai_fast.errors import WeightsError
from fai_fast.registry import load_spec
from fai_fast.weights import load_weights
from PIL import Image

ROOT = Path(fai_fast.__file__).parent
NAME = "fai-mf-n-shapes"
SAMPLE = ROOT / "registry" / "samples" / "shapes.jpg"
WEIGHTS = ROOT / "registry" / "weights" / f"{NAME}.safetensors"

# Without torch, as most who run it have it, which also spares seconds; prints what the next start must find.
CHILD = """
import sys
sys.modules["torch"] = None
import hashlib
import fai_fast
folder, weights, sample = sys.argv[1:]
options = {"num_threads": 1, "precision": "fp32"}
print("begins", flush=True)
with fai_fast.load("fai-mf-n-shapes", weights=weights or None, cache_dir=folder, **options) as model:
    found = model.infer(sample)
said = hashlib.sha256(found.confidence.tobytes() + found.mask.tobytes()).hexdigest()
print("found", said, flush=True)
"""


def start(folder: Path, weights: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), weights, str(SAMPLE)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_PROXY": "*", "no_proxy": "*"},
    )


def found(process: subprocess.Popen[str]) -> str:
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return said.split()[-1]


def load(folder: Path) -> fai_fast.Model:
    """In float32 on every machine: what a CPU has besides is for test_precision.py."""
    return fai_fast.load(NAME, cache_dir=folder, precision="fp32")


def strays(folder: Path) -> list[str]:
    """Files of the cache that nobody will ever use."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and (path.name.startswith(".tmp-") or path.suffix == cache.PARTIAL_SUFFIX)
    )


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> Path:
    """A cache with everything in it, to copy."""
    folder = tmp_path_factory.mktemp("ready")
    load(folder).close()
    return folder


@pytest.fixture(scope="module")
def expected(ready):
    with load(ready) as model:
        return model.infer(SAMPLE)


@pytest.fixture
def copy(ready, tmp_path) -> Path:
    shutil.copytree(ready, tmp_path / "cache")
    return tmp_path / "cache"


# Pictures


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_a_truncated_picture_costs_its_own_frame_only(ready, expected, tmp_path, form, share):
    path = tmp_path / f"cut.{form.lower()}"
    with Image.open(SAMPLE) as picture:
        picture.convert("RGB").save(path, form)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with load(ready) as model:
        with pytest.raises(ValueError, match=r"image: .*cut\.(jpeg|png) is (damaged|no picture)"):
            model.infer(path)
        with pytest.raises(ValueError, match="image: "):
            model.submit(path.read_bytes()).result()
        assert model.infer(SAMPLE) == expected


# The cache's folder


@pytest.mark.parametrize("failing", [2, 3, 5])
def test_a_disk_that_gets_full_in_the_middle_is_an_error_and_heals(tmp_path, monkeypatch, expected, failing):
    """The n-th file or record does not fit any more; the first is a remembered hash, without which it goes on."""
    count, real = 0, cache._sync

    def full(path: Path) -> None:
        nonlocal count
        count += 1
        if count == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path)

    monkeypatch.setattr(cache, "_sync", full)
    with pytest.raises(fai_fast.FaiFastError, match=r"no space left for .*FAI_FAST_CACHE"):
        load(tmp_path)
    assert count == failing
    assert strays(tmp_path) == []
    with load(tmp_path) as model:
        assert model.infer(SAMPLE) == expected


def test_a_cache_that_is_deleted_under_a_running_model_is_made_again(copy, expected):
    with load(copy) as model:
        shutil.rmtree(copy)
        assert model.infer(SAMPLE) == expected
        with load(copy) as again:
            assert again.infer(SAMPLE) == expected
        assert model.submit(SAMPLE).result() == expected


@pytest.mark.parametrize("suffix", [".json", ""])
def test_foreign_files_in_the_places_of_ours_are_replaced(copy, expected, suffix):
    """Records, and files beside records that do not describe them; test_cache.py has more kinds of them."""
    for kept in cache.list_artefacts(copy):
        (cache.record_path(kept.path) if suffix else kept.path).write_bytes(b"not what you think\n")
    with load(copy) as model:
        assert model.infer(SAMPLE) == expected
        assert all("built: " in text for text in model.info()["artefacts"].values())


def test_foreign_files_beside_ours_are_left_alone(copy, expected):
    folder = next(iter(cache.list_artefacts(copy))).path.parent
    mine = [folder / "notes.txt", copy / "README", folder / ".hidden", folder / "half.onnx.part"]
    for path in mine:
        path.write_text("mine")
    with load(copy) as model:
        assert model.infer(SAMPLE) == expected
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)


@pytest.mark.parametrize("where", ["file", "record", "lock", "folder"])
def test_what_cannot_be_replaced_is_a_clear_error(copy, where):
    kept = next(item for item in cache.list_artefacts(copy) if item.path.suffix == ".onnx")
    if where == "folder":
        shutil.rmtree(kept.path.parent)
        kept.path.parent.write_text("a file")
    else:
        target = {
            "file": kept.path,
            "record": cache.record_path(kept.path),
            "lock": cache.lock_path(kept.path),
        }
        target[where].unlink(missing_ok=True)
        target[where].mkdir()
        (target[where] / "inside").touch()
        if where == "lock":
            kept.path.unlink()
    with pytest.raises(fai_fast.FaiFastError, match=r"cannot write to .*FAI_FAST_CACHE"):
        load(copy)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_used_or_named(copy, expected, tmp_path):
    folders = [copy, *(path for path in copy.rglob("*") if path.is_dir())]
    try:
        for folder in folders:
            folder.chmod(0o500)
        with load(copy) as model:
            assert model.infer(SAMPLE) == expected
        with pytest.raises(fai_fast.FaiFastError, match=r"cannot write to .*FAI_FAST_CACHE"):
            fai_fast.load(NAME, cache_dir=copy, im_size=128, precision="fp32")
    finally:
        for folder in folders:
            folder.chmod(0o700)


# Processes


def test_two_processes_make_the_same_model_at_once(tmp_path):
    both = [start(tmp_path), start(tmp_path)]
    results = [found(process) for process in both]
    assert results[0] == results[1]
    assert strays(tmp_path) == []
    assert {path.path.suffix for path in cache.list_artefacts(tmp_path)} >= {".onnx", ".blob"}


class Handler(http.server.BaseHTTPRequestHandler):
    """The weights, slowly, and any part of them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        content, first = WEIGHTS.read_bytes(), 0
        if wanted := self.headers.get("Range"):
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        piece = -(-len(content) // 20)
        try:
            for begin in range(first, len(content), piece):
                self.wfile.write(content[begin : begin + piece])
                time.sleep(0.02)
        except OSError:  # the client was killed
            self.close_connection = True


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/models/shapes/model_final.safetensors"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_a_process_killed_at_any_moment_leaves_nothing_in_the_way(tmp_path, address, kills):
    """Download, export, verification and build of one start, killed at moments spread over all of it.

    Every other start goes on with what the killed one left; the others begin with an empty cache.
    """
    clean = start(tmp_path / "clean", address)
    assert clean.stdout is not None
    clean.stdout.readline()
    began = time.monotonic()
    expected = found(clean)
    # Of a start with an empty cache, and of one that goes on. A machine's speed changes: the last that came to its end
    # says how long one takes now.
    whole = [time.monotonic() - began] * 2

    moments = random.Random(0)
    folder = tmp_path / "killed"
    killed = 0
    for number in range(kills):
        if number % 2 == 0:
            shutil.rmtree(folder, ignore_errors=True)
        process = start(folder, address)
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        try:
            process.wait((number + moments.random()) / kills * whole[number % 2])
            whole[number % 2] = time.monotonic() - began
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        said, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        assert not said or said.split() == ["found", expected]
        if number % (10 if kills > 20 else 3) != 2:
            continue
        survivor = tmp_path / "survivor"
        if folder.exists():
            shutil.copytree(folder, survivor)
        assert found(start(survivor, address)) == expected
        assert strays(survivor) == []
        shutil.rmtree(survivor)
    assert killed >= kills // 2
    assert found(start(folder, address)) == expected
    assert strays(folder) == []


# Files from outside are data


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_nothing_in_the_package_can_run_code_from_a_file():
    seen = 0
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        modules = {
            name.split(".")[0]
            for node in ast.walk(tree)
            for name in (
                [item.name for item in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
        }
        assert not modules & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}, path
        for call in calls(tree):
            name = ast.unparse(call.func)
            given = {item.arg: ast.unparse(item.value) for item in call.keywords}
            assert name not in ("eval", "exec", "torch.jit.load", "torch.hub.load", "os.system"), (
                f"{path}: {name}"
            )
            assert given.get("allow_pickle", "False") == "False", f"{path}: {name}"
            assert given.get("shell", "False") == "False", f"{path}: {name}"
            if name == "torch.load":
                seen += 1
                assert given.get("weights_only") == "True", f"{path}: torch.load without weights_only=True"
    assert seen > 0


def test_archives_are_never_unpacked_to_paths_of_their_own():
    for path in sorted(ROOT.rglob("*.py")):
        for call in calls(ast.parse(path.read_text("utf-8"))):
            name = ast.unparse(call.func).rpartition(".")[2]
            assert name not in ("extractall", "extract", "unpack_archive"), f"{path}: {name}"


# What FocoosAI's library writes, as far as it is needed.
FOCOOS = {
    "name": "mine",
    "model_family": "fai_mf",
    "classes": ["a"],
    "im_size": 64,
    "task": "instseg",
    "config": {"num_classes": 1, "backbone_config": {"model_type": "stdc", "base": 64, "layers": [4, 5, 3]}},
}
HOSTILE = {
    "up": "../../outside",
    "absolute": "/tmp/outside",
    "windows": "..\\..\\outside",
    "drive": "C:\\outside",
    "dots": "..",
    "dot": ".",
    "nul": "a\0b",
    "newline": "a\nb",
    "long": "n" * 5000,
    "home": "~/outside",
    "reserved": "\u202egnp.exe",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_model_may_be_called_anything_and_stays_in_the_cache(tmp_path, name):
    """Its record either is refused, or all that is made of it lies in the cache, under a name that can be written."""
    from fai_fast._artefacts import model_folder

    record = load_spec(NAME).to_dict()
    try:
        spec = load_spec({**record, "name": name})
    except ValueError:
        return
    folder = model_folder(spec, tmp_path / "cache")
    assert folder.parent == tmp_path / "cache" / "models"
    folder.mkdir(parents=True)
    assert folder.resolve() == tmp_path.resolve() / "cache" / "models" / folder.name


@pytest.mark.parametrize("uri", [value for value in HOSTILE.values() if value not in (".", "a\nb")])
def test_a_model_info_names_no_weights_outside_its_folder(tmp_path, uri):
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside")
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    record = {**FOCOOS, "weights_uri": uri}
    (folder / "model_info.json").write_text(json.dumps(record))
    spec = load_spec(folder)
    assert spec.weights_path is None
    # A folder without weights is a model still, for whoever passes some.
    with pytest.raises(WeightsError, match=rf"weights: .*{re.escape(str(folder))}"):
        load_weights(spec)


def test_a_symbolic_link_is_no_way_out(tmp_path):
    """A link as weights in the user's own folder is the user's; one in the cache is replaced, never written through."""
    outside = tmp_path / "outside.txt"
    outside.write_text("precious")
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in ("a.txt", "a.txt.json"):
        (folder / name).symlink_to(outside)
    kept = cache.artefact(folder / "a.txt", {}, lambda path: path.write_text("ours") and None)
    assert kept.built
    assert outside.read_text() == "precious"
    assert not (folder / "a.txt").is_symlink()
    assert (folder / "a.txt").read_text() == "ours"
    assert not (folder / "a.txt.json").is_symlink()


JSON_BOMBS = {
    "deep": "[" * 200_000,
    "deep object": '{"a":' * 200_000,
    "big number": '{"im_size": ' + "9" * 5000 + "}",
    "infinite": '{"im_size": Infinity}',
    "twice": '{"name": 1, "name": 2}',
    "surrogate": '{"name": "\\ud800"}',
    "nothing": "",
}


@pytest.mark.parametrize("text", JSON_BOMBS.values(), ids=JSON_BOMBS)
def test_hostile_json_is_a_clear_error(tmp_path, text):
    path = tmp_path / "model_info.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"model_info\.json"):
        load_spec(tmp_path)


def test_a_model_info_of_absurd_length_is_not_read(tmp_path):
    with (tmp_path / "model_info.json").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(ValueError, match="8589934592 bytes are not a model_info"):
        load_spec(tmp_path)


GRAPH_LIES = {
    "no metadata": {},
    "no json": {"spec": "not json"},
    "deep": {"spec": "[" * 200_000},
    "size of text": {"im_size": '["a", "b"]'},
    "size of three": {"im_size": "[64, 64, 64]"},
    "size without end": {"im_size": "[1073741824, 1073741824]"},
    "negative size": {"im_size": "[-64, 64]"},
    "batch of text": {"batch": '"two"'},
    "batch without end": {"batch": "1000000000"},
    "batch of none": {"batch": "0"},
    "unknown precision": {"precision": '"int3"'},
    "precision of number": {"precision": "7"},
    "hash of number": {"weights_sha256": "7"},
    "spec of list": {"spec": "[]"},
    "spec that is hostile": {"spec": '{"name": "../../x"}'},
}


@pytest.mark.parametrize("lies", GRAPH_LIES.values(), ids=GRAPH_LIES)
def test_a_graph_that_lies_about_itself_is_refused(ready, tmp_path, lies):
    onnx = pytest.importorskip("onnx")
    graph = next(item.path for item in cache.list_artefacts(ready) if item.path.suffix == ".onnx")
    model = onnx.load(graph)
    # Without its checksum, which would find any lie before what else is checked.
    for item in [x for x in model.metadata_props if x.key in ("fai_fast.sha256", "fai_fast.checksummed")]:
        model.metadata_props.remove(item)
    keys = {item.key.rpartition(".")[2]: item for item in model.metadata_props}
    if not lies:
        del model.metadata_props[:]
    for key, value in lies.items():
        keys[key].value = value
    path = tmp_path / "lying.onnx"
    onnx.save(model, path)
    with pytest.raises((ValueError, fai_fast.FaiFastError), match=r"lying\.onnx"):
        fai_fast.load(path, cache_dir=tmp_path / "cache").close()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 0.999])
def test_a_truncated_graph_is_refused(ready, tmp_path, share):
    graph = next(item.path for item in cache.list_artefacts(ready) if item.path.suffix == ".onnx")
    path = tmp_path / "cut.onnx"
    path.write_bytes(graph.read_bytes()[: int(share * graph.stat().st_size)])
    with pytest.raises((ValueError, fai_fast.FaiFastError), match=r"cut\.onnx"):
        fai_fast.load(path, cache_dir=tmp_path / "cache").close()


def test_a_graph_may_not_bring_files_from_elsewhere(ready, tmp_path):
    """ONNX can keep tensors in other files, whose paths come from the graph."""
    onnx = pytest.importorskip("onnx")
    graph = next(item.path for item in cache.list_artefacts(ready) if item.path.suffix == ".onnx")
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.ones(1 << 20, np.float32).tobytes())
    model = onnx.load(graph)
    tensor = max(model.graph.initializer, key=lambda item: len(item.raw_data))
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret.bin"), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "reaching.onnx").write_bytes(model.SerializeToString())
    with pytest.raises((ValueError, fai_fast.FaiFastError), match=r"reaching\.onnx"):
        fai_fast.load(folder / "reaching.onnx", cache_dir=tmp_path / "cache").close()
