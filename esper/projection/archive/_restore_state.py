"""How far a restore came, kept in the home until it is done: a restore that is killed goes on from there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from esper.core.errors import SettingsError
from esper.core.home import Home
from esper.projection.archive._layout import write_whole


class Phase(StrEnum):
    """What is being done."""

    TOPICS = "topics"
    RECORDS = "records"
    CLOSING = "closing"


@dataclass(frozen=True)
class RestoreState:
    """Which seal is being written onto which cluster, and how far that came."""

    seal: int
    seal_digest: str
    cluster_id: str
    phase: Phase

    def at(self, phase: Phase) -> RestoreState:
        """Return it in another phase."""
        return replace(self, phase=phase)


def remember(home: Home, state: RestoreState) -> RestoreState:
    """Keep and return a state; durable on return."""
    write_whole(_path(home), json.dumps(asdict(state)).encode())
    return state


def recall(home: Home) -> RestoreState | None:
    """Return the state of an unfinished restore.

    Raises:
        SettingsError: the file cannot be read.
    """
    path = _path(home)
    try:
        fields = json.loads(path.read_bytes())
        return RestoreState(fields["seal"], fields["seal_digest"], fields["cluster_id"], Phase(fields["phase"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{path} cannot be read",
            cause=str(error),
            next_step="Remove it; the restore then wants an empty cluster",
        ) from error


def forget(home: Home) -> None:
    """Let go of the state of a restore that is done."""
    _path(home).unlink(missing_ok=True)


def _path(home: Home) -> Path:
    return home.root / "archive-restore.json"
