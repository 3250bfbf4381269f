"""Fetch what the stages need, and read every byte of it: python -m scripts.fetch_data."""

from pt_app.pretrain.settings import FetchSettings, launch

if __name__ == "__main__":
    launch(FetchSettings, "vocabulary.fetch_all", __doc__)
