"""fai_fast.ray on Ray Data: what comes out equals `infer` bit for bit, in one process and on a cluster of two nodes.

Needs the extra `ray`; FAI_FAST_REQUIRE_RAY=1 makes its absence a failure.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, cli
from fai_fast._options import InferOptions
from fai_fast._scenes import draw
from fai_fast.cli.messages import UsageError
from fai_fast.ray import Detector, VideoDetector, ship_cache
from fai_fast.ray.detector import divided
from fai_fast.ray.resources import Given
from helpers.clusters import add_node, cluster, without_ray
from PIL import Image

try:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray
    import ray.data
except ImportError as error:
    without_ray(error)

# Ray's own, and its processes' sockets that it leaves to the collector.
pytestmark = pytest.mark.filterwarnings("ignore")

MODEL = "fai-mf-n-shapes"
# One thread: sums of several may be added up in another order.
LOAD = {"model": MODEL, "im_size": 64, "precision": "fp32", "engine": "openvino"}
ASKED = {"threshold": 0.1}
SIZES = [(64, 96), (97, 64), (50, 130), (64, 96)]
WAIT = 120  # seconds, only against hanging


def picture(index):
    return draw(index, SIZES[index % len(SIZES)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of three sizes, and one that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(12):
        Image.fromarray(picture(index)).save(folder / f"{index:02d}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def paths(folder):
    return sorted(str(path) for path in folder.iterdir())


@pytest.fixture(scope="module")
def model():
    name, *options = LOAD
    with fai_fast.load(LOAD[name], num_threads=1, **{key: LOAD[key] for key in options}) as model:
        yield model


@pytest.fixture(scope="module")
def expected(model, paths):
    """What `infer` finds in each picture that is one."""
    found = {path: model.infer(path, **ASKED) for path in paths if "bad" not in path}
    assert sum(map(len, found.values())) > 12
    return found


@pytest.fixture(scope="module")
def caches(tmp_path_factory, model):
    """Of the first node the cache of this process, where the model is; of the others one of their own."""
    return [os.environ["FAI_FAST_CACHE"], str(tmp_path_factory.mktemp("node1"))]


@pytest.fixture(scope="module")
def two_nodes(caches):
    with cluster(caches) as made:
        yield made


@pytest.fixture(scope="module")
def detector():
    return Detector(**LOAD, num_threads=1, **ASKED)


def assert_equals(table, expected, names):
    """Rows with paths are what `infer` found in them; the picture that is none is an error."""
    rows = table.to_pylist()
    assert sorted(row["path"] for row in rows) == sorted([*expected, *_bad(rows)])
    for row in rows:
        if row["path"] in expected:
            assert row["error"] is None
            assert Detections.from_arrow(row, class_names=names) == expected[row["path"]]
        else:
            assert "is no picture" in row["error"]
            assert row["class_id"] is None
            assert row["height"] is None
            assert row["latency_ms"] is None


def _bad(rows):
    bad = [row["path"] for row in rows if row["path"].endswith("bad.png")]
    assert len(bad) == 1
    return bad


def actors(count):
    return ray.data.ActorPoolStrategy(size=count)


def on_cluster(paths, blocks, kind=Detector, size=2, remote=None, **more):
    tables = [pa.table({"path": paths[at::blocks]}) for at in range(blocks)]
    return ray.data.from_arrow(tables).map_batches(
        kind,
        fn_constructor_kwargs={**LOAD, **ASKED, **more},
        batch_size=None,
        batch_format="pyarrow",
        compute=actors(size),
        **({"num_cpus": 1} if remote is None else remote),
    )


def collected(dataset):
    """All rows as one table, with a type for each column."""
    return pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))


# ------------------------------------------------------------------------------------------------ in this process


def as_format(rows, form):
    """Columns, each a list, as Ray gives a batch."""
    if form == "pyarrow":
        return pa.table(rows)
    if form == "pandas":
        return pd.DataFrame(rows)
    batch = {}
    for name, values in rows.items():
        kind = object if isinstance(values[0], (str, bytes)) else None
        batch[name] = np.array(values, kind)
    return batch


@pytest.mark.parametrize("form", ["numpy", "pandas", "pyarrow"])
@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_files_in_every_format_of_batches(detector, paths, expected, model, form, kind):
    rows = {"number": list(range(len(paths))), "path": paths}
    if kind == "bytes":
        rows["bytes"] = [Path(path).read_bytes() for path in paths]
    table = detector(as_format(rows, form))
    assert isinstance(table, pa.Table)
    assert table["number"].to_pylist() == rows["number"]
    assert "bytes" not in table.column_names
    if kind == "bytes":
        bad = table.filter(pa.compute.is_valid(table["error"]))
        assert bad.num_rows == 1
        assert "no picture" in bad["error"][0].as_py()
    assert_equals(table, expected, model.spec.classes)


@pytest.mark.parametrize("form", ["numpy", "objects", "pandas"])
def test_pixels_of_one_size_and_of_several(detector, model, form):
    frames = [picture(index) for index in (range(0, 12, 4) if form == "numpy" else range(6))]
    column = np.stack(frames) if form == "numpy" else np.empty(len(frames), object)
    if form != "numpy":
        column[:] = frames
    batch = {"image": column, "name": np.array([f"p{i}" for i in range(len(frames))], object)}
    table = detector(
        pd.DataFrame({"image": list(column), "name": batch["name"]}) if form == "pandas" else batch
    )
    assert table.column_names[0] == "name"
    assert "image" not in table.column_names
    for row, frame in zip(table.to_pylist(), frames, strict=True):
        assert Detections.from_arrow(row, class_names=model.spec.classes) == model.infer(frame, **ASKED)


def test_gray_and_transparent_pixels_and_what_is_none(detector, model):
    rgb = picture(0)
    gray = np.ascontiguousarray(rgb[..., 0])
    items = [rgb, gray, gray[..., None], np.dstack([rgb, gray]), None, rgb.astype(np.float32), rgb[:, :, :2]]
    column = np.empty(len(items), object)
    column[:] = items
    rows = detector({"image": column}).to_pylist()
    seen_gray = np.repeat(gray[..., None], 3, axis=2)
    for row, frame in zip(rows, [rgb, seen_gray, seen_gray, rgb], strict=False):
        assert Detections.from_arrow(row, class_names=model.spec.classes) == model.infer(frame, **ASKED)
    assert rows[4]["error"] == "image: got null, expected pixels"
    assert all(row["error"] and row["class_id"] is None for row in rows[4:])


def test_what_is_no_picture_is_a_row_and_never_the_batch(detector):
    column = np.empty(6, object)
    column[:] = [[[1, 2], [3]], "text", {"a": 1}, np.zeros((0, 5, 3), np.uint8), pd.NA, float("nan")]
    rows = detector({"image": column}).to_pylist()
    assert all(row["error"].startswith("image: got ") for row in rows)
    assert [row["error"] for row in rows[4:]] == ["image: got null, expected pixels"] * 2
    # Names that no text of Arrow's can hold, and paths that are no str.
    column[:] = ["a\udcff.png", Path("/gone.png"), b"x", 5, None, "a\0"]
    rows = detector({"path": column}).to_pylist()
    assert all(row["error"] for row in rows)
    assert rows[0]["error"] == "image: no such file: a\\udcff.png"
    assert "no such file: /gone.png" in rows[1]["error"]


def test_a_batch_of_the_engine_and_several_threads_give_the_same(paths, expected, model):
    several = Detector(**LOAD, **ASKED, batch_size=2, num_threads=1)
    assert several.model.batch_size == 2
    found = several({"path": np.array(paths, object)})
    with fai_fast.load(MODEL, im_size=64, precision="fp32", num_threads=1, batch_size=2) as twice:
        together = twice.infer_batch(list(expected), **ASKED)
    assert_equals(found, dict(zip(expected, together, strict=True)), model.spec.classes)
    frames = np.empty(3, object)
    frames[:] = [picture(0), picture(1)[:, :, :2], picture(1)]
    rows = several({"image": frames}).to_pylist()
    assert [row["error"] is None for row in rows] == [True, False, True]


def test_columns_have_names_of_the_callers_choice(model, paths):
    chosen = Detector(**LOAD, **ASKED, num_threads=1, bytes="content", keep=True)
    batch = {"content": [Path(paths[0]).read_bytes(), None], "path": ["a", "b"], "image": [1, 2]}
    table = chosen(pa.table(batch))
    assert table.column_names[:3] == ["content", "path", "image"]
    assert table["content"].to_pylist() == batch["content"]
    assert table["error"].to_pylist() == [None, "bytes: got null, expected the bytes of a picture"]
    with pytest.raises(ValueError, match="no column of"):
        chosen(pa.table({"other": [1]}))


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"threshhold": 0.5}, TypeError, "threshhold: there is no such option"),
        ({"threshold": 50}, ValueError, "threshold"),
        ({"classes": ["dragon"]}, ValueError, "dragon"),
        ({"engine": "steam"}, ValueError, "steam"),
        ({"model": "nothing"}, ValueError, "nothing"),
        ({"image": "a", "path": "b"}, ValueError, "image, path: got more than one"),
        ({"path": 3}, TypeError, "path: got int"),
        ({"keep": 1}, TypeError, "keep"),
        ({"masks_device": True}, TypeError, "masks_device"),
    ],
)
def test_what_is_wrong_with_the_options_is_told_before_the_first_picture(options, error, problem):
    with pytest.raises(error, match=problem):
        Detector(**{**LOAD, "num_threads": 1, **options})


def test_a_model_that_is_loaded_already_is_refused(model):
    with pytest.raises(TypeError, match="each worker loads its own"):
        Detector(model)


def test_batches_that_are_none(detector):
    with pytest.raises(ValueError, match="image or bytes or path"):
        detector({"picture": np.array([1])})
    with pytest.raises(TypeError, match="map_batches, not map"):
        detector({"path": "a.png"})
    with pytest.raises(TypeError, match="got list"):
        detector([1])
    with pytest.raises(ValueError, match="a column height already"):
        detector(pa.table({"path": ["a.png"], "height": [3]}))
    with pytest.raises(ValueError, match="several columns path"):
        detector(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["path", "path"]))
    assert detector(pa.table({"path": pa.array([], pa.string())})).num_rows == 0


def test_an_engine_that_fails_ends_the_batch(detector, monkeypatch, paths):
    def fail(*_, **__):
        raise fai_fast.EngineError("out of order")

    monkeypatch.setattr(detector.model, "submit", fail)
    with pytest.raises(fai_fast.EngineError, match="out of order"):
        detector({"path": np.array(paths, object)})


def test_the_device_and_the_threads_are_those_that_ray_gave(monkeypatch):
    from fai_fast.ray import resources

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(resources, "given", lambda: Given(3, 0))
    assert resources.load_options({}) == {"device": "cpu", "num_threads": 3}
    assert resources.load_options({"num_threads": 1, "device": "cpu"}) == {"device": "cpu", "num_threads": 1}
    with pytest.raises(ValueError, match="pass num_gpus=1"):
        resources.load_options({"device": "cuda"})
    monkeypatch.setattr(resources, "given", lambda: Given(1, 2))
    assert resources.load_options({}) == {"device": "cuda:0", "num_threads": 1}
    assert resources.load_options({"device": "cpu"})["device"] == "cpu"
    monkeypatch.setattr(resources, "given", lambda: None)
    assert resources.load_options({"im_size": 64}) == {"im_size": 64}


# ---------------------------------------------------------------------------------------------- on two nodes


class Telling(Detector):
    """What it runs on, beside what it found. It ends its process, once, at the picture that a file names."""

    def __init__(self, *, marker=None, **options):
        super().__init__(**options)
        self.marker = marker

    def __call__(self, batch):
        if self.marker is not None and any(path.endswith("05.png") for path in batch["path"].to_pylist()):
            try:
                Path(self.marker).touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os._exit(1)
        table = super().__call__(batch)
        info = self.model.info()
        said = {
            "node": ray.get_runtime_context().get_node_id(),
            "process": str(os.getpid()),
            "artefacts": " ".join(info["artefacts"].values()),
            "threads": str(info["engine"]["threads"]),
            "omp": os.environ.get("OMP_NUM_THREADS", ""),
        }
        for name, value in said.items():
            table = table.append_column(name, pa.array([value] * table.num_rows))
        time.sleep(0.3)  # so that the other one gets something to do
        return table


class Slow(Detector):
    def __call__(self, batch):
        time.sleep(0.1)
        table = super().__call__(batch)
        node = ray.get_runtime_context().get_node_id()
        return table.append_column("node", pa.array([node] * table.num_rows))


def test_the_drivers_cache_spares_a_node_the_work(two_nodes, paths, caches, expected):
    """The first on that node: what it finds there, nobody else has left."""
    shipped = ship_cache(MODEL, im_size=64, precision="fp32", engine="openvino", num_threads=1)
    assert shipped.size > 1 << 20
    remote = {"num_cpus": 1, "resources": {"node1": 1}}
    found = collected(on_cluster(paths, 2, Telling, 1, remote=remote, shipped=shipped))
    texts = set(found["artefacts"].to_pylist())
    assert all(text.count("from the cache") == 2 and caches[1] in text for text in texts), texts
    assert shipped.unpack(caches[1]) == 0


def test_both_nodes_work_and_a_worker_that_dies_loses_nothing(two_nodes, paths, expected, model, tmp_path):
    found = collected(on_cluster(paths, 6, Telling, marker=str(tmp_path / "died")))
    assert (tmp_path / "died").exists()
    assert len(set(found["node"].to_pylist())) == 2
    assert set(found["threads"].to_pylist()) == {"1"}
    assert set(found["omp"].to_pylist()) == {"1"}
    assert_equals(found, expected, model.spec.classes)


def test_pixels_that_ray_has_read_pass_through_its_store(two_nodes, paths, expected, model):
    good = [path for path in paths if "bad" not in path]
    found = ray.data.read_images(good, include_paths=True).map_batches(
        Detector, fn_constructor_kwargs={**LOAD, **ASKED}, batch_size=4, compute=actors(1), num_cpus=1
    )
    rows = found.take_all()
    assert len(rows) == len(good)
    for row in rows:
        assert Detections.from_arrow(row, class_names=model.spec.classes) == expected[row["path"]]


def test_two_workers_of_a_node_build_once(two_nodes, paths, caches):
    """In a size that nobody has made yet."""
    remote = {"num_cpus": 0.5, "resources": {"node1": 1}}
    found = collected(on_cluster(paths, 8, Telling, remote=remote, im_size=96))
    by_process = {row["process"]: row["artefacts"] for row in found.to_pylist()}
    assert len(by_process) == 2
    assert all(caches[1] in text for text in by_process.values())
    assert sum(text.count("(built") for text in by_process.values()) == 2, by_process  # graph and engine
    assert sum(text.count("from the cache") for text in by_process.values()) == 2, by_process


def test_a_model_that_cannot_be_loaded_ends_the_run(two_nodes, paths):
    with pytest.raises(Exception, match="no-such-model"):
        on_cluster(paths, 1, size=1, model="no-such-model").take_all()


def test_no_pictures_are_no_rows(two_nodes):
    empty = ray.data.from_arrow(pa.table({"path": pa.array([], pa.string())})).map_batches(
        Detector, fn_constructor_kwargs={**LOAD}, compute=actors(1), num_cpus=1
    )
    assert empty.take_all() == []


def test_clips(two_nodes, tmp_path, model):
    pytest.importorskip("av")
    from helpers.videos import write_video

    clip = str(write_video(tmp_path / "a.mp4", 7, size=(64, 96), image=picture(0)))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(Path(clip).read_bytes()[:700])
    clips = [clip, str(cut), str(tmp_path / "gone.mp4")]
    frames = collected(
        ray.data.from_items(
            [{"path": path, "site": f"s{i}"} for i, path in enumerate(clips)], override_num_blocks=3
        ).map_batches(
            VideoDetector,
            fn_constructor_kwargs={**LOAD, **ASKED, "frames_per_table": 3},
            batch_size=1,
            compute=actors(2),
            num_cpus=1,
        )
    ).to_pylist()
    good = [row for row in frames if row["path"] == clip]
    with model.stream(clip, **ASKED) as stream:
        truth = [(frame.id, frame.pts, found) for frame, found in stream]
    assert len(truth) == 7
    assert [(row["frame"], row["timestamp"]) for row in good] == [item[:2] for item in truth]
    for row, (number, _, found) in zip(good, truth, strict=True):
        again = Detections.from_arrow(row, class_names=model.spec.classes)
        assert again == found
        assert (again.source.path, again.source.frame) == (clip, number)
    assert {row["site"] for row in good} == {"s0"}
    for path, word in zip(clips[1:], ["cut.mp4", "no such file"], strict=True):
        (row,) = [row for row in frames if row["path"] == path]
        assert word in row["error"]
        assert row["frame"] is None
        assert row["class_id"] is None


def test_clips_as_bytes_and_wrong_options(tmp_path, model):
    pytest.importorskip("av")
    from helpers.videos import write_video

    clip = write_video(tmp_path / "a.mp4", 3, size=(64, 96), image=picture(0))
    on_clips = VideoDetector(**LOAD, num_threads=1, stride=2)
    tables = list(on_clips({"bytes": np.array([clip.read_bytes(), None], object)}))
    assert [table["frame"].to_pylist() for table in tables] == [[0, 2], [None]]
    assert tables[1]["error"].to_pylist() == ["bytes: got null, expected the bytes of a video"]
    for options, problem in (
        ({"policy": "some"}, "policy"),
        ({"stride": 0}, "stride"),
        ({"frames_per_table": 0}, "frames"),
    ):
        with pytest.raises(ValueError, match=problem):
            VideoDetector(**LOAD, num_threads=1, **options)


# ---------------------------------------------------------------------------------------------- the command line


def predict(folders, output, *more):
    folders = folders if isinstance(folders, list) else [folders]
    command = ["predict", MODEL, *map(str, folders), "--ray", "--output", str(output), "--im-size", "64"]
    return cli.main([*command, "--precision", "fp32", "--engine", "openvino", "--threshold", "0.1", *more])


def parts(output):
    return sorted(path.name for path in output.iterdir() if not path.name.startswith("."))


@pytest.fixture
def interruptible():
    """SIGINT as a program in the foreground has it: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_predict_ends_at_a_signal_and_goes_on(
    two_nodes, folder, expected, model, interruptible, tmp_path, monkeypatch, capsys
):
    from fai_fast.cli import predict_ray

    took = predict_ray._Run._took

    def then_a_signal(self, rows):
        took(self, rows)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(predict_ray._Run, "_took", then_a_signal)
    output = tmp_path / "found.parquet"
    one = ["--ray-workers", "1"]  # for less to start
    assert predict(folder, output, *one) == 130
    first = pq.read_table(output)
    assert 0 < first.num_rows < 13
    failed = sum(text is not None for text in first["error"].to_pylist())
    assert parts(output) == ["part-000000.parquet"]
    capsys.readouterr()

    # What is there is not done again; what failed is, and one picture is new.
    monkeypatch.setattr(predict_ray._Run, "_took", took)
    late = tmp_path / "late"
    late.mkdir()
    Image.fromarray(picture(3)).save(late / "late.png")
    assert predict([folder, late], output, *one) == 1  # of the bad one
    said = capsys.readouterr().err
    assert f"{first.num_rows - failed} done before" in said
    assert f"{14 - first.num_rows + failed} pictures" in said
    assert "1 failed" in said
    assert "bad.png is no picture" in said
    there = {**expected, str(late / "late.png"): model.infer(late / "late.png", **ASKED)}
    assert_equals(pq.read_table(output), there, model.spec.classes)
    for found in Detections.from_parquet(output, skip_errors=True):
        assert found == there[found.source.path]
        assert found.class_names == model.spec.classes

    # Nothing is left to do, and no cluster is needed.
    assert predict(late, output) == 0
    assert "1 done before" in capsys.readouterr().err
    # Rows of other options do not mix.
    assert predict(folder, output, "--top-k", "1") == 2
    assert "other options (top_k)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--json", "a.json"], "--json: belongs to a run without --ray"),
        (["--show"], "--show"),
        (["--no-images"], "--no-images"),
        (["--format", "yolo"], "--format"),
        (["--ray", "photos/a"], "expected an address"),
        (["--classes", "dragon"], "dragon"),
        (["--output", ""], "--output: got ''"),
    ],
)
def test_predict_refuses_what_it_does_not_do(folder, tmp_path, monkeypatch, capsys, more, problem):
    monkeypatch.chdir(tmp_path)
    assert predict(folder, tmp_path / "found", *more) == 2
    assert problem in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_predict_hands_on_what_is_said_of_a_network(folder, tmp_path, monkeypatch):
    """What --spec and --task say goes to the workers too, and tells one run from another."""
    from fai_fast.cli import predict_ray

    asked = []

    def known(*given):
        asked.append(given)
        return fai_fast.spec(MODEL)

    def planned(spec, wanted, **_):
        asked.append(wanted)
        raise UsageError("enough")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.json").write_text("{}")
    monkeypatch.setattr(predict_ray, "spec_of", known)
    monkeypatch.setattr(predict_ray, "Run", planned)
    assert predict(folder, "found", "--spec", "spec.json", "--task", "instance") == 2
    [given, wanted] = asked
    assert given == (MODEL, "spec.json", "instance", None)
    assert (wanted["spec"], wanted["task"]) == (str(tmp_path / "spec.json"), "instance")
    options, _ = divided({"spec": wanted["spec"], "task": wanted["task"]}, InferOptions)
    assert options == {"spec": wanted["spec"], "task": "instance"}


def test_predict_of_no_pictures_and_of_videos(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert predict(tmp_path / "empty", "found") == 1
    assert "no pictures" in capsys.readouterr().err
    assert predict("a.mp4", "found") == 1
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert predict("a.mp4", "found") == 2
    assert "VideoDetector" in capsys.readouterr().err
    (tmp_path / "file").write_bytes(b"x")
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    assert predict("a.png", "file") == 2
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "part-000000.parquet").write_bytes(b"x")
    assert predict("a.png", "found") == 2
    assert "is no Parquet file" in capsys.readouterr().err
    assert cli.main(["predict", MODEL, "a.png", "--ray-workers", "2"]) == 2


# ------------------------------------------------------------------------------ last, as they change the cluster


def test_a_node_that_goes_loses_nothing(two_nodes, paths, expected, model, caches):
    third = add_node(two_nodes, 2, caches[1])
    more = paths * 2
    found = on_cluster(more, len(more), Slow, size=3)
    rows, removed = [], False
    for table in found.iter_batches(batch_size=None, batch_format="pyarrow"):
        rows.append(table)
        if not removed and third.node_id in table["node"].to_pylist():
            two_nodes.remove_node(third, allow_graceful=False)
            removed = True
    assert removed
    table = pa.concat_tables(rows)
    assert sorted(table["path"].to_pylist()) == sorted(more)
    for row in table.to_pylist():
        if row["path"] in expected:
            assert Detections.from_arrow(row, class_names=model.spec.classes) == expected[row["path"]]


def test_the_package_is_importable_without_ray():
    script = "import sys; sys.modules['ray'] = None; import fai_fast.ray\ntry: fai_fast.ray.Detector('m')\n"
    script += "except ImportError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(fai_fast.__file__).parents[1])},
    )
    assert done.stdout.strip() == "fai_fast.ray needs Ray: pip install 'fai-fast[ray]'", done.stderr
