"""Makes text from outside harmless for the place where it is shown.

Names of files, classes and datasets, settings of a log and answers of a server may contain what a
terminal, a page or a spreadsheet interprets. There is one function for each of these places.
"""

import re

# Characters of a value quoted in a message, and of a message.
LONGEST_VALUE = 200
LONGEST_MESSAGE = 2000
# As `repr` quotes: apostrophes within a word are none of its quotes.
_OPENING = re.compile(r"(?<!\w)b?(['\"])")
_CLOSING = {quote: re.compile(rf"(?:[^\\{quote}]|\\.)*+{quote}") for quote in "'\""}
_MARKDOWN = re.compile(r"[\\`*\[\]|~$<>&]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
# What begins a block of Markdown where a line begins.
_MARKDOWN_BLOCK = re.compile(r"(#{1,6}|[+-]|\d{1,9}[.)])(?=\s|$)|[=-]+\s*$")
# What a spreadsheet takes for a formula, but for plain numbers.
_FORMULA = re.compile(r"[=+\-@\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def visible(text: str) -> str:
    r"""The text with every character that is invisible, or changes what is shown, escaped.

    Control characters, line breaks, invisible characters and those that change the direction of
    writing become Python's escapes, e.g. `\x1b` and `\u202e`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or _is_space(c) else _escape(c) for c in text)


def one_line(text: str) -> str:
    """A message as one visible line, in which quoted values of more than 200 characters are cut."""
    return cut(_with_short_values(visible(" ".join(text.split()))), LONGEST_MESSAGE)


def markdown(text: str) -> str:
    """The text as Markdown that shows it: no HTML, no markup, no end of a table's cell."""
    text = visible(text).strip()
    block = _MARKDOWN_BLOCK.match(text)
    shown = _MARKDOWN.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), text)
    if block is None:
        return shown
    place = len(block[0]) - 1 if block[0][0].isdigit() else 0
    return f"{shown[:place]}\\{shown[place:]}"


def csv_cell(text: str) -> str:
    """The text as a cell that a spreadsheet does not run: formulas begin with an apostrophe."""
    text = visible(text)
    formula = _FORMULA.match(text.lstrip()) and not _NUMBER.fullmatch(text)
    return f"'{text}" if formula else text


def _with_short_values(line: str) -> str:
    """The line with its long quoted values cut, in time that grows with its length alone."""
    kept: list[str] = []
    place = 0
    while (opening := _OPENING.search(line, place)) is not None:
        closing = _CLOSING[opening[1]].match(line, opening.end())
        if closing is None:
            break
        value = line[opening.end() : closing.end() - 1]
        if not line[closing.end() : closing.end() + 1].isalnum():
            value = cut(value, LONGEST_VALUE)
        kept += [line[place : opening.end()], value, opening[1]]
        place = closing.end()
    return "".join([*kept, line[place:]])


def cut(value: str, length: int = LONGEST_VALUE) -> str:
    """The text, or its beginning where it is longer."""
    return value if len(value) <= length else f"{value[: length - 1]}…"


def _is_space(character: str) -> bool:
    """Whether it is a space of some width; line breaks and tabs are not printable otherwise."""
    return character in "\xa0\u2002\u2003\u2007\u2009\u200a\u202f\u3000"


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
