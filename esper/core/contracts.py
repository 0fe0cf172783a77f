"""The contracts that the settings of this process name, beside Esper's own."""

from __future__ import annotations

import sys
from pathlib import Path

import esper
from esper.core.errors import SettingsError
from esper.core.settings import Settings
from esper.leyline import ContractError, load_contracts


def load_own_contracts(settings: Settings) -> frozenset[str]:
    """Make the events of `settings.contracts` known to this process; return their full names.

    Done before anything reads topics: by `TopicCatalog.load`, also in processes that were spawned. Again does nothing.

    Raises:
        SettingsError: a contract, or the chain of its versions, cannot be used; the message names it.
    """
    try:
        return load_contracts(settings.contracts)
    except ContractError as error:
        raise SettingsError(
            f"setting ESPER_CONTRACTS, {error.what}",
            cause=error.cause,
            next_step="Correct the contract; docs/contracts.md states every rule",
        ) from error


def shipped_protos_dir() -> Path:
    """Return the folder under which protoc finds `esper/leyline/v1/meta.proto`."""
    checkout = Path(esper.__file__).resolve().parent.parent / "proto"
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "esper-grow" / "proto"
