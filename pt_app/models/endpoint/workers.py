"""Several requests under way at once, until one fails for all."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from tqdm import tqdm

from pt_app.core.errors import UserError
from pt_app.models.endpoint.budget import Budget, MoneySpentError

Item = TypeVar("Item")


async def in_parallel(
    items: Sequence[Item],
    ask: Callable[[Item], Awaitable[None]],
    count: int,
    budget: Budget,
    name: str,
    progress: bool = True,
) -> None:
    """Ask about all items, `count` at a time, with a bar of that name.

    Where one ask raises UserError or MoneySpentError no further one begins; those under way end,
    since they are paid for, and the endpoint's error is raised before the money's.
    """
    left = iter(items)
    bar = tqdm(total=len(items), desc=name, unit=" rows", disable=not progress)
    failed: list[Exception] = []

    async def work() -> None:
        for item in left:
            try:
                await ask(item)
            except (MoneySpentError, UserError) as error:
                failed.append(error)
                budget.close()
                return
            bar.set_postfix_str(f"${budget.spent:.4f}", refresh=False)
            bar.update()

    with bar:
        await asyncio.gather(*(work() for _ in range(count)))
    for error in sorted(failed, key=lambda one: isinstance(one, MoneySpentError)):
        raise error
