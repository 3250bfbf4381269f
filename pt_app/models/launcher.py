"""The environment variables of launchers: whether they fit together, and what an earlier one left.

accelerate and transformers act on each of them alone, so that one left behind in a shell or a
notebook starts half of a distributed training.
"""

import logging
import os

from pt_app.core import console
from pt_app.core.errors import UserError

# torch's contract with its launchers ("env://"): torchrun and accelerate launch set all of them.
WHOLE = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# What accelerate takes for the number of processes where torch's is not set.
MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# What has accelerate train in another way than the recipes do.
WAYS = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")
OTHER_WAYS = [f"ACCELERATE_USE_{way}" for way in WAYS]
# What `accelerate config` chooses, and the recipes choose themselves.
CHOSEN_HERE = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_CPU")
REMEDY = "to train in one process, or start the recipe with torchrun or accelerate launch"
log = logging.getLogger(__name__)


def check() -> None:
    """Check that the launchers' variables fit together.

    Raises:
        UserError: names the variable to unset.
    """
    for name in filter(_is_on, OTHER_WAYS):
        raise UserError(
            f"{name}={os.environ[name]} selects a backend that no recipe uses: unset {name}, "
            "or launch with a file of scripts/accelerate (a base too large for one GPU: "
            "sharded.yaml and --shard_base)"
        )
    ranks = console.ranks()
    missing = [name for name in WHOLE if not os.environ.get(name)]
    if ranks > 1 and missing:
        raise UserError(
            f"WORLD_SIZE={ranks} is set and {', '.join(missing)} not, so no launcher started this "
            f"process: unset WORLD_SIZE {REMEDY}"
        )
    for name in ("RANK", "LOCAL_RANK"):
        number = console.number(name, 0)
        if number >= ranks or (ranks > 1 and number < 0):
            wrong = f"{name}={number} is no process of WORLD_SIZE={ranks}"
            raise UserError(f"{wrong}: unset {name} and WORLD_SIZE {REMEDY}")
    for name in MPI:
        if ranks == 1 and console.number(name, 1) > 1:
            wrong = f"{name}={os.environ[name]} is set and WORLD_SIZE names no second process"
            raise UserError(f"{wrong}: unset {name} {REMEDY}")


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").lower() not in ("", "no", "false", "0")


def settle() -> None:
    """Check the variables, and drop from this process what is not used; raises as `check`."""
    check()
    unused = list(filter(_is_on, CHOSEN_HERE))
    if console.ranks() == 1:
        alone = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", *MPI)
        unused += [name for name in alone if name in os.environ]
    if unused:
        dropped = ", ".join(f"{name}={os.environ.pop(name)}" for name in unused)
        log.info("launcher: not used here: %s", dropped)


def meet(on_cpu: bool) -> None:
    """Wait for the other processes of a training, if there are any; each gets its device.

    Raises:
        UserError: if they cannot be reached.
    """
    if console.ranks() == 1:
        return
    from accelerate import PartialState

    values = (os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"))
    where = "MASTER_ADDR {}, MASTER_PORT {}, WORLD_SIZE {}".format(*values)
    log.info("waiting for the other processes (%s)", where)
    try:
        PartialState(cpu=on_cpu)
    except (RuntimeError, ValueError, OSError) as error:  # torch's DistError is a RuntimeError
        first = (str(error).splitlines() or [type(error).__name__])[0][:160]
        unreached = f"the other processes cannot be reached ({where}): {first}"
        raise UserError(f"{unreached}: unset WORLD_SIZE {REMEDY}") from error
