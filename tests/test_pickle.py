"""A Model pickles as how to load it again: spawned children, and workers of a DataLoader of either kind."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import fai_fast
import numpy as np
import pytest
import torch
from fai_fast.errors import FaiFastError
from fai_fast.model import Model

LONG = 300  # seconds that nothing here comes near: only a hang does
OPTIONS = {"device": "cpu", "precision": "fp32", "im_size": 64, "num_threads": 1}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(cache_dir):
    with fai_fast.load("fai-mf-n-shapes", cache_dir=cache_dir, **OPTIONS) as model:
        yield model


def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)


def same(found, expected) -> None:
    assert np.array_equal(found.query, expected.query)
    assert np.array_equal(found.confidence, expected.confidence)
    assert np.array_equal(found.mask, expected.mask)


def test_what_comes_back_is_a_model_of_its_own(model):
    content = pickle.dumps(model)
    assert len(content) < 2000  # how to load it, and nothing of what was loaded
    with pickle.loads(content) as other:
        assert other.spec == model.spec
        assert other.size == model.size
        assert other._engine is not model._engine
        same(other.infer(frame(), threshold=0.0), model.infer(frame(), threshold=0.0))
        with pickle.loads(pickle.dumps(other.clone())) as third:
            assert third.spec == model.spec


def test_a_copy_is_loaded_again_too(model):
    with copy.copy(model) as other:
        assert other._engine is not model._engine


def test_files_are_found_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fai_fast.export("fai-mf-n-shapes", "models/a.onnx", im_size=64, verify=False)
    with fai_fast.load("models/a.onnx", device="cpu", precision="fp32", cache_dir="cache") as model:
        content = pickle.dumps(model)
        monkeypatch.chdir(tmp_path / "elsewhere")
        with pickle.loads(content) as other:
            assert other.info()["artefacts"]["graph"] == str(tmp_path / "models" / "a.onnx")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", ["random", "fai-mf-n-shapes"])
def test_a_file_called_like_something_else_is_not_meant(tmp_path, monkeypatch, cache_dir, name):
    (tmp_path / name).write_text("a file")
    monkeypatch.chdir(tmp_path)
    with fai_fast.load("fai-mf-n-shapes", weights="random", cache_dir=cache_dir, **OPTIONS) as model:
        assert model._arguments["name_or_path"] == "fai-mf-n-shapes"
        assert model._arguments["weights"] == "random"


def test_weights_that_came_as_a_state_dict_go_along(model, cache_dir):
    state = {key: value * 0.5 for key, value in model.weights.state.items()}
    with fai_fast.load("fai-mf-n-shapes", weights=state, cache_dir=cache_dir, **OPTIONS) as halved:
        expected = halved.infer(frame(), threshold=0.0)
        content = pickle.dumps(halved)
    with pickle.loads(content) as other:
        same(other.infer(frame(), threshold=0.0), expected)


def test_a_closed_model_is_neither_pickled_nor_cloned(cache_dir):
    model = fai_fast.load("fai-mf-n-shapes", cache_dir=cache_dir, **OPTIONS)
    with model.clone() as other:
        model.close()
        for call in (model.clone, lambda: pickle.dumps(model)):
            with pytest.raises(FaiFastError, match="the model is closed; load it again"):
                call()
        # The other one still runs, and can be cloned itself.
        other.infer(frame())
        with other.clone() as third:
            third.infer(frame())
    with pytest.raises(FaiFastError, match="the model is closed"):
        other.clone()


def test_a_model_that_was_not_loaded_is_not_pickled(model):
    other = Model(model._prepared)
    with pytest.raises(FaiFastError, match=r"only models of fai_fast\.load\(\) can be pickled"):
        pickle.dumps(other)
    other._pipeline.close()  # the engine is the fixture's


def finish(script: str, folder: Path, *arguments: str) -> str:
    """What a program of its own prints; the children import it again, so it must be a file."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=LONG)
        except subprocess.TimeoutExpired:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, 9)  # its children, too
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"did not end; it had written {out!r} and {err!r}")
    assert process.returncode == 0, err
    return out


SPAWN = """
    import multiprocessing, sys
    import numpy as np
    import fai_fast

    def found(detections):
        return detections.query.tolist(), detections.confidence.tolist(), int(detections.mask.sum())

    def child(model, frame, answers):
        answers.put(found(model.infer(frame, threshold=0.0)))

    if __name__ == "__main__":
        frame = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
        context = multiprocessing.get_context(sys.argv[2])
        options = {"device": "cpu", "precision": "fp32", "im_size": 64, "cache_dir": sys.argv[1]}
        with fai_fast.load("fai-mf-n-shapes", **options) as model:
            answers = context.Queue()
            process = context.Process(target=child, args=(model, frame, answers))
            process.start()
            assert answers.get(timeout=250) == found(model.infer(frame, threshold=0.0))
            process.join(30)
            assert process.exitcode == 0
            with context.Pool(1) as pool:
                [answer] = pool.map(model.infer, [frame])
            assert found(answer) == found(model.infer(frame))
        print("the same")
"""


@pytest.mark.parametrize(
    "method",
    ["spawn", pytest.param("forkserver", marks=pytest.mark.skipif(os.name == "nt", reason="has no fork"))],
)
def test_a_child_that_does_not_fork_runs_the_model(tmp_path, cache_dir, model, method):
    assert finish(SPAWN, tmp_path, str(cache_dir), method) == "the same\n"


LOADER = """
    import sys
    import numpy as np
    import torch
    import fai_fast

    OPTIONS = {"device": "cpu", "precision": "fp32", "im_size": 64, "cache_dir": sys.argv[1]}

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, model):
            self.model = model

        def __len__(self):
            return 3

        def __getitem__(self, index):
            if self.model is None:
                self.model = fai_fast.load("fai-mf-n-shapes", **OPTIONS)
            frame = np.random.default_rng(index).integers(0, 256, (80, 120, 3), np.uint8)
            return torch.from_numpy(self.model.infer(frame, threshold=0.0).confidence)

    def scores(model, workers=1):
        context = sys.argv[2] if workers else None
        options = {"num_workers": workers, "multiprocessing_context": context, "timeout": 250 * workers}
        loader = torch.utils.data.DataLoader(Pictures(model), batch_size=None, **options)
        return [item.tolist() for item in loader]

    if __name__ == "__main__":
        with fai_fast.load("fai-mf-n-shapes", **OPTIONS) as model:
            expected = scores(model, 0)
            # Loaded in the worker works with both kinds.
            assert scores(None) == expected
            try:
                assert scores(model) == expected
            except fai_fast.EngineError as error:
                assert "this process was forked" in str(error), error
                print("forked")
            else:
                print("the same")
"""


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("spawn", "the same\n"),
        pytest.param(
            "fork", "forked\n", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
        ),
    ],
)
def test_workers_of_a_data_loader(tmp_path, cache_dir, model, method, said):
    assert torch.utils.data  # what the program needs
    assert finish(LOADER, tmp_path, str(cache_dir), method) == said
