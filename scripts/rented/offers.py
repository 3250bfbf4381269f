"""What a run needs, which offers can do it, and what each would cost for all of it."""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pydantic import AliasChoices, AliasPath, BaseModel, Field

from pt_app.core.errors import UserError
from scripts.rented.flags import Rental, Search
from scripts.rented.limits import upload_hours
from scripts.rented.market import Market, Row
from scripts.rented.sending import settings_of

ESTIMATE = [sys.executable, "-m", "pt_app.cli", "estimate"]
# Of the offer's total_flops, which Vast gives for 32 bits. Pretraining of large models reaches 38
# to 43 % of the 16-bit peak (Llama 3, table 4); QLoRA on short rows reaches less, of a peak that
# is twice as high or more. Not measured on a rented GPU: --hours overrides it.
UTILISATION = 0.25
# Image, packages, a first look at the data; downloads are counted by the offer's bandwidth.
SETUP_HOURS = 0.25
DISK_GB = 40  # image, packages and their cache, beside the model and the checkpoints
PACKAGES_GB = 6.0  # requirements-cuda.txt with torch's CUDA libraries
UP_GB = 2.0  # an allowance for checkpoints and the adapter, copied back


@dataclass(frozen=True)
class Work:
    """What a run asks of a machine."""

    flops: float
    memory: float  # bytes of GPU memory
    disk_gb: int
    down_gb: float
    up_gb: float = 0.0  # of down_gb, what this machine sends
    hours: float | None = None  # given by the user in place of the estimate


class Estimate(BaseModel):
    """What `judge estimate --json` says; all 0 where it was not asked."""

    flops: float = 0.0
    memory: float = Field(default=0.0, validation_alias=AliasPath("memory", "total"))
    disk_bytes: float = 0.0
    base_bytes: float = 0.0


class Offer(Row):
    """A machine for rent, with the names that Vast gives its fields, and the work for it."""

    work: Work
    id: int
    machine_id: int
    gpu_name: str = "?"
    gpu_ram: float = 0.0  # MiB
    total_flops: float = 0.0  # TFLOPS
    # Dollars per hour. It holds some storage already, so that `hourly` is an upper bound.
    dph_total: float = 0.0
    storage_cost: float = 0.0  # dollars per GB and month
    inet_down: float = 0.0  # Mb/s
    inet_down_cost: float = 0.0  # dollars per GB
    inet_up_cost: float = 0.0
    reliability: float = Field(0.0, validation_alias=AliasChoices("reliability", "reliability2"))

    @property
    def memory(self) -> float:
        """Bytes of GPU memory."""
        return self.gpu_ram * 2**20

    @property
    def hourly(self) -> float:
        """Dollars per hour, with the disk."""
        return self.dph_total + self.storage_cost * self.work.disk_gb / 730

    @property
    def fixed(self) -> float:
        """Dollars that do not depend on the hours: traffic."""
        return self.work.down_gb * self.inet_down_cost + UP_GB * self.inet_up_cost

    @cached_property
    def hours(self) -> float:
        """Hours of the run: the training at UTILISATION, the downloads, the upload, the set-up."""
        work = self.work
        if work.hours is not None:
            return work.hours
        if not self.total_flops:
            return math.inf
        training = work.flops / (self.total_flops * 1e12 * UTILISATION) / 3600
        download = (work.down_gb - work.up_gb) * 8e3 / max(self.inet_down, 1.0) / 3600
        return training + download + upload_hours(work.up_gb * 1e9) + SETUP_HOURS

    def cost(self, hours: float) -> float:
        """Return the dollars for so many hours."""
        return self.hourly * hours + self.fixed

    @property
    def total(self) -> float:
        """Dollars for the whole run."""
        return self.cost(self.hours)


def estimated(flags: Search) -> Work:
    """Estimate what the run needs; --hours, --gpu_ram and --disk count before the estimate.

    With --hours and --gpu_ram nothing is estimated, and the base's size is that of its files here.
    Raises UserError where the estimate fails, or neither the size of the base nor --disk is known.
    """
    from pt_app.models.bases import TINY, is_local

    model = settings_of(flags.recipe).model
    if flags.hours is None or flags.gpu_ram is None:
        needs = _estimate(flags.recipe)
    else:
        needs = Estimate(base_bytes=_size_here(model, required=flags.disk is None))
    base_gb = needs.base_bytes / 1e9
    of_this_machine = model != TINY and is_local(model)
    copied_up = of_this_machine or (isinstance(flags, Rental) and flags.upload_model)
    return Work(
        flops=needs.flops,
        memory=needs.memory if flags.gpu_ram is None else flags.gpu_ram * 2**30,
        disk_gb=flags.disk or DISK_GB + math.ceil(base_gb + needs.disk_bytes / 1e9),
        down_gb=PACKAGES_GB + base_gb,
        up_gb=base_gb if copied_up else 0.0,
        hours=flags.hours,
    )


def _estimate(argv: Sequence[str]) -> Estimate:
    """Ask `judge estimate`; its messages are shown, since it may fetch a base of several GB."""
    command = [*ESTIMATE, "--platform", "cuda", "--no_timing", "--json", *argv]
    try:
        return Estimate.model_validate_json(subprocess.run(command, stdout=subprocess.PIPE).stdout)
    except ValueError:
        raise UserError(
            "judge estimate failed, see above; or give --hours and --gpu_ram yourself"
        ) from None


def _size_here(model: str, required: bool) -> int:
    """Return the bytes of a base's files on this machine; 0 where it is not here.

    Raises UserError instead if the size is `required`.
    """
    from pt_app.models.bases import from_cache, is_local, resolve_model, wanted_files

    folder = resolve_model(model).path if is_local(model) else from_cache(model)
    if folder is None and required:
        raise UserError(f'the size of model "{model}" is not known here: give --disk too')
    return sum(path.stat().st_size for path in wanted_files(folder)) if folder else 0


def find_offers(market: Market, flags: Search, work: Work) -> tuple[list[Offer], int]:
    """Search, price and sort the offers that can do the work.

    Vast is asked twice, by price and by work for the money, since it gives 64 offers at most and
    either order alone can hide the cheapest run.

    Returns:
        The offers to try, cheapest run first, and how many others have too little memory.

    Raises:
        UserError: where there is none.
    """
    query = _query(flags, work.disk_gb)
    rows = {
        row["id"]: row
        for order in ("dph_total asc", "flops_per_dphtotal desc")
        for row in market.offers(query, order, work.disk_gb)
    }
    offers = [Offer.model_validate(row | {"work": work}) for row in rows.values()]
    enough = [o for o in offers if o.memory >= work.memory and math.isfinite(o.total)]
    too_small = sum(offer.memory < work.memory for offer in offers)
    if not enough:
        memory = f"{too_small} had less than the {work.memory / 2**30:.0f} GiB needed; "
        raise UserError(
            f"no offer will do: {memory if too_small else ''}widen --max_price, --reliability, "
            "--inet_down or --min_cuda"
        )
    return sorted(enough, key=lambda offer: (offer.total, offer.id)), too_small


def _query(flags: Search, disk_gb: int) -> dict[str, dict[str, float | str]]:
    """Return the filters in the words of Vast's search."""
    query: dict[str, dict[str, float | str]] = {
        "num_gpus": {"eq": 1},
        "dph_total": {"lte": flags.max_price},
        "reliability": {"gte": flags.reliability},
        "inet_down": {"gte": flags.inet_down},
        "cuda_max_good": {"gte": flags.min_cuda},
        "compute_cap": {"gte": 750},  # the lowest that torch 2.13's wheels support
        "direct_port_count": {"gte": 1},
        "disk_space": {"gte": disk_gb},
    }
    if flags.gpu:
        query["gpu_name"] = {"eq": flags.gpu.replace("_", " ")}
    return query


def show(offers: Sequence[Offer]) -> None:
    """Print the offers on 80 columns."""
    line = "{:<10} {:<18.18} {:>3} {:>7} {:>6} {:>8} {:>8} {:>9}"
    print(line.format("offer", "GPU", "GiB", "$/h", "hours", "total $", "reliable", "Mb/s down"))
    for o in offers:
        costs = f"{o.hourly:.3f}", f"{o.hours:.2f}", f"{o.total:.2f}"
        machine = f"{o.reliability:.3f}", f"{o.inet_down:.0f}"
        print(line.format(o.id, o.gpu_name, f"{o.memory / 2**30:.0f}", *costs, *machine))
