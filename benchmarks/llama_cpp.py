"""llama.cpp's own server as a way of `judge bench score`.

It gets token ids and keeps the prefix that a row shares with the one before. It is asked for the
least that tells a row's verdicts apart: the states where their lines branch, which are two requests
for a row on 0-10. The judge reads whole lines.
"""

import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from socket import create_server
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.workloads import Workload
from pt_app.core.errors import UserError
from pt_app.models.bases import resolve_model
from pt_app.scoring.scorer import verdict_trie
from pt_app.serving.engines import LIKELY, Case, LlamaCpp
from pt_app.serving.gguf_files import write_model
from pt_app.serving.options import Dtype, Precision

PRECISIONS: dict[Dtype, Precision] = {
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "q8_0": "8bit",
}


def prepare(
    model: Any, workload: Workload, dtype: Dtype, server: Path | None = None
) -> Callable[[], list[list[float]]]:
    """Serve a model by llama.cpp with its defaults, on as many threads as torch has.

    Args:
        model: the model, of a shape that is written as GGUF.
        workload: the rows.
        dtype: precision of the weights in llama.cpp.
        server: a llama-server; None: that of xllamacpp, whose wheel is built for AVX2.

    Returns:
        What judges the rows; it returns the probabilities of the first, read once before, in whole.

    Raises:
        UserError: for a server that does not start.
    """
    trie = verdict_trie(workload.encoder)
    prompts = [row["input_ids"][: row["prompt_length"]] for row in workload.encoded]
    length = max(map(len, prompts)) + trie.depth + 8
    with TemporaryDirectory() as folder:  # the file stays mapped
        file = Path(folder) / "judge.gguf"
        write_model(model, resolve_model("tiny").path, file, dtype, "judge")
        if server is None:
            held, url = LlamaCpp.served(str(file), "", length, False)
        else:
            held, url = started(server, str(file), length)
    engine = LlamaCpp(held, url, model.config.vocab_size, PRECISIONS[dtype])
    first = engine.read([Case([], "", {}, prompts[0], False)], trie)
    branches = [
        prefix
        for state, prefix in enumerate(trie.prefixes)
        if sum(at == state for at, _ in trie.steps) > 1
    ]

    def run() -> list[list[float]]:
        for ids in prompts:
            for prefix in branches:
                engine.likely([*ids, *prefix], LIKELY, tries=1)
        probabilities: list[list[float]] = torch.tensor(first).softmax(dim=1).tolist()
        return probabilities

    return run


def started(server: Path, file: str, length: int) -> tuple[object, str]:
    """Start a llama-server that ends with this process, and return it with its URL.

    Raises:
        UserError: where it ends before it answers.
    """
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    threads = torch.get_num_threads()
    flags = {"model": file, "ctx-size": length, "parallel": 1, "threads": threads, "port": port}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    # This process ends without a word to its children: the kernel ends them.
    command = ["setpriv", "--pdeathsig", "KILL", str(server), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=10).close()
        except OSError:
            time.sleep(0.1)
        else:
            return process, url
    raise UserError(f"{server} ended with code {process.returncode}: is it a llama-server?")
