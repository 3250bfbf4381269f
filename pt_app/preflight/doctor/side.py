"""The two sides of a comparison: what the device computes, and the reference."""

from dataclasses import dataclass

import torch

from pt_app.preflight.doctor.finding import Finding

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

    @staticmethod
    def of_device(device: str, dtype: torch.dtype) -> "Side":
        """Return the side under test."""
        return Side(device, dtype, dtype)

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


def compared(name: str, error: float, tolerance: float, said: str, fix: str) -> Finding:
    """Return a finding on an error; `said` names it, and is followed by the tolerance."""
    return Finding.of(name, error <= tolerance, f"{said}, at most {tolerance:.0e} is allowed", fix)
