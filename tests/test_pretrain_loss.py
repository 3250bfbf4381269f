"""Training from scratch: the chunked loss, bits per byte, baselines and optimizers."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    NanoChatConfig,
    NanoChatForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pt_app.core.errors import UserError
from pt_app.models.packing import IGNORED
from pt_app.pretrain.baselines import baselines, ngram_bits_per_byte
from pt_app.pretrain.batches import in_order
from pt_app.pretrain.loss import HeldOut, NextTokens, check_logits
from pt_app.pretrain.shards import Tokens
from pt_app.training.optimizers import divided, muon_and_adamw, trapezoid

VOCAB = 300
SIZES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48}


def make_model(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCAB, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0, **sizes)
        )
    if kind == "nanochat":  # its logits have a soft cap
        return NanoChatForCausalLM(NanoChatConfig(**SIZES, final_logit_softcapping=0.1))
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=kind == "tied"))


def make_batch(rows: int = 3, length: int = 17) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(VOCAB, (rows, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels[0, :5] = IGNORED
    return {"input_ids": ids[:, :-1], "labels": labels}


def plain(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"]).logits.flatten(0, 1)
    return F.cross_entropy(logits, batch["labels"].flatten(), reduction="sum")


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2", "nanochat"])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_loss_and_gradients_in_chunks_are_those_of_all_logits(kind: str, rows: int) -> None:
    model, batch = make_model(kind).double(), make_batch()
    expected = plain(model, batch)
    loss = NextTokens(chunk=rows * VOCAB).loss(model, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    wanted, found = gradients(model, expected * 0.25), gradients(model, loss * 0.25)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_a_model_that_scales_its_logits_is_refused() -> None:
    """It was trained on another loss than its own, and said nothing."""
    config = GraniteConfig(**SIZES, logits_scaling=8.0, initializer_range=1.0)
    with pytest.raises(UserError, match="granite does more than one product for its logits"):
        check_logits(GraniteForCausalLM(config))
    for kind in ("tied", "untied", "gpt2", "nanochat"):
        check_logits(make_model(kind))


class Largest(TorchDispatchMode):  # type: ignore[misc]
    """The elements of the largest tensor that an operator makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_no_tensor_of_all_tokens_and_the_vocabulary_is_made() -> None:
    model, batch = make_model("tied"), make_batch(8, 60)
    with Largest() as largest:
        NextTokens(chunk=20 * VOCAB).loss(model, batch).backward()
    assert largest.elements < 8 * 60 * VOCAB / 4
    with Largest() as largest:
        plain(model, batch)
    assert largest.elements == 8 * 60 * VOCAB


def test_an_idle_batch_has_neither_loss_nor_gradients() -> None:
    model, objective = make_model("tied"), NextTokens()
    loss = objective.loss(model, objective.idle())
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in gradients(model, loss).values())


def test_smaller_batches_after_memory_ran_out_have_the_same_gradients() -> None:
    model, batch, objective = make_model("tied"), make_batch(5), NextTokens()
    whole = gradients(model, objective.loss(model, batch))
    assert objective.shrink([batch]) == "2 rows"
    parts = objective.batches(model, [batch])
    assert [len(part["input_ids"]) for part in parts] == [2, 2, 1]
    summed = gradients(model, sum((objective.loss(model, p) for p in parts), torch.zeros(())))
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert objective.shrink([batch]) == "1 rows"
    assert objective.shrink([batch]) is None


def test_a_model_whose_head_has_a_bias_is_refused() -> None:
    model = make_model("untied")
    model.lm_head = torch.nn.Linear(32, VOCAB)
    with pytest.raises(UserError, match="choose another model"):
        NextTokens().loss(model, make_batch())


@pytest.mark.parametrize("number", [2, 33, 65, 100])
@pytest.mark.parametrize("rows", [1, 3])
def test_bits_per_byte_are_those_of_each_token_alone(number: int, rows: int) -> None:
    model, sequence = make_model("tied"), 16
    rng = np.random.default_rng(0)
    tokens = rng.integers(VOCAB, size=number).astype(np.uint16)
    lengths = rng.integers(1, 5, size=VOCAB)
    lengths[tokens[1 : number // 2 : 3]] = 0  # special tokens
    batches = partial(in_order, Tokens([tokens]), sequence, rows)
    found = HeldOut(batches, lengths, NextTokens())(model)
    nats = 0.0
    for i in range(1, number):
        if lengths[tokens[i]]:
            before = torch.tensor(tokens[(i - 1) // sequence * sequence : i].astype(np.int64))
            logits = model(input_ids=before[None]).logits[0, -1]
            nats -= logits.log_softmax(-1)[int(tokens[i])].item()
    targets = tokens[1:]
    assert found["n_bytes"] == lengths[targets].sum()
    assert found["n_tokens"] == (lengths[targets] > 0).sum()
    assert found["loss"] * found["n_tokens"] == pytest.approx(nats, rel=1e-5)
    assert found["bpb"] * found["n_bytes"] == pytest.approx(nats / math.log(2), rel=1e-5)


def test_the_probabilities_of_the_ngram_sum_to_one() -> None:
    train = b"the cat sat on the mat, the cat ate the rat" * 3
    before = b"the ca"
    joint = [before + bytes([c]) for c in range(256)]
    total = sum(2 ** -(ngram_bits_per_byte(train, text) * len(text)) for text in joint)
    alone = 2 ** -(ngram_bits_per_byte(train, before) * len(before))
    assert total == pytest.approx(alone, rel=1e-9)


def test_baselines_know_what_they_have_seen() -> None:
    rng = np.random.default_rng(0)
    train, other = (rng.integers(256, size=4000).astype(np.uint8).tobytes() for _ in range(2))
    seen, unseen = baselines(train, train), baselines(train, other)
    assert seen["5-gram"] < 4
    assert seen["xz"] < 0.2
    assert all(7.9 < bits < 10 for bits in unseen.values())
    assert baselines(b"", b"")["5-gram"] == 0


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2", "nanochat"])
@pytest.mark.parametrize("muon", [True, False])
def test_each_parameter_has_one_optimizer(kind: str, muon: bool) -> None:
    model = make_model(kind)
    optimizers = muon_and_adamw(model, 0.01, 0.01, muon=muon)
    assert isinstance(optimizers[0], torch.optim.Muon) == muon
    made = [group["params"] for optimizer in optimizers for group in optimizer.param_groups]
    held = [id(p) for params in made for p in params]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    matrices = {id(p) for p in divided(model)[0]}
    names = [name for name, p in model.named_parameters() if id(p) in matrices]
    assert all("layers." in name or ".h." in name for name in names)
    assert len(names) == {"gpt2": 4, "nanochat": 6}.get(kind, 7)


def test_muon_takes_the_steps_of_linear_layers_where_gpt2_stores_their_transposes() -> None:
    model = make_model("gpt2")
    matrices = divided(model)[0]
    plain = [p.detach().T.clone().requires_grad_() for p in matrices]
    reference = torch.optim.Muon(plain, lr=0.02, weight_decay=0.5)
    muon = muon_and_adamw(model, 0.02, 0.01, 0.5)[0]
    before = [p.detach().clone() for p in matrices]
    for _ in range(2):
        for own, other in zip(matrices, plain, strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.T.clone()
        muon.step()
        reference.step()  # type: ignore[no-untyped-call]
    for own, other, first in zip(matrices, plain, before, strict=True):
        wanted = other.T - first
        assert (own - first - wanted).norm() < 0.05 * wanted.norm()  # Muon rounds to bfloat16


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [trapezoid(10, 0.5, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(rates[10:51]) == {1.0}
    assert rates[75] == pytest.approx(0.5)
    assert rates[100] == 0
    assert trapezoid(10, 0.5, 0, 3) == pytest.approx(1 / 3)
    assert trapezoid(0.02, 0.5, 0, 100) == 0.5
