"""Compare operations that a backend has computed wrongly in silence with float64 on the CPU.

Each was a fault of a released PyTorch; operations.yaml names its source and its fix. The sizes are
those at which the fault occurred, so that a check takes a few milliseconds.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
import yaml
from transformers.integrations.sdpa_attention import repeat_kv

from pt_app.models.packing import IGNORED, Tree
from pt_app.models.tree_attention import tree_mask
from pt_app.preflight.doctor.finding import FIXES, Finding, Status, run_check

Tensors = Sequence[torch.Tensor]
# Maximum error relative to the largest value: 100 times the rounding of float32 over the sums of a
# small model, and about 3 times that of the 16-bit formats (7 and 10 bits).
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Side:
    """A device, the precision that it computes in, and the one that inputs are rounded to first.

    The reference computes in float64 on the CPU, with exactly the values that the device has.
    """

    device: str
    dtype: torch.dtype
    rounded_to: torch.dtype

    def reference(self) -> "Side":
        """Return the reference: float64 on the CPU, with the same rounded values."""
        return Side("cpu", torch.float64, self.rounded_to)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Round a floating-point tensor as both sides do, and move it to this side."""
        return tensor.to(self.rounded_to).to(self.device, self.dtype)

    def draw(self, *shape: int, seed: int = 0, requires_grad: bool = False) -> torch.Tensor:
        """Draw normally distributed numbers, the same on both sides."""
        generator = torch.Generator().manual_seed(seed)
        drawn = self.put(torch.randn(*shape, generator=generator))
        return drawn.requires_grad_(requires_grad)


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the CPU, in two steps, since MPS has no float64 to convert to."""
    return tensor.detach().cpu().double()


def error_of(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference over the largest expected value.

    Values that are not finite must be so on both sides at the same places; else it is infinite.
    """
    actual, expected = in_float64(actual), in_float64(expected)
    finite = torch.isfinite(expected)
    if actual.shape != expected.shape or not torch.equal(torch.isfinite(actual), finite):
        return float("inf")
    if not finite.any():
        return 0.0
    difference = float((actual - expected)[finite].abs().max())
    return difference / max(float(expected[finite].abs().max()), 1e-30)


@dataclass(frozen=True)
class Operation:
    """An operation that a backend computed wrongly; operations.yaml explains the fields."""

    name: str
    compute: Callable[[Side], Tensors]
    source: str
    fix: str = FIXES["operation"]
    used: bool = True
    bits: Collection[int] = (16, 32)


def masked_row(side: Side) -> Tensors:
    """Compute attention in which one query sees no key."""
    query = side.draw(1, 2, 6, 16)
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    seen[3] = False
    with torch.no_grad():  # the fault occurs without gradients only
        return [F.scaled_dot_product_attention(query, query, query, seen.to(side.device))]


def broadcast_mask(side: Side) -> Tensors:
    """Compute attention with a mask that all heads of a row share."""
    query = side.draw(2, 4, 8, 64)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, 0, 4:, :4] = -torch.inf
    return [F.scaled_dot_product_attention(query, query, query, side.put(mask))]


def strided_attention(side: Side) -> Tensors:
    """Compute attention with transposed heads, as models do; up to 8 queries use another kernel."""
    query = side.draw(2, 8, 4, 64).transpose(1, 2)
    with torch.no_grad():
        return [F.scaled_dot_product_attention(query, query, query)]


def tree_attention(side: Side) -> Tensors:
    """Compute attention over a pack as a model does, with transposed heads and shared keys."""
    last = Tree.of([range(40), [*range(30), 50, 51, 52], [*range(30), 60]]).last
    heads = [(4, 1), (2, 2), (2, 3)]
    drawn = [side.draw(1, len(last), h, 32, seed=s, requires_grad=True) for h, s in heads]
    query, key, value = (tensor.transpose(1, 2) for tensor in drawn)
    key, value = (repeat_kv(tensor, 2) for tensor in (key, value))
    seen = tree_mask(torch.tensor(last)).to(side.device)
    out = F.scaled_dot_product_attention(query, key, value, seen)
    return [out, *torch.autograd.grad((out * side.draw(*out.shape, seed=4)).sum(), drawn)]


def strided_weight(side: Side) -> Tensors:
    """Compute a linear layer whose weight is a transposed view, with its gradient."""
    x = side.draw(3, 5, 48, requires_grad=True)
    weight = side.draw(48, 96, seed=1).t()
    out = F.linear(x, weight)
    return [out, *torch.autograd.grad(out.square().sum(), [x])]


def vector_with_bias(side: Side) -> Tensors:
    """Compute a linear layer with a bias on single tokens."""
    return [F.linear(side.draw(80, 1, 4), side.draw(192, 4, seed=1), side.draw(192, seed=2))]


def same_twice(side: Side) -> Tensors:
    """Compute the same matmul twice."""
    x, weight = side.draw(6, 6, 634), side.draw(634, 634, seed=1)
    first = F.linear(x, weight).clone()
    return [first, F.linear(x, weight).clone()]


def long_sum(side: Side, terms: int = 33_001) -> Tensors:
    """Compute the gradient through a head of `terms` tokens, a matmul that sums as many terms.

    In memory large numbers follow the weight, which a kernel that reads too far adds in.
    """
    hidden = side.draw(1, 16, 16, requires_grad=True)
    memory = torch.full(((terms + 64) * 16,), 100.0)
    memory[: terms * 16] = torch.randn(terms * 16, generator=torch.Generator().manual_seed(1))
    weight = side.put(memory)[: terms * 16].view(terms, 16)
    upstream = side.draw(1, 16, terms, seed=2)
    return torch.autograd.grad((F.linear(hidden, weight) * upstream).sum(), [hidden])


def adam_parts(side: Side) -> Tensors:
    """Compute the in-place operations of Adam's step on transposed tensors."""
    value, first = side.draw(48, 32).t(), side.draw(48, 32, seed=1).t()
    second = side.draw(32, 48, seed=2).abs() + 1
    divided = value.clone().addcdiv_(first, second, value=-0.1)
    multiplied = value.clone().addcmul_(first, second, value=0.1)
    return [divided, multiplied, value.clone().lerp_(first, 0.1)]


def skipped_adam_step(side: Side) -> Tensors:
    """Take a step of the fused Adam that an overflow forbids."""
    weight = torch.nn.Parameter(side.draw(64))
    weight.grad = torch.ones_like(weight)
    adam = torch.optim.Adam([weight], fused=True)
    # So torch's gradient scaler reports an overflow: the step must be skipped.
    adam.found_inf = torch.ones((), device=side.device)  # type: ignore[attr-defined]
    adam.grad_scale = torch.ones((), device=side.device)  # type: ignore[attr-defined]
    adam.step()
    return [weight]


def ignored_targets(side: Side) -> Tensors:
    """Compute the cross-entropy where a third of the targets is ignored, with its gradient."""
    logits = side.draw(12, 50, requires_grad=True)
    targets = torch.arange(12).masked_fill(torch.arange(12) % 3 == 0, IGNORED).to(side.device)
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return [loss, *torch.autograd.grad(loss, [logits])]


def copies(side: Side) -> Tensors:
    """Assign, copy, flip and slice integers that float32 cannot represent."""
    counted = torch.arange(1000).to(side.device)
    counted[10], counted[990:] = 2**24 + 1, counted[:10].clone()
    picked = counted.flip(0)[::3]
    return [counted.cpu(), picked.cpu()]


_ABOUT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
# The file names the functions of this module.
OPERATIONS = [Operation(compute=globals()[name], **about) for name, about in _ABOUT.items()]


def check_operations(device: str, dtype: torch.dtype, vocabulary: int) -> Iterator[Finding]:
    """Compare each operation in float32, and also in the compute dtype if that has 16 bits.

    Args:
        device: the device under test.
        dtype: the compute dtype.
        vocabulary: the size of the base's head.
    """
    # At the size of this very head, since some sizes fill the tiles of the kernel and are right.
    source = _ABOUT["long_sum"]["source"]
    head = Operation(f"head of {vocabulary:,} tokens", partial(long_sum, terms=vocabulary), source)
    formats = tuple(dict.fromkeys((torch.float32, dtype)))
    for operation in (*OPERATIONS, head):
        dtypes = [d for d in formats if 8 * d.itemsize in operation.bits]
        if dtypes:
            yield from run_check(operation.name, partial(_compare, operation, device, dtypes))


def _compare(operation: Operation, device: str, dtypes: Sequence[torch.dtype]) -> Iterator[Finding]:
    errors = {}
    for dtype in dtypes:
        side = Side(device, dtype, dtype)
        pairs = zip(operation.compute(side), operation.compute(side.reference()), strict=True)
        errors[dtype] = max(error_of(*pair) for pair in pairs)
    right = all(error <= TOLERANCE[dtype] for dtype, error in errors.items())
    shown = (f"{str(dtype).removeprefix('torch.')} {error:.0e}" for dtype, error in errors.items())
    said = f"{', '.join(shown)} off float64 on the CPU"
    said += "" if right else f"; seen before on {operation.source}"
    status: Status = "ok" if right else "fail" if operation.used else "warn"
    yield Finding(operation.name, status, said, "" if right else operation.fix)
