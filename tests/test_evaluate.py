"""fai_fast.evaluate: against pycocotools and figures by hand, and what it says of data sets that are wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import struct
import sys
import tracemalloc
import weakref
import zlib
from pathlib import Path

import fai_fast
import numpy as np
import pytest
from fai_fast import Detections, PackedMasks, evaluate
from fai_fast.errors import EngineError
from fai_fast.evaluate import coco_data
from helpers.results import Ticket
from PIL import Image

coco_mask = pytest.importorskip("pycocotools.mask")
coco_api = pytest.importorskip("pycocotools.coco")
coco_eval = pytest.importorskip("pycocotools.cocoeval")
pytest.importorskip("faster_coco_eval")

TOOLS = Path(__file__).parents[1] / "tools"
SHAPES = fai_fast.spec("fai-mf-n-shapes")
ADE = fai_fast.spec("fai-mf-m-ade")
SIZE = (24, 32)


class Oracle:
    """A model that knows what to say of a picture by the value of its first pixel."""

    size = (192, 192)

    def __init__(self, answers, spec=SHAPES):
        self.spec = spec
        self.answers = answers
        self.asked = []
        self.frames = []
        self.most = 0
        self.closed = False

    def submit(self, frame, *, threshold):
        self.asked.append((int(frame.flat[0]), threshold, frame.shape[2]))
        self.frames = [item for item in self.frames if item() is not None] + [weakref.ref(frame)]
        self.most = max(self.most, len(self.frames))
        answer = self.answers[int(frame.flat[0])]
        return Ticket(answer() if callable(answer) else answer)

    def info(self):
        return {"engine": {"engine": "oracle"}, "precision": "fp32"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True


def box(y1, x1, y2, x2, size=SIZE):
    mask = np.zeros(size, bool)
    mask[y1:y2, x1:x2] = True
    return mask


def found(*rows, size=SIZE):
    """Detections of (class, score, mask), the best first."""
    rows = sorted(rows, key=lambda row: -row[1])
    masks = np.array([mask for _, _, mask in rows], bool).reshape(-1, *size)
    return Detections(
        xyxy=PackedMasks.from_bool(masks).boxes,
        confidence=[score for _, score, _ in rows],
        class_id=[class_id for class_id, _, _ in rows],
        size=size,
        mask=masks,
    )


def rle(mask):
    coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def objects_of(image, *rows, **fields):
    """Annotations of (category, mask)."""
    return [
        {"id": 1000 * image + i, "image_id": image, "category_id": category, "segmentation": rle(mask)}
        | {"area": int(mask.sum()), "iscrowd": 0, "bbox": [0, 0, 1, 1]}
        | fields
        for i, (category, mask) in enumerate(rows)
    ]


def write(folder, annotations, images=2, categories=SHAPES.classes, size=SIZE, **document):
    """Pictures 1.png, 2.png, ... that are told apart by their first pixel, and the JSON, whose path it returns."""
    folder.joinpath("images").mkdir(exist_ok=True)
    records = []
    for key in range(1, images + 1):
        pixels = np.full((*size, 3), key, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{key}.png")
        records.append({"id": key, "file_name": f"{key}.png", "height": size[0], "width": size[1]})
    content = {
        "images": records,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(categories)],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content | document))
    return path


def measure(model, folder, **options):
    return evaluate.coco(model, folder / "images", folder / "instances.json", **options)


LEFT, RIGHT, LOW = box(2, 2, 12, 10), box(3, 14, 15, 30), box(16, 4, 22, 20)

# ------------------------------------------------------------------------------------------------------- COCO


def test_perfect_predictions_have_an_ap_of_100(tmp_path):
    write(tmp_path, objects_of(1, (1, LEFT), (2, RIGHT)) + objects_of(2, (1, LOW)))
    model = Oracle({1: found((0, 0.9, LEFT), (1, 0.8, RIGHT)), 2: found((0, 0.7, LOW))})
    report = measure(model, tmp_path)
    assert report.metrics == {
        "segm/AP": 100,
        "segm/AP50": 100,
        "segm/AP75": 100,
        "segm/APs": 100,
        "segm/APm": None,
        "segm/APl": None,
    }
    assert report.per_class == {
        **dict.fromkeys(SHAPES.classes, None),
        SHAPES.classes[0]: 100,
        SHAPES.classes[1]: 100,
    }
    assert (report.images, report.objects, report.detections) == (2, 3, 3)
    assert report.headline == 100
    assert [item[1:] for item in model.asked] == [(0.0, 3)] * 2


def test_nothing_found_and_everything_wrong_are_zero(tmp_path):
    write(tmp_path, objects_of(1, (1, LEFT)) + objects_of(2, (1, LOW)))
    nothing = measure(Oracle({1: found(), 2: found()}), tmp_path)
    assert nothing.metrics["segm/AP"] == 0
    assert nothing.detections == 0
    wrong = measure(Oracle({1: found((1, 0.9, LEFT)), 2: found((0, 0.9, RIGHT))}), tmp_path)
    assert wrong.metrics["segm/AP"] == 0


def test_an_iou_between_two_thresholds(tmp_path):
    # 7 of 10 columns: IoU 0.7 counts at 0.50, 0.55, ..., 0.70, five of ten thresholds.
    write(tmp_path, objects_of(1, (3, box(0, 0, 10, 10))), images=1)
    report = measure(Oracle({1: found((2, 0.5, box(0, 0, 10, 7)))}), tmp_path)
    assert report.metrics["segm/AP"] == pytest.approx(50)
    assert report.metrics["segm/AP50"] == pytest.approx(100)
    assert report.metrics["segm/AP75"] == 0


@pytest.fixture(scope="module")
def shapes_dataset():
    pytest.importorskip("cv2")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        import shapes_dataset

        yield shapes_dataset


@pytest.fixture(scope="module")
def scenes(tmp_path_factory, shapes_dataset):
    folder = tmp_path_factory.mktemp("scenes")
    assert shapes_dataset.write(folder, 10, 160) == folder / "instances.json"
    return folder


@pytest.fixture(scope="module")
def demo_model():
    with fai_fast.load("fai-mf-n-shapes") as model:
        yield model


def test_the_demo_model_has_the_ap_that_pycocotools_gives_its_dense_masks(scenes, demo_model):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    report = measure(demo_model, scenes)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(scenes / "instances.json"))
        rows = []
        for key, image in truth.imgs.items():
            detections = demo_model.infer(scenes / "images" / image["file_name"], threshold=0)
            for mask, class_id, score in zip(
                detections.mask, detections.class_id, detections.confidence, strict=True
            ):
                coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
                rows.append({"image_id": key, "category_id": int(class_id) + 1, "score": float(score)})
                rows[-1]["segmentation"] = coded
        expected = COCOeval(truth, truth.loadRes(rows), "segm")
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
    got = [-1 if value is None else value / 100 for value in report.metrics.values()]
    assert got == pytest.approx(expected.stats[:6].tolist(), abs=1e-9)
    precision = expected.eval["precision"][:, :, :, 0, -1]
    classes = [-1 if value is None else value / 100 for value in report.per_class.values()]
    assert classes == pytest.approx(precision.mean((0, 1)).tolist(), abs=1e-9)
    assert 0.2 < got[0] < 0.9
    assert report.published == SHAPES.metrics
    assert report.published_per_class == SHAPES.per_class


def test_a_data_set_of_scenes_is_what_the_scenes_are(scenes, shapes_dataset):
    document = json.loads((scenes / "instances.json").read_text())
    drawn = shapes_dataset.shapes.scene(3, 160)
    record = document["images"][3]
    assert np.array_equal(np.asarray(Image.open(scenes / "images" / record["file_name"])), drawn.image)
    mine = [item for item in document["annotations"] if item["image_id"] == record["id"]]
    assert [item["category_id"] - 1 for item in mine] == drawn.labels.tolist()
    for item, mask in zip(mine, drawn.masks, strict=True):
        assert item["segmentation"] == rle(mask)
        assert item["area"] == mask.sum()
        assert item["bbox"] == coco_mask.toBbox(item["segmentation"]).tolist()


def test_what_lies_in_a_crowd_is_no_error(tmp_path):
    crowd = box(12, 0, 24, 32)
    model = Oracle({1: found((0, 0.9, box(14, 3, 20, 9)), (0, 0.8, LEFT))})
    write(tmp_path, objects_of(1, (1, LEFT)) + objects_of(1, (1, crowd), iscrowd=1), images=1)
    assert measure(model, tmp_path).metrics["segm/AP"] == 100
    write(tmp_path, objects_of(1, (1, LEFT)), images=1)
    assert measure(model, tmp_path).metrics["segm/AP"] == pytest.approx(50)


def test_categories_are_matched_by_name_whatever_their_ids(tmp_path):
    names = [*reversed(SHAPES.classes), "unicorn"]
    categories = [{"id": 7 * i + 90, "name": name} for i, name in reversed(list(enumerate(names)))]
    by_name = {item["name"]: item["id"] for item in categories}
    write(
        tmp_path,
        objects_of(1, (by_name["star"], LEFT), (by_name["ring"], RIGHT)),
        images=1,
    )
    document = json.loads((tmp_path / "instances.json").read_text()) | {"categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    star, ring = SHAPES.classes.index("star"), SHAPES.classes.index("ring")
    report = measure(Oracle({1: found((star, 0.9, LEFT), (ring, 0.8, LOW))}), tmp_path)
    assert report.per_class["star"] == 100
    assert report.per_class["ring"] == 0
    assert report.per_class["disc"] is None


def test_names_that_do_not_match_are_listed(tmp_path):
    write(tmp_path, objects_of(1, (1, LEFT)), images=1, categories=["disk", *SHAPES.classes[1:]])
    with pytest.raises(ValueError, match=r"no classes of the model: 'disk'; .* without a category: 'disc'"):
        measure(Oracle({1: found()}), tmp_path)
    write(tmp_path, [], images=1, categories=["a", "b"])
    with pytest.raises(ValueError, match=r"'a', 'b'; .*'disc', 'square', .* and 1 more"):
        measure(Oracle({1: found()}), tmp_path)


def test_classes_without_a_category_are_left_out_and_named(tmp_path, caplog):
    write(tmp_path, objects_of(1, (1, LEFT)), images=1, categories=["square"])
    with caplog.at_level(logging.INFO, "fai_fast"):
        report = measure(Oracle({1: found((0, 0.9, RIGHT), (1, 0.8, LEFT))}), tmp_path)
    assert report.metrics["segm/AP"] == 100
    assert report.detections == 1
    assert "no category for 5 of the model's classes" in caplog.text


def test_the_hundred_best_of_a_picture_count(tmp_path):
    def answer(others):
        noise = [(i % 6, 0.9 - i / 1000, RIGHT) for i in range(others)]
        return found(*noise, (0, 0.01, LEFT))

    write(tmp_path, objects_of(1, (1, LEFT)), images=1)
    report = measure(Oracle({1: answer(100)}), tmp_path)
    assert report.detections == 100
    assert report.metrics["segm/AP"] == 0
    report = measure(Oracle({1: answer(99)}), tmp_path)
    assert report.detections == 100
    assert report.metrics["segm/AP"] > 0


@pytest.mark.parametrize("kind", ["polygon", "runs", "text"])
def test_every_form_of_a_mask(tmp_path, kind):
    corners = [2, 2, 10, 2, 10, 12, 2, 12]
    column_runs = np.diff(np.flatnonzero(np.diff(LEFT.T.ravel(), prepend=~LEFT[0, 0], append=2))).tolist()
    forms = {
        "polygon": [corners],
        # The first run is of what is outside.
        "runs": {"size": list(SIZE), "counts": column_runs},
        "text": rle(LEFT),
    }
    write(tmp_path, objects_of(1, (1, LEFT), segmentation=forms[kind]), images=1)
    assert measure(Oracle({1: found((0, 0.9, LEFT))}), tmp_path).metrics["segm/AP"] == 100


def test_an_area_that_is_missing_is_the_masks(tmp_path):
    size = (80, 80)
    medium = box(0, 0, 40, 40, size)
    annotations = objects_of(1, (1, medium))
    del annotations[0]["area"]
    write(tmp_path, annotations, images=1, size=size)
    report = measure(Oracle({1: found((0, 0.9, medium), size=size)}), tmp_path)
    assert (report.metrics["segm/APs"], report.metrics["segm/APm"]) == (None, 100)


def test_ids_of_annotations_do_not_matter(tmp_path):
    # The evaluator itself takes an id of 0 for "no match", and objects with one id for one.
    annotations = [item | {"id": 0} for item in objects_of(1, (1, LEFT), (1, RIGHT))]
    write(tmp_path, annotations, images=1)
    model = Oracle({1: found((0, 0.9, LEFT), (0, 0.8, RIGHT))})
    assert measure(model, tmp_path).metrics["segm/AP"] == 100


def test_gray_pictures(tmp_path):
    write(tmp_path, objects_of(1, (1, LEFT)), images=1)
    Image.fromarray(np.full(SIZE, 1, np.uint8)).save(tmp_path / "images" / "1.png")
    model = Oracle({1: found((0, 0.9, LEFT))})
    assert measure(model, tmp_path).metrics["segm/AP"] == 100
    assert model.asked == [(1, 0.0, 3)]


def test_the_demo_model_takes_gray_pictures(tmp_path, demo_model):
    write(tmp_path, objects_of(1, (1, LEFT)), images=1)
    Image.fromarray(np.full(SIZE, 1, np.uint8)).save(tmp_path / "images" / "1.png")
    assert measure(demo_model, tmp_path).images == 1


def test_missing_pictures_are_named_or_left_out(tmp_path):
    write(tmp_path, objects_of(1, (1, LEFT)) + objects_of(2, (1, LOW)), images=3)
    (tmp_path / "images" / "2.png").unlink()
    (tmp_path / "images" / "3.png").unlink()
    model = Oracle({1: found((0, 0.9, LEFT))})
    with pytest.raises(FileNotFoundError, match=r"2 of 3 files are missing.*2\.png, 3\.png; skip_missing"):
        measure(model, tmp_path)
    report = measure(model, tmp_path, skip_missing=True)
    assert report.missing == ("2.png", "3.png")
    assert (report.images, report.objects, report.metrics["segm/AP"]) == (1, 1, 100)
    assert "2.png, 3.png" in report.table()
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match="3 of 3"):
        measure(model, tmp_path, skip_missing=True)


def test_many_missing_pictures_are_counted(tmp_path):
    write(tmp_path, [], images=20)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png, 2\.png, 3\.png, 4\.png, 5\.png and 15 more"):
        measure(Oracle({}), tmp_path)


def test_a_limit_takes_the_first_ids_and_thresholds_are_passed_on(tmp_path):
    write(tmp_path, objects_of(3, (1, LEFT)) + objects_of(1, (1, LOW)), images=3)
    document = json.loads((tmp_path / "instances.json").read_text())
    document["images"].reverse()
    (tmp_path / "instances.json").write_text(json.dumps(document))
    model = Oracle(dict.fromkeys((1, 2, 3), found((0, 0.9, LOW))))
    report = measure(model, tmp_path, limit=2, threshold=0.25)
    assert model.asked == [(1, 0.25, 3), (2, 0.25, 3)]
    assert (report.images, report.objects, report.threshold) == (2, 1, 0.25)


def test_a_picture_of_another_size_than_the_json_says(tmp_path):
    write(tmp_path, [], images=1)
    model = Oracle({1: found(size=(20, 32))})
    with pytest.raises(ValueError, match=r"1\.png: 20x32 pixels.*expected 24x32"):
        measure(model, tmp_path)


def test_a_corrupt_picture_is_named(tmp_path):
    write(tmp_path, [])
    path = tmp_path / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"2\.png is (damaged|no picture)"):
        measure(Oracle({1: found()}), tmp_path)


def change(**fields):
    """A data set of one object, whose records get other fields."""

    def build(folder):
        annotation = objects_of(1, (1, LEFT))[0]
        document = json.loads(write(folder, [annotation], images=1).read_text())
        for name, value in fields.items():
            part, _, field = name.partition("__")
            if not field:
                document[part] = value
            elif value is DELETED:
                del document[part][0][field]
            else:
                document[part][0][field] = value
        return json.dumps(document)

    return build


DELETED = object()
RUNS = rle(LEFT)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda _: "{", "is no JSON"),
        (lambda _: "[" * 100_000, r"instances\.json is nested too deeply, expected COCO's instances format"),
        (lambda _: "[]", r"instances\.json holds \[\], expected an object"),
        (lambda _: "{}", "no list 'images'"),
        (change(annotations=None), "no list 'annotations'"),
        (change(categories=[3]), r"categories\[0\] is 3, expected an object"),
        (change(images=[]), "lists no images|is no image's id"),
        (change(categories=[]), "lists no categories"),
        (change(categories__name=DELETED), r"categories\[0\]: 'name' is missing, expected str"),
        (change(categories=[{"id": 1, "name": "disc"}] * 2), r"categories\[1\]: id 1 is there twice"),
        (
            change(categories=[{"id": 1, "name": "disc"}, {"id": "2", "name": "disc"}]),
            r"categories\[1\]: name 'disc' is there twice",
        ),
        (change(images__id=None), r"images\[0\]: 'id' is None, expected int"),
        (change(images__id=1.0), r"images\[0\]: 'id' is 1\.0, expected int"),
        (change(annotations__image_id="x"), r"annotations\[0\]: image_id 'x' is no image's id"),
        (change(images__id=True), r"images\[0\]: 'id' is True"),
        (change(images__height=DELETED), r"images\[0\]: 'height' is missing"),
        (change(images__width=0), "24x0 pixels, expected sides of 1"),
        (change(images__file_name="../1.png"), "leaves the folder"),
        (change(images__file_name="/etc/passwd"), "leaves the folder"),
        (change(images__file_name=""), "leaves the folder"),
        (change(annotations__image_id=9), r"annotations\[0\]: image_id 9 is no image's id"),
        (change(annotations__category_id=9), r"annotations\[0\]: category_id 9 is no category's id"),
        (change(annotations__category_id=DELETED), "'category_id' is missing"),
        (change(annotations__segmentation=DELETED), "'segmentation' is None, expected polygons or RLE"),
        (
            change(annotations__segmentation=[]),
            r"has no mask for any of the pictures' objects: annotations\[0\]",
        ),
        (change(annotations__segmentation="x"), "'segmentation' is 'x'"),
        (change(annotations__segmentation=[[1, 2, 3]]), "a polygon is"),
        (change(annotations__segmentation=[[1, 2, 3, 4, 5, "6"]]), "expected coordinates"),
        (change(annotations__segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "expected coordinates"),
        (change(annotations__segmentation=[[1, 2, 3, 4, 5, 1e300]]), "expected coordinates"),
        (
            change(annotations__segmentation=RUNS | {"size": [2, 3]}),
            r"RLE of size \[2, 3\], expected \[24, 32\]",
        ),
        (change(annotations__segmentation=RUNS | {"counts": "zzz"}), "RLE counts are damaged"),
        (change(annotations__segmentation=RUNS | {"counts": "\x01"}), "RLE counts are damaged"),
        (change(annotations__segmentation=RUNS | {"counts": "o" * 50}), "RLE counts are damaged"),
        (change(annotations__segmentation=RUNS | {"counts": RUNS["counts"][:-1]}), "RLE counts are damaged"),
        (change(annotations__segmentation=RUNS | {"counts": [5]}), "RLE counts are damaged"),
        (change(annotations__segmentation=RUNS | {"counts": [800, -32]}), "RLE counts are damaged"),
        (change(annotations__segmentation=RUNS | {"counts": None}), "RLE counts are damaged"),
        (change(annotations__iscrowd=2), "'iscrowd' is 2"),
        (change(annotations__area="big"), "'area' is 'big'"),
        (change(annotations__area=-1), "'area' is -1, expected a number, 0 or more"),
        (change(annotations__area=float("nan")), "'area' is nan"),
        (change(images__file_name="x" * 5000), r"file_name is 'x+\.\.\.x+', expected a file's name"),
        (change(images__file_name="a\0.png"), "expected a file's name"),
        (change(images=["x" * 10**6]), r"images\[0\] is 'x+\.\.\.x+', expected an object$"),
        # Numbers that equal the right ones, on which the evaluator ends with an error of its own.
        (
            change(annotations__segmentation=RUNS | {"size": [24.0, 32.0]}),
            r"RLE of size \[24\.0, 32\.0\], expected \[24, 32\]",
        ),
        (
            change(annotations__segmentation=RUNS | {"size": "x" * 10**6}),
            r"RLE of size 'x+\.\.\.x+', expected",
        ),
        (change(annotations__segmentation=RUNS | {"counts": [True, 767]}), "RLE counts are damaged"),
        (change(annotations__area=10**400), "'area' is 1000"),
        (change(images__id=10**30), "'id' is 1000"),
    ],
)
def test_a_json_that_is_wrong_is_an_error_that_says_where(tmp_path, build, message):
    text = build(tmp_path)
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        measure(Oracle({1: found()}), tmp_path)
    assert str(tmp_path / "instances.json") in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


UNUSABLE = {"empty": [], "a point": [[3, 4]], "a line": [[3, 4, 9, 4]], "several": [[], [3, 4], [3, 4, 9, 4]]}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_an_object_without_a_mask_is_left_out_and_told(tmp_path, caplog, kind):
    truth = objects_of(1, (1, LEFT), (1, RIGHT), (2, LOW))
    truth[1]["segmentation"] = UNUSABLE[kind]
    path = write(tmp_path, truth, images=1)
    report = measure(Oracle({1: found((0, 0.9, LEFT), (1, 0.8, LOW))}), tmp_path)
    assert (report.objects, report.metrics["segm/AP"]) == (2, 100)
    assert report.unusable == ("annotations[1]",)
    assert "Left out, without a mask: annotations[1]." in report.table()
    assert json.loads(json.dumps(report.to_dict()))["unusable"] == ["annotations[1]"]
    assert caplog.messages == [f"{path}: objects without a mask are left out: annotations[1]"]


def test_a_line_beside_a_polygon_is_left_out(tmp_path):
    """The evaluator takes four numbers for a box, and with it all that follow."""
    truth = objects_of(1, (1, LEFT))
    truth[0]["segmentation"] = [[0, 0, 20, 20], [2, 2, 10, 2, 10, 12, 2, 12]]
    write(tmp_path, truth, images=1)
    report = measure(Oracle({1: found((0, 0.9, LEFT))}), tmp_path)
    assert (report.metrics["segm/AP"], report.unusable) == (100, ())


@pytest.mark.parametrize("as_text", [str, lambda key: f"picture {key}", lambda key: f"{key:06}"])
def test_ids_may_be_strings(tmp_path, as_text):
    path = write(tmp_path, objects_of(1, (1, LEFT)) + objects_of(2, (2, LOW)))
    document = json.loads(path.read_text())
    for part, name in (
        ("images", "id"),
        ("annotations", "image_id"),
        ("categories", "id"),
        ("annotations", "category_id"),
    ):
        for record in document[part]:
            record[name] = as_text(record[name])
    path.write_text(json.dumps(document))
    data = evaluate.CocoData.read(tmp_path / "images", path)
    assert [item[1].name for item in data.images] == ["1.png", "2.png"]
    report = data.measure(Oracle({1: found((0, 0.9, LEFT)), 2: found((1, 0.8, RIGHT))}))
    assert (report.per_class["disc"], report.per_class["square"]) == (100, 0)


def test_numbers_in_strings_are_the_numbers(tmp_path):
    path = write(tmp_path, objects_of(1, (1, LEFT)), images=1)
    document = json.loads(path.read_text())
    document["annotations"][0]["image_id"] = "1"
    document["categories"][0]["id"] = "1"
    path.write_text(json.dumps(document))
    assert measure(Oracle({1: found((0, 0.9, LEFT))}), tmp_path).metrics["segm/AP"] == 100


def test_a_crowd_that_is_null_is_none(tmp_path):
    write(tmp_path, objects_of(1, (1, LEFT), iscrowd=None), images=1)
    assert measure(Oracle({1: found((0, 0.9, LEFT))}), tmp_path).metrics["segm/AP"] == 100


def test_what_to_coco_writes_is_what_the_evaluator_reads(tmp_path):
    """With COCO's ids, which have gaps, of a model that numbers classes from 0."""
    spec = fai_fast.spec("fai-mf-s-coco-ins")
    categories = [
        {"id": key, "name": name} for key, name in zip(spec.category_ids, spec.classes, strict=True)
    ]
    signs = spec.classes.index("stop sign"), spec.classes.index("toothbrush")
    path = write(tmp_path, objects_of(1, (13, LEFT), (90, RIGHT)), images=1)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"categories": categories}))
    rows = found((signs[0], 0.9, LEFT), (signs[1], 0.8, RIGHT))
    answer = Detections(
        xyxy=rows.xyxy,
        confidence=rows.confidence,
        class_id=rows.class_id,
        size=rows.size,
        class_names=spec.classes,
        mask=rows.mask,
    )
    assert measure(Oracle({1: answer}, spec), tmp_path).metrics["segm/AP"] == 100
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_api.COCO(str(path))
        evaluation = coco_eval.COCOeval(truth, truth.loadRes(answer.to_coco(1)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


@pytest.mark.parametrize("depth", [400, 900, 975])
@pytest.mark.parametrize(
    "place", ["image_id", "iscrowd", "area", "segmentation", '{"size": @}', "[[1, 2, @, 4]]", "[@]"]
)
def test_values_as_deep_as_json_may_be_are_errors_too(tmp_path, place, depth):
    """Printing them takes the stack that reading them took."""
    field = place if "@" not in place else "segmentation"
    value = (place if "@" in place else "@").replace("@", "[" * depth + "]" * depth)
    text = change(**{f"annotations__{field}": "@"})(tmp_path).replace('"@"', value)
    (tmp_path / "instances.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"instances\.json(: annotations\[0\]: .*\.\.\.| is nested too deeply)"
    ):
        measure(Oracle({1: found()}), tmp_path)


def test_a_name_that_is_too_long_for_the_file_system_is_missing(tmp_path):
    (tmp_path / "instances.json").write_text(change(images__file_name="x" * 300)(tmp_path))
    with pytest.raises(FileNotFoundError, match="1 of 1 files are missing"):
        measure(Oracle({}), tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_in_the_place_of_the_json_is_not_waited_for(tmp_path):
    write(tmp_path, [])
    (tmp_path / "instances.json").unlink()
    os.mkfifo(tmp_path / "instances.json")
    with pytest.raises(ValueError, match=r"annotations: .*instances\.json is no regular file"):
        measure(Oracle({}), tmp_path)


def test_pictures_have_a_limit_that_can_be_raised(tmp_path, monkeypatch):
    write(tmp_path, objects_of(1, (1, LEFT)), images=1)
    model = Oracle({1: found((0, 0.9, LEFT))})
    pixels = SIZE[0] * SIZE[1]
    with pytest.raises(
        ValueError, match=rf"1\.png is too large: 32 x 24, expected at most {pixels - 1} pixels"
    ):
        measure(model, tmp_path, max_pixels=pixels - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(ValueError, match=r"1\.png is too large: .*max_pixels="):
        measure(model, tmp_path)
    assert model.asked == []
    assert measure(model, tmp_path, max_pixels=pixels).metrics["segm/AP"] == 100
    for wrong, error in ((0, ValueError), ("9", TypeError)):
        with pytest.raises(error, match="max_pixels: got"):
            measure(model, tmp_path, max_pixels=wrong)


def test_runs_are_those_that_pycocotools_writes():
    rng = np.random.default_rng(0)
    for _ in range(40):
        mask = rng.random((31, 17)) < rng.random()
        text = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        flat = mask.T.ravel()
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *edges, flat.size]).tolist()
        assert coco_data._runs(text) == ([0, *runs] if flat[0] else runs)


def test_folders_and_arguments_that_are_wrong(tmp_path):
    write(tmp_path, [])
    model = Oracle({1: found(), 2: found()})
    with pytest.raises(FileNotFoundError, match="images: no such folder"):
        evaluate.coco(model, tmp_path / "none", tmp_path / "instances.json")
    with pytest.raises(FileNotFoundError, match="annotations: no such file"):
        evaluate.coco(model, tmp_path / "images", tmp_path / "none.json")
    with pytest.raises(ValueError, match="limit: got 0"):
        measure(model, tmp_path, limit=0)
    with pytest.raises(TypeError, match="threshold: got 'x'"):
        measure(model, tmp_path, threshold="x")
    with pytest.raises(ValueError, match=r"fai-mf-m-ade is a semantic model.*ade\(\)"):
        measure(Oracle({}, ADE), tmp_path)
    assert model.asked == []


def test_without_the_evaluator_the_error_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path, [])
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'fai-fast\[eval\]'"):
        measure(Oracle({}), tmp_path)


def test_masks_are_never_made_dense(tmp_path, monkeypatch):
    write(tmp_path, objects_of(1, (1, LEFT)), images=1)

    def refuse(*_, **__):
        raise AssertionError("a dense mask")

    model = Oracle({1: found((0, 0.9, LEFT))})
    for name in ("decode", "crops"):
        monkeypatch.setattr(PackedMasks, name, refuse)
    assert measure(model, tmp_path).metrics["segm/AP"] == 100


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    # Random blobs, made anew for each picture, of which a dense mask takes 160 kB and RLE a few hundred bytes.
    size, kept = (400, 400), []
    count = 24
    write(tmp_path, objects_of(1, (1, box(9, 9, 90, 90, size))), images=count, size=size)

    def answer():
        kept.append(tracemalloc.get_traced_memory()[0])
        return found(*((0, 0.5, box(10 + i, 10, 300, 390, size)) for i in range(10)), size=size)

    model = Oracle(dict.fromkeys(range(1, count + 1), answer))
    tracemalloc.start()
    try:
        measure(model, tmp_path)
    finally:
        tracemalloc.stop()
    assert model.most <= evaluate.IN_FLIGHT + 1
    # The first ones fill the pipeline; ten dense masks of one picture alone would be 1.6 MB.
    assert kept[-1] - kept[5] < 400_000


def test_progress_only_where_it_can_be_seen(tmp_path, capsys):
    write(tmp_path, [])
    model = Oracle({1: found(), 2: found()})
    measure(model, tmp_path, progress=None)
    measure(model, tmp_path)
    assert capsys.readouterr().err == ""
    measure(model, tmp_path, progress=True)
    assert "2" in capsys.readouterr().err


def test_a_report_as_json_and_as_a_table(tmp_path):
    write(tmp_path, objects_of(1, (1, LEFT)), images=1)
    report = measure(Oracle({1: found((0, 0.9, LEFT))}), tmp_path)
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["metrics"] == report.metrics
    assert content["per_class"] == report.per_class
    assert content["published"] == SHAPES.metrics
    assert content["im_size"] == [192, 192]
    assert (content["model"], content["engine"], content["precision"]) == (SHAPES.name, "oracle", "fp32")
    lines = [line.split() for line in report.table().splitlines()]
    published = SHAPES.metrics["segm/AP"]
    assert ["segm/AP", "100.00", f"{published:.2f}", f"{100 - published:+.2f}"] in lines
    assert ["segm/APl", "-", "-", "-"] in lines
    assert ["square", "-", f"{SHAPES.per_class['square']:.2f}", "-"] in lines
    assert "Published at" not in report.table()
    assert "Published at 192x192." in dataclasses.replace(report, im_size=(192, 320)).table()


# ------------------------------------------------------------------------------------------------------ ADE20K


def semantic(labels):
    """Detections of a label map (H, W), -1 for none."""
    labels = np.asarray(labels)
    classes = sorted(set(labels.ravel().tolist()) - {-1})
    return Detections(
        xyxy=[[0, 0, 1, 1]] * len(classes),
        confidence=[0.5] * len(classes),
        class_id=classes,
        query=classes,
        size=labels.shape,
        label_source=np.where(labels < 0, 255, labels).astype(np.uint8),
    )


def write_ade(folder, truths, part="validation", suffix=".jpg"):
    """Pictures and label images; a picture's first pixel is its number, from 1 on."""
    images, annotations = folder / "images" / part, folder / "annotations" / part
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for i, truth in enumerate(np.asarray(truths)):
        Image.fromarray(np.full((*truth.shape, 3), i + 1, np.uint8)).save(
            images / f"{i}{suffix}", quality=100
        )
        Image.fromarray(truth.astype(np.uint8)).save(annotations / f"{i}.png")
    return folder


def test_perfect_label_maps(tmp_path):
    truth = np.array([[[1, 1, 150, 0], [2, 2, 150, 0]]])
    write_ade(tmp_path, truth)
    report = evaluate.ade(Oracle({1: semantic(np.where(truth[0], truth[0] - 1, 7))}, ADE), tmp_path)
    assert report.metrics == dict.fromkeys(
        ("sem_seg/mIoU", "sem_seg/fwIoU", "sem_seg/mACC", "sem_seg/pACC"), 100
    )
    # Class 7 is predicted where nothing is labeled, which counts nowhere.
    assert {name for name, value in report.per_class.items() if value is not None} == {
        ADE.classes[0],
        ADE.classes[1],
        ADE.classes[149],
    }
    assert (report.images, report.pixels) == (1, 6)
    assert report.published == ADE.metrics


def test_a_confusion_by_hand(tmp_path):
    truths = [[[1, 1, 2, 2], [1, 0, 2, 3]], [[1, 1, 0, 0], [2, 2, 0, 0]]]
    predictions = {1: [[0, 0, 0, 1], [0, 1, -1, 2]], 2: [[0, 5, 5, 5], [1, 1, 1, 1]]}
    write_ade(tmp_path, truths, suffix=".png")
    model = Oracle({key: semantic(value) for key, value in predictions.items()}, ADE)
    report = evaluate.ade(model, tmp_path)
    # truth 0: 4 of 5 right, one as 5; truth 1: 3 of 5 right, one as 0, one as none; truth 2: its only one right.
    expected = np.zeros((150, 151), int)
    expected[0, [0, 5]] = 4, 1
    expected[1, [1, 0, 150]] = 3, 1, 1
    expected[2, 2] = 1
    assert np.array_equal(report.confusion, expected)
    iou = {0: 4 / 6, 1: 3 / 5, 2: 1, 5: 0}
    assert {i: report.per_class[ADE.classes[i]] for i in iou} == pytest.approx(
        {i: 100 * value for i, value in iou.items()}
    )
    assert sum(value is not None for value in report.per_class.values()) == 4
    assert list(report.metrics.values()) == pytest.approx(
        [
            100 * sum(iou.values()) / 4,
            100 * (5 * 4 / 6 + 5 * 3 / 5 + 1) / 11,
            100 * (4 / 5 + 3 / 5 + 1) / 3,
            100 * 8 / 11,
        ]
    )


def test_label_maps_of_the_kernels_against_loops(tmp_path):
    rng = np.random.default_rng(1)
    spec = dataclasses.replace(
        ADE,
        name="few",
        classes=ADE.classes[:5],
        config=dataclasses.replace(ADE.config, num_classes=5),
        per_class={},
    )
    truths = rng.integers(0, 6, (3, 20, 28))
    write_ade(tmp_path, truths, suffix=".png")
    answers = {
        key: fai_fast.postprocess(
            rng.normal(size=(8, 5, 7)).astype(np.float32),
            rng.normal(size=(8, 6)).astype(np.float32),
            (20, 28),
            predict_all_pixels=True,
            # Some queries stay below it, so that pixels stay without a label.
            threshold=0.5,
        )
        for key in (1, 2, 3)
    }
    report = evaluate.ade(Oracle(answers, spec), tmp_path)
    expected = np.zeros((5, 6), int)
    for key, truth in enumerate(truths, 1):
        predicted = answers[key].label_map
        for y, x in np.ndindex(truth.shape):
            if truth[y, x]:
                expected[truth[y, x] - 1, predicted[y, x]] += 1  # -1 is the last column
    assert np.array_equal(report.confusion, expected)
    assert 0 < expected[:, 5].sum() < expected.sum()


def test_no_labeled_pixel_gives_no_figures(tmp_path):
    write_ade(tmp_path, np.zeros((1, 4, 4), int))
    report = evaluate.ade(Oracle({1: semantic(np.zeros((4, 4), int))}, ADE), tmp_path)
    assert set(report.metrics.values()) == set(report.per_class.values()) == {None}
    json.dumps(report.to_dict(), allow_nan=False)
    assert "confusion" not in report.to_dict()


@pytest.mark.parametrize("part", ["validation", ""])
@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_layouts_and_kinds_of_label_images(tmp_path, part, mode):
    truth = np.array([[1, 2], [150, 0]])
    write_ade(tmp_path, [truth], part)
    labels = tmp_path / "annotations" / part / "0.png"
    if mode == "I;16":
        Image.fromarray(truth.astype(np.uint16)).save(labels)
    elif mode == "P":
        picture = Image.fromarray(truth.astype(np.uint8))
        picture.putpalette(bytes(range(256)) * 3)
        picture.save(labels)
    (tmp_path / "annotations" / part / "._0.png").write_bytes(b"rubbish of another system")
    (tmp_path / "images" / part / "readme.txt").write_text("no picture")
    with Image.open(labels) as opened:
        assert opened.mode == mode
    report = evaluate.ade(Oracle({1: semantic([[0, 1], [149, 0]])}, ADE), tmp_path)
    assert report.metrics["sem_seg/mIoU"] == 100


@pytest.mark.parametrize("bits", [8, 16])
def test_pixels_to_be_ignored_count_nowhere(tmp_path, bits):
    truth = np.array([[1, 2], [150, 2**bits - 1]])
    write_ade(tmp_path, [truth])
    Image.fromarray(truth.astype(f"uint{bits}")).save(tmp_path / "annotations" / "validation" / "0.png")
    report = evaluate.ade(Oracle({1: semantic([[0, 1], [149, 7]])}, ADE), tmp_path)
    assert (report.pixels, report.metrics["sem_seg/mIoU"]) == (3, 100)


def gray_png(path, values, bits):
    """Gray of few bits a pixel, which Pillow cannot write."""
    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]).tobytes()
        for row in values
    )
    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
            for kind, content in chunks
        )
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_label_images_of_few_bits_hold_the_numbers_in_the_file(tmp_path, bits):
    truth = np.arange(12).reshape(3, 4) % min(2**bits, 16)
    write_ade(tmp_path, [truth])
    gray_png(tmp_path / "annotations" / "validation" / "0.png", truth, bits)
    report = evaluate.ade(Oracle({1: semantic(np.where(truth, truth - 1, 3))}, ADE), tmp_path)
    assert (report.pixels, report.metrics["sem_seg/mIoU"]) == ((truth > 0).sum(), 100)
    counts = report.confusion.diagonal()
    assert counts[: truth.max()].tolist() == np.bincount(truth.ravel())[1:].tolist()


def test_ade_counterparts_and_limits(tmp_path):
    write_ade(tmp_path, np.ones((3, 4, 4), int))
    (tmp_path / "images" / "validation" / "1.jpg").unlink()
    model = Oracle(dict.fromkeys((1, 2, 3), semantic(np.zeros((4, 4), int))), ADE)
    with pytest.raises(FileNotFoundError, match=r"1 of 3 files are missing, without a counterpart: .*1\.png"):
        evaluate.ade(model, tmp_path)
    report = evaluate.ade(model, tmp_path, skip_missing=True)
    assert (report.images, len(report.missing)) == (2, 1)
    assert evaluate.ade(model, tmp_path, skip_missing=True, limit=1).images == 1
    (tmp_path / "images" / "validation" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="the same name"):
        evaluate.ade(model, tmp_path)


def test_ade_folders_that_are_wrong(tmp_path):
    model = Oracle({}, ADE)
    with pytest.raises(FileNotFoundError, match="has no folders images/validation"):
        evaluate.ade(model, tmp_path)
    write_ade(tmp_path, np.ones((0, 4, 4), int))
    with pytest.raises(ValueError, match="no pictures in"):
        evaluate.ade(model, tmp_path)
    with pytest.raises(ValueError, match=r"fai-mf-n-shapes gives masks that may overlap.*coco\(\)"):
        evaluate.AdeData(()).measure(Oracle({}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.full((4, 4), 151, np.uint8), "holds label 151, expected 0 .* to 150"),
        (np.ones((4, 4, 3), np.uint8), "has mode 'RGB', expected one label a pixel"),
        (np.ones((4, 5), np.uint8), "4x5 pixels .*expected 4x4 as of"),
        (b"no picture at all", "no picture that Pillow can read"),
        (None, "is damaged"),
    ],
)
def test_label_images_that_are_wrong_are_named(tmp_path, content, message):
    write_ade(tmp_path, np.ones((1, 4, 4), int))
    path = tmp_path / "annotations" / "validation" / "0.png"
    if content is None:
        path.write_bytes(path.read_bytes()[:45])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(ValueError, match=rf"0\.png.* {message}"):
        evaluate.ade(Oracle({1: semantic(np.zeros((4, 4), int))}, ADE), tmp_path)


def test_label_images_have_a_limit_that_can_be_raised(tmp_path, monkeypatch):
    write_ade(tmp_path, np.ones((1, 4, 4), int))
    labels = tmp_path / "annotations" / "validation" / "0.png"
    Image.fromarray(np.ones((40, 40), np.uint8)).save(labels)
    model = Oracle({1: semantic(np.zeros((4, 4), int))}, ADE)
    with pytest.raises(
        ValueError, match=r"labels: .*0\.png is too large: 40 x 40, expected at most 1599 pixels"
    ):
        evaluate.ade(model, tmp_path, max_pixels=1599)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(ValueError, match=r"labels: .*0\.png is too large: .*max_pixels="):
        evaluate.ade(model, tmp_path)
    with pytest.raises(ValueError, match="40x40 pixels"):
        evaluate.ade(model, tmp_path, max_pixels=1600)


# ------------------------------------------------------------------------------------------------- comparisons


@pytest.fixture
def data(tmp_path):
    write(tmp_path, objects_of(1, (1, LEFT)) + objects_of(2, (1, LOW)))
    return evaluate.CocoData.read(tmp_path / "images", tmp_path / "instances.json")


GOOD = {1: found((0, 0.9, LEFT)), 2: found((0, 0.8, LOW))}
WORSE = {1: found((0, 0.9, LEFT)), 2: found()}


def test_a_comparison_marks_what_falls_and_says_what_cannot_run(data):
    made = []

    def load(engine, precision):
        assert all(model.closed for model in made)
        if precision == "bf16":
            raise EngineError("this CPU has no\nbf16")
        if engine == "strange":
            raise ValueError("precision: got 'fp16'")
        made.append(Oracle(WORSE if precision == "fp16" else GOOD))
        return made[-1]

    asked = [("a", "fp32"), ("a", "bf16"), ("a", "fp16"), ("b", "fp32"), ("strange", "fp16")]
    result = evaluate.compare(load, data.measure, asked)
    assert [(run.engine, run.precision) for run in result.runs] == asked
    assert [result.difference(run) for run in result.runs] == pytest.approx(
        [0, None, -49.505, 0, None], abs=0.01
    )
    assert [run.precision for run in result.fallen] == ["fp16"]
    assert all(model.closed for model in made)
    lines = result.table().splitlines()
    assert "a bf16" in lines[4]
    assert lines[4].endswith("cannot run here: this CPU has no bf16")
    assert lines[5].endswith("fell by more than 0.5")
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [run["fell"] for run in content["runs"]] == [False, False, True, False, False]
    assert content["runs"][1]["report"] is None
    assert content["runs"][1]["problem"] == "this CPU has no bf16"
    assert content["runs"][2]["report"]["metrics"]["segm/AP"] < 51


def test_the_tolerance_is_what_may_be_lost(data):
    report = data.measure(Oracle(GOOD))

    def with_ap(ap):
        return evaluate.Run("e", "p", dataclasses.replace(report, metrics={**report.metrics, "segm/AP": ap}))

    exact, over, better = with_ap(50.1 - 0.5), with_ap(50.1 - 0.51), with_ap(60.0)
    result = evaluate.Comparison((with_ap(50.1), exact, over, better, with_ap(None)), 0.5)
    assert result.fallen == (over,)


def test_the_first_configuration_must_run(data):
    def load(engine, precision):
        raise EngineError("no such thing")

    with pytest.raises(EngineError, match="no such thing"):
        evaluate.compare(load, data.measure, [("a", "fp32"), ("b", "fp32")])
    with pytest.raises(ValueError, match="configurations: got none"):
        evaluate.compare(load, data.measure, [])
