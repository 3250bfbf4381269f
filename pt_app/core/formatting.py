"""How a number and its interval are written, wherever one is printed."""

from collections.abc import Mapping
from typing import Any

DIGITS = 3  # two hide differences that intervals show: 0.955 and 0.949 are both 0.95
UNDEFINED = "–"


def number(value: float | None) -> str:
    """Write `DIGITS` digits after the point, or a dash where undefined; never "-0.000"."""
    return UNDEFINED if value is None else f"{round(value, DIGITS) + 0.0:.{DIGITS}f}"


def interval(metric: Mapping[str, Any]) -> str:
    """Write `[0.834, 0.886]`; "" where no interval exists."""
    if metric.get("low") is None or metric.get("high") is None:
        return ""
    return f"[{number(metric['low'])}, {number(metric['high'])}]"


def estimate(metric: Mapping[str, Any] | None) -> str:
    """Write `0.861 [0.834, 0.886]`; a dash where undefined; the value alone without interval."""
    if not metric or metric.get("value") is None:
        return UNDEFINED
    return f"{number(metric['value'])} {interval(metric)}".rstrip()
