"""The flags of `judge base train`."""

from dataclasses import dataclass
from pathlib import Path

from pt_app.core.flags import flag
from pt_app.judge_data.options import LexiconSize


@dataclass(frozen=True)
class BaseOptions:
    """What decides a base: on one kind of machine, to the byte.

    Vocabulary, width and layers are no flags: the shipped base and those of the tests differ.
    """

    seed: int = flag("seed of corpus, weights and order", 0, low=0)
    quick: bool = flag("train a weak base within 6 minutes", False)
    steps: int | None = flag("number of optimizer steps; default: a full training", None, low=1)
    lexicon: LexiconSize = flag("lexicon of the grammar", "full")
    corpus: Path | None = flag("parallel corpus (TMX, TSV) instead of the grammar", None)
    max_words: int | None = flag(
        "maximum length of a sentence of the corpus; longer ones are skipped",
        None,
        low=3,
        unit="words",
    )
    vocab_size: int = 2048
    width: int = 128
    layers: int = 5

    @property
    def total_steps(self) -> int:
        """The optimizer steps: by default a full training's, or with `quick` a seventh of it."""
        return self.steps or (2000 if self.quick else 14_000)

    def command(self) -> str:
        """Write the command that builds this base."""
        corpus = f"--corpus {self.corpus.name}" if self.corpus else f"--lexicon {self.lexicon}"
        max_words = f" --max_words {self.max_words}" if self.max_words is not None else ""
        return (
            f"judge base train --output FOLDER --seed {self.seed} --steps {self.total_steps} "
            f"{corpus}{max_words}"
        )
