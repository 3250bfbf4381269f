#!/bin/bash
# The set-up of the rented host, unless --setup gives another: a Python, and the recipe's packages.
set -e
if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; then
  bash install.sh python3 python3-venv
fi
python3 -m venv .venv
.venv/bin/pip install --quiet -r requirements-cuda.txt
