"""Check whether this Apple GPU computes what training needs: the doctor's checks, without a run.

python scripts/test_apple_silicon.py
python scripts/test_apple_silicon.py --cpu     (without an Apple GPU: the arithmetic of the CPU)

Exit code 0: all checks passed. 2: one failed, or there is no Apple GPU.
"""

import sys
from pathlib import Path

if not __package__:  # run by path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pt_app.core.errors import UserError, exit_with
from pt_app.core.flags import Parser
from pt_app.models import platforms
from pt_app.preflight.doctor.command import examine, of_platform


def main() -> None:
    """Check the device and its arithmetic; packages, caches and keys are `judge doctor`'s."""
    parser = Parser(description=__doc__)
    help = "where there is no Apple GPU, check the CPU"
    parser.add_argument("--cpu", action="store_true", default=False, help=help)
    arguments = parser.parse_args()
    platform = platforms.decide("mps")
    if platform.on_cpu and not arguments.cpu:
        raise UserError("no Apple GPU here: run this on a Mac, or check the CPU with --cpu")
    report = examine("mps", of_platform("mps", platform))
    print(report.summary())
    if report.count("fail"):
        sys.exit(2)


if __name__ == "__main__":
    exit_with(main)
