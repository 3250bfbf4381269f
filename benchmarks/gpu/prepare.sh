#!/usr/bin/env bash
# Collects what the rented machine lacks as wheels in benchmarks/gpu/wheels (ignored by git): that
# machine fetches nothing. Versions and hashes are those of requirements-dev.lock, for Python 3.12
# on x86-64. Prints the sizes; one transfer takes 64 MiB, of which the checkout needs 8.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-.venv/bin/python}"
here=benchmarks/gpu
rm -rf "$here/wheels"
mkdir "$here/wheels"
"$python" "$here/wheels.py" pins "$here/packages.txt" requirements-dev.lock >"$here/wheels/pins.txt"
platforms=()
for glibc in 28 27 24 17; do
  platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
"$python" -m pip download --quiet --no-deps --only-binary=:all: --require-hashes \
  --python-version 3.12 --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
  --dest "$here/wheels" --requirement "$here/wheels/pins.txt"
"$python" "$here/wheels.py" finish "$here/wheels" 54
