#!/usr/bin/env bash
# Makes a virtual environment, or reuses it, and installs this checkout in it:
#   bash scripts/environment.sh FOLDER CONSTRAINTS [EXTRAS]     such as: .venv constraints.txt [test,dev]
# PYTHON names the interpreter; by default the first of python3, python3.13, 3.12, 3.11 that is new enough.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 constraints=$2 extras=${3:-}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "No Python 3.11 or newer found. Install one, or name it: PYTHON=/path/to/python bash $0" >&2
  return 1
}

if [ ! -x "$folder/bin/python" ]; then
  python=$(find_python)
  "$python" -m venv "$folder"
fi
"$folder/bin/python" -m pip install --quiet -c "$constraints" -e ".$extras"
if [[ $extras == *test* ]]; then
  # The functions that tests compare with; of what else mergekit asks for, they need nothing that is not here already.
  "$folder/bin/python" -m pip install --quiet -c "$constraints" --no-deps mergekit
  # Where the tests find them and no other command does: transformers imports torchao, for seconds, wherever it is there,
  # and loads adapters through peft.
  for package in torchao peft; do
    if [ ! -d "$folder/beside/$package" ]; then
      "$folder/bin/python" -m pip install --quiet -c "$constraints" --no-deps --target "$folder/beside" "$package"
    fi
  done
fi
