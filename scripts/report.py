"""Write report.md of a model from scratch: python -m scripts.report (docs/SCRATCH.md)."""

from pt_app.pretrain.settings import ReportSettings, launch

if __name__ == "__main__":
    launch(ReportSettings, "report.write_report", __doc__)
