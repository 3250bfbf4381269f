"""Numbers as people write them: 7.5 and 7,5, 1,000 and 1.000, decided by column, never by cell.

"1,000" is 1000 in an English file and 1 in a Portuguese one. The other cells of the column decide,
then the scale, then the file's delimiter; what none of them decides is refused.
"""

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any, Literal

Sign = Literal["point", "comma", ""]

SIGNS: tuple[Sign, ...] = ("point", "comma")
MAX_EXPONENT = 300  # what a float holds
_SWAPPED = str.maketrans(",.", ".,")
_MINUS = str.maketrans("\N{MINUS SIGN}", "-")
# Groups of three digits, after a comma, a blank of any width, or an apostrophe (as the Swiss do).
_NUMBER = re.compile(
    r"[-+]?(?:\d+|[1-9]\d{0,2}([,\s'\N{RIGHT SINGLE QUOTATION MARK}])\d{3}(?:\1\d{3})*|(?=\.\d))"
    r"(\.\d+)?(?:[eE][-+]?\d{1,3})?"
)


def readings(text: str) -> tuple[Decimal | None, Decimal | None]:
    """Read a number with a decimal point, and with a decimal comma; None where it is none."""
    written = text.strip().translate(_MINUS)
    return _with_point(written), _with_point(written.translate(_SWAPPED))


def _with_point(text: str) -> Decimal | None:
    if not _NUMBER.fullmatch(text):
        return None
    number = Decimal(re.sub(r"[^\d.eE+-]", "", text))
    return number if abs(number.adjusted()) <= MAX_EXPONENT else None


class AmbiguousNumberError(ValueError):
    """A number that reads in two ways, of which nothing in the file tells the right one."""

    def __init__(self, text: str, point: Decimal, comma: Decimal) -> None:
        super().__init__(f"{text.strip()!r} may be {_plain(point)} or {_plain(comma)}")


class Numbers:
    """Reads the numbers of one column, or of several that are written alike.

    `cells` gives all of them again; they are looked through once, and only when a number reads in
    two ways. `fits` says whether a number is on the scale, `delimiter` is the file's, and
    `decimal` ("point" or "comma") overrules them all. `note` says what was decided.
    """

    def __init__(
        self,
        cells: Callable[[], Iterable[Any]] = tuple,
        *,
        delimiter: str = "",
        decimal: str = "",
        fits: Callable[[Decimal], bool] | None = None,
    ) -> None:
        self._cells, self._delimiter, self._fits = cells, delimiter, fits
        self._given, self._sign = decimal, None if decimal == "" else decimal
        self.note = ""

    def read(self, cell: Any) -> Decimal | None:
        """Read a number, or the text of one; None for what is none.

        Raises AmbiguousNumberError where it reads in two ways and nothing decides.
        """
        if isinstance(cell, bool):
            return None
        if not isinstance(cell, str):
            try:
                number = Decimal(str(cell))
            except ArithmeticError:
                return None
            return number if number.is_finite() else None
        point, comma = readings(cell)
        if point is None or comma is None or point == comma:
            return self._sure(point, comma)
        if self._sign is None:
            self._sign = self._decide()
        if self._sign == "":
            raise AmbiguousNumberError(cell, point, comma)
        right, wrong = (point, comma) if self._sign == "point" else (comma, point)
        if not self.note and not self._given:
            other = "comma" if self._sign == "point" else "point"
            self.note = f"{cell.strip()} is read as {_plain(right)} (--decimal {other}: "
            self.note += f"{_plain(wrong)})"
        return right

    def _sure(self, point: Decimal | None, comma: Decimal | None) -> Decimal | None:
        """Give the one reading there is; a decimal sign that was named allows no other."""
        if self._given:
            return point if self._given == "point" else comma
        return comma if point is None else point

    def _decide(self) -> Sign:
        """Choose by the cells that read in one way, the scale, then the file's delimiter."""
        sure = dict.fromkeys(SIGNS, 0)
        fit = dict.fromkeys(SIGNS, True)
        points_alone = True
        for cell in self._cells():
            point, comma = readings(cell) if isinstance(cell, str) else (None, None)
            if point == comma:
                continue
            if point is None or comma is None:
                sure["comma" if point is None else "point"] += 1
                continue
            points_alone &= "," not in cell
            if self._fits:
                fit["point"] &= self._fits(point)
                fit["comma"] &= self._fits(comma)
        if bool(sure["point"]) != bool(sure["comma"]):
            return "point" if sure["point"] else "comma"
        if sure["point"]:
            return ""
        if fit["point"] != fit["comma"]:
            return "point" if fit["point"] else "comma"
        if self._delimiter in (",", ";"):
            return "point" if self._delimiter == "," else "comma"
        return "point" if points_alone else ""


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
