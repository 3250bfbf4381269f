"""Rent a GPU at Vast.ai for one training, and give it back: docs/VAST.md.

python scripts/vast.py offers -- --epochs 3
python scripts/vast.py launch -- --epochs 3      (shows offer, estimate and cap, then asks)
python scripts/vast.py list | attach | fetch | destroy

The flags after the -- are those of judge_train_cuda.py.
"""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run by path: this folder's modules must not stand on sys.path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pt_app.core import console
from pt_app.core.errors import UserError, exit_with
from scripts.rented import launching, offers, record, sending
from scripts.rented.flags import Destroyed, Launched, Listed, Rental, Search, parse
from scripts.rented.host import CutOffError
from scripts.rented.limits import UPLINK, upload_hours
from scripts.rented.market import CONSOLE, Market
from scripts.rented.provision import StillAliveError, destroy, end_instances
from scripts.rented.training import copy_back

SHOWN = 12


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; raises UserError for what a user can fix."""
    verb, flags = parse(sys.argv[1:] if argv is None else argv, __doc__)
    console.start()
    # SIGTERM and a closed terminal count as Ctrl-C, so that what is alive is named.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    verbs: dict[str, Callable[..., None]] = {"offers": _offers, "launch": _launch}
    verbs |= {"attach": _attach, "fetch": _fetch, "destroy": _destroy, "list": _list}
    verbs[verb](flags)


def _offers(flags: Search) -> None:
    market = Market()
    needed = offers.estimated(flags)
    suitable, too_small = offers.find_offers(market, flags, needed)
    offers.show(suitable[:SHOWN])
    print(f"{len(suitable)} offers; the first {SHOWN} are shown at most, cheapest run first")
    memory = f"{needed.memory / 2**30:.0f} GiB of GPU memory"
    print(f"the run needs {memory} and {needed.disk_gb} GB of disk;")
    print(f"{too_small} offers with less memory were left out")


def _launch(flags: Rental) -> None:
    settings = sending.settings_of(flags.recipe)
    market = Market()
    suitable, too_small = offers.find_offers(market, flags, offers.estimated(flags))
    if flags.offer is not None:
        suitable = [offer for offer in suitable if offer.id == flags.offer]
    if not suitable:
        raise UserError(f"offer {flags.offer} is not among those found: scripts/vast.py offers")
    launch = launching.plan(settings, flags, suitable[0])
    launching.check_account(market, launch)
    within = [o for o in suitable if o.total <= launch.max_dollars and o.hours <= launch.max_hours]
    _show_plan(launch, within, too_small)
    if not flags.yes and not _agreed():
        print("nothing was rented")
        return
    _finish(launch, launching.run_on(market, launch, within))


def _show_plan(launch: record.Launch, within: Sequence[offers.Offer], too_small: int) -> None:
    offers.show(within[:3])
    if too_small:
        print(f"{too_small} offers with less memory were left out")
    print(
        f"estimate: {within[0].hours:.2f} h, ${within[0].total:.2f} for the whole run; "
        f"ends in any case at {launch.max_hours:.2f} h, ${launch.max_dollars:.2f}"
    )
    size = sum(path.stat().st_size for path in sending.payload(launch).values())
    base = ", the base" if launch.upload_model else ""
    print(
        f"goes to the host: code, {launch.data_dir} with its texts{base}, {size / 1e6:.1f} MB, "
        f"about {upload_hours(size):.2f} h at an assumed {UPLINK:.0f} Mb/s; no key"
    )


def _agreed() -> bool:
    try:
        answer = input("rent it? [y/N] ")
    except EOFError:
        answer = ""
    return answer.strip().lower() in ("y", "yes")


def _finish(launch: record.Launch, adapter: Path | None) -> None:
    if adapter is None:
        raise UserError(f"the run ended well, and no adapter came back: {launch.folder}/run.log")
    print(f"adapter: {adapter}")
    run = launch.local_run
    if run is not None and list(run.glob("wandb/offline-run-*")):
        print(f"its curves wait for: judge sync {run}")
    if launch.eval_at_home:
        launching.evaluate_at_home(launch, adapter)


def _attach(flags: Launched) -> None:
    launch = record.the_launch(Path(flags.output_dir), flags.label)
    _finish(launch, launching.attach(Market(), launch))


def _fetch(flags: Launched) -> None:
    launch = record.the_launch(Path(flags.output_dir), flags.label)
    host = launching.reach(Market(), launch)
    try:
        copy_back(host, launch)
    except CutOffError as error:
        raise UserError(f"{error}: try again") from None
    print(f"copied back: {launch.local_run or 'nothing yet'}; the instance keeps training")


def _destroy(flags: Destroyed) -> None:
    market, label = Market(), flags.label
    launches = {launch.label: launch for launch in record.all_launches(Path(flags.output_dir))}
    if label in launches:
        destroy(market, launches[label])
        return
    ids = [i.id for i in market.instances() if label in (i.label, str(i.id))]
    if not ids:
        raise UserError(f"neither Vast nor {flags.output_dir} knows {label}: see list")
    if problem := end_instances(market, label, ids):
        raise StillAliveError(f"{label}: {problem}: it may be alive and billed: {CONSOLE}")
    print(f"{label} is gone: Vast no longer lists it")


def _list(flags: Listed) -> None:
    launches = {launch.label: launch for launch in record.all_launches(Path(flags.output_dir))}
    alive = Market().instances()
    for instance in alive:
        launch = launches.pop(instance.label, None)
        about, hourly = f"not started from {flags.output_dir}", instance.dph_total
        if launch is not None:
            run = f"run {launch.run}" if launch.run else f"{launch.stage}, data {launch.data_dir}"
            about, hourly = f"about ${launch.spent(time.time()):.2f} so far, {run}", launch.hourly
        name, status = instance.label or "(no label)", instance.status or "no state yet"
        known = f"{name}: instance {instance.id}, {status}, {instance.gpu_name}"
        print(f"{known}, ${hourly:.3f}/h, {about}")
    for launch in launches.values():
        if launch.stage != "destroyed" and launch.started is not None:
            print(f"{launch.label}: {launch.stage} when last seen; Vast does not list it (now)")
    print(f"{len(alive)} alive")


if __name__ == "__main__":
    exit_with(main)
