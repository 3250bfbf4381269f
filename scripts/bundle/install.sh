#!/usr/bin/env bash
# Checks every file of the bundle, then makes .venv beside this script. No network is needed.
#
#   ./install.sh          with another Python: PYTHON=/path/to/python3.11 ./install.sh
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}

fail() {
  echo "error: $*" >&2
  exit 2
}

if command -v sha256sum >/dev/null; then
  check=(sha256sum --check --quiet)
else
  check=(shasum -a 256 --check --quiet) # macOS
fi
"${check[@]}" MANIFEST || fail "a file is not what was bundled: copy the bundle again"

wanted=$(cat PYTHON)
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
  fail "no $python here: name a Python $wanted with PYTHON=/path/to/python$wanted"
[ "$found" = "$wanted" ] ||
  fail "$python is $found and the wheels are for $wanted: name another with PYTHON=..."

"$python" -m venv .venv
# Compiling all 20,000 files takes minutes; Python compiles the tenth that is used, once.
.venv/bin/python -m pip install --isolated --no-index --find-links wheels --quiet --no-compile \
  --disable-pip-version-check -r requirements.txt
echo "installed; README.md has the next lines"
