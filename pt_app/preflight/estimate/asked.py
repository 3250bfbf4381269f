"""What `judge estimate` was asked, checked before torch is imported."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pt_app.core.dataset import find_folder
from pt_app.core.errors import UserError
from pt_app.core.settings import PLATFORMS, Recipe, Where, check_flags, recipe_of


@dataclass(frozen=True)
class Asked:
    """The flags of `judge estimate` that no recipe has."""

    platform: str = "auto"
    recipe: str = ""
    gpu_memory: float | None = None
    price: float | None = None
    timing: bool = True
    json: bool = False

    @property
    def named(self) -> Recipe | None:
        """The recipe that was asked for; None: this machine's."""
        where = self.recipe or self.platform
        return None if where == "auto" else recipe_of(cast(Where, where))

    def check(self, argv: Sequence[str]) -> None:
        """Raise UserError for a value that cannot be, and for what no recipe takes of `argv`."""
        names = ", ".join(PLATFORMS)
        if self.platform not in ("auto", *PLATFORMS):
            raise UserError(f"--platform {self.platform}: must be one of auto, {names}")
        if self.recipe not in ("", *PLATFORMS):
            raise UserError(f"--recipe {self.recipe}: must be one of {names}")
        for flag, value in (("--gpu_memory", self.gpu_memory), ("--price", self.price)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{flag} {value:g}: must be a number above 0")
        if self.gpu_memory is not None and self.platform not in ("mps", "cuda"):
            raise UserError("--gpu_memory plans for a GPU: say which with --platform cuda or mps")
        find_folder(check_flags(argv, "judge estimate", self.named).data_dir)
