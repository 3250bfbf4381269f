"""`judge doctor` for the CUDA recipe on the large base: does this machine compute right?"""

import json
import subprocess
import sys
from typing import Any

from benchmarks.gpu.part import ROOT, Part

# What this machine has is not what the requirements name, and what is not used is missing.
EXPECTED = "packages"


def main() -> None:
    """Keep what the doctor finds; fails where a check fails, that of the packages excepted."""
    part = Part.started("doctor")
    argv = ["doctor", "--platform=cuda", "--json", f"--model={part.big}", f"--data_dir={part.rows}"]
    command = [sys.executable, "-m", "pt_app.cli", *argv, "--tracking=off", "--eval_steps=0"]
    command += ["--skip_eval", f"--output_dir={part.folder('out')}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    found: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("{") :])["findings"]
    counts = {status: sum(one["status"] == status for one in found) for status in ("ok", "fail")}
    part.save({**counts, "findings": [one for one in found if one["status"] != "skip"]})
    wrong = [o for o in found if o["status"] == "fail" and o["section"] != EXPECTED]
    if wrong:
        raise SystemExit("; ".join(f"{one['name']}: {one['said']}" for one in wrong))


if __name__ == "__main__":
    main()
