"""The filter above the list: judged as it is typed, with the sentence of what is wrong below it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input, Static

from tq import query
from tq.query import Query
from tui import words

EXAMPLES = "w<=4  acc>90  size<100kb  age<2h  name:resnet  state:live  -state:done"


class FilterBar(Vertical):
    """Hidden while it is neither typed into nor filters. Posts `Changed` and, at enter, `Left`."""

    class Changed(Message):
        """The runs that are wanted have changed."""

        def __init__(self, wanted: Query) -> None:
            super().__init__()
            self.wanted = wanted

    class Left(Message):
        """The filter stays; the list gets the focus."""

    def compose(self) -> ComposeResult:
        """A label, the input, and a line for what is wrong."""
        with Horizontal():
            yield Static("filter", classes="label")
            yield Input(placeholder=EXAMPLES, id="filter", compact=True)
        yield Static(id="filter-note", markup=False)

    def on_mount(self) -> None:
        """Nothing is filtered yet."""
        self.display = self.query_one("#filter-note").display = False

    def type(self) -> None:
        """Show it and give it the focus."""
        self.display = True
        self.query_one(Input).focus()

    def drop(self) -> None:
        """Filter nothing, and hide."""
        self.query_one(Input).value = ""
        self._judge("")
        self.display = False

    def on_input_changed(self, event: Input.Changed) -> None:
        """A term that is not right yet leaves the list as it is and says why."""
        event.stop()
        self._judge(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter keeps the filter, unless it is wrong."""
        event.stop()
        if not self.query_one("#filter-note").display:
            self.display = bool(event.value.strip())
            self.post_message(self.Left())

    def _judge(self, text: str) -> None:
        note = self.query_one("#filter-note", Static)
        try:
            wanted = query.parse(text)
        except ValueError as error:
            note.update(words.clean(str(error)))
            note.display = True
        else:
            note.display = False
            self.post_message(self.Changed(wanted))
