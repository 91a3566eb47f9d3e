#!/usr/bin/env bash
# Locks every package that an installation needs, with hashes, to requirements.lock, from pyproject.toml and constraints.txt:
#   bash scripts/lock.sh                                      after a change of either; needs uv: pip install uv
#   pip install --require-hashes -r requirements.lock && pip install --no-deps .      installs exactly that
# For Python 3.11 and newer on any system. Extras are not locked.
set -euo pipefail
cd "$(dirname "$0")/.."
echo "# Written by scripts/lock.sh from pyproject.toml and constraints.txt." > requirements.lock.new
uv pip compile pyproject.toml --constraints constraints.txt --generate-hashes --universal --python-version 3.11 \
  --no-header --no-annotate --quiet >> requirements.lock.new
mv requirements.lock.new requirements.lock
