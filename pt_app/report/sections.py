"""Sections about confidence, biases, slices, systems, pass rates, annotators and attacks."""

from collections.abc import Iterator
from typing import Any

from pt_app.core.formatting import NAMES, UNDEFINED, estimate, number, p_value, with_n
from pt_app.evidence import people
from pt_app.report import charts
from pt_app.report.page import Block, Grid, Safe, Section, Words

BRIER = "Brier score (sum over classes)"  # 0 to 2; of two classes twice that of scikit-learn
CHECKS = {
    "generosity": "mean of verdict - label",
    "first_place": "first position, more often than the labels",
    "order": "first position in both orders, above a half",
    "overconfidence": "mean confidence - accuracy",
    "length": "error and length, given the label",
    "copied": "error and words copied from the source, given the label",
}
VALUES = ["", "value", "n"]  # the header of most tables


def evidence_sections(judge: dict[str, Any], safe: Safe) -> Iterator[Section]:
    """Yield the sections that the judge's numbers allow."""
    if judge.get("calibration"):
        yield _confidence(judge)
    if judge.get("checks"):
        yield _checks(judge["checks"])
    for column, slices in (judge.get("slices") or {}).items():
        yield _slices(column, slices, safe)
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
    calibration, chosen = judge["calibration"], judge.get("selective")
    tolerance = calibration["tolerance"]
    within = f"within {tolerance:g} of the label" if tolerance else "the label"
    usual = calibration["ece_if_calibrated"] or {"mean": None, "high": None}
    rows = [
        _counted("accuracy", calibration["right"]),
        _counted(CHECKS["overconfidence"], calibration["overconfidence"]),
        _counted("expected calibration error (ECE)", calibration["ece"]),
        [
            "ECE of a calibrated judge",
            f"{number(usual['mean'])}, up to {number(usual['high'])}",
            str(calibration["ece"]["n"]),
        ],
        _counted(BRIER, calibration["brier"]),
    ]
    if mended := judge.get("mended"):
        after = f"after temperature {mended['temperature']:.2f}"
        rows.append(_counted(f"ECE {after}", mended["ece"]))
        rows.append(_counted(f"{BRIER} {after}", mended["brier"]))
    pictures, notes = charts.reliability(calibration), list[Block]()
    if chosen:
        rows += _selective(chosen, within=tolerance > 0)
        pictures += charts.risk_coverage(chosen)
        where = "validation rows" if "chosen_on" in chosen else "these rows"
        notes.append(Words(f"Threshold and guarantee are from {where}."))
    lead = f"A verdict is right if it is {within}; confidence is the probability of that."
    bins = [
        [number(one["confidence"]), estimate(one["right"]), str(one["right"]["n"])]
        for one in calibration["reliability"]
    ]
    grid = Grid(["mean confidence", "accuracy", "n"], bins)
    return Section("Confidence", [Words(lead), Grid(VALUES, rows), *notes, *pictures, grid])


def _selective(chosen: dict[str, Any], within: bool) -> Iterator[list[str]]:
    threshold = UNDEFINED
    if chosen["threshold"] is not None:
        threshold = f"{chosen['threshold']:.3f} (guarantees {number(chosen['bound'])})"
    yield _counted("area below risk and coverage (AURC)", chosen["aurc"])
    yield _counted("the same if confidence said nothing", chosen["aurc_random"])
    yield [f"confidence for {chosen['target']:.0%} accuracy", threshold, str(chosen["rows"])]
    yield _counted("rows kept there", chosen["kept"])
    yield _counted("accuracy among them", chosen["right"])
    for part in chosen.get("at_coverage") or ():
        yield from _at_coverage(part, within)


def _at_coverage(part: dict[str, Any], within: bool) -> Iterator[list[str]]:
    """Yield the numbers of the surest rows; without a tolerance "right" is the accuracy."""
    names = NAMES | {"right": "accuracy within the tolerance"}
    for name, metric in part.items():
        if name != "coverage" and (within or name != "right"):
            yield _counted(f"surest {part['coverage']:.0%} of the rows: {names[name]}", metric)


def _counted(name: str, metric: dict[str, Any]) -> list[str]:
    return [name, estimate(metric), str(metric["n"])]


def _checks(checks: dict[str, Any]) -> Section:
    rows = [
        [CHECKS[name], estimate(check), *_tested(check), str(check["n"])]
        for name, check in checks.items()
    ]
    lead = (
        "Each number is 0 for a judge without that bias. Corrected: for the number of lines "
        "(Holm); at 0.05 or less it is called a bias."
    )
    grid = Grid(["", "value", "p", "corrected p", "", "n"], rows)
    scaled = {CHECKS[name]: metric for name, metric in _in_half_widths(checks)}
    picture = charts.means(scaled, "half-widths of its interval away from 0")
    return Section("What moves the judge beside the label", [Words(lead), grid, *picture])


def _in_half_widths(checks: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Bring numbers of different units on one axis: beyond 1 the interval excludes 0."""
    for name, check in checks.items():
        if check["low"] is not None and check["high"] > check["low"]:
            half = (check["high"] - check["low"]) / 2
            yield name, check | {key: check[key] / half for key in ("value", "low", "high")}


def _tested(check: dict[str, Any]) -> list[str]:
    ps = [
        UNDEFINED if check.get(name) is None else p_value(check, name).removeprefix("= ")
        for name in ("p", "p_holm")
    ]
    return [*ps, "bias" if check["alarm"] else ""]


def _slices(column: str, slices: dict[str, Any], safe: Safe) -> Section:
    rows = []
    for name, one in slices.items():
        test, distance = one.get("difference"), one["distance"]
        tested = [estimate(test), *_tested(test)] if test else [UNDEFINED] * 3 + [""]
        rows.append([safe(name), estimate(distance), *tested, str(distance["n"])])
    header = ["", "distance to the label", "less the other rows'", "p", "corrected p", "", "n"]
    pictures = charts.means({name: one["distance"] for name, one in slices.items()}, header[1])
    return Section(f"By {safe(column)}", [Grid(header, rows), *pictures])


def _orders(orders: dict[str, Any], safe: Safe) -> Section:
    counts = {(one["first"], one["swapped"]): one["n"] for one in orders["flips"]}
    winners = sorted({winner for pair in counts for winner in pair}, key=str)
    titles = ["parse failure" if winner is None else safe(winner) for winner in winners]
    rows = []
    for title, first in zip(titles, winners, strict=True):
        line = [counts.get((first, second), 0) for second in winners]
        rows.append([title, *(str(count or "") for count in line), str(sum(line))])
    places = [
        _counted(f"better candidate is {place}", metric)
        for place, metric in orders["right_if_better_is"].items()
    ]
    lead = "Winner in the first order, down, and with the candidates the other way round, across."
    matrix = Grid(["", *titles, "n"], rows, heat=True)
    return Section("Both orders", [Words(lead), matrix, Grid(["", "accuracy", "n"], places)])


def _pairs(pairs: dict[str, Any]) -> Section:
    rows = [
        _counted("pairs in the labels' order", pairs["accuracy"]),
        _counted("the same, with only equal scores as ties", pairs["accuracy_as_is"]),
    ]
    text = "Share of pairs of rows of one source that are in the order of their labels, ties "
    text += "included, averaged over sources."
    if pairs["tie_threshold"]:
        text += f" Scores up to {pairs['tie_threshold']:.3g} apart count as equal in the first "
        text += "line: the best threshold on these rows."
    return Section("Rows of one source", [Words(text), Grid(VALUES, rows)])


def _systems(systems: dict[str, Any], safe: Safe) -> Section:
    between = systems["between_systems"]
    rows = [
        _counted("Pearson within a source (n: sources)", systems["within_source"]),
        _counted("Pearson within a system (n: systems)", systems["within_system"]),
    ]
    blocks: list[Block] = [Grid(VALUES, rows)]
    if between:
        text = (
            f"Soft pairwise accuracy {number(between['soft_pairwise_accuracy'])} over "
            f"{between['pairs']} pairs of systems on {between['groups']} sources."
        )
        lines = [
            [safe(one["system"]), number(one["label"]), number(one["verdict"])]
            for one in between["systems"]
        ]
        blocks += [Words(text), Grid(["system", "mean label", "mean verdict"], lines)]
    return Section("Systems", blocks)


def _operating(judge: dict[str, Any]) -> Section:
    best = judge["operating"]
    threshold = "never" if best["threshold"] is None else f"from {best['threshold']:.3f} on"
    where = "validation rows" if "chosen_on" in best else "these rows"
    text = (
        f"With {best['missed_fail_costs']:g} for a missed FAIL and "
        f"{best['false_alarm_costs']:g} for a false alarm it costs least to fail a row "
        f"{threshold} of probability of FAIL: {best['cost']:.3f} per row, against "
        f"{best['cost_of_likeliest']:.3f} by the likelier verdict (n = {best['n']}; chosen on "
        f"{where}). As a sign of FAIL that probability has an area below the ROC curve (AUC) of "
        f"{with_n(judge.get('roc_auc'))} and below precision and recall of "
        f"{with_n(judge['pr_auc'])}."
    )
    return Section("Threshold", [Words(text)])


def people_section(results: dict[str, Any], safe: Safe) -> Section | None:
    """Return how far the annotators agree with each other; None if no row has several."""
    agreement = results.get("people")
    if not agreement:
        return None
    lead = (
        f"{agreement['raters']} annotators, {agreement['ratings']} labels of the "
        f"{agreement['units']} rows that have two or more; n counts rows (for correlations: "
        "annotators or labels)."
    )
    rows = [[safe(name), *cells] for name, *cells in people.table(agreement)]
    return Section("Agreement among annotators", [Words(lead), Grid(list(people.ROW), rows)])


def _population(rate: dict[str, Any]) -> Section:
    value = estimate(rate) if rate["value"] is not None else f"unknown ({rate['reason']})"
    text = (
        f"Pass rate of the {rate['n']} rows without a label: the judge passes "
        f"{number(rate['raw'])}; corrected for its errors, as known from {rate['labelled']} "
        f"labelled rows, {value}."
    )
    return Section("Pass rate", [Words(text)])


def attack_section(attacks: dict[str, Any] | None, safe: Safe) -> Section | None:
    """Return what attacks do; None if `judge attack` was not run."""
    if attacks is None:
        return None
    rows = [[safe(name), *cells] for name, cells in attack_rows(attacks)]
    is_score = attacks["step"] != 0.5 or attacks["scale"][0].isdigit()
    clean = attacks["clean"]
    head = "kappa_quadratic" if "kappa_quadratic" in clean else "kappa"
    lead = (
        f"{attacks['data']['rows']} test rows, attacked. Shift: what the judge gives the attacked "
        "candidate less what it gave the clean one "
        f"({'units of the scale' if is_score else 'probability'}). Raised: share that rose by more "
        f"than {attacks['step']:g}. "
        # A defence must not cost agreement on clean rows.
        f"On the clean rows {NAMES[head]} is {with_n(clean[head])}."
    )
    shifts = {name: family["shift"] for name, family in attacks["families"].items()}
    grid = Grid(["family", "shift", "raised", "given after it", "parse failures", "n"], rows)
    blocks: list[Block] = [Words(lead), grid, *charts.means(shifts, "shift")]
    if line := control_line(attacks):
        blocks.append(Words(line))
    return Section("Attacks", blocks)


def attack_rows(attacks: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each family's name and its numbers."""
    for name, family in attacks["families"].items():
        keys = ("shift", "raised", "verdict", "parse_failures")
        yield name, [*(estimate(family[key]) for key in keys), str(family["attacks"])]


def control_line(attacks: dict[str, Any]) -> str:
    """Say what control tokens did beyond the same characters as text; "" if they were not tried."""
    control = attacks.get("control_tokens")
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
