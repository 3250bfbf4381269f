"""A benchmark's numbers as plain text, 80 columns wide."""

from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Any]


def lines_of(report: Report) -> list[str]:
    """A line for each way (rows per second, GiB above the model, CPU time), then the ratios."""
    unit = "examples_per_second" if "loss_difference" in report else "rows_per_second"
    lines = [
        f"workload {report['workload']}: prompts of {report['prompt_tokens']:.0f} tokens; this "
        f"core multiplies at {report['best_gemm_gflops']:.0f} GFLOP/s",
        f"{'':36}{'a second':>10}{'GiB':>8}{'GEMM':>8}{'CPU s':>10}",
    ]
    for name, way in report["ways"].items():
        if way["error"]:
            lines.append(f"{name:36} failed: {way['error']}"[:80])
            continue
        share = way.get("gemm_utilisation")
        used = "" if share is None else f"{share:.0%}"
        cpu = way.get("rows_per_cpu_second")
        of_cpu = "" if cpu is None else f"{cpu:.3f}"
        line = f"{name:36}{way[unit]:>10.3f}{way['peak_memory_gib']:>8.2f}{used:>8}{of_cpu:>10}"
        lines.append(line.rstrip())
    lines.append("")
    plain = {name: value for name, value in report.items() if name not in ("ways", "workload")}
    for name, value in plain.items():
        if value is not None and name not in ("prompt_tokens", "best_gemm_gflops"):
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            lines.append(f"{name:50}{shown:>12}")
    return lines
