"""How a batch is cut for several processes and little memory, without becoming another batch."""

from tinydiffusion.abilities import NotDecomposable


def parts_of_batch(accumulation: int, num_processes: int) -> int:
    """Into how many parts, one after the other, each process cuts its share of a batch.

    At a time it has no more pictures than one process alone would have.

    Args:
        accumulation: Parts that one process alone would cut it into.
        num_processes: That share the batch.
    """
    return -(-accumulation // num_processes)


def advice(batch_size: int, accumulation: int, num_processes: int) -> str:
    """Advise what to change where the parts are not equal; empty where they are."""
    step = parts_of_batch(accumulation, num_processes) * num_processes
    if batch_size % step == 0:
        return ""
    fewer = batch_size // step * step
    near = " or ".join(str(size) for size in (fewer, fewer + step) if size)
    return f"set training.batch_size to {near}"


def check_decomposable(objective: object, accumulation: int, processes: int) -> None:
    """Check that the batches of an objective may be cut as they would be.

    Raises:
        ValueError: it is `abilities.NotDecomposable`, and there is accumulation, or more than one
            process.
    """
    if isinstance(objective, NotDecomposable) and accumulation * processes > 1:
        raise ValueError(
            f"{type(objective).__name__} compares the pictures of a batch with each other, so that "
            "its loss changes where a batch is cut: set training.accumulation to 1 and train in "
            f"one process, got accumulation {accumulation} and {processes} processes"
        )
