"""Judge three rows of a test set, and show each with its label beside the verdict.

python scripts/test_model.py adapters_eval/<name>_final
python scripts/test_model.py adapters_eval/<name>_final --data datasets/mine

`judge try ADAPTER` does the same with rows that are typed in.
"""

import sys
from pathlib import Path

if not __package__:  # run by path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pt_app.core import console
from pt_app.core.dataset import find_folder
from pt_app.core.errors import exit_with
from pt_app.core.flags import Parser


def main() -> None:
    """Show what a judge says of three test rows."""
    parser = Parser(description=__doc__)
    parser.add_argument("adapter", type=Path, help="adapter folder of the judge")
    help = "dataset folder; default: %(default)s"
    parser.add_argument("--data", type=Path, default=Path("datasets/judge_eval"), help=help)
    help = "the adapter's base, if it was a folder or file"
    parser.add_argument("--base", default=None, help=help)
    arguments = parser.parse_args()
    find_folder(arguments.data)
    from pt_app.eval_model.trying import try_examples

    console.start()
    try_examples(arguments.adapter, arguments.data, arguments.base)


if __name__ == "__main__":
    exit_with(main)
