"""Documents of the archive: canonical JSON, signed with the log key, so that one changed byte is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from esper.core._log_key import LogKey, signature_holds

SEGMENT_DOMAIN: Final = b"esper-archive-segment-v1"
SEAL_DOMAIN: Final = b"esper-archive-seal-v1"
#: A seal names every partition and group; a thousand of each make less than a megabyte.
DOCUMENT_BYTES_MAX: Final = 64 * 1024 * 1024


class BadDocument(Exception):
    """A document that must not be believed; the text says why."""


def canonical(document: Mapping[str, Any]) -> bytes:
    """Return the one JSON text of a document: sorted names, no spaces, ASCII."""
    return json.dumps(document, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def digest_of(raw: bytes) -> str:
    """Return the SHA-256 of a document as it lies on disk, 64 hexadecimal digits."""
    return hashlib.sha256(raw).hexdigest()


def sign_document(key: LogKey, domain: bytes, content: Mapping[str, Any]) -> bytes:
    """Return a document with the signature over its content, as it is to lie on disk."""
    signature = key.sign(domain, canonical(content))
    return canonical({"content": content, "public_key": key.public_key.hex(), "signature": signature.hex()}) + b"\n"


def open_document(raw: bytes, domain: bytes, *, public_key: bytes) -> bytes:
    """Return the canonical JSON of the content that `public_key` signed.

    Raises:
        BadDocument: it is not written as it was, or another key signed it, or none.
    """
    try:
        document = json.loads(raw)
        content, signature = document["content"], bytes.fromhex(document["signature"])
        whole = canonical({"content": content, "public_key": public_key.hex(), "signature": signature.hex()}) + b"\n"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadDocument("it is no signed document") from error
    if document.get("public_key") != public_key.hex():
        raise BadDocument("it was signed with another key than this archive's")
    if whole != raw:
        raise BadDocument("it is not written as it was sealed")
    text = canonical(content)
    if not signature_holds(public_key, domain=domain, content=text, signature=signature):
        raise BadDocument("its signature was not made with the log key")
    return text
