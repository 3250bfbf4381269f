"""From an offer to a host that answers, and back to nothing: the states, their limits, the end.

After SkyPilot's provisioner for Vast: a deadline, states that never become running, a new offer
only once the old instance is seen to be gone. Its one hard rule is kept: only reads are repeated,
a create never.
"""

import logging
import shlex
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pt_app.core.errors import UserError
from scripts.rented import limits
from scripts.rented import market as vast
from scripts.rented.host import Host, make_key
from scripts.rented.market import CONSOLE, Instance, Market
from scripts.rented.offers import Offer
from scripts.rented.record import Launch

WATCHDOG = Path(__file__).with_name("watchdog.sh")
ONSTART = Path(__file__).with_name("onstart.sh")
MAX_HOSTS = 3
MAX_REFUSALS = 10
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
    """Return what is sent to create the instance. No variable of this machine is among it."""
    onstart = ONSTART.read_text(encoding="utf-8").format(
        watchdog=WATCHDOG.read_text(encoding="utf-8").rstrip(),
        seconds=round(launch.max_hours * 3600),
        url=url,
        folder=shlex.quote(launch.remote_dir),
        public_key=make_key(launch.folder),
    )
    options: dict[str, object] = {"image": launch.image, "disk": launch.disk_gb}
    options |= {"label": launch.label, "env": {}, "onstart_cmd": onstart}
    return options | {"ssh": True, "direct": True, "cancel_unavail": True}


def rent(market: Market, launch: Launch, offers: Sequence[Offer]) -> Host:
    """Create an instance from the first offer that becomes a host which answers.

    Raises:
        StillAliveError: where an instance may be left.
        UserError: where none of the first few offers becomes a host.
    """
    reasons: list[str] = []
    failed: set[int] = set()  # machines
    cap = launch.max_hours
    for offer in offers:
        if offer.machine_id in failed:
            continue
        if len(failed) == MAX_HOSTS or len(reasons) == MAX_REFUSALS:
            break
        left = launch.max_dollars - launch.spent_before
        hours = min(cap, (left - offer.fixed) / offer.hourly)
        if hours < offer.hours:
            reasons.append(f"offer {offer.id} cannot end within the ${left:.2f} left of the cap")
            continue
        launch.save(stage="creating", hourly=offer.hourly, fixed=offer.fixed, max_hours=hours)
        try:
            _create(market, launch, offer)
            return ready(market, launch)
        except vast.OfferGoneError as error:
            reasons.append(f"offer {offer.id} is gone ({error})")
            log.warning("%s: nothing was rented", reasons[-1])
        except FailedHostError as error:
            reasons.append(f"offer {offer.id}: {error}")
            log.warning("%s: destroying it", reasons[-1])
            failed.add(offer.machine_id)
            destroy(market, launch)  # raises where it is not seen to be gone
    launch.save(stage="destroyed")
    raise UserError(
        f"no machine became ready, and nothing is rented: {'; '.join(reasons)}: try again, or "
        "choose another with --offer"
    )


def _create(market: Market, launch: Launch, offer: Offer) -> None:
    log.info("renting offer %d: %s, $%.3f/h", offer.id, offer.gpu_name, offer.hourly)
    options = create_options(launch, market.url)
    launch.save(started=time.time())
    try:
        launch.save(stage="created", instance=market.create(offer.id, **options))
    except vast.AnswerLostError as error:
        log.warning("no answer to the create (%s): looking for %s", error, launch.label)
    except (vast.OfferGoneError, UserError):  # Vast refused
        launch.save(started=None)
        raise


def adopt(market: Market, launch: Launch) -> None:
    """Find the launch's instance by its label; raises StillAliveError where none is listed."""
    instance = wait_until_listed(market, launch)
    if instance is None:
        raise still_alive(launch, "whether a create succeeded is not known")
    log.info("instance %d is ours by its label", instance.id)
    launch.save(stage="created", instance=instance.id)


def wait_until_listed(market: Market, launch: Launch) -> Instance | None:
    """Look for the launch's instance for LIMITS.listed: a list may leave out what is alive."""
    end = time.monotonic() + limits.LIMITS.listed
    while (instance := _listed(market, launch)) is None and time.monotonic() < end:
        time.sleep(limits.LIMITS.poll)
    return instance


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
    if launch.instance is None:  # the create was not answered
        adopt(market, launch)
    assert launch.instance is not None
    host = Host(launch.folder, launch.remote_dir)
    before, since = "?", time.monotonic()
    while True:
        instance = _listed(market, launch)
        status, message = (instance.status, instance.message) if instance else ("", "")
        if status != before:
            before, since = status, time.monotonic()
            log.info("instance %s: %s", launch.instance, status or "no state yet")
            with suppress(UserError):  # the onstart script lets the key in too; either is enough
                market.attach_key(launch.instance, make_key(launch.folder))
        if status in vast.ALIVE_NEVER:
            raise FailedHostError(f"it is {status} ({message})")
        if instance and status == "running" and host.connect(instance.addresses) is None:
            return host
        limit = limits.LIMITS.states.get(status, limits.LIMITS.states[""])
        if time.monotonic() - since >= limit:
            lasted = "SSH does not answer" if status == "running" else f"state {status or 'none'}"
            raise FailedHostError(f"{lasted} after {limit:.0f} s ({message})")
        time.sleep(limits.LIMITS.poll)


def destroy(market: Market, launch: Launch) -> None:
    """Destroy the launch's instance and see that it is gone; raises StillAliveError if not."""
    ids = () if launch.instance is None else (launch.instance,)
    patience = limits.LIMITS.listed if not ids and launch.started is not None else 0.0
    if problem := end_instances(market, launch.label, ids, patience):
        raise still_alive(launch, problem)
    # The host's SSH key: the next instance may get the same address.
    (launch.folder / "known_hosts").unlink(missing_ok=True)
    log.info("%s is gone: Vast no longer lists it", launch.label)
    spent = launch.spent(time.time())
    launch.save(stage="destroyed", instance=None, started=None, spent_before=spent)


def end_instances(
    market: Market, label: str, ids: Iterable[int], patience: float = 0.0
) -> str | None:
    """Destroy the instances of `label` or `ids`, until Vast lists none of them.

    A list may leave out what is new: `ids` are destroyed whatever it says, and where nothing was
    destroyed an empty list counts only after `patience` seconds.

    Returns:
        None once all are gone; after LIMITS.listed seconds more, why that is not seen.
    """
    start, pause = time.monotonic(), min(limits.LIMITS.poll, 5.0)
    ours, asked, why = set(ids), False, "it is still listed"
    alive = set(ours)
    while True:
        waited = time.monotonic() - start  # taken before the list, which then has the last word
        try:
            for instance in sorted(alive):
                market.destroy(instance)
            if alive:
                asked = True
                time.sleep(pause)
            alive = {i.id for i in market.instances() if i.id in ours or i.label == label}
            if not alive and (asked or waited >= patience):
                return None
        except UserError as error:
            why = str(error)
        if waited >= patience + limits.LIMITS.listed:
            return f"not seen to be destroyed ({why})"
        time.sleep(pause)
