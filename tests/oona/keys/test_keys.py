"""Keys on a real broker: replaced under load, revoked from offsets on, and signers of their own."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import NotReadyError, OperationFailed, SecretError, UsageError
from esper.core.home import Home
from esper.core.ids import new_run_id
from esper.core.keys import SIGNER_SOURCES
from esper.core.settings import Settings
from esper.leyline import (
    HMAC_ALGORITHM,
    SIGNATURE_HEADER,
    SIGNER_SIGNATURE_BYTES,
    SIGNER_TYPES,
    BadRecord,
    KeyRing,
    Record,
    Revocations,
    decode,
    fingerprint,
    open_record,
)
from esper.leyline import messages as ly
from esper.oona import Event, Fabric, TopicCatalog, list_dead_letters, list_keys, revoke_key, rotate_key, rotate_signer
from tests.conftest import RunningBroker, running_broker
from tests.integration.driver import Esper
from tests.oona.log import append, fresh_group, packet, poll_to_end, read_run, signed_record

PRODUCE = """
import sys
from esper.core.settings import load_settings
from esper.leyline import messages as ly
from esper.oona import Fabric
home, run_id = sys.argv[1:]
with Fabric.open(load_settings(_env_file=None, home=home), member="test") as fabric:
    with fabric.publisher("tolaria") as publisher:
        print("ready", flush=True)
        for line in sys.stdin:
            for epoch in range(int(line)):
                publisher.submit(ly.SystemStatePacket(training_run_id=run_id, current_epoch=epoch), key=run_id)
            publisher.flush()
            print("done", flush=True)
"""


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    """A broker and home whose keys these tests may replace and revoke."""
    with running_broker(tmp_path_factory.mktemp("keys") / "home") as running:
        yield running


@pytest.fixture
def settings(keyed: RunningBroker) -> Settings:
    """Settings of that home."""
    return keyed.settings


@pytest.fixture
def guarded(settings: Settings) -> Settings:
    """The same home's settings, with signers of their own; the home has their keys."""
    changed = settings.model_copy(update={"signature_scheme": "ed25519"})
    Home.create(changed)
    return changed


@contextmanager
def opened(settings: Settings) -> Iterator[Fabric]:
    with Fabric.open(settings, member="test") as fabric:
        yield fabric


def key_id_of(record: Record) -> str:
    return (record.header(SIGNATURE_HEADER) or b"")[:8].hex()


def judged(fabric: Fabric, record: Record) -> str:
    """Return what a reader makes of a record: GOOD, or the reason why not."""
    try:
        decode(record, open_record(record, keyring=fabric.keyring, allowed=fabric.topics.allowed))
    except BadRecord as bad:
        return ly.DeadLetterReason.Name(bad.reason).removeprefix("DEAD_LETTER_REASON_")
    return "GOOD"


def everything(fabric: Fabric, topic: str) -> list[Record]:
    """Return every record of a topic, believed or not."""
    ends = {place: high for place, (_, high) in fabric.cluster.watermarks(fabric.topics.partitions(topic)).items()}
    found: list[Record] = []
    deadline = Deadline(60)
    with fabric.reader(dict.fromkeys(ends, "begin")) as reader:
        while any(reader.positions()[place] < end for place, end in ends.items()):
            assert not deadline.expired
            found += reader.read_raw(1.0)
    return found


def until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    deadline = Deadline(seconds)
    while not condition():
        assert not deadline.expired, "the condition never held"
        SYSTEM_CLOCK.sleep(0.01)


@dataclass
class Load:
    """One publisher in a process of its own, told how much to write."""

    process: subprocess.Popen[str]
    run_id: str

    def write(self, count: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()

    def wait(self, word: str = "done") -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word


@contextmanager
def producing(settings: Settings) -> Iterator[Load]:
    run_id = new_run_id()
    command = [sys.executable, "-c", PRODUCE, str(settings.home), run_id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        load = Load(process, run_id)
        load.wait("ready")
        yield load
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def test_rotation_under_load_loses_nothing(settings: Settings) -> None:
    """Goal: nothing is lost or set aside. Method: rotate thrice while a process writes and two groups read."""
    batch, rotations = 2_000, 3
    with opened(settings) as fabric, opened(settings) as reading, producing(settings) as load:
        letters_before = len(list_dead_letters(fabric))
        handled: list[Counter[int]] = [Counter(), Counter()]
        stop = threading.Event()

        def consume(seen: Counter[int]) -> None:
            def handler(event: Event) -> None:
                if event.meta.subject == load.run_id:
                    seen[event.meta.sequence] += 1

            reading.consumer(
                group=fresh_group(),
                instance="test-0",
                topics=["system-state"],
                handlers={ly.SystemStatePacket: handler},
                publisher=reading.publisher("oona"),
            ).run(stop)

        threads = [threading.Thread(target=consume, args=(seen,)) for seen in handled]
        for thread in threads:
            thread.start()
        changes = []
        for _ in range(rotations):
            load.write(batch)
            changes.append(Esper(settings.home)("keys", "rotate", "--json").json)
            load.wait()
            load.write(batch)
            load.wait()
        total = 2 * batch * rotations
        until(lambda: all(len(seen) == total for seen in handled), seconds=120)
        stop.set()
        for thread in threads:
            thread.join()
        assert all(set(seen) == set(range(1, total + 1)) for seen in handled)
        assert all(set(seen.values()) == {1} for seen in handled)
        records = [record for record in everything(fabric, "system-state") if record.key == load.run_id.encode()]
        used = dict.fromkeys(key_id_of(record) for record in records)
        # Each key was in use, in the order in which they came: the first one's before, the last one's after.
        assert list(used) == [changes[0]["previous_key_id"], *(change["key_id"] for change in changes)]
        assert {judged(fabric, record) for record in records} == {"GOOD"}
        assert len(list_dead_letters(fabric)) == letters_before
    assert fingerprint((settings.home / "key").read_bytes().strip()) == changes[-1]["key_id"]
    assert Home.open(settings).key_fingerprint == changes[-1]["key_id"]


def test_revoked_key_is_believed_before_its_offset_only(settings: Settings) -> None:
    """Goal: offsets decide. Method: sign with the old key before and after its revocation; read twice."""
    run_id = new_run_id()
    with opened(settings) as running:
        old = KeyRing(running.keyring.keys)
        with running.publisher("tolaria") as publisher:
            publisher.publish(packet(run_id, 1), key=run_id)
        rotate_key(settings)
        late = signed_record(running, packet(run_id, 2), key=run_id, source="tolaria", keyring=old)
        (before,) = append(running, [late])
        done = revoke_key(settings, old.signing_key_id, reason="it leaked")
        assert done.new
        assert done.effective_from[f"{late.topic}-{late.partition}"] == before.offset + 1
        assert len(done.effective_from) == sum(spec.partitions for spec in running.topics)
        until(lambda: bool(running.keyring.revocations.boundaries.get(old.signing_key_id)))
        forged = signed_record(running, packet(run_id, 3), key=run_id, source="tolaria", keyring=old)
        (after,) = append(running, [forged])
        with running.publisher("tolaria") as publisher:
            publisher.publish(packet(run_id, 4), key=run_id)
        with opened(settings) as restarted:
            for fabric in (running, restarted):
                found = [one for one in everything(fabric, late.topic) if one.key == run_id.encode()]
                assert [judged(fabric, one) for one in found] == ["GOOD", "GOOD", "REVOKED_KEY", "GOOD"]
                epochs = [event.message.current_epoch for event in read_run(fabric, late.topic, run_id)]  # type: ignore[attr-defined]
                assert epochs == [1, 2, 4]
            with running.consumer(
                group=fresh_group(),
                instance="test-0",
                topics=[late.topic],
                handlers={},
                publisher=running.publisher("oona"),
            ) as consumer:
                poll_to_end(consumer, running)
            letters = {(row.topic, row.partition, row.offset): row.reason for row in list_dead_letters(running)}
        assert letters[(after.topic, after.partition, after.offset)] == "REVOKED_KEY"
        assert (before.topic, before.partition, before.offset) not in letters
        rows = {row.key_id: row for row in list_keys(running)}
    assert rows[old.signing_key_id].state == "revoked"
    assert rows[old.signing_key_id].reason == "it leaked"
    assert rows[old.signing_key_id].revoked_ms
    signing = [row for row in rows.values() if row.state == "signing"]
    assert [row.key_id for row in signing] == [Home.open(settings).key_fingerprint]
    assert signing[0].rotated_ms
    assert not revoke_key(settings, old.signing_key_id).new


def test_the_whole_log_verifies_after_rotation_and_revocation(settings: Settings) -> None:
    """Goal: history stays good from offset 0. Method: rotate, revoke, then judge every record of every topic anew."""
    with opened(settings) as fabric:
        with fabric.publisher("tolaria") as publisher:
            for _ in range(20):
                run_id = new_run_id()
                publisher.publish(packet(run_id, 1), key=run_id)
        judged_before = {
            (record.topic, record.partition, record.offset): judged(fabric, record)
            for spec in fabric.topics
            for record in everything(fabric, spec.name)
        }
        old = fabric.keyring.signing_key_id
    rotate_key(settings)
    revoke_key(settings, old)
    with opened(settings) as fabric:
        judged_after = {
            (record.topic, record.partition, record.offset): judged(fabric, record)
            for spec in fabric.topics
            for record in everything(fabric, spec.name)
        }
    assert len(judged_before) >= 20
    assert {place: judged_after[place] for place in judged_before} == judged_before
    # What rotation and revocation added: the key that was replaced tells of its successor, and that one of the end.
    assert {verdict for place, verdict in judged_after.items() if place not in judged_before} == {"GOOD"}


def test_an_older_key_cannot_revoke_the_newest(settings: Settings) -> None:
    """Goal: a leaked key takes nothing away. Method: its holder revokes the present key, makes itself the newest."""
    with opened(settings) as fabric:
        leaked = KeyRing(fabric.keyring.keys)
        rotate_key(settings)
        present = rotate_key(settings).key_id
        attacks = [
            ly.KeyRevoked(key_id=present),
            ly.KeyRotated(key_id=leaked.signing_key_id, previous_key_id=present, algorithm=1),
            ly.KeyRevoked(key_id=present),
        ]
        for attack in attacks:
            append(fabric, [signed_record(fabric, attack, key=present, source="cli", keyring=leaked)])
        # Neither may another source speak about keys, though the topic takes its other events.
        append(fabric, [signed_record(fabric, ly.KeyRevoked(key_id=present), key=present, source="tolaria")])
    with opened(settings) as fabric:
        assert fabric.keyring.revocations.newest_key_id == present
        assert present not in fabric.keyring.revocations.boundaries
    rotate_key(settings)
    assert revoke_key(settings, present, reason="it leaked later").new
    with opened(settings) as fabric:
        rows = {row.key_id: row for row in list_keys(fabric)}
    # What the attacker said of that key is not told as the operator's words.
    assert (rows[present].state, rows[present].reason) == ("revoked", "it leaked later")


def test_an_interrupted_rotation_is_brought_to_its_end(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: revocation survives a crash between the log and the home. Method: die there; revoke, rotate, revoke."""

    class Died(Exception):
        pass

    def die(*_: object) -> None:
        raise Died

    old = rotate_key(settings).key_id
    with monkeypatch.context() as patch:
        patch.setattr(Home, "finish_rotation", die)
        with pytest.raises(Died):
            rotate_key(settings)
    with opened(settings) as fabric:
        begun = fabric.keyring.revocations.newest_key_id
        assert fabric.keyring.signing_key_id == old != begun
        ended = {old, begun, *fabric.keyring.revocations.boundaries}
        verifying = next(key.hex() for key in fabric.keyring.keys.macs if key.hex() not in ended)
    with pytest.raises(SecretError, match="nothing that this home says about keys counts"):
        revoke_key(settings, verifying)
    change = rotate_key(settings)
    assert (change.key_id, change.previous_key_id) == (begun, old)
    assert revoke_key(settings, old, reason="done with").new
    with opened(settings) as fabric:
        assert fabric.keyring.signing_key_id == begun
        assert old in fabric.keyring.revocations.boundaries
        assert set((settings.home / "keys").iterdir()) >= {settings.home / "keys" / old}


def test_what_does_not_count_is_not_called_done(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: no success without effect. Method: a revocation whose event never reaches the log."""
    with opened(settings) as fabric:
        old = fabric.keyring.signing_key_id
    rotate_key(settings)
    with monkeypatch.context() as patch:
        patch.setattr("esper.oona.keys._keys._tell", lambda *_, **__: None)
        with pytest.raises(OperationFailed, match="does not count"):
            revoke_key(settings, old)
    assert revoke_key(settings, old).new


def test_a_stranger_s_secret_changes_nothing(settings: Settings) -> None:
    """Goal: exit 3 and no change. Method: start, rotate and revoke a home with another secret, compare its files."""
    files = {path: path.read_bytes() for path in settings.home.glob("key*/*") if path.is_file()}
    files |= {path: path.read_bytes() for path in (settings.home / "key", settings.home / "home.json")}
    stranger = SecretStr("another secret of thirty-two bytes and more")
    other = settings.model_copy(update={"leyline_secret": stranger})
    with opened(settings) as fabric:
        ends = fabric.cluster.watermarks([("operations", 0)])
        key_id = fabric.keyring.signing_key_id
        for attempt in (
            lambda: Fabric.open(other, member="test"),
            lambda: rotate_key(other),
            lambda: revoke_key(other, key_id),
        ):
            with pytest.raises(SecretError, match="is not the one of home") as caught:
                attempt()
            assert caught.value.exit_code == 3
            assert caught.value.next_step
        assert fabric.cluster.watermarks([("operations", 0)]) == ends
    assert {path: path.read_bytes() for path in files} == files


def test_a_home_started_with_another_secret_exits_3_and_changes_nothing(tmp_path: Path) -> None:
    """Goal: no command of the broker takes a foreign secret. Method: init and up, secure too; compare all files."""
    esper = Esper(tmp_path / "home")
    assert esper("init").code == 0
    before = {path: path.read_bytes() for path in esper.home.rglob("*") if path.is_file()}
    esper.environment["ESPER_LEYLINE_SECRET"] = "z" * 40
    for words in (["init"], ["up"], ["up", "--secure"]):
        answer = esper(*words)
        assert answer.code == 3
        assert "is not the one of home" in " ".join(answer.stderr.split())
    assert {path: path.read_bytes() for path in esper.home.rglob("*") if path.is_file()} == before


def test_an_event_whose_key_was_revoked_on_its_way_is_no_success(settings: Settings) -> None:
    """Goal: whoever publishes hears that nobody believes it. Method: the key ends before the record's offset."""
    run_id = new_run_id()
    with opened(settings) as fabric:
        key_id = fabric.keyring.signing_key_id
        fabric.key_follower.close()  # It would put its own state in the place of this one.
        fabric.keyring.revocations = Revocations(boundaries={key_id: {}})
        with pytest.raises(NotReadyError, match=f"key {key_id} was revoked while events"):
            fabric.publisher("tolaria").publish(packet(run_id, 1), key=run_id)


def test_what_signs_cannot_be_revoked(settings: Settings) -> None:
    """Goal: no home is locked out by a slip. Method: revoke the signing key, an unknown one, and a word."""
    with opened(settings) as fabric:
        present = fabric.keyring.signing_key_id
    with pytest.raises(UsageError, match="signs at present") as caught:
        revoke_key(settings, present)
    assert "esper keys rotate" in caught.value.next_step
    for nonsense in ("0" * 16, "", "hmac"):
        with pytest.raises(UsageError, match="no key"):
            revoke_key(settings, nonsense)
    with pytest.raises(UsageError, match="cannot be revoked"):
        revoke_key(settings, HMAC_ALGORITHM)
    with pytest.raises(UsageError, match="signs with the secret"):
        rotate_signer(settings, "tamiyo")


def test_no_rotation_without_the_log(settings: Settings) -> None:
    """Goal: a key that the log cannot tell of is never used. Method: rotate while no broker answers."""
    away = settings.model_copy(update={"connect_seconds": 0.5, "broker_retry_seconds": 0.5})
    home = Home.open(away)
    before = (home.root / "key").read_bytes()
    pid_file = list(home.broker.glob("*.json"))
    hidden = [path.rename(path.with_suffix(".hidden")) for path in pid_file]
    try:
        with pytest.raises(NotReadyError):
            rotate_key(away)
    finally:
        for path in hidden:
            path.rename(path.with_suffix(".json"))
    assert (home.root / "key").read_bytes() == before
    assert home.key_fingerprint == fingerprint(before.strip())


def command(run_id: str) -> ly.AdaptationCommand:
    return ly.AdaptationCommand(training_run_id=run_id, command_type=ly.COMMAND_PAUSE)


def test_the_secret_alone_forges_no_command(guarded: Settings) -> None:
    """Goal: who verifies cannot sign. Method: the HMAC secret's holder writes every guarded type, as every source."""
    run_id = new_run_id()
    with opened(guarded) as fabric:
        with fabric.publisher("tamiyo") as publisher:
            publisher.publish(command(run_id), key=run_id)
        (genuine,) = read_run(fabric, "adaptation-commands", run_id)
        assert len(genuine.record.header(SIGNATURE_HEADER) or b"") == SIGNER_SIGNATURE_BYTES
        holder = KeyRing(replace(fabric.keyring.keys, private_keys={}, signers_required=False))
        attempts = 0
        for spec in fabric.topics:
            for type_name in spec.types & SIGNER_TYPES:
                for source in spec.writers:
                    message = getattr(ly, type_name.rpartition(".")[2])()
                    forged = signed_record(fabric, message, key=run_id, source=source, keyring=holder)
                    assert judged(fabric, forged) == "WRONG_SIGNER"
                    attempts += 1
        assert attempts >= len(SIGNER_TYPES)
        (forged,) = append(
            fabric, [signed_record(fabric, command(run_id), key=run_id, source="tamiyo", keyring=holder)]
        )
        # What needs no signer goes on under the secret.
        with fabric.publisher("tolaria") as publisher:
            publisher.publish(packet(run_id, 1), key=run_id)
        assert [event.offset for event in read_run(fabric, "adaptation-commands", run_id)] == [genuine.offset]
        assert len(read_run(fabric, "system-state", run_id)) == 1
        with fabric.consumer(
            group=fresh_group(),
            instance="test-0",
            topics=[forged.topic],
            handlers={},
            publisher=fabric.publisher("oona"),
        ) as consumer:
            poll_to_end(consumer, fabric)
        letters = {(row.topic, row.partition, row.offset): row.reason for row in list_dead_letters(fabric)}
    assert letters[(forged.topic, forged.partition, forged.offset)] == "WRONG_SIGNER"


def test_a_signer_speaks_for_itself_only(guarded: Settings) -> None:
    """Goal: one source's key gives no other's voice. Method: sign tamiyo's command with the key of each source."""
    run_id = new_run_id()
    with opened(guarded) as fabric:
        keys = fabric.keyring.keys
        assert set(keys.private_keys) == set(SIGNER_SOURCES)
        for source in SIGNER_SOURCES:
            ring = KeyRing(replace(keys, private_keys={"": keys.private_keys[source]}))
            record = signed_record(fabric, command(run_id), key=run_id, source="tamiyo", keyring=ring)
            assert judged(fabric, record) == ("GOOD" if source == "tamiyo" else "WRONG_SIGNER")
        # The same holds where signers are not asked for: an Ed25519 key is never anybody's.
        with opened(guarded.model_copy(update={"signature_scheme": "hmac"})) as plain:
            assert judged(plain, record) == "WRONG_SIGNER"


def test_a_verifier_that_cannot_sign(guarded: Settings, tmp_path: Path) -> None:
    """Goal: public keys suffice to verify. Method: a second home with the secret and the .pub files only."""
    run_id = new_run_id()
    with opened(guarded) as fabric, fabric.publisher("tamiyo") as publisher:
        publisher.publish(command(run_id), key=run_id)
        bootstrap = fabric.bootstrap
        (event,) = read_run(fabric, "adaptation-commands", run_id)
        secret = (guarded.home / "key").read_text().strip()
    remote = type(guarded).model_validate(
        {
            "home": tmp_path / "verifier",
            "kafka_bootstrap": bootstrap,
            "leyline_secret": secret,
            "signature_scheme": "ed25519",
        }
    )
    home = Home.create(remote)
    (home.root / "signers").mkdir(mode=0o700)
    for path in (guarded.home / "signers").glob("*.pub"):
        (home.root / "signers" / path.name).write_bytes(path.read_bytes())
    with opened(remote) as verifier:
        assert judged(verifier, event.record) == "GOOD"
        with verifier.publisher("tamiyo") as publisher, pytest.raises(SecretError, match="cannot sign") as caught:
            publisher.publish(command(run_id), key=run_id)
    assert "esper keys rotate --signer tamiyo" in caught.value.next_step
    assert not list((home.root / "signers").glob("*.key"))


def test_signer_keys_rotate_and_end(guarded: Settings) -> None:
    """Goal: a signer's key is replaced and revoked like the secret. Method: commands before, between and after."""
    run_id = new_run_id()
    with opened(guarded) as running:
        with running.publisher("tamiyo") as publisher:
            publisher.publish(command(run_id), key=run_id)
            stolen = KeyRing(running.keyring.keys)
            change = rotate_signer(guarded, "tamiyo")
            assert change.previous_key_id == stolen.keys.private_keys["tamiyo"].public.key_id.hex()
            with pytest.raises(UsageError, match=r"signs at present"):
                revoke_key(guarded, change.key_id)
            until(
                lambda: (
                    running.keyring.keys.private_keys["tamiyo"].public.key_id.hex() == change.key_id or sign(running)
                )
            )
            publisher.publish(command(run_id), key=run_id)
        revoke_key(guarded, change.previous_key_id)
        until(lambda: change.previous_key_id in running.keyring.revocations.boundaries)
        ring = KeyRing(replace(stolen.keys, private_keys={"": stolen.keys.private_keys["tamiyo"]}))
        append(running, [signed_record(running, command(run_id), key=run_id, source="tamiyo", keyring=ring)])
        found = [one for one in everything(running, "adaptation-commands") if one.key == run_id.encode()]
        assert [key_id_of(one) for one in found] == [change.previous_key_id, change.key_id, change.previous_key_id]
        assert [judged(running, one) for one in found] == ["GOOD", "GOOD", "REVOKED_KEY"]
        states = {row.key_id: (row.state, row.signer) for row in list_keys(running)}
    assert states[change.key_id] == ("signing", "tamiyo")
    assert states[change.previous_key_id] == ("revoked", "tamiyo")


def sign(fabric: Fabric) -> bool:
    """Sign something, as a publisher does: that is when a ring looks whether its keys were replaced."""
    signed_record(fabric, packet("run", 1), key="run", source="tolaria")
    return False


def test_a_log_older_than_its_signers(start_broker: Callable[..., RunningBroker]) -> None:
    """Goal: history signed by MACs stays, from a place on signers are needed. Method: change a grown log over."""
    running = start_broker()
    before, after = new_run_id(), new_run_id()
    with opened(running.settings) as fabric, fabric.publisher("tamiyo") as publisher:
        publisher.publish(command(before), key=before)
    guarded = running.settings.model_copy(update={"signature_scheme": "ed25519"})
    Home.create(guarded)
    with opened(guarded) as fabric:
        assert read_run(fabric, "adaptation-commands", before) == []
    assert revoke_key(guarded, HMAC_ALGORITHM).new
    with opened(guarded) as fabric:
        holder = KeyRing(replace(fabric.keyring.keys, signers_required=False))
        for run_id in (before, after):
            append(fabric, [signed_record(fabric, command(run_id), key=run_id, source="tamiyo", keyring=holder)])
        with fabric.publisher("tamiyo") as publisher:
            publisher.publish(command(after), key=after)
        assert len(read_run(fabric, "adaptation-commands", before)) == 1
        (event,) = read_run(fabric, "adaptation-commands", after)
        assert len(event.record.header(SIGNATURE_HEADER) or b"") == SIGNER_SIGNATURE_BYTES
        assert not revoke_key(guarded, HMAC_ALGORITHM).new


def test_every_source_that_needs_a_key_gets_one() -> None:
    """Goal: no guarded type is left without its writer's key. Method: compare the list with the topic files."""
    catalog = TopicCatalog.load(Settings(_env_file=None))  # type: ignore[call-arg]
    writers = {
        source for spec in catalog if spec.types & SIGNER_TYPES and spec.name != "operations" for source in spec.writers
    }
    assert writers | {"cli"} == set(SIGNER_SOURCES)


def test_the_commands_say_what_they_did(settings: Settings) -> None:
    """Goal: JSON shapes, words and exit codes. Method: each command in a process of its own, right and wrong."""
    esper = Esper(settings.home)
    change = esper("keys", "rotate", "--json").json
    assert set(change) == {"key_id", "previous_key_id", "algorithm", "signer"}
    rows = esper("keys", "list", "--json").json
    assert all(
        set(row) == {"key_id", "algorithm", "signer", "state", "rotated_ms", "revoked_ms", "reason"} for row in rows
    )
    states = {row["key_id"]: row["state"] for row in rows}
    assert (states[change["key_id"]], states[change["previous_key_id"]]) == ("signing", "verifying")
    assert change["key_id"] in esper("keys", "list").stdout
    revocation = esper("keys", "revoke", change["previous_key_id"], "--reason", "a test", "--json").json
    assert (revocation["key_id"], revocation["new"]) == (change["previous_key_id"], True)
    assert revocation["effective_from"]["operations-0"] > 0
    assert "was already revoked" in esper("keys", "revoke", change["previous_key_id"]).stdout
    assert "signs with key" in esper("keys", "rotate").stdout
    present = Home.open(settings).key_fingerprint or ""
    for arguments in (["revoke", present], ["revoke", "unknown"], ["rotate", "--signer", "tamiyo"]):
        refused = esper("keys", *arguments)
        assert refused.code == 2
        assert refused.stderr.startswith("error: ")
        assert "Traceback" not in refused.stderr
    secret = (settings.home / "key").read_text().strip()
    by_environment = Esper(settings.home, {"ESPER_LEYLINE_SECRET": secret})("keys", "rotate")
    assert by_environment.code == 2
    assert "ESPER_LEYLINE_PREVIOUS_SECRETS" in by_environment.stderr
    stranger = Esper(settings.home, {"ESPER_LEYLINE_SECRET": "another secret of thirty-two bytes and more"})
    assert {stranger("keys", *one).code for one in (["list"], ["rotate"], ["revoke", present])} == {3}
    assert Home.open(settings).key_fingerprint == present
    guarded = Esper(settings.home, {"ESPER_SIGNATURE_SCHEME": "ed25519"})
    assert guarded("init").code == 0
    signer = guarded("keys", "rotate", "--signer", "tezzeret", "--json").json
    assert (signer["signer"], signer["algorithm"]) == ("tezzeret", "ed25519")
    assert guarded("keys", "revoke", signer["previous_key_id"]).code == 0
    assert guarded("keys", "rotate", "--signer", "tolaria").code == 2
