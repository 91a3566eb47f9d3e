#!/usr/bin/env bash
# The tests at the oldest version of every range, in a fresh environment: bash scripts/test_oldest.sh [arguments of pytest]
# Where there is no GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves the gigabytes of CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf .venv-oldest
bash scripts/environment.sh .venv-oldest constraints-oldest.txt '[test]'
CUDA_VISIBLE_DEVICES= .venv-oldest/bin/python -m pytest "$@"
