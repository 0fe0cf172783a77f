"""Following what `operations` says about keys, so that every reader of a process knows what was revoked."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Final

from esper.core.errors import EsperError, NotReadyError
from esper.leyline import (
    SIGNATURE_HEADER,
    TYPE_HEADER,
    BadRecord,
    KeyRing,
    Record,
    decode,
    fold_key_event,
    open_record,
    type_of,
)
from esper.leyline import messages as ly
from esper.oona._cluster import Position
from esper.oona.reading._reader import Reader
from esper.oona.topics._specs import TopicCatalog

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

_logger = logging.getLogger("esper.oona.keys")

OPERATIONS: Final[Position] = ("operations", 0)
_TYPES: Final = frozenset(type_of(cls()).encode() for cls in (ly.KeyRotated, ly.KeyRevoked))
_CATCH_UP_SECONDS: Final = 60.0
#: A process that is done before this never opens a connection to follow by.
_FIRST_LOOK_SECONDS: Final = 0.2
#: How long closing may wait for the following thread; what is appended wakes it at once.
_POLL_SECONDS: Final = 0.1
_RETRY_SECONDS: Final = 1.0


class KeyFollower:
    """Keeps the revocations of one ring up to what `operations` says, from its first record on.

    `catch_up` reads to the topic's end; `start` goes on in a thread of its own, which sees a revocation
    milliseconds after its append. A record that was judged before that stays judged; every later reading
    judges it by its offset.
    """

    def __init__(self, fabric: Fabric) -> None:
        # Weak: a fabric that nobody holds any more is not kept alive by who follows for it.
        self._fabric = weakref.ref(fabric, lambda _: self._stop.set())
        self._keyring = fabric.keyring
        self._topics = fabric.topics
        self._next = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def next_offset(self) -> int:
        """Offset in `operations` of the first record that is not taken in yet."""
        return self._next

    def catch_up(self) -> None:
        """Take in everything that `operations` holds now; call it before `start`.

        Raises:
            NotReadyError: its end did not come, or the topic is not there.
        """
        fabric = self._fabric()
        assert fabric is not None, "whoever calls this holds the fabric"
        low, end = fabric.cluster.watermarks([OPERATIONS], seconds=fabric.settings.connect_seconds)[OPERATIONS]
        self._next = max(self._next, low)
        if self._next < end:
            with Reader(fabric, {OPERATIONS: self._next}, rejects=None) as reader:
                self._read_to(reader, end)

    def start(self) -> None:
        """Follow until `close`."""
        self._thread = threading.Thread(target=self._follow, name="keys", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following; closing twice does nothing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _read_to(self, reader: Reader, end: int) -> None:
        waited = 0.0
        while self._next < end:  # ends at `end`, or when nothing came for too long
            before = self._next
            self._take(reader, 1.0)
            waited = 0.0 if self._next > before else waited + 1.0
            if waited >= _CATCH_UP_SECONDS:
                raise NotReadyError(
                    "the topic operations cannot be read",
                    cause=f"it did not come up to offset {end}",
                    next_step="Try again; the broker's log says more",
                )

    def _take(self, reader: Reader, timeout: float) -> None:
        known = self._keyring.revocations.boundaries.keys()
        for record in reader.read_raw(timeout):
            fold_record(self._keyring, self._topics, record)
        if self._thread is not None:  # What is history at the start is no news.
            for key_id in self._keyring.revocations.boundaries.keys() - known:
                _logger.warning("key %s is revoked", key_id)
        self._next = reader.positions()[OPERATIONS]

    def _follow(self) -> None:
        wait = _FIRST_LOOK_SECONDS
        while not self._stop.wait(wait):
            try:
                self._follow_once()
            except EsperError as error:
                _logger.warning("what is said about keys is not followed for now: %s", error)
            wait = _RETRY_SECONDS

    def _follow_once(self) -> None:
        fabric = self._fabric()
        if fabric is None:
            return
        reader = Reader(fabric, {OPERATIONS: self._next}, rejects=None)
        del fabric
        with reader:
            while not self._stop.is_set():
                self._take(reader, _POLL_SECONDS)


def fold_record(keyring: KeyRing, topics: TopicCatalog, record: Record) -> None:
    """Let `keyring` know what one record of `operations` says about keys; one that must not be believed says nothing.

    Raises:
        SecretError: it is signed with an unknown key, and the ring's files cannot be read.
    """
    if record.header(TYPE_HEADER) not in _TYPES:
        return
    try:
        meta = open_record(record, keyring=keyring, allowed=topics.allowed)
        event = decode(record, meta)
    except BadRecord as bad:
        _logger.info("operations-0-%d says nothing about keys: %s", record.offset, bad)
        return
    signature = record.header(SIGNATURE_HEADER) or b""
    keyring.revocations = fold_key_event(keyring.revocations, meta, event, signature=signature)
