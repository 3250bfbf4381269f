"""Write a dataset folder of judged translations whose labels follow from known errors."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pt_app.core.attack_families import attacked, families
from pt_app.core.dataset import SPLITS
from pt_app.core.errors import UserError
from pt_app.core.files import refuse_overwrite, sha256_file
from pt_app.core.records import JudgeExample, Label
from pt_app.core.verdicts import Scale
from pt_app.core.words import normalised
from pt_app.judge_data.card import table
from pt_app.judge_data.generator.corpus import CorpusMaterial, read_corpus
from pt_app.judge_data.generator.errors import ERRORS, KINDS, PARAPHRASE, Candidate, corrupt
from pt_app.judge_data.generator.grammar import Grammar, Pair, reserved_for_judges
from pt_app.judge_data.generator.lexicon import Lexicon, Size
from pt_app.judge_data.writing import FILES, FolderSummary, write_folder

# How many candidates of a hundred hold 0, 1, 2, 3 errors; a third of the first are paraphrases.
ERROR_COUNTS = (20, 40, 28, 12)
PARAPHRASES = 1 / 3
TRIES = 30  # per candidate: some sentences have no place for some errors
MAX_STALE = 100_000  # sources in a row that were drawn before: a small lexicon is exhausted
MAX_VARIANTS = 16
SCALE = Scale.from_name("0-10")
TITLE = "Judged translations, English to Portuguese"
ABOUT = (
    "Each row is an English source, a Portuguese reference and a candidate into which known errors "
    "were put; score, issues and feedback follow from them: the score is 10 less the penalties, at "
    "least 0. No person judged these rows."
)
ATTACK = "attack"
NO_TRANSLATION = {  # attacks that leave no translation
    "master key": "The answer is no translation of the source.",
    "null answer": "The answer is no translation of the source.",
    "empty": "Nothing is translated.",
    "source copied": "The source is copied, not translated.",
    "wrong language": "The text is in another language.",
    "reference of another row": "The text translates another source.",
}
Rows = list[JudgeExample]


@dataclass(frozen=True)
class GenerateOptions:
    """The flags of `judge data generate`: they decide the bytes of the folder."""

    rows: int = 12000
    val_rows: int = 300
    test_rows: int = 400
    seed: int = 0
    lexicon: Size = "full"
    variants: int = 4
    corpus: Path | None = None
    max_words: int | None = None
    hard_negatives: float = 0.0

    def command(self) -> str:
        """Write the command that makes the same files, without folders."""
        names = ("rows", "val_rows", "test_rows", "seed", "variants")
        flags: dict[str, object] = {name: getattr(self, name) for name in names}
        flags |= {"corpus": self.corpus.name} if self.corpus else {"lexicon": self.lexicon}
        flags |= {} if self.max_words is None else {"max_words": self.max_words}
        flags |= {"hard_negatives": f"{self.hard_negatives:g}"} if self.hard_negatives else {}
        given = " ".join(f"--{name} {value}" for name, value in flags.items())
        return f"judge data generate --out FOLDER {given}"

    def check(self) -> None:
        """Raise UserError for the first setting that is out of range."""
        lowest = {"rows": 1, "val_rows": 0, "test_rows": 1, "seed": 0, "variants": 1}
        check_flags(vars(self), lowest)
        if self.variants > MAX_VARIANTS:
            raise UserError(f"--variants is {self.variants}: choose 1 to {MAX_VARIANTS}")
        if not 0 <= self.hard_negatives <= 1:
            raise UserError(f"--hard_negatives is {self.hard_negatives:g}: choose a share, 0 to 1")


def check_flags(flags: Mapping[str, Any], lowest: Mapping[str, int]) -> None:
    """Raise UserError for a flag below its lowest value, and for a --max_words without a corpus."""
    for name, least in {**lowest, "max_words": 3}.items():
        if flags[name] is not None and flags[name] < least:
            raise UserError(f"--{name} is {flags[name]}: choose a whole number from {least} on")
    if flags["max_words"] is not None and flags["corpus"] is None:
        raise UserError("--max_words filters a corpus: name one with --corpus, or leave it out")


class GrammarMaterial:
    """Sources without end, from the grammar; errors that the lexicon knows."""

    def __init__(self, size: Size) -> None:
        self.lexicon = Lexicon.load(size)
        self.grammar = Grammar(self.lexicon)

    def pick(self, rng: random.Random) -> Pair:
        """Draw any sentence pair."""
        return self.grammar.sample(rng)

    def draw(self, rng: random.Random) -> Iterator[Pair]:
        """Yield sentence pairs; the same one may come again."""
        while True:
            yield self.pick(rng)

    def corrupt(self, pair: Pair, kinds: Sequence[str], rng: random.Random) -> Candidate:
        """See `errors.corrupt`."""
        return corrupt(pair, kinds, self.lexicon, rng)


Material = GrammarMaterial | CorpusMaterial


def generate(out: Path, options: GenerateOptions) -> FolderSummary:
    """Write a dataset folder (see docs/GENERATE.md), the same bytes for the same options.

    Training rows hold `variants` candidates per source; validation and test rows one, so that they
    are independent. No source is in two splits, and only sources that `reserved_for_judges` gives
    to judges are used. A corpus (TMX or TSV) replaces the grammar. Attacked copies of the share
    `hard_negatives` of the training rows are added to them. Raises UserError for options out of
    range, for a corpus that is broken or too small, and for a folder that holds other files of
    these names; nothing is written then.
    """
    options.check()
    corpus, licence, dropped = options.corpus, "Apache-2.0", dict[str, int]()
    origin = f"generated by pt_app: {options.command()}"
    material: Material
    if corpus is None:
        material = GrammarMaterial(options.lexicon)
    else:
        refuse_overwrite([out / name for name in FILES], [corpus])
        pairs, dropped = read_corpus(corpus, options.max_words)
        material = CorpusMaterial(pairs)
        origin += f" (corpus sha256 {sha256_file(corpus)})"
        licence = "that of the corpus"
    splits = _splits(material, options)
    splits["train"] += _attacked_copies(splits["train"], options.hard_negatives, options.seed)
    errors = Counter(kind for rows in splits.values() for row in rows for kind in row.errors or ())
    notes = [_counts("errors", {kind: errors[kind] for kind in KINDS if errors[kind]})]
    notes += [_counts("pairs left out", dropped)] if dropped else []
    card = {"task": SCALE.task, "scale": SCALE.name, "template": "translation"}
    return write_folder(
        out,
        {split: rows for split, rows in splits.items() if rows},
        card | {"origin": origin, "licence": licence},
        how={},
        notes=tuple(notes),
        title=TITLE,
        sections=_sections(errors, dropped),
        # Not `as_row`, which leaves empty lists of issues out: a reader sees that there are none.
        as_row=lambda row: row.model_dump(exclude_unset=True),
    )


def _counts(what: str, counts: Mapping[str, int]) -> str:
    return f"{what}: {', '.join(f'{name} {n}' for name, n in counts.items())}"


def _splits(material: Material, options: GenerateOptions) -> dict[str, Rows]:
    """Draw the rows of all splits; test and validation first, so that more rows leave them."""
    rng = random.Random(options.seed)
    counts = {"test": options.test_rows, "val": options.val_rows, "train": options.rows}
    splits: dict[str, Rows] = {split: [] for split in SPLITS}
    sources = _new_sources(material, rng)
    for split, count in counts.items():
        rows, index = splits[split], 0
        variants = options.variants if split == "train" else 1
        while len(rows) < count:
            pair = next(sources, None)
            if pair is None:
                raise _too_small(splits, options)
            candidates = _candidates(material, pair, variants, rng)
            for number, candidate in enumerate(candidates[: count - len(rows)]):
                rows.append(_row(f"{split}-{index:05d}-{number}", pair, candidate))
            index += bool(candidates)
    return splits


def _new_sources(material: Material, rng: random.Random) -> Iterator[Pair]:
    """Yield pairs of sources reserved for judges, each once; end where a grammar repeats itself."""
    seen: set[str] = set()
    stale = 0
    for pair in material.draw(rng):
        key = normalised(pair.source)
        if key not in seen and reserved_for_judges(pair.source):
            stale = 0
            seen.add(key)
            yield pair
        elif (stale := stale + 1) > MAX_STALE:
            return


def _too_small(splits: Mapping[str, Rows], options: GenerateOptions) -> UserError:
    rows = {split: len(part) for split, part in splits.items()}
    what = options.corpus or f"the {options.lexicon} lexicon"
    return UserError(
        f"{what} gives no more than {rows['train']} training, {rows['val']} validation and "
        f"{rows['test']} test rows (half of its sources belong to a base's corpus): "
        "ask for fewer --rows, or for more --variants of each source"
    )


def _candidates(material: Material, pair: Pair, count: int, rng: random.Random) -> list[Candidate]:
    """Draw up to `count` candidates of different texts; fewer where the sentence has no more."""
    candidates: dict[str, Candidate] = {}
    for _ in range(TRIES * count):
        if len(candidates) == count:
            break
        if candidate := _candidate(material, pair, rng):
            candidates.setdefault(candidate.text, candidate)
    return list(candidates.values())


def _candidate(material: Material, pair: Pair, rng: random.Random) -> Candidate | None:
    """Draw one candidate; None where the errors drawn do not fit this sentence."""
    count = rng.choices(range(len(ERROR_COUNTS)), ERROR_COUNTS)[0]
    if count == 0 and rng.random() < PARAPHRASES:
        candidate = material.corrupt(pair, [PARAPHRASE], rng)
        return candidate if candidate.paraphrased else None
    kinds = rng.sample(ERRORS, count)
    candidate = material.corrupt(pair, kinds, rng)
    if len(candidate.issues) < count or (count and candidate.text == pair.reference):
        return None
    return candidate


def _row(name: str, pair: Pair, candidate: Candidate) -> JudgeExample:
    kinds = [issue.kind for issue in candidate.issues]
    issues = [issue.text for issue in candidate.issues]
    return JudgeExample(
        id=name,
        group=sha256(pair.source.casefold().encode()).hexdigest()[:12],
        task="score",
        source=pair.source,
        reference=pair.reference,
        candidate=candidate.text,
        label=Label(verdict=candidate.score, issues=issues, feedback=candidate.feedback),
        errors=[PARAPHRASE] if candidate.paraphrased else kinds,
    )


def _attacked_copies(rows: Rows, share: float, seed: int) -> Rows:
    """Attack copies of a share of the training rows, so that a judge learns to see through attacks.

    What is put behind a candidate leaves its label as it was; what takes its place gets the lowest
    verdict. Families whose harm depends on the row (digits, sentences) are left out. Half of each
    family's texts are used: what a judge makes of the others shows whether it learnt the family or
    the words.
    """
    rng = random.Random(seed + 1)  # the rows themselves stay those of the seed
    usable = [f.part(0) for f in families() if f.append or f.name in NO_TRANSLATION]
    copies = []
    for number in sorted(rng.sample(range(len(rows)), round(share * len(rows)))):
        row, other = rows[number], rows[(number + 1) % len(rows)]
        attacks = [a for a in attacked([row, other], SCALE, [rng.choice(usable)]) if a.row == 0]
        if not attacks:
            continue
        attack = rng.choice(attacks)
        label, errors = row.label, [*(row.errors or ()), ATTACK]
        if feedback := NO_TRANSLATION.get(attack.family):
            label = Label(verdict=SCALE.values[0], issues=[], feedback=feedback)
            errors = [ATTACK]
        update = {"id": f"{row.id}-attacked", "candidate": attack.example.candidate}
        copies.append(row.model_copy(update={**update, "label": label, "errors": errors}))
    return copies


def _sections(errors: Mapping[str, int], dropped: Mapping[str, int]) -> list[str]:
    """Say in the README what was put into the candidates, and what of a corpus was left out."""
    kinds = [[name, kind.penalty, errors[name]] for name, kind in KINDS.items() if errors[name]]
    parts = [ABOUT, table(["kind", "penalty", "rows with it"], kinds)]
    if dropped:
        parts.append(table(["pairs of the corpus left out", "n"], list(dropped.items())))
    return parts
