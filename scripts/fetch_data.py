"""Fetch the evaluation data and the mixtures, and read every byte that the stages will read."""

from pt_app.core.errors import exit_with
from pt_app.pretrain.settings import FetchSettings, parsed


def main() -> None:
    """Parse the flags and fetch."""
    settings = parsed(FetchSettings, None, __doc__)
    from pt_app.pretrain.fetching import fetch_all  # torch takes seconds: --help does without

    fetch_all(settings)


if __name__ == "__main__":
    exit_with(main)
