"""Track a run in W&B and Weave: online, offline or off. Never slows, hangs or fails the run."""

import contextlib
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.tracking.access import Access, describe, reachable, resolve_access
from pt_app.tracking.sync import note, read_state, send
from pt_app.tracking.weave_rows import write_rows

INIT_SECONDS = 15.0  # wandb's own default of 90 s would hold up the run
FINISH_SECONDS = 120.0  # an adapter of 70 MB at 5 Mbit/s; what is left goes with `judge sync`
GONE_SECONDS = 5.0  # for W&B to write its file when there is nobody to send it to
WEAVE_SECONDS = 60.0
# Files of an adapter folder that quote rows: they stay here without --log_texts.
FILES_WITH_TEXTS = ("predictions.jsonl", "report.html", "report.md")

Charts = Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]]
"""Draws the content of results.json: names and SVG texts."""


class Tracker:
    """Tracks one run; use it in a `with`. A failure costs one line, never the run."""

    def __init__(
        self,
        mode: str,
        project: str,
        run_name: str,
        run_dir: Path,
        settings: Mapping[str, Any],
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
        self._run: Any = None
        self._run_folder = ""
        self._warned: set[str] = set()
        self.access = _access(mode)
        self._settings = clean_settings(settings, self.access.key)
        if self.access.mode != "off":
            self._begin()
        if console.is_main_process():
            say(self._opening_line())

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers of one optimizer step; returns at once."""
        if self._run is not None:
            with self._harmless("W&B stops here"):
                self._run.log(dict(metrics), step=step)

    def finish(
        self,
        results: Mapping[str, Any] | None = None,
        predictions: Path | None = None,
        adapter: Path | None = None,
        charts: Charts | None = None,
    ) -> None:
        """Log what a finished run has made.

        It takes 2 min for W&B and 1 min for Weave at most, then leaves the rest to `judge sync`.

        Args:
            results: the content of results.json.
            predictions: the file predictions.jsonl.
            adapter: the adapter's folder.
            charts: draws the charts of the results, where they are wanted.
        """
        if self.access.mode == "off":
            return
        summary = summarize(results or {})
        if predictions is not None and not predictions.exists():
            predictions = None  # there was no evaluation
        rows = self._write_rows(results or {}, summary, predictions) if predictions else ""
        online = self.access.mode == "online"
        lost = online and not reachable(self.access.base_url)
        if self._run is not None:
            if results and predictions and not lost:
                with self._harmless("W&B lacks the results"):
                    from pt_app.tracking.media import media

                    logged = media(results, predictions, charts(results) if charts else ())
                    within(FINISH_SECONDS, lambda: self._run.log(logged))
            self._finish_wandb(summary, adapter, lost)
        if rows and online:
            problem = "the server is gone" if lost else ""
            with self._harmless("Weave's rows are not sent"):
                problem = problem or send(self._run_dir, "weave", rows, self.access, WEAVE_SECONDS)
            if problem:
                self._say_unsent(f"Weave's rows are not sent ({problem})")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        code: object = 1 if error else 0
        if isinstance(error, SystemExit):
            code = error.code
        elif isinstance(error, KeyboardInterrupt | UserError):
            code = 130 if isinstance(error, KeyboardInterrupt) else 2
        self._close(code)

    def _begin(self) -> None:
        """Start a W&B run; where the server does not take it, an offline one."""
        try:
            self._init_wandb(self.access.mode)
            return
        except Exception as error:
            reason = f"W&B does not start ({describe(error)})"
        self._tear_down()
        if self.access.mode == "online":
            self.access = Access("offline", reason, self.access.base_url)
            with self._harmless("W&B is left out"):
                self._init_wandb("offline")
        else:
            self._say(f"tracking: {reason}")

    def _init_wandb(self, mode: str) -> None:
        import wandb

        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode="online" if mode == "online" else "offline",
            entity=self._entity or None,
            project=self._project,
            name=self._run_name,
            group=self._run_name,  # a resumed run is a second W&B run of the same group
            dir=str(self._run_dir),
            config=self._settings,
            settings=wandb_settings(),
        )
        self._run_folder = f"wandb/{Path(self._run.dir).parent.name}"
        note(self._run_dir, "wandb", self._run_folder, sent=False)

    def _finish_wandb(
        self, summary: Mapping[str, Mapping[str, Any]], adapter: Path | None, lost: bool
    ) -> None:
        """Log metrics and adapter, and end the run.

        With the server `lost`, the adapter goes into a second, offline run of the group, since an
        online run would first ask the server about it.
        """

        def log_adapter() -> None:
            if adapter is not None:
                artifact = adapter_artifact(self._run_name, adapter, texts=self._log_texts)
                self._run.log_artifact(artifact)

        def log_results() -> None:
            for model, metrics in summary.items():
                self._run.summary.update({f"{model}/{name}": v for name, v in metrics.items()})
            if not lost:
                log_adapter()

        with self._harmless("W&B lacks the results"):
            within(FINISH_SECONDS, log_results)
        self._close(0, GONE_SECONDS if lost else FINISH_SECONDS)
        if lost and adapter is not None:
            with self._harmless("W&B lacks the adapter"):
                self._init_wandb("offline")
                log_adapter()
            self._close(0)

    def _write_rows(
        self, results: Mapping[str, Any], summary: Mapping[str, Any], predictions: Path
    ) -> str:
        """Write the rows of Weave's evaluation; return the file's name, "" if that failed."""
        header = {
            "entity": self._entity or getattr(self._run, "entity", "") or "",
            "project": self._project,
            "evaluation": self._run_name,
            "dataset": Path(str(results.get("data", {}).get("path", "test"))).name,
            "settings": self._settings,
            "summary": summary,
        }
        with self._harmless("Weave's rows are not written"):
            written = read_state(self._run_dir)["weave"]  # before this run was resumed
            names = ("weave_rows.jsonl", *(f"weave_rows-{n}.jsonl" for n in range(2, 1000)))
            name = next(name for name in names if name not in written)
            write_rows(self._run_dir / name, header, predictions, self._log_texts)
            note(self._run_dir, "weave", name, sent=False)
            return name
        return ""

    def _close(self, exit_code: object, seconds: float = FINISH_SECONDS) -> None:
        """End the W&B run and its service process, whatever became of the run."""
        if self._run is None:
            return
        run, self._run = self._run, None
        online = not run.settings._offline
        try:
            code = exit_code if isinstance(exit_code, int) else 1
            within(seconds, lambda: run.finish(exit_code=code))
            if online:
                note(self._run_dir, "wandb", self._run_folder, sent=True)
        except Exception as error:
            self._say_unsent(f"W&B has not taken everything ({describe(error)})")
        self._tear_down()

    def _tear_down(self) -> None:
        """End W&B's service process; that it was killed before is no news."""
        import wandb

        with contextlib.suppress(Exception):
            within(GONE_SECONDS, wandb.teardown)

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


def _access(mode: str) -> Access:
    """Resolve --tracking; whatever else W&B raises meanwhile is a reason for `off`."""
    if not console.is_main_process():
        return Access("off", "rank 0 tracks")
    try:
        return resolve_access(mode)
    except UserError:
        raise
    except Exception as error:
        return Access("off", f"W&B does not start ({describe(error)})")


def within(seconds: float, work: Callable[[], Any]) -> None:
    """Do `work` with W&B; kill W&B's service process if that is not done after `seconds`.

    Raises:
        TimeoutError: after `seconds`; before that, whatever `work` raises.
    """
    import wandb

    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    connection = getattr(wandb.sdk.wandb_setup.singleton(), "_connection", None)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        service = getattr(getattr(connection, "_proc", None), "_process", None)
        if service is not None:
            service.kill()
            service.wait()
        thread.join(GONE_SECONDS)
        raise TimeoutError(f"not done after {seconds:.0f} s")
    if failures:
        raise failures[0]


def adapter_artifact(run_name: str, adapter: Path, texts: bool) -> Any:
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


def wandb_settings() -> Any:
    """Set W&B up without what would leak (code, git, paths, packages, host) and without waits."""
    import wandb

    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        init_timeout=INIT_SECONDS,
        program=Path(sys.argv[0]).name,
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=1.0,  # a killed service loses no more than that
    )


def clean_settings(settings: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
    """Give settings as they may leave: no secrets, of absolute paths only the last part."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return clean_settings(value, key)
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        if isinstance(value, str | Path):
            text = str(value).replace(key, "***") if key else str(value)
            return Path(text).name if Path(text).is_absolute() else text
        return value if isinstance(value, int | float | None) else str(value)

    secret = re.compile(r"(?i)(api_?key|password|secret|(^|_)token)$")
    return {str(k): clean(v) for k, v in settings.items() if not secret.search(str(k))}


def summarize(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give the numbers of each model: metrics with interval and n, and the parse failures."""
    summary: dict[str, dict[str, Any]] = {}
    for model in results.get("models", []):
        numbers = summary.setdefault(str(model["name"]), {})
        for name, metric in model.get("metrics", {}).items():
            numbers[name] = metric.get("value")
            numbers |= {f"{name}_{part}": metric.get(part) for part in ("low", "high", "n")}
        numbers |= {k: model[k] for k in ("parse_failures", "verdict_mass") if k in model}
    return summary
