"""Exceptions that are not ours: what a signal handler raises arrives as it is from every layer, and nothing is lost."""

from __future__ import annotations

import concurrent.futures
import functools
import http.server
import io
import signal
import sys
import threading
import zipfile
from contextlib import contextmanager
from pathlib import Path

import fai_fast
import numpy as np
import pytest
import torch
from fai_fast import _foreign as foreign
from fai_fast import cli, download
from fai_fast._pipelines import ContextPool
from fai_fast.engines.base import OpenContext, TensorSpec
from fai_fast.engines.gpu import translated
from fai_fast.errors import EngineError
from fai_fast.images import read_image
from fai_fast.stream import Stream
from fai_fast.weights import load_weights, read_file
from helpers.videos import Fake, picture
from PIL import Image

FOLDER = Path(fai_fast.__file__).parent
SIGNAL = signal.SIGUSR1


class Limit(Exception):
    pass


class RuntimeLimit(RuntimeError):
    pass


KINDS = [
    Limit,
    RuntimeLimit,
    TimeoutError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    EngineError,
    MemoryError,
    KeyboardInterrupt,
    SystemExit,
]


@contextmanager
def limited(kind):
    """A handler that raises; `limited.error` is what it has raised."""
    raised = []

    def handler(number, frame):
        raised.append(kind("too slow"))
        raise raised[-1]

    before = signal.signal(SIGNAL, handler)
    try:
        yield raised
    finally:
        signal.signal(SIGNAL, before)


def now(*_, **__):
    """The handler runs here."""
    signal.raise_signal(SIGNAL)


def raises(raised, kind, call):
    with pytest.raises(kind) as caught:
        call()
    assert caught.value is raised[-1]


@pytest.fixture(scope="module")
def model():
    with fai_fast.load("fai-mf-n-shapes", precision="fp32", im_size=64) as made:
        yield made


@pytest.fixture(scope="module")
def frame():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


class At:
    """Lets the handler run inside whatever is asked of it."""

    __float__ = __index__ = now

    def __getattr__(self, name):
        if name.startswith("__array"):
            now()
        raise AttributeError(name)


class DlpackDevice:
    __dlpack_device__ = now
    __dlpack__ = now


class Dlpack:
    __dlpack__ = now

    def __dlpack_device__(self):
        return (1, 0)


class Items(list):
    __iter__ = now


class File(io.BytesIO):
    def read(self, *args):
        now()

    def readinto(self, *args):
        now()


@pytest.mark.parametrize("kind", KINDS)
def test_arguments(kind, frame):
    options = {"mean": 0.0, "std": 1.0}
    with limited(kind) as raised:
        if (
            kind is not AttributeError
        ):  # which says, as in Python's hasattr(), that there is no such attribute
            raises(raised, kind, lambda: fai_fast.preprocess(At(), (64, 64), **options))
        for call in (
            lambda: fai_fast.preprocess(frame, (At(), 64), **options),
            lambda: fai_fast.preprocess(frame, Items([64, 64]), **options),
            lambda: fai_fast.preprocess(DlpackDevice(), (64, 64), **options),
            lambda: fai_fast.preprocess(Dlpack(), (64, 64), **options),
        ):
            raises(raised, kind, call)


@pytest.mark.parametrize("kind", KINDS)
def test_files(kind, tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    with limited(kind) as raised:
        raises(raised, kind, lambda: read_image(File()))
        monkeypatch.setattr(torch, "load", now)
        raises(raised, kind, lambda: read_file(tmp_path / "old.pth"))
        monkeypatch.setattr(zipfile.ZipFile, "open", now)
        raises(raised, kind, lambda: read_file(tmp_path / "a.pth"))
        monkeypatch.setattr(Image.Image, "convert", now)
        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", now)
        raises(raised, kind, lambda: read_image(tmp_path / "a.png"))


@pytest.mark.parametrize("kind", KINDS)
def test_engines(kind):
    class Context(OpenContext):
        def _run(self):
            now()

        def _release(self):
            pass

    class Engine:
        name = "fake"

    port = TensorSpec("images", "float32", (1, 3, 2, 2))
    arrays = dict.fromkeys(("images", "mask_logits", "class_logits"), np.zeros(port.shape, np.float32))
    with limited(kind) as raised:
        raises(raised, kind, Context(Engine(), arrays).run)

        def failing():
            with translated("fake", "running failed"):
                now()

        raises(raised, kind, failing)


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_of_the_model(kind, model, frame, monkeypatch):
    with limited(kind) as raised, monkeypatch.context() as patch:
        for name in ("Context", "Engine"):
            assert hasattr(fai_fast.engines.openvino, name)
        patch.setattr(fai_fast.engines.openvino.Context, "_run", now)
        raises(raised, kind, lambda: model.infer(frame))
    assert model.infer(frame).size == (48, 64)


class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x")
        self.wfile.flush()
        self.server.go.wait(30)

    def log_message(self, *_):
        pass


@pytest.fixture
def slow():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    server.go = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/a.pth"
    server.go.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("place", ["connecting", "reading"])
@pytest.mark.parametrize("kind", KINDS)
def test_downloads(kind, place, slow, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "DEFAULT", download.Transfer(timeout=30, retries=0))
    if place == "connecting":
        monkeypatch.setattr("socket.create_connection", now)
    else:
        monkeypatch.setattr("http.client.HTTPResponse.read1", now)
    with limited(kind) as raised:
        raises(raised, kind, lambda: load_weights("fai-mf-n-shapes", slow, cache_dir=tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_streams_keep_the_frame(kind):
    fake = Fake()
    numbers = []
    fake.gate.clear()
    try:
        with limited(kind) as raised, Stream(fake, (picture(index) for index in range(5)), depth=1) as stream:
            main = threading.get_ident()

            def interrupt():
                signal.pthread_kill(main, SIGNAL)

            timer = threading.Timer(0.2, interrupt)
            timer.start()
            raises(raised, kind, lambda: next(stream))
            timer.join()
            fake.gate.set()
            numbers += [frame.id for frame, _ in stream]
            assert stream.stats().frames == 5
    finally:
        fake.gate.set()
        fake.close()
    assert numbers == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, Exception)])
def test_the_command_line(kind, monkeypatch, capsys):
    monkeypatch.setattr(fai_fast, "models", now)
    with limited(kind) as raised:
        raises(raised, kind, lambda: cli.main(["models"]))
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------ at any place at all


def interrupted(call, at, kind):
    """Runs a call and lets the handler run at the `at`-th place where Python runs handlers; whether there were as many.

    These are the beginnings of functions and the ends of calls of C functions; here those in fai_fast's own code.
    """
    places = 0
    done = False

    def profile(frame, event, argument):
        nonlocal places, done
        if done or event not in ("call", "c_return") or not frame.f_code.co_filename.startswith(str(FOLDER)):
            return
        if frame.f_code.co_name.startswith(
            "<"
        ):  # nobody hears what a generator raises when it is thrown away
            return
        places += 1
        if places == at:
            done = True
            signal.raise_signal(SIGNAL)

    with limited(kind) as raised:
        came = None
        sys.setprofile(profile)
        try:
            call()
        except BaseException as error:
            came = error
        finally:
            sys.setprofile(None)
    assert came is (raised[-1] if done else None), (at, repr(came))
    return done


@pytest.mark.parametrize(("kind", "step"), [(Limit, 3), (TimeoutError, 11), (ValueError, 13)])
def test_infer_may_be_interrupted_anywhere(kind, step, model, frame):
    expected = model.infer(frame)
    at = 1
    while interrupted(lambda: model.infer(frame), at, kind):
        at += step
    assert at > 100
    # Nothing is lost: as many contexts as there may be are still there.
    assert model.infer(frame).to_dict() == expected.to_dict()
    tickets = [model.submit(frame) for _ in range(8)]
    assert [ticket.result(timeout=60).to_dict() for ticket in tickets] == [expected.to_dict()] * 8


@pytest.mark.parametrize("timeout", [None, 600])
@pytest.mark.parametrize("kind", KINDS)
def test_waiting_for_a_result(kind, timeout, model, frame, monkeypatch):
    """The handler runs while the frame is on its way: a TimeoutError of its is not that of `timeout`."""
    ticket = model.submit(frame)
    future = ticket._pending._future
    concurrent.futures.wait([future])
    with limited(kind) as raised, monkeypatch.context() as patch:
        patch.setattr(future, "result", now)
        patch.setattr(future, "done", lambda: False)
        ticket._pending._ended, ended = [], ticket._pending._ended
        raises(raised, kind, lambda: ticket.result(timeout))
        ticket._pending._ended = ended
    assert ticket.result().to_dict() == model.infer(frame).to_dict()


@pytest.mark.parametrize("image", ["torch", "path", "bytes"])
def test_infer_of_other_kinds_may_be_interrupted_anywhere(image, model, frame, tmp_path):
    Image.fromarray(frame).save(tmp_path / "a.png")
    given = {
        "torch": torch.from_numpy(frame),
        "path": tmp_path / "a.png",
        "bytes": (tmp_path / "a.png").read_bytes(),
    }[image]
    at = 1
    while interrupted(lambda: model.infer(given), at, Limit):
        at += 11
    assert at > 100
    assert model.infer(given).size == (48, 64)


# ------------------------------------------------------------------------------------------------- the pieces


class Called:
    def __call__(self, number, frame):
        raise RuntimeError("too slow")

    def method(self, number, frame):
        raise RuntimeError("too slow")


@pytest.mark.parametrize(
    "handler",
    [Called(), Called().method, functools.partial(Called.method, Called())],
    ids=["object", "method", "partial"],
)
def test_handlers_of_every_kind_are_known(handler):
    def wrap():
        try:
            now()
        except RuntimeError as error:
            raise OSError("wrapped") from error

    before = signal.signal(SIGNAL, handler)
    try:
        with pytest.raises(OSError, match="wrapped") as caught:
            wrap()
        cause = caught.value.__cause__
        assert foreign.from_signal_handler(cause) is foreign.from_signal_handler(caught.value) is cause
        assert not foreign.explained(caught.value)
    finally:
        signal.signal(SIGNAL, before)


def test_errors_of_libraries_are_explained():
    for error, package, expected in (
        (RuntimeError("no"), "openvino", True),
        (torch.cuda.OutOfMemoryError("no"), "torch", True),
        (torch.cuda.OutOfMemoryError("no"), "openvino", False),
        (TimeoutError("no"), "torch", False),
        (MemoryError("no"), "torch", False),
        (Limit("no"), "torch", False),
        (EngineError("no"), "torch", True),
    ):
        assert foreign.explained(error, package) is expected


def test_an_error_while_another_is_handled_is_its_own():
    with limited(Limit):
        try:
            now()
        except Limit:
            with pytest.raises(TypeError, match="size: got"):
                fai_fast.preprocess(np.zeros((2, 2, 3), np.uint8), "a", mean=0, std=1)


def test_a_context_that_was_lost_makes_room():
    class Context:
        pass

    pool = ContextPool(Context, 2)
    lost = [pool._take(), pool._take()]
    got = []

    def borrow():
        with pool.borrow() as context:
            got.append(context)

    thread = threading.Thread(target=borrow)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    lost.clear()
    thread.join(60)
    assert len(got) == 1
