"""CPU engines: what they compute, where they write it, how they share, end and fail."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import weakref
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import _gate
from fai_fast._pictures import Pictures
from fai_fast.engines import cpu, precision, select
from fai_fast.engines import onnxruntime as ort_engine
from fai_fast.engines import openvino as ov_engine
from fai_fast.engines.base import TensorSpec
from fai_fast.errors import EngineError
from helpers.networks import small_spec
from helpers.onnx_graphs import COLUMNS, NAMES, QUERIES, graph, truth
from helpers.processes import complaints

onnx = pytest.importorskip("onnx")

INSTALLED = [name for name in select.CPU_ENGINES if importlib.util.find_spec(name)]
LONG = 60  # seconds that nothing here comes near: only a hang does


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def file(folder):
    """Writes graph(...) once for all tests."""

    def write(**options):
        path = folder / ("-".join(f"{k}_{v}" for k, v in options.items()) + "graph.onnx")
        if not path.exists():
            onnx.save(graph(**options)[0], path)
        return path

    return write


@pytest.fixture(params=select.CPU_ENGINES)
def engine_module(request):
    if request.param not in INSTALLED:
        pytest.skip(f"{request.param} is not installed")
    return select.module(request.param)


def image(port, seed=0):
    return np.random.default_rng(seed).normal(size=port.shape).astype(port.dtype)


def arrays(engine):
    return {port.name: np.full(port.shape, np.nan, port.dtype) for port in (*engine.inputs, *engine.outputs)}


def run_script(script, **environment):
    """The output of a Python process that must end well and print no errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
        env={**os.environ, **environment},
    )
    assert (done.returncode, complaints(done.stderr)) == (0, [])
    return done.stdout


# What it computes, and where


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3)])
@pytest.mark.parametrize("batch", [1, 3])
def test_outputs_are_right_and_in_the_given_arrays(engine_module, file, dtype, tolerance, batch):
    engine = engine_module.load(file(dtype=dtype, batch=batch))
    assert engine.inputs == (TensorSpec("images", dtype, (batch, 3, 32, 32)),)
    assert engine.outputs == (
        TensorSpec("mask_logits", dtype, (batch, QUERIES, 8, 8)),
        TensorSpec("class_logits", dtype, (batch, QUERIES, COLUMNS)),
    )
    given = arrays(engine)
    context = engine.context(**given)
    assert all(getattr(context, name) is given[name] for name in NAMES)
    weights = {name: array.astype(dtype) for name, array in graph(batch=batch)[1].items()}
    for seed in range(3):
        given["images"][...] = image(engine.inputs[0], seed)
        given["mask_logits"][...] = given["class_logits"][...] = np.nan
        context.run()
        masks, classes = truth(given["images"], weights)
        np.testing.assert_allclose(given["mask_logits"], masks, atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(given["class_logits"], classes, atol=tolerance, rtol=tolerance)
    engine.close()


def _cosine_attention():
    """Attention as of Swin v2, queries and keys of length one, with as many heads as places: four."""
    weights = np.random.default_rng(0).normal(size=(3, 3, 8)).astype(np.float32)
    make = onnx.helper.make_node
    nodes = [
        make("AveragePool", ["images"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        make("Reshape", ["pooled", "flat"], ["channels"]),
        make("Transpose", ["channels"], ["places"], perm=[0, 2, 1]),
    ]
    for index, name in enumerate("qkv"):
        nodes += [
            make("MatMul", ["places", f"w{index}"], [f"{name}_flat"]),
            make("Reshape", [f"{name}_flat", "heads"], [f"{name}_heads"]),
            make("Transpose", [f"{name}_heads"], [name], perm=[0, 2, 1, 3]),
        ]
    for name in "qk":
        nodes += [
            make("ReduceL2", [name, "last"], [f"{name}_length"], keepdims=1),
            make("Clip", [f"{name}_length", "least"], [f"{name}_least"]),
            make("Expand", [f"{name}_least", "heads"], [f"{name}_divisor"]),
            make("Div", [name, f"{name}_divisor"], [f"{name}_normal"]),
        ]
    nodes += [
        make("Transpose", ["k_normal"], ["keys"], perm=[0, 1, 3, 2]),
        make("MatMul", ["q_normal", "keys"], ["similar"]),
        make("Mul", ["similar", "scale"], ["scaled"]),
        make("Softmax", ["scaled"], ["shares"], axis=-1),
        make("MatMul", ["shares", "v"], ["attended"]),
        make("Transpose", ["attended"], ["mask_logits"], perm=[0, 2, 1, 3]),
        make("Neg", ["places"], ["class_logits"]),
    ]
    constants = {
        **{f"w{index}": value for index, value in enumerate(weights)},
        "flat": np.array([1, 3, 4]),
        "heads": np.array([1, 4, 4, 2]),
        "last": np.array([-1]),
        "least": np.array(1e-12, np.float32),
        "scale": np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1),
    }
    sides = {"images": (1, 3, 16, 16), "mask_logits": (1, 4, 4, 2), "class_logits": (1, 4, 3)}
    kind = onnx.TensorProto.FLOAT
    ports = [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in sides.items()]
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = onnx.helper.make_graph(nodes, "attention", ports[:1], ports[1:], tensors)
    return onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    ), weights


def test_attention_of_as_many_heads_as_places(engine_module, tmp_path):
    model, weights = _cosine_attention()
    onnx.save(model, tmp_path / "attention.onnx")
    engine = engine_module.load(tmp_path / "attention.onnx")
    context = engine.context()
    context.images[...] = image(engine.inputs[0])
    context.run()
    places = context.images.astype(np.float64).reshape(3, 2, 8, 2, 8).mean((2, 4)).reshape(3, 4).T
    queries, keys, values = (places @ weights).reshape(3, 4, 4, 2).transpose(0, 2, 1, 3)
    queries, keys = (item / np.linalg.norm(item, axis=-1, keepdims=True) for item in (queries, keys))
    shares = np.exp(queries @ keys.transpose(0, 2, 1) * np.arange(1, 5).reshape(4, 1, 1))
    attended = shares / shares.sum(-1, keepdims=True) @ values
    np.testing.assert_allclose(context.mask_logits[0], attended.transpose(1, 0, 2), atol=1e-5)
    engine.close()


def test_arrays_that_are_not_given_are_made(engine_module, file):
    engine = engine_module.load(file())
    mask_logits = np.full(engine.outputs[0].shape, np.nan, np.float32)
    context = engine.context(mask_logits=mask_logits)
    assert context.mask_logits is mask_logits
    for port in (engine.inputs[0], engine.outputs[1]):
        array = getattr(context, port.name)
        assert (array.shape, array.dtype) == (port.shape, port.dtype)
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0
        assert not array.any()
    context.images[...] = image(engine.inputs[0])
    context.run()
    np.testing.assert_allclose(mask_logits, truth(context.images, graph()[1])[0], atol=1e-5)


def test_a_run_allocates_nothing(engine_module, file):
    engine = engine_module.load(file(side=256))
    context = engine.context()
    for _ in range(3):
        context.run()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            context.run()
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A copy of the smaller tensor that is worth copying is 98 kB.
    assert peak - before < 8_000
    assert now - before < 4_000


def test_other_threads_run_meanwhile(engine_module, file):
    context = engine_module.load(file(side=256, depth=3), num_threads=1).context()
    progress, running = 0, True
    pause = threading.Event()

    def other():
        nonlocal progress
        while running:
            progress += 1
            pause.wait(0.0005)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=other)
    thread.start()
    try:
        # The interpreter now never takes the lock from a thread that does not give it up.
        sys.setswitchinterval(1000)
        advanced = 0
        for _ in range(100):
            before = progress
            context.run()
            advanced = max(advanced, progress - before)
            if advanced >= 3:
                break
    finally:
        sys.setswitchinterval(interval)
        running = False
        thread.join()
    assert advanced >= 3


def bad_arrays(port):
    good = np.zeros(port.shape, port.dtype)
    readonly = good.copy()
    readonly.flags.writeable = False
    misaligned = np.zeros(good.nbytes + 1, np.uint8)[1:].view(port.dtype).reshape(port.shape)
    wide = np.zeros((*port.shape[:-1], 2 * port.shape[-1]), port.dtype)
    return [
        (good.tolist(), TypeError, "got list, expected a NumPy array"),
        (good.astype(np.float64), TypeError, "got dtype float64, expected float32"),
        (good.astype(">f4"), TypeError, "got dtype >f4, expected float32"),
        (good[0], ValueError, "expected (1, "),
        (np.concatenate([good, good]), ValueError, "got shape (2, "),
        (readonly, ValueError, "not writeable"),
        (wide[..., ::2], ValueError, "not c_contiguous"),
        (misaligned, ValueError, "not aligned"),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_arrays_that_do_not_fit_are_refused(engine_module, file, name):
    engine = engine_module.load(file())
    port = next(port for port in (*engine.inputs, *engine.outputs) if port.name == name)
    for array, error, words in bad_arrays(port):
        with pytest.raises(error) as raised:
            engine.context(**{name: array})
        assert str(raised.value).startswith(f"{name}: ")
        assert words in str(raised.value)
    engine.context(**{name: np.zeros(port.shape, port.dtype)}).run()


def test_arrays_that_overlap_are_refused(engine_module, file):
    engine = engine_module.load(file())
    room = np.zeros(10_000, np.float32)
    images = room[:3072].reshape(1, 3, 32, 32)
    mask_logits = room[3000:3384].reshape(1, QUERIES, 8, 8)
    with pytest.raises(ValueError, match="mask_logits: shares memory with images"):
        engine.context(images=images, mask_logits=mask_logits)
    engine.context(images=images, mask_logits=room[3072:3456].reshape(1, QUERIES, 8, 8)).run()


# Threads, life cycle, fork


def test_contexts_in_several_threads_give_the_same_bits(engine_module, file):
    engine = engine_module.load(file(side=64, depth=2))
    alone = engine.context()
    expected = []
    for seed in range(4):
        alone.images[...] = image(engine.inputs[0], seed)
        alone.run()
        expected.append((alone.mask_logits.tobytes(), alone.class_logits.tobytes()))
    wrong = []

    def work(first):
        context = engine.context()
        for i in range(12):
            seed = (first + i) % 4
            context.images[...] = image(engine.inputs[0], seed)
            context.mask_logits[...] = context.class_logits[...] = np.nan
            context.run()
            if (context.mask_logits.tobytes(), context.class_logits.tobytes()) != expected[seed]:
                wrong.append(seed)

    in_threads(work, range(4))
    assert wrong == []


def test_one_context_in_several_threads_takes_turns(engine_module, file):
    engine = engine_module.load(file(side=64, depth=2))
    context = engine.context()
    context.images[...] = image(engine.inputs[0])
    context.run()
    expected = context.mask_logits.tobytes()
    in_threads(lambda _: [context.run() for _ in range(20)], range(4))
    assert context.mask_logits.tobytes() == expected


def in_threads(work, items):
    """Runs work(item) in a thread for each item; raises what the threads raised."""
    errors = []

    def guarded(item):
        try:
            work(item)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not any(thread.is_alive() for thread in threads)
    for error in errors:
        raise error


def test_close(engine_module, file):
    engine = engine_module.load(file())
    first, second = engine.context(), engine.context()
    first.run()
    first.close()
    first.close()
    with pytest.raises(EngineError, match=f"{engine.name}: the context is closed"):
        first.run()
    second.run()
    images = second.images
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="the context is closed"):
        second.run()
    with pytest.raises(EngineError, match=f"{engine.name}: the engine is closed"):
        engine.context()
    images[...] = 1  # the arrays outlive what was bound to them
    assert engine.info()["engine"] == engine.name


def test_closing_while_other_threads_run(engine_module, file):
    for _ in range(5):
        engine = engine_module.load(file(side=64, depth=2))
        started = threading.Barrier(4)
        ended = []

        def work(_, engine=engine, started=started, ended=ended):
            context = engine.context()
            context.run()
            started.wait()
            try:
                while True:
                    context.run()
            except EngineError as error:
                ended.append(str(error))

        def close(_, engine=engine, started=started):
            started.wait()
            engine.close()

        in_threads(
            lambda job, work=work, close=close: (close if job == "close" else work)(0), ["close", 1, 2, 3]
        )
        assert len(ended) == 3
        assert all("closed" in text for text in ended)


def test_a_context_outlives_its_engine_and_everything_is_freed(engine_module, file):
    engine = engine_module.load(file())
    context = engine.context()
    gone = weakref.ref(engine), weakref.ref(context)
    del engine
    gc.collect()
    context.run()
    del context
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork(engine_module, file):
    """A child is told to load the engine itself, can do so, and may drop what it inherited.

    The engine's own threads are given time to fall asleep: a lock of TBB's that one of them holds while the process
    forks stays locked in the child, which once in some seventy runs waited for it.
    """
    out = run_script(f"""
        import os, time, warnings
        from fai_fast.engines import select
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads

        engines = select.module({engine_module.NAME!r})
        engine = engines.load({str(file())!r})
        context = engine.context()
        context.run()
        time.sleep(0.5)
        child = os.fork()
        if child == 0:
            for use in (context.run, engine.context):
                try:
                    use()
                except Exception as error:
                    print(type(error).__name__, "forked" in str(error), flush=True)
            context.close()
            engine.close()
            del context, engine, use
            engines.load({str(file())!r}).context().run()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        context.run()
        """)
    assert out == "EngineError True\nEngineError True\n0\n"


def test_quiet_and_private(engine_module, file, tmp_path):
    """Nothing is printed, no thread is left, and the engines' telemetry leaves nothing in the home folder."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(file().read_bytes()[:200])
    home = tmp_path / "home"
    home.mkdir()
    out = run_script(
        f"""
        import sys, threading
        from fai_fast.engines import select
        from fai_fast.errors import EngineError
        assert not {{"openvino", "onnxruntime"}} & set(sys.modules)

        engines = select.module({engine_module.NAME!r})
        engine = engines.load({str(file())!r})
        engine.context().run()
        try:
            engines.load({str(broken)!r})
        except EngineError:
            print(threading.enumerate() == [threading.main_thread()], "openvino_telemetry" in sys.modules)
        """,
        HOME=str(home),
    )
    assert out == "True False\n"
    assert list(home.rglob("*")) == []


def test_openvino_comes_without_its_converter_until_somebody_asks(file):
    """Which takes longer to import than all the rest of it, and would report to its makers."""
    out = run_script(
        f"""
        import sys
        from fai_fast.engines import openvino as engine

        module = engine.package()
        print("openvino.tools.ovc" in sys.modules, "openvino_telemetry" in sys.modules)
        from openvino import convert_model
        print(convert_model({str(file())!r}).inputs[0].get_any_name(), module.convert_model is convert_model)
        print("openvino_telemetry" in sys.modules, hasattr(module, "convert_nothing"))
        """
    )
    assert out == "False False\nimages True\nFalse False\n"


def test_an_openvino_that_needs_its_converter_is_imported_with_it(tmp_path):
    """As a later version may."""
    tools = tmp_path / "openvino" / "tools" / "ovc"
    tools.mkdir(parents=True)
    (tools / "__init__.py").write_text("convert_model = 1\n")
    (tmp_path / "openvino" / "__init__.py").write_text("from openvino.tools.ovc import convert_model\n")
    out = run_script(
        """
        from fai_fast.engines import openvino as engine
        print(engine.package().convert_model)
        """,
        PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
    )
    assert out == "1\n"


# What is refused


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not there"),
        ("folder", "is a folder"),
        (b"", "is empty"),
        (b"hello world", "cannot be"),
        (bytes(range(256)) * 20, "cannot be"),
        ("half", "cannot be"),
    ],
)
def test_files_that_are_no_graph(engine_module, file, tmp_path, content, words, capfd):
    path = tmp_path / "broken.onnx"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(file().read_bytes()[: file().stat().st_size // 2] if content == "half" else content)
    with pytest.raises(EngineError) as raised:
        engine_module.load(path)
    text = str(raised.value)
    assert text.startswith(f"{engine_module.NAME}: {path} {words}")
    assert "\n" not in text
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": ("input", "mask_logits", "class_logits")}, "inputs ['input']"),
        (
            {"names": ("images", "masks", "class_logits")},
            "expected ['images'] and ['class_logits', 'mask_logits']",
        ),
        ({"shape": [1, 3, "h", "w"]}, "expected 4 fixed sides"),
        ({"shape": ["batch", 3, 32, 32]}, "fixed sides"),
    ],
)
def test_graphs_of_another_kind(engine_module, folder, options, words):
    path = folder / f"other{abs(hash(str(options)))}.onnx"
    onnx.save(graph(**options)[0], path)
    with pytest.raises(EngineError) as raised:
        engine_module.load(path)
    text = str(raised.value)
    assert text.startswith(f"{engine_module.NAME}: {path} ")
    assert words in text
    assert "fai_fast.export" in text


def test_a_graph_of_integers(engine_module, folder):
    kind = onnx.TensorProto.INT32
    nodes = [
        onnx.helper.make_node("Identity", ["images"], ["mask_logits"]),
        onnx.helper.make_node("ReduceMax", ["images"], ["class_logits"], axes=[3], keepdims=0),
    ]
    shapes = {"images": [1, 3, 8, 8], "mask_logits": [1, 3, 8, 8], "class_logits": [1, 3, 8]}
    values = [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    made = onnx.helper.make_graph(nodes, "graph", values[:1], values[1:])
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "integers.onnx")
    with pytest.raises(EngineError, match="expected float32 or float16"):
        engine_module.load(folder / "integers.onnx")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"precision": "int8"}, ValueError, "precision: got 'int8', expected one of 'fp32'"),
        ({"precision": 32}, TypeError, "precision: got 32, expected one of"),
        ({"num_threads": 0}, ValueError, "num_threads: got 0"),
        ({"num_threads": 1.5}, TypeError, "num_threads: got 1.5"),
    ],
)
def test_arguments(engine_module, file, options, error, words):
    with pytest.raises(error, match=words):
        engine_module.load(file(), **options)


@pytest.mark.parametrize("path", [None, 3, b"graph.onnx"])
def test_a_path_of_another_type(engine_module, path):
    with pytest.raises(TypeError, match=f"path: got {type(path).__name__}"):
        engine_module.load(path)


def test_a_missing_package_is_named_with_what_installs_it(engine_module, file, monkeypatch):
    install = {"openvino": "openvino", "onnxruntime": "fai-fast[onnxruntime]"}[engine_module.NAME]
    monkeypatch.setitem(sys.modules, engine_module.NAME, None)
    monkeypatch.setattr(engine_module, "package", engine_module.package.__wrapped__)
    with pytest.raises(EngineError) as raised:
        engine_module.version()
    assert str(raised.value).endswith(f"install it: pip install '{install}'")


# Threads and precision


def threads_of(engine):
    if engine.name == "openvino":
        return engine._compiled.get_property("INFERENCE_NUM_THREADS")
    return engine._session.get_session_options().intra_op_num_threads


def test_threads(engine_module, file, monkeypatch):
    engine = engine_module.load(file(), num_threads=1)
    assert engine.info()["threads"] == threads_of(engine) == 1
    engine = engine_module.load(file())
    assert engine.info()["threads"] == threads_of(engine)
    assert 1 <= threads_of(engine) <= cpu.usable_cores()
    for allowed, threads in ((1, 1), (1 << 20, threads_of(engine))):
        monkeypatch.setattr(cpu, "quota", lambda allowed=allowed: allowed)
        assert threads_of(engine_module.load(file())) == threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_cores_are_those_of_the_affinity():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpu.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert 1 <= cpu.usable_cores() <= len(before)


def kernel_files(root, groups, mounts, **files):
    """A /proc and a /sys that say this of control groups; returns their root."""
    texts = {
        "proc/self/cgroup": "".join(f"{line}\n" for line in groups),
        "proc/self/mountinfo": "".join(f"{line}\n" for line in mounts),
        **files,
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


OTHER_MOUNTS = ["22 27 0:21 / /proc rw,relatime - proc proc rw", "27 1 254:0 / / rw - ext4 /dev/vda rw"]
VERSION_2 = "31 23 0:28 {} /sys/fs/cgroup rw,relatime shared:4 master:1 - cgroup2 cgroup2 rw,nsdelegate"
VERSION_1 = "32 31 0:29 {} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
MEMORY_ONLY = "33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
CPU_1 = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("max 100000\n", None),
        ("150000 100000\n", 2),
        ("200000 100000\n", 2),
        ("20000 100000\n", 1),
        ("1 1000000\n", 1),
        ("9000000000000000000 1\n", 2**31 - 1),
        ("nonsense\n", None),
        ("-1 100000\n", None),
        ("100000 0\n", None),
        ("100000\n", None),
        ("", None),
    ],
)
def test_the_quota_of_a_control_group_version_2(tmp_path, text, quota):
    files = {"sys/fs/cgroup/cpu.max": text}
    root = kernel_files(tmp_path, ["0::/"], [*OTHER_MOUNTS, VERSION_2.format("/")], **files)
    assert cpu.quota(root) == quota


@pytest.mark.parametrize(
    ("time", "period", "quota"),
    [
        ("-1\n", "100000\n", None),
        ("250000\n", "100000\n", 3),
        ("100000\n", "100000\n", 1),
        ("100000\n", None, None),
    ],
)
def test_the_quota_of_a_control_group_version_1(tmp_path, time, period, quota):
    files = {f"{CPU_1}/cpu.cfs_quota_us": time}
    if period:
        files[f"{CPU_1}/cpu.cfs_period_us"] = period
    groups = ["4:memory:/elsewhere", "2:cpu,cpuacct:/", "1:name=systemd:/", "0::/"]
    mounts = [*OTHER_MOUNTS, MEMORY_ONLY, VERSION_1.format("/")]
    assert cpu.quota(kernel_files(tmp_path, groups, mounts, **files)) == quota


def test_the_least_quota_above_a_control_group_counts(tmp_path):
    files = {
        "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/b/c/cpu.max": "700000 100000\n",
        "sys/fs/cgroup/other/cpu.max": "100000 100000\n",
    }
    root = kernel_files(tmp_path, ["0::/a/b/c"], [VERSION_2.format("/")], **files)
    assert cpu.quota(root) == 2


def test_a_container_that_sees_the_names_of_its_host(tmp_path):
    """There the mount shows the container's own group, by whatever path /proc calls it."""
    files = {f"{CPU_1}/cpu.cfs_quota_us": "300000\n", f"{CPU_1}/cpu.cfs_period_us": "100000\n"}
    for group, top in (
        ("/docker/0123", "/docker/0123"),
        ("/docker/0123", "/"),
        ("/../pod7", "/"),
        ("/kube/x", "/y"),
    ):
        root = kernel_files(tmp_path, [f"2:cpu,cpuacct:{group}"], [VERSION_1.format(top)], **files)
        assert cpu.quota(root) == 3
    inner = {f"{CPU_1}/inner/cpu.cfs_quota_us": "100000\n", f"{CPU_1}/inner/cpu.cfs_period_us": "100000\n"}
    for group, expected in (("/docker/0123/inner", 1), ("/docker/01234/inner", 3)):
        root = kernel_files(
            tmp_path, [f"2:cpu,cpuacct:{group}"], [VERSION_1.format("/docker/0123")], **files, **inner
        )
        assert cpu.quota(root) == expected


def test_a_mount_point_with_a_blank(tmp_path):
    mount = "31 23 0:28 / /my\\040groups rw - cgroup2 cgroup2 rw"
    root = kernel_files(tmp_path, ["0::/"], [mount], **{"my groups/cpu.max": "100000 100000\n"})
    assert cpu.quota(root) == 1


def test_no_control_groups(tmp_path):
    assert cpu.quota(str(tmp_path)) is None
    files = {"sys/fs/cgroup/cpu.max": "100000 100000\n"}
    assert cpu.quota(kernel_files(tmp_path, [], ["too short", ""], **files)) is None
    assert cpu.quota(kernel_files(tmp_path, ["malformed", "0:"], [VERSION_2.format("/")], **files)) is None


def test_cores_are_within_the_quota(monkeypatch):
    monkeypatch.setattr(cpu, "quota", lambda: 1)
    assert cpu.usable_cores() == 1
    monkeypatch.setattr(cpu, "quota", lambda: 1 << 20)
    assert 1 <= cpu.usable_cores() < 1 << 20


def test_info(engine_module, file):
    info = engine_module.load(file(dtype="float16")).info()
    assert info["engine"] == engine_module.NAME
    assert info["version"] == engine_module.version()
    assert info["device"] == "cpu"
    assert info["precision"] == "fp32"
    assert info["path"] == str(file(dtype="float16"))
    assert info["inputs"] == {"images": "float16 (1, 3, 32, 32)"}
    assert list(info["outputs"]) == ["mask_logits", "class_logits"]
    json.dumps(info)


def test_a_precision_that_the_cpu_lacks(file, monkeypatch):
    monkeypatch.setattr(ov_engine, "native_precisions", lambda: ("fp32",))
    for lacking in ("bf16", "fp16"):
        with pytest.raises(EngineError, match=f"does not compute in {lacking} natively, only in fp32"):
            ov_engine.load(file(), precision=lacking)


def test_native_precisions_are_what_can_be_loaded(engine_module, file):
    native = engine_module.native_precisions()
    assert "fp32" in native
    assert set(native) <= set(engine_module.PRECISIONS)
    for name in native:
        assert engine_module.load(file(), precision=name).info()["precision"] == name
    # What comes after fp32 is loaded where it is asked for, and not tried by itself.
    assert precision.candidates(engine_module.NAME) == native[: native.index("fp32") + 1]


def test_candidates_end_with_fp32(monkeypatch):
    monkeypatch.setattr(ov_engine, "native_precisions", lambda: ("bf16", "fp16", "fp32"))
    assert precision.candidates("openvino") == ("bf16", "fp16", "fp32")
    monkeypatch.setattr(ov_engine, "native_precisions", lambda: ())
    assert precision.candidates("openvino") == ("fp32",)
    with pytest.raises(ValueError, match="name: got 'abacus'"):
        precision.candidates("abacus")


@pytest.mark.skipif(len(INSTALLED) < 2, reason="needs both engines")
def test_the_engines_agree(file):
    spec = small_spec("fai_mf", "instance")
    config = dataclasses.replace(spec.config, num_classes=COLUMNS - 1)
    spec = dataclasses.replace(spec, classes=tuple("abcd"), config=config)
    pictures = Pictures.drawn((64, 64))
    first, second = ov_engine.load(file(side=64, depth=2)), ort_engine.load(file(side=64, depth=2))
    assert _gate.verify(first, second, pictures, spec).value == pytest.approx(1, abs=1e-3)
    other = ort_engine.load(file(side=64, depth=2, seed=1))
    assert not _gate.verify(first, other, pictures, spec).holds
    half = ort_engine.load(file(side=64, depth=2, dtype="float16"))
    assert _gate.verify(half, first, pictures, spec).holds


# Compiled blobs


needs_openvino = pytest.mark.skipif("openvino" not in INSTALLED, reason="openvino is not installed")


@needs_openvino
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_blob_gives_the_same_bits(file, tmp_path, dtype):
    path = file(dtype=dtype, depth=2)
    info = ov_engine.compile_to(path, tmp_path / "graph.blob", num_threads=1)
    assert info["compile_seconds"] > 0
    loaded, compiled = (
        ov_engine.load_blob(tmp_path / "graph.blob", num_threads=1),
        ov_engine.load(path, num_threads=1),
    )
    (tmp_path / "graph.blob").unlink()
    assert (loaded.inputs, loaded.outputs) == (compiled.inputs, compiled.outputs)
    results = []
    for engine in (loaded, compiled):
        context = engine.context()
        context.images[...] = image(engine.inputs[0])
        context.run()
        results.append(context.mask_logits.tobytes() + context.class_logits.tobytes())
    assert results[0] == results[1]
    assert loaded.info()["threads"] == 1


@needs_openvino
def test_a_blob_that_cannot_be_written(file, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        ov_engine.compile_to(file(), tmp_path / "nowhere" / "graph.blob")


@needs_openvino
def test_damaged_blobs(file, tmp_path):
    """In a process of its own: OpenVINO parses what it is given, and may not take this one down."""
    ov_engine.compile_to(file(), tmp_path / "graph.blob")
    run_script(f"""
        import random
        from pathlib import Path
        from fai_fast.engines import openvino
        from fai_fast.errors import EngineError

        path = Path({str(tmp_path / "damaged.blob")!r})
        blob = Path({str(tmp_path / "graph.blob")!r}).read_bytes()
        rng = random.Random(1)
        cases = [blob[:n] for n in (1, 7, 8, 100, 200, len(blob) // 2, len(blob) - 20)]
        cases += [rng.randbytes(n) for n in (1, 100, len(blob)) for _ in range(3)]
        cases += [Path({str(file())!r}).read_bytes()]
        for case in cases:
            path.write_bytes(case)
            try:
                openvino.load_blob(path)
            except EngineError as error:
                assert str(error).startswith(f"openvino: {{path}} cannot be loaded, compile it again"), error
            else:
                raise AssertionError(len(case))
        """)


@needs_openvino
def test_a_blob_of_another_kind_of_graph(file, tmp_path):
    """What a damaged name comes to, which OpenVINO does not notice."""
    names = ("imageq", *NAMES[1:])
    model = ov_engine.read_graph(file(names=names))
    compiled = ov_engine.package().Core().compile_model(model, "CPU")
    (tmp_path / "graph.blob").write_bytes(compiled.export_model().getbuffer())
    with pytest.raises(EngineError) as raised:
        ov_engine.load_blob(tmp_path / "graph.blob")
    assert str(raised.value).startswith(f"openvino: {tmp_path / 'graph.blob'} ")
    assert "imageq" in str(raised.value)


@needs_openvino
def test_a_blob_that_is_no_file(tmp_path):
    with pytest.raises(EngineError, match="is not there"):
        ov_engine.load_blob(tmp_path / "graph.blob")
    (tmp_path / "graph.blob").touch()
    with pytest.raises(EngineError, match="is empty"):
        ov_engine.load_blob(tmp_path / "graph.blob")


def test_depends(engine_module):
    first = engine_module.depends()
    assert first == engine_module.depends("fp32", None)
    assert (first["engine"], first["version"]) == (engine_module.NAME, engine_module.version())
    assert json.loads(json.dumps(first)) == first
    assert engine_module.depends(num_threads=cpu.usable_cores() + 1) != first
    assert engine_module.depends("bf16") != first
    with pytest.raises(ValueError, match="num_threads: got -1"):
        engine_module.depends(num_threads=-1)


# The CPU


def test_the_cpu_is_described():
    assert cpu.name().strip()
    isas = fai_fast.build_info()["isas_available"]
    assert ("avx2" in cpu.features()) == ("avx2" in isas)
    assert set(cpu.features()) >= ({"avx512f", "avx512bw"} if "avx512" in isas else set())
