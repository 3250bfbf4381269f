"""Signals that reach the workers of a loader, as those to a whole process group do."""

import os
import signal
import time
from typing import Any

import psutil
import pytest
import torch

from pt_app.training.ordering import RowSteps


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_group_spares_a_worker_that_has_only_begun(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_threads = torch.set_num_threads

    def slow(count: int) -> None:  # a worker calls it before it leaves the process group
        time.sleep(1)
        set_threads(count)

    rows: Any = list(range(6))
    monkeypatch.setattr(torch, "set_num_threads", slow)
    steps = RowSteps(rows, range(6), 2, list, workers=1).epoch(0, 0)
    (worker,) = psutil.Process().children()
    time.sleep(0.5)
    assert os.getpgid(worker.pid) == os.getpgrp()
    worker.send_signal(number)
    assert list(steps) == [[0, 1], [2, 3], [4, 5]]
