"""The form for a new run, made from TrainConfig's fields: what can be typed is what the command line takes."""

from __future__ import annotations

import shlex
from functools import partial
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.events import DescendantFocus
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import Button, Footer, Input, Static

from tq import runs
from tq.config import TrainConfig
from tui import form, state
from tui.choice import Choice
from tui.form import FormField
from tui.screen import WIDE, TqScreen, logo, spread
from tui.state import Snapshot

# What most runs set; the rest follows in the dataclass's order.
FIRST = ("model", "dataset", "data", "scheme", "optimizer", "lr", "epochs", "batch_size", "device")


class Rows(VerticalScroll, can_focus=False, inherit_bindings=False):
    """Scrolls to the focused row and leaves the arrow keys to the form."""


class NewRunScreen(TqScreen):
    """One row a field; below them the help of the focused field, the verdict, and the command."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back", key_display="esc"),
        Binding("ctrl+s", "start", "Start", priority=True),
        Binding("down", "app.focus_next", "Next", key_display="↓"),
        Binding("up", "app.focus_previous", "Previous", key_display="↑"),
    ]

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self._fields = form.fields(TrainConfig)
        self._typed = {f.name: form.text(values[f.name]) if f.name in values else f.default for f in self._fields}
        self._config: TrainConfig | None = None
        self._busy = False

    def compose(self) -> ComposeResult:
        """The rows, what most runs set first."""
        yield Static(id="bar")
        with Rows(id="form"):
            yield from (self._row(field) for field in self._fields if field.name in FIRST)
        with Vertical(id="verdict"):
            yield Static(id="help", markup=False)
            yield Static(id="error")
            yield Static(id="command", markup=False)
            yield Button("Start", id="start", variant="primary", compact=True)
        yield Footer()

    def on_mount(self) -> None:
        """Judge what the form opens with; the rarer rows come after the first frame."""
        self._check()
        rest = [field for field in self._fields if field.name not in FIRST]
        self.call_after_refresh(self._complete, rest)
        self.show(self.tq.snapshot)

    def show(self, snapshot: Snapshot) -> None:
        """The form shows no run; only its bar counts them."""
        live = len(snapshot.live)
        right = Content.styled(f"{live} running " if live else "", "$muted")
        self.query_one("#bar", Static).update(spread(logo("new run"), right, self.size.width))

    def on_resize(self) -> None:
        """The bar's right end moves."""
        self.redraw()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """Explain the field that has the focus."""
        named = [w.id for w in event.widget.ancestors_with_self if w.id]
        field = next((f for f in self._fields if f"field-{f.name}" in named), None)
        self.query_one("#help", Static).update(
            f"{field.label}: {field.help}" if field else "starts the run in the background"
        )

    def on_input_changed(self, event: Input.Changed) -> None:
        """Judge as it is typed."""
        self._take(event.input, event.value)

    def on_choice_changed(self, event: Choice.Changed) -> None:
        """Judge the choice."""
        value = {"on": "True", "off": "False"}.get(event.value, event.value)
        self._take(event.choice, value)

    def on_input_submitted(self) -> None:
        """Enter goes on to the next field."""
        self.focus_next()

    def on_button_pressed(self) -> None:
        """Start."""
        self.action_start()

    def action_back(self) -> None:
        """Leave without starting."""
        self.dismiss()

    def action_start(self) -> None:
        """Launch the run, if the form is right."""
        if self._config is None:
            self.notify("the form is not right yet: see the sentence below it", severity="warning")
        elif not self._busy:
            self._busy = True
            self.query_one("#error", Static).update(Content.styled("starting the trainer ...", "$primary"))
            name = f"{self._config.model.rpartition(':')[2]}-{self._config.scheme}"
            self.run_worker(
                partial(self._launch, ["train", *form.argv(self._config)], name), thread=True, exit_on_error=False
            )

    def _launch(self, argv: list[str], name: str) -> None:
        """In a worker's thread."""
        try:
            path = runs.launch(argv, root=self.tq.root, name=name)
        except (ValueError, OSError) as error:
            self.app.call_from_thread(self._failed, str(error))
        else:
            self.app.call_from_thread(self._launched, path)

    def _failed(self, sentence: str) -> None:
        self._busy = False
        self.query_one("#error", Static).update(_bad(sentence))

    def _launched(self, path: Any) -> None:
        self.dismiss()
        self.tq.poller.poke()
        self.tq.open_run(path)

    def _complete(self, rest: list[FormField]) -> None:
        # The screen may have been left again by now.
        if self.is_attached:
            self.query_one("#form").mount_all([self._row(field) for field in rest])

    def _row(self, field: FormField) -> Horizontal:
        parts = [Static(field.label, classes="label", markup=False), self._control(field)]
        if self.app.size.width >= WIDE:
            parts.append(Static(field.help, classes="hint", markup=False))
        return Horizontal(*parts, classes="row")

    def _control(self, field: FormField) -> Widget:
        typed, id = self._typed[field.name], f"field-{field.name}"
        if field.is_bool:
            return Choice(("on", "off"), "on" if typed == "True" else "off", id=id)
        if field.choices:
            return Choice(field.choices, typed, id=id)
        suggester = SuggestFromList(field.suggestions, case_sensitive=False) if field.suggestions else None
        return Input(
            typed, placeholder="default" if not field.default else "", suggester=suggester, id=id, compact=True
        )

    def _take(self, widget: Widget, value: str) -> None:
        name = (widget.id or "").removeprefix("field-")
        # Every input reports its first value too.
        if self._typed.get(name) != value:
            self._typed[name] = value
            self._check()

    def _check(self) -> None:
        """Parse everything; show the sentence of what is wrong, or the command that the form stands for."""
        error, command = self.query_one("#error", Static), self.query_one("#command", Static)
        try:
            self._config = form.build(TrainConfig, self._typed)
        except ValueError as problem:
            self._config = None
            error.update(_bad(str(problem)))
            command.update("")
        else:
            error.update(Content.styled("✓ ready to start", "$success"))
            command.update("$ " + shlex.join(["tq", "train", *form.argv(self._config)]))
        self.query_one("#start", Button).disabled = self._config is None


def _bad(sentence: str) -> Content:
    return Content.styled(f"✗ {state.clean(sentence)}", "$error")
