"""Plan and apply: the difference first, nothing twice, nothing unsafe, nothing foreign."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest

from esper.core.errors import UsageError
from esper.core.ids import new_event_id
from esper.core.settings import load_settings
from esper.oona import Fabric, TopicCatalog, TopicChange, TopicSpec, apply_topics, describe_topics, plan_topics
from esper.oona._kafka_admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from esper.oona.topics._plan import TopicState, decide_plan, topic_config
from tests.conftest import RunningBroker

SPEC = TopicSpec(
    name="runs",
    why="test",
    key="run_id",
    partitions=8,
    retention_ms=-1,
    messages=("TrainingRunClaimed",),
    writers=("tolaria",),
    readers=("cli",),
)
STATE = TopicState(partitions=8, replication_factor=1, config=topic_config(SPEC, replication_factor=1))


def changes(spec: TopicSpec, state: TopicState | None, *, replication_factor: int = 1) -> tuple[TopicChange, ...]:
    """Return what separates one topic's file from its state."""
    actual = {} if state is None else {"runs": state, "somebody-else-s": replace(STATE, partitions=3)}
    return decide_plan(TopicCatalog([spec]), actual, replication_factor=replication_factor).changes


def test_equal_topics_need_nothing_and_foreign_ones_are_not_looked_at() -> None:
    """A plan holds differences only: give the state that the file asks for, and a stranger beside it."""
    assert changes(SPEC, STATE) == ()


def test_missing_topic_is_created() -> None:
    """A topic that the cluster lacks is to be made: plan against an empty cluster."""
    assert changes(SPEC, None, replication_factor=3) == (
        TopicChange("runs", "create", "topic", "", "8 partitions, 3 replicas"),
    )


@pytest.mark.parametrize(
    ("name", "drifted"),
    [
        ("cleanup.policy", "compact"),
        ("retention.ms", "604800000"),
        ("retention.bytes", "1024"),
        ("message.timestamp.type", "CreateTime"),
        ("max.message.bytes", "1048588"),
        ("unclean.leader.election.enable", "true"),
    ],
)
def test_settings_that_drifted_are_set_back(name: str, drifted: str) -> None:
    """What somebody changed on the cluster is undone: change one setting and plan."""
    found = changes(SPEC, replace(STATE, config={**STATE.config, name: drifted}))
    assert found == (TopicChange("runs", "set", name, drifted, STATE.config[name]),)


@pytest.mark.parametrize("partitions", [1, 4, 16])
def test_partitions_of_a_keyed_topic_never_change(partitions: int) -> None:
    """Another count moves keys to other partitions: plan with fewer and more."""
    (change,) = changes(SPEC.model_copy(update={"partitions": partitions}), STATE)
    assert (change.action, change.field, change.before, change.after) == ("refuse", "partitions", "8", str(partitions))
    assert "lose their order" in change.reason


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
@pytest.mark.parametrize("state", [STATE, None])
def test_event_topics_are_never_compacted(policy: str, state: TopicState | None) -> None:
    """Compaction deletes history: ask for it on a topic that is there and on one that is not."""
    refused = [change for change in changes(SPEC.model_copy(update={"cleanup_policy": policy}), state) if change.reason]
    assert [(change.action, change.field) for change in refused] == [("refuse", "cleanup.policy")]
    assert "keeps its history" in refused[0].reason


@pytest.mark.parametrize("state", [STATE, None])
def test_truth_never_expires(state: TopicState | None) -> None:
    """A truth topic keeps everything: ask for a week's retention."""
    refused = [
        change for change in changes(SPEC.model_copy(update={"retention_ms": 604_800_000}), state) if change.reason
    ]
    assert [(change.action, change.field) for change in refused] == [("refuse", "retention.ms")]
    sized = changes(SPEC.model_copy(update={"retention_bytes": 1_000_000}), state)
    assert [(change.action, change.field) for change in sized if change.reason] == [("refuse", "retention.bytes")]


def test_what_is_no_truth_expires_by_the_housekeeper_not_by_kafka() -> None:
    """Kafka would delete what somebody still needs: plan a topic that expires, fresh and as Kafka had it before."""
    spec = SPEC.model_copy(update={"retention_ms": 1000, "retention_bytes": 1_000_000, "truth": False})
    assert spec.expires
    assert not SPEC.expires
    assert changes(spec, STATE) == ()
    before = replace(STATE, config={**STATE.config, "retention.ms": "1000"})
    assert changes(spec, before) == (TopicChange("runs", "set", "retention.ms", "1000", "-1"),)


def test_replicas_are_refused_with_their_reason() -> None:
    """Replicas are moved by another tool: plan for three where there is one."""
    found = changes(SPEC, STATE, replication_factor=3)
    assert [(change.action, change.field) for change in found] == [
        ("refuse", "replication_factor"),
        ("set", "min.insync.replicas"),
    ]


def with_spec(fabric: Fabric, **update: object) -> TopicCatalog:
    """Return the fabric's catalogue with the topic `runs` altered."""
    return TopicCatalog([spec.model_copy(update=update) if spec.name == "runs" else spec for spec in fabric.topics])


def test_second_apply_is_empty_and_foreign_topics_stay(fabric: Fabric) -> None:
    """Apply is idempotent and minds its own business: apply twice on the real broker beside a foreign topic."""
    foreign = f"foreign-{new_event_id()}"
    config = {"cleanup.policy": "compact", "retention.ms": "5000"}
    futures = fabric.cluster.admin.create_topics([NewTopic(foreign, num_partitions=3, config=config)])
    futures[foreign].result(timeout=30)
    assert apply_topics(fabric.cluster, fabric.topics).changes == ()
    assert plan_topics(fabric.cluster, fabric.topics).changes == ()
    resource = ConfigResource(ResourceType.TOPIC, foreign)
    kept = fabric.cluster.admin.describe_configs([resource])[resource].result(timeout=30)
    assert {name: kept[name].value for name in config} == config
    assert len(fabric.cluster.metadata().topics[foreign].partitions) == 3


def test_drift_on_the_broker_is_found_and_set_back(fabric: Fabric) -> None:
    """A plan sees the real cluster: change a retention there, plan, apply, plan again."""
    entry = ConfigEntry("retention.ms", "86400000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, "blueprints", incremental_configs=[entry])
    fabric.cluster.admin.incremental_alter_configs([resource])[resource].result(timeout=30)
    expected = (TopicChange("blueprints", "set", "retention.ms", "86400000", "-1"),)
    assert apply_topics(fabric.cluster, fabric.topics).changes == expected
    assert plan_topics(fabric.cluster, fabric.topics).changes == ()


def test_unsafe_apply_changes_nothing_at_all(fabric: Fabric) -> None:
    """One unsafe change stops the whole apply: ask for more partitions together with a new topic."""
    fresh = SPEC.model_copy(update={"name": f"fresh-{new_event_id()}"})
    catalog = TopicCatalog([*with_spec(fabric, partitions=16), fresh])
    with pytest.raises(UsageError, match=r"runs: partitions -> 16: keys .* lose their order"):
        apply_topics(fabric.cluster, catalog)
    topics = fabric.cluster.metadata().topics
    assert len(topics["runs"].partitions) == 8
    assert fresh.name not in topics


def test_new_topics_carry_their_settings(fabric: Fabric) -> None:
    """What apply makes is what the file says: read the real broker's configuration through describe."""
    described = {topic.name: topic for topic in describe_topics(fabric.cluster, fabric.topics)}
    assert described.keys() == {spec.name for spec in fabric.topics}
    runs = described["runs"]
    assert (runs.present, runs.partitions, runs.replication_factor, len(runs.offsets)) == (True, 8, 1, 8)
    assert runs.config["message.timestamp.type"] == "LogAppendTime"
    assert runs.config["retention.ms"] == "-1"
    assert int(runs.config["max.message.bytes"]) > 9 * 1024 * 1024
    assert (described["telemetry"].retention_ms, described["telemetry"].retention_bytes) == (604_800_000, 1 << 30)
    assert described["telemetry"].config["retention.ms"] == "-1", "the housekeeper deletes, by need"


def test_describe_shows_what_is_missing(fabric: Fabric) -> None:
    """A topic that only the files know is shown as absent: describe a catalogue with one more."""
    fresh = SPEC.model_copy(update={"name": f"fresh-{new_event_id()}"})
    described = {topic.name: topic for topic in describe_topics(fabric.cluster, TopicCatalog([fresh]))}
    assert (described[fresh.name].present, described[fresh.name].offsets) == (False, ())


def test_replication_factor_comes_from_the_settings(broker: RunningBroker) -> None:
    """Settings decide the replicas: plan a fresh catalogue with three on the real cluster's state."""
    settings = load_settings(**{**broker.settings.model_dump(), "kafka_replication_factor": 3, "_env_file": None})
    with Fabric.open(broker.settings, member="test") as fabric:
        fabric.cluster.settings = settings
        plan = plan_topics(fabric.cluster, fabric.topics)
    assert {change.field for change in plan.changes} == {"replication_factor", "min.insync.replicas"}
    assert len(plan.refused) == len(fabric.topics)


def test_two_that_apply_at_once_both_succeed(fabric: Fabric) -> None:
    """Goal: `esper up` twice at once is fine. Method: two threads apply a topic that neither saw on the cluster."""
    name = f"runs-{new_event_id()}"
    specs = [spec.model_copy(update={"name": name}) if spec.name == "runs" else spec for spec in fabric.topics]
    catalog = TopicCatalog(specs)
    begin = Barrier(2)

    def apply() -> None:
        begin.wait(timeout=30)
        apply_topics(fabric.cluster, catalog)

    with ThreadPoolExecutor() as pool:
        both = [pool.submit(apply) for _ in range(2)]
    assert [one.exception() for one in both] == [None, None]
    assert plan_topics(fabric.cluster, catalog).changes == ()
