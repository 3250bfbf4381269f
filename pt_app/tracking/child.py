"""Run a module as the child of a run: `python -m pt_app.tracking.child PARENT MODULE ARGUMENT...`.

The child and what it starts end when the process PARENT has ended, however that died.
"""

import os
import runpy
import signal
import sys
import threading
import time


def watch(parent: int) -> None:
    """Kill this process group once `parent` is gone; the group is the child's own."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=watch, args=(int(sys.argv.pop(1)),), daemon=True).start()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
