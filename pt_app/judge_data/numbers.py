"""Numbers as people write them: 7.5 and 7,5, 1,000 and 1.000, decided by column, never by cell.

"1,000" is 1000 in an English file and 1 in a Portuguese one. The other cells of the column decide,
then the scale, then the delimiter of the file. A number that none of them decides is refused.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal

MAX_EXPONENT = 300  # what a float holds
_SWAPPED = str.maketrans(",.", ".,")
_MINUS = str.maketrans("\N{MINUS SIGN}", "-")
# Groups of three digits follow a comma, any kind of space, or an apostrophe (Switzerland).
_NUMBER = re.compile(
    r"[-+]?(?:\d+|[1-9]\d{0,2}([,\s'\N{RIGHT SINGLE QUOTATION MARK}])\d{3}(?:\1\d{3})*|(?=\.\d))"
    r"(\.\d+)?(?:[eE][-+]?\d{1,3})?"
)


def readings(text: str) -> tuple[Decimal | None, Decimal | None]:
    """Read a number with a decimal point and with a decimal comma; None where it is not one."""
    written = text.strip().translate(_MINUS)
    return _with_point(written), _with_point(written.translate(_SWAPPED))


def as_number(text: str) -> Decimal | None:
    """Read a number with a decimal point, else with a comma; None for any other text."""
    point, comma = readings(text)
    return comma if point is None else point


def plain(number: Decimal) -> str:
    """Write a number without an exponent and without trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _with_point(text: str) -> Decimal | None:
    if not _NUMBER.fullmatch(text):
        return None
    number = Decimal(re.sub(r"[^\d.eE+-]", "", text))
    return number if abs(number.adjusted()) <= MAX_EXPONENT else None


class AmbiguousNumberError(ValueError):
    """A number that can be read in two ways, where nothing in the file decides between them."""


@dataclass
class Numbers:
    """Reads the numbers of one column, or of several columns that are written alike.

    Attributes:
        cells: Returns all cells of the columns. They are scanned once, and only when a number can
            be read in two ways.
        delimiter: The delimiter of the file, if it is a CSV file.
        decimal: "point" or "comma"; overrules everything else.
        fits: Whether a number is on the scale.
        note: What was decided, for the summary; "" where nothing had to be decided.
    """

    cells: Callable[[], Iterable[object]] = tuple
    delimiter: str = ""
    decimal: str = ""
    fits: Callable[[Decimal], bool] = lambda _: True
    note: str = field(default="", init=False)
    _sign: str | None = field(default=None, init=False)

    def read(self, cell: object) -> Decimal | None:
        """Read a number, or the text of one; return None for anything else.

        Raises:
            AmbiguousNumberError: The number can be read in two ways, and nothing decides.
        """
        if not isinstance(cell, str):
            return None if isinstance(cell, bool) else _with_point(str(cell))
        point, comma = readings(cell)
        if point is None or comma is None or point == comma:
            if self.decimal:  # a decimal sign that was named allows no other
                return point if self.decimal == "point" else comma
            return comma if point is None else point
        if self._sign is None:
            self._sign = self.decimal or self._decide()
        if not self._sign:
            raise AmbiguousNumberError(f"{cell.strip()!r} may be {plain(point)} or {plain(comma)}")
        right, wrong = (point, comma) if self._sign == "point" else (comma, point)
        if not (self.decimal or self.note):
            other = f"--decimal {'comma' if right is point else 'point'}: {plain(wrong)}"
            self.note = f"{cell.strip()} is read as {plain(right)} ({other})"
        return right

    def _decide(self) -> str:
        """Return the decimal sign: by the unambiguous cells, the scale, then the delimiter.

        Returns "" where none of these decides.
        """
        read = {cell: readings(cell) for cell in self.cells() if isinstance(cell, str)}
        unlike = [(*pair, cell) for cell, pair in read.items() if pair[0] != pair[1]]
        certain = {"comma" for point, _, _ in unlike if point is None}
        certain |= {"point" for _, comma, _ in unlike if comma is None}
        if certain:
            return certain.pop() if len(certain) == 1 else ""
        fits_point = all(point is not None and self.fits(point) for point, _, _ in unlike)
        fits_comma = all(comma is not None and self.fits(comma) for _, comma, _ in unlike)
        if fits_point != fits_comma:
            return "point" if fits_point else "comma"
        undecided = "" if any("," in cell for _, _, cell in unlike) else "point"
        return {",": "point", ";": "comma"}.get(self.delimiter, undecided)
