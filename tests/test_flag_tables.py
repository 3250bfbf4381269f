"""The tables of flags in docs/ are those of the code."""

import pytest

from tests.flag_tables import DOCS, SCRIPTS, commands, flags_of_command, pages


@pytest.mark.parametrize("page", sorted(path.name for path in [*DOCS.glob("*.md")]))
def test_tables_of_flags_are_those_of_the_code(page: str) -> None:
    """Where this fails: python -m tests.flag_tables."""
    assert (DOCS / page).read_text(encoding="utf-8") == pages()[DOCS / page]


def test_every_flag_says_what_it_sets() -> None:
    for name in ["recipes", *commands(), *[f"scripts.{script}" for script in SCRIPTS]]:
        for flag in flags_of_command(name):
            assert flag.help, f"{name} {flag.option}"
            assert not flag.help.removesuffix("...").endswith("."), f"{name} {flag.option}"
