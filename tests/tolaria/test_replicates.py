"""Replicates of a fork: equal up to it, others after it, and each a function of its request."""

from __future__ import annotations

from esper.leyline import messages as ly
from esper.tolaria import MemoryJournal, Recording, ResumingJournal, TolariaTrainer, prepared, re_execute
from tests.tolaria.small import request, scripted
from tests.tolaria.test_reexecution import nudging

EPOCHS, FORKED = 5, 2
POLICY = scripted(ly.COMMAND_SEED, ly.COMMAND_CONTINUE, ly.COMMAND_CONTINUE, ly.COMMAND_SEED)


def asked(replicate: int = 0, *, forked: bool = True) -> ly.TrainingRunRequested:
    fork = {"forked_from": "run-small", "forked_epochs": FORKED, "replicate": replicate} if forked else {}
    return request(f"run-{replicate}" if forked else "run-small", epochs=EPOCHS, **fork)


def trained(of: ly.TrainingRunRequested, recording: Recording | None = None) -> MemoryJournal:
    """Train a run live after `recording`; return a journal of all its epochs."""
    live = MemoryJournal(policy=POLICY)
    journal = live if recording is None else ResumingJournal(recording, live)
    with prepared(of) as setup:
        TolariaTrainer(setup, nudging(setup), journal).run()
    if recording is not None:
        live.packets[:0] = recording.packets.values()
        live.outcomes[:0] = recording.outcomes.values()
    return live


def origin() -> MemoryJournal:
    return trained(asked(forked=False))


def digests(journal: MemoryJournal) -> list[str]:
    return [packet.weights_digest for packet in journal.packets]


def test_replicates_draw_otherwise_from_the_fork_on_and_each_alike() -> None:
    """Goal: pairs can be compared. Method: a plain fork is its origin; replicates are equal up to the fork and differ
    from it and from each other afterwards; the same replicate comes out the same."""
    recorded = origin()
    fork = Recording.of(recorded.packets[:FORKED], recorded.outcomes[:FORKED])
    found = {number: digests(trained(asked(number), fork)) for number in (0, 1, 2)}
    assert found[0] == digests(recorded)
    assert len({tuple(each[:FORKED]) for each in found.values()}) == 1
    assert all(len({each[epoch] for each in found.values()}) == 3 for epoch in range(FORKED, EPOCHS))
    assert digests(trained(asked(1), fork)) == found[1]


def test_a_replicate_repeats_and_its_decisions_draw_by_its_own_seed() -> None:
    """Goal: a replicate is a run like any other. Method: compute it again from its record; cut it off;
    its packets name the seed that its policy draws from, which is the origin's up to the fork."""
    recorded = origin()
    live = trained(asked(1), Recording.of(recorded.packets[:FORKED], recorded.outcomes[:FORKED]))
    assert re_execute(asked(1), live.outcomes, live.packets, nudging).equal
    assert re_execute(asked(2), live.outcomes, live.packets, nudging).first_difference is not None
    seeds = [packet.seed for packet in live.packets]
    assert seeds[:FORKED] == [11] * FORKED
    assert len(set(seeds[FORKED:])) == 1
    assert seeds[-1] != 11
    successor = trained(asked(1), Recording.of(live.packets[: FORKED + 1], live.outcomes[: FORKED + 1]))
    assert digests(successor) == digests(live)
