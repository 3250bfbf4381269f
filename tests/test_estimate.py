"""What a run is said to need before it begins, against real tensors, real packs and a real step."""

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pt_app.core.errors import UserError
from pt_app.core.settings import Recipe, Settings, resolve
from pt_app.models import platforms
from pt_app.models.packing import pack
from pt_app.preflight.estimate import memory
from pt_app.preflight.estimate.estimate import Estimate
from pt_app.preflight.estimate.memory import optimizer_bytes, weight_bytes
from pt_app.preflight.estimate.outline import Cost, Meter, Outline
from pt_app.preflight.estimate.plan import Pack, Plan, plan_run
from pt_app.preflight.estimate.timing import Seconds, time_run
from pt_app.training.loop import TrainingLoop
from pt_app.training.loss import summed_loss
from pt_app.training.preparation import Prepared, prepare
from pt_app.training.run import build_trainer, load_judge
from tests.conftest import slow_case
from tests.rows import write_rows
from tests.tiny_models import make_model_folder

KEYS = {
    "recipe",
    "device",
    "steps",
    "examples_a_step",
    "tokens",
    "flops",
    "memory",
    "evaluation_memory",
    "limit",
    "fits",
    "pack_tokens_that_fit",
    "seconds",
    "disk_bytes",
    "base_bytes",
    "dollars",
}


def settings_of(recipe: Recipe, base: Path, rows: Path, out: Path, *more: str) -> Settings:
    given = [f"--model={base}", f"--data_dir={rows}", f"--output_dir={out}", "--tracking=off"]
    return resolve(recipe, [*given, *more], "test", "")


def load(recipe: Recipe, settings: Settings, prepared: Prepared) -> Any:
    module = importlib.import_module(f"pt_app.eval_model.judge_train_{recipe}")
    platform = platforms.decide(recipe, no_4bit=settings.no_4bit)
    return load_judge(settings, platform, prepared, module.load_base)


def trainer_of(settings: Settings, prepared: Prepared, model: Any, folder: Path) -> TrainingLoop:
    module = importlib.import_module("pt_app.eval_model.judge_train_mps")
    platform = platforms.decide("mps")
    made = module.training_arguments
    return build_trainer(settings, platform, prepared, folder, model, made, lambda *_: None)


def plan_of(recipe: Recipe, settings: Settings, prepared: Prepared) -> tuple[Outline, Plan]:
    platform = platforms.decide(recipe, no_4bit=settings.no_4bit)
    outline = Outline(prepared.source, settings, platform)
    return outline, plan_run(settings, platform, prepared, outline.config.vocab_size, True)


def held_by(tensor: Any) -> int:
    """Bytes of a parameter; of a quantised one with its scales and tables."""
    total = tensor.numel() * tensor.element_size()
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        parts = [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        total += sum(part.numel() * part.element_size() for part in parts)
    return int(total)


@pytest.mark.parametrize(("recipe", "flags"), [("mps", ()), ("cuda", ()), ("cuda", ("--no_4bit",))])
def test_weights_adapters_and_optimizer_are_those_of_the_real_tensors(
    recipe: Recipe, flags: tuple[str, ...], base: Path, rows: Path, tmp_path: Path
) -> None:
    settings = settings_of(recipe, base, rows, tmp_path, "--lora_r=64", *flags)
    prepared = prepare(settings)
    model = load(recipe, settings, prepared)
    platform = platforms.decide(recipe, no_4bit=settings.no_4bit)
    outline = Outline(prepared.source, settings, platform)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    own = [p for p in model.parameters() if p.requires_grad]
    assert weight_bytes(outline) == sum(map(held_by, frozen))
    assert outline.adapters == [p.numel() for p in own]

    from bitsandbytes.optim import PagedAdamW8bit

    make = PagedAdamW8bit if "8bit" in platform.optimizer else torch.optim.AdamW
    optimizer = make(own)
    for parameter in own:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [
        value
        for of in optimizer.state.values()
        for name, value in of.items()
        if isinstance(value, torch.Tensor) and value.numel() > 1 and "qmap" not in name
    ]
    assert optimizer_bytes(platform, outline.adapters) == sum(map(held_by, state))


@pytest.mark.parametrize("flags", [(), ("--group_variants",), ("--pack_tokens=64",)])
def test_packs_are_those_that_the_trainer_lays_out_in_each_epoch(
    flags: tuple[str, ...], base: Path, rows: Path, tmp_path: Path
) -> None:
    settings = settings_of("mps", base, rows, tmp_path, "--epochs=2", *flags)
    prepared = prepare(settings)
    _, plan = plan_of("mps", settings, prepared)
    trainer = trainer_of(settings, prepared, load("mps", settings, prepared), tmp_path)
    laid_out = [
        [(one["input_ids"].shape[1], len(one["keep"])) for one in step["packs"]]
        for epoch in range(2)
        for step in trainer.steps.epoch(epoch, 0)
    ]
    assert [[(p.tokens, p.logit_positions) for p in step.packs] for step in plan.steps] == laid_out


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_what_is_counted_without_storage_is_what_a_real_pass_allocates(
    checkpointing: str, rows: Path, tmp_path: Path
) -> None:
    # So wide that what a tree's own indices hold is little beside it.
    base = make_model_folder(tmp_path / "wide", hidden_size=512, intermediate_size=1024)
    settings = settings_of(
        "mps", base, rows, tmp_path, f"--activation_checkpointing={checkpointing}"
    )
    prepared = prepare(settings)
    outline, plan = plan_of("mps", settings, prepared)
    step = plan.steps[0]
    held = outline.held("training", step.packs[0])
    model = load("mps", settings, prepared)
    model.train()
    if checkpointing == "full":
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    known = [*model.parameters(), *model.buffers()]
    known += [p.grad for p in model.parameters() if p.grad is not None]
    batch = pack([prepared.train[row] for row in step.rows], 0)
    with Meter(known, outline.config.vocab_size) as meter:
        summed_loss(model, batch).backward()  # type: ignore[no-untyped-call]
    assert held.logits == meter.logits
    assert held.peak == pytest.approx(meter.peak, rel=0.03)


def test_a_layer_keeps_the_terms_that_the_page_lists(rows: Path, tmp_path: Path) -> None:
    hidden, of_keys, wide, rank, tokens = 64, 2 * 16, 256, 16, 500
    peaks = []
    for layers in (3, 4):
        base = make_model_folder(
            tmp_path / str(layers),
            hidden_size=hidden,
            intermediate_size=wide,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        settings = settings_of("mps", base, rows, tmp_path)
        outline = Outline(prepare(settings).source, settings, platforms.decide("mps"))
        # so many logits that the peak is where the loss is computed
        peaks.append(outline.held("training", Pack(tokens, tokens, tokens, 1)).peak)
    floats = 5 * hidden + 2 * of_keys + 2 * wide + 4 * rank + 2  # docs/ESTIMATE.md
    assert peaks[1] - peaks[0] == 4 * tokens * floats


def test_layers_that_are_not_counted_add_what_the_counted_ones_do(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = make_model_folder(tmp_path / "deep", num_hidden_layers=9)
    settings = settings_of("mps", deep, rows, tmp_path)
    outline, plan = plan_of("mps", settings, prepare(settings))
    extrapolated = outline.held("training", plan.packs[0])
    monkeypatch.setattr("pt_app.preflight.estimate.outline.DEPTHS", (1, 9))
    outline, _ = plan_of("mps", settings, prepare(settings))
    assert outline.held("training", plan.packs[0]).peak == extrapolated.peak


def wanted(base: Path, rows: Path, out: Path, *flags: str, recipe: Recipe = "mps") -> Estimate:
    settings = settings_of(recipe, base, rows, out, "--gradient_accumulation=24", *flags)
    platform = platforms.decide(recipe, no_4bit=settings.no_4bit)
    return Estimate(settings, platform, prepare(settings))


def test_memory_grows_with_each_knob_that_costs_some(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    usual = wanted(base, rows, tmp_path)
    small = wanted(base, rows, tmp_path, "--pack_tokens=128")
    assert small.memory.activations < usual.memory.activations
    assert small.memory.logits < usual.memory.logits
    wide = wanted(base, rows, tmp_path, "--lora_r=32")
    assert wide.memory.adapters == 2 * usual.memory.adapters
    assert wide.memory.optimizer == 2 * usual.memory.optimizer
    assert wide.disk > usual.disk
    everywhere = wanted(base, rows, tmp_path, "--lora_targets=all-linear")
    assert everywhere.memory.activations > usual.memory.activations
    other = wanted(base, rows, tmp_path, "--skip_eval", recipe="cuda")
    # Checkpointed. Which of the two a peak consists of depends on where it is.
    held = [m.activations + m.logits for m in (other.memory, usual.memory)]
    assert held[0] < held[1]
    assert other.evaluation is None


def test_other_packs_are_planned_for_training_and_validation_alike(
    base: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows", train=4, val=60)
    usual = wanted(base, data, tmp_path, "--epochs=1", "--pack_tokens=2048")
    small = wanted(base, data, tmp_path, "--epochs=1", "--pack_tokens=128")
    replanned = usual.memory_at(128)
    assert replanned.activations == small.memory.activations < usual.memory.activations
    assert replanned.logits == small.memory.logits


def test_a_run_that_cannot_fit_stops_before_anything_is_written(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = wanted(base, rows, tmp_path)
    bound = round(found.memory.total / (1 - memory.MARGIN)) - 2**16
    monkeypatch.setattr(memory, "memory_limit", lambda: (bound, "cgroup limit"))
    monkeypatch.setattr(memory, "process_bytes", lambda: found.memory.runtime)
    from pt_app.eval_model.judge_train_mps import main

    out = tmp_path / "out"
    flags = [f"--model={base}", f"--data_dir={rows}", f"--output_dir={out}"]
    more = ["--gradient_accumulation=24", "--skip_eval", "--tracking=off"]
    with pytest.raises(UserError, match=r"cgroup limit.*largest part.*--pack_tokens \d+ would fit"):
        main([*flags, *more])
    assert not out.exists()


def test_where_no_pack_fits_the_remedies_are_named_in_order(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    needs = wanted(base, rows, tmp_path)
    needs.limit = memory.Limit(2**20, "cgroup limit")
    with pytest.raises(UserError) as error:
        needs.check()
    said = str(error.value)
    places = [said.index(w) for w in ("--max_seq_length", "--lora_r", "checkpointing", "4 bits")]
    assert places == sorted(places)


def test_a_full_disk_is_said_before_the_run(base: Path, rows: Path, tmp_path: Path) -> None:
    needs = wanted(base, rows, tmp_path)
    needs.free = 1000
    with pytest.raises(UserError, match="choose another --output_dir"):
        needs.check()


def test_timing_leaves_weights_gradients_and_random_numbers_as_they_were(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    settings = settings_of("mps", base, rows, tmp_path, "--lora_dropout=0.1")
    prepared = prepare(settings)
    needs = Estimate(settings, platforms.decide("mps"), prepared)
    model = load("mps", settings, prepared)
    trainer = trainer_of(settings, prepared, model, tmp_path)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state, training = torch.get_rng_state(), model.training
    seconds = time_run(trainer, needs)
    assert all(value > 0 for value in asdict(seconds).values())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training == training
    assert not trainer.optimizers


def told(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    from pt_app.cli import app

    capsys.readouterr()
    app(["estimate", "--json", *flags], standalone_mode=False)
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_gpu_that_is_not_here_is_planned_for_and_told_as_json(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--model={base}", f"--data_dir={rows}", f"--output_dir={tmp_path}", "--epochs=2"]
    gpu = ["--platform", "cuda", "--no_timing", "--gpu_memory"]
    answer = told(capsys, *gpu, "24", *flags)
    assert set(answer) == KEYS
    assert answer["fits"] is True
    assert answer["limit"] == {"bytes": 24 * 2**30, "reason": "--gpu_memory"}
    assert answer["seconds"] is answer["dollars"] is None
    parts = answer["memory"]
    assert parts["total"] == sum(size for name, size in parts.items() if name != "total")
    assert (answer["steps"], answer["examples_a_step"]) == (12, 4)
    assert told(capsys, *gpu, "0.5", *flags)["fits"] is False
    # A precision that this machine may not have.
    half = told(capsys, *gpu, "24", *flags, "--train_precision=bf16", "--no_4bit")
    assert half["memory"]["weights"] > parts["weights"]
    unknown = told(capsys, "--platform", "cuda", "--no_timing", *flags)
    assert unknown["limit"]["bytes"] is None


def test_evaluation_that_may_read_less_than_whole_lines_is_said_to_be_estimated_with_them(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows", test=100)

    def says(data: Path, *flags: str) -> bool:
        lines = wanted(base, data, tmp_path, *flags).lines()
        return any("as if whole lines of verdicts were read" in line for line in lines)

    assert says(data, "--reading=branches")
    assert not says(data, "--reading=branches", "--skip_eval")
    assert not says(data, "--reading=auto")  # eleven verdicts
    assert not says(rows, "--reading=branches")  # too few rows to compare on
    (data / "dataset.json").write_text('{"scale": "0-100"}')
    assert says(data, "--grid=off")
    assert not says(data, "--grid=off", "--reading=exact")
    assert not says(data)  # the grid has ten


def test_times_are_told_in_the_unit_that_a_person_would_use() -> None:
    seconds = Seconds(training=93_960, validation=2_100, evaluation=12, packs=3, spent=1.25)
    (line,) = seconds.lines()
    assert line.startswith(
        "time: about 26.1 h of training, 35 min of validation, 12 s of evaluation"
    )


def test_price_and_time_give_dollars(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--model={base}", f"--data_dir={rows}", f"--output_dir={tmp_path}"]
    answer = told(capsys, "--recipe", "mps", "--price", "0.36", *flags)
    assert answer["dollars"] == pytest.approx(1e-4 * sum(answer["seconds"].values()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [(), ("--recipe", "cpu"), ("--recipe", "cuda", "--no_4bit")])
def test_the_cpu_is_a_platform_and_the_recipe_that_trains_there_is_named(
    base: Path,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
) -> None:
    flags = [f"--model={base}", f"--data_dir={rows}", f"--output_dir={tmp_path}"]
    answer = told(capsys, "--platform", "cpu", *more, "--no_timing", *flags)
    recipe = "cuda" if "cuda" in more else "mps"
    assert (answer["device"], answer["recipe"]) == ("cpu", recipe)
    assert answer["limit"]["bytes"] > 0


def test_an_unknown_platform_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pt_app import cli

    monkeypatch.setattr(sys, "argv", ["judge", "estimate", "--platform", "tpu"])
    with pytest.raises(UserError, match="'auto', 'cpu', 'mps', 'cuda'"):
        cli._run()


def test_rows_that_are_computed_apart_are_packs_of_one(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows", train=5)
    settings = settings_of("mps", base, data, tmp_path, "--epochs=1")
    plan = plan_run(settings, platforms.decide("mps"), prepare(settings), 400, trees=False)
    assert len(plan.packs) == 5


@pytest.mark.parametrize("checkpointing", ["none", slow_case("full")])
def test_operations_are_those_that_torch_counts(
    checkpointing: str, rows: Path, tmp_path: Path
) -> None:
    # So many layers that the last MLP, which is computed at supervised positions only, is few.
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12}
    base = make_model_folder(tmp_path / "deep", **sizes)
    settings = settings_of(
        "mps", base, rows, tmp_path, f"--activation_checkpointing={checkpointing}"
    )
    prepared = prepare(settings)
    outline, plan = plan_of("mps", settings, prepared)
    cost, step = Cost.of(outline, checkpointing == "full"), plan.steps[0]
    model = load("mps", settings, prepared)
    batch = pack([prepared.train[row] for row in step.rows], 0)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        summed_loss(model, batch)
    if checkpointing == "full":
        model.activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    model.train()
    with FlopCounterMode(display=False) as training:
        summed_loss(model, batch).backward()  # type: ignore[no-untyped-call]
    assert cost.forward(step.packs) == pytest.approx(forward.get_total_flops(), rel=0.1)
    assert cost.training(step.packs) == pytest.approx(training.get_total_flops(), rel=0.1)


def test_the_head_is_not_recomputed_where_activations_are(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows", train=5)
    settings = settings_of("mps", base, data, tmp_path, "--epochs=1")
    plan = plan_run(settings, platforms.decide("mps"), prepare(settings), 400, trees=True)
    head, layers = (
        Cost(*sizes, attention=0, checkpointed=True) for sizes in ((0, 0, 1), (1, 0, 0))
    )
    positions = sum(pack.logit_positions for pack in plan.packs)
    assert head.training(plan.packs) == 2 * 2 * positions
    assert layers.training(plan.packs) == 3 * 2 * sum(pack.tokens for pack in plan.packs)
