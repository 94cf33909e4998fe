"""When the hooks of a run are called."""

from collections.abc import Callable, Sequence

from tinydiffusion.protocols import Hook


class HookCalls:
    """The hooks of a run, and the positions at which each was last called.

    Args:
        hooks: Each called at the start, when a multiple of its `every` is crossed, at the end.
    """

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = hooks
        self.called_at = [-1] * len(hooks)

    def load(self, called_at: Sequence[int]) -> None:
        """Go on where an earlier run of as many hooks was; one of other hooks is not heeded."""
        if len(called_at) == len(self._hooks):
            self.called_at = list(called_at)

    def call(
        self, pictures_seen: int, call: Callable[[Hook], None], *, final: bool = False
    ) -> None:
        """Have `call` call every hook whose turn it is; at the end, those not called here yet."""
        for i, hook in enumerate(self._hooks):
            last = self.called_at[i]
            if crossed(hook.every, last, pictures_seen) or (final and last < pictures_seen):
                call(hook)
                self.called_at[i] = pictures_seen


def crossed(every: int, before: int, now: int) -> bool:
    """Return whether a multiple of `every` lies beyond `before` and not beyond `now`."""
    return now // every > before // every
