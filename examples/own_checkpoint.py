"""A model that you trained with FocoosAI: its folder holds model_info.json and the checkpoint.

pip install 'fai-fast[torch]'     (only to read the .pth; not needed once it is exported)
python examples/own_checkpoint.py FOLDER PICTURE [CHECKPOINT]

FOLDER/model_info.json says classes, task and configuration; the checkpoint is the one in the folder, or CHECKPOINT: a
.pth file, a .safetensors file or an address.
"""

import sys

import fai_fast

if len(sys.argv) < 3:
    sys.exit(__doc__)
folder, picture = sys.argv[1:3]
weights = sys.argv[3] if len(sys.argv) > 3 else None

# Every name and shape in the checkpoint is checked against the configuration; an error names the first that differ.
with fai_fast.load(folder, weights=weights) as model:
    print(model.spec.card())
    print(model.info()["verification"])  # how far the deployed graph is from the reference network
    print(model.infer(picture, threshold=0.5))

# One file with everything in it, for a machine without torch: fai_fast.load("mine.onnx").
print(fai_fast.export(folder, "mine.onnx", weights=weights))
