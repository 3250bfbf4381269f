"""The flags of `judge base train`, and of the scripts that talk with a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pt_app.core.flags import Parser, filled, flag, flags_of, resolved
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


@dataclass(frozen=True)
class Sampling:
    """How the next token of an answer is drawn, and when the answer ends."""

    temperature: float = flag("0: always the most probable token", 0.7, low=0, high=10)
    top_k: int = flag("draw from that many of the most probable tokens; 0: from all", 50, low=0)
    top_p: float = flag(
        "draw from the most probable tokens that together have this probability",
        1.0,
        above=0,
        high=1,
    )
    max_tokens: int | None = flag(
        "end an answer after that many; default: where the context ends", None, low=1, unit="tokens"
    )
    seed: int | None = flag("seed of the draws; default: another one each time", None)


Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """The flags of scripts/chat_cli.py and, but for the prompt, of scripts/chat_web.py."""

    model: str = flag(
        "folder, GGUF file or base of `judge base list`; default: the last stage of the newest run",
        "",
    )
    device: Device = flag("where to compute", "auto")
    sampling: Sampling = Sampling()


@dataclass(frozen=True, kw_only=True)
class TalkOptions(ChatOptions):
    """The flags of scripts/chat_cli.py."""

    p: str = flag("answer this prompt, and end", "", unit="text")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ChatOptions):
    """The flags of scripts/chat_web.py; a request may overrule those of sampling."""

    host: str = flag("address to listen at; 0.0.0.0: other machines may ask", "127.0.0.1")
    port: int = flag("port to listen at; 0: any that is free", 8000, low=0, high=65535)


Table = TypeVar("Table")


def parsed(table: type[Table], about: str | None, words: Sequence[str] | None = None) -> Table:
    """Parse a command line into a table; raises UserError for a wrong flag."""
    parser = Parser(description=about)
    parser.add_flags(flags_of(table))
    given = vars(parser.parse_args(words))
    return filled(table, resolved(flags_of(table), ("command line", given)))
