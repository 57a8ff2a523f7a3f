"""Makes the int8 form of fai-mf-n-shapes that comes with the package: after every change of its weights.

    python tools/quantize_shapes.py

Ranges are taken from scenes that are neither learnt from nor those of the published figures, and AP on them decides
whether the result is written. Needs ``pip install 'fai-fast[quantize,eval]'`` and opencv-python-headless.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import fai_fast
import shapes_dataset
from fai_fast.quantizer import SUFFIX
from fai_fast.registry import bundled_path

NAME = "fai-mf-n-shapes"
SCENES, FIRST_SEED = 500, 20_000
# As those of the published figures, and as a camera's.
SIZES: list[shapes_dataset.Size] = [256, (240, 320), 256, (360, 640)]


def ship(scenes: int = SCENES) -> Path:
    """Writes the file into the package; raises fai_fast.ExportError where AP falls by more than half a point."""
    target = bundled_path(f"{NAME}{SUFFIX}")
    with tempfile.TemporaryDirectory() as folder:
        coco = shapes_dataset.write(Path(folder) / "shapes", scenes, SIZES, FIRST_SEED)
        report = fai_fast.quantize(NAME, coco.parent / "images", target, coco=coco, cache_dir=folder)
    target.chmod(0o644)
    print(
        f"{target}: {target.stat().st_size / 1e6:.2f} MB; {report.verdict}; in int8 but {report.kept or 'nothing'}"
    )
    return target


if __name__ == "__main__":
    ship()
