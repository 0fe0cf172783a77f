"""A recorded real log, altered a thousand ways: each is found, and named at the right first offset."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from esper.core.rng import derive_seed
from esper.oona.proof import verify_log
from tests.campaigns import WHOLE
from tests.oona.proof.mutations import KINDS, mutate
from tests.oona.proof.recorded import Recorded

SEED = 20_261_122
COUNT = 1_000 if WHOLE else 60


@pytest.mark.campaign
def test_every_mutation_is_found(recorded: Recorded, record_property: Callable[[str, object], None]) -> None:
    """Nothing altered before the last checkpoint passes: mutate the recorded log, and compare with an oracle."""
    found: Counter[str] = Counter()
    for number in range(COUNT):
        kind = KINDS[number % len(KINDS)]
        seed = derive_seed(SEED, kind, number)
        mutation = mutate(recorded.log, kind, random.Random(seed))  # noqa: S311 - a seeded campaign
        if mutation.log.partitions[mutation.place] == recorded.log.partitions[mutation.place]:
            continue  # Two equal neighbours were swapped.
        verdict = verify_log(mutation.log, public_key=recorded.public_key, judge=recorded.judge)
        what = f"{mutation.what} (seed {seed}): {[one.document() for one in verdict.bad[:3]]}"
        assert not verdict.ok, what
        first = verdict.bad[0]
        assert (first.topic, first.partition) == mutation.place, what
        assert first.offset == mutation.breaks_at, what
        assert first.proven_to <= mutation.differs_at, what
        found[f"{kind}: {first.kind}"] += 1
    record_property("mutations_found", sum(found.values()))
    record_property("by_kind", dict(sorted(found.items())))
    assert sum(found.values()) >= COUNT * 0.95
