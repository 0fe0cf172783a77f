"""What the seed manager does beside its seeds: it keeps house at each edge, times its work and looks ahead."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from esper.core.inputs import Inputs, Targets
from esper.core.ports import EdgeDecision
from esper.kasmina.grafting._seed import Role
from esper.kasmina.household._household import GraftStall
from esper.kasmina.isolation._loads import LoadWatch
from esper.kasmina.manager._returns import ManagerReturns
from esper.leyline import messages as ly
from esper.leyline.registry import EventMessage

#: Operations whose edge brings something new into the host's step.
_GRAFTS = frozenset({ly.SEED_OP_GERMINATE, ly.SEED_OP_START_GRAFTING})
_TIMED_STAGES = {ly.SEED_STAGE_GERMINATED: "germinate", ly.SEED_STAGE_BLENDING: "blend"}


class ManagerCare(ManagerReturns):
    """Measures time, which steers nothing unless latencies are enforced, and memory, whose verdicts are recorded."""

    _loads: LoadWatch | None = None

    @property
    def stalls(self) -> list[GraftStall]:
        """The latest grafts, oldest first, each with how long training stood still for it."""
        return list(self._house.stalls)

    # -- between the steps of a loop of the user's own -------------------------------------------------------

    def watch_loads(self, model: nn.Module) -> None:
        """From now to `close` take weights that are loaded into the model for nobody's step."""
        self._loads = LoadWatch(model, self._take_loaded)

    def _take_loaded(self) -> None:
        """Take the seeds that joined the host as they are now; those that did not cannot be loaded with it."""
        live = self._bed.live
        joined = [seed_id for seed_id in self._bed.own() if live[seed_id].seed.role is not Role.ISOLATED]
        self._bed.monitor.host_step_begins(joined)

    def before_edge(self) -> None:
        """Count what was written to seeds since the last step; where an edge is no part of a step, call it first."""
        self._bed.monitor.host_step_ended(self._bed.own(), unheard=())

    def after_edge(self) -> None:
        """Take the seeds as the edge left them: one that returned to a checkpoint wrote to them, in no step."""
        self._bed.monitor.host_step_begins(self._bed.own())

    # -- timed work ------------------------------------------------------------------------------------------

    def after_step(self, inputs: Inputs, targets: Targets) -> None:
        """Train every seed on this batch and let alpha rise; call it after the host's optimiser step."""
        super().after_step(inputs, targets)
        self._house.step_ended()

    def end_epoch(self, epoch: int) -> list[EventMessage]:
        """Do what an edge begins with (`ManagerEdges.end_epoch`), timed, and look after memory and latencies."""
        self._house.steps_over()
        with self._house.latencies.timed("measure"):
            events = super().end_epoch(epoch)
        self._house.close_epoch(epoch, isolated=self._bed.monitor.allows)
        return events

    def decide(
        self,
        command: ly.AdaptationCommand | None,
        *,
        epoch: int,
        recorded: ly.CommandOutcome | None = None,
        ruled: EdgeDecision | None = None,
    ) -> EdgeDecision:
        """Judge `command` as `ManagerEdges.decide` does; kernels that it names as candidates are brought near."""
        house = self._house
        house.take_fetch_ms()
        began = house.clock.monotonic()
        decision = super().decide(command, epoch=epoch, recorded=recorded, ruled=ruled)
        decide_ms, fetch_ms = (house.clock.monotonic() - began) * 1000.0, house.take_fetch_ms()
        house.latencies.observe("decide", max(0.0, decide_ms - fetch_ms))
        if recorded is None and command is not None:
            self._expect(command.candidates)
            operation = command.seed_operation.operation
            if decision.result == ly.COMMAND_RESULT_APPLIED and operation in _GRAFTS:
                house.grafting(epoch, decision.seed_id, operation, decide_ms=decide_ms, fetch_ms=fetch_ms)
        return decision

    def _expect(self, candidates: Iterable[ly.CommandSeedOperation]) -> None:
        """Let the kernels of germinations that may be ordered soon be fetched ahead; unknown slots are passed over."""
        self._house.expect(
            self._slots[wish.slot].request(wish.blueprint_id, dict(wish.parameters))
            for wish in candidates
            if wish.operation == ly.SEED_OP_GERMINATE and wish.slot in self._slots
        )

    def fold(self, event: EventMessage) -> None:
        """Let an acknowledged event change the model (`ManagerEdges.fold`), timed."""
        began = self._house.clock.monotonic()
        super().fold(event)
        milliseconds = (self._house.clock.monotonic() - began) * 1000.0
        if isinstance(event, ly.SeedStageChanged) and event.to_stage in _TIMED_STAGES:
            self._house.latencies.observe(_TIMED_STAGES[event.to_stage], milliseconds)
        self._house.folded(milliseconds, last=not self._owed)

    def figures(self) -> dict[str, float]:
        """Return what Kasmina counts and times, by the name of its metric."""
        return super().figures() | self._house.figures()

    def notices(self) -> list[ly.TelemetryEvent]:
        """Return what happened since the last call that people should hear of."""
        return self._house.notices()

    def leave(self) -> None:
        """Take off the seeds that the host does not hear, once it trains no more with seeds; what it hears stays.

        The lifecycle keeps each in its last stage: nothing was decided about them.
        """
        for seed_id in [seed_id for seed_id, live in self._bed.live.items() if not live.seed.heard]:
            self._bed.uproot(seed_id)
            self._bed.forget(seed_id)

    def close(self) -> None:
        """End what works beside the run and let go what was kept for it; the seeds stay as they are."""
        if self._loads is not None:
            self._loads.close()
        self._house.close()
