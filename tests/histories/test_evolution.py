"""A contract of a user that moved on twice: a log of all its versions gives the tables of a log of the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from esper.core.settings import Settings
from esper.leyline import EventMessage, Record, load_contracts
from esper.leyline.contracts import unload_contracts
from esper.oona import TopicCatalog
from esper.oona.proof import verify_log
from esper.oona.proof._judge import make_judge
from esper.oona.proof._log import ListLog
from esper.projection import Definition
from esper.projection.definitions._definition import read_definition
from tests.histories.golden import replayed
from tests.leyline.users import (
    RING,
    VERSION_1,
    VERSION_2,
    VERSION_3,
    compile_contract,
    earlier_class,
    install_steps,
    new_package,
    signed,
)

TOPIC = """name: acme-reviews
why: What customers say.
key: product_id
partitions: 1
retention_ms: -1
messages: [ReviewPosted]
writers: [acme]
readers: [projection, cli, oona]
"""
PROJECTION = {
    "projection.yaml": "name: reviews\nwhy: What customers say.\ntopics: [acme-reviews]\nmessages: [ReviewPosted]\n",
    "schema.sql": "create table review_facts (topic_partition integer, record_offset bigint, product_id varchar,"
    " points integer, given_name varchar, family_name varchar, version uinteger);\n",
    "fold.sql": "insert into review_facts by name select topic_partition, record_offset, product_id, points,"
    " given_name, family_name, meta.schema_version as version from ReviewPosted;\n",
    "views.sql": "create view reviews as select product_id, avg(points) as points from review_facts group by all;\n",
}
NAMES = (("Ada", "Lovelace"), ("Grace", "Hopper"), ("Emmy", "Noether"))


@pytest.fixture(autouse=True)
def _only_shipped() -> Iterator[None]:
    yield
    unload_contracts()


@dataclass
class Acme:
    """A user's system on disk, its contract in version 3, and the classes that each version's code had."""

    folder: Path
    settings: Settings
    classes: dict[int, Any]

    @property
    def catalog(self) -> TopicCatalog:
        """All topics; loads the contract."""
        return TopicCatalog.load(self.settings)

    def definition(self) -> Definition:
        """Return the projection, by what is known of the contract now."""
        return read_definition(self.folder / "reviews", self.catalog)

    def review(self, number: int, version: int) -> EventMessage:
        """Return one and the same review as code of a version wrote it."""
        given, family = NAMES[number % len(NAMES)]
        stars = 1 + number % 5
        fields: dict[str, Any] = {"product_id": f"p-{number % 4}"}
        if version == 1:
            fields["stars"] = stars
        else:
            fields["points"] = stars * 20
        if version < 3:
            fields["reviewer"] = f"{given} {family}"
        else:
            fields |= {"given_name": given, "family_name": family}
        return cast("EventMessage", self.classes[version](**fields))

    def log(self, versions: Sequence[int]) -> list[Record]:
        """Return a log of one review for each version given, linked like a publisher's."""
        records: list[Record] = []
        for number, version in enumerate(versions):
            review = self.review(number, version)
            key = f"p-{number % 4}"
            if records:
                signature = records[-1].header("signature")
                assert signature is not None
                review.meta.previous_mac = signature[8:]
            review.meta.time.FromSeconds(1_700_000_000 + number)
            records.append(
                signed(review, key=key, topic="acme-reviews", version=version, offset=number, time_ms=1_700_000_000_000)
            )
        return records

    def replay(self, name: str, records: Sequence[Record]) -> dict[str, Any]:
        """Fold records into a new file; return what came of it."""
        folder = self.folder / f"replay-{name}"
        folder.mkdir()
        definitions = [self.definition()]
        return replayed(records, definitions, catalog=self.catalog, keyring=RING, folder=folder)["reviews"]


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Acme:
    """The user's files: a contract, its history, a topic and a projection."""
    package = new_package()
    classes = {}
    for version, text in {1: VERSION_1, 2: VERSION_2, 3: VERSION_3}.items():
        image, _ = compile_contract(tmp_path, text, package=package, imports=True)
        classes[version] = earlier_class(image, f"{package}.ReviewPosted")
    monkeypatch.syspath_prepend(tmp_path)
    history = install_steps(tmp_path, package, module=f"{package.replace('.', '_')}_evolution")
    (tmp_path / "topics").mkdir()
    (tmp_path / "topics" / "acme-reviews.yaml").write_text(TOPIC)
    (tmp_path / "reviews").mkdir()
    for name, text in PROJECTION.items():
        (tmp_path / "reviews" / name).write_text(text)
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]  # pydantic-settings takes it
        contracts=(str(image), history),
        extra_topics_dirs=(tmp_path / "topics",),
    )
    return Acme(tmp_path, settings, classes)


def test_all_versions_give_the_tables_of_the_last(acme: Acme) -> None:
    """Goal: history is read as if written today. Method: fold 60 reviews of three versions, and of the last alone."""
    mixed = acme.log([1 + number % 3 for number in range(60)])
    latest = acme.log([3] * 60)
    assert [one.value for one in mixed] != [one.value for one in latest]
    found = acme.replay("mixed", mixed)
    assert found["dispositions"] == {"applied": 60, "filtered": 0, "deduplicated": 0, "discarded": 0}
    assert found == acme.replay("latest", latest)
    assert found["tables"]["review_facts"]["rows"] == 60


def test_every_version_proves(acme: Acme) -> None:
    """Goal: proof is about bytes, not meanings. Method: walk over a log of all versions and one that is yet to come."""
    records = acme.log([1, 2, 3, 3])
    future = acme.log([1, 2, 3, 3, 3])
    newer = signed_as(acme, future[-1], version=4)
    catalog = acme.catalog
    judge = make_judge(keyring=RING, allowed=catalog.allowed)
    places = {place: [] for spec in catalog for place in catalog.partitions(spec.name)}
    log = ListLog({**places, ("acme-reviews", 0): [*records, newer]})
    verdict = verify_log(log, public_key=None, judge=judge)
    assert verdict.ok, [one.document() for one in verdict.bad]
    assert verdict.records == 5


def signed_as(acme: Acme, record: Record, *, version: int) -> Record:
    """Return a record signed again as of another version."""
    review = acme.classes[3].FromString(record.value or b"")
    return signed(
        review, key=review.meta.subject, topic=record.topic, version=version, offset=record.offset,
        time_ms=record.append_time_ms,
    )  # fmt: skip


def test_a_version_that_is_not_known_is_set_aside(acme: Acme) -> None:
    """Goal: nothing is guessed, nothing else is lost. Method: one review of version 4 among 9 that are known."""
    records = acme.log([3] * 10)
    records[4] = signed_as(acme, records[4], version=4)
    found = acme.replay("newer", records)
    assert found["dispositions"] == {"applied": 9, "filtered": 0, "deduplicated": 0, "discarded": 1}


def test_a_new_version_makes_projections_new(acme: Acme) -> None:
    """Goal: tables folded without a step are built again. Method: the same folder before and after the history."""
    image = acme.settings.contracts[0]
    alone = acme.settings.model_copy(update={"contracts": (image,)})
    before = read_definition(acme.folder / "reviews", TopicCatalog.load(alone)).version
    load_contracts(acme.settings.contracts)
    assert acme.definition().version != before
