"""Where a model fails, unprompted: slices of its answers that are wrong more often than chance explains.

Looked through are all combinations of up to three values (promoted columns, metadata, model, predicted label, time,
source folder, the image's size and format), the clusters of the newest tree, and where no tree covers the answers
clusters of their own and kinds of image that no column names. What is sure and what is only chance is decided by
`embeddings/discovery/subgroups.py`; here answers become numbers, and groups become sentences.

Of an image answered more than once its newest judged answer counts: repeats of one picture are no further evidence.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embeddings.discovery import subgroups
from lake import slices
from lake.analytics import dimensions
from lake.analytics.dimensions import Dimension
from lake.analytics.statistics import Rate, difference, wilson
from lake.errors import BadInput, MissingExtra
from lake.sql import connections
from lake.storage.store import literal

if TYPE_CHECKING:
    from embeddings.discovery.subgroups import Failure, Group
    from lake.storage.store import Lake

By = Literal["both", "metadata", "cluster"]
Errors = Literal["judged", "confidence"]

# Answers that are looked at, a sample by their ids: more cost time and find hardly more.
MOST = 50_000
FEWEST = 30
IMAGES = 12
# Of these dimensions every key of the metadata and every promoted column is one.
_ALWAYS = ("label", "version", "folder", "width", "height", "format", "hour", "weekday")
_DIMENSIONS_MOST = 40
# A tree speaks for the answers when it holds this share of their images.
_COVERS = 0.9
_OWN_CLUSTERS, _OWN_CUTS = 64, (4, 8, 16, 32)
_COMPONENTS = 100


@dataclass(frozen=True)
class Condition:
    """`dimension` (as `lake.dimensions` names it) has this value; `title`: how people call the dimension."""

    dimension: str
    title: str
    value: str | None

    def __str__(self) -> str:
        return f"{self.title} {'unknown' if self.value is None else self.value}"


@dataclass(frozen=True)
class Finding:
    """A slice that fails. With `conditions` or a cluster's `node` (TREE/PATH) it has a `predicate` over predictions;
    a kind that nothing names has its judged images, `ids`, alone.

    `known`: judged answers in it; `wrong`: how many are wrong, or the sum of 1 - confidence. `error`, `rest`: rates
    inside and outside, `worse` their difference, all with 95 % intervals. `excess`: wrong answers beyond what the
    rest's rate would make of it. `p`: how often chance alone would show any slice like it, 0 to 1, all that were looked
    at counted. `images`: image_ids of its surest wrong answers, at most IMAGES.
    `same`: other names for nearly the same answers, with the share they have in common.
    """

    conditions: tuple[Condition, ...]
    node: str | None
    predicate: str | None
    ids: list[str]
    known: int
    wrong: float
    error: Rate
    rest: Rate
    worse: Rate
    excess: float
    p: float
    images: list[str]
    same: list[tuple[str, float]]

    @property
    def title(self) -> str:
        """What it is, in words: "camera 7 and site b", "cluster 0.3", "images that look alike"."""
        if self.node is not None:
            return f"cluster {self.node.partition('/')[2]}"
        return " and ".join(map(str, self.conditions)) or "a kind of image that no column names"

    def sentence(self, errors: Errors = "judged") -> str:
        """`module type polycrystalline: 72 % wrong of 18 answers, 56 points worse than the rest`."""
        assert self.error.value is not None
        points = round(100 * (self.worse.value or 0))
        if errors == "confidence":
            return (
                f"{self.title}: mean confidence {1 - self.error.value:.2f} of {self.known:,} answers, "
                f"{points / 100:.2f} lower than the rest"
            )
        return (
            f"{self.title}: {100 * self.error.value:.0f} % wrong of {self.known:,} answers, "
            f"{points} point{'' if points == 1 else 's'} worse than the rest"
        )


@dataclass(frozen=True)
class Discovery:
    """What was found, the gravest first (size and error as one, see `subgroups`), and among what.

    `answers`: how many were looked at, of `of`; `error`: their rate; `looked`: how many groups were compared, of at
    most `conditions` conditions. `remark`: what could not be looked at, and why; None: nothing was left out.
    """

    findings: list[Finding]
    errors: Errors
    answers: int
    of: int
    error: Rate
    looked: int
    conditions: int
    remark: str | None
    seconds: float


def discover(
    lake: Lake,
    where: str | None = None,
    *,
    by: By = "both",
    errors: Errors = "judged",
    seed: int = 0,
    permutations: int = subgroups.PERMUTATIONS,
    progress: Callable[[float, str], None] | None = None,
) -> Discovery:
    """The worst slices among the answers that pass `where` (checked by `lake.metrics.scope`).

    `errors`: "judged" counts answers that a label or a verdict calls wrong; "confidence" takes 1 - confidence for the
    error, for when nothing is judged: it finds what the model is unsure of, not what it is sure and wrong about.
    `progress` is told the share done, 0 to 1, and what begins. Raises BadInput with fewer than FEWEST answers to go by.
    """
    start = time.perf_counter()
    say = progress or _nothing
    if by not in ("both", "metadata", "cluster"):
        raise BadInput(f"by {by!r} is none of both, metadata, cluster")
    if errors not in ("judged", "confidence"):
        raise BadInput(f"errors {errors!r} is none of judged, confidence")
    say(0.0, "reading answers")
    answers, total = _answers(lake, where, by, errors)
    if len(answers.wrong) < FEWEST:
        raise BadInput(_too_few(len(answers.wrong), errors))
    points: np.ndarray | None = None
    remark = None
    if by != "metadata":
        say(0.1, "clusters")
        points, remark = answers.add_clusters(lake, seed)
    say(0.3, "comparing groups")
    found = subgroups.search(
        answers.codes(),
        answers.wrong,
        points,
        alone=answers.alone,
        nameless=answers.nameless,
        seed=seed,
        permutations=permutations,
        progress=lambda share: say(0.3 + 0.6 * share, "dealing errors anew"),
    )
    say(0.95, "findings")
    findings = [answers.finding(one) for one in found.failures]
    rate = wilson(round(float(answers.wrong.sum())), len(answers.wrong))
    seconds = time.perf_counter() - start
    return Discovery(findings, errors, len(answers.wrong), total, rate, found.looked, found.conditions, remark, seconds)


class _Answers:
    """One row an image: `image_ids`, `wrong` (n,) 0 to 1, `sure` (n,) confidence, and the values of each dimension."""

    def __init__(self, table: pa.Table, wanted: Sequence[Dimension]) -> None:
        self.image_ids = table["image_id"].to_pylist()
        self.wrong = table["wrong"].to_numpy().astype(np.float64)
        self.sure = table["confidence"].fill_null(-1.0).to_numpy().astype(np.float64)
        self.wanted: list[Dimension | None] = []
        self.values: list[list[str | None]] = []
        self._columns: list[np.ndarray] = []
        self.alone: list[int] = []
        self.nameless: list[int] = []
        self.tree = ""
        for place, one in enumerate(wanted):
            self.add(one, table[f"d{place}"])

    def add(self, dimension: Dimension | None, column: pa.ChunkedArray) -> int:
        """One more dimension; its number."""
        coded = pc.dictionary_encode(column).combine_chunks()
        self.wanted.append(dimension)
        self.values.append(coded.dictionary.to_pylist())
        self._columns.append(coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64))
        return len(self.wanted) - 1

    def codes(self) -> np.ndarray:
        """int64 (n, dimensions)."""
        return np.column_stack(self._columns) if self._columns else np.zeros((len(self.wrong), 0), np.int64)

    def add_clusters(self, lake: Lake, seed: int) -> tuple[np.ndarray | None, str | None]:
        """Adds the levels of the newest tree when it covers the answers; else clusters of their own, and their vectors
        in few dimensions. Returns those and a remark, None when nothing is left out.
        """
        tree = dimensions.newest_tree(lake)
        if tree is not None:
            members = lake.scan("cluster_members", ["image_id", "node"], f"tree = {literal(tree)} AND node <> ''")
            known = dict.fromkeys(self.image_ids)
            kept = members.filter(pc.is_in(members["image_id"], value_set=pa.array(known)))
            if len(pc.unique(kept["image_id"])) >= _COVERS * len(known):
                self._add_tree(tree, kept)
                return None, None
        return self._add_own(lake, seed)

    def _add_tree(self, tree: str, members: pa.Table) -> None:
        self.tree = tree
        depth = np.asarray(pc.count_substring(members["node"], ".").to_numpy())
        for level in range(int(depth.max(initial=-1)) + 1):
            some = members.filter(pa.array(depth == level))
            node = dict(zip(some["image_id"].to_pylist(), some["node"].to_pylist(), strict=True))
            column = pa.chunked_array([pa.array([node.get(one) for one in self.image_ids], pa.string())])
            self.alone.append(self.add(None, column))

    def _add_own(self, lake: Lake, seed: int) -> tuple[np.ndarray | None, str | None]:
        from embeddings.vectors.principal_components import reduce
        from lake.storage.vectors import vector_batches

        record = next((one for one in lake.embedders() if one.dim is not None), None)
        if record is None:
            return None, "nothing is embedded yet, so kinds of image were not looked at; run: lakeloop embed"
        place = {one: at for at, one in enumerate(self.image_ids)}
        parts = [*vector_batches(lake, record, self.image_ids)]
        if sum(len(names) for names, _ in parts) < FEWEST:
            return None, "too few of the answers' images are embedded to look at kinds of image; run: lakeloop embed"
        at = np.array([place[name] for names, _ in parts for name in names])
        vectors = np.empty((len(at), parts[0][1].shape[1]), np.float32)
        vectors[np.argsort(np.argsort(at))] = np.concatenate([matrix for _, matrix in parts])
        at = np.sort(at)
        points = np.full((len(self.image_ids), 0), np.nan, np.float32)
        reduced = reduce(vectors, seed, _COMPONENTS)
        points = np.full((len(self.image_ids), reduced.shape[1]), np.nan, np.float32)
        points[at] = reduced
        try:
            cuts = own_clusters(reduced, seed)
        except MissingExtra as error:
            return points, f"clusters were not looked at: {error}"
        for cut in cuts:
            column = np.full(len(self.image_ids), -1)
            column[at] = cut
            text = pa.chunked_array([pa.array([None if one < 0 else str(one) for one in column.tolist()], pa.string())])
            self.nameless.append(self.add(None, text))
        return points, None

    def finding(self, failure: Failure) -> Finding:
        """A group in words and ids."""
        inside = failure.members
        known, wrong = int(inside.sum()), float(self.wrong[inside].sum())
        others, other_wrong = len(inside) - known, float(self.wrong[~inside].sum())
        counts = (round(wrong), known, round(other_wrong), others)
        rest = other_wrong / others if others else 0.0
        at = np.flatnonzero(inside & (self.wrong > 0))
        at = at[np.argsort(-self.wrong[at] - self.sure[at] * 1e-3, kind="stable")][:IMAGES]
        conditions, node, predicate = self._named(failure.group)
        return Finding(
            conditions,
            node,
            predicate,
            [] if predicate else [self.image_ids[one] for one in np.flatnonzero(inside)],
            known,
            wrong,
            wilson(*counts[:2]),
            wilson(*counts[2:]),
            difference(*counts),
            wrong - rest * known,
            failure.p,
            [self.image_ids[one] for one in at],
            self._same(failure),
        )

    def _same(self, failure: Failure) -> list[tuple[str, float]]:
        found = []
        for group, alike in failure.same:
            conditions, node, predicate = self._named(group)
            if predicate is not None:
                found.append((f"cluster {node.partition('/')[2]}" if node else str(conditions[0]), alike))
        return found[:3]

    def _named(self, group: Group) -> tuple[tuple[Condition, ...], str | None, str | None]:
        """Conditions, node and predicate; nothing of all for a kind without a name."""
        first, value = group.conditions[0]
        if first == subgroups.LOOK or first in self.nameless:
            return (), None, None
        if first in self.alone:
            node = f"{self.tree}/{self.values[first][value]}"
            return (), node, f"image_id IN (SELECT image_id FROM cluster_members WHERE id = {literal(node)})"
        conditions, parts = [], []
        for one, code in group.conditions:
            dimension, text = self.wanted[one], self.values[one][code]
            assert dimension is not None
            conditions.append(Condition(dimension.name, dimension.title, text))
            parts.append(f"({dimension.picks(text)})")
        return tuple(conditions), None, " AND ".join(parts)


def own_clusters(points: np.ndarray, seed: int) -> list[np.ndarray]:
    """Clusters of points (n, d) from fine to coarse, int64 (n,) each: k-means, its centres merged as Ward does.

    Raises MissingExtra without scikit-learn.
    """
    from embeddings.clusters.clustering import kmeans
    from lake.extras import require

    Merging = require("sklearn.cluster", "scikit-learn", "cluster").AgglomerativeClustering
    fine = kmeans(points, min(_OWN_CLUSTERS, max(2, len(points) // 16)), seed).labels
    centres = np.stack([points[fine == one].mean(axis=0) for one in range(int(fine.max()) + 1)])
    cuts = [k for k in reversed(_OWN_CUTS) if k < len(centres)]
    return [fine, *(np.asarray(Merging(k, linkage="ward").fit(centres).labels_, np.int64)[fine] for k in cuts)]


def _answers(lake: Lake, where: str | None, by: By, errors: Errors) -> tuple[_Answers, int]:
    """The answers to go by, one an image, at most MOST of them; and how many there are."""
    wanted = [] if by == "cluster" else _wanted(lake, where)
    joins = " ".join(dict.fromkeys(one.join for one in wanted if one.join))
    chosen = "".join(f", {one.sql} AS d{place}" for place, one in enumerate(wanted))
    wrong = "CAST(NOT correct AS DOUBLE)" if errors == "judged" else "1 - least(greatest(confidence, 0), 1)"
    judged = "correct IS NOT NULL" if errors == "judged" else "confidence IS NOT NULL"
    found = connections.query(
        lake,
        f"""
        WITH one AS (SELECT * FROM answers_judged WHERE {where or "true"} AND {judged}
                     QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY timestamp DESC NULLS LAST,
                                                ingested_at DESC, prediction_id) = 1),
        kept AS (SELECT *, count(*) OVER () AS total FROM one ORDER BY hash(image_id), image_id LIMIT {MOST})
        SELECT a.image_id, {wrong} AS wrong, a.confidence, a.total{chosen} FROM kept a {joins} ORDER BY a.image_id""",
    )
    total = found["total"][0].as_py() if found.num_rows else 0
    return _Answers(found, wanted), total


def _wanted(lake: Lake, where: str | None) -> list[Dimension]:
    """Dimensions that can say which answers fail: of the truth nothing, of the model's own belief nothing."""
    keys = [f"metadata.{key}" for key in dimensions.metadata_keys(lake)]
    names = [*lake.promoted(), *keys][: _DIMENSIONS_MOST - len(_ALWAYS)]
    span = connections.query(
        lake, f"SELECT date_diff('day', min(timestamp), max(timestamp)) AS days FROM answers WHERE {where or 'true'}"
    )["days"][0].as_py()
    spells = "day" if span is None or span < 15 else "week" if span < 100 else "month"
    return dimensions.resolve(lake, [*dict.fromkeys([*names, *_ALWAYS, spells])], where)


def _too_few(n: int, errors: Errors) -> str:
    if errors == "judged":
        return (
            f"{n} answers are judged, {FEWEST} are needed: label a random check, or look at what the model is unsure "
            "of with: lakeloop discover --errors confidence"
        )
    return f"{n} answers have a confidence, {FEWEST} are needed"


def save(lake: Lake, found: Discovery, where: str | None = None) -> list[str]:
    """Saves each finding as a slice of the answers that pass `where`, too; their ids NAME@VERSION, in their order.

    Raises BadInput when one cannot be saved; those before it are.
    """
    from lake.access import audit

    made = []
    for one in found.findings:
        predicate = one.predicate if where is None or one.predicate is None else f"({one.predicate}) AND ({where})"
        slice = slices.create(lake, slug(one), **({"where": predicate} if predicate else {"ids": one.ids}))
        audit.record(lake, "slice create", slice.id, detail={"kind": slice.kind, "definition": slice.definition})
        made.append(slice.id)
    return made


def slug(finding: Finding) -> str:
    """A name a slice of it may have: `module-type-polycrystalline`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", finding.title).strip("-._")[:80] or "finding"


def facts(found: Discovery) -> dict[str, Any]:
    """A discovery as one JSON object."""
    return {
        "errors": found.errors,
        "answers": found.answers,
        "of": found.of,
        "error": _rate(found.error),
        "looked_at": found.looked,
        "conditions": found.conditions,
        "remark": found.remark,
        "seconds": round(found.seconds, 3),
        "findings": [
            {
                "title": one.title,
                "sentence": one.sentence(found.errors),
                "conditions": [{"dimension": c.dimension, "value": c.value} for c in one.conditions],
                "node": one.node,
                "where": one.predicate,
                "image_ids": one.ids,
                "answers": one.known,
                "wrong": one.wrong if found.errors == "confidence" else round(one.wrong),
                "error": _rate(one.error),
                "rest": _rate(one.rest),
                "worse": _rate(one.worse),
                "excess": round(one.excess, 2),
                "p": one.p,
                "images": one.images,
                "same": [{"title": title, "share": share} for title, share in one.same],
            }
            for one in found.findings
        ],
    }


def _rate(rate: Rate) -> dict[str, float | int | None]:
    return {"value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}


def _nothing(share: float, stage: str) -> None:
    """For who is not interested."""
