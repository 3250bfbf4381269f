"""Engines that claim to be a judge: each reads the log-probability of every verdict's line.

They get token ids: a server that renders a chat from text would make control tokens of a
candidate's `<|im_end|>`.
"""

import http.client
import importlib
import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from pt_app.core.errors import UserError
from pt_app.core.metrics import FloatArray
from pt_app.core.verdicts import Scale
from pt_app.models import bases, gguf
from pt_app.models.bases import ModelSource
from pt_app.scoring.verdict_trie import VerdictTrie, read_plain
from pt_app.serving.options import Precision

MLX, LLAMA_CPP = "mlx-lm (on Linux with mlx[cpu])", "xllamacpp"  # what pip installs
TIMEOUT = 600  # seconds for an answer
AT_ONCE = 32  # rows of a request to `judge serve`
SMALLEST = 1e-300  # stands for a probability that is 0, whose logarithm is no number
LIKELY = 100  # tokens whose log-probability llama.cpp is asked for first; then for all
TRIES = 20  # seeds with which it is asked
FLOATS: tuple[Precision, ...] = ("float32", "float16", "bfloat16")
OF_GGUF: dict[str, Precision] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
OF_GGUF |= {"Q8_0": "8bit"}
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Case:
    """A prompt: its turns, its ids, and whether its candidate holds control tokens as text.

    `row` is what `judge serve` is given to make that prompt itself, `text` the rendered prompt.
    """

    messages: list[dict[str, str]]
    text: str
    row: Mapping[str, object]
    ids: list[int]
    attack: bool


class Engine(Protocol):
    """Something that predicts tokens."""

    @property
    def name(self) -> str:
        """The engine and its settings."""

    @property
    def precision(self) -> Precision:
        """The coarsest precision that it computes in."""

    @property
    def strict(self) -> bool:
        """Whether it computes as the reference does, but for the order of sums."""

    def read(self, cases: Sequence[Case], trie: VerdictTrie) -> FloatArray:
        """Return the log-probability of each line [cases, lines]."""

    def tokens(self, case: Case) -> list[int] | None:
        """Return the ids that the engine makes of a prompt itself; None if it takes ids alone."""


@dataclass
class Plain:
    """transformers, one sequence per line: the reference, and what a merged folder gives."""

    model: Any
    pad: int
    folder: Path | None = None
    name: str = "transformers"
    precision: Precision = "float32"
    strict: bool = True

    @staticmethod
    def of_folder(folder: Path, pad: int, vocabulary: int) -> "Plain":
        """Load a merged folder in the precision that its config.json names.

        Raises:
            UserError: for a folder that is none, or of a model with fewer than `vocabulary` tokens.
        """
        bases.check_base_folder(folder)
        kind = str(bases.read_json(folder / bases.CONFIG).get("dtype", "float32"))
        if kind not in FLOATS:
            raise UserError(f"{folder}: its weights are {kind}: export it again")
        model = bases.load_model(ModelSource(folder.name, folder), getattr(torch, kind))
        if (known := model.config.get_text_config().vocab_size) < vocabulary:
            problem = f"its model has {known} tokens, and the judge {vocabulary}"
            raise UserError(f"{folder}: {problem}: name an export of this judge")
        return Plain(model.eval(), pad, folder, precision=kind)

    def read(self, cases: Sequence[Case], trie: VerdictTrie) -> FloatArray:
        """Return the log-probability of each line [cases, lines]."""
        with exact_matmul(), torch.inference_mode():
            read = [
                read_plain(self.model, [case.ids], trie, self.pad).log_probabilities
                for case in cases
            ]
        return np.asarray(torch.cat(read), np.float64)

    def tokens(self, case: Case) -> list[int] | None:
        """Return the ids that the folder's tokenizer makes of a rendered prompt."""
        return None if self.folder is None else _encoded(self.folder, case.text)


class Mlx:
    """mlx_lm: the prompt once, then each line behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name, self.strict = folder, "mlx", True
        mlx = imported("mlx_lm.utils", MLX)
        with loading(folder, "mlx-lm"):
            self.model, config = mlx.load_model(folder)
        # A folder that mlx-lm quantised keeps the dtype of its original.
        kind = "other" if "quantization" in config else config.get("dtype")
        self.precision: Precision = kind if kind in FLOATS else "other"

    def read(self, cases: Sequence[Case], trie: VerdictTrie) -> FloatArray:
        """Return the log-probability of each line [cases, lines]."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

        def log_probability(last: int, line: list[int], cache: Any) -> float:
            logits = self.model(mx.array([[last, *line[:-1]]]), cache=cache)[0].astype(mx.float32)
            logs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            total = float(logs[mx.arange(len(line)), mx.array(line)].sum())
            trim_prompt_cache(cache, len(line))
            return total

        rows = []
        for case in cases:
            cache = make_prompt_cache(self.model)
            mx.eval(self.model(mx.array([case.ids[:-1]]), cache=cache))
            rows.append([log_probability(case.ids[-1], line, cache) for line in trie.lines])
        return np.array(rows, np.float64)

    def tokens(self, case: Case) -> list[int] | None:
        """Return the ids that the folder's tokenizer makes of a rendered prompt."""
        return _encoded(self.folder, case.text)


@dataclass
class LlamaCpp:
    """llama.cpp's own HTTP server: one request for each state of the trie, as token ids.

    Its cache of the last prompt makes the states of a row cheap.
    """

    held: object  # a server in this process, which ends with the last reference to it
    url: str
    vocabulary: int
    weights: Precision
    strict: bool = False
    key: str = ""

    @property
    def precision(self) -> Precision:
        """That of the weights, but with float32 and its defaults float16.

        Its attention casts keys and values to float16 then (`build_attn_mha`). The same rounding
        alone, in torch, moves a probability of the demo's judge by 2.6e-3 (200 rows).
        """
        return "float16" if self.weights == "float32" and not self.strict else self.weights

    @property
    def name(self) -> str:
        """The engine and its settings."""
        return f"llama.cpp, {'flash attention off, KV float32' if self.strict else 'defaults'}"

    @staticmethod
    def of_file(files: str, length: int, vocabulary: int) -> "list[LlamaCpp]":
        """Serve a GGUF file, or "BASE.gguf+LORA.gguf"; one in float32 strictly and by default."""
        base = files if Path(files).is_file() else files.partition("+")[0]
        precision = OF_GGUF.get(gguf.quantization_of(Path(base)), "other")
        served = partial(LlamaCpp.served, base, files[len(base) + 1 :], length)
        ways = (True, False) if precision == "float32" else (False,)
        return [LlamaCpp(*served(strict), vocabulary, precision, strict) for strict in ways]

    @staticmethod
    def served(base: str, lora: str, length: int, strict: bool) -> tuple[object, str]:
        """Start a server in this process, and return it with its URL."""
        server = imported("xllamacpp", LLAMA_CPP)
        params = server.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel = base, length, 1
        params.cpuparams.n_threads = torch.get_num_threads()
        params.verbosity, params.warmup, params.fit_params, params.ui = -1, False, False, False
        if strict:
            params.flash_attn_type = server.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.cache_type_k = params.cache_type_v = server.ggml_type.GGML_TYPE_F32
        if lora:
            adapter = server.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = lora, 1.0
            params.lora_adapters = [adapter]
        with loading(base, "llama.cpp"):
            running = server.Server(params)
        return running, running.listening_address

    def read(self, cases: Sequence[Case], trie: VerdictTrie) -> FloatArray:
        """Return the log-probability of each line [cases, lines]."""
        rows = []
        for case in cases:
            logs: dict[tuple[int, int], float] = {}
            for state, prefix in enumerate(trie.prefixes):
                wanted = {token for at, token in trie.steps if at == state}
                given = self.likely([*case.ids, *prefix], LIKELY)
                if not wanted <= given.keys():
                    given = self.likely([*case.ids, *prefix], self.vocabulary)
                absent = math.log(SMALLEST) if given else np.nan
                logs |= {(state, token): given.get(token, absent) for token in wanted}
            rows.append([sum(logs[step] for step in path) for path in trie.paths])
        return np.array(rows, np.float64)

    def likely(self, ids: Sequence[int], count: int, tries: int = TRIES) -> dict[int, float]:
        """Return the log-probabilities of the `count` likeliest tokens; {} if they are withheld.

        They are those of the last sampler, which divides by a sum in float64. The sum of those
        before all samplers is in float32: unlikely tokens are lost in it, and each log-probability
        is off by up to 3e-5 (tiny judge).
        """
        asked: dict[str, object] = {"prompt": ids, "n_predict": 1, "n_probs": count}
        asked |= {"cache_prompt": True, "samplers": [], "post_sampling_probs": True}
        # Withheld where a part of a character is drawn: another seed draws another token.
        for seed in range(tries):
            if given := post(f"{self.url}/completion", asked | {"seed": seed}, _likely, self.key):
                return given
        return {}

    def tokens(self, case: Case) -> list[int] | None:
        """Return the ids that the file's tokenizer makes of a rendered prompt."""
        asked = {"content": case.text, "add_special": False, "parse_special": True}
        return post(f"{self.url}/tokenize", asked, lambda answer: list(answer["tokens"]), self.key)


@dataclass
class Vllm:
    """vLLM's completions, whose `prompt_logprobs` are those of a line behind its prompt."""

    url: str
    model: str
    precision: Precision
    name: str = "vllm"
    strict: bool = False
    key: str = ""

    def read(self, cases: Sequence[Case], trie: VerdictTrie) -> FloatArray:
        """Return the log-probability of each line [cases, lines]."""

        def read(answer: Any) -> list[float]:
            choices = zip(answer["choices"], trie.lines, strict=True)
            return [_of_line(choice, line) for choice, line in choices]

        rows = []
        for case in cases:
            prompts = [[*case.ids, *line] for line in trie.lines]
            asked: dict[str, object] = {"model": self.model, "prompt": prompts}
            asked |= {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
            rows.append(post(f"{self.url}/completions", asked, read, self.key))
        return np.array(rows, np.float64)

    def tokens(self, case: Case) -> list[int] | None:
        """Return None: it is given ids."""
        return None


@dataclass
class Served:
    """`judge serve`: rows in, judgements out."""

    url: str
    model: str
    scale: Scale
    precision: Precision
    name: str = "judge serve"
    strict: bool = True
    key: str = ""

    def read(self, cases: Sequence[Case], trie: VerdictTrie) -> FloatArray:
        """Return the log-probability of each line [cases, lines]."""
        logs: list[list[float]] = []
        for start in range(0, len(cases), AT_ONCE):
            # A pair of fields would be judged in both orders.
            rows = [
                {"messages": case.messages} if "candidates" in case.row else case.row
                for case in cases[start : start + AT_ONCE]
            ]
            asked = {"rows": rows} | ({"model": self.model} if self.model else {})
            logs += post(f"{self.url}/judgements", asked, self._logs, self.key)
        return np.array(logs, np.float64)

    def _logs(self, answer: Any) -> list[list[float]]:
        return [self._of_row(judged) for judged in answer["judgements"]]

    def _of_row(self, judged: Any) -> list[float]:
        if (given := judged["probabilities"]) is None:
            return [np.nan] * len(self.scale.lines())
        if [*given] != [*map(str, self.scale.values)]:
            problem = f"answers with other verdicts than those of {self.scale.name}"
            raise UserError(f"{self.url} {problem}: correct the URL or --served_model")
        chances = self.scale.gathered([*given.values()])
        logs = np.log(np.maximum(chances, SMALLEST)) + np.log(judged["verdict_mass"])
        return [*logs.tolist()]

    def tokens(self, case: Case) -> list[int] | None:
        """Return None: it is given rows, which it sanitizes itself."""
        return None


@contextmanager
def exact_matmul() -> Iterator[None]:
    """Multiply in full float32, within."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def loading(place: Path | str, engine: str) -> Iterator[None]:
    """Raise UserError where an engine does not load what is named, within."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{place} does not load in {engine} ({said}): name an export") from error


def check_answers(url: str) -> None:
    """Raise UserError unless a server answers at a URL, whatever it says there."""
    with _answering(url), suppress(urllib.error.HTTPError):
        urllib.request.urlopen(url, timeout=TIMEOUT).close()


def post(
    url: str, body: Mapping[str, object], read: Callable[[Any], Answer], key: str = ""
) -> Answer:
    """Post JSON and return what is read of the answer.

    Raises:
        UserError: where there is none, or one of another form.
    """
    headers = {"Content-Type": "application/json"}
    with _answering(url):
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        if key:  # which does not follow a redirection to another server
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                given = json.load(answer)
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(300).decode("utf-8", "replace").split())
            raise UserError(f"{url} answers {error.code}: {said}") from error
    try:
        return read(given)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        how = f"without {error.args[0]}" if isinstance(error, KeyError) else "in another form"
        raise UserError(f"{url} answers {how}: correct the URL or --engine") from error


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """Raise UserError where a server that is asked within does not answer."""
    try:
        yield
    except (OSError, ValueError, http.client.HTTPException) as error:
        problem = f"{url} does not answer ({error})"
        raise UserError(f"{problem}: start it, or correct the URL") from error


def imported(module: str, package: str) -> Any:
    """Import the package of an engine; raises UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{module} is not there ({error}): pip install {package}") from error


def _encoded(folder: Path, text: str) -> list[int]:
    ids: list[int] = _tokenizer(folder).encode(text, add_special_tokens=False)
    return ids


@cache
def _tokenizer(folder: Path) -> Any:
    return bases.load_tokenizer(folder)


def _likely(answer: Any) -> dict[int, float]:
    """Read what llama.cpp answers; {} if it withholds probabilities."""
    if "content" in answer and "completion_probabilities" not in answer:
        return {}
    (given,) = answer["completion_probabilities"]
    return {each["id"]: math.log(max(each["prob"], SMALLEST)) for each in given["top_probs"]}


def _of_line(choice: Any, line: Sequence[int]) -> float:
    logs = choice["prompt_logprobs"][-len(line) :]
    return sum(float(at[str(token)]["logprob"]) for at, token in zip(logs, line, strict=True))
