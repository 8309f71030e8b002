"""The model card: every number on it is in the record, and what users wrote breaks nothing."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from embeddings.backfill.vector_columns import store_vectors
from lake import open_lake
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.storage import schema
from search_app.cli import main
from tests.conftest import Say
from tests.training.conftest import striped
from training.card import card, diff, markdown
from training.card import facts as card_facts
from training.card import plots as card_plots
from training.card.facts import CardFacts
from training.evaluation import evaluate, gate
from training.fit import train_model
from training.registry import promotion, runs, versions
from training.registry.recipe import Recipe

HOSTILE = [
    "---\nlicense: mit\n---\n# Owned",
    "a | b | c\n| --- |\n</td><script>alert(1)</script>",
    "``` *bold* __under__ [x](javascript:alert(1)) ![i](http://evil) `` `",
    "$\\frac{1}{0}$ \\(x\\) ${HOME} {{ x }} %s \x00\x1b[31m \u202egnp.exe \u2028# x",
    "- [ ] 1. > quote\n\n    code\n\n- !!python/object/apply:os.system ['x'] &a *a @evil www.evil.com",
    "日本語 🐈 \ud7ff",
]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> OpenLake:
    """Two versions of the probe `lines`, evaluated, judged and promoted, and the record of a network's curves."""
    path = str(tmp_path_factory.mktemp("card") / "lake")
    open_lake.create(path, embedders=["random"])
    lake = open_lake.open(path)
    names = striped(lake, "first", 40) + striped(lake, "second", 12, 100)
    names += striped(lake, "night", 24, 200, role="regression") + striped(lake, "day", 30, 300, role="evaluation")
    record = lake.register_embedder("random")
    lake.bind_embedder(replace(record, dim=16, weights_sha256="d" * 64, licence="Apache-2.0 (made up)"))
    truth = {r["image_id"]: r["label"] for r in lake.sql("SELECT image_id, label FROM labels").to_pylist()}
    rng = np.random.default_rng(0)
    facts = {}
    for name in names:
        vector = rng.normal(0, 1.0, 16) + np.eye(16)[int(truth[name] == "upright")] * 1.5
        facts[name] = (vector / np.linalg.norm(vector)).astype(np.float32)
    store_vectors(lake, record.column, facts)
    probe = Recipe(kind="probe")
    first = train_model.train(lake, train=["first"], recipe=replace(probe, regularisation=10.0), name="lines")
    evaluate.evaluate(lake, first.id)
    promotion.promote(lake, first.id, reason="the first | *one*")
    second = train_model.train(lake, train=["first", "second"], recipe=probe, name="lines", parent=first.id)
    evaluate.evaluate(lake, second.id)
    gate.gate(lake, second.id)
    promotion.promote(lake, second.id, reason="better\non nights", force=True)
    net = runs.create(lake, "net", Recipe(architecture="resnet18"), data={}, classes=["a", "b"])
    curves = [("loss", "train", 0.7), ("miou", "validation", 0.51)]
    runs.log(
        lake,
        net.id,
        [{"metric": m, "split": s, "value": v / (k + 1), "step": k, "epoch": float(k), "n": 9}
         for m, s, v in curves for k in range(3)],
    )  # fmt: skip
    runs.end(lake, net, "done")
    return lake


@pytest.fixture(scope="module")
def facts(lake: OpenLake) -> CardFacts:
    return card_facts.gather(lake, "lines@2")


@pytest.fixture(scope="module")
def rendered(facts: CardFacts) -> card.Card:
    return card.from_facts(facts)


# Every number is in the record --------------------------------------------------------------------------------

# Words that the card itself brings along, with a number in them.
OURS = ("95 % interval", "SHA-256", "UTF-8")
TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.,@:_/+-]*[A-Za-z0-9]|[0-9]")
NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?([eE][+-]?\d+)?\Z")


def walked(value: Any) -> Iterator[Any]:
    """Every value in plain data; text that is JSON is read, too."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from walked(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from walked(item)
    elif isinstance(value, str) and value[:1] in ("{", "["):
        yield from walked(json.loads(value))
    else:
        yield value


class Record:
    """The numbers and the words of the tables that a card may speak of."""

    def __init__(self, lake: OpenLake) -> None:
        self.whole, self.rounded, self.words = set[int](), set[str](), set[str]()
        for name in ("runs", "metrics", "gates", "releases", "slices", "embedders"):
            columns = [c.name for c in schema.TABLES[name].columns]
            for value in walked(lake.scan(name, columns).to_pylist()):
                self._add(value)
        for row in lake.scan("releases", ["model", "version"]).to_pylist():
            self.words |= {f"{row['model']}@{row['version']}", f"{row['model']}-{row['version']}"}

    def _add(self, value: Any) -> None:
        if isinstance(value, bool) or value is None:
            return
        if isinstance(value, int):
            self.whole.add(value)
        elif isinstance(value, float):
            self.rounded |= {f"{value:.3f}", repr(value), json.dumps(value)}
        elif isinstance(value, str):
            self.words |= {match[0].lower() for match in TOKEN.finditer(value)}
        else:
            self.words |= {f"{value:%Y-%m-%d}", f"{value:%H:%M}"}

    def has(self, token: str) -> bool:
        """A number: exactly, or as the rounding of one; another word with digits: as it stands there."""
        if token.lower() in self.words:  # a verdict's sentence, a hash, a version of a package
            return True
        if not NUMBER.match(token):
            return False
        return token in self.rounded if set(token) & set(".e") else int(token.replace(",", "")) in self.whole


def invented(text: str, record: Record) -> list[str]:
    """The words of a card with a digit in them that the record does not have."""
    text = html.unescape(re.sub(r"\\([\\`*_{}\[\]()<>#+!|~&$^:.@])", r"\1", text))
    for ours in OURS:
        text = text.replace(ours, "")
    tokens = [match[0] for match in TOKEN.finditer(text) if any(c.isdigit() for c in match[0])]
    return [token for token in tokens if not record.has(token) and not record.has(token.rstrip(".,:"))]


def test_every_number_is_in_the_record(lake: OpenLake, rendered: card.Card) -> None:
    record = Record(lake)
    assert invented(rendered.text, record) == []
    assert invented(card.text_of(card_facts.gather(lake, "net")), record) == []
    assert invented(diff.diff(lake, "lines@1", "lines@2"), record) == []


def test_an_invented_number_is_noticed(lake: OpenLake, facts: CardFacts, rendered: card.Card, say: Say) -> None:
    """By writing one over each number of the card in turn, and by facts that the record does not have."""
    record = Record(lake)
    places = [
        (line, match) for line in rendered.text.splitlines() for match in TOKEN.finditer(line) if NUMBER.match(match[0])
    ]
    missed = 0
    for line, match in places:
        strange = f"{float(match[0].replace(',', '')) + 0.4567:.4f}" if "." in match[0] else f"{match[0]}98765"
        missed += not invented(line[: match.start()] + strange + line[match.end() :], record)
    say(f"card: {len(places)} numbers, each replaced in turn by an invented one, {missed} not noticed")
    assert len(places) > 100
    assert missed == 0
    day = dict(facts.values["day@1"])
    day["accuracy"] = replace(day["accuracy"], value=0.98765)
    wrong = replace(facts, values={**facts.values, "day@1": day})
    assert "0.988" in invented(card.text_of(wrong), record)


def test_the_metrics_stand_at_their_places(lake: OpenLake, facts: CardFacts, rendered: card.Card) -> None:
    """Row by row: the number beside a slice and a metric is the newest of that run, the older run's is beside it."""
    by_run = {version.run: version for version in versions.list(lake, "lines")}
    rows = lake.sql('SELECT * FROM metrics WHERE evaluation IS NOT NULL ORDER BY "at"').to_pylist()
    newest = {(by_run[r["run"]].version, r["slice"], r["metric"]): r for r in rows if r["run"] in by_run}
    shown = {
        (cells[0], cells[2].split()[0]): cells[3:]
        for line in rendered.text.splitlines()
        if (cells := [c.strip().replace("`", "") for c in line.strip("|").split(" | ")]) and len(cells) == 9
    }
    del shown["slice", "metric"], shown["---", "---"]
    assert len(shown) == len(newest) / 2 == 10
    for (slice, metric), cells in shown.items():
        for version, three in ((2, cells[:3]), (1, cells[3:])):
            row = newest[version, slice, metric]
            assert three == [f"{row['value']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", str(row["n"])]
    for verdict in json.loads(lake.scan("gates", ["slices"]).to_pylist()[0]["slices"]):
        assert markdown.text(verdict["sentence"]) in rendered.text


# The format -----------------------------------------------------------------------------------------------------


def test_the_hub_reads_it(facts: CardFacts, rendered: card.Card) -> None:
    hub = pytest.importorskip("huggingface_hub")
    read = hub.ModelCard(rendered.text)
    assert (read.data.license, read.data.library_name) == ("apache-2.0", "lakeloop")
    assert read.data.pipeline_tag == "image-classification"
    assert read.data.base_model == "lines-1"
    assert read.data.model_name == "lines@2"
    values = {(result.dataset_name, result.metric_type): result.metric_value for result in read.data.eval_results}
    assert values == {
        (name, metric): value.value for name, metrics in facts.values.items() for metric, value in metrics.items()
    }
    assert read.text.strip().startswith("# lines@2")
    assert hub.ModelCard(str(read)).data.to_dict() == read.data.to_dict()


def test_every_plot_is_shown(lake: OpenLake, rendered: card.Card) -> None:
    assert set(rendered.plots) == {"slices.png", "reliability.png", "confusion.png"}
    net = card.render(lake, "net")
    assert set(net.plots) == {"curves.png"}
    for card_ in (rendered, net):
        assert {*re.findall(r"\]\((\w+\.png)\)", card_.text)} == {*card_.plots}


def test_plots_count_every_answer(lake: OpenLake, facts: CardFacts) -> None:
    assert facts.predictions is not None
    counts = card_plots.bins(facts.predictions)
    assert sum(n for n, _, _ in counts) == 54  # 24 of night, 30 of day
    classes, table = card_plots.confusion(facts.predictions)
    assert classes == ["lying", "upright"]
    assert table.sum(axis=1).tolist() == [27, 27]
    judged = evaluate.prediction_rows(lake, facts.run.id, lake.slice("day").members())
    right = sum(n * r for n, _, r in counts if n)
    assert right == pytest.approx(np.trace(table))
    assert len(judged) == 30


def test_what_is_weak_is_told_by_intervals(facts: CardFacts) -> None:
    def measured(low: float, value: float, high: float) -> dict[str, card_facts.MetricValue]:
        return {facts.main_metric: card_facts.MetricValue(value, low, high, 50)}

    figures = {
        "good@1": measured(0.8, 0.9, 0.95),
        "less@1": measured(0.7, 0.75, 0.85),
        "bad@1": measured(0.3, 0.4, 0.5),
        "none@1": {facts.main_metric: card_facts.MetricValue(None, None, None, 0)},
    }
    assert card_facts.weak_slices(replace(facts, values=figures)) == ["bad@1"]
    text = card.text_of(replace(facts, values=figures))
    assert "Do not rely on it for its weak slices: `bad@1`." in text
    assert "Not known, since no image is labelled: `none@1`." in text


# What users wrote ---------------------------------------------------------------------------------------------


def hostile(facts: CardFacts, word: str) -> CardFacts:
    """The facts with this word wherever a user can put one."""
    data = json.loads(json.dumps(facts.run.data))
    data["splits"]["train"]["classes"] = {word: 3, "upright": 4}
    data["left_out"] = {word: 2}
    data["result"]["ended"] = word
    run = replace(facts.run, classes=(word, "upright"), data=data, search=word, environment={"weights": word},
                  settings=facts.run.settings | {"embedder": word, "protect": [word]})  # fmt: skip
    gated = facts.gate
    assert gated is not None
    assert facts.base is not None
    assert facts.predictions is not None
    verdicts = [verdict | {"sentence": word, "blocks": True, "newly_wrong": [word]} for verdict in gated.slices]
    return replace(
        facts,
        run=run,
        slices={name: replace(slice_, definition=word) for name, slice_ in facts.slices.items()},
        history=[replace(event, reason=word) for event in facts.history],
        gate=replace(gated, slices=verdicts, policy={"watched": [word], word: 1}),
        base=replace(facts.base, name=word, weights=word, licence=word),
        predictions=replace(facts.predictions, ground_truth=[word, *facts.predictions.ground_truth[1:]]),
        values={**facts.values, "day@1": {**facts.values["day@1"], word: facts.values["day@1"]["ece"]}},
    )


def test_words_of_users_are_drawn(facts: CardFacts) -> None:
    """As they are: none is read as a formula, and a character that the font lacks is no warning."""
    assert facts.predictions is not None
    true = [*HOSTILE, *facts.predictions.ground_truth[len(HOSTILE) :]]
    plots = card_plots.plots(
        replace(hostile(facts, HOSTILE[3]), predictions=replace(facts.predictions, ground_truth=true))
    )
    assert set(plots) == {"slices.png", "reliability.png", "confusion.png"}


@pytest.mark.parametrize("word", HOSTILE)
def test_words_of_users_break_nothing(facts: CardFacts, word: str) -> None:
    names = ["slices.png", "confusion.png", "reliability.png"]
    text, harmless = (card.text_of(hostile(facts, text_), names) for text_ in (word, "word"))
    header, _, body = text.removeprefix("---\n").partition("\n---\n")
    read = yaml.safe_load(header)
    assert read.keys() == yaml.safe_load(harmless.split("---")[1]).keys()
    assert read["license"] == "other"
    assert [line for line in body.splitlines() if line.startswith("# ")] == ["# lines@2"]
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    parsed, plain = reader.parse(body), reader.parse(harmless.partition("\n---\n")[2])

    def shape(tokens: Sequence[Any], kinds: tuple[str, ...]) -> list[str]:
        every = [t for token in tokens for t in [token, *(token.children or [])]]
        return [t.tag + str(t.attrs.get("href", t.attrs.get("src", ""))) for t in every if t.type in kinds]

    assert not shape(parsed, ("html_block", "html_inline", "link_open"))
    kinds = ("heading_open", "image", "table_open", "hr", "blockquote_open", "fence")
    assert shape(parsed, kinds) == shape(plain, kinds)
    assert not set(text) & set("\x00\x1b\u202e\u2028")


# The doors ------------------------------------------------------------------------------------------------------


def test_commands(lake: OpenLake, rendered: card.Card, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["models", "card", "lines@2", "--lake", lake.uri]
    assert main.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == "\n\n".join(p for p in rendered.text.split("\n\n") if ".png)" not in p).strip()
    assert main.main([*arguments, "--out", str(tmp_path / "card"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [Path(name).name for name in facts["files"]] == ["README.md", *rendered.plots]
    # The same record, the same bytes.
    assert (tmp_path / "card/README.md").read_text() == rendered.text
    assert {name: (tmp_path / "card" / name).read_bytes() for name in rendered.plots} == rendered.plots
    with Image.open(tmp_path / "card/slices.png") as opened:
        assert opened.width > 300
    assert main.main(["models", "diff", "lines@1", "lines@2", "--lake", lake.uri]) == 0
    text = capsys.readouterr().out
    assert "- now train: `second@1`, 12 images" in text
    assert "| `regularisation` | `10.0` | `0.1` |" in text
    assert "must not replace `lines@1`" in text
    assert main.main(["models", "card", "lime", "--lake", lake.uri]) == 2
    assert "lines" in capsys.readouterr().err


def test_there_is_no_card_of_a_run_that_is_not_done(lake: OpenLake) -> None:
    record = runs.create(lake, "other", Recipe(kind="probe"), data={}, classes=[])
    with pytest.raises(BadInput, match="a card needs a run that is done"):
        card_facts.gather(lake, record.id)
    runs.end(lake, record, "done")
    text = card.text_of(card_facts.gather(lake, record.id))  # of nothing recorded it says so
    phrases = (
        "not evaluated on any slice",
        "There is no gate verdict",
        "No slice is recorded",
        "It was never registered",
    )
    for phrase in phrases:
        assert phrase in text
