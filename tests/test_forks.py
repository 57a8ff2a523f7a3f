"""Forked children: whatever waits for a thread or a lock of the parent raises what infer() raises there, or ends."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import fai_fast
import pytest
from fai_fast import _forks
from fai_fast.errors import EngineError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

# The parent has frames on their way, a loop that waits, and a thread that holds every lock there is.
PARENT = """
import os, signal, sys, threading, warnings
from pathlib import Path
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads
import fai_fast, numpy as np
from PIL import Image
from fai_fast import _pipelines, evaluate, images
from helpers.networks import network
from helpers.networks import small_spec
from helpers.videos import arrays_for_ever, picture, until

folder = Path(sys.argv[1])
Image.fromarray(picture(0)).save(folder / "a.png")
spec = small_spec("fai_mf", "instance", transformer_predictor_dec_layers=2)
model = fai_fast.load(spec, weights=network(spec).state_dict(), im_size=(64, 96), cache_dir=folder)
twin = model.clone()
frame = picture(0)
gate, inside, held, released = (threading.Event() for _ in range(4))
preprocess_into = _pipelines.preprocess_into

def slow(*arguments):
    inside.set()
    assert gate.wait(60)
    return preprocess_into(*arguments)

ended = model.submit(frame)
ended.result()
streams = [model.stream(arrays_for_ever()) for _ in range(3)]
for stream in streams:
    next(stream)
unopened = model.stream(arrays_for_ever())
_pipelines.preprocess_into = slow
late = [model.submit(frame) for _ in range(2)]
assert inside.wait(60)
def take():
    while not gate.is_set():
        next(streams[0], None)

loop = threading.Thread(target=take)
loop.start()

def hold():
    pipeline, feed = model._pipeline, streams[0]._feed
    with (
        model._host_lock, model._users._lock, pipeline._lock, pipeline.contexts._changed,
        feed._changed, unopened._turn, unopened._feed._changed, images._raised,
    ):
        held.set()
        assert released.wait(60)

holder = threading.Thread(target=hold)
holder.start()
assert held.wait(60)

def leave(thing):
    with thing:
        pass

data = evaluate.CocoData("a.json", ((1, folder / "a.png", (48, 64)),), {1: spec.classes[0]}, ())
CALLS = {
    "infer": lambda: model.infer(frame),
    "infer_batch": lambda: model.infer_batch([frame]),
    "submit": lambda: model.submit(frame),
    "queries": lambda: model.queries(frame),
    "clone": lambda: model.clone(),
    "evaluate": lambda: data.measure(model),
    "late": lambda: late[0].result(),
    "late, in time": lambda: late[0].result(1),
    "late, done": lambda: late[0].done(),
    "ended": lambda: ended.result() == ended.result(5),
    "next": lambda: next(streams[0]),
    "next, not opened": lambda: next(unopened),
    "next, new": lambda: next(model.stream([frame])),
    "stats": lambda: streams[0].stats().frames > 0,
    "close a stream": lambda: streams[0].close(),
    "leave a stream": lambda: leave(streams[1]),
    "forget a stream": lambda: streams.pop(),
    "read": lambda: images.read_image(folder / "a.png", max_pixels=2**28).shape,
    "close": lambda: model.close(),
    "leave": lambda: leave(twin),
    "infer, closed": lambda: model.infer(frame),
}
"""

CHILD = """
pid = os.fork()
if pid == 0:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(60)
    for name, call in CALLS.items():
        try:
            said = call()
        except Exception as error:
            said = f"{type(error).__name__} {'forked' in str(error) and 'spawn' in str(error)}"
        print(f"{name}: {said if isinstance(said, (str, bool, int, tuple, type(None))) else type(said).__name__}")
    sys.exit(7)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(f"child: {code}")
released.set()
gate.set()
holder.join()
loop.join()
print("parent:", late[0].result() == late[1].result() == ended.result(), len(next(streams[1])))
model.close()
twin.close()
"""

REFUSED = "EngineError True"
EXPECTED = {
    "infer": REFUSED,
    "infer_batch": REFUSED,
    "submit": REFUSED,
    "queries": REFUSED,
    "clone": REFUSED,
    "evaluate": REFUSED,
    "late": REFUSED,
    "late, in time": REFUSED,
    "late, done": "True",
    "ended": "True",
    "next": REFUSED,
    "next, not opened": REFUSED,
    "next, new": REFUSED,
    "stats": "True",
    "close a stream": "None",
    "leave a stream": "None",
    "forget a stream": "Stream",
    "read": "(48, 64, 3)",
    "close": "None",
    "leave": "None",
    "infer, closed": "FaiFastError False",
    "child": "7",
    "parent": "True 2",
}


def python(script, *arguments):
    paths = [str(Path(__file__).parent), str(Path(fai_fast.__file__).parents[1])]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])},
    )


def test_a_forked_child_waits_for_nothing(tmp_path):
    ran = python(PARENT + CHILD, str(tmp_path))
    said = dict(line.split(": ") for line in ran.stdout.splitlines())
    assert (said, ran.returncode) == (EXPECTED, 0), ran.stderr


def test_a_lock_that_the_parent_holds_is_free_in_the_child():
    ran = python(
        """
        import os, signal, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from fai_fast._forks import ForkSafeLock
        lock, held, released = ForkSafeLock(), threading.Event(), threading.Event()
        def hold():
            with lock:
                held.set()
                released.wait(60)
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(60)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)
            with lock, lock:
                os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        released.set()
        thread.join()
        with lock:
            pass
        """
    )
    assert (ran.stdout, ran.returncode) == ("7\n", 0), ran.stderr


def test_a_guard_knows_its_process(monkeypatch):
    guard = _forks.ProcessGuard("openvino")
    guard.check()
    assert not guard.inherited
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert guard.inherited
    with pytest.raises(
        EngineError, match=r"^openvino: this process was forked after the engine was loaded; load it"
    ):
        guard.check()
    stream = _forks.ProcessGuard("stream", "the stream was made; make it")
    monkeypatch.undo()
    with pytest.raises(
        EngineError, match=r"^stream: this process was forked after the stream was made; make it in"
    ):
        stream.check()
