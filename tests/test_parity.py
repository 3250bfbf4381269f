"""`judge parity`: engines that compute what a judge computes, and engines that do not."""

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pt_app.cli import app
from pt_app.core.errors import UserError
from pt_app.core.prompt_templates import Template
from pt_app.core.prompts import PromptEncoder
from pt_app.core.verdicts import Scale
from pt_app.models import adapters, bases
from pt_app.serving import engines
from pt_app.serving.decision_checkpoint import Pipeline
from pt_app.serving.engines import LlamaCpp, Plain, Vllm
from pt_app.serving.options import EngineName, ParityOptions, Precision
from pt_app.serving.parity import (
    LIMITS,
    STRICT,
    Compared,
    Parity,
    Reference,
    check,
    decided,
    parity,
    table,
)
from tests.rows import write_rows
from tests.teacher_server import Answer, Body, TeacherServer

ROWS = 24


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("parity"), test=ROWS)


@pytest.fixture(scope="module")
def options(base: Path) -> ParityOptions:
    return ParityOptions(base=str(base))


@pytest.fixture(scope="module")
def reference(adapter: Path, data: Path, options: ParityOptions) -> Reference:
    (one,) = Reference.of(adapters.verify_adapter(adapter), data, options)
    return one


@pytest.fixture(scope="module")
def model(adapter: Path, base: Path) -> Any:
    return adapters.load_merged(adapter, bases.resolve_model(str(base))).eval()


class Shifted(Plain):
    """The reference with noise on its log-probabilities."""

    noise = 0.0

    def read(self, cases: Any, trie: Any) -> Any:
        logs = super().read(cases, trie)
        return logs + np.random.default_rng(0).normal(0, self.noise, logs.shape)

    def tokens(self, case: Any) -> list[int] | None:
        return [1]


def shifted(model: Any, reference: Reference, noise: float, precision: Precision) -> Compared:
    engine = Shifted(model, reference.encoder.end_token_id, precision=precision)
    engine.noise = noise
    engine.tokens = lambda case: None  # type: ignore[method-assign]
    return reference.compared(engine, "shifted")


def few(reference: Reference) -> Reference:
    """The first rows and attacks of a reference."""
    kept = [0, 1, ROWS, ROWS + 1]
    cases = [reference.cases[i] for i in kept]
    return replace(reference, cases=cases, logs=reference.logs[kept])


def test_the_reference_is_the_same_as_itself(model: Any, reference: Reference) -> None:
    found = shifted(model, reference, 0, "float32")
    assert (found.decision, found.verdicts) == ("same", 0)
    # The same sums, but for where their numbers lie in memory.
    assert (found.line, found.probability) == pytest.approx((0, 0), abs=1e-6)
    assert (found.rows, found.unread, found.limit) == (ROWS, 0, STRICT)
    assert found.attacks > 10
    assert any(case.attack and "<|im_" in str(case.messages) for case in reference.cases)


@pytest.mark.parametrize(
    ("noise", "precision", "decision"),
    [
        (1e-7, "float32", "same"),
        (1e-4, "float32", "differs"),
        (1e-3, "float16", "same"),
        (0.3, "float16", "differs"),
        (0.01, "bfloat16", "same"),
        (1e-6, "other", "undecided"),
    ],
)
def test_the_limit_is_that_of_the_precision(
    noise: float, precision: Precision, decision: str, model: Any, reference: Reference
) -> None:
    found = shifted(model, reference, noise, precision)
    assert found.decision == decision, found.why
    assert found.limit == (STRICT if precision == "float32" else LIMITS.get(precision))


def test_another_tokenizer_or_another_verdict_differs_at_every_precision(
    model: Any, reference: Reference
) -> None:
    found = shifted(model, few(reference), 0, "bfloat16").model_copy(update={"rows": ROWS})
    engine = Shifted(model, reference.encoder.end_token_id)
    other = few(reference).compared(engine, "shifted")
    assert (other.decision, "another tokenizer" in other.why) == ("differs", True)
    wide = found.model_copy(update={"wide": 1})
    assert decided(wide)[0] == "differs"
    assert decided(found.model_copy(update={"rows": 5}))[0] == "undecided"
    assert decided(found.model_copy(update={"unread": 5}))[0] == "undecided"
    assert decided(found.model_copy(update={"stability": 0.1}))[0] == "differs"


def log_probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0].double()
    return logits.log_softmax(-1)


def as_llama_cpp(model: Any, tokenizer: Any) -> Callable[[Body, int], Answer]:
    """Answer /completion and /tokenize as llama.cpp's server does.

    It is as if the first seed drew a part of a character, of which llama.cpp says nothing.
    """

    def answer(body: Body, _: int) -> Answer:
        if "content" in body:
            ids = tokenizer.encode(body["content"], add_special_tokens=False)
            return 200, {}, json.dumps({"tokens": ids}).encode()
        assert (body["samplers"], body["post_sampling_probs"]) == ([], True)
        if body["seed"] == 0:
            return 200, {}, json.dumps({"content": "\ufffd"}).encode()
        values, ids = log_probabilities(model, body["prompt"])[-1].topk(body["n_probs"])
        likely = [
            {"id": i, "prob": p} for i, p in zip(ids.tolist(), values.exp().tolist(), strict=True)
        ]
        return (
            200,
            {},
            json.dumps({"completion_probabilities": [{"top_probs": likely}]}).encode(),
        )

    return answer


def as_vllm(model: Any) -> Callable[[Body, int], Answer]:
    """Answer /completions with prompt_logprobs as vLLM's server does."""

    def choice(ids: list[int]) -> Body:
        logs = log_probabilities(model, ids)
        own = [{str(t): {"logprob": float(logs[i, t])}} for i, t in enumerate(ids[1:])]
        return {"prompt_logprobs": [None, *own]}

    def answer(body: Body, _: int) -> Answer:
        choices = [choice(ids) for ids in body["prompt"]]
        return 200, {}, json.dumps({"choices": choices}).encode()

    return answer


def test_servers_of_other_engines_are_read_exactly(model: Any, reference: Reference) -> None:
    small, tokenizer = few(reference), reference.encoder.tokenizer
    with TeacherServer(as_llama_cpp(model, tokenizer)) as server:
        engine = LlamaCpp(None, server.url, len(tokenizer), "float32")
        llama = small.compared(engine, "server")
    with TeacherServer(as_vllm(model)) as server:
        vllm = small.compared(Vllm(server.url, "m", "float32"), "server")
    for found in (llama, vllm):
        assert found.probability == pytest.approx(0, abs=1e-5)
        assert found.line == pytest.approx(0, abs=1e-3)
        assert (found.unread, found.decision) == (0, "undecided")  # of so few rows
    assert llama.tokens is not None
    assert (llama.tokens.clean, llama.tokens.clean_equal) == (2, 2)
    assert llama.tokens.attacks_equal < llama.tokens.attacks == 2  # hence ids, never text
    assert vllm.tokens is None


@pytest.mark.parametrize(
    ("engine", "answer", "said"),
    [
        ("judge", {"data": []}, "/judgements answers without judgements: correct the URL or"),
        ("llama.cpp", [], "/completion answers in another form: correct the URL or --engine"),
        ("llama.cpp", {"completion_probabilities": [{"probs": []}]}, "without top_probs"),
        ("vllm", {"choices": [{"text": "a"}] * 11}, "answers without prompt_logprobs"),
        ("vllm", {"choices": [{"prompt_logprobs": None}] * 11}, "answers in another form"),
        ("vllm", {"choices": []}, "answers in another form"),
    ],
)
def test_server_of_another_engine_is_named(
    engine: EngineName, answer: Any, said: str, reference: Reference, options: ParityOptions
) -> None:
    sent: Answer = 200, {}, json.dumps(answer).encode()
    with TeacherServer(lambda *_: sent) as server, pytest.raises(UserError, match=said):
        parity([few(reference)], [server.url], replace(options, engine=engine))


def test_a_key_goes_to_a_server_only_if_it_is_named(
    reference: Reference, options: ParityOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    with TeacherServer(lambda *_: (200, {}, b"{}")) as server:
        for engine in ("judge", "llama.cpp", "vllm"):
            for name in ("", "OPENAI_API_KEY"):
                own = replace(options, engine=engine, key_env=name)
                with pytest.raises(UserError, match="answers without"):
                    parity([few(reference)], [server.url], own)
    assert server.keys == ["", "Bearer sk-1"] * 3


def test_a_key_does_not_follow_a_redirection() -> None:
    asked: list[bytes] = []

    def redirect() -> None:
        for head in ("302 Found\r\nLocation: /other", "200 OK"):
            connection, _ = listening.accept()
            asked.append(connection.recv(1000))
            answer = f"HTTP/1.1 {head}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
            connection.sendall(answer.encode())
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=redirect, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert engines.post(url, {}, dict, "secret") == {}
    assert [b"secret" in each for each in asked] == [True, False]


def test_server_that_speaks_no_http_does_not_answer() -> None:
    def greet() -> None:
        connection, _ = listening.accept()
        connection.recv(1000)
        connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(UserError, match=r"does not answer \(SSH-2.0-OpenSSH_9.6\s+\): start"):
            engines.post(f"http://127.0.0.1:{listening.getsockname()[1]}", {}, dict)


def test_judge_serve_is_the_judge(
    adapter: Path, base: Path, data: Path, options: ParityOptions, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")
    from pt_app.judge import Judge
    from tests.serving import Running

    with Running(Judge.load(adapter, base=str(base))) as running:
        out = tmp_path / "parity.json"
        found = check(adapter, data, [f"{running.url}/v1"], replace(options, out=out))
    (served,) = found.targets
    assert (found.decision, served.limit) == ("same", STRICT), served.why
    written = json.loads(out.read_text())
    assert (written["schema"], written["judge"]) == (1, found.judge)
    assert written["targets"][0]["probability"] == served.probability
    assert "same" in table(found)


def test_judge_serve_of_a_judge_with_a_grid_is_the_judge(
    base: Path, options: ParityOptions, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn", reason="pip install -r requirements-serve.txt")
    from pt_app.judge import Judge
    from tests.serving import Running

    source, scale = bases.resolve_model(str(base)), Scale.from_name("0-100").with_grid("0-9")
    template, tokenizer = Template.load("translation"), bases.load_tokenizer(base)
    adapter = adapters.save_adapter(
        adapters.attach_lora(bases.load_model(source), r=2, alpha=4, dropout=0, targets="q_proj"),
        PromptEncoder(tokenizer, template, scale, 256),
        tmp_path / "judge",
        identity=bases.model_identity(source),
        training_config={},
    ).folder
    data = write_rows(tmp_path / "data", test=ROWS)
    (data / "dataset.json").write_text(json.dumps({"scale": "0-100"}))
    test = data / "judge_test.json"
    test.write_text(test.read_text().replace("the old house", "the old house " * 60))  # is cut
    with Running(Judge.load(adapter, base=str(base))) as running:
        out = tmp_path / "parity.json"
        found = check(adapter, data, [f"{running.url}/v1"], replace(options, out=out))
    (served,) = found.targets
    assert (served.decision, served.unread, served.limit) == ("same", 0, STRICT), served.why
    assert served.attacks > 10


def test_a_served_judge_of_another_scale_is_named(
    reference: Reference, options: ParityOptions
) -> None:
    one = {"probabilities": {"PASS": 0.5, "FAIL": 0.5}, "verdict_mass": 1.0}
    sent: Answer = 200, {}, json.dumps({"judgements": [one] * 4}).encode()
    said = "answers with other verdicts than those of 0-10: correct"
    with TeacherServer(lambda *_: sent) as server, pytest.raises(UserError, match=said):
        parity([few(reference)], [server.url], options)


def test_a_merged_folder_of_another_model_is_named(base: Path) -> None:
    with pytest.raises(UserError, match="tokens, and the judge 1000000: name an export"):
        Plain.of_folder(base, 0, 1_000_000)


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "bfloat16", "quantization": {"bits": 4, "group_size": 64}}, "other"),
        ({"dtype": "float64"}, "other"),
        ({}, "other"),
    ],
)
def test_precision_of_an_mlx_folder_is_that_of_its_weights(
    config: dict[str, Any], precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = SimpleNamespace(load_model=lambda _: (None, config))
    monkeypatch.setattr(engines, "imported", lambda *_: utils)
    assert engines.Mlx(tmp_path).precision == precision


def test_a_folder_that_an_engine_does_not_load_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_model(folder: Path) -> None:
        raise FileNotFoundError(f"{folder} has no config.json")

    monkeypatch.setattr(engines, "imported", lambda *_: SimpleNamespace(load_model=load_model))
    with pytest.raises(UserError, match=r"does not load in mlx-lm \(.* has no config.json\)"):
        engines.Mlx(tmp_path)


def test_only_a_decision_model_is_loaded_as_one(tmp_path: Path) -> None:
    question: Any = None
    for kind, said in (("qwen2", "a model of type qwen2, not jev: name what"), ("jev", "not load")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(UserError, match=said):
            Pipeline(tmp_path, question)


def test_targets_that_cannot_be_asked_are_named(
    reference: Reference, options: ParityOptions, tmp_path: Path
) -> None:
    for target, said in (
        ("http://127.0.0.1:9/v1", "does not answer"),
        ("http://127.0.0.1:port/v1", "does not answer"),
        ("http://[::1/v1", "does not answer"),
        (f"merged:{tmp_path}", "config.json"),
    ):
        with pytest.raises(UserError, match=said):
            parity([reference], [target], options)


@pytest.mark.parametrize(
    ("decisions", "code"), [("same", 0), ("undecided same", 4), ("same differs undecided", 3)]
)
def test_exit_code_is_that_of_the_worst_target(
    decisions: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"against": "a", "engine": "e", "precision": "float32", "why": "so"}
    counts = dict.fromkeys(("rows", "attacks", "unread"), 0)
    targets = [about | counts | {"decision": each} for each in decisions.split()]
    data = {"path": "rows", "rows": 0, "sha256": {}}
    found = Parity.model_validate({"schema": 1, "judge": "j", "data": data, "targets": targets})
    monkeypatch.setattr("pt_app.serving.parity.check", lambda *_: found)
    words = ["parity", str(tmp_path), f"--data={tmp_path}", "--against=http://a"]
    done = CliRunner().invoke(app, words, standalone_mode=False)
    assert done.return_value == code


def test_a_key_that_is_not_there_is_refused_before_the_judge_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    with TeacherServer(lambda *_: (200, {}, b"{}")) as server:
        words = ["parity", str(tmp_path), f"--data={tmp_path}", f"--against={server.url}"]
        result = CliRunner().invoke(app, [*words, "--key_env=NO_KEY"])
    assert "NO_KEY is not set" in str(result.exception)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("gguf:no.gguf", "no.gguf is not there"),
        ("gguf:tests/test_parity.py+no-lora.gguf", "no-lora.gguf is not there"),
        ("mlx:no-folder", "no-folder is not there"),
        ("merged:no-folder", "no-folder is not there"),
        ("onnx:judge.onnx", "name gguf:FILE"),
        ("http://127.0.0.1:9/v1", "does not answer"),
        ("http://[::1/v1", "does not answer"),
    ],
)
def test_target_that_is_not_there_is_refused_before_the_judge_is_read(
    target: str, problem: str, tmp_path: Path
) -> None:
    words = ["parity", str(tmp_path), f"--data={tmp_path}", f"--against={target}"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, UserError)
    assert problem in str(result.exception)
