"""`--ascii`: every drawing character becomes one of ASCII, at the last moment before the terminal. Letters stay."""

from __future__ import annotations

from functools import lru_cache

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

# One cell each, and told apart where their difference means something (the states' icons, the levels of a curve).
SIGNS = {
    "●": "*", "◌": "o", "○": "o", "✓": "+", "✗": "x", "▲": "!", "■": "#", "◆": "*", "★": "*", "☆": "*", "•": "o",
    "·": ".", "…": "~", "→": ">", "←": "<", "↑": "^", "↓": "v", "⏎": "<", "×": "x", "▸": ">", "▾": "v", "▴": "^",
    "▼": "v", "▶": ">", "◀": "<", "━": "=", "╸": "=", "╺": "=", "─": "-", "│": "|", "┃": "|", "║": "|", "═": "=",
    "▁": "_", "▂": ".", "▃": "-", "▄": "=", "▅": "+", "▆": "*", "▇": "%", "█": "#", "░": ".", "▒": ":", "▓": "#",
    "▔": "-", "▀": "-", "▌": "|", "▐": "|", "▎": "|", "▏": "|", "▊": "|", "▉": "#", "▍": "|", "▋": "|", "▕": "|",
    "🔎": "? ", "°": "'",
}  # fmt: skip
# Dots 1, 2, 4 and 5 of a braille cell are its upper half (Unicode 8.0, chapter 21.1: bit i is dot i + 1).
_UPPER, _LOWER = 0b0001_1011, 0b1110_0100
# Arrows, lines, blocks, shapes, dingbats and braille: the rest of them have no better stand-in than a plus.
_DRAWING = ((0x2190, 0x21FF), (0x2300, 0x23FF), (0x2500, 0x27BF), (0x2800, 0x28FF), (0x2900, 0x297F), (0x2B00, 0x2BFF))


@lru_cache(4096)
def plain(text: str) -> str:
    """`text` with ASCII for what only draws."""
    return text if text.isascii() else "".join(map(_sign, text))


def _sign(char: str) -> str:
    if char.isascii() or char in SIGNS:
        return SIGNS.get(char, char)
    code = ord(char)
    if 0x2800 <= code <= 0x28FF:
        upper, lower = code & _UPPER, code & _LOWER
        return ":" if upper and lower else "'" if upper else "." if lower else " "
    return "+" if any(low <= code <= high for low, high in _DRAWING) else char


class Ascii(LineFilter):
    """Textual's hook between what the widgets draw and the terminal."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments with plain text."""
        return [Segment(plain(text), style, control) for text, style, control in segments]
