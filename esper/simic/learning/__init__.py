"""What learning computes: returns, objectives, factored actions, a round. Tensors in, tensors out; no log."""

from esper.core.policy import Judgement
from esper.simic.learning._experience import NO_STEP, Experience, Observations, return_scale, rows_of
from esper.simic.learning._heads import divergence, entropy, masked_log_probabilities, taken
from esper.simic.learning._imitate import ImitationSettings, imitate
from esper.simic.learning._improve import ActorCritic, Figures, Objective, Progress, Settings, improve
from esper.simic.learning._objective import (
    Surrogate,
    advantage_weighted,
    decoupled_ppo,
    explained_variance,
    value_loss,
)
from esper.simic.learning._returns import Returns, Steps, generalised_advantages, v_trace

__all__ = [
    "NO_STEP",
    "ActorCritic",
    "Experience",
    "Figures",
    "ImitationSettings",
    "Judgement",
    "Objective",
    "Observations",
    "Progress",
    "Returns",
    "Settings",
    "Steps",
    "Surrogate",
    "advantage_weighted",
    "decoupled_ppo",
    "divergence",
    "entropy",
    "explained_variance",
    "generalised_advantages",
    "imitate",
    "improve",
    "masked_log_probabilities",
    "return_scale",
    "rows_of",
    "taken",
    "v_trace",
    "value_loss",
]
