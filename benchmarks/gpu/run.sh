#!/usr/bin/env bash
# Asks a rented machine with a GPU what only it can answer, in at most nine minutes.
#
#     benchmarks/gpu/run.sh [--smoke] [FOLDER]       FOLDER/results.json is whole after each part
#
# Reads benchmarks/gpu/wheels (prepare.sh) where it is there, and fetches nothing. --smoke runs all
# parts in miniature on any machine. PYTHON names the interpreter, BUDGET the seconds.
set -uo pipefail
cd "$(dirname "$0")/../.."
smoke=()
patience=1 # --smoke may have to share two cores with other tests
if [ "${1-}" = --smoke ]; then smoke=(--smoke); patience=6; shift; fi
out="$(realpath -m "${1:-runs/gpu}")"
python="$(command -v "${PYTHON:-python3}")"
deadline=$((SECONDS + ${BUDGET:-540} * patience))
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD"

# part NAME SECONDS: the module benchmarks.gpu.NAME, for so long at most and not past the deadline.
part() {
  local began=$SECONDS left=$((deadline - SECONDS)) limit=$(($2 * patience)) code
  [ "$left" -lt "$limit" ] && limit=$left
  [ "$limit" -lt 5 ] && { echo "$1: not run, no time is left"; return; }
  timeout --kill-after=5 "$limit" "$python" -m "benchmarks.gpu.$1" --work "$work" \
    "${smoke[@]}" >"$work/$1.log" 2>&1
  code=$?
  flock "$work" "$python" benchmarks/gpu/results.py "$out/results.json" end "$1" "$code" \
    $((SECONDS - began)) "$work"
}

# Not into a virtual environment: one made by the Python of another sees the packages of neither.
install_wheels() {
  (cd benchmarks/gpu/wheels && sha256sum --check --quiet SHA256SUMS) &&
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
      --target "$work/site" benchmarks/gpu/wheels/*.whl || exit 1
  export PYTHONPATH="$PWD:$work/site"
}

if [ -d benchmarks/gpu/wheels ] && "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))'
then
  install_wheels
  echo "wheels installed, $SECONDS s"
fi

"$python" benchmarks/gpu/results.py "$out/results.json" begin \
  bases doctor parity resume back training scoring attention estimate
part bases 90
# Nothing is timed in these: side by side.
part doctor 90 &
part parity 90 &
{ part resume 90 && part back 60; } &
wait
part training 240
part scoring 90
part attention 90
part estimate 75
echo "$SECONDS s in all: $out/results.json"
! grep -q '"status": "\(failed\|out of time\|not run\)"' "$out/results.json"
