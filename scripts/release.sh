#!/usr/bin/env bash
# Builds what a release consists of in dist/: sdist, wheel, an SBOM (CycloneDX) of the locked packages, and their SHA-256.
#   bash scripts/release.sh                    needs: pip install build cyclonedx-bom
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf dist
python -m build
cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --output-format JSON \
  --output-file dist/sbom.cdx.json
(cd dist && sha256sum -- * > SHA256SUMS)
