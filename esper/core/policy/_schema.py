"""What an observation holds and what its figures mean to a network; names only, no torch.

An observation is a list of named floats (`DecisionMade.observation_names` and `.observation`): one block for the run,
one for the epochs before, one for each slot. Whoever changes a name, its meaning or its order changes the version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

#: Changes when a name is added, dropped or given another meaning.
OBSERVATION_SCHEMA: Final = "tamiyo.observation.v2"
#: Packets before the last one whose figures are in the observation.
PAST_EPOCHS: Final = 5
PAST_FIGURES: Final = ("training_loss", "validation_loss", "validation_accuracy")
#: Codes of the layouts; 0 is a layout that this version does not know.
LAYOUT_CODES: Final[Mapping[str, float]] = {"vector": 1.0, "sequence": 2.0, "map1d": 3.0, "map2d": 4.0}

#: First action of the slot, blueprint and schedule heads: the operation needs none.
NONE: Final = "none"
OPERATIONS: Final = ("continue", "germinate", "start_grafting", "stabilize", "evaluate", "fossilize", "cull")
#: Actions of the schedule head -> epochs that alpha takes from 0 to 1.
BLENDS: Final[Mapping[str, float]] = {"blend_1": 1.0, "blend_2": 2.0, "blend_4": 4.0}
HEADS: Final = ("operation", "slot", "blueprint", "schedule")

_NUMBERED: Final = re.compile(r"BP([0-9]{1,6})")


def blueprint_code(blueprint_id: str) -> int:
    """Return the number of a blueprint, 21 for BP021; 0 where its name holds none, or for no blueprint."""
    found = _NUMBERED.fullmatch(blueprint_id)
    return int(found[1]) if found else 0
