"""Runs the CUDA recipe as a person would, and looks on.

watched_recipe.py NUMBERS [--gradients=FILE] flags of the recipe...
"""

import sys
from pathlib import Path

from benchmarks.gpu.watch import Watch
from pt_app.eval_model.judge_train_cuda import main
from pt_app.models.gemm import restore_matmul_choice

if __name__ == "__main__":
    numbers, *flags = sys.argv[1:]
    named = [flag.partition("=")[2] for flag in flags if flag.startswith("--gradients=")]
    Watch(Path(numbers), Path(named[0]) if named else None).install()
    # On a CPU the recipe chooses its float32 matmul by a clock: runs that are compared with each
    # other all take the plain one.
    restore_matmul_choice(False)
    main([flag for flag in flags if not flag.startswith("--gradients=")])
