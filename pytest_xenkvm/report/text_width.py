"""How wide a text is in a badge, without a font at hand."""

from __future__ import annotations

from typing import Final

_UNITS: Final = 2048
"""Units an em."""
_FIRST: Final = " "
# fmt: off
_ADVANCES: Final = (
    651, 821, 942, 1716, 1303, 1946, 1597, 563, 799, 799, 1024, 1716, 651, 739, 651, 690,
    1303, 1303, 1303, 1303, 1303, 1303, 1303, 1303, 1303, 1303, 690, 690, 1716, 1716, 1716, 1087,
    2048, 1401, 1405, 1430, 1577, 1294, 1178, 1587, 1540, 604, 604, 1343, 1141, 1767, 1532, 1612,
    1235, 1612, 1423, 1300, 1251, 1499, 1401, 2025, 1403, 1251, 1403, 799, 690, 799, 1716, 1024,
    1024, 1255, 1300, 1126, 1300, 1260, 721, 1300, 1298, 569, 569, 1186, 569, 1995, 1298, 1253,
    1300, 1300, 842, 1067, 803, 1298, 1212, 1675, 1212, 1212, 1075, 1303, 690, 1303, 1716,
)
# fmt: on
"""Advance widths of DejaVu Sans 2.37 (its hmtx table) from the space to the tilde; Verdana's are alike."""
_OTHERS: Final = {"·": 651}
_UNKNOWN: Final = 2048
"""For what is in neither table: as wide as the widest letter, so that nothing is cut off."""


def text_width(text: str, size: float) -> float:
    """Width of `text` in DejaVu Sans of `size` pixels, in pixels."""
    return sum(_advance(character) for character in text) * size / _UNITS


def _advance(character: str) -> int:
    index = ord(character) - ord(_FIRST)
    return _ADVANCES[index] if 0 <= index < len(_ADVANCES) else _OTHERS.get(character, _UNKNOWN)
