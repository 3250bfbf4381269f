"""Track a run in W&B and Weave: online, offline or off. Never slows, hangs or fails the run.

The W&B run is an offline one in any case: a file in the run's folder, which no server can hold up.
Online, a child process sends the file while it grows, and is killed at a deadline.
"""

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pt_app.core import console
from pt_app.core.results import Results
from pt_app.tracking.access import Access, describe, reachable, resolve_access
from pt_app.tracking.sync import Child, note, read_state, send
from pt_app.tracking.weave_rows import Json, write_rows

if TYPE_CHECKING:
    import wandb

FINISH_SECONDS = 120.0  # an adapter of 70 MB at 5 Mbit/s; what is left goes with `judge sync`
GONE_SECONDS = 5.0  # for W&B to give up when there is nobody to send to
WEAVE_SECONDS = 60.0
# W&B's settings for what would leak, and for its own lines.
DISABLED = ["disable_code", "disable_git", "disable_job_creation", "x_disable_machine_info"]
DISABLED += ["x_disable_meta", "x_disable_stats", "silent", "finish_timeout_raises"]
# Files of an adapter folder that quote rows: they stay here without --log_texts.
FILES_WITH_TEXTS = ("predictions.jsonl", "report.html", "report.md")

Charts = Callable[[Results], Iterable[tuple[str, str]]]
"""Draws the content of results.json: names and SVG texts."""


class Tracker:
    """Tracks one run; use it in a `with`. A failure costs one line, never the run."""

    def __init__(
        self,
        mode: str,
        project: str,
        run_name: str,
        run_dir: Path,
        settings: Json,
        log_texts: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        """Begin to track a run; say in one line what is done and why, and what leaves the machine.

        On ranks other than 0, and with `off`, it does nothing and imports neither package.

        Args:
            mode: the value of --tracking.
            project: "project" or "entity/project".
            run_name: name and group of the W&B run, name of the Weave evaluations.
            run_dir: the run's folder, which keeps what is not sent.
            settings: the run's settings; secrets and folders are taken out of them.
            log_texts: whether the texts of rows may leave the machine.
            say: prints a line.

        Raises:
            UserError: for an unknown mode and for `online` without a key; nothing else is raised.
        """
        self._entity, _, self._project = project.rpartition("/")
        self._run_name, self._run_dir = run_name, run_dir
        self._log_texts, self._say = log_texts, say
        self._run: wandb.Run | None = None
        self._run_folder = ""
        self._sender: Child | None = None
        self._warned: set[str] = set()
        main = console.is_main_process()
        self.access = resolve_access(mode) if main else Access("off", "rank 0 tracks")
        self._settings = clean_settings(settings, self.access.key)
        if self.access.mode != "off":
            with self._harmless("W&B is left out"):
                self._begin()
        if main:
            say(self._opening_line())

    def _begin(self) -> None:
        import wandb

        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode="offline",
            entity=self._entity or None,
            project=self._project,
            name=self._run_name,
            group=self._run_name,  # a resumed run is a second W&B run of the same group
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
        if self._run is not None:
            with self._harmless("W&B stops here"):
                self._run.log(dict(metrics), step=step)
        if self._sender is not None and self._sender.has_ended():
            self._await_sender()

    def finish(
        self,
        results: Results | None = None,
        predictions: Path | None = None,
        adapter: Path | None = None,
        charts: Charts | None = None,
    ) -> None:
        """Log what a finished run has made.

        It takes 2 min for W&B and 1 min for Weave at most, then leaves the rest to `judge sync`.

        Args:
            results: what an evaluation measured.
            predictions: the file predictions.jsonl.
            adapter: the adapter's folder.
            charts: draws the charts of the results, where they are wanted.
        """
        if self.access.mode == "off":
            return
        results = results or Results()
        summary = summarize(results)
        if predictions is not None and not predictions.exists():
            predictions = None  # there was no evaluation
        rows = self._write_rows(results, summary, predictions) if predictions else ""
        if self._run is not None:
            with self._harmless("W&B lacks the results"):
                if results.models and predictions:
                    from pt_app.tracking.media import media

                    self._run.log(media(results, predictions, charts(results) if charts else ()))
                for model, metrics in summary.items():
                    self._run.summary.update({f"{model}/{name}": v for name, v in metrics.items()})
                if adapter is not None:
                    artifact = adapter_artifact(self._run_name, adapter, texts=self._log_texts)
                    self._run.log_artifact(artifact)
        self._close(0)
        if rows and self.access.mode == "online":
            problem = "the server is gone"
            with self._harmless("Weave's rows are not sent"):
                if reachable(self.access.base_url):
                    problem = send(self._run_dir, "weave", rows, self.access, WEAVE_SECONDS)
            if problem:
                self._say_unsent(f"Weave's rows are not sent ({problem})")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._close(1 if error else 0)

    def _write_rows(
        self, results: Results, summary: Mapping[str, Mapping[str, object]], predictions: Path
    ) -> str:
        """Write the rows of Weave's evaluation; return the file's name, "" if that failed."""
        header = {
            "entity": self._entity,
            "project": self._project,
            "evaluation": self._run_name,
            "dataset": Path(results.data.path or "test").name,
            "settings": self._settings,
            "summary": summary,
        }
        with self._harmless("Weave's rows are not written"):
            written = read_state(self._run_dir)["weave"]  # before this run was resumed
            name = f"weave_rows-{len(written) + 1}.jsonl" if written else "weave_rows.jsonl"
            write_rows(self._run_dir / name, header, predictions, self._log_texts)
            note(self._run_dir, "weave", name, sent=False)
            return name
        return ""

    def _close(self, exit_code: int) -> None:
        """End the W&B run and its service process, whatever became of the run."""
        if self._run is None:
            return
        import wandb

        run, self._run = self._run, None
        with self._harmless("W&B's run is not complete"):
            run.finish(exit_code=exit_code)
        with contextlib.suppress(Exception):  # that the service was killed before is no news
            wandb.teardown()
        if self._sender is not None:
            self._await_sender()

    def _await_sender(self) -> None:
        """Wait until the run is sent; give up soon if the server is gone."""
        child, self._sender = self._sender, None
        problem = "not sent"
        with self._harmless("W&B has not taken everything"):
            seconds = FINISH_SECONDS if reachable(self.access.base_url) else GONE_SECONDS
            name = self._run_folder
            problem = send(self._run_dir, "wandb", name, self.access, seconds, child)
        if problem:
            self._say_unsent(f"W&B has not taken everything ({problem})")

    @contextlib.contextmanager
    def _harmless(self, consequence: str) -> Iterator[None]:
        """Let the run go on where something fails within; say so in one line, once."""
        try:
            yield
        except Exception as error:
            if consequence not in self._warned:
                self._say(f"tracking: {consequence} ({describe(error)}); the run goes on")
            self._warned.add(consequence)

    def _say_unsent(self, what: str) -> None:
        self._say(f"tracking: {what}; send them later: judge sync {self._run_dir}")

    def _opening_line(self) -> str:
        if self.access.mode == "off":
            return f"tracking: off ({self.access.reason})"
        if self.access.mode == "offline":
            later = f"send it later: judge sync {self._run_dir}"
            return f"tracking: offline ({self.access.reason}); nothing leaves this machine; {later}"
        texts = "and texts of rows" if self._log_texts else "no texts of rows"
        return (
            f"tracking: online ({self.access.reason}): settings, metrics, the adapter and "
            f"verdicts, {texts}, go to W&B and Weave at {self.access.base_url}, "
            f"project {self._project}"
        )


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
        **dict.fromkeys(DISABLED, True),
        **dict.fromkeys(("save_code", "x_save_requirements"), False),
        console="off",
        finish_timeout=FINISH_SECONDS,
        program=Path(sys.argv[0]).name,
        x_transaction_log_flush_interval=1.0,  # a killed service loses no more than that
    )


def clean_settings(settings: Json, key: str | None = None) -> dict[str, object]:
    """Return settings as they may leave: no secrets, of absolute paths only the last part."""

    def clean(value: object) -> object:
        if isinstance(value, Mapping):
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
    for model in results.models:
        numbers = summary.setdefault(model.name, {})
        for name, metric in model.metrics.items():
            numbers[name] = metric.value
            numbers |= {
                f"{name}_low": metric.low,
                f"{name}_high": metric.high,
                f"{name}_n": metric.n,
            }
        numbers |= model.model_dump(include={"parse_failures", "verdict_mass"}, exclude_unset=True)
    return summary
