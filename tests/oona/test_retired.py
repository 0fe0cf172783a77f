"""A client whose answers are on their way is not destroyed by whoever collects garbage."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import RunningBroker

_PROGRAM = """
import gc, sys
from esper.core.settings import load_settings
from esper.oona import Cluster
from esper.oona._kafka_admin import ConfigResource, ResourceType

gc.set_threshold(1)
topics = [ConfigResource(ResourceType.TOPIC, name) for name in ("runs", "telemetry", "decisions", "policy")]
for _ in range(40):
    cluster = Cluster(load_settings(_env_file=None, kafka_bootstrap=sys.argv[1], leyline_secret="s" * 32), sys.argv[1])
    cluster.admin.list_topics(timeout=10)
    waiting = list(cluster.admin.describe_configs(topics).values())
    cycle = [cluster]
    cycle.append(cycle)
    del cluster, cycle
    for future in waiting:
        future.result(timeout=10)
"""


def test_a_cluster_that_is_garbage_does_not_end_the_process(broker: RunningBroker) -> None:
    """Goal: no abort. Method: drop clusters in a cycle while answers come, in a process that collects all the time."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, broker.bootstrap], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
