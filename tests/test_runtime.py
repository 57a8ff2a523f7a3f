"""Threads, fork, signals, memory: what a call does to the process it runs in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from helpers import scenes

TESTS = Path(__file__).parent
SANITIZED = bool(fai_fast.build_info()["sanitizers"])
LONG = 60  # seconds that nothing here comes near: only a hang does


def start(script, **options):
    """A Python process that runs the script next to the tests."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=TESTS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=LONG)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"did not end; it had written {out!r} and {err!r}")
    return process.returncode, out, err


def run(script):
    code, out, err = finish(start(script))
    assert code == 0, err
    assert err == ""
    return out


@pytest.mark.parametrize("name", ["preprocess", "postprocess", "semantic", "postprocess_batch"])
def test_other_threads_run_meanwhile(name):
    if name == "preprocess":
        image, out = scenes.image(1, (1080, 1920, 3)), np.empty((3, 1080, 1920), np.float32)

        def call():
            fai_fast.preprocess(image, (1080, 1920), mean=0.0, std=1.0, out=out)
    else:
        logits = scenes.noise(1, queries=60, grid=(160, 160))
        options = {"predict_all_pixels": name == "semantic", "threshold": 0.0, "num_threads": 1}

        def call():
            if name == "postprocess_batch":
                fai_fast.postprocess_batch(*(array[None] for array in logits), (1080, 1920), **options)
            else:
                fai_fast.postprocess(*logits, (1080, 1920), **options)

    progress = 0
    running = True

    def other():
        nonlocal progress
        while running:
            progress += 1
            # Lets the main thread have the interpreter back at once, so that only its own releases count.
            pause.wait(0.0005)

    pause = threading.Event()
    interval = sys.getswitchinterval()
    thread = threading.Thread(target=other)
    thread.start()
    try:
        # The interpreter now never takes the lock from a thread that does not give it up.
        sys.setswitchinterval(1000)
        advanced = 0
        for _ in range(100):
            before = progress
            call()
            advanced = max(advanced, progress - before)
            if advanced >= 3:
                break
    finally:
        sys.setswitchinterval(interval)
        running = False
        thread.join()
    assert advanced >= 3


def results_of(seed):
    mask_logits, class_logits = scenes.blobs(seed, queries=30, grid=(40, 40))
    found = []
    for semantic in (False, True):
        detections = fai_fast.postprocess(
            mask_logits,
            class_logits,
            (211, 333),
            threshold=0.1,
            use_mask_score=True,
            predict_all_pixels=semantic,
        )
        found += [detections.confidence, detections.query, detections.xyxy, detections.mask]
    for color, shape in (("rgb", (270, 480, 3)), ("nv12", (405, 480)), ("yuyv", (270, 480, 2))):
        found.append(fai_fast.preprocess(scenes.image(seed, shape), (97, 133), mean=9, std=3, color=color))
    return [array.tobytes() for array in found]


def test_calls_from_several_threads_give_the_same_bits():
    expected = [results_of(seed) for seed in range(4)]
    wrong = []

    def work(first):
        for i in range(12):
            seed = (first + i) % 4
            try:
                if results_of(seed) != expected[seed]:
                    wrong.append(f"seed {seed}: other bits")
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_several_threads_read_one_result():
    """Semantic masks are made on first need, here by many at once."""
    mask_logits, class_logits = scenes.blobs(1, queries=30, grid=(40, 40))
    options = {"threshold": 0.1, "predict_all_pixels": True}
    expected = fai_fast.postprocess(mask_logits, class_logits, (211, 333), **options).mask.tobytes()
    for _ in range(20):
        detections = fai_fast.postprocess(mask_logits, class_logits, (211, 333), **options)
        found = []
        barrier = threading.Barrier(4)

        def read(detections=detections, found=found, barrier=barrier):
            barrier.wait()
            found.append(detections.mask.tobytes())

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork():
    """In a child of a process whose workers already ran, in its child, and with the parent going on."""
    out = run(
        """
        import os, warnings
        from test_runtime import results_of
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads

        expected = results_of(1)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert results_of(1) == expected
                grandchild = os.fork()
                if grandchild == 0:
                    os._exit(0 if results_of(1) == expected else 1)
                code = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
            finally:
                os._exit(code)
        for _ in range(5):
            assert results_of(1) == expected
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert out == "0\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork_during_a_call_of_another_thread():
    out = run(
        """
        import os, threading, warnings
        from test_runtime import results_of
        warnings.simplefilter("ignore", DeprecationWarning)

        expected = results_of(1)
        stop = threading.Event()

        def busy():
            while not stop.is_set():
                results_of(2)

        threads = [threading.Thread(target=busy) for _ in range(2)]
        for thread in threads:
            thread.start()
        codes = []
        for _ in range(10):
            child = os.fork()
            if child == 0:
                os._exit(0 if results_of(1) == expected else 1)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        stop.set()
        for thread in threads:
            thread.join()
        print(codes)
        """
    )
    assert out == f"{[0] * 10}\n"


@pytest.mark.parametrize("name", ["preprocess", "postprocess", "masks"])
def test_ctrl_c(name):
    process = start(
        f"""
        import signal
        import fai_fast, numpy as np
        from helpers import scenes
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
        image = scenes.image(1, (1080, 1920, 3))
        logits = scenes.blobs(1, queries=60, grid=(160, 160))
        print("ready", flush=True)
        while True:
            if "{name}" == "preprocess":
                fai_fast.preprocess(image, (640, 640), mean=0, std=1)
            else:
                result = fai_fast.postprocess(*logits, (1080, 1920), predict_all_pixels=True)
                if "{name}" == "masks":
                    result.mask
        """
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in err


def test_import_brings_in_nothing_heavy():
    out = run(
        """
        import sys
        import fai_fast
        heavy = {"torch", "cv2", "PIL", "supervision", "pycocotools", "transformers", "scipy", "matplotlib"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert out == "[]\n"


def test_calls_on_arrays_bring_in_nothing_heavy():
    out = run(
        """
        import sys
        import numpy as np, fai_fast
        from helpers import scenes
        fai_fast.preprocess(np.zeros((8, 8, 3), np.uint8), (4, 4), mean=0, std=1)
        result = fai_fast.postprocess(*scenes.blobs(1), (50, 60))
        repr(result), result.mask, result.area
        heavy = {"torch", "cv2", "PIL", "supervision", "pycocotools", "transformers", "scipy", "matplotlib"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert out == "[]\n"


@pytest.mark.skipif(SANITIZED, reason="sanitizers keep freed memory on purpose")
def test_memory_stays_level():
    out = run(
        """
        import gc, sys
        import numpy as np, fai_fast
        from helpers import scenes

        image = scenes.image(1, (96, 128, 3))
        logits = scenes.blobs(1, queries=20, grid=(24, 24))
        out = np.empty((3, 64, 64), np.float32)

        def calls(count):
            for _ in range(count):
                fai_fast.preprocess(image, (64, 64), mean=0, std=1)
                fai_fast.preprocess(image, (64, 64), mean=0, std=1, out=out)
                fai_fast.preprocess(memoryview(image), (64, 64), mean=0, std=1, resize="letterbox")
                for semantic in (False, True):
                    result = fai_fast.postprocess(*logits, (96, 128), predict_all_pixels=semantic)
                    result.mask, result.label_map
                for bad in ({"threshold": float("nan")}, {"class_names": ["a"]}):
                    try:
                        fai_fast.postprocess(*logits, (96, 128), **bad)
                    except ValueError:
                        pass
                try:
                    fai_fast.preprocess(image[..., 0], (64, 64), mean=0, std=1)
                except ValueError:
                    pass

        def state():
            gc.collect()
            with open("/proc/self/statm") as file:
                pages = int(file.read().split()[1])
            return pages * 4096, sys.getallocatedblocks()

        calls(200)
        before = state()
        calls(2000)
        after = state()
        print(after[0] - before[0], after[1] - before[1])
        """
    )
    grown, blocks = map(int, out.split())
    # One leaked tensor a call would be 98 MB, one leaked object a call 2,000 blocks.
    assert grown < 8 << 20
    assert blocks < 500


def test_idle_workers_burn_no_cpu():
    out = run(
        """
        import resource, time
        from test_runtime import results_of

        def cpu():
            used = resource.getrusage(resource.RUSAGE_SELF)
            return used.ru_utime + used.ru_stime

        results_of(1)
        before = cpu()
        time.sleep(0.5)
        print(cpu() - before)
        """
    )
    assert float(out) < 0.2


def test_exit_after_threads():
    assert run("from test_runtime import results_of; results_of(1); print('done')") == "done\n"


@pytest.mark.parametrize("attempt", range(3))
def test_exit_while_a_daemon_thread_is_inside_a_call(attempt):
    """A camera loop on a daemon thread must not turn the end of the program into a crash."""
    out = run(
        """
        import threading, time
        from test_runtime import results_of

        def forever():
            while True:
                results_of(1)

        for _ in range(3):
            threading.Thread(target=forever, daemon=True).start()
        time.sleep(0.2)
        print("done")
        """
    )
    assert out == "done\n"
