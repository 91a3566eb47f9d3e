#!/usr/bin/env bash
# ACT from one small model to another on this machine, without GPU or hub: bash scripts/quickstart.sh [settings]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh .venv constraints.txt
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # so small a model is faster with one thread than with two
.venv/bin/python -m act_lightning fit --config configs/quickstart.yaml --overwrite "$@"
