"""A camera, or a film, frame by frame with OpenCV: objects drawn on it, and what each stage takes. Ends with q.

pip install opencv-python
python examples/camera.py [CAMERA NUMBER OR FILM] [MODEL]
"""

import sys

import cv2
import fai_fast
import numpy as np
from fai_fast import render

source = sys.argv[1] if len(sys.argv) > 1 else "0"
name = sys.argv[2] if len(sys.argv) > 2 else "bisenetformer-m-ade"

camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
if not camera.isOpened():
    sys.exit(f"cannot open {source}")
# A driver's queue of old frames is latency that nobody measures.
camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)

# 384x640 has the shape of a 16:9 camera: nothing is stretched, and it costs 60 % of 640x640.
with fai_fast.load(name, im_size=(384, 640)) as model:
    model.warmup()
    while True:
        read, frame = camera.read()  # BGR, which infer takes as it is: no conversion of ours
        if not read:
            break
        detections = model.infer(frame, color="bgr")
        latency = detections.latency
        print(
            f"\r{len(detections):3} objects  preprocess {latency.preprocess:5.1f}  engine {latency.engine:6.1f}  "
            f"postprocess {latency.postprocess:5.1f}  total {latency.total:6.1f} ms",
            end="",
            flush=True,
        )
        # draw takes RGB, OpenCV shows BGR: both are views, turned around along the last axis.
        drawn = render.draw(frame[:, :, ::-1], detections)
        cv2.imshow("fai-fast", np.ascontiguousarray(drawn[:, :, ::-1]))
        if cv2.waitKey(1) == ord("q"):
            break
print()
camera.release()
cv2.destroyAllWindows()
