"""The data side of the loop over HTTP: slices, labels, clusters, active searches, metrics; and the client's doors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from embeddings.clusters.drilldown import cluster
from lake import open_lake, slices
from lake.client.data_doors import DataDoors
from lake.client.json_requests import JsonRequests, RequestFailed
from lake.open_lake import OpenLake
from search_app.api.app import Api
from search_app.api.paging import make_cursor
from tests.lake import stock
from tests.search_app.api_client import reason
from tests.search_app.in_process import InProcess

pytestmark = pytest.mark.slow

COUNT = 60


class Doors(DataDoors):
    def __init__(self, requests: JsonRequests) -> None:
        self._requests = requests


@pytest.fixture(scope="module")
def lake_(tmp_path_factory: pytest.TempPathFactory) -> OpenLake:
    """Sixty images with a vector and a prediction, in two groups; the slice night of the first thirty."""
    lake = open_lake.create(str(tmp_path_factory.mktemp("curation") / "lake"), embedders=["x"])
    stock.bind(lake)
    lake = open_lake.open(lake.uri)
    stock.add(lake, range(COUNT))
    stock.embed(lake, range(COUNT))
    slices.create(lake, "night", ids=[stock.image_id(n) for n in range(30)])
    return lake


@pytest.fixture(scope="module")
def client(lake_: OpenLake) -> Iterator[TestClient]:
    with TestClient(Api(lake_), raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def doors(client: TestClient) -> Doors:
    return Doors(InProcess(client))


def ids(*numbers: int) -> list[str]:
    return sorted(stock.image_id(n) for n in numbers)


# Slices ----------------------------------------------------------------------------------------------------


def test_a_slice_from_creation_to_deletion(doors: Doors, lake_: OpenLake) -> None:
    odd = doors.slice("odd").create(ids=ids(1, 3, 5, 7), role="evaluation")
    assert (odd.name, odd.info().size, odd.info().role, odd.members()) == ("odd@1", 4, "evaluation", ids(1, 3, 5, 7))
    odd.tag("gold")
    wider = doors.slice("odd").create(union=["odd@gold", {"where": f"image_id = '{stock.image_id(9)}'"}])
    assert (wider.name, wider.members(), doors.slice("odd@gold").members()) == (
        "odd@2",
        ids(1, 3, 5, 7, 9),
        odd.members(),
    )
    assert [(c.image_id, c.change) for c in wider.diff("odd@gold")] == [(stock.image_id(9), "added")]
    assert [(s.id, [*s.tags]) for s in doors.slice("odd").versions()] == [("odd@1", ["gold"]), ("odd@2", [])]
    assert [s.id for s in doors.slices(newest=True) if s.name == "odd"] == ["odd@2"]
    odd.untag("gold")
    with pytest.raises(RequestFailed, match="no slice 'odd@gold'"):
        doors.slice("odd@gold").info()
    assert doors.slice("odd@2").set_role("regression").role == "regression"
    wider.delete()
    assert [s.id for s in doors.slice("odd").versions()] == ["odd@1"]
    again = doors.slice("copied").create(spec={**odd.spec(), "ids": odd.members()})
    assert again.members() == odd.members()
    live = doors.slice("alive").create(where="confidence >= 0.9", live=True)
    frozen = live.freeze()
    assert (live.info().live, frozen.info().live, frozen.members()) == (True, False, ids(9, 19, 29, 39, 49, 59))
    with pytest.raises(RequestFailed, match="freeze it first"):
        live.pull("nowhere")


def test_a_training_slice_has_nothing_of_evaluation_slices(doors: Doors) -> None:
    doors.slice("held").create(ids=ids(40, 41), role="evaluation")
    with pytest.raises(RequestFailed, match="must not share images") as refused:
        doors.slice("fit").create(ids=ids(40, 42, 43), role="train")
    assert (refused.value.status, refused.value.reason) == (422, "invalid")
    assert doors.slice("fit").create(ids=ids(40, 42, 43), role="train", drop_leaks=True).members() == ids(42, 43)


def test_pages_and_etags_of_members(client: TestClient) -> None:
    first = client.get("/v1/slices/night@1/members?limit=20")
    second = client.get("/v1/slices/night@1/members", params={"limit": 20, "cursor": first.json()["next"]})
    assert first.json()["items"] + second.json()["items"] == ids(*range(30))
    assert second.json()["next"] is None
    again = client.get("/v1/slices/night@1/members?limit=20", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert reason(client.get(f"/v1/slices?cursor={make_cursor((1,))}")) == (422, "bad_cursor")


def test_a_repeated_write_is_done_once(client: TestClient, lake_: OpenLake) -> None:
    new = {"name": "once", "ids": ids(1)}
    first = client.post("/v1/slices", json=new, headers={"Idempotency-Key": "a"})
    assert client.post("/v1/slices", json=new, headers={"Idempotency-Key": "a"}).json() == first.json()
    with TestClient(Api(open_lake.open(lake_.uri))) as restarted:
        assert restarted.post("/v1/slices", json=new, headers={"Idempotency-Key": "a"}).content == first.content
    other = client.post("/v1/slices", json=new | {"ids": ids(2)}, headers={"Idempotency-Key": "a"})
    assert reason(other) == (422, "other_request")
    elsewhere = client.post("/v1/slices/once/freeze", json={}, headers={"Idempotency-Key": "a"})
    assert reason(elsewhere) == (422, "other_request")
    assert [s.id for s in slices.list(lake_) if s.name == "once"] == ["once@1"]
    client.post("/v1/slices", json=new)
    assert [s.id for s in slices.list(lake_) if s.name == "once"] == ["once@2", "once@1"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"where": "list_sum(range(1000000000)) > 0"}, "may not call range()"),
        ({"union": ["night", {"where": "getenv('HOME') = ''"}]}, "may not call getenv()"),
        (
            {"spec": {"intersect": ["night", {"union": ["night", {"where": "repeat('a', 9) = ''"}]}]}},
            "may not call repeat",
        ),
        ({"union": ["night"] * 100}, "it may have at most 100"),
        ({"where": "true", "ids": ["a"]}, "exactly one"),
        ({"where": "nothing = 1"}, "nothing"),
        ({"union": ["night", "nihgt"]}, "did you mean night"),
        ({"ids": ["0" * 64]}, "does not have 1 of the ids"),
        ({"where": "true", "name": "../x"}, "slice name '../x'"),
        ({"where": "true", "role": "training"}, "role"),
        ({"where": "true", "colour": 1}, "colour"),
    ],
)
def test_a_bad_definition_changes_nothing(client: TestClient, lake_: OpenLake, body: Any, words: str) -> None:
    before = lake_.version("slices")
    answer = client.post("/v1/slices", json={"name": "bad", **body})
    assert reason(answer) == (422, "invalid")
    assert words in answer.json()["detail"]
    assert lake_.version("slices") == before


def test_every_write_has_its_row_in_the_audit_log(client: TestClient, lake_: OpenLake) -> None:
    with TestClient(Api(open_lake.open(lake_.uri))) as own:
        own.post("/v1/slices", json={"name": "seen", "ids": ids(1)})
        own.put("/v1/slices/seen/tags/gold")
        own.delete("/v1/slices/seen@1")
        own.post("/v1/labels", json={"labels": [{"image_id": ids(50)[0], "label": "a"}]})
    rows = lake_.sql("SELECT action, target FROM audit WHERE target LIKE 'seen%' OR action = 'labels write'")
    written = {(row["action"], row["target"]) for row in rows.to_pylist()}
    assert written >= {("slice create", "seen@1"), ("slice tag", "seen@gold"), ("slice delete", "seen@1")}
    assert ("labels write", None) in written


# Labels ----------------------------------------------------------------------------------------------------


def test_labels_are_written_and_read(doors: Doors) -> None:
    one, two = ids(20, 21)
    box = {"label": "car", "score": None, "x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0}
    written = doors.add_labels(
        [
            {"image_id": one, "label": "intact", "annotator": "ann"},
            {"image_id": two, "boxes": [{"label": "car", "bbox": [1, 2, 3, 4]}]},
        ]
    )
    rows = {row["image_id"]: row for row in doors.labels([one, two])}
    assert [rows[one]["event_id"], rows[two]["event_id"]] == written
    assert (rows[one]["label"], rows[one]["task"], rows[one]["annotator"]) == ("intact", "classification", "ann")
    assert (rows[two]["boxes"], rows[two]["task"], rows[two]["origin"]) == ([box], "detection", "human")
    pinned = doors.slice("labelled").create(ids=[one])
    doors.add_labels([{"image_id": one, "label": "cracked"}])
    assert [row["label"] for row in pinned.labels()] == ["intact"]
    assert [row["label"] for row in doors.labels([one])] == ["cracked"]
    assert {row["image_id"] for row in doors.labels()} >= {one, two}


def test_a_label_may_say_that_it_is_incomplete(doors: Doors, client: TestClient) -> None:
    (name,) = ids(24)
    doors.add_labels([{"image_id": name, "boxes": [], "incomplete": True}])
    assert [row["incomplete"] for row in doors.labels([name])] == [True]
    refused = client.post("/v1/labels", json={"labels": [{"image_id": name, "label": "a", "incomplete": "partly"}]})
    assert refused.status_code == 422
    assert "incomplete is 'partly'; it must be true or false" in refused.json()["detail"]


def test_a_class_has_one_form_and_clamped_scores_are_counted(client: TestClient) -> None:
    box = {"label": 5.0, "score": 1.0000001, "bbox": [0, 0, 1, 1]}
    label = {"image_id": ids(25)[0], "boxes": [box], "timestamp": "2026-09-01T12:00:00Z"}
    assert client.post("/v1/labels", json={"labels": [label]}).json()["clamped"] == 1
    [read] = client.get("/v1/labels", params={"image_id": ids(25)[0], "task": "detection"}).json()["items"]
    assert [(b["label"], b["score"]) for b in read["boxes"]] == [("5", 1)]


def test_the_same_label_with_its_own_time_is_stored_once(client: TestClient) -> None:
    label = {"image_id": ids(22)[0], "label": "a", "timestamp": "2026-09-01T12:00:00Z"}
    first = client.post("/v1/labels", json={"labels": [label]}).json()
    again = client.post("/v1/labels", json={"labels": [label, label]}).json()
    assert (first["new"], again["new"], again["event_ids"]) == (1, 0, first["event_ids"] * 2)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ({"label": "a"}, "label 1: image_id is None"),
        ({"image_id": "0" * 64, "label": "a"}, "label 1: the lake has no image"),
        ({"image_id": ids(23)[0]}, "label 1: a classification has a label"),
        ({"image_id": ids(23)[0], "boxes": [{"bbox": [0, 0, -1, 1]}]}, "label 1: boxes"),
        ({"image_id": ids(23)[0], "masks": [{"size": [2, 2], "counts": [4]}]}, "label 1: a mask's size is [2, 2]"),
        ({"image_id": ids(23)[0], "masks": "/etc/passwd"}, "no file is read"),
        ({"image_id": ids(23)[0], "label": "a", "origin": "guess"}, "origin is 'guess'"),
        ({"image_id": ids(23)[0], "label": "a", "event_id": "1"}, "event_id is '1'; it must be a UUID"),
        ({"image_id": ids(23)[0], "label": "a", "class": "b"}, "a label has no 'class'"),
        ({"image_id": ids(23)[0], "label": "a\ud800"}, "unexpected end of hex escape"),
        ({"image_id": ids(23)[0], "boxes": [{"bbox": [0, 0, 1, 1], "score": 87}]}, "it looks like a percentage"),
    ],
)
def test_a_wrong_label_is_named_and_none_is_written(
    client: TestClient, lake_: OpenLake, label: Any, words: str
) -> None:
    before = lake_.version("labels")
    body = json.dumps({"labels": [{"image_id": ids(24)[0], "label": "a"}, label]})
    answer = client.post("/v1/labels", content=body, headers={"Content-Type": "application/json"})
    assert reason(answer) == (422, "invalid")
    assert words in answer.json()["detail"]
    assert lake_.version("labels") == before


# Clusters, active searches, metrics ------------------------------------------------------------------------


def test_a_tree_is_listed_opened_and_read(client: TestClient, lake_: OpenLake) -> None:
    tree = cluster(lake_, method="kmeans", k=2).tree
    assert tree in [item["tree"] for item in client.get("/v1/clusters").json()["items"]]
    nodes = client.get(f"/v1/clusters/{tree}").json()["items"]
    assert [node["node"] for node in nodes] == ["", "0", "1"]
    assert sum(node["size"] for node in nodes[1:]) == COUNT
    members = [client.get(f"/v1/clusters/{tree}/members?node={node}").json()["items"] for node in ("", "0", "1")]
    assert sorted(members[1] + members[2]) == members[0] == ids(*range(COUNT))
    opened = client.post(f"/v1/clusters/{tree}/open", json={"node": "0", "method": "kmeans", "k": 2})
    assert [node["path"] for node in opened.json()["nodes"]] == ["0.0", "0.1"]
    pages, cursor = [], None
    while True:
        page = client.get(f"/v1/clusters/{tree}", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        pages += [node["node"] for node in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert pages == ["", "0", "0.0", "0.1", "1"]
    assert reason(client.get(f"/v1/clusters/{tree}/members?node=7")) == (404, "unknown_node")
    assert reason(client.get("/v1/clusters/00000000")) == (404, "unknown_tree")


def test_an_active_search_is_marked_and_saved(doors: Doors, lake_: OpenLake) -> None:
    search = doors.isolate(ids(0), name="kind")
    first = search.state(size=5)
    assert (first.images, first.found, first.looked, len(first.page)) == (COUNT, 1, 0, 5)
    second = search.mark(first.page[:2], first.page[2:], size=5)
    assert (second.found, second.looked) == (3, 5)
    assert not set(second.page) & set(first.page)
    assert search.found() == sorted([stock.image_id(0), *first.page[:2]])
    undone = search.undo(size=5)
    assert ([*undone.page], undone.found) == ([*first.page], 1)
    again = doors.isolate(search=search.id).mark(first.page[:1])
    assert again.found == 2
    with pytest.raises(RequestFailed, match="is marked both yes and no"):
        search.mark(first.page[:1], first.page[:1])
    saved = search.save("kind")
    assert saved.members() == search.found()
    with pytest.raises(RequestFailed, match="no search"):
        doors.isolate(search="00000000").state()


def test_marks_of_another_process_are_seen(doors: Doors, lake_: OpenLake) -> None:
    from embeddings.search import saved_searches

    search = doors.isolate(ids(1))
    saved_searches.resume(open_lake.open(lake_.uri), search.id).mark(ids(2), ids(3))
    assert (search.state().found, search.state().looked) == (2, 2)


def test_labels_of_an_unknown_slice_are_not_found(client: TestClient) -> None:
    for name in ("nope", "night@99", "night@nope"):
        refused = client.get("/v1/labels", params={"slice": name})
        assert (refused.status_code, refused.json()["reason"]) == (404, "unknown_slice")


def test_metrics_are_those_of_the_library(doors: Doors, client: TestClient) -> None:
    whole = doors.metrics()
    assert (whole["all"]["predictions"], whole["cells"]) == (COUNT, [])
    by_label = doors.metrics(["label"], slice="night")
    assert {cell["label"]: cell["predictions"] for cell in by_label["cells"]} == {f"label {n}": 10 for n in range(3)}
    assert "label" in client.get("/v1/metrics/dimensions").json()["dimensions"]
    assert doors.metrics(kind="sizes").keys() == {"boxes", "masks"}
    assert doors.metrics(kind="calibration").keys() >= {"equal_width", "equal_count"}
    assert "cells" in doors.metrics(kind="confusion", models=["m"])
    for path in ("?where=repeat('a',9)=''", "?by=colour", "?slice=nothing", "?model=none", "/compare?old=m&new=m"):
        assert reason(client.get(f"/v1/metrics{path}")) == (422, "invalid"), path
    assert reason(client.post("/v1/discover", json={"where": "label = 'label 1'"})) == (422, "invalid")  # too few


def test_search_and_sql_through_the_client(doors: Doors) -> None:
    rows = doors.search(ids(0), k=3, columns=["label"])
    assert (rows[0]["image_id"], len(rows), "label" in rows[0]) == (stock.image_id(0), 3, True)
    table = doors.sql("SELECT count(*) AS n FROM samples WHERE confidence > $least", {"least": 0.85})
    assert isinstance(table, pa.Table)
    assert table.to_pylist() == [{"n": 6}]
    with pytest.raises(RequestFailed, match="rows"):
        doors.sql("SELECT * FROM range(10)", max_rows=5)
    with pytest.raises(RequestFailed, match="Did you mean"):
        doors.sql("SELECT * FROM sample")
