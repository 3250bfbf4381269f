"""Which offers can do the work, and what each would cost for all of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pt_app.core.errors import UserError
from scripts.rented.flags import Flags
from scripts.rented.limits import upload_hours
from scripts.rented.market import Market

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]

# Of the offer's total_flops, which Vast gives for 32 bits. Pretraining of large models reaches 38
# to 43 % of the 16-bit peak (Llama 3, table 4); QLoRA on short rows reaches less, of a peak that
# is twice as high or more. Not measured on a rented GPU: --hours overrides it.
UTILISATION = 0.25
# Image, packages, a first look at the data; downloads are counted by the offer's bandwidth.
SETUP_HOURS = 0.25
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

    def hours_on(self, row: Row) -> float:
        """Estimate the hours on an offer: work at UTILISATION, downloads, upload, the set-up."""
        if self.hours is not None:
            return self.hours
        speed = _number(row, "total_flops") * 1e12 * UTILISATION
        if not speed:
            return math.inf
        download = (self.down_gb - self.up_gb) * 8e3 / max(_number(row, "inet_down"), 1.0) / 3600
        return self.flops / speed / 3600 + download + upload_hours(self.up_gb * 1e9) + SETUP_HOURS


@dataclass(frozen=True)
class Offer:
    """A machine for rent, with what the whole run would take and cost on it."""

    id: int
    machine: int
    gpu: str
    memory: float
    # Dollars per hour, with the disk. Vast's dph_total holds some storage: an upper bound.
    hourly: float
    fixed: float  # dollars that do not depend on the hours: traffic
    reliability: float
    inet_down: float
    hours: float

    @classmethod
    def of(cls, row: Row, work: Work) -> "Offer":
        """Price a row of the search, whose memory is in MiB, and whose traffic costs by the GB.

        The total is dph_total*h + storage_cost*GB/730*h + GB down*inet_down_cost
        + GB up*inet_up_cost.
        """
        traffic = work.down_gb * _number(row, "inet_down_cost")
        return cls(
            id=int(row["id"]),
            machine=int(row["machine_id"]),
            gpu=str(row.get("gpu_name") or "?"),
            memory=_number(row, "gpu_ram") * 2**20,
            hourly=_number(row, "dph_total") + _number(row, "storage_cost") * work.disk_gb / 730,
            fixed=traffic + UP_GB * _number(row, "inet_up_cost"),
            reliability=_number(row, "reliability") or _number(row, "reliability2"),
            inet_down=_number(row, "inet_down"),
            hours=work.hours_on(row),
        )

    def cost(self, hours: float) -> float:
        """Return the dollars for so many hours."""
        return self.hourly * hours + self.fixed

    @property
    def total(self) -> float:
        """Dollars for the whole run."""
        return self.cost(self.hours)


def _number(row: Row, name: str) -> float:
    return float(row.get(name) or 0.0)


def find_offers(market: Market, flags: Flags, work: Work) -> tuple[list[Offer], int]:
    """Search, price and sort the offers that can do the work.

    Vast is asked twice, by price and by work for the money, since it gives 64 offers at most and
    either order alone can hide the cheapest run.

    Returns:
        The offers to try, cheapest run first (with --offer that one alone), and how many others
        have too little memory.

    Raises:
        UserError: where there is none.
    """
    rows = {
        int(row["id"]): row
        for order in ("dph_total asc", "flops_per_dphtotal desc")
        for row in market.offers(_query(flags, work.disk_gb), order, work.disk_gb)
    }
    offers = [Offer.of(row, work) for row in rows.values()]
    enough = [o for o in offers if o.memory >= work.memory and math.isfinite(o.total)]
    too_small = sum(offer.memory < work.memory for offer in offers)
    if flags.offer is not None:
        enough = [offer for offer in enough if offer.id == flags.offer]
        if not enough:
            raise UserError(f"offer {flags.offer} is not among those found: scripts/vast.py offers")
    if not enough:
        memory = f"{too_small} had less than the {work.memory / 2**30:.0f} GiB needed; "
        raise UserError(
            f"no offer will do: {memory if too_small else ''}widen --max_price, --reliability, "
            "--inet_down or --min_cuda"
        )
    return sorted(enough, key=lambda offer: (offer.total, offer.id)), too_small


def _query(flags: Flags, disk_gb: int) -> dict[str, Any]:
    """Give the filters in the words of Vast's search."""
    query: dict[str, Any] = {
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


def table(offers: Sequence[Offer]) -> "Table":
    """Lay the offers out on 80 columns."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for name in ("offer", "GPU", "GiB", "$/h", "hours", "total $", "reliable", "Mb/s down"):
        texts = name in ("offer", "GPU")
        made.add_column(name, justify="left" if texts else "right", no_wrap=True, max_width=18)
    for o in offers:
        costs = f"{o.hourly:.3f}", f"{o.hours:.2f}", f"{o.total:.2f}"
        machine = f"{o.reliability:.3f}", f"{o.inet_down:.0f}"
        made.add_row(str(o.id), o.gpu, f"{o.memory / 2**30:.0f}", *costs, *machine)
    return made
