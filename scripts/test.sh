#!/usr/bin/env bash
# The tests at the newest versions, in an environment of their own: bash scripts/test.sh [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/environment.sh .venv constraints.txt '[test]'
.venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope "$@"
