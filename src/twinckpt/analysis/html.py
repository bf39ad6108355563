"""The report's LaTeX as one self-contained HTML page, for machines without a TeX engine.

It understands only the commands that `report/*.tex` and the generated tables use; any other
command raises `HtmlError` with its name instead of being dropped from the page.
"""

import base64
import re
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:54em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:1em auto;font-size:.85em}
th,td{padding:.25em .7em;text-align:left;vertical-align:top}
thead{border-top:2px solid;border-bottom:1px solid}tbody{border-bottom:2px solid}
figure{margin:1.5em 0}img{max-width:100%}figcaption{font-size:.9em}
pre{background:#f4f4f4;padding:.7em;overflow:auto}
section.slide{border:1px solid #bbb;padding:1em 2em;margin:1em 0}"""
SYMBOLS = {
    r"\%": "%", r"\&": "&amp;", r"\#": "#", r"\_": "_", r"\$": "$", r"\{": "{", r"\}": "}",
    r"\,": "\u202f", r"\ ": " ", r"\\": "<br>", "~": "\u00a0", "``": "\u201c", "''": "\u201d",
    "---": "\u2014", "--": "\u2013",
}  # fmt: skip
WORDS = {
    "times": "\u00d7", "textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~",
    "textless": "&lt;", "textgreater": "&gt;", "par": "\n\n",
}  # fmt: skip
IGNORED = frozenset(
    {"maketitle", "centering", "scriptsize", "small", "footnotesize", "tiny", "bigskip", "newpage",
     "clearpage", "raggedright"}
)  # fmt: skip
TAGS = {
    "section": "h2", "subsection": "h3", "paragraph": "h4", "textbf": "b", "emph": "em",
    "texttt": "code",
}  # fmt: skip
_SYMBOL = re.compile("|".join(re.escape(symbol) for symbol in sorted(SYMBOLS, reverse=True)))


class HtmlError(ValueError):
    """The source uses something this converter does not know; the message names it."""


def to_html(source: Path, macros: Mapping[str, str]) -> str:
    """Return the document of `source` as one page; its inputs and figures (PNG) lie beside it."""
    return _Converter(source.parent, macros).page(source.read_text(encoding="utf-8"))


class _Converter:
    def __init__(self, directory: Path, macros: Mapping[str, str]) -> None:
        self._directory = directory
        self._macros = macros
        self._citations: list[str] = []

    def page(self, source: str) -> str:
        head, _, rest = source.partition(r"\begin{document}")
        body = self._inline_inputs(rest.partition(r"\end{document}")[0])
        self._citations = re.findall(r"\\bibitem\{(\w+)\}", body)
        title = self._declared("title", head)
        front = f"<h1>{title}</h1>\n<p>{self._declared('author', head)}</p>\n" if title else ""
        plain_title = re.sub(r"<[^>]*>", "", title) or "Slides"
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{plain_title}</title><style>{STYLE}</style></head><body>\n"
            f"{front}{self._convert(body)}\n</body></html>\n"
        )

    def _declared(self, command: str, head: str) -> str:
        position = head.find(f"\\{command}{{")
        if position < 0:
            return ""
        return self._convert(_group(head, position + len(command) + 1)[0])

    def _inline_inputs(self, text: str) -> str:
        text = re.sub(r"(?<!\\)%.*", "", text)
        return re.sub(
            r"\\input\{([\w/]+)\}",
            lambda found: self._inline_inputs(
                (self._directory / f"{found[1]}.tex").read_text(encoding="utf-8")
            ),
            text,
        )

    def _convert(self, text: str) -> str:
        out: list[str] = []
        at = 0
        while at < len(text):
            if symbol := _SYMBOL.match(text, at):
                out.append(SYMBOLS[symbol.group()])
                at = symbol.end()
            elif text[at] == "\\":
                piece, at = self._command(text, at)
                out.append(piece)
            elif text[at] == "{":
                inner, at = _group(text, at)
                out.append(self._convert(inner))
            elif text[at] == "$":
                end = text.index("$", at + 1)
                out.append(self._convert(text[at + 1 : end]))
                at = end + 1
            elif blank := re.compile(r"\n\s*\n").match(text, at):
                out.append("\n<p>\n")
                at = blank.end()
            else:
                out.append(escape(text[at], quote=False))
                at += 1
        return "".join(out)

    def _command(self, text: str, at: int) -> tuple[str, int]:
        found = re.compile(r"\\([A-Za-z]+)\*?").match(text, at)
        if not found:
            raise HtmlError(f"cannot convert {text[at : at + 20]!r}")
        name, at = found[1], found.end()
        if name == "begin":
            return self._environment(text, at)
        if name in self._macros or name in WORDS or name in IGNORED:
            # A control word swallows the blanks after it, unless {} ends it.
            at = at + 2 if text.startswith("{}", at) else _skip_blanks(text, at)
            return (self._convert(self._macros[name]) if name in self._macros
                    else WORDS.get(name, "")), at  # fmt: skip
        if name == "item":
            return "\n<li>", at
        if name == "url":
            address, at = _group(text, at)
            return f'<a href="{escape(address)}">{escape(address)}</a>', at
        if name == "cite":
            key, at = _group(text, at)
            return f"[{self._citations.index(key) + 1}]", at
        if name == "bibitem":
            _, at = _group(text, at)
            return "\n<li>", at
        if name in ("measuredfigure", "slidefigure"):
            figure, at = _group(text, at)
            caption = ""
            if name == "measuredfigure":
                caption, at = _group(text, at)
            return self._figure(figure, caption), at
        if name in TAGS:
            inner, at = _group(text, at)
            return f"<{TAGS[name]}>{self._convert(inner)}</{TAGS[name]}>", at
        raise HtmlError(f"cannot convert the command \\{name}")

    def _environment(self, text: str, at: int) -> tuple[str, int]:
        name, at = _group(text, at)
        end = f"\\end{{{name}}}"
        stop = text.find(end, at)
        if stop < 0:
            raise HtmlError(f"\\begin{{{name}}} has no end")
        inner, after = text[at:stop], stop + len(end)
        simple: dict[str, Callable[[str], str]] = {
            "abstract": lambda body: f"<p><b>Abstract.</b> {self._convert(body)}</p>",
            "center": self._convert,
            "itemize": lambda body: f"<ul>{self._convert(body)}</ul>",
            "verbatim": lambda body: f"<pre>{escape(body.strip(chr(10)), quote=False)}</pre>",
            "tabular": self._table,
            "slide": self._slide,
            "thebibliography": self._bibliography,
        }
        if name not in simple:
            raise HtmlError(f"cannot convert the environment {name}")
        return simple[name](inner), after

    def _bibliography(self, body: str) -> str:
        _, at = _group(body, 0)  # the widest label
        return f"<h2>References</h2><ol>{self._convert(body[at:])}</ol>"

    def _slide(self, body: str) -> str:
        title, at = _group(body, 0)
        return (
            f'<section class="slide"><h2>{self._convert(title)}</h2>'
            f"{self._convert(body[at:])}</section>"
        )

    def _table(self, body: str) -> str:
        _, at = _group(body, 0)
        rows = re.sub(r"\\(top|mid|bottom)rule\s*", "", body[at:]).split(r"\\")
        lines = []
        for number, row in enumerate(row for row in rows if row.strip()):
            tag = "td" if number else "th"
            cells = re.split(r"(?<!\\)&", row)
            line = "".join(f"<{tag}>{self._convert(cell.strip())}</{tag}>" for cell in cells)
            lines.append(f"<tr>{line}</tr>")
        head, *rest = lines
        return f"<table><thead>{head}</thead><tbody>{chr(10).join(rest)}</tbody></table>"

    def _figure(self, name: str, caption: str) -> str:
        path = self._directory / "figures" / f"{name}.png"
        if path.exists():
            data = base64.b64encode(path.read_bytes()).decode()
            image = f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'
        else:
            image = "<p>Not measured here: no samples of this experiment.</p>"
        return f"<figure>{image}<figcaption>{self._convert(caption)}</figcaption></figure>"


def _group(text: str, at: int) -> tuple[str, int]:
    """Return the braced argument at `at` (blanks are skipped), and the position after it."""
    at = _skip_blanks(text, at)
    if at >= len(text) or text[at] != "{":
        raise HtmlError(f"expected a braced argument at {text[at : at + 20]!r}")
    depth, start = 0, at + 1
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
        if depth == 0:
            return text[start : at - 1], at
    raise HtmlError(f"a brace is not closed: {text[start : start + 20]!r}")


def _skip_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
