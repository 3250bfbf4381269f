"""Track a run in W&B, Weave and TensorBoard. Never slows, hangs or fails the run.

The W&B run is an offline one in any case: a file in the run's folder, which no server can hold up.
Online, a child process sends the file while it grows, and is killed at a deadline.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pt_app.core import console
from pt_app.core.files import read_json
from pt_app.core.records import checked
from pt_app.core.results import Results
from pt_app.core.settings import SERVERS, read_tracking
from pt_app.tracking.access import describe, reachable, resolve_access
from pt_app.tracking.sync import WANDB_SETTINGS, Child, Kind, note, read_state, send
from pt_app.tracking.tensorboard import EventFile, tag_of
from pt_app.tracking.weave_rows import Json, write_rows

if TYPE_CHECKING:
    import wandb

# W&B: for an adapter of 70 MB at 5 Mbit/s. What is left goes with `judge sync`.
SEND_SECONDS: dict[Kind, float] = {"wandb": 120.0, "weave": 60.0}
GONE_SECONDS = 5.0  # for a child to give up when there is nobody to send to
TITLES = {"wandb": "W&B", "weave": "Weave"}
# Files of an adapter folder that quote rows: they stay here without --log_texts.
FILES_WITH_TEXTS = ("predictions.jsonl", "report.html", "report.md")

Charts = Callable[[Results], Iterable[tuple[str, str]]]
"""Draws the content of results.json: names and SVG texts."""


class Tracked(Protocol):
    """What tracking asks of the settings of a run, which are a dataclass."""

    @property
    def tracking(self) -> str: ...
    @property
    def project_name(self) -> str: ...
    @property
    def log_texts(self) -> bool: ...


class Tracker:
    """Tracks one run; use it in a `with`. A failure costs one line, never the run."""

    def __init__(
        self,
        settings: Tracked,
        run_dir: Path,
        say: Callable[[str], None] = print,
        name: str = "",
    ) -> None:
        """Begin to track a run; say in one line what is done and why, and what leaves the machine.

        On ranks other than 0, and with `off`, it does nothing and imports none of the packages.

        Args:
            settings: the settings of the run, of which no secrets and folders leave the machine.
            run_dir: the folder of the run, for event files and what is not sent.
            say: prints a line.
            name: of the W&B run, its group and the Weave evaluations; by default the folder's.

        Raises:
            UserError: for an unknown value and for `online` without a key; nothing else is raised.
        """
        self._run_dir, self._log_texts, self._say = run_dir, settings.log_texts, say
        self._name = name or run_dir.name
        self._entity, _, self._project = settings.project_name.rpartition("/")
        self._run: wandb.Run | None = None
        self._run_folder = self._rows = ""
        self._sender: Child | None = None
        self._events: EventFile | None = None
        self._step = 0
        self._warned: set[str] = set()
        tracking = settings.tracking if console.is_main_process() else "off"
        _, self._sinks = read_tracking(tracking)
        self.access = resolve_access(tracking)
        self._left_out = self._sinks & SERVERS if self.access.mode == "off" else set()
        self._sinks -= self._left_out
        self._settings = clean_settings(asdict(cast(Any, settings)), self.access.key)
        if "wandb" in self._sinks:
            with self._harmless("W&B is left out"):
                self._begin()
        if console.is_main_process():
            say(f"tracking: {'; '.join(self._destinations())}")

    def _begin(self) -> None:
        import wandb

        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode="offline",
            entity=self._entity or None,
            project=self._project,
            name=self._name,
            group=self._name,  # a resumed run is a second W&B run of the same group
            dir=str(self._run_dir),
            config=self._settings,
            settings=wandb_settings(),
        )
        folder = Path(self._run.dir).parent
        self._run_folder = f"wandb/{folder.name}"
        note(self._run_dir, "wandb", self._run_folder, sent=False)
        if self.access.mode == "online":
            self._sender = Child(["wandb", "beta", "sync", "--live", str(folder)], self.access)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers of one optimizer step; returns at once."""
        self._step = step
        tagged = {tag_of(name): value for name, value in metrics.items() if name != "epoch"}
        self._write_events(tagged, step, step)  # a step may be logged twice, with the same epoch
        if self._run is not None:
            with self._harmless("W&B stops here"):
                self._run.log(dict(metrics), step=step)
        if self._sender is not None and self._sender.has_ended():
            self._send("wandb", self._run_folder)

    def finish(
        self, results: Results | None, predictions: Path, adapter: Path, charts: Charts
    ) -> None:
        """Log what a finished run has made.

        It takes 2 min for W&B and 1 min for Weave at most, then leaves the rest to `judge sync`.

        Args:
            results: what the evaluation measured; None if there was none.
            predictions: the file predictions.jsonl, of an earlier evaluation perhaps.
            adapter: the adapter's folder.
            charts: draws the charts of the results.
        """
        results = results or Results()
        summary = summarize(results)
        numbers = {f"{model}/{name}": v for model in summary for name, v in summary[model].items()}
        self._write_events(numbers, self._step or _steps_of(adapter))
        if "weave" in self._sinks and predictions.exists():
            with self._harmless("Weave's rows are not written"):
                self._write_rows(results, summary, predictions)
        if self._run is not None:
            with self._harmless("W&B lacks the results"):
                if results.models:
                    from pt_app.tracking.media import media

                    self._run.log(media(results, predictions, charts(results)))
                self._run.summary.update(numbers)
                self._run.log_artifact(adapter_artifact(self._name, adapter, self._log_texts))
        self._close(0)
        if self._rows and self.access.mode == "online":
            self._send("weave", self._rows)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._close(1 if error else 0)

    def _write_events(
        self, numbers: Mapping[str, object], step: int, first_step: int | None = None
    ) -> None:
        """Write numbers for TensorBoard; the first ones of a training replace those after them."""
        values = {tag: v for tag, v in numbers.items() if isinstance(v, int | float)}
        if "tensorboard" in self._sinks and values:
            with self._harmless("TensorBoard's file is not complete"):
                self._event_file(first_step).write(values, step)

    def log_text(self, name: str, text: str, step: int) -> None:
        """Write a text for TensorBoard alone: it stays on this machine."""
        if "tensorboard" in self._sinks:
            with self._harmless("TensorBoard's file is not complete"):
                self._event_file(step).write_text(name, text, step)

    def _event_file(self, first_step: int | None) -> EventFile:
        self._events = self._events or EventFile(self._run_dir / "tensorboard", first_step)
        return self._events

    def _write_rows(
        self, results: Results, summary: Mapping[str, Mapping[str, object]], predictions: Path
    ) -> None:
        """Write the rows of Weave's evaluation."""
        header = {
            "entity": self._entity,
            "project": self._project,
            "evaluation": self._name,
            "dataset": Path(results.data.path or "test").name,
            "settings": self._settings,
            "summary": summary,
        }
        written = read_state(self._run_dir)["weave"]  # before this run was resumed
        name = f"weave_rows-{len(written) + 1}.jsonl" if written else "weave_rows.jsonl"
        write_rows(self._run_dir / name, header, predictions, self._log_texts)
        note(self._run_dir, "weave", name, sent=False)
        self._rows = name

    def _close(self, exit_code: int) -> None:
        """End the W&B run and its service process, whatever became of the run."""
        events, self._events = self._events, None
        if events is not None:
            with self._harmless("TensorBoard's file is not complete"):
                events.close()
        if self._run is None:
            return
        import wandb

        run, self._run = self._run, None
        with self._harmless("W&B's run is not complete"):
            run.finish(exit_code=exit_code)
        with contextlib.suppress(Exception):  # that the service was killed before is no news
            wandb.teardown()
        if self._sender is not None:
            self._send("wandb", self._run_folder)

    def _send(self, kind: Kind, name: str) -> None:
        """Send the W&B run or Weave's rows; give up soon if the server is gone."""
        problem, limit = "not sent", SEND_SECONDS[kind]
        lost = {"wandb": "W&B has not taken everything", "weave": "Weave's rows are not sent"}[kind]
        child, self._sender = self._sender, None
        with self._harmless(lost):
            seconds = limit if reachable(self.access.base_url) else GONE_SECONDS
            problem = send(self._run_dir, kind, name, self.access, seconds, child)
        if problem:
            self._say(f"tracking: {lost} ({problem}); send them later: judge sync {self._run_dir}")

    @contextlib.contextmanager
    def _harmless(self, consequence: str) -> Iterator[None]:
        """Let the run go on where something fails within; say so in one line, once."""
        try:
            yield
        except Exception as error:
            if consequence not in self._warned:
                self._say(f"tracking: {consequence} ({describe(error)}); the run goes on")
            self._warned.add(consequence)

    def _destinations(self) -> Iterator[str]:
        """Say what is recorded where, and what leaves the machine."""
        access, servers = self.access, self._sinks & SERVERS
        titles = " and ".join(TITLES[name] for name in sorted(servers))
        if access.mode == "online":
            texts = "and texts of rows" if self._log_texts else "no texts of rows"
            yield (
                f"online ({access.reason}): settings, metrics, the adapter and verdicts, {texts}, "
                f"go to {titles} at {access.base_url}, project {self._project}"
            )
        elif access.mode == "offline":
            yield f"offline ({access.reason}); nothing leaves this machine"
            yield f"send it later: judge sync {self._run_dir}"
        if "tensorboard" in self._sinks:
            yield f"event files for TensorBoard: tensorboard --logdir {self._run_dir}/tensorboard"
        if not self._sinks:
            yield f"off ({access.reason})"
        elif self._left_out:
            titles = " and ".join(TITLES[name] for name in sorted(self._left_out))
            yield f"{titles}: off ({access.reason})"


def _steps_of(adapter: Path) -> int:
    """Return the steps of the training that an adapter comes from; 0 if it does not say."""
    path = adapter / "training_config.json"
    steps = read_json(path).get("steps", 0) if path.exists() else 0
    return checked(int, steps, f"{path}, field steps")


def adapter_artifact(run_name: str, adapter: Path, texts: bool) -> "wandb.Artifact":
    """Make the adapter folder a W&B artifact, read in place: no copy goes into a cache at home.

    Without `texts` it leaves out the files that quote rows.
    """
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", run_name), type="model")
    adapter = adapter.resolve()  # an offline run keeps the path, and is sent from elsewhere
    for file in sorted(adapter.rglob("*")):
        if file.is_file() and (texts or file.name not in FILES_WITH_TEXTS):
            name = file.relative_to(adapter).as_posix()
            artifact.add_file(str(file), name=name, policy="immutable", skip_cache=True)
    return artifact


def wandb_settings() -> "wandb.Settings":
    """Set W&B up without what would leak (code, git, paths, packages, host) and without waits."""
    import wandb

    return wandb.Settings(
        **WANDB_SETTINGS,
        console="off",
        finish_timeout=SEND_SECONDS["wandb"],
        program=Path(sys.argv[0]).name,
        x_transaction_log_flush_interval=1.0,  # a killed service loses no more than that
    )


def clean_settings(settings: Json, key: str | None = None) -> Json:
    """Return settings as they may leave: no secrets, of absolute paths only the last part."""

    def clean(value: object) -> object:
        if isinstance(value, dict):
            return clean_settings(value, key)
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        if isinstance(value, int | float | None):
            return value
        text = str(value).replace(key, "***") if key else str(value)
        return Path(text).name if Path(text).is_absolute() else text

    secret = re.compile(r"(?i)(api_?key|password|secret|(^|_)token)$")
    return {str(k): clean(v) for k, v in settings.items() if not secret.search(str(k))}


def summarize(results: Results) -> dict[str, dict[str, object]]:
    """Return the numbers of each model: metrics with interval and n, and the parse failures."""
    summary: dict[str, dict[str, object]] = {}
    for name, own in results.questions.items():
        if own.agreement is not None:
            parts = own.agreement.model_dump(include={"low", "high", "n"})
            summary[name] = {f"{own.metric}_{part}": value for part, value in parts.items()}
            summary[name][own.metric] = own.agreement.value
    for model in results.models:
        numbers = summary.setdefault(model.name, {})
        for name, metric in model.metrics.items():
            numbers |= {f"{name}_{part}": getattr(metric, part) for part in ("low", "high", "n")}
            numbers[name] = metric.value
        numbers |= model.model_dump(include={"parse_failures", "verdict_mass"}, exclude_unset=True)
    return summary
