"""Learned versions: trained from the log, judged, promoted, rolled back, compared; each step an event."""

from esper.weatherlight._policies._curves import policy_curves
from esper.weatherlight._policies._differ import policy_diff
from esper.weatherlight._policies._history import policy_list, policy_show
from esper.weatherlight._policies._promote import Validation, promote_policy, roll_back_policy, validate_policy
from esper.weatherlight._policies._train import PolicyTraining, train_again, train_policy

__all__ = [
    "PolicyTraining",
    "Validation",
    "policy_curves",
    "policy_diff",
    "policy_list",
    "policy_show",
    "promote_policy",
    "roll_back_policy",
    "train_again",
    "train_policy",
    "validate_policy",
]
