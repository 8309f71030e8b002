"""XML as a tree of elements, read without a DTD and without entities: the file may be hostile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from lake.errors import BadInput

_DEPTH = 32


@dataclass
class XmlElement:
    """An XML element: its name, text and child elements."""

    name: str
    text: str = ""
    children: list[XmlElement] = field(default_factory=list)

    def child(self, name: str) -> XmlElement | None:
        return next((c for c in self.children if c.name == name), None)

    def has_below(self, name: str) -> bool:
        """Whether an element of this name is anywhere below."""
        return any(c.name == name or c.has_below(name) for c in self.children)


def parse(data: bytes) -> XmlElement:
    """The root element of an XML document. Raises BadInput for broken XML, a DTD or entities."""
    top = XmlElement("")
    stack = [top]

    def start(name: str, attributes: Any) -> None:
        if len(stack) > _DEPTH:
            raise BadInput(f"the XML is nested deeper than {_DEPTH} levels")
        node = XmlElement(name)
        stack[-1].children.append(node)
        stack.append(node)

    def characters(text: str) -> None:
        stack[-1].text += text

    def refuse(*_: Any) -> Any:
        raise BadInput("the XML has a document type declaration; remove it")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: stack.pop()
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise BadInput(f"broken XML: {error}") from error
    return top.children[0]
