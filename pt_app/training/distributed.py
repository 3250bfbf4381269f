"""What processes that train together share: flags, gradients, and a base sharded over them."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether `flag` is true on any rank; a collective, which every rank must call."""
    return bool(largest(int(flag), device))


def largest(number: int, device: torch.device) -> int:
    """Return the maximum of `number` over the ranks; a collective, which every rank must call."""
    if not _several():
        return number
    maximum = torch.tensor(number, device=device)
    dist.all_reduce(maximum, op=dist.ReduceOp.MAX)
    return int(maximum)


def same_start(model: torch.nn.Module) -> None:
    """Broadcast the trainable weights of rank 0."""
    for parameter in model.parameters() if _several() else ():
        if parameter.requires_grad:
            dist.broadcast(parameter.data, src=0)


def shard_base(model: torch.nn.Module, device: str) -> None:
    """Shard the frozen weights over the ranks (FSDP2); each layer is gathered when it computes.

    The adapter stays whole on every rank, so that checkpoints, optimizer and adapter are those of
    one process. Every rank must then run as many forward and backward passes as the others. A base
    that was read on the CPU moves to `device` one layer at a time: no GPU ever holds all of it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.partition(":")[0], (dist.get_world_size(),))
    adapter = {p for p in model.parameters() if p.requires_grad}
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    for layer in [*layers, model]:
        # torch would leave the root unsharded after a forward pass, and rank 0 would shard it again
        # when it saves: the other ranks would then wait for it forever.
        fully_shard(layer, mesh=mesh, ignored_params=adapter, reshard_after_forward=True)
    for parameter in adapter:
        parameter.data = parameter.data.to(device)


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace the `.grad` of each trainable parameter by its mean over the ranks.

    One all-reduce of one flat tensor at the end of a step, where DDP would reduce during the
    backward passes: ranks may have different numbers of packs, or none, and a rank that runs out
    of memory does not leave the others waiting. The gradients of an adapter are a few MB.
    """
    if not _several():
        return
    gradients = []
    for parameter in (p for p in parameters if p.requires_grad):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = parameters_to_vector(gradients)
    dist.all_reduce(flat)
    vector_to_parameters(flat / dist.get_world_size(), gradients)


def is_lost_rank(error: BaseException) -> bool:
    """Return whether a collective failed because another process of the training is gone."""
    # The errors of Gloo are plain RuntimeErrors that name its source file.
    return _several() and (
        isinstance(error, dist.DistError)
        or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
    )


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
