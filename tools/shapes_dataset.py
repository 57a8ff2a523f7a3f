"""Writes scenes that the demo model never saw as a data set in COCO's format.

    python tools/shapes_dataset.py shapes_val                   # 500 scenes, those of the model's published figures
    fai-fast eval fai-mf-n-shapes --images shapes_val/images --coco shapes_val/instances.json

The first needs OpenCV, which tools/shapes.py draws with: ``pip install 'fai-fast[train]'`` brings it. The second needs
``pip install 'fai-fast[eval]'``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import fai_fast
import shapes
from PIL import Image

# As tools/train_shapes.py evaluates: scenes of small seeds are held out from training.
SCENES, SIZE = 500, 256


Size = int | tuple[int, int]


def write(folder: Path, scenes: int = SCENES, size: Size | list[Size] = SIZE, first: int = 0) -> Path:
    """Draws the scenes of seeds first, first + 1, ...: ``images/*.png`` and ``instances.json``, whose path it returns.

    Of several sizes each scene has the next one.
    """
    sizes = size if isinstance(size, list) else [size]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for seed in range(first, first + scenes):
        picture, labels, masks = shapes.scene(seed, sizes[seed % len(sizes)])
        name = f"{seed:06d}.png"
        Image.fromarray(picture).save(folder / "images" / name)
        images.append({"id": seed, "file_name": name, "height": picture.shape[0], "width": picture.shape[1]})
        packed = fai_fast.PackedMasks.from_bool(masks)
        columns = zip(
            labels.tolist(), packed.to_rle(), packed.boxes.tolist(), packed.area().tolist(), strict=True
        )
        for label, rle, (x1, y1, x2, y2), area in columns:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": seed,
                    "category_id": label + 1,
                    "segmentation": {**rle, "counts": rle["counts"].decode("ascii")},
                    "area": area,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": 0,
                }
            )
    document = {
        "info": {"description": "scenes of tools/shapes.py"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(shapes.CLASSES)],
    }
    target = folder / "instances.json"
    target.write_text(json.dumps(document) + "\n", "utf-8")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description="held-out scenes of tools/shapes.py as a COCO data set")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=SCENES, help="default: %(default)s")
    parser.add_argument(
        "--size", type=int, default=SIZE, help="side of the square scenes; default: %(default)s"
    )
    args = parser.parse_args()
    print(write(args.folder, args.scenes, args.size))


if __name__ == "__main__":
    main()
