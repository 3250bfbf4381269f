"""The two sides of a comparison: what the device computes, and what it should have."""

from dataclasses import dataclass

import torch

# How far the largest error may lie from the largest value: 100 times the rounding of float32 over
# the sums of a small model, and some 3 times that of the 16-bit formats (their 7 and 10 bits).
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Side:
    """Where tensors live, in which precision they are computed, to which they are rounded first.

    The reference computes in float64 on the CPU with the very values that the device has.
    """

    device: str
    dtype: torch.dtype
    rounded_to: torch.dtype

    @staticmethod
    def of_device(device: str, dtype: torch.dtype) -> "Side":
        """The side that is under test."""
        return Side(device, dtype, dtype)

    def reference(self) -> "Side":
        """The side that is believed: float64 on the CPU, from the same rounded values."""
        return Side("cpu", torch.float64, self.rounded_to)

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Round a tensor of floats as both sides do, and move it to this one."""
        return tensor.to(self.rounded_to).to(self.device, self.dtype)

    def draw(self, *shape: int, seed: int = 0, requires_grad: bool = False) -> torch.Tensor:
        """Normal numbers, the same on both sides."""
        generator = torch.Generator().manual_seed(seed)
        drawn = self.put(torch.randn(*shape, generator=generator))
        return drawn.requires_grad_(requires_grad)


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU; in two steps, since MPS has no float64 to convert to."""
    return tensor.detach().cpu().double()


def error_of(got: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference over the largest value of `right`; infinite where one is not finite.

    Values that are not finite on both sides at the same places are right, too.
    """
    got, right = in_float64(got), in_float64(right)
    finite = torch.isfinite(right)
    if got.shape != right.shape or not torch.equal(torch.isfinite(got), finite):
        return float("inf")
    largest = float(right[finite].abs().max()) if finite.any() else 0.0
    difference = float((got - right)[finite].abs().max()) if finite.any() else 0.0
    return difference / max(largest, 1e-30)
