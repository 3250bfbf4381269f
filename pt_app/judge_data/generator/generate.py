"""Writes a dataset folder of judged translations whose labels follow from known errors."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, sha256_file, write_text_atomic
from pt_app.core.flags import check
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale
from pt_app.core.words import normalised
from pt_app.judge_data.card import data_card, table
from pt_app.judge_data.checking import check_examples
from pt_app.judge_data.generator.corpus import CorpusMaterial, read_corpus
from pt_app.judge_data.generator.errors import ERRORS, KINDS, PARAPHRASE, Candidate, corrupt
from pt_app.judge_data.generator.grammar import Grammar, Pair, reserved_for_judges
from pt_app.judge_data.generator.hard_negatives import hard_negatives as attacked_copies
from pt_app.judge_data.generator.lexicon import Lexicon
from pt_app.judge_data.options import GenerateOptions, LexiconSize

# How many candidates of a hundred hold 0, 1, 2, 3 errors; a third of the first are paraphrases.
ERROR_COUNTS = (20, 40, 28, 12)
PARAPHRASES = 1 / 3
TRIES = 30
LICENCE = "Apache-2.0"
TITLE = "Judged translations, English to Portuguese"
ABOUT = (
    "Each row is an English source, a Portuguese reference and a candidate into which known errors "
    "were put; score, issues and feedback follow from them: the score is 10 less the penalties, at "
    "least 0. No person judged these rows."
)
NAMES = ("judge_train.json", "judge_val.json", "judge_test.json", "splits.json", "dataset.json")


@dataclass(frozen=True)
class Summary:
    """What was written. `written` is false where the folder already held the same bytes."""

    out: Path
    written: bool
    rows: dict[str, int]
    groups: dict[str, int]
    scores: dict[int, int]
    kinds: dict[str, int]
    dropped: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The summary for a terminal, a few lines of text."""
        state = "written" if self.written else "already there, unchanged"
        splits = ", ".join(
            f"{n} {name} ({self.groups[name]} sources)" for name, n in _all(self.rows)
        )
        lines = [f"{self.out}: {state}", f"rows: {splits}"]
        lines.append("scores: " + ", ".join(f"{k}: {n}" for k, n in _all(self.scores)))
        lines.append("errors: " + ", ".join(f"{k} {n}" for k, n in _all(self.kinds)))
        if self.dropped:
            lines.append("pairs left out: " + ", ".join(f"{k} {n}" for k, n in _all(self.dropped)))
        return lines


def _all(counts: Mapping[Any, int]) -> list[tuple[Any, int]]:
    return list(counts.items())


class GrammarMaterial:
    """Sources without end, from the grammar; errors that the lexicon knows."""

    def __init__(self, size: LexiconSize) -> None:
        self.lexicon = Lexicon.load(size)
        self.grammar = Grammar(self.lexicon)

    def draw(self, rng: random.Random) -> Iterator[Pair]:
        """Sentence pairs; the same one may come again."""
        while True:
            yield self.grammar.sample(rng)

    def corrupt(self, pair: Pair, kinds: Sequence[str], rng: random.Random) -> Candidate:
        """See `errors.corrupt`."""
        return corrupt(pair, kinds, self.lexicon, rng)


Material = GrammarMaterial | CorpusMaterial


def generate(out: Path, options: GenerateOptions) -> Summary:
    """Write a dataset folder (see docs/DATA.md), the same bytes for the same options.

    The training rows hold `options.variants` candidates per source; validation and test rows one,
    so that they are independent. No source is in two splits, and only sources that
    `reserved_for_judges` gives to judges are used. Attacked copies of the fraction
    `options.hard_negatives` of the training rows are added to them.

    Raises:
        UserError: for options out of range, for a corpus that is broken or too small, and for a
            folder that holds other files of these names; nothing is written then.
    """
    check(options)
    if options.max_words is not None and options.corpus is None:
        raise UserError("--max_words filters a corpus: name one with --corpus, or leave it out")
    dropped: dict[str, int] = {}
    material: Material
    if options.corpus is None:
        material = GrammarMaterial(options.lexicon)
    else:
        refuse_overwrite([Path(out) / name for name in (*NAMES, "README.md")], [options.corpus])
        pairs, dropped = read_corpus(options.corpus, options.max_words)
        material = CorpusMaterial(pairs)
    splits = _splits(material, options)
    splits["train"] += attacked_copies(
        splits["train"], options.hard_negatives, Scale.from_name("0-10"), options.seed
    )
    files = _files(splits, options, dropped)
    written = _write(Path(out), files)
    return _summary(Path(out), written, splits, dropped)


def _command(options: GenerateOptions) -> str:
    """Return the command that writes the same files, without folders."""
    names = ["rows", "val_rows", "test_rows", "seed", "variants"]
    parts = [f"--{name} {getattr(options, name)}" for name in names]
    if options.corpus is None:
        parts.append(f"--lexicon {options.lexicon}")
    else:
        parts.append(f"--corpus {options.corpus.name}")
    if options.max_words is not None:
        parts.append(f"--max_words {options.max_words}")
    if options.hard_negatives:
        parts.append(f"--hard_negatives {options.hard_negatives:g}")
    return " ".join(["judge data generate --out FOLDER", *parts])


def _splits(material: Material, options: GenerateOptions) -> dict[str, list[dict[str, Any]]]:
    """All rows by split. Test and validation are drawn first: more training rows leave them."""
    rng = random.Random(options.seed)
    wanted = {"test": options.test_rows, "val": options.val_rows, "train": options.rows}
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in ("train", "val", "test")}
    sources = _new_sources(material, rng)
    for split, count in wanted.items():
        variants = options.variants if split == "train" else 1
        index = 0
        while len(made[split]) < count:
            pair = next(sources, None)
            if pair is None:
                raise _too_small(made, options)
            candidates = _candidates(material, pair, variants, rng)
            room = count - len(made[split])
            made[split] += [
                _row(f"{split}-{index:05d}-{number}", pair, candidate)
                for number, candidate in enumerate(candidates[:room])
            ]
            index += bool(candidates)
    return made


def _new_sources(material: Material, rng: random.Random) -> Iterator[Any]:
    """Pairs of sources reserved for judges, each once; ends where a grammar repeats itself."""
    seen: set[str] = set()
    stale = 0
    for pair in material.draw(rng):
        key = normalised(pair.source)
        if key in seen or not reserved_for_judges(pair.source):
            stale += 1
            if stale > 100_000:
                return
            continue
        stale = 0
        seen.add(key)
        yield pair


def _too_small(made: Mapping[str, Sequence[Any]], options: GenerateOptions) -> UserError:
    rows = {name: len(found) for name, found in made.items()}
    what = options.corpus or f"the {options.lexicon} lexicon"
    return UserError(
        f"{what} gives no more than {rows['train']} training, {rows['val']} validation and "
        f"{rows['test']} test rows (half of its sources belong to a base's corpus): "
        "ask for fewer --rows, or for more --variants of each source"
    )


def _candidates(material: Any, pair: Any, count: int, rng: random.Random) -> list[Candidate]:
    """Up to `count` candidates of different texts; fewer where the sentence has no more."""
    found: dict[str, Candidate] = {}
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        candidate = _candidate(material, pair, rng)
        if candidate is not None:
            found.setdefault(candidate.text, candidate)
    return list(found.values())


def _candidate(material: Any, pair: Any, rng: random.Random) -> Candidate | None:
    """One draw; None where the errors drawn do not fit this sentence."""
    count = rng.choices(range(len(ERROR_COUNTS)), ERROR_COUNTS)[0]
    if count == 0 and rng.random() < PARAPHRASES:
        candidate: Candidate = material.corrupt(pair, [PARAPHRASE], rng)
        return candidate if candidate.paraphrased else None
    chosen = rng.sample(ERRORS, count)
    candidate = material.corrupt(pair, chosen, rng)
    if len(candidate.issues) < len(chosen) or (chosen and candidate.text == pair.reference):
        return None
    return candidate


def _row(name: str, pair: Any, candidate: Candidate) -> dict[str, Any]:
    return {
        "id": name,
        "group": sha256(pair.source.casefold().encode()).hexdigest()[:12],
        "task": "score",
        "source": pair.source,
        "reference": pair.reference,
        "candidate": candidate.text,
        "label": {
            "verdict": candidate.score,
            "issues": [issue.text for issue in candidate.issues],
            "feedback": candidate.feedback,
        },
        "errors": [PARAPHRASE]
        if candidate.paraphrased
        else [issue.kind for issue in candidate.issues],
    }


def _files(
    splits: Mapping[str, list[dict[str, Any]]], options: GenerateOptions, dropped: Mapping[str, int]
) -> dict[str, str]:
    """The text of every file of the folder, in the order they are written."""
    files = {
        f"judge_{split}.json": "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        for split, rows in splits.items()
        if rows
    }
    groups = {row["group"]: split for split, rows in splits.items() for row in rows}
    files["splits.json"] = json.dumps(groups, indent=0) + "\n"
    hashes = {name: sha256(text.encode()).hexdigest() for name, text in files.items()}
    origin = f"generated by pt_app: {_command(options)}"
    licence = LICENCE
    if options.corpus is not None:
        origin += f" (corpus sha256 {sha256_file(options.corpus)})"
        licence = "that of the corpus"
    scale = Scale.from_name("0-10")
    examples = {
        split: [JudgeExample.model_validate(row) for row in rows]
        for split, rows in splits.items()
        if rows
    }
    card = {
        "task": scale.task,
        "scale": scale.name,
        "template": "translation",
        "origin": origin,
        "licence": licence,
        "checks": check_examples(examples, scale).summary(),
        "sha256": hashes,
    }
    files["README.md"] = data_card(card, examples, scale, _about_errors(splits, dropped), TITLE)
    files["dataset.json"] = json.dumps(card, ensure_ascii=False, indent=2) + "\n"
    return files


def _about_errors(
    splits: Mapping[str, list[dict[str, Any]]], dropped: Mapping[str, int]
) -> list[str]:
    """Say in the README what was put into the candidates, and what of a corpus was left out."""
    found = Counter(kind for rows in splits.values() for row in rows for kind in row["errors"])
    kinds = [[k.name, k.penalty, found[k.name]] for k in KINDS.values() if found[k.name]]
    parts = [ABOUT, table(["kind", "penalty", "rows with it"], kinds)]
    if dropped:
        parts.append(table(["pairs of the corpus left out", "n"], list(dropped.items())))
    return parts


def _write(out: Path, files: Mapping[str, str]) -> bool:
    """Write what is missing; raises UserError, before writing, if a file holds other bytes."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose a folder with --out")
    missing = [name for name in files if not (out / name).exists()]
    for name in (*NAMES, "README.md"):
        path, text = out / name, files.get(name)
        if path.exists() and (text is None or path.is_dir() or path.read_bytes() != text.encode()):
            raise UserError(
                f"{path} is there and comes from another command: "
                "choose another folder with --out, or delete it"
            )
    for name in missing:
        write_text_atomic(out / name, files[name])
    return bool(missing)


def _summary(
    out: Path,
    written: bool,
    splits: Mapping[str, list[dict[str, Any]]],
    dropped: dict[str, int],
) -> Summary:
    rows = [row for part in splits.values() for row in part]
    scores = Counter(row["label"]["verdict"] for row in rows)
    kinds = Counter(kind for row in rows for kind in row["errors"])
    return Summary(
        out,
        written,
        {split: len(part) for split, part in splits.items()},
        {split: len({row["group"] for row in part}) for split, part in splits.items()},
        {score: scores[score] for score in range(11)},
        {kind: kinds[kind] for kind in KINDS if kinds[kind]},
        dropped,
    )
