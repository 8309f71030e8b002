"""Bounds the length and the nesting of SQL text before any parser sees it, in one pass over its characters.

DuckDB's parser takes memory and time with the square of the depth of open brackets, and more for some words. The text
of others is therefore parsed in a process that is killed beyond its limits; this is what is refused before that.
"""

from __future__ import annotations

import re

from lake.errors import BadInput

MOST_CHARACTERS = 1_000_000
MOST_FILTER_CHARACTERS = 20_000
MOST_DEPTH = 200

_CLOSES = {")": "(", "]": "[", "}": "{"}
# Brackets, and the starts of what may contain brackets that do not count, as DuckDB's tokenizer reads them. A quoted
# text is matched whole; without its end, only its first character is.
_TOKEN = re.compile(
    r"""
      (?<![\w$])[eE]'(?:[^'\\]|\\.|'')*+'  |  '(?:[^']|'')*+'  |  "(?:[^"]|"")*+"  |  `(?:[^`]|``)*+`
    | --[^\n\r]*+
    | /\*
    | (?<![\w$])\$(?:[^\W\d]\w*+)?\$
    | [()\[\]{}'"`]
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_BRACKET = re.compile(r"[(\[{]")


def check(text: str, what: str = "the query", most_characters: int = MOST_CHARACTERS) -> None:
    """Raises BadInput if the text is too long, or brackets in it are nested more than `MOST_DEPTH` deep."""
    if len(text) > most_characters:
        raise BadInput(f"{what} has {len(text):,} characters; the limit is {most_characters:,}")
    if sum(1 for _ in _BRACKET.finditer(text)) > MOST_DEPTH:
        _scan(text, what)


def check_expression(text: str, most_characters: int | None = None) -> None:
    """As `check`, for a filter: it must close every bracket, quotation and comment that it opens, and no other.

    So it is one expression wherever it is put between brackets, if it parses at all.
    """
    if most_characters is not None and len(text) > most_characters:
        raise BadInput(f"the filter has {len(text):,} characters; the limit is {most_characters:,}")
    problem = _scan(text, "the filter")
    if problem is not None:
        raise BadInput(f"the filter {text!r:.200} is not one expression: {problem}")


def _scan(text: str, what: str) -> str | None:
    """What in the text is not balanced, or None. Raises BadInput if it is nested too deeply."""
    opened: list[str] = []
    problem = None
    position = 0
    while token := _TOKEN.search(text, position):
        word, position = token[0], token.end()
        if word in "([{":
            opened.append(word)
            if len(opened) > MOST_DEPTH:
                raise BadInput(f"{what} is nested too deeply: more than {MOST_DEPTH} brackets are open at once")
        elif word in _CLOSES:
            if opened and opened[-1] == _CLOSES[word]:
                opened.pop()
            else:
                problem = problem or f"a bracket {word} closes none"
        elif word == "/*" or word[0] == "$":
            end = _end_of_comment(text, position) if word == "/*" else text.find(word, position)
            if end < 0:
                return problem or f"{word} has no end"
            position = end + (0 if word == "/*" else len(word))
        elif word in "'\"`":
            return problem or f"a {word} has no end"
    return problem or (f"a bracket {opened[-1]} is not closed" if opened else None)


def _end_of_comment(text: str, position: int) -> int:
    """The position behind the comment whose /* ends at `position`; comments contain comments. -1 without an end."""
    depth = 1
    while depth and (edge := _COMMENT_EDGE.search(text, position)):
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return -1 if depth else position
