"""Bytes that a run writes, and what is free for them."""

import shutil
from pathlib import Path

from pt_app.core.settings import Settings
from pt_app.models.base_files import tokenizer_files
from pt_app.preflight.estimate.memory import FLOAT32, optimizer_bytes
from pt_app.preflight.estimate.outline import Outline
from pt_app.preflight.estimate.plan import Plan
from pt_app.training.preparation import Prepared

CHECKPOINTS = 3  # the last two and the best (training.common_arguments)
# Log, report, tables and what is kept for W&B: some MB, measured on the demo.
PAGES = 20 * 2**20
ROW = 8192  # bytes of a test row in predictions.jsonl, for both judges and in the tables


def disk_bytes(settings: Settings, prepared: Prepared, outline: Outline, plan: Plan) -> int:
    """Checkpoints of adapter and optimizer, the adapter, its tokenizer, the evaluation.

    The base is on disk already: `prepare` has fetched it.
    """
    adapter = sum(outline.adapters) * FLOAT32
    tokenizer = sum(file.stat().st_size for file in tokenizer_files(prepared.source.path))
    checkpoint = adapter + optimizer_bytes(outline.platform, outline.adapters) + tokenizer
    kept = 0
    if settings.save_steps or plan.validations:
        kept = min(CHECKPOINTS, len(plan.steps))
    return kept * checkpoint + adapter + tokenizer + PAGES + ROW * len(prepared.test)


def free_bytes(folder: Path) -> int:
    """Free on the file system where `folder` is, or will be."""
    folder = folder.expanduser().resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
