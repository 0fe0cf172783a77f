"""The one place where it is decided whether a record is authentic, for whoever proves something of the log."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from esper.leyline import Allowed, Authenticator, KeyRing, Record, open_record
from esper.leyline import messages as ly

if TYPE_CHECKING:
    from esper.oona._fabric import Fabric

#: Returns the meta of an authentic record; raises BadRecord with the reason for any other.
Judge = Callable[[Record], ly.EventMeta]


def make_judge(*, keyring: KeyRing, allowed: Allowed) -> Judge:
    """Return a judge by signature, contract and topic files, for one thread."""
    authenticated = Authenticator(keyring).authenticate
    return partial(open_record, keyring=keyring, allowed=allowed, authenticated=authenticated)


def fabric_judge(fabric: Fabric) -> Judge:
    """Return the judge that a process of this fabric uses.

    Revoked keys and signers that are bound to sources are judged here, and only here: whatever the fabric's gate
    asks beyond `open_record` belongs into this function.
    """
    return make_judge(keyring=fabric.keyring, allowed=fabric.topics.allowed)
