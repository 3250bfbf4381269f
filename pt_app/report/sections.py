"""Sections about confidence, biases, slices, systems, pass rates, annotators and attacks."""

from collections.abc import Iterator, Mapping, Sequence

from pt_app.core import results
from pt_app.core.formatting import NAMES, UNDEFINED, estimate, inline, number, p_value
from pt_app.core.verdicts import Verdict
from pt_app.evidence import people
from pt_app.report import charts
from pt_app.report.page import Block, Grid, Section, sentences, titles

BRIER = "Brier score (sum over classes)"  # 0 to 2; of two classes twice that of scikit-learn
VALUES = ["", "value", "n"]  # the header of most tables


def evidence_sections(judge: results.JudgeResults) -> Iterator[Section]:
    """Yield the sections that the judge's numbers allow."""
    if judge.calibration:
        yield _confidence(judge, judge.calibration)
    if judge.checks:
        yield _checks(judge.checks)
    for column, slices in judge.slices.items():
        yield _slices(column, slices)
    if judge.orders:
        yield _orders(judge.orders)
    if judge.within_source_pairs and judge.within_source_pairs.pairs:
        yield _pairs(judge.within_source_pairs)
    if judge.systems:
        yield _systems(judge.systems)
    if best := judge.operating:
        yield Section("Threshold", [sentences("operating", best=best, judge=judge)])
    if judge.population:
        yield Section("Pass rate", [sentences("population", rate=judge.population)])


def _confidence(judge: results.JudgeResults, calibration: results.Calibration) -> Section:
    tolerance, ece, usual = calibration.tolerance, calibration.ece, calibration.ece_if_calibrated
    mean, high = (usual.mean, usual.high) if usual else (None, None)
    rows = [
        counted("accuracy", calibration.right),
        counted(titles().checks["overconfidence"], calibration.overconfidence),
        counted("expected calibration error (ECE)", ece),
        ["ECE of a calibrated judge", f"{number(mean)}, up to {number(high)}", str(ece.n)],
        counted(BRIER, calibration.brier),
    ]
    if judge.mended:
        after = f"after temperature {judge.mended.temperature:.2f}"
        rows.append(counted(f"ECE {after}", judge.mended.ece))
        rows.append(counted(f"{BRIER} {after}", judge.mended.brier))
    notes = list[Block]()
    if judge.selective:
        rows += _selective(judge.selective, within=tolerance > 0)
        chosen_on = sentences("rows_of", chosen=judge.selective)
        notes.append(f"Threshold and guarantee are from {chosen_on}.")
    lead = sentences("confidence", tolerance=tolerance)
    bins = [counted(number(group.confidence), group.right) for group in calibration.reliability]
    pictures = charts.reliability(calibration) + charts.risk_coverage(judge.selective)
    grid = Grid(["mean confidence", "accuracy", "n"], bins)
    return Section("Confidence", [lead, Grid(VALUES, rows), *notes, *pictures, grid])


def _selective(chosen: results.Selective, within: bool) -> Iterator[list[str]]:
    threshold = UNDEFINED
    if chosen.threshold is not None:
        threshold = f"{chosen.threshold:.3f} (guarantees {number(chosen.bound)})"
    yield counted("area below risk and coverage (AURC)", chosen.aurc)
    yield counted("the same if confidence said nothing", chosen.aurc_random)
    yield [f"confidence for {chosen.target:.0%} accuracy", threshold, str(chosen.rows)]
    yield counted("rows kept there", chosen.kept)
    yield counted("accuracy among them", chosen.right)
    for part in chosen.at_coverage:
        yield from _at_coverage(part, within)


def _at_coverage(part: results.Coverage, within: bool) -> Iterator[list[str]]:
    """Yield the numbers of the surest rows; without a tolerance `right` is the accuracy."""
    names = {"right": "accuracy within the tolerance"} if within else {}
    for name in ("accuracy", "kappa", "kappa_quadratic"):
        names[name] = NAMES[name]
    for name, text in names.items():
        metric = getattr(part, name)
        if metric is not None:
            yield counted(f"surest {part.coverage:.0%} of the rows: {text}", metric)


def counted(name: str, metric: results.Metric) -> list[str]:
    """Lay out a number in three cells: its name, itself with its interval, and n."""
    return [name, estimate(metric), str(metric.n)]


def _checks(checks: dict[str, results.Check]) -> Section:
    rows = [
        [titles().checks[name], *_tested(check), str(check.n)] for name, check in checks.items()
    ]
    blocks = sentences("checks"), Grid(["", "value", "p", "corrected p", "", "n"], rows)
    return Section("What moves the judge beside the label", blocks)


def _tested(check: results.Check | None) -> list[str]:
    """Return the number, p, corrected p and whether it is a bias."""
    check = check or results.Check()
    ps = [UNDEFINED if p is None else p_value(p) for p in (check.p, check.p_holm)]
    return [estimate(check), *(p.removeprefix("= ") for p in ps), "bias" if check.alarm else ""]


def _slices(column: str, slices: dict[str, results.Slice]) -> Section:
    rows = [
        [inline(name), estimate(part.distance), *_tested(part.difference), str(part.distance.n)]
        for name, part in slices.items()
    ]
    header = ["", "distance to the label", "less the other rows'", "p", "corrected p", "", "n"]
    pictures = charts.means({name: part.distance for name, part in slices.items()}, header[1])
    return Section(f"By {inline(column)}", [Grid(header, rows), *pictures])


def _orders(orders: results.Orders) -> Section:
    counts = {(flip.first, flip.swapped): flip.n for flip in orders.flips}
    winners = sorted({winner for pair in counts for winner in pair}, key=str)
    better = orders.right_if_better_is.items()
    places = [counted(f"better candidate is {place}", metric) for place, metric in better]
    lead, grid = sentences("orders"), matrix("", winners, winners, counts)
    return Section("Both orders", [lead, grid, Grid(["", "accuracy", "n"], places)])


def matrix(
    corner: str,
    rows: Sequence[Verdict | None],
    columns: Sequence[Verdict | None],
    counts: Mapping[tuple[Verdict | None, Verdict | None], int],
) -> Grid:
    """Lay out counts of pairs of verdicts (None: a parse failure)."""

    def named(verdict: Verdict | None) -> str:
        return "parse failure" if verdict is None else inline(verdict)

    lines = [(row, [counts.get((row, column), 0) for column in columns]) for row in rows]
    body = [
        [named(row), *(str(count or "") for count in line), str(sum(line))] for row, line in lines
    ]
    return Grid([corner, *map(named, columns), "n"], body, heat=True)


def _pairs(pairs: results.SourcePairs) -> Section:
    rows = [
        counted("pairs in the labels' order", pairs.accuracy),
        counted("the same, with only equal scores as ties", pairs.accuracy_as_is),
    ]
    lead = sentences("pairs", threshold=pairs.tie_threshold)
    return Section("Rows of one source", [lead, Grid(VALUES, rows)])


def _systems(systems: results.Systems) -> Section:
    between = systems.between_systems
    rows = [
        counted("Pearson within a source (n: sources)", systems.within_source),
        counted("Pearson within a system (n: systems)", systems.within_system),
    ]
    blocks: list[Block] = [Grid(VALUES, rows)]
    if between:
        text = sentences("systems", between=between)
        lines = [[inline(s.system), number(s.label), number(s.verdict)] for s in between.systems]
        blocks += [text, Grid(["system", "mean label", "mean verdict"], lines)]
    return Section("Systems", blocks)


def people_section(agreement: results.AnnotatorAgreement | None) -> Section | None:
    """Return how far the annotators agree with each other; None if no row has several."""
    if agreement is None:
        return None
    lead = sentences("annotator_agreement", agreement=agreement)
    rows = [[inline(name), *cells] for name, *cells in people.table(agreement)]
    return Section("Agreement among annotators", [lead, Grid(list(people.ROW), rows)])


def attack_section(attacks: results.AttackResults | None) -> Section | None:
    """Return what attacks do; None if `judge attack` was not run."""
    if attacks is None:
        return None
    rows = [[inline(name), *cells] for name, cells in attack_rows(attacks)]
    is_score = attacks.step != 0.5 or attacks.scale[0].isdigit()
    lead = sentences("attacks", attacks=attacks, is_score=is_score)
    shifts = {name: family.shift for name, family in attacks.families.items()}
    grid = Grid(["family", "shift", "raised", "given after it", "parse failures", "n"], rows)
    blocks: list[Block] = [lead, grid, *charts.means(shifts, "shift")]
    if line := sentences("control_tokens", control=attacks.control_tokens):
        blocks.append(line)
    return Section("Attacks", blocks)


def attack_rows(attacks: results.AttackResults) -> Iterator[tuple[str, list[str]]]:
    """Yield each family's name and its numbers."""
    for name, family in attacks.families.items():
        metrics = (family.shift, family.raised, family.verdict, family.parse_failures)
        yield name, [*map(estimate, metrics), str(family.attacks)]
