"""A recipe whose address space may grow by so many MiB once training begins.

python -m tests.squeezed_recipe <recipe> <MiB> <the recipe's flags>
"""

import resource
import sys
from pathlib import Path
from typing import Any

from pt_app.core.errors import exit_with
from pt_app.eval_model import judge_train_cuda, judge_train_mps
from pt_app.models import gemm
from pt_app.training.loop import TrainingLoop


def main() -> None:
    recipe, mebibytes, *argv = sys.argv[1:]
    train = TrainingLoop.train
    # oneDNN makes code for each new shape, and keeps it: once the address space is used up there is
    # none for the shapes of smaller packs either. MKL's kernels need no code.
    gemm._earlier_choice = False

    def squeezed(self: TrainingLoop, *args: Any, **kwargs: Any) -> Any:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + int(mebibytes) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        try:
            return train(self, *args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)

    TrainingLoop.train = squeezed  # type: ignore[method-assign]
    {"mps": judge_train_mps, "cuda": judge_train_cuda}[recipe].main(argv)


exit_with(main)
