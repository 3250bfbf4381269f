"""A launch from its plan to its end, wherever it is cut: nothing paid for stays behind unsaid."""

import logging
import math
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from pt_app.core.dataset import read_dataset
from pt_app.core.errors import UserError
from pt_app.core.settings import Settings, read_tracking
from pt_app.eval_model.dispatch import recipe_command
from pt_app.training.checkpoints import newest_complete
from scripts.rented import limits, provision, sending
from scripts.rented.flags import Rental
from scripts.rented.host import CutOffError, Host
from scripts.rented.market import Market
from scripts.rented.offers import Offer
from scripts.rented.provision import FailedHostError, StillAliveError
from scripts.rented.record import Launch
from scripts.rented.training import Follower, OverError, copy_back

log = logging.getLogger("pt_app.rented")


def plan(settings: Settings, flags: Rental, offer: Offer) -> Launch:
    """Plan the launch of a run on an offer, or one like it; nothing is written or rented yet.

    Raises UserError for data, model or run that cannot be sent, and caps below the estimate.
    """
    read_dataset(Path(settings.data_dir), settings.allow_leaks)
    base = sending.base_to_send(settings.model, flags.upload_model)
    run = Path(flags.resume) if flags.resume else None
    if run is not None and (not run.is_dir() or newest_complete(run)[0] is None):
        raise UserError(f"--resume {run}: no run with a complete checkpoint: leave out --resume")
    hours, dollars = _caps(offer, flags)
    given: dict[str, object] = {
        "label": f"judge-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        "output_dir": settings.output_dir,
        "data_dir": settings.data_dir,
        "flags": sending.host_flags(settings, base, run),
        "upload_model": str(base) if base else None,
        "setup": sending.SETUP.read_text() if flags.setup is None else f"{flags.setup}\n",
        "disk_gb": offer.work.disk_gb,
        "max_hours": hours,
        "max_dollars": dollars,
        "eval_at_home": not (flags.no_eval or settings.skip_eval),
    }
    return Launch.model_validate(vars(flags) | given)


def _caps(offer: Offer, flags: Rental) -> tuple[float, float]:
    """Return the hours and dollars that end the rental: as given, else twice the estimate."""
    hours = flags.max_hours or max(1.0, math.ceil(8 * offer.hours) / 4)
    dollars = flags.max_dollars or math.ceil(100 * offer.cost(hours)) / 100
    if hours < offer.hours or dollars < offer.total:
        raise UserError(
            f"the run is estimated at {offer.hours:.2f} h and ${offer.total:.2f}, above the cap of "
            f"{hours:.2f} h or ${dollars:.2f}: raise --max_hours or --max_dollars, or give --hours"
        )
    return min(hours, (dollars - offer.fixed) / offer.hourly), dollars


def check_account(market: Market, launch: Launch) -> None:
    """Raise UserError where the credit is below the cap, or the account hands out keys."""
    credit = market.credit()
    if credit < launch.max_dollars:
        raise UserError(
            f"${credit:.2f} of credit, and the cap is ${launch.max_dollars:.2f}: add credit at "
            "https://cloud.vast.ai/billing/, or lower --max_dollars"
        )
    if names := market.secret_variables():
        raise UserError(
            f"your Vast account gives every host the variables {', '.join(names)}: "
            "`vastai delete env-var NAME` first; keys do not belong on strangers' machines"
        )


def run_on(market: Market, launch: Launch, offers: Sequence[Offer]) -> Path | None:
    """Rent, train, copy back, destroy; return the adapter's folder.

    Raises:
        StillAliveError: where an instance may be left.
        UserError: where no adapter came of it, with the command that resumes the run.
    """
    launch.folder.mkdir(mode=0o700, parents=True)  # a private key will lie in it
    sending.refuse_keys(launch, provision.create_options(launch, market.url), market.key)
    launch.save()
    return _train(market, launch, partial(provision.rent, market, launch, offers))


def attach(market: Market, launch: Launch) -> Path | None:
    """Resume a launch wherever it was cut; as `run_on`."""
    if launch.stage == "destroyed" or launch.started is None:
        raise UserError(f"{launch.label} is over{_how_to_resume(launch)}")
    if launch.stage in ("creating", "created"):
        return _train(market, launch, partial(provision.ready, market, launch))
    return _to_the_end(market, launch, reach(market, launch))


def _train(market: Market, launch: Launch, get_host: Callable[[], Host]) -> Path | None:
    """Start the training on a new host, and follow it.

    Whatever fails before the training destroys what was rented: there is nothing to lose yet.
    """
    try:
        host = get_host()
        sending.start(host, launch)
    except StillAliveError:
        raise
    except BaseException as error:
        if launch.stage != "destroyed" and launch.started is not None:
            log.warning("the training has not begun: destroying what was rented")
            _destroy(market, launch)
        if isinstance(error, CutOffError | FailedHostError):
            why = f"the host was lost before the training: {error}: try again"
            raise UserError(why) from None
        raise
    return _to_the_end(market, launch, host)


def _destroy(market: Market, launch: Launch) -> None:
    """Destroy the launch's instance; raises StillAliveError also where that is interrupted."""
    try:
        if launch.instance is None:  # cut between a create and its answer
            provision.adopt(market, launch)
        provision.destroy(market, launch)
    except KeyboardInterrupt:
        raise provision.still_alive(launch, "interrupted while destroying") from None


def _to_the_end(market: Market, launch: Launch, host: Host) -> Path | None:
    """Follow the training, copy everything home, end the instance."""
    why = ""
    try:
        Follower(host, market, launch).follow()
        log.info("on the host: %s", launch.exit_code)
        _bring_home(host, launch)
    except OverError as error:
        why = str(error)
        log.warning("%s: ending the rental", why)
        try:
            copy_back(host, launch)
        except (CutOffError, UserError) as problem:
            log.warning("not all could be copied back: %s", problem)
    except BaseException:
        log.warning(
            "instance %s continues without this terminal, at $%.3f/h; at the cap its watchdog asks "
            "Vast to end it, which is not certain: `%s` follows it, `%s` ends it",
            *(launch.instance, launch.hourly, launch.command("attach"), launch.command("destroy")),
        )
        raise
    spent, run_log = launch.spent(time.time()), launch.folder / "run.log"
    _destroy(market, launch)
    log.info("spent about $%.2f; the log is %s", spent, run_log)
    if not why and launch.exit_code != "train 0":
        why = f"the host ended with {launch.exit_code}: see {run_log}"
    if why:
        raise UserError(f"{why}{_how_to_resume(launch)}")
    adapter = Path(launch.output_dir) / f"{launch.run}_final"
    return adapter if adapter.is_dir() else None


def _bring_home(host: Host, launch: Launch) -> None:
    """Copy everything back; raises StillAliveError where it fails, so that nothing is lost."""
    for attempt in range(3):
        time.sleep(limits.LIMITS.poll if attempt else 0)
        try:
            copy_back(host, launch)
            launch.save(stage="copied")
            return
        except (CutOffError, UserError) as error:
            why = str(error)
            log.warning("%s: trying again", error)
    why = f"what the run made is not copied back ({why}); `{launch.command('fetch')}`, then"
    raise provision.still_alive(launch, why)


def _how_to_resume(launch: Launch) -> str:
    """Name the command that resumes from the last checkpoint copied back, if there is one."""
    run = launch.local_run
    checkpoint = newest_complete(run)[0] if run and run.is_dir() else None
    if checkpoint is None:
        return "; no checkpoint was copied back: start again"
    again = ["python", "scripts/vast.py", "launch", "--resume", str(run), "--", *launch.recipe]
    return f"; resume from {checkpoint.name} with `{shlex.join(again)}`"


def reach(market: Market, launch: Launch) -> Host:
    """Reach the host of a launch that was left to train.

    Raises:
        StillAliveError: where SSH does not answer: that may be this machine's network, and on the
            host lies what was not copied yet.
        UserError: where Vast does not list the instance.
    """
    instance = provision.wait_until_listed(market, launch) or provision.find(market, launch)
    if instance is None:
        launch.save(stage="destroyed")  # its number stays: `destroy` may still need it
        raise UserError(f"Vast no longer lists {launch.label}{_how_to_resume(launch)}")
    host = Host(launch.folder, launch.remote_dir)
    if problem := host.connect(instance.addresses):
        log.warning("%s", problem)
        status = instance.status or "not ready"
        raise provision.still_alive(launch, f"it is {status} and SSH does not answer")
    return host


def evaluate_at_home(launch: Launch, adapter: Path) -> None:
    """Resume the run on this machine: since it is trained, it is evaluated, on the CPU.

    The adapter thus gets calibration, results and a card as after any training.
    Raises UserError where that fails.
    """
    mode, _ = read_tracking(sending.settings_of(launch.recipe).tracking)
    tracking = "off" if mode == "off" else "offline"
    words = ["--data_dir", launch.data_dir, "--output_dir", launch.output_dir]
    words += ["--resume", str(launch.local_run), "--tracking", tracking]
    command = recipe_command("cuda", [*launch.recipe, *words])  # the last of a flag counts
    print(f"$ {shlex.join(command)}", flush=True)
    if subprocess.run([sys.executable, *command[1:]]).returncode:
        raise UserError(
            f"the adapter is {adapter}; its evaluation here failed: `{shlex.join(command)}`"
        )
