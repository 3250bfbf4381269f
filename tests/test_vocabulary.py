"""The field's own words in every page and message, where a script can tell."""

import re

import pytest

from tests.conftest import ROOT

FOLDERS = ("pt_app", "scripts", "benchmarks", "docs", "judge_agreement")
HISTORY = {"LOG.md", "RESULTS.md"}  # what was written when it was measured stays
# What must not occur -> what to write.
WORDS = {
    r"share right": "accuracy",
    r"(?<![-\w.])anew(?![\w=:,)`.])": "again, or recomputed",
    r"go(es)? on (from|with)": "resume, or continue",
    r"going on (from|with)": "resume, or continue",
    r"which goes on\b": "which resumes, or continues",
    r"(bytes?|tokens?|rows?|verdicts?|examples?) a (second|row|token|parameter|verdict)\b": "per",
    r"the first place": "the first position",
    r"written aside": "staged, then renamed",
    r"keys and values at hand": "KV cache",
    r"\bmend(s|ing)?\b|(?<![`.\w])mended(?![`:\w])": "fix",
    r"\bMOST_[A-Z]+": "MAX_...",
    r"simple rules": "baselines",
    r"too generous": "too lenient",
}


def pages() -> list[str]:
    """Every text that a user or a contributor reads, by its path."""
    paths = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")]
    for folder in FOLDERS:
        for ending in ("*.py", "*.md", "*.jinja", "*.sh", "*.yaml", "*.slurm"):
            paths += (ROOT / folder).rglob(ending)
    return sorted(str(path.relative_to(ROOT)) for path in paths if path.name not in HISTORY)


@pytest.mark.parametrize("word", WORDS)
def test_no_page_or_message_uses_the_old_word(word: str) -> None:
    uses = [
        f"{page}:{number}: {line.strip()[:90]}"
        for page in pages()
        for number, line in enumerate((ROOT / page).read_text("utf-8").splitlines(), 1)
        if re.search(word, line)
    ]
    assert not uses, f"write {WORDS[word]}:\n" + "\n".join(uses)
