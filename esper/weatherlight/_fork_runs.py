"""A fork: a new run whose first epochs are a recorded run's, and what it was worth to go on otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from esper.core.errors import UsageError
from esper.core.ids import RunId
from esper.core.settings import Settings
from esper.core.stacks import check_alone
from esper.leyline import messages as ly
from esper.oona import Fabric
from esper.weatherlight._learned import check_learned
from esper.weatherlight._run_record import read_record

#: What two runs are held against each other by, at their ends.
_END: Final = ("accuracy", "loss", "parameters", "multiply_adds", "multiply_adds_per_sample")
#: What decides how a run goes, apart from its outcomes.
_REQUEST: Final = ("task", "host", "policy", "seed")
_EPOCH: Final = ("command", "outcome", "digest", "train_loss", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class ForkRequest:
    """A request for a fork; everything of the origin's request holds for it but the policy and its parameters.

    `policy` "" is the origin's. `policy_parameters` are set beside the origin's where the policy stays, and are all
    that there are where it does not.
    """

    origin: ly.TrainingRunRequested
    epoch: int
    policy: str = ""
    policy_parameters: Mapping[str, float] = field(default_factory=dict)
    #: Other draws after the fork than the origin's, those of this number; 0: the same.
    replicate: int = 0
    #: Learning rate after the fork; 0: the origin's.
    learning_rate: float = 0.0
    #: Name that groups runs; "": the origin's.
    experiment: str = ""

    @property
    def effective_policy(self) -> str:
        """The policy that decides after the fork."""
        return self.policy or self.origin.policy

    @property
    def effective_parameters(self) -> dict[str, float]:
        """The parameters of that policy."""
        kept = self.origin.policy_parameters if self.effective_policy == self.origin.policy else {}
        return {**kept, **self.policy_parameters}

    def message(self, run_id: RunId, _settings: Settings) -> ly.TrainingRunRequested:
        """Return the event that asks for the fork; waits and all are the origin's."""
        forked = ly.TrainingRunRequested()
        forked.CopyFrom(self.origin)
        forked.ClearField("meta")
        forked.ClearField("policy_parameters")
        forked.run_id = run_id
        forked.policy = self.effective_policy
        forked.policy_parameters.update(self.effective_parameters)
        forked.forked_from, forked.forked_epochs = self.origin.run_id, self.epoch
        forked.replicate = self.replicate
        if self.learning_rate:
            forked.learning_rates.add(epoch=self.epoch, learning_rate=self.learning_rate)
        if self.experiment:
            forked.experiment_name = self.experiment
        return forked


def fork_request(
    fabric: Fabric, run_id: str, epoch: int, *, policy: str = "", policy_parameters: Mapping[str, float] | None = None
) -> ForkRequest:
    """Return the request for a fork of a recorded run after `epoch`.

    Raises:
        UsageError: there is no such run or epoch, the run cannot be computed again, or the policy cannot be had.
        IntegrityError: the log lacks an epoch of it.
    """
    from esper.tamiyo import check_policy
    from esper.tolaria import check_re_executable

    record = read_record(fabric, run_id)
    check_re_executable(record.request)
    check_alone(record.request, f"run {run_id} cannot be forked")
    if record.request.replicate:
        raise UsageError(
            f"run {run_id} cannot be forked",
            cause=f"it is replicate {record.request.replicate} of a fork, and draws otherwise from its fork on",
            next_step=f"Fork its origin, {record.request.forked_from}",
        )
    known = record.past.recording.epochs
    if not 1 <= epoch <= known:
        raise UsageError(
            f"run {run_id} cannot be forked after epoch {epoch}",
            cause=f"the log holds epochs 1 to {known} of it" if known else "no epoch of it is over",
            next_step=f"`esper runs show {run_id}` lists its epochs",
        )
    request = ForkRequest(record.request, epoch, policy, policy_parameters or {})
    check_policy(request.effective_policy, request.effective_parameters)
    check_learned(fabric, request.effective_policy, request.effective_parameters)
    return request


def compare_runs(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Return how two runs differ, from their `runs show` documents; pure.

    `request`: what they were asked for otherwise. `first_difference`: the first epoch and field in which they part,
    null where none does. `equal_epochs`: how many epochs before that have the same digest. `end`: their figures at the
    end with the second less the first. `epochs`: every epoch in which a figure differs, with both.
    """
    pairs = list(zip(left["epochs"], right["epochs"], strict=False))
    parted = next(((one, other) for one, other in pairs if _fields(one, other)), None)
    return {
        "a": left["run_id"],
        "b": right["run_id"],
        "request": {name: _both(left, right, name) for name in _REQUEST if left[name] != right[name]},
        "equal_epochs": len(pairs) if parted is None else parted[0]["epoch"] - 1,
        "first_difference": None if parted is None else _first(*parted),
        "end": {name: {**_both(left, right, name), "difference": _less(left[name], right[name])} for name in _END},
        "epochs": [
            {"epoch": one["epoch"], **{name: _both(one, other, name) for name in _fields(one, other)}}
            for one, other in pairs
            if _fields(one, other)
        ],
    }


def _fields(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in _EPOCH if repr(one[name]) != repr(other[name])]


def _first(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    name = _fields(one, other)[0]
    return {"epoch": one["epoch"], "field": name, **_both(one, other, name)}


def _both(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"a": one[name], "b": other[name]}


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else other - one
