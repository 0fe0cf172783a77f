"""The hostile campaign: records that must not be believed, made at random out of golden ones, among genuine events."""

from __future__ import annotations

import os
import random
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import pytest

from esper.core.rng import derive_seed
from esper.leyline import BadRecord, decode, open_record
from esper.oona import Fabric
from esper.oona._counters import reason_name
from esper.oona._memory import LogMemory
from esper.oona.letters._dead_letters import letter_for
from esper.projection.records._decoder import ProtobufDecoder
from tests.campaigns import WHOLE
from tests.conftest import StartBroker
from tests.faults._forge import RING, TOPICS, Forge
from tests.faults._hostile_checks import check_judge, check_keys, check_letters, check_others
from tests.faults._hostile_kinds import DEDUPLICATED
from tests.faults._hostile_log import PER_ROUND, Attack, Census, Judge, await_that, dead_letters, revoke_first_key

RecordProperty = Callable[[str, object], None]
#: Of which fewer than one in twenty are copies of genuine records, that have no dead letter.
HOSTILE = 52_500 if WHOLE else 2_000
LETTERS_MIN = 50_000 if WHOLE else 1_800
FUZZED = 200_000 if WHOLE else 20_000
CALM_ROUNDS = 40 if WHOLE else 6
#: The largest records are many times the others, and those in Kafka's own bytes are sent one by one.
HUGE_EVERY_ROUNDS, RAW_PER_ROUND = 4, 2


def _seed(request: pytest.FixtureRequest) -> int:
    return int(os.environ.get("CAMPAIGN_SEED") or request.config.getoption("randomly_seed", 0))


@pytest.mark.campaign
def test_hostile_records_among_genuine_ones(
    start_broker: StartBroker, request: pytest.FixtureRequest, record_property: RecordProperty
) -> None:
    """Goal: nothing hostile is accepted, and nothing genuine waits.

    Method: on every topic of a real broker, append hostile records of random kinds between genuine events, whose
    first key was revoked, while a consumer reads all of it; then let everybody else read the same log: another
    group, a reader, the projections, the housekeeper, `esper verify`. Compare what each did with what was appended.
    """
    seed = _seed(request)
    if WHOLE:
        sys.stderr.write(f"\nhostile campaign: CAMPAIGN_SEED={seed}\n")
    rng = random.Random(derive_seed(seed, "hostile"))  # noqa: S311 - a seeded campaign
    settings = start_broker().settings
    revoked, old = revoke_first_key(settings)
    with Fabric.open(settings, member="campaign") as fabric:
        attack = Attack(fabric, rng, revoked=revoked, old=old)
        with Judge(settings, "judge-0") as judge:
            calm, attacked = _run(attack, judge)
            judge.to_the_end()
            assert judge.fabric.emergencies.following
            attack.finish()
            census = attack.census
            assert len(census.hostile) == HOSTILE, f"seed {seed}"
            letters = dead_letters(fabric)
            reasons = check_letters(census, letters, seed)
            assert len(letters) >= LETTERS_MIN, f"seed {seed}"
            check_judge(census, judge, letters, seed)
            check_keys(fabric, judge.fabric, revoked.signing_key_id)
        figures = {
            "seed": seed,
            "hostile_records": len(census.hostile),
            "accepted": 0,
            "uncaught_exceptions": 0,
            "genuine_events": len(census.genuine),
            "dead_letters": sum(map(len, letters.values())),
            "deduplicated": reasons[DEDUPLICATED],
            "by_reason": dict(sorted(reasons.items())),
            "by_kind": census.kinds(),
            "genuine_latency_ms": {"calm": calm, "under_attack": attacked},
        }
        check_others(fabric, census, letters, seed)
        assert dead_letters(fabric) == letters, f"seed {seed}: whoever read it later wrote letters anew"
    for name, value in figures.items():
        record_property(name, value)


def _run(attack: Attack, judge: Judge) -> tuple[dict[str, float], dict[str, float]]:
    """Write genuine events, first alone and then among hostile records; return their latencies."""
    calm: list[str] = []
    for _ in range(CALM_ROUNDS):
        calm += (published := attack.genuine_round())
        _await_handled(judge, published)
    attacked: list[str] = []
    left, number = HOSTILE, 0
    while left:
        count = min(PER_ROUND, left)
        attack.hostile_round(count, huge=int(number % HUGE_EVERY_ROUNDS == 0), raw=RAW_PER_ROUND)
        attacked += (published := attack.genuine_round())
        _await_handled(judge, published)
        left, number = left - count, number + 1
    return _latency(calm, judge, attack.census), _latency(attacked, judge, attack.census)


def _await_handled(judge: Judge, event_ids: Sequence[str]) -> None:
    def all_handled() -> bool:
        assert judge.failure is None, repr(judge.failure)
        return all(event_id in judge.at_seconds for event_id in event_ids)

    await_that(all_handled, "the genuine events are handled")


def _latency(event_ids: Sequence[str], judge: Judge, census: Census) -> dict[str, float]:
    waits = sorted(1_000 * (judge.at_seconds[event_id] - census.submitted[event_id]) for event_id in event_ids)
    return {"p50": round(statistics.median(waits), 1), "p99": round(waits[int(0.99 * len(waits))], 1)}


@pytest.mark.campaign
def test_no_bytes_raise_anything_but_bad_record(
    request: pytest.FixtureRequest, record_property: RecordProperty
) -> None:
    """Goal: no input escapes the contract's reasons, and nothing altered is believed.

    Method: without a broker, alter golden records at random, some of them signed again by a holder of the key; open
    and decode each as every reader does, write its letter, and decode the believed ones to columns.
    """
    seed = _seed(request)
    rng = random.Random(derive_seed(seed, "fuzz"))  # noqa: S311 - a seeded campaign
    forge = Forge(rng)
    reasons: Counter[str] = Counter()
    believed: dict[str, list[bytes]] = defaultdict(list)
    for number in range(FUZZED):
        altered = forge.altered()
        what = f"seed {seed}, record {number}: {altered}"
        try:
            meta = open_record(altered.record, keyring=RING, allowed=TOPICS.allowed)
            decode(altered.record, meta)
        except BadRecord as bad:
            reasons[reason_name(bad.reason)] += 1
            letter_for(altered.record, reason=bad.reason, detail=bad.detail, attempts=1, group="fuzz")
        except Exception as error:  # noqa: BLE001 - the claim is that there is none
            pytest.fail(f"{what}: {error!r}")
        else:
            assert altered.may_be_believed, what
            reasons["BELIEVED"] += 1
            LogMemory().judge(altered.record, meta)
            believed[meta.type].append(altered.record.value or b"")
    for type_name, values in believed.items():
        decoded = ProtobufDecoder().decode(type_name, values)
        assert len(decoded.good) + len(decoded.bad) == len(values)
    for name, value in {"seed": seed, "records": FUZZED, "by_reason": dict(sorted(reasons.items()))}.items():
        record_property(name, value)
