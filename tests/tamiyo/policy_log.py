"""Versions of the learned policy on a real log: made, validated, promoted and rolled back as Simic and people do."""

from __future__ import annotations

from dataclasses import dataclass, field

from esper.core.ids import new_event_id
from esper.leyline import messages as ly
from esper.oona import Fabric, PolicyBoard
from tests.core.policy.support import network, update

KEY = "tamiyo"


def fresh_version() -> str:
    """Return a name that no other test uses: the session's log is one."""
    return f"v-{new_event_id()[:10]}"


@dataclass
class PolicyLog:
    """Writes the topic `policy`; every call returns when the log has acknowledged it."""

    fabric: Fabric
    updates: dict[str, ly.PolicyUpdate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._simic, self._cli = self.fabric.publisher("simic"), self.fabric.publisher("cli")

    def make(self, *, seed: int = 0, version: str = "") -> str:
        """Append a version with weights of its own, and return its name."""
        name = version or fresh_version()
        self.updates[name] = update(network(seed), version=name)
        self._simic.publish(self.updates[name], key=KEY)
        return name

    def validate(self, version: str, *, passed: bool = True) -> str:
        """Append a validation, and return its event id."""
        event = ly.PolicyValidated(
            policy_id=KEY, tamiyo_policy_version=version, policy_digest=self.digest(version), passed=passed
        )
        self._simic.publish(event, key=KEY)
        return event.meta.event_id

    def promote(self, version: str) -> str:
        """Validate and promote a version; return the promotion's event id."""
        event = ly.PolicyPromoted(
            policy_id=KEY,
            tamiyo_policy_version=version,
            policy_digest=self.digest(version),
            validation_event_id=self.validate(version),
            issued_by="simic",
        )
        self._simic.publish(event, key=KEY)
        return event.meta.event_id

    def roll_back(self, version: str, to: str = "") -> str:
        """Give a version up for another one, or for none, as a person does."""
        event = ly.PolicyRolledBack(
            policy_id=KEY,
            tamiyo_policy_version=version,
            policy_digest=self.digest(version),
            restored_policy_version=to,
            restored_policy_digest=self.digest(to) if to else "",
            issued_by="ann",
            reason="a test",
        )
        self._cli.publish(event, key=KEY)
        return event.meta.event_id

    def digest(self, version: str) -> str:
        """Return the digest of a version that was made here."""
        return self.updates[version].policy_digest

    def clear(self) -> None:
        """Leave the log as a home without a promotion: no version decides."""
        with PolicyBoard(self.fabric) as board:
            current = board.read().current
        if current is not None:
            event = ly.PolicyRolledBack(
                policy_id=KEY,
                tamiyo_policy_version=current.name,
                policy_digest=current.digest,
                issued_by="ann",
                reason="a test is over",
            )
            self._cli.publish(event, key=KEY)
