"""Results as rows of Arrow and Parquet, and back: equal in every field, with and without masks, labels and tracks.

Needs pyarrow, of the extra `ray`; FAI_FAST_REQUIRE_RAY=1 makes its absence a failure.
"""

from __future__ import annotations

import json

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, Latency, samples
from fai_fast.detections import Source, arrow
from helpers.clusters import without_ray

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    without_ray(error)

NAMES = ("cat", "dog", "none of both")


@pytest.fixture(scope="module")
def model():
    with fai_fast.load("fai-mf-n-shapes", im_size=64, precision="fp32") as model:
        yield model


def masks():
    mask = np.zeros((2, 6, 8), bool)
    mask[0, 1:3, 2:5] = mask[1, 2:, 3:] = True
    return mask


def label_source(dtype=np.uint8, query=4):
    labels = np.full((6, 8), np.iinfo(dtype).max, dtype)
    labels[1:3], labels[4:, 3:], labels[0, 0] = query, 0, 9
    return labels


ROWS = {"xyxy": [[2, 1, 5.5, 3], [3, 2, 8, 6]], "confidence": [0.9, 0.6], "class_id": [1, 0], "size": (6, 8)}
LABELED = {"xyxy": [[0, 1, 8, 3], [3, 4, 8, 6]], "confidence": [0.9, 0.6], "class_id": [1, 0], "size": (6, 8)}
RESULTS = {
    "boxes": Detections(**ROWS),
    "names": Detections(**ROWS, class_names=NAMES),
    "masks": Detections(**ROWS, mask=masks(), query=[3, 7]),
    "an empty mask": Detections(**ROWS, mask=np.stack([masks()[0], np.zeros((6, 8), bool)])),
    "tracks": Detections(**ROWS, mask=masks(), tracker_id=[5, -1]),
    "an unknown class": Detections(**{**ROWS, "class_id": [-1, 0]}),
    "labels": Detections(**LABELED, query=[4, 0], label_source=label_source(), class_names=NAMES),
    "wide labels": Detections(**LABELED, query=[300, 0], label_source=label_source(np.uint16, 300)),
    "labels without a row": Detections(**LABELED, query=[4, 0], label_source=label_source())[:1],
    "panoptic": Detections(**LABELED, query=[4, 0], label_source=label_source(), is_thing=[False, True]),
    "panoptic, nothing": Detections(
        **LABELED, query=[4, 0], label_source=label_source(), is_thing=[False, True]
    )[:0],
    "nothing": Detections.empty((6, 8)),
    "nothing, boxes": Detections(xyxy=[], confidence=[], class_id=[], size=(6, 8)),
    "nothing, labels": Detections(**LABELED, query=[4, 0], label_source=label_source())[:0],
}


def assert_same(again, found):
    assert again == found
    assert (again.packed is None) == (found.packed is None)
    assert (again.label_map is None) == (found.label_map is None)
    if found.label_map is not None:
        assert np.array_equal(again.label_map, found.label_map)
    assert again.area.tolist() == found.area.tolist()


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("way", ["table", "batch", "row", "parquet"])
def test_a_result_comes_back_equal(name, way, tmp_path):
    found = RESULTS[name]
    table = found.to_arrow()
    if way == "table":
        again = Detections.from_arrow(table)
    elif way == "batch":
        again = Detections.from_arrow(table.to_batches()[0])
    elif way == "row":
        again = Detections.from_arrow(table.to_pylist()[0], class_names=found.class_names)
        if found.class_names is None:
            assert again.class_names is None
    else:
        pq.write_table(table, tmp_path / "x.parquet")
        (again,) = Detections.from_parquet(tmp_path / "x.parquet")
    assert_same(again, found)


def test_a_models_result_comes_back_with_latency_and_source(model):
    found = model.infer(samples.path("shapes.jpg"), threshold=0.05)
    assert len(found) > 3
    again = Detections.from_arrow(found.to_arrow())
    assert_same(again, found)
    assert again.latency == found.latency
    assert isinstance(again.latency, Latency)
    assert again.source == found.source


def test_values_as_numpy_has_them_are_taken():
    found = RESULTS["masks"]
    row = found.to_arrow().to_pylist()[0]
    row = {
        **row,
        "class_id": np.array(row["class_id"], np.int32),
        "class_name": np.array(row["class_name"], object),
        "confidence": np.array(row["confidence"], np.float32),
        "box": np.array(row["box"], np.float32),
        "query": np.array(row["query"], np.int32),
        "mask": np.array(row["mask"], object),
        "height": np.int32(6),
        "label_map": np.bool_(False),
        "path": "a.jpg",
        "frame": np.int64(3),
    }
    again = Detections.from_arrow(row)
    assert_same(again, found)
    assert again.source == Source("a.jpg", 3)


def nested(kind, text, listed):
    """A type with others for its texts and lists."""
    if pa.types.is_list(kind):
        return listed(nested(kind.value_type, text, listed))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, nested(field.type, text, listed)) for field in kind])
    return text if pa.types.is_string(kind) else kind


@pytest.mark.parametrize("name", RESULTS)
def test_what_others_make_of_a_table_comes_back(name, tmp_path):
    """pandas has no null for integers, DuckDB and Polars have other lists and texts, and both forget what they know."""
    found = RESULTS[name]
    table = arrow.table([found, "damaged"], found.class_names)
    frame = table.to_pandas()
    frame.to_parquet(tmp_path / "x.parquet")
    large = pa.schema(
        [pa.field(f.name, nested(f.type, pa.large_string(), pa.large_list)) for f in table.schema]
    )
    for row in (
        frame.iloc[0],
        frame.iloc[0].to_dict(),
        pa.Table.from_pandas(frame).slice(0, 1),
        pa.concat_tables([table, table]).slice(2, 1),
        table.slice(0, 1).cast(large),
        pq.read_table(tmp_path / "x.parquet").slice(0, 1),
    ):
        assert_same(Detections.from_arrow(row, class_names=found.class_names or ["0", "1"]), named(found))
    (again,) = Detections.from_parquet(tmp_path / "x.parquet", skip_errors=True)
    assert len(again) == len(found)


def named(found):
    """What comes back where the caller has to say the names."""
    if found.class_names is not None:
        return found
    return Detections.from_arrow(found.to_arrow(), class_names=["0", "1"])


def test_texts_of_a_dictionary_are_texts():
    table = RESULTS["names"].to_arrow()
    kind = pa.list_(pa.dictionary(pa.int32(), pa.string()))
    index = table.column_names.index("class_name")
    coded = table.set_column(index, "class_name", table["class_name"].cast(kind))
    assert Detections.from_arrow(coded.replace_schema_metadata(None)).class_name.tolist() == ["dog", "cat"]


def test_names_of_classes_come_from_the_schema_the_caller_or_the_rows():
    table = RESULTS["names"].to_arrow()
    assert Detections.from_arrow(table).class_names == NAMES
    assert Detections.from_arrow(table, class_names=["a", "b"]).class_names == ("a", "b")
    assert Detections.from_arrow(table.replace_schema_metadata(None)).class_names == ("cat", "dog")


def test_the_columns_are_those_that_are_documented():
    table = RESULTS["masks"].to_arrow()
    assert table.column_names == list(arrow.COLUMNS)
    assert table.schema.equals(arrow.schema())
    for name in arrow.COLUMNS:
        assert f"``{name}``" in Detections.to_arrow.__doc__
    row = table.to_pylist()[0]
    assert row["mask"][0] == {"size": [6, 8], "counts": RESULTS["masks"].to_rle()[0]["counts"].decode()}
    assert (row["height"], row["width"], row["area"]) == (6, 8, [6.0, 20.0])


def test_many_pictures_and_errors_are_rows_of_one_table(tmp_path):
    found = [RESULTS["masks"], "it is damaged", RESULTS["labels"], RESULTS["nothing"]]
    table = arrow.table(found, NAMES)
    assert table["error"].to_pylist() == [None, "it is damaged", None, None]
    assert [table[name][1].as_py() for name in arrow.COLUMNS[:-1]] == [None] * (len(arrow.COLUMNS) - 1)
    with pytest.raises(ValueError, match="could not be read: it is damaged"):
        Detections.from_arrow(table.slice(1, 1))
    (tmp_path / "deep").mkdir()
    pq.write_table(table, tmp_path / "deep" / "b.parquet")
    pq.write_table(table.slice(3), tmp_path / "a.parquet")
    (tmp_path / "_half.parquet").write_bytes(b"what somebody writes")
    (tmp_path / ".half.parquet").write_bytes(b"what somebody writes")
    again = list(Detections.from_parquet(tmp_path, skip_errors=True))
    assert [each.size for each in again] == [(6, 8)] * 4
    assert len(again[0]) == 0
    assert again[2].label_map is not None
    assert np.array_equal(again[1].mask, masks())
    with pytest.raises(ValueError, match="it is damaged"):
        list(Detections.from_parquet(tmp_path))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"class_id": None}, "no class_id"),
        ({"height": None}, "no height"),
        ({"confidence": [0.5]}, "1 values of confidence for 2"),
        ({"box": [[0, 0, 1], [0, 0, 1, 1]]}, "xyxy"),
        ({"box": [[3, 0, 1, 1], [0, 0, 1, 1]]}, "x1 <= x2"),
        ({"mask": [{"size": [6, 9], "counts": "abc"}] * 2}, "size"),
        ({"mask": [{"size": [6, 8], "counts": "\x7f"}] * 2}, "counts"),
        ({"height": 0}, "size"),
        ({"label_map": True}, "do not overlap"),
        ({"label_map": True, "query": [3, 3]}, "a query for each"),
        ({"label_map": True, "mask": None}, "expected masks"),
        ({"label_map": True, "query": [3, 70000]}, "70000"),
        ({"class_id": "ab"}, "got str for class_id, expected a list"),
        ({"box": 5}, "got int for box, expected a list"),
        ({"latency_ms": {"decode": 1.0}}, "latency_ms, expected the milliseconds of decode"),
        ({"latency_ms": 5}, "got 5 for latency_ms"),
        ({"height": 6.5}, "got 6.5, expected an integer"),
        ({"path": "a", "frame": "x"}, "got 'x' for frame"),
    ],
)
def test_what_is_wrong_in_a_row_is_named(change, problem, tmp_path):
    row = {**RESULTS["masks"].to_arrow().to_pylist()[0], **change}
    with pytest.raises((TypeError, ValueError), match=problem):
        Detections.from_arrow(row)
    # Of many files it is said which.
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=rf"x\.parquet, row 0: .*{problem}"):
        list(Detections.from_parquet(tmp_path))


@pytest.mark.parametrize("text", [b"no JSON", b"5", b"\xff"])
def test_names_that_are_none_are_told(text):
    table = RESULTS["masks"].to_arrow().replace_schema_metadata({arrow.CLASS_NAMES: text})
    with pytest.raises(ValueError, match=r"fai_fast\.class_names is no list of names"):
        Detections.from_arrow(table)


def test_what_is_no_row_is_refused(tmp_path):
    with pytest.raises(TypeError, match="row: got list"):
        Detections.from_arrow([])
    table = RESULTS["masks"].to_arrow()
    with pytest.raises(ValueError, match="2 rows, expected one"):
        Detections.from_arrow(pa.concat_tables([table, table]))
    with pytest.raises(FileNotFoundError, match="no such file"):
        Detections.from_parquet(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="no Parquet files"):
        Detections.from_parquet(tmp_path)
    with pytest.raises(TypeError, match="path: got int"):
        Detections.from_parquet(3)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 is how they begin")
    with pytest.raises(ValueError, match=r"x\.parquet is no Parquet file"):
        next(Detections.from_parquet(tmp_path))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no column class_id, box, error"):
        next(Detections.from_parquet(tmp_path))


def test_a_file_that_was_cut_is_damaged(tmp_path):
    pq.write_table(RESULTS["masks"].to_arrow(), tmp_path / "x.parquet")
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[8:200] = b"\xff" * 192
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        list(Detections.from_parquet(tmp_path / "x.parquet"))


def test_bytes_that_were_changed_are_told_as_such(tmp_path):
    pq.write_table(RESULTS["masks"].to_arrow(), tmp_path / "x.parquet")
    content = (tmp_path / "x.parquet").read_bytes()
    changes = np.random.default_rng(0)
    refused = []
    for _ in range(100):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[changes.integers(0, len(damaged), 4)] = changes.integers(0, 256, 4)
        (tmp_path / "x.parquet").write_bytes(damaged.tobytes())
        try:
            list(Detections.from_parquet(tmp_path / "x.parquet"))
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all("x.parquet" in text or "class_names" in text for text in refused)


def test_what_a_run_says_of_itself(tmp_path):
    table = RESULTS["masks"].to_arrow()
    pq.write_table(table, tmp_path / "a.parquet")
    assert arrow.document_of(tmp_path / "a.parquet") == {}
    pq.write_table(
        table.replace_schema_metadata({arrow.DOCUMENT: json.dumps({"model": "m"})}), tmp_path / "b.parquet"
    )
    assert arrow.document_of(tmp_path / "b.parquet") == {"model": "m"}
