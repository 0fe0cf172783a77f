"""The edge of a loop of the user's own, which also tells what Kasmina counts."""

from __future__ import annotations

from esper.leyline import messages as ly
from esper.tolaria import EpochEdge, controller_telemetry


class TellingEdge(EpochEdge):
    """An edge after which the controller's figures and notices are handed over as telemetry; nobody waits for it."""

    def close(self, packet: ly.SystemStatePacket) -> ly.CommandOutcome:
        """Pass the edge as `EpochEdge.close` does, and tell."""
        outcome = super().close(packet)
        telemetry = controller_telemetry(
            self._controller,
            run_id=self._run_id,
            attempt=self._attempt,
            epoch=packet.current_epoch,
            now_ns=self._clock.now_ns(),
        )
        self._journal.submit_telemetry(packet.current_epoch, telemetry)
        return outcome
