"""Train a small model: scripts/train.py --config configs/small_config.yaml (docs/SCRATCH.md)."""

import sys
from pathlib import Path

if not __package__:  # run by path: this folder's modules must not be on sys.path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pt_app.pretrain.settings import SmallSettings, launch

if __name__ == "__main__":
    launch(SmallSettings, "plans.train_small", __doc__)
