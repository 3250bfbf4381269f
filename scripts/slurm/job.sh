# shellcheck shell=bash
# shellcheck disable=SC2154  # the job scripts set `job`
# What the job scripts share: the signal before the time limit, the wait for the training, the requeue.
# They set `job` (its number, with that of the array's task), start the training in the background
# and set `child` to its process id, or to -id for its whole process group.

asked=no woken=no child=
# Passed on as SIGTERM: torchrun hands that to its ranks, and dies of SIGUSR1.
trap 'asked=yes; pass_on' USR1
# Cancelled or pre-empted: SLURM itself decides whether the job is queued again.
trap pass_on TERM

pass_on() {
  woken=yes
  [ -z "$child" ] || kill -TERM -- "$child" 2>/dev/null || true
}

say() {
  echo "$(date +%FT%T) job $job: $*"
}

source scripts/slurm/environment.sh
# huggingface_hub reads it once, when it is imported: it must stand before Python starts.
export HF_HUB_OFFLINE=1 WANDB_MODE=offline
# torchrun kills its ranks 30 seconds after it passed on a signal, and a step may take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-280}
export TQDM_MININTERVAL=60 # seconds: in a file each turn of a bar is a line
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
restarts=${SLURM_RESTART_COUNT:-0}

# Wait for the training, and set `code` to its exit code; exit with it unless the limit ended it.
wait_for_training() {
  while :; do
    woken=no
    wait "${child#-}" && code=0 || code=$?
    [ $woken = yes ] || break # else it was a signal that ended the waiting
  done
  if [ "$code" = 0 ] || [ $asked = no ]; then
    say "ended with exit code $code"
    exit "$code"
  fi
}

nothing_gained() {
  say "error: nothing was gained within the time limit: give sbatch a longer --time" >&2
  exit 2
}

queue_again() {
  if [ "$restarts" -ge "${JUDGE_MAX_RESTARTS:-100}" ]; then
    say "error: started $((restarts + 1)) times: give sbatch a longer --time, then submit again" >&2
    exit 2
  fi
  say "stopped before the time limit: queued again"
  if ! scontrol requeue "$job"; then
    say "error: the cluster does not queue it again: submit the same line, which resumes" >&2
    exit 2
  fi
}
