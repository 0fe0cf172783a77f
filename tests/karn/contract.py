"""The predecessor's catalogue as data: what parity is checked against."""

from __future__ import annotations

from typing import Final, NamedTuple

SAFE: Final = "SAFE"
EXPERIMENTAL: Final = "EXPERIMENTAL"
HIGH_RISK: Final = "HIGH_RISK"


class Row(NamedTuple):
    """One line of the old catalogue; in `flags`, Q is `quarantine_only` and A `approval_required`."""

    name: str
    tier: str
    risk: float
    stage: int
    flags: str
    parameters: dict[str, tuple[float, float]]


CONTRACT: Final = {
    "BP001": Row("identity_passthrough", SAFE, 0.0, 0, "", {}),
    "BP002": Row("linear_projection", SAFE, 0.1, 0, "", {"scale": (0.5, 2.0)}),
    "BP003": Row("layer_norm_basic", SAFE, 0.1, 0, "", {"epsilon": (1e-6, 1e-3)}),
    "BP004": Row("dropout_light", SAFE, 0.2, 0, "", {"dropout": (0.0, 0.4)}),
    "BP005": Row("relu_activation", SAFE, 0.1, 0, "", {}),
    "BP006": Row("batch_norm_1d", SAFE, 0.2, 0, "", {"momentum": (0.5, 0.99)}),
    "BP007": Row("pooling_max", SAFE, 0.2, 0, "", {"kernel": (2.0, 5.0)}),
    "BP008": Row("skip_connection", SAFE, 0.2, 1, "", {}),
    "BP009": Row("residual_block", SAFE, 0.3, 1, "", {"depth": (1.0, 4.0)}),
    "BP010": Row("concat_fusion", SAFE, 0.3, 1, "", {"branches": (2.0, 4.0)}),
    "BP011": Row("gelu_activation", SAFE, 0.2, 1, "", {}),
    "BP012": Row("layer_scaling", SAFE, 0.3, 1, "", {"scale": (0.8, 1.2)}),
    "BP013": Row("grouped_conv", SAFE, 0.4, 1, "", {"groups": (2.0, 8.0)}),
    "BP014": Row("highway_gate", SAFE, 0.4, 1, "", {"gate_bias": (-3.0, 3.0)}),
    "BP015": Row("depthwise_separable", SAFE, 0.4, 2, "", {"kernel": (3.0, 7.0)}),
    "BP016": Row("squeeze_excitation", SAFE, 0.4, 2, "", {"reduction": (4.0, 16.0)}),
    "BP017": Row("channel_attention", SAFE, 0.4, 2, "", {"heads": (1.0, 4.0)}),
    "BP018": Row("spatial_attention", SAFE, 0.4, 2, "", {"radius": (1.0, 3.0)}),
    "BP019": Row("cross_attention", SAFE, 0.5, 2, "", {"heads": (2.0, 4.0)}),
    "BP020": Row("attention_single_head", SAFE, 0.5, 2, "", {"sequence_length": (16.0, 256.0)}),
    "BP021": Row("feedforward_gated", SAFE, 0.5, 2, "", {"hidden_multiple": (2.0, 6.0)}),
    "BP022": Row("multi_head_attention_4", SAFE, 0.5, 3, "", {"heads": (4.0, 6.0)}),
    "BP023": Row("transformer_block", SAFE, 0.5, 3, "", {"layers": (1.0, 6.0)}),
    "BP024": Row("conv_transformer", SAFE, 0.5, 3, "", {"kernel": (3.0, 11.0)}),
    "BP025": Row("dynamic_conv", SAFE, 0.5, 3, "", {"experts": (2.0, 8.0)}),
    "BP026": Row("adaptive_pooling", SAFE, 0.5, 3, "", {"output_size": (4.0, 16.0)}),
    "BP027": Row("feature_pyramid", SAFE, 0.5, 3, "", {"levels": (3.0, 5.0)}),
    "BP028": Row("dense_connection", SAFE, 0.5, 3, "", {"growth_rate": (8.0, 48.0)}),
    "BP029": Row("multi_head_attention_8", SAFE, 0.5, 4, "", {"heads": (8.0, 10.0)}),
    "BP030": Row("graph_attention", SAFE, 0.5, 4, "", {"hops": (1.0, 3.0)}),
    "BP031": Row("temporal_conv", SAFE, 0.5, 4, "", {"dilation": (1.0, 5.0)}),
    "BP032": Row("dilated_conv", SAFE, 0.5, 4, "", {"dilation": (1.0, 8.0)}),
    "BP033": Row("deformable_conv", SAFE, 0.5, 4, "", {"offset_groups": (1.0, 4.0)}),
    "BP034": Row("non_local_block", SAFE, 0.5, 4, "", {"window": (4.0, 16.0)}),
    "BP035": Row("learned_positional", SAFE, 0.5, 4, "", {"frequency": (0.1, 1.0)}),
    "BP036": Row("mixture_of_experts_4", EXPERIMENTAL, 0.7, 5, "A", {"experts": (4.0, 8.0), "capacity": (1.0, 2.0)}),
    "BP037": Row("hierarchical_attention", EXPERIMENTAL, 0.7, 5, "A", {"levels": (2.0, 4.0)}),
    "BP038": Row("memory_augmented", EXPERIMENTAL, 0.8, 5, "A", {"memory_slots": (32.0, 128.0)}),
    "BP039": Row("neural_ode_block", EXPERIMENTAL, 0.8, 5, "A", {"steps": (1.0, 10.0)}),
    "BP040": Row("differentiable_nas", EXPERIMENTAL, 0.8, 5, "A", {"temperature": (0.5, 2.0)}),
    "BP041": Row("meta_learning_layer", EXPERIMENTAL, 0.8, 5, "A", {"adapt_steps": (1.0, 5.0)}),
    "BP042": Row("recursive_processing", EXPERIMENTAL, 0.8, 5, "A", {"depth": (2.0, 6.0)}),
    "BP043": Row("exploding_gradient", HIGH_RISK, 0.9, 6, "QA", {"scale": (5.0, 20.0)}),
    "BP044": Row("vanishing_gradient", HIGH_RISK, 0.9, 6, "QA", {"decay": (0.0, 0.1)}),
    "BP045": Row("nan_injection", HIGH_RISK, 1.0, 6, "QA", {"frequency": (0.01, 0.1)}),
    "BP046": Row("infinite_loop", HIGH_RISK, 1.0, 6, "QA", {"iterations": (1000.0, 10000.0)}),
    "BP047": Row("memory_leak", HIGH_RISK, 1.0, 6, "QA", {"growth_rate": (1.0, 5.0)}),
    "BP048": Row("deadlock_pattern", HIGH_RISK, 1.0, 6, "QA", {"threads": (2.0, 16.0)}),
    "BP049": Row("race_condition", HIGH_RISK, 0.9, 6, "QA", {"window_ns": (10.0, 1000.0)}),
    "BP050": Row("adversarial_noise", HIGH_RISK, 0.9, 6, "QA", {"epsilon": (0.1, 1.0)}),
}


def lowest(blueprint_id: str) -> dict[str, float]:
    """Return the blueprint's parameters, each at its lower bound."""
    return {name: low for name, (low, _) in CONTRACT[blueprint_id].parameters.items()}


def highest(blueprint_id: str) -> dict[str, float]:
    """Return the blueprint's parameters, each at its upper bound."""
    return {name: high for name, (_, high) in CONTRACT[blueprint_id].parameters.items()}
