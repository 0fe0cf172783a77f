"""The closed vocabulary, by family; nothing here needs torch."""

from collections.abc import Mapping
from typing import Final

from esper.core.kernel._hazards import HAZARD_WORDS
from esper.core.kernel._word import Word
from esper.core.kernel._words._attention import ATTENTION_WORDS
from esper.core.kernel._words._choices import CHOICE_WORDS
from esper.core.kernel._words._features import END_WORDS, FEATURE_WORDS
from esper.core.kernel._words._positions import POSITION_WORDS

BODY_WORDS: Final[Mapping[str, Word]] = {
    **FEATURE_WORDS,
    **POSITION_WORDS,
    **ATTENTION_WORDS,
    **CHOICE_WORDS,
    **HAZARD_WORDS,
}

__all__ = ["BODY_WORDS", "END_WORDS", "HAZARD_WORDS"]
