"""Numbers as text for readers: three significant digits, thousands separated, intervals."""

from typing import Any

SYMBOLS = {
    "x": r"$\times$",
    "percent": r"\,\%",
    "ms": r"\,ms",
    "it/s": r"\,it/s",
    "bool": "",
    "count": "",
    "ratio": "",
    "per_s": " a second",
    "": "",
}
NOT_MEASURED = "not measured"


def number(value: float) -> str:
    """Return a number with three significant digits, in plain notation, as in 1,234 or 0.0123."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{float(text):.6f}".rstrip("0").rstrip(".") if "e" in text else text


def amount(metric: dict[str, Any] | None) -> str:
    """Return a metric's value with its unit, in LaTeX, or "not measured"."""
    if metric is None:
        return NOT_MEASURED
    return with_unit(metric["value"], metric["unit"])


def with_unit(value: float, unit: str) -> str:
    """A value with its unit, in LaTeX. Bytes are shown in binary units."""
    if unit == "bool":
        return "yes" if value == 1.0 else "no"
    if unit == "bytes":
        for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if value >= size:
                return rf"{number(value / size)}\,{name}"
        return rf"{number(value)}\,B"
    return number(value) + SYMBOLS.get(unit, rf"\,{escape(unit.replace('_', ' '))}")


def interval(metric: dict[str, Any] | None) -> str:
    """Return a metric's 95 % interval in square brackets; empty if it has none, or needs none."""
    if metric is None or metric["low"] is None or metric["unit"] in ("bool", "bytes"):
        return ""
    return f"[{number(metric['low'])}, {number(metric['high'])}]"


ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escape(text: str) -> str:
    """Return LaTeX that prints the same as plain text; non-ASCII characters become `?`."""
    ascii_text = text.encode("ascii", errors="replace").decode("ascii")
    return "".join(ESCAPES.get(character, character) for character in ascii_text)
