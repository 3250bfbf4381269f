#!/usr/bin/env bash
# Trains a language model of 564 M parameters from nothing on one node of GPUs: tokenizer, base,
# midtraining, SFT, evaluation and report. Run it again to resume.
#
#   bash speedrun.sh            NPROC_PER_NODE: the number of GPUs to use, by default all of them
#
# WANDB_RUN names the run in W&B with --tracking, and is never required. DEPTH, SHARDS and BATCH size
# it; MODEL_DIR, DATA_DIR and REPORT name folders. docs/SCRATCH.md explains the stages.
set -euo pipefail
cd "$(dirname "$0")"
source scripts/pipeline.sh

processes=${NPROC_PER_NODE:-$("$python" -c 'import torch; print(torch.cuda.device_count())')}
depth=${DEPTH:-20}
run=${MODEL_DIR:-runs/d$depth}
data=${DATA_DIR:-data/d$depth}
# 110 files of some 250 million characters give 10.5 tokens per parameter of matrices and head.
text=${TEXT:-hub:karpathy/fineweb-edu-100b-shuffle:${SHARDS:-110}}
tokens=(--text "$text" --vocab_size 65536)
shape=(--max_seq_len 2048 --device_batch_size "${BATCH:-16}" --total_batch_size 524288)
tracking=(--tracking "${TRACKING:-off}")
base=(--config configs/d20.yaml --depth "$depth" "${shape[@]}" "${tracking[@]}")
mid=("${shape[@]}" "${tracking[@]}")
sft=("${shape[@]}" --total_batch_size 65536 "${tracking[@]}")
core=() chat=()
pipeline
