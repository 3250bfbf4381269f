"""Which offers can do the work, and what each would cost for all of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pt_app.core.errors import UserError
from scripts.rented.limits import upload_hours
from scripts.rented.market import Market

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]

# Of the offer's total_flops, which Vast gives for 32 bits. Pretraining of large models reaches 38
# to 43 % of the 16-bit peak (Llama 3, table 4); QLoRA on short rows reaches less, of a peak that
# is twice as high or more. Not measured on a rented GPU: --hours overrides it.
UTILISATION = 0.25
SETUP_HOURS = 0.25
"""Image, packages, a first look at the data; downloads are counted by the offer's bandwidth."""
PACKAGES_GB = 6.0
"""requirements-cuda.txt with torch's CUDA libraries."""
UP_GB = 2.0
"""An allowance for checkpoints and the adapter, copied back."""


@dataclass(frozen=True)
class Work:
    """What a run asks of a machine."""

    flops: float
    memory: float
    """Bytes of GPU memory."""
    disk_gb: int
    down_gb: float
    up_gb: float = 0.0
    """Of down_gb, what this machine sends."""
    hours: float | None = None
    """Given by the person in place of the estimate."""


@dataclass(frozen=True)
class Filters:
    """What an offer must have, beside memory for the work."""

    max_price: float = 2.0
    reliability: float = 0.98
    inet_down: float = 200.0
    gpu: str = ""
    min_cuda: float = 13.0

    def query(self, disk_gb: int) -> dict[str, Any]:
        """In the words of Vast's search.

        torch 2.13's wheels bring CUDA 13.0, which asks for such a driver and for compute
        capability 7.5 or more.
        """
        query: dict[str, Any] = {
            "num_gpus": {"eq": 1},
            "dph_total": {"lte": self.max_price},
            "reliability": {"gte": self.reliability},
            "inet_down": {"gte": self.inet_down},
            "cuda_max_good": {"gte": self.min_cuda},
            "compute_cap": {"gte": 750},
            "direct_port_count": {"gte": 1},
            "disk_space": {"gte": disk_gb},
        }
        if self.gpu:
            query["gpu_name"] = {"eq": self.gpu.replace("_", " ")}
        return query


@dataclass(frozen=True)
class Offer:
    """A machine for rent, with what the whole run would take and cost on it."""

    id: int
    machine: int
    gpu: str
    memory: float
    dph: float
    reliability: float
    inet_down: float
    fixed: float
    """Dollars that do not depend on the hours: traffic."""
    storage: float
    """Dollars an hour for the disk."""
    hours: float

    @classmethod
    def of(cls, row: Row, work: Work) -> "Offer":
        """Read a row of the search; memory comes in MiB, traffic is priced by the GB."""
        traffic = work.down_gb * _number(row, "inet_down_cost")
        traffic += UP_GB * _number(row, "inet_up_cost")
        return cls(
            id=int(row["id"]),
            machine=int(row["machine_id"]),
            gpu=str(row.get("gpu_name") or "?"),
            memory=_number(row, "gpu_ram") * 2**20,
            dph=_number(row, "dph_total"),
            reliability=_number(row, "reliability") or _number(row, "reliability2"),
            inet_down=_number(row, "inet_down"),
            fixed=traffic,
            storage=_number(row, "storage_cost") * work.disk_gb / 730,
            hours=hours_on(row, work),
        )

    @property
    def hourly(self) -> float:
        """Dollars an hour. Vast's dph_total holds some storage already: this is the upper end."""
        return self.dph + self.storage

    @property
    def total(self) -> float:
        """Dollars for the whole run."""
        return self.cost(self.hours)

    def cost(self, hours: float) -> float:
        """dph_total*h + storage_cost*GB/730*h + GB down*inet_down_cost + GB up*inet_up_cost."""
        return self.hourly * hours + self.fixed


def _number(row: Row, name: str) -> float:
    return float(row.get(name) or 0.0)


def hours_on(row: Row, work: Work) -> float:
    """Hours of the run on an offer: the work at UTILISATION, downloads, upload, the set-up."""
    if work.hours is not None:
        return work.hours
    speed = _number(row, "total_flops") * 1e12 * UTILISATION
    if not speed:
        return math.inf
    download = (work.down_gb - work.up_gb) * 8e3 / max(_number(row, "inet_down"), 1.0) / 3600
    upload = upload_hours(work.up_gb * 1e9)
    return work.flops / speed / 3600 + download + upload + SETUP_HOURS


@dataclass(frozen=True)
class Found:
    """Offers that will do, cheapest run first; and how many had too little memory."""

    offers: list[Offer]
    too_small: int


def find_offers(market: Market, filters: Filters, work: Work) -> Found:
    """Search, price and sort.

    Asked twice, by price and by work for the money, since Vast gives 64 offers at most and
    either order alone can hide the cheapest run.
    """
    query = filters.query(work.disk_gb)
    rows = {
        int(row["id"]): row
        for order in ("dph_total asc", "flops_per_dphtotal desc")
        for row in market.offers(query, order, work.disk_gb)
    }
    offers = [Offer.of(row, work) for row in rows.values()]
    enough = [offer for offer in offers if offer.memory >= work.memory]
    enough = [offer for offer in enough if math.isfinite(offer.total)]
    enough.sort(key=lambda offer: (offer.total, offer.id))
    small = sum(offer.memory < work.memory for offer in offers)
    return Found(enough, small)


def chosen(found: Found, work: Work, offer: int | None = None) -> list[Offer]:
    """The offers to try, in order: the one that is asked for, or all.

    Raises UserError where there is none.
    """
    if offer is not None:
        one = [o for o in found.offers if o.id == offer]
        if not one:
            raise UserError(f"offer {offer} is not among those found: scripts/vast.py offers")
        return one
    if not found.offers:
        small = ""
        if found.too_small:
            small = f"{found.too_small} had less than the {work.memory / 2**30:.0f} GiB needed; "
        raise UserError(
            f"no offer will do: {small}widen --max_price, --reliability, --inet_down or --min_cuda"
        )
    return found.offers


def table(offers: Sequence[Offer]) -> "Table":
    """Offers on 80 columns."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    made.add_column("offer", no_wrap=True)
    made.add_column("GPU", no_wrap=True, max_width=18)
    for name in ("GiB", "$/h", "hours", "total $", "reliable", "Mb/s down"):
        made.add_column(name, justify="right", no_wrap=True)
    for offer in offers:
        made.add_row(
            str(offer.id),
            offer.gpu,
            f"{offer.memory / 2**30:.0f}",
            f"{offer.hourly:.3f}",
            f"{offer.hours:.2f}",
            f"{offer.total:.2f}",
            f"{offer.reliability:.3f}",
            f"{offer.inet_down:.0f}",
        )
    return made
