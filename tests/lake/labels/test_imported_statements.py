"""Random histories of 200 images: imports, edits, moved folders, corrections by people, kills, and runs at once."""

import datetime as dt
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from lake.formats.annotation import GroundTruth
from lake.labels import label_events
from lake.labels.imported_statements import ImportedStatements, Statement
from lake.open_lake import OpenLake
from lake.storage import schema

SOURCES, LABELS = ("/a/set.json", "/b/set.json", "/moved/set.json"), ("cat", "dog", "bird")
MINUTE = dt.timedelta(minutes=1)


@dataclass
class Rule:
    """The rule in memory, of one image: what each source said last, what the last import said, and what counts."""

    last: dict[str, str] = field(default_factory=dict)
    imported: str | None = None
    current: str | None = None
    events: int = 0

    def imports(self, source: str, label: str) -> None:
        if label not in (self.last.get(source), self.imported):
            self.events += 1
            self.last[source] = self.imported = self.current = label


def run(lk: OpenLake, moment: dt.datetime, said: Iterable[Mapping[str, str]], source: str, *, end: bool = True) -> int:
    """One ingest of a source that says a label of each image, in parts; returns the number of new events. Without
    `end`, it is killed before its end.
    """
    imported, new = ImportedStatements(lk, moment), 0

    def insert(rows: list[dict[str, object]]) -> int:
        return lk.insert("labels", pa.Table.from_pylist(rows, schema=schema.LABELS.arrow()))

    for part in said:
        statements = [Statement(i, GroundTruth("classification", n), "import", source) for i, n in part.items()]
        new += insert(imported.rows(statements))
    return new + (insert(imported.rest()) if end else 0)


def current(lk: OpenLake) -> dict[str, str]:
    rows = lk.sql("SELECT image_id, label FROM labels_current")
    return dict(zip(rows["image_id"].to_pylist(), rows["label"].to_pylist(), strict=True))


@pytest.fixture
def images(lk: OpenLake) -> list[str]:
    """Names of images without bytes, each with a sample."""
    names = [f"{n:064x}" for n in range(200)]
    fields = schema.SAMPLES.arrow()
    rows = [{"prediction_id": f"{n}", "image_id": n, "ingested_at": dt.datetime.now(dt.UTC)} for n in names]
    lk.insert("samples", pa.Table.from_pylist(rows, schema=fields))
    return names


def test_the_labels_follow_the_rule(lk: OpenLake, images: list[str]) -> None:
    chance, clock = random.Random(14), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    rules = {name: Rule() for name in images}
    for _ in range(14):
        clock += MINUTE
        said = {name: chance.choice(LABELS) for name in chance.sample(images, 120)}
        if chance.random() < 0.3:
            label_events.write(
                lk, [{"image_id": n, "label": label, "timestamp": clock.isoformat()} for n, label in said.items()]
            )
            for name, label in said.items():
                rules[name].current = label
            continue
        source = chance.choice(SOURCES)
        if chance.random() < 0.5:
            run(lk, clock, [said], source, end=False)  # killed; the next one completes it
        before = lk.dataset("labels").count_rows()
        at_once = [ImportedStatements(lk, clock + MINUTE / 2) for _ in range(2)]
        statements = [Statement(i, GroundTruth("classification", n), "import", source) for i, n in said.items()]
        rows = [one.rows(statements) for one in at_once]
        rows = [part + one.rest() for part, one in zip(rows, at_once, strict=True)]
        for part in rows:
            lk.insert("labels", pa.Table.from_pylist(part, schema=schema.LABELS.arrow()))
        assert lk.dataset("labels").count_rows() >= before
        run(lk, clock + MINUTE / 2, [said], source)
        for name, label in said.items():
            rules[name].imports(source, label)
        assert current(lk) == {name: rule.current for name, rule in rules.items() if rule.current}
    assert lk.dataset("labels").count_rows("origin = 'import'") == sum(rule.events for rule in rules.values())


def test_a_source_with_several_copies_of_an_image_adds_nothing_again(lk: OpenLake, images: list[str]) -> None:
    """Its last statement counts, and the same statements in the same order change nothing, not even a correction."""
    chance, clock = random.Random(15), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    for number in range(6):
        clock += 3 * MINUTE
        source = chance.choice(SOURCES)
        copies = [{name: chance.choice(LABELS) for name in chance.sample(images, 150)} for _ in range(3)]
        if number % 2:
            run(lk, clock, copies[:2], source, end=False)
        run(lk, clock, copies, source)
        last = {name: label for part in copies for name, label in part.items()}
        now = current(lk)
        corrected = chance.sample(images, 50)
        label_events.write(
            lk, [{"image_id": n, "label": "a person's", "timestamp": (clock + MINUTE).isoformat()} for n in corrected]
        )
        assert run(lk, clock + 2 * MINUTE, copies, source) == 0
        assert current(lk) == now | dict.fromkeys(corrected, "a person's")
        if not number:
            assert now == last
