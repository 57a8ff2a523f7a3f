#!/usr/bin/env bash
# Checks and measures everything on this CUDA machine in one call of at most 4 minutes: see tools/gpu_check.py.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
