"""How long each state may last, in seconds, before it counts as failed."""

from dataclasses import dataclass, field

UPLINK = 10.0  # Mb/s from this machine to a host, assumed: what slower home connections give


def upload_hours(size: float) -> float:
    """Give the hours that `size` bytes take to a host at UPLINK."""
    return size * 8 / (UPLINK * 1e6) / 3600


STATES = {
    "": 300.0,  # Vast says nothing yet
    "created": 300.0,
    "loading": 1500.0,  # the image is pulled
    "rebooting": 600.0,
    "running": 600.0,  # until SSH answers
}


@dataclass
class Limits:
    """SkyPilot gives the whole of provisioning 30 minutes; here each state has its own limit."""

    poll: float = 10.0  # between two looks at an instance, or at the log of a run
    states: dict[str, float] = field(default_factory=STATES.copy)
    away: float = 300.0  # an instance that ran and is unknown or offline now may come back
    unheard: float = 1800.0  # a host that SSH cannot reach, while Vast says that it runs
    # From a create without an answer until its instance must be listed; also for a destroy.
    listed: float = 120.0
    copy: float = 3600.0  # a copy home; a copy to the host gets twice its estimate in addition
    # A copy home that would be larger is refused: checkpoints and adapters are far smaller.
    home_bytes: float = 50e9
    command: float = 60.0
    # Kept before the cap for a last checkpoint, its copy and the destruction.
    last_minutes: float = 300.0


LIMITS = Limits()
