"""`judge score --engine vllm`: vLLM in its own environment reads what the judge would read.

vLLM's packages are others than this project's, hence a process of its own interpreter, which gets
token ids and returns log-probabilities. It is given the merged judge: merged it is faster than with
a LoRA on CPUs, and what vLLM would scale wrong or refuse in an adapter (DoRA, patterns of rank,
modules_to_save) is merged as the judge itself merges it.
"""

import json
import logging
import os
import subprocess
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import numpy as np
import torch

from pt_app.core.errors import UserError
from pt_app.core.metrics import FloatArray
from pt_app.core.records import JudgeExample
from pt_app.core.results import DataUsed
from pt_app.core.settings import Precision as ScorePrecision
from pt_app.judge import ROWS, Judge, Row, read_row
from pt_app.models import adapters
from pt_app.scoring.scorer import AT_ONCE
from pt_app.scoring.verdict_trie import Reading, VerdictTrie
from pt_app.serving.engines import Case
from pt_app.serving.exporting import save_folder
from pt_app.serving.options import Dtype, Precision
from pt_app.serving.parity import MIN_ROWS, Reference

CHILD = Path(__file__).with_name("vllm_child.py")
FIND = "import importlib.util; print(importlib.util.find_spec('vllm') is not None)"
# One process, which ends with its pipes; nothing is reported or fetched.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
ENVIRONMENT |= {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
# The token that it generates behind a prompt, which is not read, may lie beyond the model's length.
ENVIRONMENT |= {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
COMPARED = 32  # rows
PATIENCE = 30  # seconds to end in
DTYPES: dict[ScorePrecision, Dtype] = {"float32": "float32", "bf16": "bfloat16"}
log = logging.getLogger(__name__)


def check_interpreter(python: str | None) -> None:
    """Raise UserError unless `python` is an interpreter that has vllm."""
    if not python:
        raise UserError("--engine vllm: name the interpreter of vLLM's environment by --python")
    try:
        found = subprocess.run([python, "-I", "-c", FIND], capture_output=True, text=True)
    except OSError as error:
        problem = f"--python {python}: it cannot be started ({error.strerror})"
        raise UserError(f"{problem}: name the interpreter of vLLM's environment") from error
    if (said := found.stdout.strip()) not in ("True", "False"):
        problem = f"--python {python}: it is no Python interpreter"
        raise UserError(f"{problem}: name that of vLLM's environment, such as vllm/bin/python")
    if said == "False":
        remedy = f"{python} -m pip install vllm, or name another"
        raise UserError(f"--python {python}: its environment has no vllm: {remedy}")


class VllmProcess:
    """vLLM in a process of its own; an engine of `judge parity`, and a reader of `JudgeScorer`.

    The process ends with this object. What vLLM prints is in a temporary file, which stays if the
    process fails.

    Args:
        python: the interpreter of its environment.
        folder: the merged judge.
        device: what it is to compute on: cpu or cuda.
        dtype: the precision to compute in.
        length: maximum tokens of a prompt and a verdict's line.

    Raises:
        UserError: where vLLM computes on another device, or does not load the model.
    """

    name, strict = "vllm", False

    def __init__(self, python: str, folder: Path, device: str, dtype: Dtype, length: int) -> None:
        self.precision: Precision = "bfloat16" if dtype == "bfloat16" else "float32"
        with NamedTemporaryFile("w", prefix="judge-vllm-", suffix=".log", delete=False) as file:
            self.log = Path(file.name)
            self._process = subprocess.Popen(
                [python, "-I", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                encoding="utf-8",
                env={**os.environ, **ENVIRONMENT},
            )
        weakref.finalize(self, _end, self._process, self.log)
        model = {"model": str(folder), "dtype": dtype, "skip_tokenizer_init": True}
        # Whole prompts are read and single tokens are not, for which vLLM compiles for minutes.
        model |= {"enforce_eager": True}
        # vLLM's log-probabilities of prompts depend on the order of requests where prefixes are
        # cached (vllm#42019).
        model |= {"max_model_len": length + 1, "enable_prefix_caching": False}
        self.version = str(self._answer({"device": device, "model": model})["ready"])

    def reading(self, prompts: Sequence[Sequence[int]], trie: VerdictTrie) -> Reading:
        """Read the lines of verdicts behind prompts."""
        steps = torch.full((len(prompts), len(trie.steps)), torch.nan, dtype=torch.float64)
        greedy = torch.full((len(prompts), trie.states), -1)
        logs = self._answer({"prompts": prompts, "lines": trie.lines})["logs"]
        for row, of_lines in enumerate(logs):
            for path, columns, places in zip(trie.paths, trie.columns, of_lines, strict=True):
                for (state, token), column, (log, rank) in zip(path, columns, places, strict=True):
                    steps[row, column] = log
                    if rank == 1:
                        greedy[row, state] = token
        return Reading.of_steps(steps, greedy, trie)

    def read(self, cases: Sequence[Case], trie: VerdictTrie) -> FloatArray:
        """Return the log-probability of each line [cases, lines]."""
        parts = range(0, len(cases), AT_ONCE)
        ids = [[case.ids for case in cases[start : start + AT_ONCE]] for start in parts]
        return np.concatenate([self.reading(p, trie).log_probabilities.numpy() for p in ids])

    def tokens(self, _: Case) -> list[int] | None:
        """Return None: it is given ids."""
        return None

    def _answer(self, asked: Mapping[str, object]) -> Any:
        """Send a line and return the next one; raises UserError where there is none."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and its last line says why
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        answer = json.loads(line) if line.endswith("\n") else {}
        if "error" in answer:
            raise UserError(f"vllm: {answer['error']} (its log: {self.log})")
        if not answer:
            code = process.wait()
            raise UserError(f"vllm has ended with code {code}: its log {self.log} says why")
        return answer


def _end(process: subprocess.Popen[str], log: Path) -> None:
    with suppress(OSError):
        process.stdin.close()  # type: ignore[union-attr]
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.returncode == 0:
        log.unlink(missing_ok=True)


def read_by_vllm(
    judge: Judge,
    rows: Sequence[Row],
    python: str,
    device: str,
    precision: ScorePrecision,
    base: str | None,
) -> None:
    """Let vLLM read what the judge scores from now on, if it gives the judge's numbers.

    Args:
        judge: the judge, in float32, with which vLLM is compared as `judge parity` does.
        rows: the first rows to be scored; up to `COMPARED` are compared, and attacks on them.
        python: the interpreter of vLLM's environment.
        device: what vLLM computes on: cpu or cuda.
        precision: the precision that it computes in.
        base: the folder of the judge's base, if it was one.

    Raises:
        UserError: where vLLM does not load the judge, or gives other numbers.
    """
    info, encoder, dtype = judge.info, judge.encoder, DTYPES[precision]
    found = [read_row(row, ROWS, info) for row in rows[:COMPARED]]
    examples = [each for each in found if isinstance(each, JudgeExample)]
    used = DataUsed(path="the input", rows=len(examples))
    reference = Reference.on(examples, used, judge.model, encoder, info)
    with TemporaryDirectory(prefix="judge-merged-") as merged:  # is not read once it is loaded
        model = adapters.load_merged(info.folder, adapters.base_of(info, base))
        save_folder(model, info, Path(merged), dtype)
        del model
        engine = VllmProcess(python, Path(merged), device, dtype, encoder.max_seq_length)
    compared = reference.compared(engine, python)
    what = f"vllm {engine.version}, {dtype}: {compared.why}"
    few = not compared.unread and compared.rows < MIN_ROWS and compared.decision == "undecided"
    if compared.decision != "same" and not few:
        remedy = "give --score_precision float32, or leave --engine out"
        raise UserError(f"{what}, {compared.decision}: {remedy}")
    log.info("%s (%d rows, %d attacks)", what, compared.rows, compared.attacks)
    judge.engine = engine.reading
