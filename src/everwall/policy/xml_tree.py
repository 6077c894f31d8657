"""XML of doubtful origin, read into elements that know their line.

Entities, document types and external references are refused before they are expanded (defusedxml), nesting and
length are bounded. What is wrong is said as ``ConfigError`` with file and line.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax import SAXException, SAXParseException
from xml.sax.handler import ContentHandler

from defusedxml.common import DefusedXmlException, DTDForbidden, EntitiesForbidden
from defusedxml.sax import make_parser

from everwall.config import ConfigError, read_text

XML_DEPTH_MAX = 64


@dataclass(slots=True)
class Element:
    """One element; ``text`` is what stands in it outside of its children, trimmed."""

    tag: str
    name: str
    """The attribute ``name``, which entries are told apart by; empty where there is none."""
    line: int
    children: list[Element] = field(default_factory=list)
    text: str = ""

    def child(self, *path: str) -> Element | None:
        """The first element at a path of tags."""
        found: Element | None = self
        for tag in path:
            found = next((child for child in found.children if child.tag == tag), None) if found else None
        return found

    def all(self, *path: str) -> Iterator[Element]:
        """Every element at a path of tags."""
        if not path:
            yield self
            return
        for child in self.children:
            if child.tag == path[0]:
                yield from child.all(*path[1:])

    def entries(self, *path: str) -> Iterator[Element]:
        """Every ``entry`` of the elements at a path of tags."""
        return self.all(*path, "entry")

    def members(self, *path: str) -> list[Element]:
        """Every ``member`` of the elements at a path of tags."""
        return list(self.all(*path, "member"))

    def value(self, *path: str) -> str:
        """The text at a path of tags, or nothing."""
        found = self.child(*path)
        return found.text if found is not None else ""

    def says(self, tag: str, text: str) -> bool:
        """Whether a child of that tag says this, and no other one something else."""
        return {child.text for child in self.children if child.tag == tag} == {text}


class _Builder(ContentHandler):
    """Builds the tree with a stack of its own: nesting cannot exhaust Python's."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file
        self.root: Element | None = None
        self._stack: list[tuple[Element, list[str]]] = []
        self._locator: Any = None

    def setDocumentLocator(self, locator: Any) -> None:
        self._locator = locator

    def startElement(self, name: str, attrs: Any) -> None:
        element = Element(name, attrs.get("name", ""), self._locator.getLineNumber())
        if len(self._stack) == XML_DEPTH_MAX:
            raise ConfigError(
                self.file, f"at most {XML_DEPTH_MAX} levels of nesting", line=element.line, key=name
            )
        if self._stack:
            self._stack[-1][0].children.append(element)
        else:
            self.root = element
        self._stack.append((element, []))

    def characters(self, content: str) -> None:
        self._stack[-1][1].append(content)

    def endElement(self, name: str) -> None:
        element, pieces = self._stack.pop()
        element.text = "".join(pieces).strip()


def read_xml(path: str | Path, text: str | None = None) -> Element:
    """The root of a document; ``text`` replaces reading the file. Raises ``ConfigError``."""
    if text is None:
        text = read_text(Path(path))
    if text.startswith("<?xml"):
        # The text is decoded already; what its first line says of an encoding would be believed.
        end = text.find("?>")
        if 0 <= end < 200:
            text = "\n" * text.count("\n", 0, end) + text[end + 2 :]
    builder = _Builder(str(path))
    parser = make_parser()
    parser.forbid_dtd = True
    parser.setContentHandler(builder)
    try:
        parser.parse(io.StringIO(text))
    except DTDForbidden as error:
        raise _refused(path, text, "<!DOCTYPE", "no document type", error) from None
    except EntitiesForbidden as error:
        raise _refused(path, text, "<!ENTITY", "no entities", error) from None
    except DefusedXmlException as error:
        raise ConfigError(path, f"no references to other files ({error})") from None
    except SAXParseException as error:
        column = error.getColumnNumber()
        raise ConfigError(
            path,
            f"XML ({error.getMessage()})",
            line=error.getLineNumber(),
            column=column + 1 if column is not None else None,
        ) from None
    except SAXException as error:
        raise ConfigError(path, f"XML ({error})") from None
    assert builder.root is not None, "the parser ends with an error where there is no element"
    return builder.root


def _refused(path: str | Path, text: str, mark: str, expected: str, error: Exception) -> ConfigError:
    at = text.find(mark)
    return ConfigError(path, expected, line=text.count("\n", 0, at) + 1 if at >= 0 else None, value=mark[2:])
