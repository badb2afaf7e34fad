"""Reads lists of images: CSV or Parquet tables of paths, labels, groups and splits from spreadsheets and tools."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pharmclf import storage
from pharmclf.core.errors import ConfigError, first_line
from pharmclf.core.hashing import sha256_bytes
from pharmclf.data.splits import TEST, TRAIN, VALIDATION

LIST_EXTENSIONS = (".csv", ".parquet")
"""File extensions of a list."""
_TAB = "\t"
_SEPARATORS = (",", ";", _TAB)
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_HEADERS = {
    "path": (
        "paths", "file", "filename", "file_name", "filepath", "file_path", "image", "images", "image_path",
        "image_file", "image_filename", "image_name", "imagepath", "img", "img_path", "uri", "url",
    ),
    "label": (
        "labels", "class", "classes", "class_name", "classname", "label_name", "category", "category_name", "product",
        "product_name", "target",
    ),
    "group": ("groups", "group_id"),
    "split": ("splits", "set", "subset", "partition", "dataset", "usage"),
}  # fmt: skip
"""Names of a column in other tools, in lower case with _ between words."""
_SPLIT_WORDS = {
    TRAIN: ("train", "training"),
    VALIDATION: ("validation", "val", "valid", "dev", "development"),
    TEST: ("test", "testing"),
}
_SPLIT_BY_WORD = {"": "", **{word: split for split, words in _SPLIT_WORDS.items() for word in words}}


@dataclass(frozen=True)
class ListTable:
    """The content of a list; its files are not checked."""

    table: pa.Table
    """All columns, with stripped names: text from a CSV file, the file's types from Parquet."""
    columns: dict[str, int]
    """Index of each of the columns path, label, group and split that the list has."""
    notes: list[str]
    """Messages on how it was read."""
    sha256: str
    """Of the file."""

    def cells(self, name: str) -> list[str]:
        """(rows,) stripped text of one of path, label, group and split; "" where the list has no value."""
        if name not in self.columns:
            return [""] * len(self.table)
        return _to_text(self.table.column(self.columns[name]))


def read_list(
    source: str, location: str, required: Sequence[str] = ("path",), optional: Sequence[str] = ()
) -> ListTable:
    """Read a list and find its columns by their names; empty rows are left out.

    Args:
        source: the flag and its value, for messages.
        location: of the file, with one of `LIST_EXTENSIONS`.
        required: columns that it must have: path, label, group, split.
        optional: columns that it may have.

    Raises:
        ConfigError: not a list, no rows, no such column, a row without a path, or two columns that fit.
    """
    content, notes = storage.read_bytes(location), list[str]()
    try:
        if location.lower().endswith(".csv"):
            table = _read_csv(content, notes)
        else:
            table = pq.read_table(io.BytesIO(content)).replace_schema_metadata(None)
            table = table.rename_columns(_find_known_columns(table.column_names))
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(f"{source}: not a list: {first_line(error)}") from error
    columns = _find_columns(source, table, [*required, *optional])
    if missing := [name for name in required if name not in columns]:
        names = ", ".join(table.column_names)
        raise ConfigError(
            f"{source}: no column {' and '.join(missing)}; found: {names}. Add the name to the first line of the list"
        )
    renamed = [(table.column_names[place], name) for name, place in columns.items()]
    others = [f"{column} as {name}" for column, name in renamed if column != name]
    if others:
        notes.append(f"columns of the list, read by their meaning: {', '.join(others)}")
    listed = ListTable(table, columns, notes, sha256_bytes(content))
    if not len(table):
        raise ConfigError(f"{source}: the list has no row. Expected one row per image")
    paths = listed.cells("path")
    if "" in paths:
        raise ConfigError(f"{source}: row {paths.index('') + 1} has no path. Fill it in, or remove the row")
    return listed


def _read_csv(content: bytes, notes: list[str]) -> pa.Table:
    text = _decode_text(content, notes).lstrip("\r\n\ufeff")
    lines = io.StringIO(text, newline="")
    separator = _detect_separator(lines.readline())
    if given := re.match(r'"?sep=(.)"?', text, re.IGNORECASE):  # a first line of Excel, which names the separator
        separator = given[1]
    else:
        lines.seek(0)
    if separator != ",":
        notes.append(f"the list's cells are separated by {'tabs' if separator == _TAB else repr(separator)}")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    filled = (row for row in reader if any(map(str.strip, row)))
    header, rows = next(filled, []), list[list[str]]()
    if not header:
        raise ValueError("it is empty")
    for row in filled:
        if any(map(str.strip, row[len(header) :])):
            raise ValueError(
                f"line {reader.line_num} has {len(row)} cells and the first line {len(header)}. Put a cell that holds "
                f"{separator!r} into quotation marks"
            )
        rows.append([*row[: len(header)], *[""] * (len(header) - len(row))])
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in header]
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], _find_known_columns(header))


def _find_known_columns(header: Sequence[str]) -> list[str]:
    return [name.strip() or f"column {place}" for place, name in enumerate(header, start=1)]


def _decode_text(content: bytes, notes: list[str]) -> str:
    """Decode a CSV file in its encoding."""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\x00" in content[:4]:  # UTF-16 without its mark
        encoding = "utf-16-le" if content[1:2] == b"\x00" else "utf-16-be"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8":
            raise
    notes.append("the list is not UTF-8 and is read as Windows-1252; please check names with accents")
    return content.decode("cp1252")


def _detect_separator(line: str) -> str:
    """The separator with most known column names in the first line, else with most columns, else a comma."""

    def fit(separator: str) -> tuple[int, int]:
        names = _find_known_columns(next(csv.reader([line], delimiter=separator, skipinitialspace=True), []))
        return sum(bool(_matching_columns(names, wanted)) for wanted in _HEADERS), len(names)

    return max(_SEPARATORS, key=fit)


def _matching_columns(names: Sequence[str], wanted: str) -> list[int]:
    """Indexes of the columns of exactly this name, else in another case, else of names in other tools."""
    plain = [re.sub(r"[\s_.-]+", "_", name.casefold()) for name in names]
    levels = (
        [place for place, name in enumerate(names) if name == wanted],
        [place for place, name in enumerate(plain) if name == wanted],
        [place for place, name in enumerate(plain) if name in _HEADERS[wanted]],
    )
    return next((places for places in levels if places), [])


def _find_columns(source: str, table: pa.Table, names: Sequence[str]) -> dict[str, int]:
    """Index of each of these columns that the list has; refuse several that fit."""
    columns = {}
    for wanted in names:
        places = [
            place
            for place in _matching_columns(table.column_names, wanted)
            if not pa.types.is_nested(kind := table.schema.field(place).type)
            and not (wanted == "path" and pa.types.is_binary(kind))  # the images themselves
        ]
        fits = [table.column_names[place] for place in places]
        if wanted == "split" and fits and fits[0].casefold() != "split":  # "set" may hold anything
            places = [place for place in places if any(map(parse_split, _to_text(table.column(place))))]
        if len(places) > 1:
            raise ConfigError(
                f"{source}: the columns {' and '.join(fits)} may each hold the {wanted} of an image. "
                f"Name the right one {wanted}, and the other in another way"
            )
        if places:
            columns[wanted] = places[0]
    return columns


def _to_text(column: pa.ChunkedArray) -> list[str]:
    """Cells as stripped text; whole numbers that are floats because of empty cells have no ".0"."""
    values = column.to_pylist()
    is_whole = all(value.is_integer() or value != value for value in values if isinstance(value, float))

    def text(value: object) -> str:
        if value is None or value != value:  # no value, or not a number
            return ""
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace").strip()
        return str(int(value) if is_whole and isinstance(value, float) else value).strip()

    return [text(value) for value in values]


def parse_split(cell: str) -> str | None:
    """The split of a cell; "": none; None: an unknown word."""
    return _SPLIT_BY_WORD.get(cell.casefold())
