#!/bin/bash
# The set-up of the rented host, unless --setup gives another: a Python, and the recipe's packages.
set -e
if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; then
  bash install.sh python3 python3-venv
fi
python3 -m venv .venv
# The rental is paid by the minute, and pip would compile ten times the files that are used.
.venv/bin/pip install --quiet --no-compile -r requirements-cuda.txt
