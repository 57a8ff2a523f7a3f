"""One picture: what is in it, and the picture with it drawn. Needs nothing but fai-fast itself.

python examples/picture.py [PICTURE] [OUTPUT]
"""

import sys
from pathlib import Path

import fai_fast
import numpy as np
from fai_fast import render, samples
from PIL import Image

path = Path(sys.argv[1]) if len(sys.argv) > 1 else samples.path("shapes.jpg")
output = sys.argv[2] if len(sys.argv) > 2 else "found.png"

# The weights of this small model come with the package. The first call exports, verifies and compiles the network; all
# of that is kept, so that the next start takes a moment.
with fai_fast.load("fai-mf-n-shapes") as model:
    detections = model(path)
    print(detections)  # a table of classes
    print(detections.latency)  # milliseconds of each stage

# Rows are selected as NumPy does it; masks stay packed until they are asked for.
sure = detections[detections.confidence > 0.8]
for row in sure:
    x1, y1, x2, y2 = row.xyxy[0].tolist()
    print(
        f"{row.class_name[0]:10} {row.confidence[0]:.2f}  at {x1:.0f},{y1:.0f}..{x2:.0f},{y2:.0f}  {row.area[0]} pixels"
    )

with Image.open(path) as image:
    frame = np.asarray(image.convert("RGB"))
render.save(output, render.draw(frame, sure))
print("drawn:", output)
