#!/bin/bash
# The recipe on the rented host; the launcher fills in the braces.
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false WANDB_MODE=offline
export HF_HOME="$PWD/hf" {variables}
exec {recipe}
