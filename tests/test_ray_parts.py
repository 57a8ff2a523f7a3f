"""The folder that `predict --ray` fills, without a cluster: what a run does again, what it refuses, what it leaves.

Needs pyarrow, of the extra `ray`; FAI_FAST_REQUIRE_RAY=1 makes its absence a failure.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager, nullcontext

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, cli
from fai_fast.cli import predict_ray, ray_parts
from fai_fast.cli.messages import UsageError
from fai_fast.cli.ray_parts import Parts, Run
from fai_fast.detections import arrow
from helpers.clusters import without_ray
from PIL import Image

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    without_ray(error)

MODEL = "fai-mf-n-shapes"
SPEC = fai_fast.spec(MODEL)


def run_of(*, by_pictures=False, **wanted):
    return Run(SPEC, {"model": MODEL, **wanted}, by_pictures=by_pictures)


def rows(names, time=5, failed=()):
    results = ["damaged" if name in failed else Detections.empty((4, 5)) for name in names]
    table = arrow.table(results, SPEC.classes)
    times = pa.array([time] * len(names), pa.timestamp("us", "UTC"))
    return table.append_column("path", pa.array(names)).append_column("modified", times)


def opened(folder, pictures=(), run=None, overwrite=False, time=5):
    return Parts(folder, run or run_of(), dict.fromkeys(pictures, time), overwrite=overwrite)


def filled(folder, names=("/a", "/b"), run=None, **options):
    with opened(folder, names, run) as parts:
        parts.add(rows(names, **options))
        parts.flush()


def there(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def names_in(folder):
    return pq.read_table(folder)["path"].to_pylist()


def test_files_are_written_as_rows_come(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_parts, "ROWS", 3)
    folder = tmp_path / "a" / "out"
    with opened(folder) as made:
        made.add(rows(["/a", "/b"], failed=["/b"]))
        assert there(folder) == []
        assert made.written == 0
        made.add(rows(["/c", "/d"]))
        assert there(folder) == ["part-000000.parquet"]
        made.add(rows(["/e"]))
        made.flush()
        made.flush()
        assert made.written == 5
    assert there(folder) == ["part-000000.parquet", "part-000001.parquet"]
    # A file of somebody else's is neither read nor taken away.
    (folder / "other.parquet").write_bytes(b"x")
    with opened(folder) as again:
        assert again.done == {"/a", "/c", "/d", "/e"}
        assert pq.read_table(folder / "part-000000.parquet")["path"].to_pylist() == ["/a", "/c", "/d"]
        again.add(rows(["/b"]))
        again.flush()
    assert there(folder) == ["other.parquet", *(f"part-00000{i}.parquet" for i in range(3))]


def test_what_many_masks_take_is_divided(tmp_path, monkeypatch):
    """pyarrow cannot read a row group whose texts have 2**31 bytes, nor should so much wait in memory."""
    size = rows(["/0"]).nbytes
    monkeypatch.setattr(ray_parts, "BYTES", 4 * size)
    monkeypatch.setattr(ray_parts, "_GROUP_BYTES", 2 * size)
    with opened(tmp_path) as made:
        for i in range(8):
            made.add(rows([f"/{i}"]))
    files = [pq.ParquetFile(tmp_path / name) for name in there(tmp_path)]
    assert len(files) > 1
    assert max(file.metadata.num_row_groups for file in files) > 1


def test_a_picture_that_was_changed_is_done_again(tmp_path):
    filled(tmp_path, ["/a", "/b", "/c"])
    with Parts(tmp_path, run_of(), {"/a": 5, "/b": 6, "/new": 5}, overwrite=False) as parts:
        # And what this run does not look at stays as it is.
        assert parts.done == {"/a", "/c"}
    assert names_in(tmp_path) == ["/a", "/c"]


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    with opened(tmp_path):
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="another run is writing to"):
                opened(tmp_path, overwrite=overwrite)
    filled(tmp_path)
    with pytest.raises(UsageError, match="other options"):
        opened(tmp_path, run=run_of(top_k=3))
    with opened(tmp_path):  # which a refused one has let go of
        pass


def test_what_a_killed_run_had_half_written_is_taken_away(tmp_path):
    half = tmp_path / ".0123456789abcdef.tmp.parquet"
    half.write_bytes(b"PAR1")
    (tmp_path / ".hidden").write_bytes(b"x")
    with opened(tmp_path):
        assert not half.exists()
        assert (tmp_path / ".hidden").exists()


def test_what_is_overwritten_stays_until_there_is_something_else(tmp_path):
    filled(tmp_path)
    with opened(tmp_path, ["/a"], run_of(top_k=1), overwrite=True) as parts:
        assert parts.done == set()
    assert names_in(tmp_path) == ["/a", "/b"]
    with opened(tmp_path, ["/a"], run_of(top_k=1), overwrite=True) as parts:
        parts.add(rows(["/a"]))
        parts.flush()
    assert names_in(tmp_path) == ["/a"]


def test_rows_of_other_options_models_and_columns_do_not_mix(tmp_path):
    filled(tmp_path, run=run_of(threshold=0.5, classes=("disc", "star")))
    for wanted, problem in (
        ({"threshold": 0.6, "classes": ["disc", "star"]}, r"other options \(threshold\)"),
        ({"classes": ["disc"]}, r"other options \(classes, threshold\)"),
        ({"threshold": 0.5, "classes": ["disc", "star"], "model": "m"}, r"other options \(model\)"),
    ):
        with pytest.raises(UsageError, match=problem):
            opened(tmp_path, run=run_of(**wanted))
    same = run_of(threshold=0.5, classes=["disc", "star"])
    with opened(tmp_path, run=same):
        pass
    part = tmp_path / "part-000000.parquet"
    table = pq.read_table(part)
    for changed, problem in (
        (table.drop_columns(["modified"]), "other columns"),
        (table.drop_columns(["mask"]), "other columns"),
        (table.replace_schema_metadata(None), "of something else"),
        (table.replace_schema_metadata({arrow.DOCUMENT: json.dumps({"wanted": 3})}), "of something else"),
    ):
        pq.write_table(changed, part)
        with pytest.raises(UsageError, match=problem):
            opened(tmp_path, run=same)


def test_a_file_that_was_changed_is_another_model(tmp_path):
    weights, folder = tmp_path / "w.pth", tmp_path / "model"
    folder.mkdir()
    for file in (weights, folder / "config.json"):
        file.write_bytes(b"one")

    def both():
        return run_of(weights=str(weights), model=str(folder))

    filled(tmp_path / "out", run=both())
    with opened(tmp_path / "out", run=both()):
        pass
    for file in (weights, folder / "config.json"):
        file.write_bytes(b"other")
        with pytest.raises(UsageError, match=f"before {weights if file == weights else folder} was changed"):
            opened(tmp_path / "out", run=both())
        file.write_bytes(b"one")


def test_no_secret_is_kept(tmp_path):
    filled(tmp_path, run=run_of(weights="https://u:secret@h/a.pth?token=secret"))
    assert b"secret" not in (tmp_path / "part-000000.parquet").read_bytes()
    with opened(tmp_path, run=run_of(weights="https://u:secret@h/a.pth?token=secret")):
        pass


def test_more_pictures_of_another_shape_keep_the_inputs_size(tmp_path, monkeypatch):
    """As rows of two sizes do not mix, nobody could add any to a folder."""
    seen = []

    def work(self, ray, todo, wanted):
        seen.append(wanted.get("im_size"))
        self._parts.add(rows(list(todo), time=None))
        self._parts.flush()

    monkeypatch.setattr(predict_ray, "_cluster", nullcontext)
    monkeypatch.setattr(predict_ray._Run, "run", work)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((40, 80, 3), np.uint8)).save("a.png")
    assert cli.main(["predict", MODEL, "a.png", "--ray"]) == 0
    Image.fromarray(np.zeros((80, 40, 3), np.uint8)).save("b.png")
    assert cli.main(["predict", MODEL, "b.png", "--ray"]) == 0
    assert seen[0] == seen[1]
    assert seen[0][0] < seen[0][1]
    assert cli.main(["predict", MODEL, "b.png", "--ray", "--im-size", "64"]) == 2
    assert cli.main(["predict", MODEL, "b.png", "--ray", "--overwrite"]) == 0
    assert seen[2] == seen[0][::-1]


@pytest.mark.skipif(os.name != "posix", reason="names that are no text are POSIX's")
def test_a_name_that_is_no_text_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = b"caf\xe9.png"
    try:
        open(name, "wb").close()
    except OSError:
        pytest.skip("this file system takes no such name")
    assert cli.main(["predict", MODEL, ".", "--ray"]) == 1
    assert "not UTF-8" in capsys.readouterr().err
    assert not (tmp_path / predict_ray.OUTPUT).exists()


def test_what_is_wrong_with_a_worker_is_one_sentence(monkeypatch):
    from fai_fast.cli import ray_worker
    from fai_fast.errors import EngineError

    batch = pa.table({"path": ["/a", "/b"]})
    bad = ray_worker.Worker(model=MODEL, weights="/gone.pth")
    assert "/gone.pth" in ray_worker.failure_in(bad(batch))

    class Detector:
        def __init__(self, **_):
            pass

        def __call__(self, batch):
            if batch.num_rows == 2:
                raise EngineError("out of order")
            return rows(batch["path"].to_pylist())

    monkeypatch.setattr(ray_worker, "Detector", Detector)
    worker = ray_worker.Worker()
    assert ray_worker.failure_in(worker(batch)) == "out of order"
    assert ray_worker.failure_in(worker(batch.slice(0, 1))) is None


class Rays:
    """Ray with one machine, on which the work has been done already; without tables it is done here."""

    def __init__(self, tables=None, cpus=2, gpus=0):
        self.tables, self.cpus, self.gpus = tables, cpus, gpus
        self.data, self.given = self, {}

    def cluster_resources(self):
        return {"CPU": self.cpus, "GPU": self.gpus}

    def nodes(self):
        return [
            {"Alive": True, "Resources": self.cluster_resources()},
            {"Alive": False, "Resources": {"CPU": 99}},
        ]

    def from_arrow(self, tables):
        self.tasks = tables
        return self

    def map_batches(self, worker, **given):
        self.given = given
        if self.tables is None:
            self.tables = map(worker(**given["fn_constructor_kwargs"]), self.tasks)
        return self

    def ActorPoolStrategy(self, size):
        return size

    def iter_batches(self, **_):
        for table in self.tables:
            if isinstance(table, Exception):
                raise table
            yield table


@pytest.fixture
def predict(tmp_path, monkeypatch):
    """The command, of some pictures, on a Rays."""

    @contextmanager
    def cluster(args):
        yield predict.ray

    def predict(ray, *more, names=("a", "b")):
        predict.ray = ray
        for name in names:
            (tmp_path / f"{name}.png").write_bytes(b"x")
        return cli.main(["predict", MODEL, str(tmp_path), "--im-size", "64", "--ray", "local", *more])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict_ray, "_cluster", cluster)
    return predict


@pytest.mark.parametrize("error", [RuntimeError("enough"), "a worker's"])
def test_what_came_before_an_error_is_kept(predict, tmp_path, capsys, error):
    wrong = arrow.table(["enough"]).append_column("path", pa.nulls(1, pa.string()))
    last = wrong if isinstance(error, str) else error
    assert predict(Rays([rows(["/a"]), rows(["/b"], failed=["/b"]), last, rows(["/c"])])) == 1
    assert "enough" in capsys.readouterr().err
    assert names_in(tmp_path / predict_ray.OUTPUT) == ["/a", "/b"]
    # Nothing of it is left behind, and what was begun goes on.
    with opened(tmp_path / "other"):
        assert predict(Rays([rows(["/c"])])) == 0
    assert names_in(tmp_path / predict_ray.OUTPUT) == ["/a", "/c"]


def test_a_disk_that_is_full_leaves_whole_files(predict, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ray_parts, "ROWS", 1)
    written = []

    def full(rows, path, **options):
        if written:
            path.write_bytes(b"PAR1 half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(rows, path, **options)

    write = pq.write_table
    monkeypatch.setattr(pq, "write_table", full)
    assert predict(Rays([rows(["/a"]), rows(["/b"]), rows(["/c"])])) == 1
    assert "No space left" in capsys.readouterr().err
    output = tmp_path / predict_ray.OUTPUT
    assert sorted(path.name for path in output.iterdir()) == [".fai_fast.lock", "part-000000.parquet"]


def test_what_no_machine_has_is_told_before_the_work(predict, capsys, caplog):
    for more, problem in (
        (["--threads", "3"], "--threads: got 3, and no machine has more than 2 cores"),
        (["--device", "cuda"], "--device: got cuda, and no machine has a GPU"),
    ):
        assert predict(Rays([]), *more) == 2
        assert problem in capsys.readouterr().err
    ray = Rays([], cpus=5, gpus=1)
    assert predict(ray, "--threads", "2") == 0
    assert (ray.given["num_gpus"], ray.given["num_cpus"]) == (1, 2)
    assert predict(ray, "--threads", "2", "--device", "cpu") == 0
    assert (ray.given["compute"], ray.given["num_cpus"]) == (2, 2)
    assert "num_gpus" not in ray.given
    assert sum(task.num_rows for task in ray.tasks) == 2


def test_a_panoptic_model_has_the_same_columns(predict, tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from helpers.colors import BLUE, RED, SPEC, graph

    onnx.save(graph(), tmp_path / "theirs.onnx")
    (tmp_path / "spec.json").write_text(json.dumps(SPEC.to_dict()))
    image = np.full((40, 60, 3), BLUE, np.uint8)
    image[10:30, 20:40] = RED
    Image.fromarray(image).save(tmp_path / "street.png")
    options = {"engine": "onnxruntime", "precision": "fp32"}
    command = ["predict", "theirs.onnx", "street.png", "--spec", "spec.json", "--ray", "local"]
    monkeypatch.setattr(predict, "ray", Rays(), raising=False)
    assert cli.main([*command, *(text for name in options for text in (f"--{name}", options[name]))]) == 0
    with fai_fast.load(tmp_path / "theirs.onnx", spec=SPEC, num_threads=1, **options) as model:
        expected = model.infer(image)
    (found,) = Detections.from_parquet(predict_ray.OUTPUT)
    assert found == expected
    assert sorted(found.is_thing.tolist()) == [False, True]
    assert np.array_equal(found.label_map, expected.label_map)
    (row,) = pq.read_table(predict_ray.OUTPUT).to_pylist()
    assert row["label_map"] is True
