"""Workers that are forked from a process that has loaded a model: web servers' preload, pools of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import fai_fast
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

LONG = 240  # seconds that nothing here comes near: only a hang does

BEGIN = """
    import json, os, signal, sys, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork beside threads
    import numpy as np
    import fai_fast

    OPTIONS = {"precision": "fp32", "im_size": 64, "cache_dir": sys.argv[1]}
    FRAME = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)

    def found(model):
        return json.dumps(model.infer(FRAME, threshold=0.0).to_dict())
"""


def run(script, *arguments):
    """The lines that a process writes, which must end well."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BEGIN) + textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(fai_fast.__file__).parents[1])])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    fai_fast.load("fai-mf-n-shapes", precision="fp32", im_size=64, cache_dir=folder).close()
    return str(folder)


# As gunicorn with preload_app: the application is made in the master, which forks workers, renews one that has ended,
# and ends all of them by SIGTERM.
PREFORK = """
    class Application:
        def __init__(self, lazy):
            self.models = {}
            self.lazy = lazy
            self.model = fai_fast.load("fai-mf-n-shapes", **OPTIONS)
            self.expected = found(self.model)

        def __call__(self):
            model = self.model
            if self.lazy:
                if os.getpid() not in self.models:
                    self.models[os.getpid()] = fai_fast.load("fai-mf-n-shapes", **OPTIONS)
                model = self.models[os.getpid()]
            try:
                return "the same" if found(model) == self.expected else "another"
            except fai_fast.EngineError as error:
                return f"refused {'forked' in str(error) and 'load it in the child' in str(error)}"

    def worker(application):
        ask, asked = os.pipe()
        answered, answer = os.pipe()
        pid = os.fork()
        if pid:
            os.close(ask)
            os.close(answer)
            return pid, os.fdopen(asked, "w"), os.fdopen(answered)

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.alarm(200)
        with os.fdopen(ask) as requests, os.fdopen(answer, "w") as answers:
            for _ in requests:
                print(application(), file=answers, flush=True)
        os._exit(3)

    def get(worker):
        _, asked, answered = worker
        print("GET", file=asked, flush=True)
        return answered.readline().strip()

    def end(worker):
        os.kill(worker[0], signal.SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(worker[0], 0)[1])
        for pipe in worker[1:]:
            pipe.close()
        return code

    application = Application(lazy=sys.argv[2] == "lazy")
    workers = [worker(application) for _ in range(2)]
    print([get(item) for item in workers + workers])
    print(end(workers.pop()))
    workers.append(worker(application))
    print(get(workers[1]))
    print(application() if not application.lazy else found(application.model) == application.expected)
    print([end(item) for item in workers])
    application.model.close()
"""


def test_preloaded_models_are_refused_in_every_worker(cache_dir):
    refused = "refused True"
    assert run(PREFORK, cache_dir, "preloaded") == [
        str([refused] * 4),
        "0",
        refused,
        "the same",
        "[0, 0]",
    ]


def test_models_that_workers_load_work_beside_the_masters(cache_dir):
    assert run(PREFORK, cache_dir, "lazy") == [
        str(["the same"] * 4),
        "0",
        "the same",
        "True",
        "[0, 0]",
    ]


POOL = """
    import concurrent.futures, multiprocessing

    model = None

    def inherited(_):
        try:
            return found(parents)
        except fai_fast.EngineError as error:
            return f"refused {'forked' in str(error)}"

    def own(_):
        global model
        if model is None:
            model = fai_fast.load("fai-mf-n-shapes", **OPTIONS)
        return found(model)

    def streamed(_):
        global model
        own(0)
        with model.stream([FRAME, FRAME], threshold=0.0) as stream:
            return json.dumps([detections.to_dict() for _, detections in stream][1])

    parents = fai_fast.load("fai-mf-n-shapes", **OPTIONS)
    expected = found(parents)
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        print(pool.map(inherited, range(4), chunksize=1) == ["refused True"] * 4)
        print(pool.map(own, range(4), chunksize=1) == [expected] * 4)
        print(pool.map(streamed, range(4), chunksize=1) == [expected] * 4)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        print(list(pool.map(own, range(4))) == [expected] * 4)
    print(found(parents) == expected)
    parents.close()
"""


def test_pools_of_forked_processes(cache_dir):
    assert run(POOL, cache_dir) == ["True"] * 5


EVALUATE = """
    from pathlib import Path
    from PIL import Image
    from fai_fast import evaluate

    folder = Path(sys.argv[2])
    (folder / "images").mkdir()
    Image.fromarray(FRAME).save(folder / "images" / "a.png")
    names = fai_fast.spec("fai-mf-n-shapes").classes
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(names)],
        "annotations": [],
    }
    (folder / "truth.json").write_text(json.dumps(truth))

    def measure(model):
        return json.dumps(evaluate.coco(model, folder / "images", folder / "truth.json").to_dict())

    model = fai_fast.load("fai-mf-n-shapes", **OPTIONS)
    expected = measure(model)
    ends = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(200)
        try:
            said = measure(model)
        except fai_fast.EngineError as error:
            said = f"refused {'forked' in str(error)}"
        with fai_fast.load("fai-mf-n-shapes", **OPTIONS) as own:
            same = measure(own) == expected
        os.write(ends[1], f"{said}, {same}".encode())
        sys.exit(5)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(os.read(ends[0], 1000).decode(), code)
"""


def test_evaluations_in_a_forked_child(cache_dir, tmp_path):
    pytest.importorskip("faster_coco_eval")
    assert run(EVALUATE, cache_dir, str(tmp_path)) == ["refused True, True 5"]
