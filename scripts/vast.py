"""Rent a GPU at Vast.ai for one training, and give it back: docs/VAST.md.

python scripts/vast.py offers -- --epochs 3
python scripts/vast.py launch -- --epochs 3      (shows offer, estimate and cap, then asks)
python scripts/vast.py list | attach | fetch | destroy

What stands behind the -- are the flags of judge_train_cuda.py.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

if not __package__:  # run by path: this folder's modules must not stand on sys.path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from pt_app.core import console
from pt_app.core.errors import UserError, exit_with
from scripts.rented import launching, record, sending, work
from scripts.rented.copying import copy_back
from scripts.rented.host import CutOffError
from scripts.rented.limits import UPLINK, upload_hours
from scripts.rented.market import CONSOLE, Market
from scripts.rented.offers import Filters, Found, Offer, Work, chosen, find_offers, table
from scripts.rented.provision import StillAliveError, destroy, end_instances

# Python and CUDA come from the packages; of the image only the driver's libraries matter.
IMAGE = "nvidia/cuda:12.8.1-base-ubuntu24.04"
SHOWN = 12


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the flags")


def build_parser() -> argparse.ArgumentParser:
    """The command line, without what stands behind the --."""
    parser = _Parser(
        prog="scripts/vast.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser)
    offers = verbs.add_parser("offers", help="machines that can do the run, cheapest run first")
    launch = verbs.add_parser("launch", help="rent, train, copy back, destroy; asks before")
    for one in (offers, launch):
        _search_flags(one)
    _launch_flags(launch)
    helps = {
        "attach": "go on with a launch that was left",
        "fetch": "copy back what is complete now",
        "destroy": "end an instance, and see that it is gone",
    }
    for verb, help in helps.items():
        one = verbs.add_parser(verb, help=help)
        nargs = None if verb == "destroy" else "?"
        one.add_argument("label", nargs=nargs, help="of the launch (the newest)")
        one.add_argument("--output_dir", default="adapters_eval", metavar="DIR")
    one = verbs.add_parser("list", help="what is alive, and which runs it belongs to")
    one.add_argument("--output_dir", default="adapters_eval", metavar="DIR")
    return parser


def _search_flags(parser: argparse.ArgumentParser) -> None:
    usual = Filters()
    add = parser.add_argument
    add(
        "--max_price",
        type=_above_zero,
        default=usual.max_price,
        help="dollars an hour (%(default)s)",
    )
    add("--reliability", type=_share, default=usual.reliability, help="at least (%(default)s)")
    add(
        "--inet_down",
        type=_above_zero,
        default=usual.inet_down,
        help="at least, Mb/s (%(default)s)",
    )
    add("--min_cuda", type=_above_zero, default=usual.min_cuda, help="of the driver (%(default)s)")
    add("--gpu", default="", help="name as Vast has it: RTX_4090")
    add("--hours", type=_above_zero, help="of the run, instead of the estimate")
    add("--gpu_ram", type=_above_zero, help="GiB at least, instead of the estimate")
    add("--disk", type=_whole, help="GB of disk to rent, instead of the estimate")


def _launch_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--offer", type=int, help="id of the offer to take (the cheapest run)")
    add("--max_hours", type=_above_zero, help="end after so many hours (twice the estimate)")
    add("--max_dollars", type=_above_zero, help="end at so many dollars (what those hours cost)")
    add("--yes", action="store_true", help="do not ask")
    add("--resume", metavar="RUN", help="go on with this run's last checkpoint")
    add("--upload_model", action="store_true", help="copy the cached base up: gated models")
    add("--no_eval", action="store_true", help="leave out the evaluation on this CPU afterwards")
    add("--fetch_minutes", type=_above_zero, default=5.0, help="between copies (%(default)s)")
    add("--image", default=IMAGE, help="Docker image (%(default)s)")
    add("--setup", help="shell command in place of the installation of requirements-cuda.txt")
    add("--remote_dir", default="/workspace/judge", help="on the host (%(default)s)")


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return value


def _share(text: str) -> float:
    value = _above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} must be at most 1")
    return value


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb; raises UserError for what a person can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    args, recipe = build_parser().parse_args(words[:cut]), words[cut + 1 :]
    if recipe and args.verb not in ("offers", "launch"):
        raise UserError(f"{args.verb} takes no recipe flags: leave out what stands behind the --")
    console.start()
    verbs = {"offers": _offers, "launch": _launch, "attach": _attach, "fetch": _fetch}
    verbs |= {"destroy": _destroy, "list": _list}
    verbs[args.verb](args, recipe)


def _search(args: argparse.Namespace, recipe: Sequence[str]) -> tuple[Market, Found, Work]:
    work.settings_of(recipe)
    market = Market()
    filters = Filters(args.max_price, args.reliability, args.inet_down, args.gpu, args.min_cuda)
    upload = args.verb == "launch" and args.upload_model
    needed = work.estimated(recipe, args.hours, args.gpu_ram, args.disk, upload)
    return market, find_offers(market, filters, needed), needed


def _offers(args: argparse.Namespace, recipe: Sequence[str]) -> None:
    _, found, needed = _search(args, recipe)
    offers = chosen(found, needed)
    console.show(table(offers[:SHOWN]))
    print(f"{len(offers)} offers, the {min(SHOWN, len(offers))} with the cheapest run are shown")
    print(
        f"the run needs {needed.memory / 2**30:.0f} GiB of GPU memory and {needed.disk_gb} GB of "
        f"disk;\n{found.too_small} offers with less memory were left out"
    )


def _launch(args: argparse.Namespace, recipe: Sequence[str]) -> None:
    settings = work.settings_of(recipe)
    market, found, needed = _search(args, recipe)
    offers = chosen(found, needed, args.offer)
    names = ("image", "setup", "remote_dir", "fetch_minutes", "upload_model", "resume", "no_eval")
    wishes = launching.Wishes(
        **{name: getattr(args, name) for name in (*names, "max_hours", "max_dollars")}
    )
    launch = launching.plan(settings, recipe, wishes, offers[0], needed.disk_gb)
    launching.check_account(market, launch)
    within = [
        offer
        for offer in offers
        if offer.total <= launch.max_dollars and offer.hours <= launch.max_hours
    ]
    _say_plan(launch, within, found.too_small)
    if not args.yes and not _agreed():
        print("nothing was rented")
        return
    _finish(launch, launching.run_on(market, launch, within))


def _say_plan(launch: record.Launch, offers: Sequence[Offer], too_small: int) -> None:
    first = offers[0]
    console.show(table(offers[:3]))
    if too_small:
        print(f"{too_small} offers with too little memory were left out")
    print(
        f"estimate: {first.hours:.2f} h, ${first.total:.2f} for the whole run; "
        f"ends in any case at {launch.max_hours:.2f} h, ${launch.max_dollars:.2f}"
    )
    files = sending.code_files() | sending.data_files(Path(launch.data_dir))
    files |= sending.base_files(launch)
    size = sum(path.stat().st_size for path in files.values())
    print(
        f"goes to the host: code, {launch.data_dir} with its texts"
        f"{', the base' if launch.upload_model else ''}, {size / 1e6:.1f} MB, about "
        f"{upload_hours(size):.2f} h at an assumed {UPLINK:.0f} Mb/s; no key"
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


def _attach(args: argparse.Namespace, _: Sequence[str]) -> None:
    launch = record.the_launch(Path(args.output_dir), args.label)
    _finish(launch, launching.go_on(Market(), launch))


def _fetch(args: argparse.Namespace, _: Sequence[str]) -> None:
    launch = record.the_launch(Path(args.output_dir), args.label)
    host = launching.reach(Market(), launch)
    try:
        copy_back(host, launch)
    except CutOffError as error:
        raise UserError(f"{error}: try again") from None
    print(f"copied back: {launch.local_run or 'nothing yet'}; the instance goes on")


def _destroy(args: argparse.Namespace, _: Sequence[str]) -> None:
    market = Market()
    known = [o for o in record.all_launches(Path(args.output_dir)) if o.label == args.label]
    if known:
        destroy(market, known[0])
        return
    ours = [o for o in market.instances() if args.label in (o.label, str(o.id))]
    if not ours:
        raise UserError(f"neither Vast nor {args.output_dir} knows {args.label}: see list")
    end_instances(
        market,
        lambda one: one.id in [o.id for o in ours],
        lambda why: StillAliveError(f"{args.label}: {why}: it may be alive and billed: {CONSOLE}"),
        known=[one.id for one in ours],
    )
    print(f"{args.label} is gone: Vast no longer lists it")


def _list(args: argparse.Namespace, _: Sequence[str]) -> None:
    launches = {one.label: one for one in record.all_launches(Path(args.output_dir))}
    alive = Market().instances()
    for one in alive:
        launch = launches.pop(one.label, None)
        what = f"{one.label or '(no label)'}: instance {one.id}, {one.status or 'no state yet'}"
        if launch is None:
            print(f"{what}, ${one.dph:.3f}/h, not started from {args.output_dir}")
            continue
        spent = launch.spent(time.time())
        run = f"run {launch.run}" if launch.run else f"{launch.stage}, data {launch.data_dir}"
        print(f"{what}, {one.gpu}, ${launch.hourly:.3f}/h, about ${spent:.2f} so far, {run}")
    for launch in launches.values():
        if launch.stage != "destroyed" and launch.started is not None:
            print(f"{launch.label}: {launch.stage} when last seen; Vast does not list it (now)")
    print(f"{len(alive)} alive")


if __name__ == "__main__":
    exit_with(main)
