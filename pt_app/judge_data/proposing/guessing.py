"""Guesses what the columns of an unknown file are: which text, which label, which rater.

Names decide first, since people name the same things alike; then the content of the columns.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from pt_app.judge_data.mapping import LISTS, TARGETS
from pt_app.judge_data.proposing.columns import Column

Columns = Mapping[str, Column]
Names = tuple[str, ...]


def _names(text: str) -> Names:
    return tuple(text.split())


# What people name the columns of each field, the most likely name first.
NAMES: dict[str, Names] = {
    "label": _names(
        "orig_score label score rating overall_score grade verdict winner preference preferred "
        "choice choices judgement judgment quality human_score overall helpfulness correct "
        "is_correct acceptable pass passed nota avaliacao da mean value class annotation"
    ),
    "rubric": _names("orig_criteria rubric criteria guideline guidelines"),
    "feedback": _names(
        "orig_feedback feedback comment comments explanation rationale reason notes critique "
        "justification comentario"
    ),
    "issues": _names("issues errors error_types error_type"),
    "conversation": _names("conversation messages history dialogue dialog chat_history"),
    "candidate": _names(
        "orig_response candidate translation mt hypothesis hyp target tgt trg response answer "
        "output completion generation prediction summary model_output reply traducao portuguese pt"
    ),
    "source": _names(
        "orig_instruction source src source_text original src_sent instruction prompt question "
        "query input request fonte english en text"
    ),
    "reference": _names(
        "orig_reference_answer reference ref reference_answer gold gold_answer ground_truth "
        "expected ideal human_translation post_edit pe"
    ),
    "context": _names("context contexts passage passages retrieved evidence documents"),
    "rater": _names("rater annotator annotator_id rater_id worker worker_id reviewer"),
    "id": _names("id idx index uid row_id example_id item_id segment_id seg_id"),
    "group": _names("group group_id source_id prompt_id question_id instruction_id"),
    "system": _names("system model model_name engine mt_system"),
    "document": _names("document doc doc_id document_id"),
    "time": _names("time timestamp created_at date created submitted_at"),
}
PAIRS = (("a", "b"), ("1", "2"), ("0", "1"), ("first", "second"), ("left", "right"))
PAIRED = {*NAMES["candidate"], *NAMES["conversation"], "system_output", "assistant", "option"}
TRANSLATED = set(_names("translation mt hypothesis hyp target tgt trg traducao pt"))
# What the columns of several raters are named before their numbers.
RATERS = set(_names("annotator rater r judge worker vote label rating score grade"))
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")
# Parts of a path that name nothing: positions in lists, and the wrappers of annotation tools.
_STEP = re.compile(r"\d+|\*|responses|values?")


def words_of(name: str) -> Names:
    """Split the name of a column, or the last name of a path: srcText and src_text are alike."""
    parts = name.split(".")
    named = [part for part in parts if not _STEP.fullmatch(part)] or parts
    return tuple(word.casefold() for word in _WORDS.findall(named[-1]))


def guess_map(columns: Columns) -> dict[str, Names]:
    """Return the columns of each field of --map that can be told; a column serves one field."""
    usable = {n: c for n, c in columns.items() if c.kind != "empty" and _typable(n)}
    # A row may have a label from each of a list of raters, but only one text of each kind.
    free = {name: column for name, column in usable.items() if "*" not in name}
    guessed: dict[str, Names] = {}

    def take(target: str, names: Iterable[str], read: Sequence[str] = ()) -> None:
        """Give `target` these columns, or the paths `read` into them."""
        taken = tuple(names)
        if taken and target not in guessed:
            guessed[target] = tuple(read) or taken
            for name in taken:
                free.pop(name, None)

    pair = _pair(free)
    turns = bool(pair) and free[pair[0]].kind == "turns"
    if turns:
        take("source", [""], [f"{pair[0]}.0.content"])
    for target, name in zip(("candidate_a", "candidate_b"), pair, strict=False):
        take(target, [name], [f"{name}.1.content"] if turns else ())
    if not pair and not _named("candidate", free) and (listed := _listed_pair(free)):
        take("candidate_a", [listed], [f"{listed}.0"])
        take("candidate_b", [""], [f"{listed}.1"])
        pair = (listed,)
    take("label", _label({n: column for n, column in usable.items() if n in free or "*" in n}))
    for target in ("rubric", "feedback", "issues", "conversation"):
        take(target, _named(target, free))
    if not pair:
        take("candidate", _named("candidate", free))
    instruction = [name for name in ("instruction", "input") if name in free]
    take("source", instruction if len(instruction) == 2 else _named("source", free))
    for target in ("reference", "context"):
        take(target, _named(target, free))
    if "conversation" not in guessed:
        take("source", _first_text(free))
    if not pair:
        take("candidate", _first_text(free))
    _take_ids(free, take)
    for target in ("system", "document", "time"):
        take(target, _exactly(target, free))
    return {target: guessed[target] for target in TARGETS if target in guessed}


def _typable(name: str) -> bool:
    """Return whether a path can be typed into --map: it has no blank and no invisible parts."""
    return name.isprintable() and all(part.strip() == part != "" for part in name.split("."))


def _take_ids(free: Columns, take: Callable[[str, Iterable[str]], None]) -> None:
    """Take id, group and rater by their values: an id names one row, or one for each rater."""
    name, rater = _exactly("id", free), _exactly("rater", free)
    if name and free[name[0]].distinct == free[name[0]].rows:
        take("id", name)
    elif name and rater:
        take("id", name)
        take("rater", rater)
    groups = _exactly("group", free) or _exactly("id", free)
    take("group", [group for group in groups if free[group].distinct < free[group].rows])


def _pair(columns: Columns) -> Names:
    """Return two columns of candidates, those with the most words: response_a and response_b."""
    texts = {words_of(n): n for n, c in columns.items() if c.kind in ("text", "choice", "turns")}
    pairs = [
        (name, texts[other])
        for words, name in texts.items()
        for first, second in PAIRS
        if first in words and PAIRED & {*words, "_".join(words[:-1])}
        for other in [tuple(second if word == first else word for word in words)]
        if other in texts
    ]
    return max(pairs, key=lambda pair: columns[pair[0]].mean_words, default=())


def _listed_pair(columns: Columns) -> str:
    """Return a column whose cells are lists of both candidates, as `outputs` may be; "": none."""
    for name, c in columns.items():
        two = c.kind in ("text", "choice") and c.most == 2 and c.filled == 2 * c.rows
        if two and _singular(name) & PAIRED:
            return name
    return ""


def _label(columns: Columns) -> Names:
    """Return the labels: a column per rater, a list of them, one by name, else by its values."""
    fit = {
        n: c
        for n, c in columns.items()
        if c.kind == "number" or (c.kind in ("choice", "text") and c.few)
    }
    series: dict[Names, list[str]] = {}
    for name in fit:
        words = words_of(name)
        if words and words[-1].isdigit() and RATERS & set(words):
            series.setdefault(words[:-1], []).append(name)
    raters = max(series.values(), key=len, default=[])
    if len(raters) > 1:
        return tuple(raters)
    lists = [n for n, c in fit.items() if c.most > 1 and _singular(n) & set(NAMES["label"])]
    if lists:
        return tuple(lists[:1])
    roles = ("id", "group", "rater", "system", "document")
    others = {name for role in roles for name in _exactly(role, fit)}
    by_values = [
        n for n, c in fit.items() if n not in others and 1 < c.distinct < min(102, c.filled)
    ]
    return _exactly("label", fit) or _loosely("label", fit) or tuple(by_values[-1:])


def _named(target: str, columns: Columns) -> Names:
    kinds = ("turns",) if target == "conversation" else ("text", "choice")
    many = target in LISTS
    fit = {n: c for n, c in columns.items() if c.kind in kinds and (many or c.most <= 1)}
    return _exactly(target, fit) or _loosely(target, fit)


def _exactly(target: str, columns: Columns) -> Names:
    """Return the column with the most likely of the target's names, if there is one."""
    by_name = {"_".join(words_of(name)): name for name in reversed(list(columns))}
    return tuple(by_name[name] for name in NAMES[target] if name in by_name)[:1]


def _loosely(target: str, columns: Columns) -> Names:
    """Return the column whose name contains one of the target's: orig_response, scoreMean."""
    return tuple(name for word in NAMES[target] for name in columns if word in words_of(name))[:1]


def _singular(name: str) -> set[str]:
    """Return the words of a name, also without the `s` of a plural."""
    return {form for word in words_of(name) for form in (word, word.removesuffix("s"))}


def _first_text(columns: Columns) -> Names:
    return tuple(n for n, c in columns.items() if c.kind == "text" and c.most < 2)[:1]
