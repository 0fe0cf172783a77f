"""The runs of one partition in memory."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message

from esper.tamiyo._due import settled
from esper.tamiyo._state import RunState, fold, run_of


class RunLedger:
    """States by run, kept by folding; a run that is over and wholly reported shrinks to its name.

    The name stays so that a record of that run which is delivered again begins nothing: some 100 bytes a run,
    until the process ends.
    """

    def __init__(self) -> None:
        self._runs: dict[str, RunState] = {}
        self._closed: set[str] = set()

    def fold(self, event: Message) -> RunState | None:
        """Take in one event and return its run's state, or None where that run is closed."""
        run_id = run_of(event)
        if run_id in self._closed:
            return None
        state = fold(self._runs.get(run_id, RunState(run_id)), event)
        self._runs[run_id] = state
        return state

    def state(self, run_id: str) -> RunState | None:
        """Return the state of a run that is not closed, or None."""
        return self._runs.get(run_id)

    def close_if_settled(self, run_id: str) -> bool:
        """Forget a run that needs nothing more; return whether it did."""
        state = self._runs.get(run_id)
        if state is None or not settled(state):
            return False
        del self._runs[run_id]
        self._closed.add(run_id)
        return True

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[str]:
        """Yield the runs that are not closed, sorted."""
        return iter(sorted(self._runs))
