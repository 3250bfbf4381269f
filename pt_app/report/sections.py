"""Sections of report.md about confidence, biases, slices and systems."""

from collections.abc import Iterator
from typing import Any

from pt_app.report.wording import UNDEFINED, estimate, inline, number, p_value, table

CHECKS = {
    "generosity": "mean of verdict - label",
    "first_place": "first place, more often than the labels",
    "order": "first place in both orders, above a half",
    "overconfidence": "mean confidence - share right",
    "length": "error and length, given the label",
    "copied": "error and words copied from the source, given the label",
}


def evidence_sections(judge: dict[str, Any]) -> Iterator[str]:
    """The sections that the judge's numbers allow."""
    if judge.get("calibration"):
        yield _confidence(judge)
    if judge.get("checks"):
        yield _checks(judge)
    for column, found in (judge.get("slices") or {}).items():
        yield _slices(column, found)
    if judge.get("systems"):
        yield _systems(judge["systems"])
    if judge.get("operating"):
        yield _operating(judge)
    if judge.get("population"):
        yield _population(judge["population"])


def _confidence(judge: dict[str, Any]) -> str:
    found, chosen = judge["calibration"], judge.get("selective")
    within = f"within {found['tolerance']:g}" if found["tolerance"] else "the label's verdict"
    usual = found["ece_if_calibrated"]
    rows = [
        ["share right", estimate(found["right"]), str(found["right"]["n"])],
        ["mean confidence - share right", estimate(found["overconfidence"]), _n(found)],
        ["calibration error (ECE)", estimate(found["ece"]), _n(found)],
        [
            "ECE of a calibrated judge",
            f"{number(usual['mean'])}, up to {number(usual['high'])}",
            "",
        ],
        ["Brier score", estimate(found["brier"]), str(found["brier"]["n"])],
    ]
    if chosen:
        threshold = chosen["threshold"]
        rows += [
            ["area below risk-coverage (AURC)", estimate(chosen["aurc"]), str(chosen["aurc"]["n"])],
            ["the same if confidence said nothing", estimate(chosen["aurc_random"]), ""],
            [
                f"confidence for {chosen['target']:.0%} right",
                UNDEFINED if threshold is None else f"{threshold:.3f}",
                str(chosen["rows"]),
            ],
            ["rows kept there", estimate(chosen["kept"]), str(chosen["kept"]["n"])],
            ["right among them", estimate(chosen["right"]), str(chosen["right"]["n"])],
        ]
    bins = [
        [number(one["confidence"]), estimate(one["right"]), str(one["right"]["n"])]
        for one in found["reliability"]
    ]
    return (
        f"## Confidence\n\nA row is right where its verdict is {within}; the confidence is the "
        f"probability of that.\n\n{table(['', 'value', 'n'], rows)}\n\n"
        f"{table(['mean confidence', 'share right', 'n'], bins)}"
    )


def _n(found: dict[str, Any]) -> str:
    return str(found["ece"]["n"])


def _checks(judge: dict[str, Any]) -> str:
    rows = [
        [CHECKS[name], estimate(one), _p(one, "p"), _p(one, "p_holm"), _alarm(one), str(one["n"])]
        for name, one in judge["checks"].items()
    ]
    return (
        "## What moves the judge beside the label\n\nEach number is 0 for a judge without that "
        "bias. *Corrected*: for the number of lines (Holm).\n\n"
        + table(["", "value", "p", "corrected", "", "n"], rows)
    )


def _p(one: dict[str, Any], name: str) -> str:
    return UNDEFINED if one.get(name) is None else p_value(one, name)


def _alarm(one: dict[str, Any]) -> str:
    return "**bias**" if one["alarm"] else ""


def _slices(column: str, found: dict[str, Any]) -> str:
    rows = []
    for name, one in found.items():
        test = one.get("difference")
        told = [estimate(test), _p(test, "p_holm"), _alarm(test)] if test else [UNDEFINED] * 3
        rows.append([inline(name), estimate(one["distance"]), *told, str(one["distance"]["n"])])
    header = ["", "distance to the label", "less the other rows'", "corrected p", "", "n"]
    return f"## By {inline(column)}\n\n{table(header, rows)}"


def _systems(found: dict[str, Any]) -> str:
    pairs, between = found["within_source_pairs"], found["between_systems"]
    tie = pairs["tie_threshold"]
    rows = [
        ["pairs of one source in the labels' order", estimate(pairs["accuracy"]), _count(pairs)],
        ["the same, equal scores alone as ties", estimate(pairs["accuracy_as_is"]), _count(pairs)],
        ["Pearson within a source", *_mean(found["within_source"])],
        ["Pearson within a system", *_mean(found["within_system"])],
    ]
    text = f"## Systems\n\n{table(['', 'value', 'n'], rows)}"
    if tie is not None:
        text += (
            f"\n\nScores up to {tie:.3g} apart count as equal: the best threshold on these rows."
        )
    if between:
        lines = [
            [inline(one["system"]), number(one["label"]), number(one["verdict"])]
            for one in between["systems"]
        ]
        text += (
            f"\n\nSoft pairwise accuracy {number(between['soft_pairwise_accuracy'])} over "
            f"{between['pairs']} pairs of systems on {between['groups']} sources.\n\n"
            + table(["system", "mean label", "mean verdict"], lines)
        )
    return text


def _count(pairs: dict[str, Any]) -> str:
    return f"{pairs['pairs']} pairs"


def _mean(one: dict[str, Any]) -> tuple[str, str]:
    return estimate(one), str(one["n"])


def _operating(judge: dict[str, Any]) -> str:
    found = judge["operating"]
    threshold = "never" if found["threshold"] is None else f"from {found['threshold']:.3f} on"
    return (
        f"## Threshold\n\nWith {found['missed_fail_costs']:g} for a missed FAIL and "
        f"{found['false_alarm_costs']:g} for a false alarm it costs least to fail a row "
        f"{threshold} of probability of FAIL: {found['cost']:.3f} a row, against "
        f"{found['cost_of_likeliest']:.3f} by the likelier verdict (n = {found['n']}; chosen on "
        f"these rows). Area below precision and recall of FAIL: {estimate(judge['pr_auc'])}."
    )


def _population(found: dict[str, Any]) -> str:
    told = estimate(found) if found["value"] is not None else f"unknown ({found['reason']})"
    return (
        f"## Pass rate\n\nPass rate of the {found['n']} rows without a label: the judge passes "
        f"{number(found['raw'])}; corrected for its errors, as known from {found['labelled']} "
        f"labelled rows, {told}."
    )
