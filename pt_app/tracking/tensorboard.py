"""Event files with the curves and numbers of a run, which `tensorboard --logdir` shows."""

import os
import time
from collections.abc import Mapping
from pathlib import Path


class EventFile:
    """An event file in a folder; each resumed run adds one, and TensorBoard joins them.

    It is written in the calling thread. tensorboardX's SummaryWriter passes events to a thread
    through a queue instead, and blocks for good when that thread has died of a full disk.
    """

    def __init__(self, folder: Path, first_step: int | None = None) -> None:
        """Create the file in `folder`, under a name that no other process takes.

        From `first_step` on, TensorBoard drops what earlier files hold: a killed run may have
        logged steps after its last checkpoint, and these are taken again.
        """
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        if first_step is not None:
            self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers of an optimizer step by their tags; raises OSError if the disk is full."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._write(step, summary=Summary(value=values))

    def write_text(self, tag: str, text: str, step: int) -> None:
        """Write a text of an optimizer step; raises OSError if the disk is full."""
        from tensorboardX.summary import text as summary_of

        self._write(step, summary=summary_of(tag, text))

    def _write(self, step: int, **content: object) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
        self._writer.flush()  # so that a killed run loses nothing; a step is logged every ten

    def close(self) -> None:
        """Write what is buffered, and close the file."""
        self._writer.close()


def tag_of(name: str) -> str:
    """Return the tag of a number of the training: eval/loss, train/learning_rate."""
    group, _, rest = name.partition("_")
    return f"eval/{rest}" if group == "eval" else f"train/{name}"
