"""Which way the processes of a run share an objective."""

from torch import nn

from tinydiffusion.runtime.processes import Processes
from tinydiffusion.training.parallel.contract import Parallel, Strategy
from tinydiffusion.training.parallel.replicated import Replicated


def parallel(objective: nn.Module, processes: Processes, strategy: Strategy) -> Parallel:
    """The objective as the processes of a run hold it; of one process, as it is."""
    if processes.count > 1 and strategy == "fsdp":
        # of all who build an objective few need it, and it takes most of a second to import
        from tinydiffusion.training.parallel.sharded import Sharded

        return Sharded(objective, processes)
    return Replicated(objective, processes)
