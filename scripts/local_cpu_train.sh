#!/usr/bin/env bash
# Trains a small language model from nothing on a laptop's CPU, without a network: tokenizer, base,
# midtraining, SFT, evaluation and report. Half an hour on two cores; run it again to resume.
#
#   bash scripts/local_cpu_train.sh            QUICK=1: five minutes, to see that it works
#
# MODEL_DIR, DATA_DIR and REPORT name other folders than runs/d4, data/d4 and report.md; PYTHON another
# Python than .venv/bin/python. docs/SCRATCH.md explains the stages.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/pipeline.sh

processes=1
# Text that every machine has: what the authors of the installed packages wrote about them.
packages=(torch transformers scipy numpy sklearn matplotlib pandas sympy networkx) # 34 MB
tokens=(--vocab_size 4096)
base=(--config configs/d4_cpu.yaml)
mid=(--max_seq_len 512 --total_batch_size 8192)
sft=(--max_seq_len 512 --total_batch_size 8192)
core=(--max_per_task 500) # some 4 CPU minutes
chat=(--max_new_tokens 64) # every row, some 5
name=d4
if [ -n "${QUICK:-}" ]; then
  name=d4-quick
  packages=(numpy scipy)
  base=(--depth 4 --max_seq_len 256 --total_batch_size 4096 --num_iterations 60)
  mid=(--max_seq_len 256 --total_batch_size 4096 --num_iterations 15 --eval_steps 5)
  sft=(--max_seq_len 256 --total_batch_size 4096 --num_iterations 15 --eval_steps 5)
  core=(--max_per_task 40)
  chat=(--max_per_task 40 --max_new_tokens 16)
fi
run=${MODEL_DIR:-runs/$name}
data=${DATA_DIR:-data/$name}
text=${TEXT:-$(printf 'docstrings:%s,' "${packages[@]}")}
tokens+=(--text "${text%,}")
# The hub is not asked for anything here.
export HF_HUB_OFFLINE=1
pipeline
