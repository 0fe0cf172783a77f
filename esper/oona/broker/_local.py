"""The home's own Kafka broker: one KRaft node on loopback that outlives the command that started it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from esper.core.clock import SYSTEM_CLOCK, Deadline
from esper.core.errors import Busy, OperationFailed, UsageError
from esper.core.home import Home, live_members, unwritable
from esper.core.rng import new_secret
from esper.core.settings import Settings
from esper.oona.broker._access import InternalFile, establish
from esper.oona.broker._jars import java_program, ready_jars
from esper.oona.broker._ports import choose_port, require_free
from esper.oona.broker._process import BrokerProcess, tail
from esper.oona.broker._readiness import plain_client, wait_until_ready
from esper.oona.broker._settings import InternalLogin, cluster_id, java_environment
from esper.oona.broker._storage import Storage, start_failed
from esper.oona.topics._specs import TopicCatalog

_logger = logging.getLogger("esper.oona.broker")

#: An idle broker is gone 1.3 s after SIGTERM; one that recovers or swaps gets this long before SIGKILL.
_STOP_SECONDS = 30.0
_KILL_SECONDS = 10.0
_LOG_LINES = 6


class LocalBroker:
    """Starts, finds and stops the broker of one home.

    Every method may be called from any process that opened the home; `start` and `stop` wait for each other.
    Nothing here touches Java or a process when `settings.kafka_bootstrap` names another cluster.
    """

    def __init__(self, home: Home, settings: Settings) -> None:
        self._home = home
        self._settings = settings
        self._process = BrokerProcess(home)
        self._internal = InternalFile(home)

    def start(self, *, secure: bool | None = None) -> str:
        """Start the broker unless it runs, wait until it is ready, and return its `host:port`.

        Ready means: it answered with metadata as this home's cluster, found a group's coordinator and appended
        a record. It runs in a session of its own and stays when this process ends.

        A secure broker asks every client for a login, and allows each principal what the topic files state; its
        principals and grants are brought to what the files say now, also where it runs already. `secure`
        changes the home's mode, which it keeps: None leaves it as it is. The log stays in either mode.

        Raises:
            UsageError: settings name another cluster.
            NotReadyError: the jars or Java are not installed.
            IntegrityError: a jar was altered and cannot be fetched again.
            Busy: the port is taken, another process has been starting or stopping it for too long, or the
                mode is to be changed while the broker or a member runs.
            BrokerUnavailable: it did not become ready in `broker_start_seconds`; the last log lines are its cause.
            SettingsError: the home cannot be written, or has a path that Kafka cannot read.
        """
        self._require_local()
        with self._lock():
            running = self._process.find() or self._process.find_orphan()
            if secure is not None and secure != self._home.broker_secure:
                self._change_mode(secure=secure, running=running is not None)
            if running:
                self._await_ready()
                return self._address()
            self._launch()
            try:
                self._await_ready()
            except BaseException:  # Ctrl-C too: a broker that nobody saw ready must not stay behind.
                self._process.end(signal.SIGKILL, seconds=_KILL_SECONDS)
                self._forget()
                raise
        return self._address()

    def stop(self) -> bool:
        """Stop the broker and wait until it is gone; return whether it ran.

        Raises:
            UsageError: settings name another cluster.
            Busy: another process has been starting or stopping it for too long.
            OperationFailed: it survived SIGKILL.
        """
        self._require_local()
        with self._lock():
            process = self._process.find() or self._process.find_orphan()
            if process is not None and not self._process.end(signal.SIGTERM, seconds=_STOP_SECONDS):
                self._process.end(signal.SIGKILL, seconds=_KILL_SECONDS)
            if self._process.find() is not None:
                raise OperationFailed(
                    f"the local broker of {self._home.root} does not end",
                    cause=f"process {process.pid if process else '?'} still runs after SIGKILL",
                    next_step="It waits for a disk or a debugger; end that, then run `esper down` again",
                )
            self._forget()
        return process is not None

    def kill(self) -> bool:
        """Kill the broker as a crash would, leaving its files as they are; return whether it ran."""
        self._require_local()
        return self._process.end(signal.SIGKILL, seconds=_KILL_SECONDS)

    def bootstrap(self) -> str | None:
        """Return the running broker's `host:port`, ready or not; None when it does not run."""
        if not self._settings.loopback or self._process.find() is None:
            return None
        return self._address()

    def _forget(self) -> None:
        self._process.forget()
        self._internal.remove()

    def _change_mode(self, *, secure: bool, running: bool) -> None:
        """Remember the other mode, unless somebody uses the present one."""
        users = ["the broker"] if running else []
        users += [f"member {member.name}" for member in live_members(self._home)]
        if users:
            raise Busy(
                f"the local broker of {self._home.root} stays {'plain' if secure else 'secure'}",
                cause=f"{', '.join(users)} still runs in that mode",
                next_step=f"Stop the members, run `esper down`, then `esper up {'--secure' if secure else '--plain'}`",
            )
        self._home.remember_broker_secure(secure)

    def _address(self) -> str:
        return f"127.0.0.1:{self._home.broker_port}"

    def _require_local(self) -> None:
        if not self._settings.loopback:
            raise UsageError(
                "there is no local broker to start or stop",
                cause=f"ESPER_KAFKA_BOOTSTRAP names the cluster {self._settings.kafka_bootstrap}",
                next_step="Unset ESPER_KAFKA_BOOTSTRAP to use the home's own broker",
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Hold the lock under which the broker is started and stopped."""
        seconds = self._settings.broker_start_seconds + _STOP_SECONDS
        lock = FileLock(self._home.broker / "broker.lock")
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:
            raise Busy(
                f"the local broker of {self._home.root} is being started or stopped",
                cause=f"another process has been at it for {seconds:.0f} s",
                next_step="Find that process and end it, then try again",
            ) from error
        except OSError as error:
            raise unwritable(self._home.root, error) from error
        try:
            yield
        finally:
            lock.release()

    def _launch(self) -> None:
        """Check jars and ports, prepare the home and start Java."""
        storage = Storage(self._home, java=java_program(), jars=ready_jars(), marker=self._process.marker)
        port = self._choose_port()
        controller_port = choose_port(self._home.home_id, "controller", avoid=(port,))
        seconds = self._settings.broker_start_seconds
        internal = None
        try:
            if self._home.broker_secure:
                inside = choose_port(self._home.home_id, "internal", avoid=(port, controller_port))
                internal = InternalLogin(port=inside, password=new_secret())
                self._internal.write(internal)
            command = storage.prepare(port=port, controller_port=controller_port, seconds=seconds, internal=internal)
            self._home.remember_broker_port(port)
            pid = self._process.launch(command, java_environment())
        except OSError as error:
            raise unwritable(self._home.root, error) from error
        _logger.info("started the local broker on port %d, pid %d", port, pid)

    def _choose_port(self) -> int:
        """Return the port that is set, else the one used last, else a free one."""
        fixed = self._settings.broker_port or self._home.broker_port
        return require_free(fixed) if fixed else choose_port(self._home.home_id, "broker")

    def _await_ready(self) -> None:
        """Wait until the broker is ready; raises BrokerUnavailable when it ended or took too long."""
        port, seconds = self._home.broker_port, self._settings.broker_start_seconds
        assert port is not None, "the port is remembered before the broker starts"
        started, deadline = SYSTEM_CLOCK.monotonic(), Deadline(seconds)
        if not self._becomes_ready(port, deadline):
            raise start_failed(self._home, f"it was not ready within {seconds:.0f} s", self._last_lines())
        _logger.info("the local broker is ready on port %d after %.1f s", port, SYSTEM_CLOCK.monotonic() - started)

    def _becomes_ready(self, port: int, deadline: Deadline) -> bool:
        identity = cluster_id(self._home.home_id)
        internal = self._internal.read() if self._home.broker_secure else None
        client = internal.client() if internal else plain_client(port)
        ready = wait_until_ready(port, identity, client=client, deadline=deadline, check=self._check_alive)
        if not ready or internal is None:
            return ready
        catalog = TopicCatalog.load(self._settings)
        try:
            return establish(self._home, catalog, internal, port=port, deadline=deadline, check=self._check_alive)
        except OSError as error:
            raise unwritable(self._home.root, error) from error

    def _check_alive(self) -> None:
        if self._process.find() is None:
            raise start_failed(self._home, "it ended while it was starting", self._last_lines())

    def _last_lines(self) -> list[str]:
        """Return the ends of what Java printed and of what Kafka logged."""
        paths = (self._process.output_path, self._home.logs / "broker.log")
        return [line for path in paths for line in tail(path, lines=_LOG_LINES)]
