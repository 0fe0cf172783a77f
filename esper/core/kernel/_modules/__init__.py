"""One builder per word: nothing else can be built."""

from collections.abc import Mapping
from typing import Final

from esper.core.kernel._hazard_modules import HAZARD_BUILDERS
from esper.core.kernel._modules._attention import ATTENTION_BUILDERS
from esper.core.kernel._modules._builder import Builder
from esper.core.kernel._modules._choices import CHOICE_BUILDERS
from esper.core.kernel._modules._features import FEATURE_BUILDERS
from esper.core.kernel._modules._positions import POSITION_BUILDERS

BUILDERS: Final[Mapping[str, Builder]] = {
    **FEATURE_BUILDERS,
    **POSITION_BUILDERS,
    **ATTENTION_BUILDERS,
    **CHOICE_BUILDERS,
    **HAZARD_BUILDERS,
}

__all__ = ["BUILDERS", "Builder"]
