"""The grid of a scale: a coarser one, on which a judge is trained and read.

A row teaches the line of one verdict. On 0-100 a few hundred rows show most of the 101 lines
never, and the loss hardly leaves the prior; on ten bins each line has rows. The bins are of equal
width, the top value lies in the last one, and the probability of a bin is spread evenly over its
values: whatever reads a judge sees probabilities of the scale of the labels (`Scale.spread`).
"""

from collections.abc import Sequence

from pt_app.core.errors import UserError
from pt_app.core.questions import Asked
from pt_app.core.records import JudgeExample
from pt_app.core.verdicts import Scale

AUTO, OFF, USUAL = "auto", "off", "0-9"
MAX_VERDICTS = 11  # of a scale that `auto` leaves as it is
MIN_ROWS = 50  # training rows per verdict from which on `auto` leaves a finer scale as it is


def choose_grid(
    grid: str,
    scale: Asked,
    train: Sequence[JudgeExample],
    max_samples: int = 0,
    others: Sequence[JudgeExample] = (),
) -> tuple[Asked, str]:
    """Return a scale with the grid that its judge speaks, or without one; questions have none.

    Only the number of rows decides, not which are drawn: the seeds of a training agree.

    Args:
        grid: the name of a grid, "auto" or "off".
        scale: the scale of the labels.
        train: the training rows of the dataset.
        max_samples: how many of them are drawn; 0: all.
        others: the other rows of the dataset.

    Returns:
        The scale, and a line that says why; the line is "" where there is nothing to choose.

    Raises:
        UserError: for a grid that does not fit the scale, or the prompts of chat rows.
    """
    if not isinstance(scale, Scale):
        if grid not in (AUTO, OFF):
            raise UserError(f"--grid {grid}: questions have scales of their own: leave it out")
        return scale, ""
    chat = [row for row in (*train, *others) if row.prompt is not None]
    if grid not in (AUTO, OFF):
        try:
            binned = scale.with_grid(grid)
        except UserError as error:
            raise UserError(f"--grid: {error}") from error
        refuse_chat_rows(
            binned, chat, "give rows of fields, as in docs/DATA.md, or leave --grid out"
        )
        return binned, f"grid {grid}: as asked for; {_cost(binned, train)}"
    if grid == OFF or scale.task != "score" or len(scale.values) <= MAX_VERDICTS:
        return scale, ""
    rows, verdicts = min(max_samples or len(train), len(train)), len(scale.values)
    share = f"{rows:,} training rows are {rows / verdicts:.3g} for each of {verdicts} verdicts"
    if chat:
        return scale, f"grid: none, since the prompts of chat rows name the scale {scale.name}"
    if rows >= MIN_ROWS * verdicts:
        return scale, f"grid: none, {share} ({MIN_ROWS} suffice)"
    binned = scale.with_grid(USUAL)
    return binned, f"grid {USUAL}: {share}, under {MIN_ROWS}; {_cost(binned, train)}"


def refuse_chat_rows(scale: Scale, rows: Sequence[JudgeExample], other: str = "") -> None:
    """Raise UserError for the first chat row that a judge of a scale with a grid would read."""
    for row in rows:
        if scale.grid and row.prompt is not None:
            problem = f"it is a chat row, whose prompt names the scale {scale.name} itself"
            remedy = f"give rows of fields, as in docs/DATA.md {other}".rstrip()
            raise UserError(f"{row.where}: --grid {scale.grid.name}: {problem}: {remedy}")


def grid_name(asked: Asked) -> str:
    """Name the grid of a scale as --grid does."""
    return asked.grid.name if isinstance(asked, Scale) and asked.grid else OFF


def _cost(binned: Scale, train: Sequence[JudgeExample]) -> str:
    """Say how far the values that stand for the bins lie from the labels."""
    middle = dict(zip(binned.lines(), binned.line_values, strict=True))
    labels = [row.label.verdict for row in train if row.label is not None]
    errors = [abs(float(middle[binned.line(label)]) - float(label)) for label in labels]
    mean, largest = sum(errors) / max(1, len(errors)), max(errors, default=0.0)
    return f"the middles of the bins differ from the labels by {mean:.3g}, at most {largest:g}"
