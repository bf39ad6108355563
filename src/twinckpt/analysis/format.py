"""How numbers are written for readers: three significant digits, thousands apart, intervals."""

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
    """Three significant digits, plain notation, thousands separated by a comma."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{float(text):.6f}".rstrip("0").rstrip(".") if "e" in text else text


def amount(metric: dict[str, Any] | None) -> str:
    """A metric's value with its unit, in LaTeX; says so when it was not measured."""
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
    """A metric's 95 % interval in square brackets; empty when there is none (or no use)."""
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
    """Plain text as LaTeX that prints the same; what pdfLaTeX's fonts lack becomes `?`."""
    ascii_text = text.encode("ascii", errors="replace").decode("ascii")
    return "".join(ESCAPES.get(character, character) for character in ascii_text)
