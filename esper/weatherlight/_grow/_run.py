"""A run of a loop of the user's own: what the loop calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from esper.core.digest import module_state, state_digest
from esper.core.eager import eagerly
from esper.core.errors import UsageError
from esper.core.ids import RunId
from esper.core.inputs import Batch, Inputs, first_samples, mapped, samples_in, tensors_of
from esper.core.numerics import numerics_fingerprint
from esper.kasmina import KasminaSeedManager, add_sockets, discover_slots, is_compiled
from esper.leyline import messages as ly
from esper.tolaria import (
    Evaluation,
    evaluate_batches,
    multiply_adds_per_sample,
    outcome_event_id,
    state_event_id,
)
from esper.weatherlight._export import Exported, ExportFormat, export_network
from esper.weatherlight._grafting import descriptors, kasmina_config
from esper.weatherlight._grow._fitting import warn_of_unfit
from esper.weatherlight._grow._metrics import judged
from esper.weatherlight._grow._precision import SeedRate, Unscaling, learning_rate
from esper.weatherlight._grow._ranks import bare, is_wrapped_compiled, total_of
from esper.weatherlight._grow._record import TASK
from esper.weatherlight._grow._returns import LoopOrders, edge_of
from esper.weatherlight._grow._side import Side
from esper.weatherlight._grow._tally import Tally
from esper.weatherlight._grow._telling import TellingEdge
from esper.weatherlight._grow._wishes import Metrics, Wishes

_TRACED_SAMPLES = 2


class GrowRun:
    """A run of a loop of the user's own: recorded and steered, not re-executable.

    Per optimiser step call `step` after it; per epoch call `end_epoch`, or `tick` every step where epochs are long.
    Seeds in TRAINING never touch the model. One thread; the model may be used freely between the calls.
    """

    def __init__(self, model: nn.Module, wishes: Wishes, side: Side) -> None:
        self._model = bare(model)
        self._compiled = is_wrapped_compiled(model) or is_compiled(self._model)
        self._wishes = wishes
        self._side = side
        self._tally = Tally()
        self._sample: Inputs | None = None
        self._host = type(self._model).__name__
        self._host_parameters = sum(parameter.numel() for parameter in self._model.parameters())
        self._multiply_adds_per_sample = 0
        self._controller: KasminaSeedManager | None = None
        self._edge: TellingEdge | None = None
        self._orders: LoopOrders | None = None
        self._unscaling = Unscaling(wishes.scaler)
        self._rate = SeedRate(wishes.scheduler)
        if wishes.probe:
            self._plant(wishes.probe[0][0])

    @property
    def run_id(self) -> RunId:
        """Id of the run in the log."""
        return self._side.run_id

    @property
    def epoch(self) -> int:
        """Edges passed so far: epochs ended and ticks."""
        return self._tally.epoch

    @property
    def seeds(self) -> list[ly.SeedSummary]:
        """Every seed of the run with its last stage."""
        return self._controller.summaries() if self._controller is not None else []

    def host_parameters(self) -> list[nn.Parameter]:
        """Return the model's parameters without those of seeds that train on their own: what a loop clips."""
        own = self._controller.own_parameters() if self._controller is not None else set()
        return [parameter for parameter in self._model.parameters() if parameter not in own]

    def step(self, batch: Batch) -> None:
        """Train the seeds on `batch`, (inputs, targets), after the optimiser's own step.

        Inputs are one tensor [B, ...], a tuple of what the model takes by position, or a mapping by name.

        Once for each step of the optimiser, after the scaler's update where there is one; where a step gathers
        several batches, any of them will do.
        """
        inputs, targets = batch
        if self._controller is None:
            self._plant(inputs)
        assert self._controller is not None, "planted by now"
        self._unscaling.settle(self._controller)
        self._controller.follow_rate(self._rate.share())
        with eagerly():
            self._controller.after_step(inputs, targets)
        self._controller.before_step()
        self._tally.steps += 1
        self._tally.samples += samples_in(inputs)

    def tick(self, metrics: Metrics, *, every: int) -> ly.CommandOutcome | None:
        """Pass an edge when `every` steps were taken since the last one, as `end_epoch` does; else do nothing.

        To be called after each `step` where epochs are long. The log counts edges as its epochs. `metrics` may be a
        function, which is called only when an edge is passed.
        """
        if not isinstance(every, int) or every < 1:
            raise UsageError(f"tick cannot pass an edge every {every!r} steps", next_step="give at least 1")
        if self._tally.steps - self._tally.edge_steps < every:
            return None
        return self.end_epoch(metrics() if callable(metrics) else metrics)

    def end_epoch(self, metrics: Mapping[str, float]) -> ly.CommandOutcome:
        """Append the epoch's state, wait for its command, apply it, and return its outcome.

        `metrics` holds "loss" (mean training loss of the epoch) and, unless `probe` and `loss_fn` were given to
        `grow`, "val_loss"; "val_accuracy" in 0..1 where there is one; more numbers are recorded as they are.

        Raises:
            UsageError: a needed metric is missing or no number, or nothing was trained yet; no epoch is counted.
            BrokerUnavailable: the broker was away for longer than `broker_retry_seconds`, or than `on_log_loss`
                holds; never with `on_log_loss="degrade"`.
            TrainingDiverged: with `on_fault="rollback"`, a fault, and nothing left to return to.
        """
        if self._controller is None or self._edge is None or self._orders is None:
            raise UsageError("the epoch cannot end", cause="no step was taken", next_step="call run.step(batch)")
        figures = judged(metrics, measured=bool(self._wishes.probe) and self._wishes.loss_fn is not None)
        self._tally.epoch += 1
        self._tally.edge_steps = self._tally.steps
        self._tally.metrics = figures
        self._tally.samples_of_all = total_of(self._side.ranks, self._tally.samples)
        with eagerly():
            self._controller.before_edge()
            self._edge.settle_faults(self._tally.epoch)
            packet = self._packet(self._controller)
            self._side.ranks.check_equal(f"the weights of epoch {self._tally.epoch}", packet.weights_digest)
            with self._side.edge(), self._orders.edge(packet, self._edge.seed_events):
                outcome = self._edge.close(packet)
            self._controller.after_edge()
        if outcome.HasField("rolled_back"):
            self._unscaling = Unscaling(self._wishes.scaler)
        return outcome

    def export(self, path: str | Path, to: ExportFormat = "safetensors") -> Exported:
        """Write what the model computes now in eval mode, for use without Esper; see `export_network` for how.

        "safetensors" writes the weights to `path` and a Python module beside it, "pt2" one file for torch.

        Raises:
            UsageError: no batch was seen yet, the name of `path` does not end in the format's, or torch.export
                cannot follow the model.
            OperationFailed: what would be written does not compute what the model does.
        """
        if self._sample is None:
            raise UsageError("nothing can be exported", cause="no step was taken", next_step="call run.step(batch)")
        if not isinstance(self._sample, Tensor):
            raise UsageError(
                f"{type(self._model).__name__} cannot be exported",
                cause="its forward takes more than one tensor",
                next_step="export a module of your own around it that takes and returns one tensor",
            )
        return export_network(self._model, self._sample, Path(path), to)

    # -- the start ------------------------------------------------------------------------------------------

    def _plant(self, inputs: Inputs) -> None:
        """Find the slots, now that there is a batch to trace, and say in the log that the run starts."""
        sample = self._sample = mapped(first_samples(inputs, _TRACED_SAMPLES), lambda each: each.detach().clone())
        wishes, run_id = self._wishes, self.run_id
        with eagerly():
            self._multiply_adds_per_sample = multiply_adds_per_sample(self._model, sample)
            slots = discover_slots(self._model, sample, wishes.slots)
        warn_of_unfit(wishes.policy, slots, leads=self._side.ranks.leads)
        if self._compiled:
            add_sockets(self._model, slots)
        self._controller = KasminaSeedManager(
            self._model,
            slots,
            runtime=self._side.runtime(),
            ranks=self._side.ranks,
            run_id=run_id,
            seed=wishes.seed,
            loss_fn=wishes.loss_fn,
            probe=wishes.probe,
            optimizer=wishes.optimizer,
            descriptors=descriptors(),
            config=kasmina_config(self._side.settings, kernel_wait_seconds=self._side.settings.kernel_wait_seconds),
        )
        self._controller.before_step()
        self._controller.watch_loads(self._model)
        ranks, digest = self._side.ranks, self._digest(self._controller)
        ranks.check_equal("the network they start from", digest)
        self._orders, self._edge = edge_of(self._model, self._controller, wishes, self._side, run_id=run_id)
        numerics = numerics_fingerprint(tensors_of(inputs)[0].device, world_size=ranks.size, collective=ranks.backend)
        self._side.started(numerics=numerics, parameters=self._host_parameters, digest=digest)

    # -- facts ----------------------------------------------------------------------------------------------

    def _digest(self, controller: KasminaSeedManager) -> str:
        return state_digest({**module_state(self._model), **controller.state()})

    def _validation(self) -> Evaluation:
        metrics, wishes = self._tally.metrics, self._wishes
        if wishes.probe and wishes.loss_fn is not None and "val_loss" not in metrics:
            return evaluate_batches(self._model, wishes.probe, wishes.loss_fn)
        return Evaluation(loss=metrics["val_loss"], accuracy=metrics.get("val_accuracy", 0.0))

    def _recorded_metrics(self) -> dict[str, float]:
        rate = learning_rate(self._wishes)
        return ({} if rate is None else {"learning_rate": rate}) | self._tally.metrics

    def _packet(self, controller: KasminaSeedManager) -> ly.SystemStatePacket:
        tally, wishes, epoch, run_id = self._tally, self._wishes, self._tally.epoch, self.run_id
        validation = self._validation()
        packet = ly.SystemStatePacket(
            version=1,
            training_run_id=run_id,
            experiment_name=wishes.name,
            attempt=1,
            current_epoch=epoch,
            epochs_planned=wishes.epochs,
            global_step=tally.steps,
            training_loss=tally.metrics["loss"],
            validation_loss=validation.loss,
            validation_accuracy=validation.accuracy,
            training_metrics=self._recorded_metrics(),
            seed_states=controller.seed_states(),
            slots=controller.slot_states(),
            growth=controller.growth(),
            weights_digest=self._digest(controller) if epoch % wishes.digest_every_epochs == 0 else "",
            policy=wishes.policy,
            parameters=self._host_parameters + controller.parameters(),
            multiply_adds=self._multiply_adds(controller),
            multiply_adds_per_sample=self._multiply_adds_per_sample + controller.multiply_adds_per_sample(),
            task=TASK,
            host=self._host,
            seed=wishes.seed,
        )
        packet.meta.event_id = state_event_id(run_id, epoch)
        if epoch > 1:
            packet.meta.causation_id = outcome_event_id(run_id, epoch - 1)
        return packet

    def _multiply_adds(self, controller: KasminaSeedManager) -> int:
        return 3 * self._multiply_adds_per_sample * self._tally.samples_of_all + controller.multiply_adds

    # -- the end --------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Append the end of the run; `grow` does it when its block ends.

        Raises:
            BrokerUnavailable: no broker answered for `broker_retry_seconds`; a gap is still open.
        """
        controller = self._controller
        if controller is None:
            self.fail("no step was taken")
            return
        self._side.close_gap()
        self._tally.samples_of_all = total_of(self._side.ranks, self._tally.samples)
        with eagerly():
            validation = self._validation() if self._tally.epoch else Evaluation(loss=0.0, accuracy=0.0)
        self._side.finished(
            ly.TrainingRunFinished(
                epochs=self._tally.epoch,
                accuracy=validation.accuracy,
                loss=validation.loss,
                parameters=self._host_parameters + controller.parameters(),
                multiply_adds=self._multiply_adds(controller),
                multiply_adds_per_sample=self._multiply_adds_per_sample + controller.multiply_adds_per_sample(),
                digest=self._digest(controller),
                seeds=controller.summaries(),
                validation_accuracy=validation.accuracy,
                validation_loss=validation.loss,
            )
        )

    def close(self) -> None:
        """End what works beside the loop, and take off the seeds that the model does not hear; it computes the same."""
        if self._controller is not None:
            self._controller.leave()
            self._controller.close()

    def fail(self, detail: str) -> None:
        """Append that the loop did not come to its end."""
        self._side.failed(detail, epochs=self._tally.epoch)
