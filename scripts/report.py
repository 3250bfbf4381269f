"""Write report.md of a model from scratch: python -m scripts.report (docs/SCRATCH.md)."""

from pt_app.core.errors import exit_with
from pt_app.pretrain.settings import ReportSettings, parsed


def main() -> None:
    """Parse the flags and write the report."""
    settings = parsed(ReportSettings, None, __doc__)
    from pt_app.pretrain.report import write_report  # torch takes seconds: --help does without

    write_report(settings)


if __name__ == "__main__":
    exit_with(main)
