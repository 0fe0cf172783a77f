"""The learned policy that decides now, and those of a version that a run names: from the log to something that decides.

A version is unpacked and asked once before it is used, so that no packet waits for it; the one before it is kept, so
that a rollback is there at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Final, Self

from google.protobuf.message import DecodeError

from esper.core.crash_points import crash_point
from esper.core.errors import IntegrityError
from esper.core.policy import PolicyRefused, Standing, Term, Version
from esper.leyline import messages as ly
from esper.oona import Fabric, OnRefused, PolicyBoard, Publisher, unknown_version
from esper.tamiyo._actions import action_space
from esper.tamiyo._facts import PacketFacts, SlotFacts
from esper.tamiyo._learned import LEARNED, Drawing, LearnedPolicy, pinned_version
from esper.tamiyo._observation import observe
from esper.tamiyo._policy import NoLearnedPolicy

if TYPE_CHECKING:
    from esper.core.policy import PolicyNetwork

_logger = logging.getLogger("esper.tamiyo")

#: The package's own version, a serialised PolicyUpdate.
_SHIPPED_FILE: Final = "default_policy.binpb"
#: Versions that runs name are kept unpacked up to this many: a comparison rarely has more arms.
_PINNED_MAX: Final = 8


def shipped_policy() -> ly.PolicyUpdate | None:
    """Return the version that comes with the package; None where none does.

    Raises:
        PolicyRefused: the file is no policy.
    """
    file = resources.files("esper.tamiyo").joinpath(_SHIPPED_FILE)
    if not file.is_file():
        return None
    try:
        return ly.PolicyUpdate.FromString(file.read_bytes())
    except DecodeError as error:
        raise PolicyRefused("weights", f"{_SHIPPED_FILE} of the package is no PolicyUpdate") from error


@dataclass(frozen=True)
class _Ready:
    """What decides now, with its network and the one to go back to; replaced whole, so that any thread may look."""

    term: Term
    #: Digest -> network, of the current version and the one before it.
    networks: Mapping[str, PolicyNetwork] = field(default_factory=dict)


class LearnedPolicies:
    """Follows the topic `policy` and gives the policy for a name out of `learned` and `learned@VERSION`.

    `read` and `latest` belong to one thread at a time, `policy` may be asked from any. What is refused is set aside
    through `rejects`, where that is given; `on_refused` is called with what was refused after the first `read`.
    """

    def __init__(
        self, fabric: Fabric, *, rejects: Publisher | None = None, on_refused: OnRefused | None = None
    ) -> None:
        self._board = PolicyBoard(fabric, shipped=shipped_policy(), rejects=rejects, on_refused=on_refused)
        self._ready = _Ready(Term(None, "", None, promoted=False))
        #: A term whose network cannot be had any more, and why: it is not asked for again.
        self._unusable: tuple[Term, str] | None = None
        self._pinned: dict[str, PolicyNetwork] = {}
        self._lock = threading.Lock()
        self._caught_up = False

    @property
    def standing(self) -> Standing:
        """The standing as far as it was read."""
        return self._board.standing

    @property
    def term(self) -> Term:
        """The term of the version that decides here: of `standing`, as soon as its network is ready."""
        return self._ready.term

    def read(self) -> Term:
        """Take in all that the log says now, and return the term that holds.

        Raises:
            NotReadyError, BrokerUnavailable: the topic could not be read.
        """
        self._prepare(self._board.read().term)
        self._caught_up = True
        return self._ready.term

    def latest(self, wait_seconds: float = 0.0) -> Term:
        """Take in what has arrived, waiting up to `wait_seconds` for the next event; raises as `read`."""
        if not self._caught_up:
            return self.read()
        self._prepare(self._board.latest(wait_seconds).term)
        return self._ready.term

    def policy(self, name: str, parameters: Mapping[str, float]) -> LearnedPolicy:
        """Return the policy called `learned` or `learned@VERSION`, which is ready to decide.

        Raises:
            NoLearnedPolicy: no version decides.
            UsageError: there is no such version, or not with these parameters.
            NotReadyError, BrokerUnavailable, IntegrityError: the version's weights could not be read again.
        """
        if not self._caught_up:
            self.read()
        drawing = Drawing.from_parameters(parameters)
        wanted = pinned_version(name)
        ready = self._ready
        if not wanted:
            version = ready.term.version
            if version is None:
                raise no_learned_policy(self._unusable[1] if self._unusable else "")
            network, appointed_by = ready.networks[version.digest], ready.term.event_id
        else:
            network, version = self._named(wanted, ready)
            appointed_by = ""
        return LearnedPolicy(
            network, name=name, version=version.name, digest=version.digest, drawing=drawing, appointed_by=appointed_by
        )

    def update(self, version: str) -> ly.PolicyUpdate:
        """Return the update that made a version; raises as `PolicyBoard.update`."""
        return self._board.update(version)

    def close(self) -> None:
        """Release the connection; closing twice does nothing."""
        self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, term: Term) -> None:
        """Have the networks of a new term at hand before anybody sees it."""
        before = self._ready
        if term == before.term or (self._unusable is not None and term == self._unusable[0]):
            return
        crash_point("tamiyo.appointed")
        wanted = [version for version in (term.version, term.previous) if version is not None]
        try:
            networks = {version.digest: self._network(version, before.networks) for version in wanted}
        except IntegrityError as error:
            self._unusable = term, str(error)
            _logger.warning("what decided before goes on: %s", error)
            return
        self._ready = _Ready(term, networks)
        crash_point("tamiyo.swapped")
        if term.version is not None:
            _logger.info("version %s decides from now on", term.version.name)
        elif before.term.version is not None:
            _logger.warning("version %s was given up, and none decides in its place", before.term.version.name)

    def _network(self, version: Version, at_hand: Mapping[str, PolicyNetwork]) -> PolicyNetwork:
        found = at_hand.get(version.digest)
        if found is None:
            from esper.core.policy import unpack  # torch comes with it

            found = unpack(self._board.update(version.name))
            _ask_once(found)
        return found

    def _named(self, wanted: str, ready: _Ready) -> tuple[PolicyNetwork, Version]:
        version = self._board.standing.versions.get(wanted)
        if version is None:
            raise unknown_version(wanted, self._board.standing)
        with self._lock:
            network = self._network(version, {**self._pinned, **ready.networks})
            self._pinned.pop(version.digest, None)
            self._pinned[version.digest] = network
            if len(self._pinned) > _PINNED_MAX:
                self._pinned.pop(next(iter(self._pinned)))
        return network, version


def no_learned_policy(cause: str = "") -> NoLearnedPolicy:
    """Return the error for asking for `learned` where no version decides, for the `cause` if there is another one."""
    return NoLearnedPolicy(
        f"policy {LEARNED!r} cannot decide",
        cause=cause or "the version that decided in this home was given up, and none decides in its place",
        next_step=f"`esper policy promote` promotes one; `{LEARNED}@VERSION` names one that was made",
    )


def _ask_once(network: PolicyNetwork) -> None:
    """Have a network decide about an invented run: what a first call costs is paid before a run waits for it."""
    slot = SlotFacts("warm", "branch", "vector", 1, 1, 0, "")
    packet = PacketFacts("warm", 1, 1, 1, LEARNED, 0, 1.0, 1.0, 0.0, 1, 1, seeds=(), slots=(slot,))
    observation = observe((packet,), ())
    policy = LearnedPolicy(network, version="warm", digest="")
    policy.propose(observation, action_space(observation, policy.options))
