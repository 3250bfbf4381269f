"""Evaluate a base on CORE's tasks: python -m scripts.base_eval (docs/SCRATCH.md)."""

from pt_app.pretrain.settings import EvalSettings, launch

if __name__ == "__main__":
    launch(EvalSettings, "evaluate.base_eval", __doc__)
