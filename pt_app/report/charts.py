"""Charts as inline SVG, in the page's own colours and fonts, each with a text alternative."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING

from pt_app.core.formatting import NAMES, estimate, number, one_line
from pt_app.core.results import Calibration, Escalation, Metric, Prediction, Results, Selective
from pt_app.report.page import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLE = Path(__file__).with_name("charts.mplstyle")
INK = "#010203"  # of the style; stands for the page's text colour, light or dark
# Paul Tol's colours, which colour-blind readers can tell apart.
BLUE, RED, GREEN, GREY = "#4477aa", "#ee6677", "#228833", "#888888"
WIDTH = 6.4  # inches, at 72 points each
MAX_LINES = 24

Draw = Callable[["Axes"], None]
Point = tuple[float, float]


def of_results(results: Results) -> Iterator[tuple[str, str]]:
    """Draw the charts about a whole evaluation, for a dashboard: names and SVG texts."""
    first = results.models[0]
    charts = {
        "agreement": agreement(results),
        "reliability": reliability(first.calibration),
        "risk_coverage": risk_coverage(first.selective),
    }
    return ((name, chart.draw()) for name, drawn in charts.items() for chart in drawn)


def agreement(results: Results) -> list[Chart]:
    """Show the headline number of judges, baselines and annotators with their intervals."""
    head = results.columns()[0]
    entries = [(model.name, model.metrics.get(head), BLUE) for model in results.models]
    entries += [(baseline.name, baseline.metrics.get(head), GREY) for baseline in results.baselines]
    if results.ceiling:
        top = results.ceiling.metrics.get(head)
        entries.append(("one annotator against the others", top, GREEN))
    return forest(entries, NAMES[head])


def means(by_kind: Mapping[str, Metric], what: str) -> list[Chart]:
    """Show a number of each kind of row, with its interval."""
    return forest([(name, metric, BLUE) for name, metric in by_kind.items()], what)


def forest(entries: Sequence[tuple[str, Metric | None, str]], what: str) -> list[Chart]:
    """Show numbers with their intervals, as (name, number, colour); [] for fewer than two."""
    lines = [(n, m, c) for n, m, c in entries if m and m.value is not None][:MAX_LINES]
    if len(lines) < 2:
        return []

    def draw(ax: "Axes") -> None:
        for place, (_, metric, colour) in enumerate(lines):
            if metric.low is not None and metric.high is not None:
                ax.plot([metric.low, metric.high], [place, place], color=colour, linewidth=2)
            ax.plot([metric.value or 0.0], [place], "o", color=colour, markersize=6)
        ax.set_yticks(range(len(lines)), [_short(name) for name, _, _ in lines])
        ax.invert_yaxis()
        ax.set_xlabel(what)
        ax.grid(axis="x", color=GREY, alpha=0.3)

    says = "; ".join(f"{name} {estimate(metric)}" for name, metric, _ in lines)
    return [_chart(draw, f"{what}: {says}", 0.3 * len(lines) + 0.7)]


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) <= 32 else f"{name[:31]}…"


def verdicts_by_label(rows: Sequence[Prediction]) -> list[Chart]:
    """Show the spread of the verdicts (expected scores if known) of each label's rows."""
    by_label: dict[float, list[float]] = {}
    for row in rows:
        verdict = row.verdict if row.expected is None else row.expected
        if isinstance(row.label, (int, float)) and isinstance(verdict, (int, float)):
            by_label.setdefault(float(row.label), []).append(float(verdict))
    if len(by_label) < 2:
        return []
    labels = sorted(by_label)
    first, last, blue = labels[0], labels[-1], {"color": BLUE}

    def draw(ax: "Axes") -> None:
        ax.plot([first, last], [first, last], color=GREY, linestyle="--")
        ax.boxplot(
            [by_label[label] for label in labels],
            positions=labels,
            widths=0.6 * (last - first) / (len(labels) - 1),
            manage_ticks=False,
            showfliers=len(labels) < 30,
            boxprops=blue,
            whiskerprops=blue,
            capprops=blue,
            medianprops={"color": RED},
            flierprops={"markersize": 3, "markeredgecolor": GREY},
        )
        ax.set_xlabel("label (dashed: verdict = label)")
        ax.set_ylabel("verdict")

    parts = [f"label {label:g}: {median_high(by_label[label]):.1f}" for label in labels[:30]]
    return [_chart(draw, f"Verdicts by label, medians: {'; '.join(parts)}", 3.4)]


def reliability(calibration: Calibration | None) -> list[Chart]:
    """Show accuracy against confidence, in bins of equally many rows."""
    every = calibration.reliability if calibration else []
    bins = [group for group in every if group.right.value is not None]
    if len(bins) < 2:
        return []
    xs, ys = [group.confidence for group in bins], [group.right.value or 0.0 for group in bins]

    def draw(ax: "Axes") -> None:
        low = min(0.5, *xs, *ys)
        ax.plot([low, 1], [low, 1], color=GREY, linestyle="--")
        for group in bins:
            if group.right.low is not None and group.right.high is not None:
                ax.plot([group.confidence] * 2, [group.right.low, group.right.high], color=BLUE)
        ax.plot(xs, ys, "o-", color=BLUE)
        ax.set_xlabel("mean confidence (dashed: calibrated)")
        ax.set_ylabel("accuracy")

    parts = (f"{number(group.confidence)}: {estimate(group.right)}" for group in bins)
    return [_chart(draw, f"Accuracy by mean confidence: {'; '.join(parts)}", 3.4)]


def risk_coverage(selective: Selective | None) -> list[Chart]:
    """Show the error rate among the surest rows against how many these are."""
    if selective is None or len(selective.curve) < 2:
        return []
    curve = selective.curve

    def draw(ax: "Axes") -> None:
        ax.plot([p.coverage for p in curve], [p.risk for p in curve], color=BLUE)
        ax.axhline(curve[-1].risk, color=GREY, linestyle="--")
        if selective.threshold is not None:
            ax.axvline(selective.kept.value or 0.0, color=GREEN)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("share of rows judged, surest first (dashed: no use of confidence)")
        ax.set_ylabel("error rate")

    parts = [curve[int(part * (len(curve) - 1))] for part in (0.25, 0.5, 0.75, 1)]
    says = "; ".join(f"surest {p.coverage:.0%}: {p.risk:.1%} wrong" for p in parts)
    return [_chart(draw, f"Risk and coverage: {says}", 3.0)]


def escalation(found: Escalation) -> list[Chart]:
    """Show the accuracy of two judges together by the share that the first one keeps."""
    points = [point for point in found.points if point.right.value is not None]
    if len(points) < 2:
        return []
    xs, ys = [point.kept for point in points], [point.right.value or 0.0 for point in points]

    def draw(ax: "Axes") -> None:
        ax.plot([xs[0], xs[-1]], [ys[0], ys[-1]], color=GREY, linestyle="--")
        for x, point in zip(xs, points, strict=True):
            if point.right.low is not None and point.right.high is not None:
                ax.plot([x, x], [point.right.low, point.right.high], color=BLUE)
        ax.plot(xs, ys, "o-", color=BLUE)
        if found.chosen is not None:
            ax.axvline(found.chosen.kept, color=GREEN)
        ax.set_xlabel("share of rows kept, surest first (dashed: kept at random)")
        ax.set_ylabel("accuracy")

    says = "; ".join(f"{p.kept:.0%} kept: {estimate(p.right)}" for p in points)
    return [_chart(draw, f"Accuracy by rows kept: {says}", 3.0)]


def training(history: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Show training and validation loss by step, and the agreement on validation rows."""
    names = sorted({name for entry in history for name in entry})
    # Earlier versions counted parse failures as wrong, and said so.
    metric = {name: name.removeprefix("eval_").removesuffix("_strict") for name in names}
    quality = [name for name in names if name.startswith("eval_") and metric[name] in NAMES]
    charts = []
    for group in (["loss", "eval_loss"], *([name] for name in quality)):
        lines = {name: line for name in group if (line := _series(history, name))}
        if any(len(line) > 1 for line in lines.values()):
            last = "; ".join(f"{name} ends at {line[-1][1]:.3g}" for name, line in lines.items())
            charts.append(_chart(partial(_draw_lines, lines), f"By step: {last}", 2.6))
    return charts


def _series(history: Sequence[Mapping[str, float]], name: str) -> list[Point]:
    return [(entry["step"], entry[name]) for entry in history if {name, "step"} <= entry.keys()]


def _draw_lines(lines: Mapping[str, Sequence[Point]], ax: "Axes") -> None:
    for (name, line), colour in zip(lines.items(), (BLUE, RED), strict=False):
        ax.plot(*zip(*line, strict=True), color=colour, label=name, marker="o", markersize=2)
    ax.set_xlabel("step")
    ax.legend(frameon=False)


def _chart(draw: Draw, says: str, height: float) -> Chart:
    return Chart(partial(_svg, draw, says, height), says)


def _svg(draw: Draw, says: str, height: float) -> str:
    """Draw an SVG that takes the page's width, colour and font, and `says` for screen readers."""
    from html import escape
    from zlib import crc32

    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context({"svg.hashsalt": says}, STYLE):  # equal data give equal bytes
        room = ConstrainedLayoutEngine(w_pad=0.12)  # inches: browsers set text a little wider
        figure = Figure(figsize=(WIDTH, height), layout=room)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :].replace(INK, "currentColor")
    # A page holds several pictures, so that the ids of each need their own prefix.
    own = f"c{crc32(says.encode()):x}-"
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{own}", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(says)}"', 1)
