"""Predictions in Parquet files: measured as the model that made them would be, and as COCO's results.

Needs pyarrow, of the extra `ray`; FAI_FAST_REQUIRE_RAY=1 makes its absence a failure.
"""

from __future__ import annotations

import json
import shutil
from pathlib import PurePath

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, cli, evaluate
from fai_fast._scenes import draw
from fai_fast.detections import arrow
from fai_fast.evaluate.stored import Ends
from helpers.clusters import without_ray
from PIL import Image

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    without_ray(error)

pytest.importorskip("faster_coco_eval")

MODEL = "fai-mf-n-shapes"
SIZE = (96, 128)


@pytest.fixture(scope="module")
def model():
    with fai_fast.load(MODEL, im_size=96, precision="fp32") as model:
        yield model


@pytest.fixture(scope="module")
def data(tmp_path_factory, model):
    """Pictures in two folders, with what the model is surest of as truth, moved a little; and the model's own AP."""
    folder = tmp_path_factory.mktemp("data")
    images, annotations = [], []
    for index in range(4):
        name = f"{'ab'[index % 2]}/{index // 2}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(draw(index, SIZE)).save(folder / name)
        images.append({"id": 10 + index, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        found = model.infer(folder / name, threshold=0.5)
        for mask, class_id in zip(found.mask, found.class_id.tolist(), strict=True):
            moved = Detections(
                xyxy=[[0, 0, 1, 1]],
                confidence=[1],
                class_id=[class_id],
                size=SIZE,
                mask=np.roll(mask, 2, 1)[None],
            )
            (item,) = moved.to_coco(10 + index)
            annotations.append({**item, "id": len(annotations) + 1, "category_id": 7 * class_id + 1})
    categories = [{"id": 7 * i + 1, "name": name} for i, name in enumerate(model.spec.classes)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(document))
    assert len(annotations) > 8
    return folder, evaluate.coco(model, folder, folder / "truth.json", buckets=1)


def predictions(model, folder, *, threshold=0.0, root=None, document=None):
    """A table of what the model finds; paths are in `root` in place of the folder."""
    pictures = sorted(folder.glob("*/*.png"))
    results = [model.infer(path, threshold=threshold) for path in pictures]
    table = arrow.table(results, model.spec.classes)
    paths = [str((root or folder) / path.relative_to(folder)) for path in pictures]
    table = table.append_column("path", pa.array(paths))
    if document is not None:
        table = table.replace_schema_metadata({**table.schema.metadata, arrow.DOCUMENT: json.dumps(document)})
    return table


def test_ap_is_that_of_the_model(model, data, tmp_path):
    folder, expected = data
    document = {
        "model": MODEL,
        "task": "instance",
        "wanted": {"im_size": 96, "precision": "fp32", "threshold": 0.0},
    }
    pq.write_table(predictions(model, folder, document=document), tmp_path / "part-000000.parquet")
    report = evaluate.coco_stored(tmp_path, folder, folder / "truth.json")
    assert report.metrics == expected.metrics
    assert 10 < report.metrics["segm/AP"] < 100
    assert report.per_class == expected.per_class
    assert (report.images, report.objects, report.detections) == (4, expected.objects, expected.detections)
    assert (report.model, report.im_size, report.precision) == (MODEL, (96, 96), "fp32")
    assert report.published == expected.published


def test_files_that_were_elsewhere_are_found_by_their_ends(model, data, tmp_path, caplog):
    folder, expected = data
    pq.write_table(predictions(model, folder, root=PurePath("/mnt/elsewhere")), tmp_path / "x.parquet")
    report = evaluate.coco_stored(tmp_path / "x.parquet", folder, folder / "truth.json")
    assert report.metrics == expected.metrics
    # Nothing says what made them.
    assert report.model == "predictions"
    assert "input unknown, stored unknown" in report.table()


def test_a_threshold_of_the_run_is_told(model, data, tmp_path, caplog):
    folder, _ = data
    document = {"model": MODEL, "task": "instance", "wanted": {"im_size": [96, 96]}}
    pq.write_table(predictions(model, folder, threshold=0.5, document=document), tmp_path / "x.parquet")
    report = evaluate.coco_stored(tmp_path / "x.parquet", folder, folder / "truth.json")
    assert report.threshold == 0.5
    assert "leave out what scores less than 0.5" in caplog.text
    higher = evaluate.coco_stored(tmp_path / "x.parquet", folder, folder / "truth.json", threshold=0.8)
    assert higher.detections < report.detections


def test_what_does_not_fit_is_told(model, data, tmp_path):
    folder, _ = data
    file, truth = tmp_path / "x.parquet", folder / "truth.json"
    table = predictions(model, folder)

    def refused(table, problem, kind=ValueError, **options):
        pq.write_table(table, file)
        with pytest.raises(kind, match=problem):
            evaluate.coco_stored(file, folder, truth, **options)

    refused(table.slice(1), "predictions: 1 of 4 files are missing", FileNotFoundError)
    refused(table.slice(4), "4 of 4 files", FileNotFoundError, skip_missing=True)
    refused(pa.concat_tables([table, table.slice(0, 1)]), "there twice")
    refused(table.drop_columns(["path"]), "no column path")
    wrong = {"model": "m", "task": "semantic"}
    refused(predictions(model, folder, document=wrong), "semantic model")
    names = {**table.schema.metadata, arrow.CLASS_NAMES: json.dumps(["x", "y"])}
    refused(table.replace_schema_metadata(names), "categories")
    bad = arrow.table(["it is damaged"]).append_column("path", pa.array([str(folder / "a" / "0.png")]))
    refused(
        pa.concat_tables([bad.replace_schema_metadata(None), table.replace_schema_metadata(None)]), "damaged"
    )
    pq.write_table(table.slice(1), file)
    report = evaluate.coco_stored(file, folder, truth, skip_missing=True)
    assert report.images == 3
    assert [PurePath(path).name for path in report.missing] == ["0.png"]


def test_cocos_results(model, data, tmp_path):
    folder, _ = data
    table = predictions(model, folder, threshold=0.3, root=PurePath("/mnt"))
    bad = arrow.table(["damaged"], model.spec.classes).append_column("path", pa.array(["/mnt/a/9.png"]))
    other = arrow.table([model.infer(folder / "a" / "0.png")], model.spec.classes)
    other = other.append_column("path", pa.array(["/mnt/c/0.png"]))
    pq.write_table(pa.concat_tables([table, bad, other]), tmp_path / "x.parquet")
    results = evaluate.coco_results(tmp_path / "x.parquet", folder / "truth.json")
    found = {10 + i: model.infer(folder / f"{'ab'[i % 2]}/{i // 2}.png", threshold=0.3) for i in range(4)}
    assert len(results) == sum(map(len, found.values()))
    for key, each in found.items():
        rows = [row for row in results if row["image_id"] == key]
        assert [row["score"] for row in rows] == each.confidence.tolist()
        assert [row["category_id"] for row in rows] == (7 * each.class_id + 1).tolist()
        assert [row["segmentation"]["counts"] for row in rows] == [
            rle["counts"].decode() for rle in each.to_rle()
        ]
        assert set(rows[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}


def test_the_command(model, data, tmp_path, capsys, monkeypatch):
    folder, expected = data
    monkeypatch.chdir(tmp_path)
    pq.write_table(predictions(model, folder), tmp_path / "found.parquet")
    command = ["eval", "found.parquet", "--images", str(folder), "--coco", str(folder / "truth.json")]
    assert cli.main([*command, "--json", "figures.json", "--results", "results.json"]) == 0
    assert "segm/AP" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["metrics"] == expected.metrics
    assert len(json.loads((tmp_path / "results.json").read_text())) >= expected.detections
    (tmp_path / "run").mkdir()
    shutil.move("found.parquet", "run/part-000000.parquet")
    assert cli.main(["eval", "run", *command[2:]]) == 0
    for more, problem in (
        (["--compare", "fp32,bf16"], "need a MODEL"),
        (["--results", str(tmp_path)], "--results"),
    ):
        assert cli.main(["eval", "run", *command[2:], *more]) == 2
        assert problem in capsys.readouterr().err
    assert cli.main(["eval", "run", "--ade", str(folder)]) == 2
    assert cli.main(["eval", MODEL, *command[2:], "--results", "r.json"]) == 2
    assert "--results: belongs to predictions" in capsys.readouterr().err


def test_ends_of_paths():
    names = {PurePath("a/1.png"): 0, PurePath("b/1.png"): 1, PurePath("1.png"): 2, PurePath("2.png"): 3}
    ends = Ends(names)
    assert [
        ends.of(path) for path in ("/x/a/1.png", "b/1.png", "/x/c/1.png", "/y/2.png", "/y/3.png", "")
    ] == [
        0,
        1,
        2,
        3,
        None,
        None,
    ]
