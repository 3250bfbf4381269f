"""Running out of memory: how to recognise a failed allocation, and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

from pt_app.core.errors import UserError

# Parts of messages. oneDNN does not mention memory where it cannot allocate; a failure of malloc is
# a MemoryError.
_MESSAGES = (
    "could not create a primitive",
    "could not create a memory object",
    "could not execute a primitive",
    "bad allocation",
    "std::bad_alloc",
    "out of memory",
    "cublas_status_alloc_failed",
)
REMEDIES = (
    "shorter sequences (--max_seq_length), a lower --lora_r, --activation_checkpointing full, "
    "or a base in 4 bits (judge_train_cuda.py without --no_4bit)"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` is a failed allocation, on a GPU or on a CPU.

    On a CPU it is a plain RuntimeError of torch's allocator or of oneDNN, or a MemoryError.
    """
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    message = str(error).lower()
    return bool(should_reduce_batch_size(error)) or any(text in message for text in _MESSAGES)


@contextmanager
def explained(what: str, remedies: str = REMEDIES) -> Iterator[None]:
    """Turn an allocation that fails within into a UserError: `what` ran out of memory, remedies."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first = (str(error).splitlines() or [""])[0][:160]
        raise UserError(f"{what} ran out of memory ({first}); in this order: {remedies}") from error
