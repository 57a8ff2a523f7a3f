"""What ``fai-fast predict --format`` writes beside the JSON: the files of labeling tools, trainers and spreadsheets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fai_fast._files import replacing
from fai_fast.cli.growing import Lines
from fai_fast.cli.messages import UsageError
from fai_fast.detections.formats import _require

if TYPE_CHECKING:
    from fai_fast import Detections, ModelSpec

__all__ = ["FORMATS", "HELP", "Labels"]

# What each format writes into the folder: one file, or a folder with a file for each picture.
FORMATS = {
    "jsonl": "predictions.jsonl",
    "csv": "predictions.csv",
    "coco": "predictions.coco.json",
    "yolo": "labels",
    "labelme": "labelme",
    "png": "masks",
    "panoptic": "panoptic",
}
# Beside the folder of its PNGs, as COCO has it.
_PANOPTIC_JSON = "panoptic.json"
HELP = (
    "write this beside the JSON; may be repeated. jsonl, csv: predictions.jsonl, .csv, with file and time; coco: "
    "predictions.coco.json, with COCO's category ids; yolo: labels/NAME.txt, outlines; labelme: labelme/NAME.json; "
    "png: masks/NAME.png, the class of each pixel in 8 or 16 bits, the largest value for none; panoptic, of panoptic "
    "models: panoptic.json and panoptic/NAME.png, COCO's"
)


class Labels:
    """Files of some formats in a folder, each there as a whole or not at all.

    Raises UsageError where the folder has what they would be called.
    """

    def __init__(self, formats: Sequence[str], folder: Path, spec: ModelSpec, *, overwrite: bool) -> None:
        self._formats = tuple(dict.fromkeys(formats))
        if {"yolo", "labelme"} & set(self._formats):
            # Before anything is computed, rather than at the first picture.
            _require("cv2", "an outline", "polygons")
        if "panoptic" in self._formats and spec.task != "panoptic":
            raise UsageError(
                f"--format panoptic: {spec.name} is a model of the task {spec.task}, expected a panoptic one"
            )
        self._folder = folder
        self._spec = spec
        self._taken: set[str] = set()
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._panoptic: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
        self._csv: list[str] = []
        self._lines = Lines(str(folder / FORMATS["jsonl"])) if "jsonl" in self._formats else None
        targets = [(name, folder / FORMATS[name]) for name in self._formats]
        if "panoptic" in self._formats:
            targets.append(("panoptic", folder / _PANOPTIC_JSON))
        for name, target in targets:
            if target.exists() and not overwrite:
                raise UsageError(
                    f"--format {name}: {target} is there already; give another --output, or --overwrite"
                )

    def add(self, file: str, detections: Detections, *, time: str | None, frame: int | None = None) -> None:
        """What was found in a picture, or in a frame of a video."""
        if self._lines is not None:
            self._lines.write({"file": file, "frame": frame, "time": time, **detections.to_dict()})
        if "csv" in self._formats:
            self._csv.append(detections.to_csv(file=file, time=time, header=not self._csv))
        if "coco" in self._formats:
            self._add_coco(file, detections, frame)
        files: dict[str, tuple[str, Callable[[], str | bytes]]] = {
            "yolo": (".txt", detections.to_yolo),
            "labelme": (".json", lambda: json.dumps(detections.to_labelme(file), indent=1)),
            "png": (".png", detections.to_label_png),
            "panoptic": (".png", detections.panoptic_png),
        }
        wanted = [name for name in files if name in self._formats]
        if not wanted:
            return
        stem = self._stem(file, frame)
        for name in wanted:
            suffix, content = files[name]
            folder = self._folder / FORMATS[name]
            folder.mkdir(exist_ok=True)
            _write(folder / f"{stem}{suffix}", content())
        if "panoptic" in self._formats:
            self._add_panoptic(file, f"{stem}.png", detections, frame)

    def end(self) -> None:
        """Writes what is one file for all pictures."""
        if self._lines is not None:
            self._lines.open()
            self._lines.__exit__(None, None, None)
        if self._csv:
            _write(self._folder / FORMATS["csv"], "".join(self._csv))
        ids = self._spec.category_ids or range(len(self._spec.classes))
        categories: list[dict[str, Any]] = [
            {"id": category, "name": name} for category, name in zip(ids, self._spec.classes, strict=True)
        ]
        if "coco" in self._formats:
            document = {
                "images": self._images, "annotations": self._annotations, "categories": categories
            }  # fmt: skip
            _write(self._folder / FORMATS["coco"], json.dumps(document))
        if "panoptic" in self._formats:
            panoptic = getattr(self._spec.config, "panoptic", None)
            stuff = () if panoptic is None else panoptic.stuff
            kinds = [
                {**category, "isthing": int(class_id not in stuff)}
                for class_id, category in enumerate(categories)
            ]
            _write(self._folder / _PANOPTIC_JSON, json.dumps({**self._panoptic, "categories": kinds}))

    def _add_panoptic(self, file: str, png: str, detections: Detections, frame: int | None) -> None:
        images = self._panoptic["images"]
        images.append(_image(len(images) + 1, file, detections, frame))
        self._panoptic["annotations"].append(
            detections.to_coco_panoptic(len(images), png, category_ids=self._spec.category_ids)
        )

    def _add_coco(self, file: str, detections: Detections, frame: int | None) -> None:
        image_id = len(self._images) + 1
        self._images.append(_image(image_id, file, detections, frame))
        for annotation in detections.to_coco(image_id, category_ids=self._spec.category_ids):
            self._annotations.append({"id": len(self._annotations) + 1, **annotation})

    def _stem(self, file: str, frame: int | None) -> str:
        """The name of a picture's files; pictures of one name in several folders get numbers."""
        plain = Path(file).stem if frame is None else f"{Path(file).stem}-{frame:06d}"
        stem, count = plain, 1
        while stem in self._taken:
            count += 1
            stem = f"{plain}-{count}"
        self._taken.add(stem)
        return stem


def _image(image_id: int, file: str, detections: Detections, frame: int | None) -> dict[str, Any]:
    """COCO's record of a picture."""
    height, width = detections.size
    place = {} if frame is None else {"frame": frame}
    return {"id": image_id, "file_name": file, **place, "height": height, "width": width}


def _write(path: Path, content: str | bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
