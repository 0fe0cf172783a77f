"""One Kafka cluster: where it is, how clients are configured for it, and what it says of itself."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from esper.core.clock import SYSTEM_CLOCK, Clock
from esper.core.errors import BrokerUnavailable
from esper.core.home import Home
from esper.core.pacing import Pace
from esper.core.principals import ADMIN, MECHANISM, Principals
from esper.core.settings import Settings
from esper.leyline import VALUE_BYTES_MAX
from esper.oona._failures import BrokerWatch, error_of, is_denied, lacks_leader
from esper.oona._kafka_admin import ClusterMetadata, OffsetSpec
from esper.oona._retired import drop_retired, retire

#: Room for the key, the headers and the batch around the largest value.
RECORD_BYTES_MAX: Final = VALUE_BYTES_MAX + 1024 * 1024
_logger = logging.getLogger("esper.oona.librdkafka")
_REQUEST_SECONDS: Final = 5.0
#: How often an administrative client is replaced while requests fail. One that was replaced lives on for two minutes,
#: and each takes one of a process's 1,024 keys for data of its threads.
_RENEWED_SECONDS: Final = (1.0, 8.0)

Position = tuple[str, int]
#: Names and values as librdkafka's CONFIGURATION.md lists them, callbacks among them.
ClientConfig = dict[str, Any]


class _QuietLog:
    """Takes librdkafka's log lines, which it would print: its error callback tells us the same, and we say it once."""

    def log(self, _: int, text: str, *fields: object) -> None:
        """Pass a line on to our own log, for whoever looks closely."""
        _logger.debug(text, *fields)


_QUIET: Final = _QuietLog()


#: Bytes for which a gathering fetch would not wait any longer.
_GATHERED_BYTES: Final = 1024 * 1024


def gathering(seconds: float) -> ClientConfig:
    """Return the settings of a client that lets the broker gather records for up to `seconds` before it answers.

    Every client that follows a topic costs a wake-up of broker and process for each record. Whoever need not know
    at once gathers, and leaves the cores to those who do.
    """
    if seconds <= 0:
        return {}
    return {"fetch.min.bytes": _GATHERED_BYTES, "fetch.wait.max.ms": round(seconds * 1000)}


class Cluster:
    """The cluster that the settings name; opens connections only when asked something.

    Safe to share between threads. On a home's secure broker its clients log in as `principal`, with the home's
    own passwords; elsewhere with what the settings say, and `principal` is None.
    """

    def __init__(
        self,
        settings: Settings,
        bootstrap: str,
        *,
        client_id: str = "esper",
        passwords: Principals | None = None,
        principal: str = ADMIN,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.settings = settings
        self.bootstrap = bootstrap
        self.client_id = client_id
        self.principal = principal if passwords else None
        self._passwords = passwords
        self._admin: AdminClient | None = None
        self._retire: Callable[[], object] = lambda: None
        first, most = _RENEWED_SECONDS
        self._renewals = Pace(first_seconds=first, most_seconds=most, clock=clock)
        self._watch = self.watch(f"the Kafka cluster at {bootstrap} cannot be used")

    @classmethod
    def open(
        cls, settings: Settings, *, home: Home | None = None, client_id: str = "esper", principal: str = ADMIN
    ) -> Cluster:
        """Return the cluster, once one of its brokers has answered.

        Raises:
            BrokerUnavailable: no local broker runs, or none answered within `settings.connect_seconds`.
            NotReadyError: the cluster refuses the login, or there is no home.
            SecretError: the principal's password is missing or open to others.
        """
        if settings.kafka_bootstrap is not None:
            cluster = cls(settings, settings.kafka_bootstrap, client_id=client_id)
        else:
            owner = home or Home.open(settings)
            bootstrap, passwords = _local_bootstrap(settings, owner), _passwords_of(settings, owner)
            cluster = cls(settings, bootstrap, client_id=client_id, passwords=passwords, principal=principal)
        cluster.metadata(seconds=settings.connect_seconds)
        return cluster

    def as_principal(self, principal: str) -> Cluster:
        """Return this cluster for clients that log in as another principal; itself where the login is not ours."""
        if self._passwords is None or principal == self.principal:
            return self
        return Cluster(
            self.settings,
            self.bootstrap,
            client_id=self.client_id,
            passwords=self._passwords,
            principal=principal,
        )

    def config(self) -> ClientConfig:
        """Return the librdkafka configuration that every client of this cluster starts from.

        Raises:
            SecretError: the principal's password is missing or open to others.
        """
        config: ClientConfig = {
            "bootstrap.servers": self.bootstrap,
            "client.id": self.client_id,
            "logger": _QUIET,
            # A broker that comes back is found at once: the default waits up to ten seconds.
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 500,
            "retry.backoff.max.ms": 500,
            "socket.connection.setup.timeout.ms": 5_000,
            "socket.timeout.ms": 10_000,
            "socket.keepalive.enable": True,
            "allow.auto.create.topics": False,
        }
        return config | self._login()

    def _login(self) -> ClientConfig:
        settings = self.settings
        if self._passwords is not None and self.principal is not None:
            return {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": MECHANISM,
                "sasl.username": self.principal,
                "sasl.password": self._passwords.password(self.principal),
            }
        login: ClientConfig = {"security.protocol": settings.kafka_security_protocol}
        if settings.kafka_security_protocol.startswith("SASL"):
            login["sasl.mechanism"] = settings.kafka_sasl_mechanism
            login["sasl.username"] = settings.kafka_sasl_username or ""
            password = settings.kafka_sasl_password
            login["sasl.password"] = password.get_secret_value() if password else ""
        if settings.kafka_ssl_ca is not None:
            login["ssl.ca.location"] = str(settings.kafka_ssl_ca)
        return login

    def watch(self, what: str) -> BrokerWatch:
        """Return a fresh watch for one client of this cluster."""
        return BrokerWatch(what, bootstrap=self.bootstrap, retry_seconds=self.settings.broker_retry_seconds)

    def _raise_if_hidden(self, topics: Iterable[str]) -> None:
        """Raise the refusal where a topic is hidden from this principal, which looks like one without leaders."""
        asked = TopicCollection(sorted(topics))
        for future in self.admin.describe_topics(asked, request_timeout=_REQUEST_SECONDS).values():
            try:
                future.result()
            except KafkaException as exception:
                if is_denied(error_of(exception)):
                    raise

    @property
    def admin(self) -> AdminClient:
        """The one administrative client, made at first use."""
        admin = self._admin
        if admin is None:
            drop_retired()
            config = self.config() | {"error_cb": self._watch.on_error}
            del config["allow.auto.create.topics"]
            admin = self._admin = AdminClient(config)
            # Known to the finalizer, it is never garbage, not even together with this cluster.
            finalizer = weakref.finalize(self, retire, admin)
            finalizer.atexit = False
            self._retire = finalizer
        return admin

    def metadata(self, *, seconds: float | None = None) -> ClusterMetadata:
        """Return brokers, topics and partitions as the cluster lists them now.

        Raises:
            BrokerUnavailable: none answered within `seconds` (by default `settings.connect_seconds`).
            NotReadyError: the cluster refuses the login.
        """
        limit = self.settings.connect_seconds if seconds is None else seconds

        def ask() -> ClusterMetadata:
            try:
                return self.admin.list_topics(timeout=min(limit, 1.0))
            finally:
                self.admin.poll(0)  # Serves the error callback: a refused login shows nowhere else.

        return self._watch.retrying(f"the Kafka cluster at {self.bootstrap} cannot be reached", ask, seconds=limit)

    def watermarks(
        self, partitions: Iterable[Position], *, seconds: float | None = None
    ) -> Mapping[Position, tuple[int, int]]:
        """Return (low, high) of each partition: the first offset it holds and the one after its last.

        Raises:
            BrokerUnavailable: none answered within `seconds` (by default `settings.broker_retry_seconds`).
            NotReadyError: a topic is not there.
        """
        wanted = list(partitions)
        if not wanted:
            return {}
        what = f"the ends of {', '.join(sorted({topic for topic, _ in wanted}))} cannot be read"

        def ask(spec: OffsetSpec) -> dict[Position, int]:
            asked = {TopicPartition(topic, partition): spec for topic, partition in wanted}
            futures = self.admin.list_offsets(asked, request_timeout=_REQUEST_SECONDS)
            try:
                found = {(place.topic, place.partition): future.result().offset for place, future in futures.items()}
                check_offsets(found)
            except KafkaException as exception:
                if lacks_leader(error_of(exception)):
                    self._raise_if_hidden({topic for topic, _ in wanted})
                # A client that knows the leaders of before a restart is refused (FENCED_LEADER_EPOCH) and never
                # asks who leads now; a fresh one does. Other threads may still wait for answers of this one.
                if self._renewals.may():
                    self._admin = None
                    self._retire()
                raise
            return found

        earliest: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]  # confluent_kafka lacks it
        latest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # as above
        low = self._watch.retrying(what, lambda: ask(earliest), seconds=seconds)
        high = self._watch.retrying(what, lambda: ask(latest), seconds=seconds)
        return {place: (low[place], high[place]) for place in wanted}


def check_offsets(found: Mapping[Position, int], *, least: int = 0) -> None:
    """Raise what passes where librdkafka answers neither offset nor error, but -1001: seen right after a restart."""
    unknown = sorted(f"{topic}-{partition}" for (topic, partition), offset in found.items() if offset < least)
    if unknown:
        cause = f"no offset was answered for {', '.join(unknown)}"
        raise KafkaException(KafkaError(KafkaError.OFFSET_NOT_AVAILABLE, cause))


def _passwords_of(settings: Settings, home: Home) -> Principals | None:
    """Return the passwords of a home with a secure broker, unless the settings name a user of their own."""
    return Principals(home) if home.broker_secure and settings.kafka_sasl_username is None else None


def _local_bootstrap(settings: Settings, owner: Home) -> str:
    """Return the address of the home's own broker."""
    # Imported here: a remote cluster needs neither Java nor what starts it.
    from esper.oona.broker import LocalBroker

    bootstrap = LocalBroker(owner, settings).bootstrap()
    if bootstrap is None:
        raise BrokerUnavailable(
            f"the local broker of home {owner.root} does not run",
            cause="no process of this home answers as its broker",
            next_step="Run `esper up`, or set ESPER_KAFKA_BOOTSTRAP to a cluster that runs",
        )
    return str(bootstrap)
