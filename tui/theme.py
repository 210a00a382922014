"""The dashboard's own theme; Textual's are there beside it."""

from __future__ import annotations

from textual.theme import Theme

THEME = Theme(
    name="tq",
    primary="#6cb6ff",
    secondary="#9aa5ce",
    accent="#e0af68",
    success="#57c38a",
    warning="#e0af68",
    error="#f7768e",
    foreground="#c9d1d9",
    background="#0f1318",
    surface="#151a21",
    panel="#1c232c",
    dark=True,
    variables={"footer-key-foreground": "#6cb6ff", "border": "#6cb6ff", "border-blurred": "#2d3743"},
)
# Beyond Textual's variables: text of second rank ($text-muted needs a background, which bare text has not).
VARIABLES = {"muted": "#7f8b99"}
