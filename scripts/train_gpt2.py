"""Train GPT-2 124M on a text: python scripts/train_gpt2.py --num_epochs 5 (docs/SCRATCH.md)."""

import sys
from pathlib import Path

if not __package__:  # run by path: this folder's modules must not be on sys.path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pt_app.pretrain.settings import Gpt2Settings, launch

if __name__ == "__main__":
    launch(Gpt2Settings, "plans.train_gpt2", __doc__)
