"""Continue texts: python scripts/inference.py --model outputs/final_model (docs/SCRATCH.md)."""

import sys
from pathlib import Path

if not __package__:  # run by path: this folder's modules must not be on sys.path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pt_app.pretrain.settings import InferenceSettings, launch

if __name__ == "__main__":
    launch(InferenceSettings, "inference.infer", __doc__)
