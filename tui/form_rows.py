"""The rows of a form: what most runs set, then a heading for each section of rarer fields, which it can unfold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import Input, Static

from tui import words
from tui.choice import Choice
from tui.fold import Fold
from tui.form import FORMS, FormField
from tui.screen import WIDE


class FormRows(VerticalScroll, can_focus=False, inherit_bindings=False):
    """Scrolls to the focused row and leaves the arrow keys to the form. `typed` is the form's, and changes with it."""

    def __init__(self, kind: str, typed: Mapping[str, str], files: Sequence[str], *, id: str) -> None:
        """files: suggestions for the fields that name one."""
        super().__init__(id=id)
        self._kind, self._typed, self._files = kind, typed, files

    def compose(self) -> ComposeResult:
        """The choice of the command, which stays, and its fields."""
        kind = Choice(tuple(FORMS), self._kind, id="kind")
        yield Horizontal(Static("command", classes="label"), kind, classes="line")
        yield from self._rows()

    async def change(self, kind: str, typed: Mapping[str, str], files: Sequence[str]) -> None:
        """The fields of another command."""
        self._kind, self._typed, self._files = kind, typed, files
        await self.remove_children("FormRows > .row, FormRows > Fold")
        await self.mount_all(list(self._rows()))

    async def turn(self, fold: Fold, errors: Mapping[str, str]) -> None:
        """Show or take away the rows of a section."""
        if not fold.is_attached:
            return
        # Keys that come fast are told of when the fold has turned again: what counts is how it is now.
        shown = [self.query(f"#row-{field.name}") for field in self._folded(fold.section)]
        if fold.open:
            missing = [field for field, row in zip(self._folded(fold.section), shown, strict=True) if not row]
            await self.mount_all([self._row(field) for field in missing], after=fold)
            self.judge(errors)
        else:
            for row in shown:
                await row.remove()

    def judge(self, errors: Mapping[str, str]) -> None:
        """A sentence below each row that is in sight and wrong; the headings count what was changed."""
        for field in FORMS[self._kind].fields:
            for row in self.query(f"#row-{field.name}"):
                wrong = errors.get(field.name, "")
                row.set_class(bool(wrong), "bad").set_class(self._changed(field), "changed")
                row.query_one(".wrong", Static).update(words.clean(wrong))
        for fold in self.query(Fold):
            fold.changed = sum(map(self._changed, self._folded(fold.section)))

    def _rows(self) -> Iterator[Widget]:
        """A section with a change in it is unfolded."""
        fields = FORMS[self._kind].fields
        yield from (self._row(field) for field in fields if field.common)
        for section in dict.fromkeys(field.section for field in fields if not field.common):
            inside = self._folded(section)
            fold = Fold(section, [field.label for field in inside])
            fold.changed = sum(map(self._changed, inside))
            fold.set_reactive(Fold.open, fold.changed > 0)
            yield fold
            if fold.open:
                yield from map(self._row, inside)

    def _folded(self, section: str) -> list[FormField]:
        return [field for field in FORMS[self._kind].fields if field.section == section and not field.common]

    def _changed(self, field: FormField) -> bool:
        return self._typed[field.name].strip() != field.default

    def _row(self, field: FormField) -> Vertical:
        parts = [Static(field.label, classes="label", markup=False), self._control(field)]
        if self.app.size.width >= WIDE:
            parts.append(Static(field.help, classes="hint", markup=False))
        row = Vertical(
            Horizontal(*parts, classes="line"),
            Static(classes="wrong", markup=False),
            classes="row",
            id=f"row-{field.name}",
        )
        return row.set_class(self._changed(field), "changed")

    def _control(self, field: FormField) -> Widget:
        typed, id = self._typed[field.name], f"field-{field.name}"
        if field.is_bool:
            return Choice(("on", "off"), "on" if typed == "True" else "off", id=id)
        if field.choices:
            return Choice(field.choices, typed, id=id)
        known = self._files if field.name == "file" else field.suggestions
        suggester = SuggestFromList(known, case_sensitive=False) if known else None
        placeholder = "needed" if field.name == "file" else "" if field.default else "default"
        return Input(typed, placeholder=placeholder, suggester=suggester, id=id, compact=True)
