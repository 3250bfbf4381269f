"""From an offer to a host that answers, and back to nothing: the states, their limits, the end.

After SkyPilot's provisioner for Vast: a deadline, states that never become running, a new offer
only once the old instance is seen to be gone. Its one hard rule is kept: only reads are repeated,
a create never.
"""

import logging
import shlex
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from pt_app.core.errors import UserError
from scripts.rented import limits
from scripts.rented import market as vast
from scripts.rented.host import Host, make_key
from scripts.rented.market import CONSOLE, Instance, Market
from scripts.rented.offers import Offer
from scripts.rented.record import Launch

WATCHDOG = Path(__file__).with_name("watchdog.sh")
HOSTS_TRIED = 3
REFUSALS = 10
ONSTART = Path(__file__).with_name("onstart.sh")
log = logging.getLogger("pt_app.rented")


class StillAliveError(UserError):
    """An instance may be there, and billed."""


class FailedHostError(Exception):
    """This machine will not become ready: another one may."""


def still_alive(launch: Launch, why: str) -> StillAliveError:
    """Make the error that names the instance, the command that ends it, and the console."""
    which = f"instance {launch.instance}" if launch.instance else f"an instance {launch.label}"
    return StillAliveError(
        f"{why}: {which} may be alive and billed (${launch.hourly:.3f}/h): "
        f"`{launch.command('destroy')}`, or {CONSOLE}"
    )


def create_options(launch: Launch, url: str) -> dict[str, object]:
    """Give what is sent to create the instance. No variable of this machine is among it."""
    onstart = ONSTART.read_text(encoding="utf-8").format(
        watchdog=WATCHDOG.read_text(encoding="utf-8").rstrip(),
        seconds=round(launch.max_hours * 3600),
        url=url,
        folder=shlex.quote(launch.remote_dir),
        public_key=make_key(launch.folder),
    )
    return {
        "image": launch.image,
        "disk": launch.disk_gb,
        "label": launch.label,
        "env": {},
        "ssh": True,
        "direct": True,
        "cancel_unavail": True,
        "onstart_cmd": onstart,
    }


def rent(market: Market, launch: Launch, offers: Sequence[Offer]) -> Host:
    """Create an instance from the first offer that becomes a host which answers.

    Raises:
        StillAliveError: where an instance may be left.
        UserError: where none of the first few offers becomes a host.
    """
    reasons: list[str] = []
    cap = launch.max_hours
    for offer in offers:
        if offer.machine in launch.tried_machines:
            continue
        if len(launch.tried_machines) == HOSTS_TRIED or len(reasons) == REFUSALS:
            break
        left = launch.max_dollars - launch.spent_before
        hours = min(cap, (left - offer.fixed) / offer.hourly)
        if hours < offer.hours:
            reasons.append(f"offer {offer.id} cannot end within the ${left:.2f} left of the cap")
            continue
        launch.save(
            stage="creating", gpu=offer.gpu, hourly=offer.hourly, fixed=offer.fixed, max_hours=hours
        )
        try:
            _create(market, launch, offer)
            return ready(market, launch)
        except vast.OfferGoneError as error:
            reasons.append(f"offer {offer.id} is gone ({error})")
            log.warning("%s: nothing was rented", reasons[-1])
        except FailedHostError as error:
            reasons.append(f"offer {offer.id}: {error}")
            log.warning("%s: destroying it", reasons[-1])
            launch.tried_machines.append(offer.machine)
            destroy(market, launch)  # raises where it is not seen to be gone
    launch.save(stage="destroyed")
    raise UserError(
        f"no machine became ready, and nothing is rented: {'; '.join(reasons)}: try again, or "
        "choose another with --offer"
    )


def _create(market: Market, launch: Launch, offer: Offer) -> None:
    log.info("renting offer %d: %s, $%.3f/h", offer.id, offer.gpu, offer.hourly)
    options = create_options(launch, market.url)
    launch.save(started=time.time())
    try:
        launch.save(stage="created", instance=market.create(offer.id, **options))
    except vast.AnswerLostError as error:
        log.warning("no answer to the create (%s): looking for %s", error, launch.label)
        adopt(market, launch)
    except (vast.OfferGoneError, UserError):  # Vast refused
        launch.save(started=None)
        raise


def adopt(market: Market, launch: Launch) -> None:
    """Find the launch's instance by its label; raises StillAliveError where none is listed."""
    end = time.monotonic() + limits.LIMITS.listed
    while (instance := _listed(market, launch)) is None:
        if time.monotonic() >= end:
            raise still_alive(launch, "whether a create succeeded is not known")
        time.sleep(limits.LIMITS.poll)
    log.info("instance %d is ours by its label", instance.id)
    launch.save(stage="created", instance=instance.id)


def _listed(market: Market, launch: Launch) -> Instance | None:
    """Find the launch's instance; None also where Vast does not answer now."""
    try:
        return find(market, launch)
    except vast.UnreachableError as error:
        log.warning("%s", error)
        return None


def find(market: Market, launch: Launch) -> Instance | None:
    """Find the launch's instance by id or label; None where it is not listed."""
    ours = (i for i in market.instances() if i.id == launch.instance or i.label == launch.label)
    return next(ours, None)


def ready(market: Market, launch: Launch) -> Host:
    """Wait until the instance runs and SSH answers, with a limit for each state.

    Raises FailedHostError for a state that never becomes running, or that lasts too long.
    """
    host = Host(launch.folder, launch.remote_dir)
    assert launch.instance is not None
    attached = False
    before, since = "?", time.monotonic()
    while True:
        instance = _listed(market, launch)
        status = instance.status if instance else ""
        if status != before:
            before, since = status, time.monotonic()
            log.info("instance %d: %s", launch.instance, status or "no state yet")
        if instance:
            if status in vast.ALIVE_NEVER:
                raise FailedHostError(f"it is {status} ({instance.message})")
            attached = attached or _attach_key(market, launch)
            if status == "running" and host.connect(instance.addresses) is None:
                return host
        limit = limits.LIMITS.states.get(status, limits.LIMITS.states[""])
        if time.monotonic() - since >= limit:
            lasted = "SSH does not answer" if status == "running" else f"state {status or 'none'}"
            message = instance.message if instance else ""
            raise FailedHostError(f"{lasted} after {limit:.0f} s ({message})")
        time.sleep(limits.LIMITS.poll)


def _attach_key(market: Market, launch: Launch) -> bool:
    """Have Vast let the launch's key in. The onstart script does so too; either is enough."""
    assert launch.instance is not None
    try:
        market.attach_key(launch.instance, make_key(launch.folder))
    except UserError as error:
        log.warning("the SSH key is not attached yet: %s", error)
        return False
    return True


def destroy(market: Market, launch: Launch) -> None:
    """Destroy the launch's instance and see that it is gone; raises StillAliveError if not."""
    unknown = launch.instance is None and launch.started is not None
    ids: Collection[int] = () if launch.instance is None else (launch.instance,)
    patience = limits.LIMITS.listed if unknown else 0.0
    if problem := end_instances(market, launch.label, ids, patience):
        raise still_alive(launch, problem)
    # The host's SSH key: the next instance may get the same address.
    (launch.folder / "known_hosts").unlink(missing_ok=True)
    log.info("%s is gone: Vast no longer lists it", launch.label)
    spent = launch.spent(time.time())
    launch.save(stage="destroyed", instance=None, started=None, spent_before=spent)


def end_instances(
    market: Market, label: str, ids: Collection[int], patience: float = 0.0
) -> str | None:
    """Destroy the instances of `label` or `ids`, again and again until Vast lists none of them.

    A list may leave out what is new: `ids` are destroyed whatever it says, and where nothing was
    destroyed an empty list counts only after `patience` seconds.

    Returns:
        None once all are gone; after LIMITS.listed seconds more, why that is not seen.
    """
    start = time.monotonic()
    why = "it is still listed"
    asked: set[int] = set()
    while True:
        waited = time.monotonic() - start  # taken before the list, which then has the last word
        late = waited >= patience + limits.LIMITS.listed
        try:
            # Before the list, which may fail for as long as there is time.
            first = set() if late else set(ids) - asked
            for instance in sorted(first):
                market.destroy(instance)
                asked.add(instance)
            listed = {i.id for i in market.instances() if i.id in ids or i.label == label} - first
            if not listed and not first and (asked or waited >= patience):
                return None
            for instance in () if late else sorted(listed):
                market.destroy(instance)
                asked.add(instance)
        except UserError as error:
            why = str(error)
        if late:
            return f"not seen to be destroyed ({why})"
        time.sleep(min(limits.LIMITS.poll, 5.0))
