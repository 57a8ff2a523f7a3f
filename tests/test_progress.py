"""What a long job says: one line, once it has taken a while, and nothing where it is told otherwise."""

from __future__ import annotations

import logging
import threading

import fai_fast
import pytest
from fai_fast import _progress


@pytest.fixture(autouse=True)
def level():
    """The level that a program finds which configured nothing."""
    logger = logging.getLogger("fai_fast")
    before = logger.level
    logger.setLevel(logging.WARNING)
    yield logger.setLevel
    logger.setLevel(before)


@pytest.fixture
def timers(monkeypatch):
    """The timers that were started, which end when they are told to."""
    made = []

    class Timer:
        def __init__(self, delay, tell):
            self.delay, self.tell, self.cancelled = delay, tell, False

        def start(self):
            made.append(self)

        def cancel(self):
            self.cancelled = True

    monkeypatch.setattr(threading, "Timer", Timer)
    return made


def test_a_long_job_says_one_line(timers, capsys):
    with _progress.job("outer"):
        assert timers == []
        _progress.working()
        _progress.working()
        with _progress.job("inner"):
            _progress.working()
        [timer] = timers
        assert timer.delay == 2.0
        assert capsys.readouterr() == ("", "")
        timer.tell()
        assert not timer.cancelled
    assert timer.cancelled
    assert capsys.readouterr() == ("", "fai_fast: outer\n")


def test_a_job_that_finds_all_of_it_says_nothing(timers):
    with _progress.job("outer"):
        pass
    _progress.working()
    assert timers == []


def test_after_a_failure_the_line_does_not_come(timers):
    def fail():
        with _progress.job("outer"):
            _progress.working()
            raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        fail()
    assert timers[0].cancelled
    with _progress.job("next"):
        _progress.working()
    assert len(timers) == 2


@pytest.mark.parametrize(("chosen", "said"), [("INFO", ["outer"]), ("DEBUG", ["outer"]), ("ERROR", [])])
def test_whoever_configures_logging_gets_a_record_in_place_of_the_line(level, timers, caplog, chosen, said):
    level(chosen)
    with _progress.job("outer"):
        _progress.working()
        assert caplog.messages == said
    assert timers == []


def test_a_real_timer_writes_to_standard_error(capfd, monkeypatch):
    monkeypatch.setattr(_progress, "DELAY", 0.0)
    with _progress.job("outer"):
        _progress.working()
        for thread in threading.enumerate():
            if isinstance(thread, threading.Timer):
                thread.join(60)
    assert capfd.readouterr().err == "fai_fast: outer\n"


def test_a_job_runs_where_no_thread_can_be_started(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with _progress.job("outer"):
        _progress.working()


def test_loading_says_so_the_first_time_alone(tmp_path, timers, capsys):
    def load():
        with fai_fast.load("fai-mf-n-shapes", cache_dir=tmp_path, im_size=64, device="cpu", precision="fp32"):
            pass

    load()
    [timer] = timers
    timer.tell()
    said = "fai_fast: fai-mf-n-shapes: being made ready for this machine, which is done once\n"
    assert capsys.readouterr() == ("", said)
    load()
    assert len(timers) == 1
    assert capsys.readouterr() == ("", "")


def test_exporting_says_so(tmp_path, timers, capsys):
    fai_fast.export("fai-mf-n-shapes", tmp_path / "a.onnx", im_size=64)
    [timer] = timers
    timer.tell()
    said = "fai_fast: fai-mf-n-shapes: exporting 64x64 in fp32 as onnx, and checking it\n"
    assert capsys.readouterr() == ("", said)
