"""Charts as inline SVG, in the page's own colours and fonts, each with a text alternative."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median_high
from typing import TYPE_CHECKING, Any

from pt_app.core.formatting import NAMES, columns_of, estimate, metrics_of, number, one_line
from pt_app.report.page import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"  # stands for the page's text colour, light or dark
# Paul Tol's colours, which colour-blind readers can tell apart.
BLUE, RED, GREEN, GREY = "#4477aa", "#ee6677", "#228833", "#888888"
WIDTH = 6.4  # inches, at 72 points each
MAX_LINES = 24

Draw = Callable[["Axes"], None]


def of_results(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the SVG of each chart about a whole evaluation, for a dashboard."""
    first = results["models"][0]
    charts = {
        "agreement": agreement(results),
        "reliability": reliability(first["calibration"]) if first.get("calibration") else [],
        "risk_coverage": risk_coverage(first["selective"]) if first.get("selective") else [],
    }
    for name, drawn in charts.items():
        for chart in drawn:
            yield name, chart.draw()


def agreement(results: Mapping[str, Any]) -> list[Chart]:
    """Show the headline number of judges, baselines and annotators with their intervals."""
    head = columns_of(results)[0]
    entries = [(str(model["name"]), model, BLUE) for model in results["models"]]
    entries += [(one["name"], one, GREY) for one in results["baselines"] or []]
    if annotators := results.get("ceiling"):
        entries.append(("one annotator against the others", annotators, GREEN))
    lines = [(name, metrics_of(one).get(head), colour) for name, one, colour in entries]
    return forest(lines, NAMES[head])


def means(by_kind: Mapping[str, Any], what: str) -> list[Chart]:
    """Show a number of each kind of row, with its interval."""
    return forest([(name, metric, BLUE) for name, metric in by_kind.items()], what)


def forest(lines: Sequence[tuple[str, Any, str]], what: str) -> list[Chart]:
    """Show numbers with their intervals, as (name, number, colour); [] for fewer than two."""
    lines = [line for line in lines if line[1] and line[1]["value"] is not None][:MAX_LINES]
    if len(lines) < 2:
        return []
    says = "; ".join(f"{name} {estimate(metric)}" for name, metric, _ in lines)
    return [_chart(partial(_draw_forest, lines, what), f"{what}: {says}", 0.3 * len(lines) + 0.7)]


def _draw_forest(lines: Sequence[tuple[str, Any, str]], what: str, ax: "Axes") -> None:
    for place, (_, metric, colour) in enumerate(lines):
        if metric["low"] is not None:
            ax.plot([metric["low"], metric["high"]], [place, place], color=colour, linewidth=2)
        ax.plot([metric["value"]], [place], "o", color=colour, markersize=6)
    ax.set_yticks(range(len(lines)), [_short(name) for name, _, _ in lines])
    ax.invert_yaxis()
    ax.set_xlabel(what)
    ax.grid(axis="x", color=GREY, alpha=0.3)


def _short(name: str) -> str:
    name = one_line(name)
    return name if len(name) < 32 else f"{name[:30]}…"


def verdicts_by_label(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Show the spread of the verdicts (expected scores if known) of each label's rows."""
    by_label: dict[float, list[float]] = {}
    for row in rows:
        given = (row.get("expected"), row["constrained"], row["verdict"])
        verdict = next((one for one in given if one is not None), None)
        if isinstance(row["label"], (int, float)) and isinstance(verdict, (int, float)):
            by_label.setdefault(float(row["label"]), []).append(float(verdict))
    if len(by_label) < 2:
        return []
    labels = sorted(by_label)
    parts = [f"label {label:g}: {median_high(by_label[label]):.1f}" for label in labels[:30]]
    draw = partial(_draw_spread, labels, [by_label[label] for label in labels])
    return [_chart(draw, f"Verdicts by label, medians: {'; '.join(parts)}", 3.4)]


def _draw_spread(labels: Sequence[float], spread: Sequence[Sequence[float]], ax: "Axes") -> None:
    span = max(labels) - min(labels)
    ax.plot([min(labels), max(labels)], [min(labels), max(labels)], color=GREY, linestyle="--")
    ax.boxplot(
        spread,
        positions=labels,
        widths=0.6 * span / max(1, len(labels) - 1),
        manage_ticks=False,
        showfliers=len(labels) < 30,
        boxprops={"color": BLUE},
        whiskerprops={"color": BLUE},
        capprops={"color": BLUE},
        medianprops={"color": RED},
        flierprops={"markersize": 3, "markeredgecolor": GREY},
    )
    ax.set_xlabel("label (dashed: verdict = label)")
    ax.set_ylabel("verdict")


def reliability(calibration: Mapping[str, Any]) -> list[Chart]:
    """Show accuracy against confidence, in bins of equally many rows."""
    bins = [one for one in calibration["reliability"] if one["right"]["value"] is not None]
    if len(bins) < 2:
        return []
    parts = (f"{number(one['confidence'])}: {estimate(one['right'])}" for one in bins)
    says = f"Accuracy by mean confidence: {'; '.join(parts)}"
    return [_chart(partial(_draw_reliability, bins), says, 3.4)]


def _draw_reliability(bins: Sequence[Mapping[str, Any]], ax: "Axes") -> None:
    low = min(0.5, *(one["confidence"] for one in bins), *(one["right"]["value"] for one in bins))
    ax.plot([low, 1], [low, 1], color=GREY, linestyle="--")
    for one in bins:
        right = one["right"]
        if right["low"] is not None:
            ax.plot([one["confidence"]] * 2, [right["low"], right["high"]], color=BLUE)
    xs = [one["confidence"] for one in bins]
    ax.plot(xs, [one["right"]["value"] for one in bins], "o-", color=BLUE)
    ax.set_xlabel("mean confidence (dashed: calibrated)")
    ax.set_ylabel("accuracy")


def risk_coverage(selective: Mapping[str, Any]) -> list[Chart]:
    """Show the error rate among the surest rows against how many these are."""
    curve = selective["curve"]
    if len(curve) < 2:
        return []
    parts = [curve[int(part * (len(curve) - 1))] for part in (0.25, 0.5, 0.75, 1)]
    says = "; ".join(f"surest {one['coverage']:.0%}: {one['risk']:.1%} wrong" for one in parts)
    return [_chart(partial(_draw_risk, selective), f"Risk and coverage: {says}", 3.0)]


def _draw_risk(selective: Mapping[str, Any], ax: "Axes") -> None:
    curve = selective["curve"]
    ax.plot([one["coverage"] for one in curve], [one["risk"] for one in curve], color=BLUE)
    ax.axhline(curve[-1]["risk"], color=GREY, linestyle="--")
    if selective["threshold"] is not None:
        ax.axvline(selective["kept"]["value"], color=GREEN)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("share of rows judged, surest first (dashed: no use of confidence)")
    ax.set_ylabel("error rate")


def training(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Show training and validation loss by step, and the agreement on validation rows."""
    charts = []
    losses = {name: _series(history, name) for name in ("loss", "eval_loss")}
    names = {name for entry in history for name in entry}
    quality = sorted(n for n in names if n.startswith("eval_") and n.endswith("_strict"))
    parts = [{name: line for name, line in losses.items() if line}]
    parts += [{name: _series(history, name)} for name in quality]
    for part in parts:
        if any(len(line) > 1 for line in part.values()):
            last = "; ".join(f"{name} ends at {line[-1][1]:.3g}" for name, line in part.items())
            charts.append(_chart(partial(_draw_lines, part), f"By step: {last}", 2.6))
    return charts


def _series(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(one["step"], one[name]) for one in history if name in one and "step" in one]


def _draw_lines(lines: Mapping[str, Sequence[tuple[float, float]]], ax: "Axes") -> None:
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

    style: Any = {
        "text.parse_math": False,  # a name may hold dollar signs
        "svg.fonttype": "none",  # keep text as text
        "svg.hashsalt": says,  # equal data give equal bytes
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.facecolor": "none",
        "font.size": 10,
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
        ),
    }
    with rc_context(style):
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
