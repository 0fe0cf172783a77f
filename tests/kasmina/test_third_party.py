"""Models that other people wrote: convolutions with ReLU in place, calls by name, outputs that are no tensors."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.core.inputs import Batch, Output, Targets
from esper.kasmina import discover_slots
from tests.kasmina.hosts import HostKind
from tests.kasmina.test_pairs import alone, with_seed

STEPS, TOKENS, LENGTH, CLASSES = 6, 32, 8, 3


def resnet() -> nn.Module:
    """Return torchvision's ResNet-18 with weights drawn anew."""
    from torchvision.models import resnet18

    model: nn.Module = resnet18(weights=None, num_classes=CLASSES)
    return model


def gpt2() -> nn.Module:
    """Return a small GPT-2 with its tied head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": TOKENS, "n_positions": LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    return model


def bert() -> nn.Module:
    """Return a small BERT that names one class for each text."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model: nn.Module = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=16, num_labels=CLASSES))
    return model


def pictures(number: int, size: int) -> Batch:
    """Return pictures of noise and the colour that is brightest in them.

    Of 32 pixels, as torch's bfloat16 convolutions of one pixel in strides do not repeat themselves on this processor.
    """
    generator = torch.Generator().manual_seed(6000 + number)
    x_BCHW = torch.randn(size, 3, 32, 32, generator=generator)
    return x_BCHW, x_BCHW.mean(dim=(2, 3)).argmax(dim=1)


def texts(number: int, size: int, *, whole: bool) -> Batch:
    """Return tokens by name, and for each text (or each of its tokens) what is to be named."""
    generator = torch.Generator().manual_seed(7000 + number)
    tokens_BL = torch.randint(TOKENS, (size, LENGTH), generator=generator)
    inputs = {"input_ids": tokens_BL, "attention_mask": torch.ones_like(tokens_BL), "use_cache": False}
    return inputs, tokens_BL[:, 0] % CLASSES if whole else tokens_BL.roll(1, dims=1)


def by_logits(outputs: Output, targets: Targets) -> Tensor:
    """Return the cross-entropy of a transformers model's outputs."""
    return functional.cross_entropy(outputs.logits.flatten(0, -2), targets.flatten())


reading = partial(HostKind, layout="sequence", loss=by_logits)
MODELS = {
    "resnet, a block": HostKind(resnet, "layer1.0", "map2d", pictures),
    "resnet, a layer before ReLU in place": HostKind(resnet, "layer2.0.conv2", "map2d", pictures),
    "gpt2, a block": reading(gpt2, "transformer.h.0", batch=partial(texts, whole=False)),
    "gpt2, attention, which gives a tuple": reading(gpt2, "transformer.h.1.attn", batch=partial(texts, whole=False)),
    "bert, a block": reading(bert, "bert.encoder.layer.0", batch=partial(texts, whole=True)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("blueprint_id", "regime"), [("BP009", "plain"), ("BP004", "mixed, clipped, accumulated")])
def test_their_training_is_not_changed(name: str, blueprint_id: str, regime: str) -> None:
    """Goal: a seed in TRAINING is nothing to them either. Method: some steps with one and without, bit for bit."""
    parameters = {"BP009": {"depth": 1.0}, "BP004": {"dropout": 0.2}}[blueprint_id]
    outcome = with_seed(MODELS[name], blueprint_id, regime, parameters=parameters, steps=STEPS)
    assert outcome.differences(alone(MODELS[name], regime, STEPS)) == []
    assert outcome.seed_moved


@pytest.mark.parametrize(
    ("name", "slots"),
    [
        ("resnet, a block", ["layer1.0", "layer1.1", "layer2.0.conv2", "layer2.1", "layer3.0.conv2"]),
        ("gpt2, a block", ["transformer.h.0", "transformer.h.1"]),
        ("bert, a block", ["bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler.dense"]),
    ],
)
def test_their_blocks_are_found(name: str, slots: list[str]) -> None:
    """Goal: `slots="auto"` fits what people use. Method: its first answers for each model."""
    kind = MODELS[name]
    found = discover_slots(kind.factory(), kind.batch(0, 2)[0])
    assert [spec.slot for spec in found][: len(slots)] == slots
