#!/usr/bin/env bash
# Write requirements-*.lock from requirements-*.txt: every package at one version, for every system,
# with the hashes of its files. Needs uv (pip install uv).
#
# torch is left out, and what only it needs (CUDA's libraries, triton): its wheel differs by
# platform, and `make install*` installs it first. This project itself is installed last.
set -euo pipefail
cd "$(dirname "$0")/.."
for requirements in requirements-*.txt; do
  lock="${requirements%.txt}.lock"
  uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
    --python-version 3.11 --no-emit-package torch "$requirements" |
    awk '/^[^ ]/ { kept = !/^(-e |nvidia-|cuda-|triton|pt-app)/ } kept' >"$lock.partial"
  mv "$lock.partial" "$lock"
  echo "$lock: $(grep -c == "$lock") packages"
done
