"""`make demo`: data, adapter and report of a tiny judge, in folders of their own."""

import shlex
from pathlib import Path

import pt_app
from pt_app.core import console
from pt_app.core.errors import UserError
from pt_app.core.results import read_results
from pt_app.core.settings import resolve
from pt_app.eval_model import judge_train_mps, repeats
from pt_app.eval_model.dispatch import recipe_command
from pt_app.models.bases import model_identity, read_json, resolve_model
from pt_app.report import terminal_table

TRAIN_ROWS, VAL_ROWS, TEST_ROWS = 12_000, 300, 400
ADAPTERS = Path("adapters_eval/demo")


def run_demo(seed: int = 0) -> Path:
    """Generate, train, evaluate, and print the table; return the path of report.html.

    What is there already is used again. Seed 0 works in datasets/demo, another one in
    datasets/demo-SEED.
    """
    from pt_app.judge_data.generator.generate import generate
    from pt_app.judge_data.options import GenerateOptions

    data = Path("datasets/demo" if seed == 0 else f"datasets/demo-{seed}")
    options = GenerateOptions(TRAIN_ROWS, VAL_ROWS, TEST_ROWS, seed)
    print("\n".join(generate(data, options).lines()))
    evaluation = _finished(data, seed)
    if evaluation is None:
        flags = ["--data_dir", str(data), "--output_dir", str(ADAPTERS), "--seed", str(seed)]
        argv = ["--config", _config(), *flags]
        print(f"$ {shlex.join(recipe_command('mps', argv))}", flush=True)
        (adapter,) = repeats.run(resolve("mps", argv, "judge demo", ""), judge_train_mps.train)
        evaluation = adapter / "evaluation"
    else:
        print(f"trained and evaluated before: {evaluation.parent}")
        console.show(terminal_table(read_results(evaluation)))
    report = evaluation / "report.html"
    print(f"report: {report}")
    return report


def _config() -> str:
    file = Path(pt_app.__file__).parents[1] / "configs" / "tiny.yaml"
    if not file.exists():
        raise UserError(f"{file} is not there: run the demo from a clone of the repository")
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _finished(data: Path, seed: int) -> Path | None:
    """Return the newest evaluation of a demo adapter on this data, base and seed."""
    hashes = read_json(data / "dataset.json")["sha256"]
    base = model_identity(resolve_model("tiny"))
    for adapter in sorted(ADAPTERS.glob("*_final"), reverse=True):
        if not (adapter / "evaluation" / "report.html").exists():
            continue
        made = read_json(adapter / "training_config.json")
        same_data = made["data"]["sha256"].items() <= hashes.items()
        if same_data and made["base"] == base and made["settings"]["seed"] == seed:
            return adapter / "evaluation"
    return None
