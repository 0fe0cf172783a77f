"""`esper keys ...`: the keys that records are signed with."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from esper.cli._console import JsonFlag, emit_json, emit_line, emit_table, open_fabric, say, settings
from esper.oona import list_keys, revoke_key, rotate_key, rotate_signer

keys = typer.Typer(no_args_is_help=True, help="Keys: which sign, which verify, and which are believed no more.")

_COLUMNS = ["key_id", "algorithm", "signer", "state", "rotated_ms", "revoked_ms", "reason"]


@keys.command("list")
def list_(json: JsonFlag = False) -> None:
    """List every key that this home verifies with, and its state. Example: esper keys list --json"""
    with open_fabric() as fabric:
        rows = [asdict(row) for row in list_keys(fabric)]
    if json:
        emit_json(rows)
    else:
        emit_table(rows, _COLUMNS)


@keys.command()
def rotate(
    signer: Annotated[str, typer.Option(help="Replace the Ed25519 key of this source instead.")] = "",
    json: JsonFlag = False,
) -> None:
    """Sign with a new key from now on; older ones still verify, members go on. Example: esper keys rotate"""
    change = rotate_signer(settings(), signer) if signer else rotate_key(settings())
    if json:
        emit_json(asdict(change))
    else:
        emit_line(f"{change.signer or 'the home'} signs with key {change.key_id} from now on")
        if change.previous_key_id:
            say(f"to end the old one: esper keys revoke {change.previous_key_id}")


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Key id, as `esper keys list` shows it, or hmac-sha256.")],
    reason: Annotated[str, typer.Option(help="Why, for whoever reads the log.")] = "",
    json: JsonFlag = False,
) -> None:
    """Believe nothing that a key signs from now on. Example: esper keys revoke 3f0c91d2a4b5c6d7"""
    revocation = revoke_key(settings(), key_id, reason=reason)
    if json:
        emit_json(asdict(revocation))
    else:
        emit_line(f"key {key_id} {'is' if revocation.new else 'was already'} revoked; `esper keys list` shows it")


def register(app: typer.Typer) -> None:
    """Add these commands to the tree."""
    app.add_typer(keys, name="keys")
