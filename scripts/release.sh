#!/usr/bin/env bash
# Builds what a release consists of in dist/: sdist, wheel, an SBOM (CycloneDX) of the locked packages, and their SHA-256.
#   bash scripts/release.sh                    needs: pip install -c constraints.txt build cyclonedx-bom
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf dist
python -m build
cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --output-format JSON \
  --output-file dist/sbom.cdx.json
python - <<'END'  # the version, which pyproject.toml takes from the package
import json
import pathlib

import act_lightning

path = pathlib.Path("dist/sbom.cdx.json")
sbom = json.loads(path.read_text(encoding="utf-8"))
sbom["metadata"]["component"]["version"] = act_lightning.__version__
path.write_text(json.dumps(sbom, indent=2) + "\n", encoding="utf-8")
END
(cd dist && sha256sum -- * > SHA256SUMS)
