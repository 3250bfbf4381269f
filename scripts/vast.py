"""Rent a GPU at Vast.ai for one training, and give it back: docs/VAST.md.

python scripts/vast.py offers -- --epochs 3
python scripts/vast.py launch -- --epochs 3      (shows offer, estimate and cap, then asks)
python scripts/vast.py list | attach | fetch | destroy

The flags after the -- are those of judge_train_cuda.py.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by path: this folder's modules must not stand on sys.path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pt_app.core import console
from pt_app.core.errors import UserError, exit_with
from scripts.rented import launching, record, sending, work
from scripts.rented.copying import copy_back
from scripts.rented.flags import Flags, build_parser
from scripts.rented.host import CutOffError
from scripts.rented.limits import UPLINK, upload_hours
from scripts.rented.market import CONSOLE, Market
from scripts.rented.offers import Offer, find_offers, table
from scripts.rented.provision import StillAliveError, destroy, end_instances

SHOWN = 12


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; raises UserError for what a user can fix."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    flags = build_parser(__doc__).parse_args(words[:cut], Flags(recipe=words[cut + 1 :]))
    if flags.recipe and flags.verb not in ("offers", "launch"):
        raise UserError(f"{flags.verb} takes no recipe flags: leave out the -- and what follows")
    console.start()
    verbs = {"offers": _offers, "launch": _launch, "attach": _attach, "fetch": _fetch}
    verbs |= {"destroy": _destroy, "list": _list}
    verbs[flags.verb](flags)


def _offers(flags: Flags) -> None:
    market = Market()
    needed = work.estimated(flags)
    offers, too_small = find_offers(market, flags, needed)
    console.show(table(offers[:SHOWN]))
    print(f"{len(offers)} offers, the {min(SHOWN, len(offers))} with the cheapest run are shown")
    print(
        f"the run needs {needed.memory / 2**30:.0f} GiB of GPU memory and {needed.disk_gb} GB of "
        f"disk;\n{too_small} offers with less memory were left out"
    )


def _launch(flags: Flags) -> None:
    settings = work.settings_of(flags.recipe)
    market = Market()
    needed = work.estimated(flags)
    offers, too_small = find_offers(market, flags, needed)
    launch = launching.plan(settings, flags, offers[0], needed.disk_gb)
    launching.check_account(market, launch)
    within = [o for o in offers if o.total <= launch.max_dollars and o.hours <= launch.max_hours]
    _show_plan(launch, within, too_small)
    if not flags.yes and not _agreed():
        print("nothing was rented")
        return
    _finish(launch, launching.run_on(market, launch, within))


def _show_plan(launch: record.Launch, offers: Sequence[Offer], too_small: int) -> None:
    first = offers[0]
    console.show(table(offers[:3]))
    if too_small:
        print(f"{too_small} offers with too little memory were left out")
    print(
        f"estimate: {first.hours:.2f} h, ${first.total:.2f} for the whole run; "
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
        return input("rent it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _finish(launch: record.Launch, adapter: Path | None) -> None:
    if adapter is None:
        raise UserError(f"the run ended well, and no adapter came back: {launch.folder}/run.log")
    print(f"adapter: {adapter}")
    run = launch.local_run
    if run is not None and list(run.glob("wandb/offline-run-*")):
        print(f"its curves wait for: judge sync {run}")
    if launch.eval_at_home:
        launching.evaluate_at_home(launch, adapter)


def _attach(flags: Flags) -> None:
    launch = record.the_launch(Path(flags.output_dir), flags.label)
    _finish(launch, launching.attach(Market(), launch))


def _fetch(flags: Flags) -> None:
    launch = record.the_launch(Path(flags.output_dir), flags.label)
    host = launching.reach(Market(), launch)
    try:
        copy_back(host, launch)
    except CutOffError as error:
        raise UserError(f"{error}: try again") from None
    print(f"copied back: {launch.local_run or 'nothing yet'}; the instance keeps training")


def _destroy(flags: Flags) -> None:
    market, label = Market(), flags.label or ""
    for launch in record.all_launches(Path(flags.output_dir)):
        if launch.label == label:
            destroy(market, launch)
            return
    # An empty label, of an unset shell variable, would match every instance without one.
    ids = [i.id for i in market.instances() if label and label in (i.label, str(i.id))]
    if not ids:
        raise UserError(f"neither Vast nor {flags.output_dir} knows {label}: see list")
    if problem := end_instances(market, label, ids):
        raise StillAliveError(f"{label}: {problem}: it may be alive and billed: {CONSOLE}")
    print(f"{label} is gone: Vast no longer lists it")


def _list(flags: Flags) -> None:
    launches = {launch.label: launch for launch in record.all_launches(Path(flags.output_dir))}
    alive = Market().instances()
    for instance in alive:
        launch = launches.pop(instance.label, None)
        status = instance.status or "no state yet"
        what = f"{instance.label or '(no label)'}: instance {instance.id}, {status}"
        if launch is None:
            print(f"{what}, ${instance.hourly:.3f}/h, not started from {flags.output_dir}")
            continue
        spent = launch.spent(time.time())
        run = f"run {launch.run}" if launch.run else f"{launch.stage}, data {launch.data_dir}"
        price = f"${launch.hourly:.3f}/h, about ${spent:.2f} so far"
        print(f"{what}, {instance.gpu}, {price}, {run}")
    for launch in launches.values():
        if launch.stage != "destroyed" and launch.started is not None:
            print(f"{launch.label}: {launch.stage} when last seen; Vast does not list it (now)")
    print(f"{len(alive)} alive")


if __name__ == "__main__":
    exit_with(main)
