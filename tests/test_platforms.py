"""What the machine changes, decided once; and matmul on the CPU that is fast and still exact."""

import subprocess
import sys

import pytest
import torch

from pt_app.core.errors import UserError
from pt_app.models import gemm, platforms
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def fresh_choice():
    gemm._compare_matmuls.cache_clear()
    yield
    gemm._compare_matmuls.cache_clear()


def test_fast_matmul_is_as_exact_as_the_slow_one():
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(n, 700, generator=generator) for n in (300, 900))
    exact = x.double() @ weight.double().T
    with gemm.fast_matmul(torch.device("cpu")):
        fast = torch.get_float32_matmul_precision()
        error = float((torch.nn.functional.linear(x, weight) - exact).norm() / exact.norm())
    assert error < 1e-6
    assert fast == ("medium" if gemm.should_use_fast_matmul() else "highest")
    assert torch.get_float32_matmul_precision() == "highest"


def test_matmul_that_rounds_to_bfloat16_is_refused(monkeypatch):
    linear = torch.nn.functional.linear

    def as_with_amx(x, weight):
        if torch.get_float32_matmul_precision() == "medium":
            return linear(x.bfloat16(), weight.bfloat16()).float()
        return linear(x, weight)

    monkeypatch.setattr(gemm.F, "linear", as_with_amx)
    monkeypatch.setattr(gemm, "FASTER", 0.0)
    assert not gemm.should_use_fast_matmul()
    with gemm.fast_matmul(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "highest"


def test_matmul_that_is_no_faster_is_left(monkeypatch):
    monkeypatch.setattr(gemm, "_speedup", lambda *ways: 1.0)
    assert not gemm.should_use_fast_matmul()


def test_matmul_of_a_gpu_is_not_touched(monkeypatch):
    monkeypatch.setattr(gemm, "should_use_fast_matmul", lambda: True)
    with gemm.fast_matmul(torch.device("meta")):
        assert torch.get_float32_matmul_precision() == "highest"


def on_cpu_only():
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has an accelerator")


def test_bfloat16_base_is_taken_where_the_processor_has_it(monkeypatch):
    on_cpu_only()
    monkeypatch.setattr(gemm, "has_bfloat16", lambda: True)
    platform = platforms.decide("mps", precision="bf16")
    assert (platform.weights, platform.compute_dtype) == ("bfloat16", torch.bfloat16)
    assert platform.mixed_precision == "no"
    assert platform.loss_tolerance > platforms.decide("mps").loss_tolerance
    assert platforms.decide("cuda", no_4bit=True, precision="bf16").weights == "bfloat16"


def test_bfloat16_that_would_be_emulated_or_mixed_with_nf4_is_refused(monkeypatch):
    on_cpu_only()
    monkeypatch.setattr(gemm, "has_bfloat16", lambda: True)
    with pytest.raises(UserError, match="with NF4 weights: add --no_4bit, or leave it out"):
        platforms.decide("cuda", precision="bf16")
    monkeypatch.setattr(gemm, "has_bfloat16", lambda: False)
    with pytest.raises(UserError, match="no bfloat16 instructions"):
        platforms.decide("mps", precision="bf16")


def test_float32_is_what_the_recipe_for_apple_takes_by_itself():
    on_cpu_only()
    asked, own = platforms.decide("mps", precision="float32"), platforms.decide("mps")
    assert (asked.weights, asked.compute_dtype) == (own.weights, own.compute_dtype)


KERNELS = """
import ctypes, torch
from pt_app.models import gemm, platforms
class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefg"] + [("used", ctypes.c_size_t * 3)]
mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
mallinfo.restype = Heap
platforms.decide("mps")
weight = torch.zeros(64, 64)
def multiply(shapes):
    for rows in shapes:
        torch.nn.functional.linear(torch.zeros(rows, 64), weight)
    return mallinfo().used[0]
print(multiply(range(1, 200)), multiply(range(200, 900)))
"""


@pytest.mark.skipif(
    not gemm.should_use_fast_matmul() or sys.platform != "linux", reason="no matmul through oneDNN"
)
def test_matmuls_of_ever_new_shapes_do_not_fill_the_memory():
    done = subprocess.run([sys.executable, "-c", KERNELS], cwd=ROOT, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert after - before < 10 * 2**20  # without a bound 390 MB


@pytest.mark.parametrize("recipe", ["mps", "cuda"])
def test_a_gpu_is_left_alone_where_the_cpu_is_asked_for(recipe, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    platform = platforms.decide(recipe, on_cpu=True)
    assert platform.on_cpu
    assert f"judge_train_{recipe}.py" in platform.reason
