"""Names of columns: which field of a prediction a column of a log, or a key of an event, holds.

A name counts without regard to case, and a space or a hyphen counts as an underscore. Two columns that could be one
field are never guessed between: either the field's own name decides, or the columns are refused by name.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Iterable, Mapping

from lake.errors import BadInput

# A field's own name, and its other names; docs/prediction-logs.md has the same table.
NAMES: dict[str, tuple[str, ...]] = {
    "image": (
        *("image_path", "path", "file_name", "filename", "file", "file_path", "filepath"),
        *("image_file", "image_name", "img", "img_path"),
    ),
    "image_id": (),
    "label": (
        *("prediction", "predicted", "predicted_label", "predicted_class", "pred", "pred_label", "pred_class"),
        *("y_pred", "class", "class_name", "class_label"),
    ),
    "truth": (
        *("ground_truth", "gt", "true_label", "label_true", "true_class", "gt_label", "gt_class"),
        *("ground_truth_label", "ground_truth_class", "y_true", "actual_label", "actual_class"),
    ),
    "confidence": ("conf", "score", "probability", "prob"),
    "scores": ("probabilities", "probs"),
    "boxes": (),
    "masks": (),
    "mask": (),  # of masks, as the path of a picture: a log may have both, in different rows
    "timestamp": ("time", "ts", "datetime", "date_time"),
    "model": ("model_name",),
    "model_version": (),
    "task": (),
    "source": (),
    "latency_ms": (),
    "prediction_id": ("id", "row_id"),
    "metadata": (),
}
# A column of one of these says itself that it holds the prediction: a column `label` beside it may be the truth.
_PREDICTED = frozenset(name for name in NAMES["label"] if "pred" in name)
_FIELD_OF = {name: field for field, others in NAMES.items() for name in (field, *others)}
# Names that a log may bring before the last of them are taken for metadata unseen.
MOST_NAMES = 10_000


def fields(
    names: Iterable[str],
    typed: Collection[str] = (),
    said: Mapping[str, str | None] | None = None,
    *,
    log: bool = False,
) -> dict[str, str | None]:
    """The field of each name; the name itself for one of the lake's `typed` columns; None for metadata.

    `said`: fields with the column that holds them, or None for a field that no column holds; it wins over all else.
    `log`: the names are those of a log: they may say the truth, and any other name of `label` beside `label` is
    refused. Of an event, `label` is what it says unless a name beside it says "predicted", and two names of another
    field than label and confidence are no fault: the first in the order of NAMES is it.
    Raises BadInput for columns of which more than one could be the field, naming them.
    """
    said = said or {}
    columns = {column: field for field, column in said.items() if column is not None}
    found: dict[str, str | None] = {}
    candidates: dict[str, list[str]] = {}
    for name in names:
        field = columns[name] if name in columns else _field(name, typed)
        if field in NAMES and name not in columns and (field in said or (field == "truth" and not log)):
            field = None
        found[name] = field
        if field is not None:
            candidates.setdefault(field, []).append(name)
    for field, several in candidates.items():
        if len(several) > 1:
            chosen = _one_of(field, several, log)
            found.update(dict.fromkeys(several))
            found[chosen] = field
    return found


def understood(name: str) -> bool:
    """Whether a name is a field's, in any of its forms."""
    return _plain(name) in _FIELD_OF


def _field(name: str, typed: Collection[str]) -> str | None:
    if name in NAMES or name in typed:
        return name
    plain = _plain(name)
    if plain in NAMES:
        return plain
    same = [column for column in typed if _plain(column) == plain]
    return same[0] if len(same) == 1 else _FIELD_OF.get(plain)


@functools.lru_cache(1_024)
def _short_plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _plain(name: str) -> str:
    # A name of an event may have megabytes, and the cache keeps its names.
    return _short_plain(name) if len(name) <= 64 else name


def _one_of(field: str, several: list[str], log: bool) -> str:
    own = [name for name in several if _plain(name) == field] or [name for name in several if name == field]
    others = [name for name in several if name not in own]
    unclear = field == "label" and (log or any(_plain(name) in _PREDICTED for name in others)) and others
    if len(own) == 1 and not unclear:
        return own[0]
    if not log and field not in ("label", "confidence"):
        return min(several, key=lambda name: (field, *NAMES.get(field, ())).index(_plain(name)))
    listed = " and ".join(f"{name!r:.80}" for name in several[:5])
    truth = f" --truth {own[0]}" if unclear and own else ""
    chosen = next((name for name in others if _plain(name) in _PREDICTED), (others or own)[0])
    way = f"say which: --map {field}={chosen:.80}{truth}" if log else f"send one of them, as {field!r}"
    raise BadInput(f"the columns {listed} could each be the {'predicted class' if field == 'label' else field}; {way}")


class LogColumns:
    """The columns of one log, of which more may come with later rows (JSON Lines)."""

    def __init__(self, typed: Collection[str], said: Mapping[str, str | None]) -> None:
        self._typed = frozenset(typed)
        self._said = dict(said)
        self.fields: dict[str, str | None] = {}

    def add(self, names: Iterable[str], *, later: bool = False) -> None:
        """Takes in names. Raises BadInput as `fields` does, and if a later name would change what an earlier one is."""
        new = [name for name in names if name not in self.fields]
        if not new or len(self.fields) + len(new) > MOST_NAMES:
            return
        found = fields([*self.fields, *new], self._typed, self._said, log=True)
        if later:
            changed = [name for name, field in self.fields.items() if found[name] != field]
            if changed:
                before = self.fields[changed[0]]
                raise BadInput(
                    f"the column {new[0]!r:.80} comes late, after {changed[0]!r:.80} was read as {before}; "
                    f"say which: --map {before}=COLUMN"
                )
        self.fields = found

    def of(self, row: Mapping[str, object]) -> dict[str, str | None]:
        """The field of each name of the row, and of others. Raises BadInput."""
        if not row.keys() <= self.fields.keys():
            self.add(row, later=True)
        return self.fields

    def check(self, name: str, prediction: Iterable[str]) -> None:
        """Raises BadInput unless the columns are there that were named, and one says a prediction, a truth, or nothing.

        `name`: of the file. `prediction`: the fields of which a prediction has one. A log whose columns are all
        understood, and none is of a prediction, is a list of images.
        """
        columns = ", ".join(f"{column:.80}" for column in [*self.fields][:50]) or "none"
        for field, column in self._said.items():
            if column is not None and column not in self.fields:
                near = difflib.get_close_matches(column, self.fields, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise BadInput(f"{name} has no column {column!r:.80} for {field}; its columns: {columns}{hint}")
        fields = {*self.fields.values()}
        if not fields & {"image", "image_id"} and self.fields:
            raise BadInput(f"{name}: no column is the image; its columns: {columns}. Say which: --map image=COLUMN")
        understood = fields & {*prediction, "truth"} or "label" in self._said
        if not understood and fields & {None, "confidence", "model", "model_version", "latency_ms"}:
            raise BadInput(
                f"{name}: no column is a prediction (label, scores, boxes or masks); its columns: {columns}. Say which "
                "is the predicted class: --map label=COLUMN, or the true class: --truth COLUMN, or that the rows have "
                "no prediction: --map label=none"
            )

    def lines(self) -> list[str]:
        """How the columns were read, if any has another name than its field's, and which became metadata."""
        fields = self.fields.items()
        renamed = [f"{column:.80} as {field}" for column, field in fields if field not in (None, _plain(column))]
        metadata = [f"{column:.80}" for column, field in fields if field is None]
        read = [f"columns read: {', '.join(renamed[:50])}"] if renamed else []
        return read + ([f"columns kept as metadata: {', '.join(metadata[:50])}"] if metadata else [])
