"""The learned policy as both Tamiyo, who decides with it, and Simic, who trains it, know it.

What needs torch or numpy is imported when it is first asked for: most of what knows an observation's names has no
network.
"""

from typing import TYPE_CHECKING

from esper.core.policy._schema import (
    BLENDS,
    HEADS,
    LAYOUT_CODES,
    NONE,
    OBSERVATION_SCHEMA,
    OPERATIONS,
    PAST_EPOCHS,
    PAST_FIGURES,
    blueprint_code,
)
from esper.core.policy._specification import (
    WEIGHTS_BYTES_MAX,
    OptionEntry,
    PolicyRefused,
    Specification,
    parse_specification,
    policy_digest,
)
from esper.core.policy._standing import (
    POLICY_ID,
    SHIPPED,
    Refusal,
    Standing,
    Term,
    Version,
    fold,
    shipped_standing,
)

if TYPE_CHECKING:
    from esper.core.policy._layout import Encoded, Layout, StrangeObservation, layout_of, together
    from esper.core.policy._network import Judgement, PolicyNetwork, Thoughts
    from esper.core.policy._packed import PAYLOAD_VERSION, Packed, pack, unpack

_LATER = {
    "Encoded": "_layout",
    "Judgement": "_network",
    "Layout": "_layout",
    "PAYLOAD_VERSION": "_packed",
    "Packed": "_packed",
    "PolicyNetwork": "_network",
    "StrangeObservation": "_layout",
    "Thoughts": "_network",
    "layout_of": "_layout",
    "pack": "_packed",
    "together": "_layout",
    "unpack": "_packed",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "BLENDS",
    "HEADS",
    "LAYOUT_CODES",
    "NONE",
    "OBSERVATION_SCHEMA",
    "OPERATIONS",
    "PAST_EPOCHS",
    "PAST_FIGURES",
    "PAYLOAD_VERSION",
    "POLICY_ID",
    "SHIPPED",
    "WEIGHTS_BYTES_MAX",
    "Encoded",
    "Judgement",
    "Layout",
    "OptionEntry",
    "Packed",
    "PolicyNetwork",
    "PolicyRefused",
    "Refusal",
    "Specification",
    "Standing",
    "StrangeObservation",
    "Term",
    "Thoughts",
    "Version",
    "blueprint_code",
    "fold",
    "layout_of",
    "pack",
    "parse_specification",
    "policy_digest",
    "shipped_standing",
    "together",
    "unpack",
]
