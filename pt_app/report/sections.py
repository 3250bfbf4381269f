"""Sections about confidence, biases, slices, systems and pass rates."""

from collections.abc import Iterator
from typing import Any

from pt_app.core.formatting import UNDEFINED, estimate, number
from pt_app.core.wording import NAMES, p_value
from pt_app.evidence import people
from pt_app.report import charts
from pt_app.report.page import Block, Grid, Safe, Section, Words

BRIER = "Brier score (sum over classes)"  # 0 to 2; scikit-learn's of two classes is half of it
CHECKS = {
    "generosity": "mean of verdict - label",
    "first_place": "first place, more often than the labels",
    "order": "first place in both orders, above a half",
    "overconfidence": "mean confidence - share right",
    "length": "error and length, given the label",
    "copied": "error and words copied from the source, given the label",
}


def evidence_sections(judge: dict[str, Any], safe: Safe) -> Iterator[Section]:
    """The sections that the judge's numbers allow."""
    if judge.get("calibration"):
        yield _confidence(judge)
    if judge.get("checks"):
        yield _checks(judge)
    for column, found in (judge.get("slices") or {}).items():
        yield _slices(column, found, safe)
    if judge.get("orders"):
        yield _orders(judge["orders"], safe)
    if (judge.get("within_source_pairs") or {}).get("pairs"):
        yield _pairs(judge["within_source_pairs"])
    if judge.get("systems"):
        yield _systems(judge["systems"], safe)
    if judge.get("operating"):
        yield _operating(judge)
    if judge.get("population"):
        yield _population(judge["population"])


def _confidence(judge: dict[str, Any]) -> Section:
    found, chosen = judge["calibration"], judge.get("selective")
    within = f"within {found['tolerance']:g} of the label" if found["tolerance"] else "the label"
    usual = found["ece_if_calibrated"] or {"mean": None, "high": None}
    by_chance = f"{number(usual['mean'])}, up to {number(usual['high'])}"
    rows = [
        _counted("share right", found["right"]),
        _counted("mean confidence - share right", found["overconfidence"]),
        _counted("calibration error (ECE)", found["ece"]),
        ["ECE of a calibrated judge", by_chance, str(found["ece"]["n"])],
        _counted(BRIER, found["brier"]),
    ]
    if mended := judge.get("mended"):
        after = f"after temperature {mended['temperature']:.2f}"
        rows.append(_counted(f"ECE {after}", mended["ece"]))
        rows.append(_counted(f"{BRIER} {after}", mended["brier"]))
    pictures, notes = charts.reliability(found), list[Block]()
    if chosen:
        threshold = chosen["threshold"]
        needed = UNDEFINED if threshold is None else f"{threshold:.3f}"
        rows += [
            _counted("area below risk and coverage (AURC)", chosen["aurc"]),
            _counted("the same if confidence said nothing", chosen["aurc_random"]),
            [f"confidence for {chosen['target']:.0%} right", needed, str(chosen["rows"])],
            _counted("rows kept there", chosen["kept"]),
            _counted("right among them", chosen["right"]),
        ]
        for one in chosen.get("at_coverage") or ():
            rows += _at_coverage(one, within=found["tolerance"] > 0)
        pictures += charts.risk_coverage(chosen)
        where = "validation rows" if "chosen_on" in chosen else "these rows"
        notes.append(Words(f"Threshold and guarantee are from {where}."))
    lead = f"A row is right where its verdict is {within}; confidence is the probability of that."
    bins = [
        [number(one["confidence"]), estimate(one["right"]), str(one["right"]["n"])]
        for one in found["reliability"]
    ]
    grid = Grid(["mean confidence", "share right", "n"], bins)
    return Section(
        "Confidence", [Words(lead), Grid(["", "value", "n"], rows), *notes, *pictures, grid]
    )


def _at_coverage(found: dict[str, Any], within: bool) -> Iterator[list[str]]:
    """The numbers of the surest rows; without a tolerance the share right is the accuracy."""
    names = {"right": "share right", **NAMES}
    for name, one in found.items():
        if name != "coverage" and (within or name != "right"):
            yield _counted(f"surest {found['coverage']:.0%} of the rows: {names[name]}", one)


def _counted(name: str, one: dict[str, Any]) -> list[str]:
    return [name, estimate(one), str(one["n"])]


def _checks(judge: dict[str, Any]) -> Section:
    rows = [
        [CHECKS[name], estimate(one), *_tested(one), str(one["n"])]
        for name, one in judge["checks"].items()
    ]
    lead = (
        "Each number is 0 for a judge without that bias. Corrected: for the number of lines "
        "(Holm); from 0.05 down it is called a bias."
    )
    grid = Grid(["", "value", "p", "corrected p", "", "n"], rows)
    scaled = {CHECKS[name]: one for name, one in _in_half_widths(judge["checks"])}
    picture = charts.means(scaled, "half-widths of its interval away from 0")
    return Section("What moves the judge beside the label", [Words(lead), grid, *picture])


def _in_half_widths(checks: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Numbers of different units on one axis: beyond 1 the interval leaves 0 out."""
    for name, one in checks.items():
        if one["low"] is not None and one["high"] > one["low"]:
            half = (one["high"] - one["low"]) / 2
            yield name, one | {key: one[key] / half for key in ("value", "low", "high")}


def _tested(one: dict[str, Any]) -> list[str]:
    ps = [
        UNDEFINED if one.get(name) is None else p_value(one, name).removeprefix("= ")
        for name in ("p", "p_holm")
    ]
    return [*ps, "bias" if one["alarm"] else ""]


def _slices(column: str, found: dict[str, Any], safe: Safe) -> Section:
    rows = []
    for name, one in found.items():
        test = one.get("difference")
        told = [estimate(test), *_tested(test)] if test else [UNDEFINED] * 3 + [""]
        rows.append([safe(name), estimate(one["distance"]), *told, str(one["distance"]["n"])])
    header = ["", "distance to the label", "less the other rows'", "p", "corrected p", "", "n"]
    pictures = charts.means({n: one["distance"] for n, one in found.items()}, header[1])
    return Section(f"By {safe(column)}", [Grid(header, rows), *pictures])


def _orders(found: dict[str, Any], safe: Safe) -> Section:
    counts = {(one["first"], one["swapped"]): one["n"] for one in found["flips"]}
    names = sorted({name for pair in counts for name in pair}, key=str)
    titles = ["parse failure" if name is None else safe(name) for name in names]
    rows = [
        [title, *(str(counts.get((first, second), "")) for second in names), ""]
        for title, first in zip(titles, names, strict=True)
    ]
    for row in rows:
        row[-1] = str(sum(int(cell or 0) for cell in row[1:-1]))
    places = [
        _counted(f"better candidate is {place}", one)
        for place, one in found["right_if_better_is"].items()
    ]
    lead = "Winner in the first order, down, and with the candidates the other way round, across."
    return Section(
        "Both orders",
        [
            Words(lead),
            Grid(["", *titles, "n"], rows, heat=True),
            Grid(["", "share right", "n"], places),
        ],
    )


def _pairs(found: dict[str, Any]) -> Section:
    rows = [
        _counted("pairs in the labels' order", found["accuracy"]),
        _counted("the same, equal scores alone as ties", found["accuracy_as_is"]),
    ]
    text = "Share of pairs of rows of one source that stand in the order of their labels, ties "
    text += "included, averaged over sources."
    if found["tie_threshold"]:
        text += f" Scores up to {found['tie_threshold']:.3g} apart count as equal in the first "
        text += "line: the best threshold on these rows."
    return Section("Rows of one source", [Words(text), Grid(["", "value", "n"], rows)])


def _systems(found: dict[str, Any], safe: Safe) -> Section:
    between = found["between_systems"]
    rows = [
        _counted("Pearson within a source (n: sources)", found["within_source"]),
        _counted("Pearson within a system (n: systems)", found["within_system"]),
    ]
    blocks: list[Block] = [Grid(["", "value", "n"], rows)]
    if between:
        told = f"Soft pairwise accuracy {number(between['soft_pairwise_accuracy'])} over "
        told += f"{between['pairs']} pairs of systems on {between['groups']} sources."
        lines = [
            [safe(one["system"]), number(one["label"]), number(one["verdict"])]
            for one in between["systems"]
        ]
        blocks += [Words(told), Grid(["system", "mean label", "mean verdict"], lines)]
    return Section("Systems", blocks)


def _operating(judge: dict[str, Any]) -> Section:
    found = judge["operating"]
    threshold = "never" if found["threshold"] is None else f"from {found['threshold']:.3f} on"
    where = "validation rows" if "chosen_on" in found else "these rows"
    text = (
        f"With {found['missed_fail_costs']:g} for a missed FAIL and "
        f"{found['false_alarm_costs']:g} for a false alarm it costs least to fail a row "
        f"{threshold} of probability of FAIL: {found['cost']:.3f} a row, against "
        f"{found['cost_of_likeliest']:.3f} by the likelier verdict (n = {found['n']}; chosen on "
        f"{where}). As a sign of FAIL that probability has an area below the ROC curve (AUC) of "
        f"{_area(judge.get('roc_auc'))} and below precision and recall of {_area(judge['pr_auc'])}."
    )
    return Section("Threshold", [Words(text)])


def _area(one: dict[str, Any] | None) -> str:
    return f"{estimate(one)} (n = {one['n']})" if one else UNDEFINED


def people_section(results: dict[str, Any], safe: Safe) -> Section | None:
    """How far the annotators agree among themselves, where rows have several."""
    found = results.get("people")
    if not found:
        return None
    lead = f"{found['raters']} annotators, {found['ratings']} labels of the {found['units']} rows "
    lead += "that have two or more; n counts rows (of correlations: annotators or labels)."
    rows = [[safe(name), *cells] for name, *cells in people.table(found)]
    return Section("Agreement among annotators", [Words(lead), Grid(list(people.ROW), rows)])


def _population(found: dict[str, Any]) -> Section:
    told = estimate(found) if found["value"] is not None else f"unknown ({found['reason']})"
    text = (
        f"Pass rate of the {found['n']} rows without a label: the judge passes "
        f"{number(found['raw'])}; corrected for its errors, as known from {found['labelled']} "
        f"labelled rows, {told}."
    )
    return Section("Pass rate", [Words(text)])


def attack_section(found: dict[str, Any] | None, safe: Safe) -> Section | None:
    """What attacks do, where `judge attack` was run."""
    if found is None:
        return None
    rows = [[safe(name), *cells] for name, cells in attack_rows(found)]
    unit = (
        "units of the scale"
        if found["step"] != 0.5 or found["scale"][0].isdigit()
        else "probability"
    )
    lead = (
        f"{found['data']['rows']} test rows, attacked. Shift: what the judge gives the attacked "
        f"candidate less what it gave the clean one ({unit}). Raised: share that rose by more than "
        f"{found['step']:g}. {_harm(found)}"
    )
    pictures = charts.means({n: one["shift"] for n, one in found["families"].items()}, "shift")
    blocks: list[Block] = [Words(lead), Grid(ATTACK_HEADER, rows), *pictures]
    if told := control_line(found):
        blocks.append(Words(told))
    return Section("Attacks", blocks)


def _harm(found: dict[str, Any]) -> str:
    """How well the judge does without attacks: what defends it must not cost that."""
    name = "kappa_quadratic" if "kappa_quadratic" in found["clean"] else "kappa"
    one = found["clean"][name]
    return f"On the clean rows {NAMES[name]} is {estimate(one)} (n = {one['n']})."


ATTACK_HEADER = ("family", "shift", "raised", "given after it", "parse failures", "n")


def attack_rows(found: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """A family's name and its numbers."""
    for name, one in found["families"].items():
        numbers = [estimate(one[key]) for key in ("shift", "raised", "verdict", "parse_failures")]
        yield name, [*numbers, str(one["attacks"])]


def control_line(found: dict[str, Any]) -> str:
    """What control tokens did beyond what the same characters do as text; "" if not tried."""
    control = found.get("control_tokens")
    if not control:
        return ""
    if not control["twins"]:
        return f"Control tokens were not compared with text: {control['reason']}."
    return (
        f"Control tokens in {control['attacks']} candidates: {control['control_ids']} prompts hold "
        f"a control id of the candidate's, {control['other_ids']} have other ids than the same "
        f"characters as text; probabilities differ from theirs by at most "
        f"{control['largest_difference']:.1g}."
    )
