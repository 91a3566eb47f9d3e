#!/usr/bin/env bash
# The tests at the newest versions, in an environment of their own: bash scripts/test.sh [arguments of pytest]
# Ten minutes on two free cores. The slow ones, most of them on several processes, are left out: bash scripts/test.sh -m slow
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh .venv constraints.txt '[test]'
.venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope -m "not slow" "$@"
