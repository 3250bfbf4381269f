"""What processes that train together tell each other: a flag, and the gradients of a step."""

from collections.abc import Iterable

import torch
import torch.distributed as dist


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true on this rank or on any other; every rank must ask."""
    if not _several():
        return flag
    told = torch.tensor(int(flag), device=device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return bool(told)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Put the mean of all ranks' gradients into each trainable parameter's `.grad`.

    One exchange of one flat tensor at the end of a step, instead of DDP's during the last backward
    pass: ranks may have different numbers of packs, or none, and a rank that runs out of memory in
    its last pack leaves no other waiting. An adapter's gradients are a few MB.
    """
    if not _several():
        return
    trained = [p for p in parameters if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in trained if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    means = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def is_lost_rank(error: BaseException) -> bool:
    """Whether an exchange failed because another process of the training is gone."""
    # Gloo's own errors are plain RuntimeErrors that name its source file.
    return _several() and (
        isinstance(error, dist.DistError)
        or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
    )


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
