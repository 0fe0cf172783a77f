"""What an id means never changes, for logs name it: digests of specs and artifacts, recorded once."""

from __future__ import annotations

from typing import Final

import pytest

from esper.core.ids import sha256_hex
from esper.core.kernel import canonical_json, make_artifact, make_request, manifest_digest
from esper.karn import KarnCatalog, catalogue
from tests.karn.bodies import HARMFUL, SHAPES
from tests.karn.contract import CONTRACT, highest, lowest

#: First half of the digest over a blueprint's specs: all layouts, each with its lowest and its highest parameters.
SPECS: Final = {
    "BP001": "d4c96b576782ce25",
    "BP002": "cd45877f920e8bfb",
    "BP003": "e5b7d391c9bfbafc",
    "BP004": "d3ab048bd2b4ae21",
    "BP005": "15f951f0d4d02e35",
    "BP006": "28349b1d4cceb75b",
    "BP007": "6582f3e5dc18d098",
    "BP008": "c8530a3b3e287cc2",
    "BP009": "d2190e4faddd31dd",
    "BP010": "27f4cf0cd36c56cb",
    "BP011": "192bb1f34414f792",
    "BP012": "a8f40f6924383a05",
    "BP013": "ff7573f5f232bcec",
    "BP014": "915a2a57663a41f0",
    "BP015": "0873c8d0428300ab",
    "BP016": "0dc8830fe9146dd9",
    "BP017": "58f3151109b1eea5",
    "BP018": "9fa5dd51a4cae8b5",
    "BP019": "1669cd09265299de",
    "BP020": "59bb86185b6730c5",
    "BP021": "da28778ad3d4e304",
    "BP022": "7afdd1693c93140d",
    "BP023": "ff3fa01441ecf273",
    "BP024": "1ac214c4f039c157",
    "BP025": "05e53bff37b8be18",
    "BP026": "432250559594016a",
    "BP027": "1be46d86eab0e2e4",
    "BP028": "c6cd5968323ab2ea",
    "BP029": "fb6a6225dc74ced8",
    "BP030": "8e1455b20b093603",
    "BP031": "d0688ae79f97c6bb",
    "BP032": "8ce1ef8a2ed2d5f6",
    "BP033": "f51d5aeac0f2061f",
    "BP034": "b8aeee78079dfb7e",
    "BP035": "aabb72db7d63d84c",
    "BP036": "b1bd78a8318260c9",
    "BP037": "eb2297946a9a0f4d",
    "BP038": "3a306add456522a1",
    "BP039": "18ac1895c5d29834",
    "BP040": "b4df2c891abc14e8",
    "BP041": "ee3225a329b8369a",
    "BP042": "1182030c63b9e303",
}

#: Digests of artifacts that the first release made: (blueprint, features in, features out).
ARTIFACTS: Final = {
    ("BP002", 40, 8): "1d31aeae78dfacb3bfd20c8a725b461f9c783f4a1abecc10207b11d88c718222",
    ("BP002", 6, 6): "352a13969630b862649214543e21bb0662149db05155781be6fd2e3a1041d2c5",
    ("BP003", 40, 8): "9b5654369e2474797e0f6aa3186bdd3a3ce5c399d29af4058f9a2b7b5f16028d",
    ("BP003", 6, 6): "c117b6e0e1383a96c886b6d474705f8f04780004cb95dd79ce0ee29bc05ae510",
    ("BP005", 40, 8): "675c4fef11ed350c73eecb3fa47c81b462a638bcff07f07d05ea4c600bb690ee",
    ("BP005", 6, 6): "ce02d37d9c9b00ca6b712953fabc87a316db89c68ead11596f695da608705eb5",
    ("BP008", 40, 8): "23a1ec77527845bf0616b34ac0b5609d8beafe10df156928a071611fd26cc672",
    ("BP008", 6, 6): "a34045966304e450c2a7d97af9d2b07b46646ccb9164ba4558f7d1361c61778e",
    ("BP009", 40, 8): "39fece35fc67be2c3dd0d60e3ca8b9257011e843bc4d7b51dc8cd509d4c51e55",
    ("BP009", 6, 6): "0c9900e5f15bc6f42825ab213b809f95ebc1f52d1c0f14e69d57496fb31d3a65",
    ("BP011", 40, 8): "d43a981f1ae117e18a3525592e0bb624e1a67a39c9e10799fa4d82220ac3df20",
    ("BP011", 6, 6): "ab4f3846983955c283207b0a127b17c213c35565fb35c12a6f9e99af1715b461",
    ("BP014", 40, 8): "6da9e025cf305fe5bfc44901c20c7094f99f35800870eb7c9fbc040739d16669",
    ("BP014", 6, 6): "13dea4feb2de52f03330c1d3d7fe081e5a85088007b8537b2ae5ea2e54ea9a99",
    ("BP021", 40, 8): "841ff2f3a0a3a29bbe4030d249ac727b970e8f7be6a71f38bb9532e6505285ce",
    ("BP021", 6, 6): "13923139c4a6136cd1fc343e185a89e1915088638b9c90251472cf95e9cf0686",
    ("BP028", 40, 8): "fefa64c185535d40e343910b94297e1aad9f19b2191bfd1b19978d15c80eae84",
    ("BP028", 6, 6): "aa2cf6218a38c17abd2ed432300b27c66461e2dc891aec121c67a36891093132",
}
PARAMETERS: Final = {
    "BP002": {"scale": 0.75},
    "BP003": {"epsilon": 1e-5},
    "BP009": {"depth": 2.0},
    "BP014": {"gate_bias": -1.0},
    "BP021": {"hidden_multiple": 2.5},
    "BP028": {"growth_rate": 9.0},
}


def test_all_are_recorded() -> None:
    """No blueprint that may be grafted goes without a record: compare names."""
    assert set(SPECS) == set(CONTRACT) - HARMFUL


@pytest.mark.parametrize("blueprint_id", sorted(SPECS))
def test_specs_stay_as_they_were_recorded(blueprint_id: str) -> None:
    """The words of a blueprint never change: build its specs anew and compare their digest."""
    blueprint = catalogue()[blueprint_id]
    specs = [
        blueprint.spec(layout=layout, shape=SHAPES[layout], parameters=bound(blueprint_id))
        for layout in blueprint.layouts
        for bound in (lowest, highest)
    ]
    assert sha256_hex(canonical_json(specs))[:16] == SPECS[blueprint_id]


@pytest.mark.parametrize(("blueprint_id", "inputs", "outputs"), sorted(ARTIFACTS))
def test_artifacts_stay_as_they_were_made(blueprint_id: str, inputs: int, outputs: int) -> None:
    """The same request gives the same bytes from one release to the next, weights included: compare digests."""
    request = make_request(
        blueprint_id, PARAMETERS.get(blueprint_id, {}), layout="vector", in_shape=[inputs], out_shape=[outputs]
    )
    manifest = make_artifact(request, KarnCatalog().build_spec(request)).manifest
    assert manifest_digest(manifest) == ARTIFACTS[blueprint_id, inputs, outputs]
