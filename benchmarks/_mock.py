"""librdkafka's mock cluster as a broker, for machines that have neither Java nor a network.

It keeps some megabytes of each partition in memory, so the log of a long benchmark cannot be read again from its
beginning; what is written is signed, acknowledged and read back at its end all the same.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import confluent_kafka

from esper.core.home import Home
from esper.core.settings import load_settings
from esper.oona import Fabric, TopicCatalog
from esper.oona.publishing import _publisher

#: Set for the processes that a benchmark on the mock cluster starts.
VARIABLE: Final = "ESPER_BENCH_MOCK"
_PRODUCER: Final = 0
_ERROR_BYTES: Final = 512


def believe_its_clock() -> None:
    """Take acknowledgements of the mock cluster, which says of every record that it was appended in January 1970.

    Whoever sets another clock than the broker's is refused otherwise. Only where the parent of this process says that
    the broker is a mock.
    """
    if os.environ.get(VARIABLE):
        _publisher.CLOCK_SKEW_MS_MAX = 2**62  # type: ignore[misc]  # a benchmark's own concern


def _library() -> ctypes.CDLL:
    """Return the librdkafka that the Python client brought along."""
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(iter(sorted(folder.glob("librdkafka*.so*"))))))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    library.rd_kafka_conf_new.restype = pointer
    library.rd_kafka_new.restype = pointer
    library.rd_kafka_new.argtypes = [number, pointer, text, ctypes.c_size_t]
    library.rd_kafka_mock_cluster_new.restype = pointer
    library.rd_kafka_mock_cluster_new.argtypes = [pointer, number]
    library.rd_kafka_mock_cluster_bootstraps.restype = text
    library.rd_kafka_mock_cluster_bootstraps.argtypes = [pointer]
    library.rd_kafka_mock_topic_create.argtypes = [pointer, text, number, number]
    library.rd_kafka_mock_cluster_destroy.argtypes = [pointer]
    library.rd_kafka_destroy.argtypes = [pointer]
    return library


@contextmanager
def mock_only() -> Iterator[Fabric]:
    """Yield a fabric over a fresh mock cluster of one broker with the shipped topics."""
    os.environ[VARIABLE] = "1"
    believe_its_clock()
    library = _library()
    client = library.rd_kafka_new(
        _PRODUCER, library.rd_kafka_conf_new(), ctypes.create_string_buffer(_ERROR_BYTES), _ERROR_BYTES
    )
    cluster = library.rd_kafka_mock_cluster_new(client, 1)
    try:
        with tempfile.TemporaryDirectory(prefix="esper-bench-") as folder:
            home = Home.create(load_settings(home=Path(folder)))
            settings = load_settings(
                home=Path(folder),
                kafka_bootstrap=library.rd_kafka_mock_cluster_bootstraps(cluster).decode(),
                leyline_secret=(home.root / "key").read_text().strip(),
            )
            for spec in TopicCatalog.load(settings):
                library.rd_kafka_mock_topic_create(cluster, spec.name.encode(), spec.partitions, 1)
            with Fabric.open(settings, member="bench") as fabric:
                yield fabric
    finally:
        library.rd_kafka_mock_cluster_destroy(cluster)
        library.rd_kafka_destroy(client)
        del os.environ[VARIABLE]
