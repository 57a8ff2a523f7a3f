"""The lock of models and engines: whatever a signal handler raises, wherever it runs, the lock is free afterwards."""

from __future__ import annotations

import signal
import sys
import threading

import pytest
from fai_fast._locks import SignalSafeLock

SIGNAL = signal.SIGUSR1


class Limit(Exception):
    pass


@pytest.fixture(autouse=True)
def handler():
    def raises(*_):
        raise Limit

    before = signal.signal(SIGNAL, raises)
    yield
    signal.signal(SIGNAL, before)


def is_free(lock):
    """Whether another thread gets it."""
    found = []

    def take():
        if lock.acquire(blocking=False):
            lock.release()
            found.append(True)

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return bool(found)


def interrupted(call, at):
    """Runs the handler at the `at`-th place of a call where Python may; whether there were as many."""
    places, done = 0, False

    def profile(frame, event, _):
        nonlocal places, done
        if done or event not in ("call", "c_return") or not frame.f_code.co_filename.endswith("locks.py"):
            return
        places += 1
        if places == at:
            done = True
            signal.raise_signal(SIGNAL)

    sys.setprofile(profile)
    try:
        call()
        assert not done
    except Limit:
        assert done
    finally:
        sys.setprofile(None)
    return done


@pytest.mark.parametrize("depth", [1, 2])
def test_it_is_free_wherever_a_handler_raised(depth):
    lock = SignalSafeLock()
    inside = []

    def use():
        with lock:
            inside.append(not is_free(lock))
            if depth == 2:
                with lock:
                    inside.append(True)

    at = 1
    while interrupted(use, at):
        assert is_free(lock), at
        at += 1
    assert at > 5
    assert is_free(lock)
    assert all(inside)
    assert inside


def test_a_handler_that_raises_while_it_waits_takes_nothing():
    lock = SignalSafeLock()
    held, go = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    main = threading.get_ident()
    timer = threading.Timer(0.05, lambda: signal.pthread_kill(main, SIGNAL))
    timer.start()
    with pytest.raises(Limit), lock:
        pytest.fail("another thread holds it")
    timer.join()
    assert not is_free(lock)
    go.set()
    thread.join()
    assert is_free(lock)


def test_other_threads_wait_and_conditions_work():
    lock = SignalSafeLock()
    changed = lock.condition()
    seen = []

    def count():
        for _ in range(2000):
            with lock:
                number = len(seen)
                seen.append(number)
        with lock:
            changed.notify_all()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    with lock:
        assert changed.wait_for(lambda: len(seen) == 8000, 60)
    for thread in threads:
        thread.join()
    assert seen == list(range(8000))


def test_what_the_block_raises_is_raised():
    lock = SignalSafeLock()
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert is_free(lock)
