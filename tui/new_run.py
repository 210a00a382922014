"""The forms for train, quantize and bench, made from their configs' fields: what the command takes can be typed."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.events import DescendantFocus, Resize
from textual.suggester import SuggestFromList
from textual.widget import Widget
from textual.widgets import Button, Input, Static

from tq import queue, runs
from tui import form, words
from tui.choice import Choice
from tui.fold import Fold
from tui.footer import Footer
from tui.form import FORMS, FormField, Verdict
from tui.job_screen import start_job
from tui.keys import Key
from tui.screen import WIDE, TqScreen, logo, spread
from tui.state import Snapshot

MODEL_FILES = (".safetensors", ".pt", ".pth", ".th")


def _wrong(screen: NewRunScreen) -> str:
    return "" if screen.verdict.config else "the form is not right yet: see the sentence in red"


def _not_queued(screen: NewRunScreen) -> str:
    return _wrong(screen) or ("" if screen.command == "train" else "only trainings wait in the queue; ^s starts it now")


class Rows(VerticalScroll, can_focus=False, inherit_bindings=False):
    """Scrolls to the focused row and leaves the arrow keys to the form."""


class NewRunScreen(TqScreen):
    """A row a field, the rarer ones folded away; below them the help of the focused field and the command."""

    CSS_PATH = "new_run.tcss"
    KEYS: ClassVar[tuple[Key, ...]] = (
        Key("escape", "back", "Back", "leave without starting"),
        Key("ctrl+s", "start", "Start", "start it now", "Form", acts=True, why_not=_wrong, priority=True),
        Key(
            "ctrl+l", "enqueue", "Queue", "start it when its device is free", "Form", acts=True, why_not=_not_queued,
            priority=True,
        ),
        Key("ctrl+y", "copy", "Copy command", "copy the command line", "Form", why_not=_wrong, priority=True),
        Key("down", "app.focus_next", "Next", "next field", "Form"),
        Key("up", "app.focus_previous", "", "previous field", "Form"),
        Key("left,right,space", "app.focus_next", "", "another word; fold, unfold", "Form",
            shown="← →", why_not=lambda _: "this turns choices and headings"),
    )  # fmt: skip

    def __init__(self, values: Mapping[str, Any], *, kind: str = "train") -> None:
        super().__init__()
        self.command = kind
        self.verdict = Verdict()
        self._typed = {name: {f.name: f.default for f in one.fields} for name, one in FORMS.items()}
        self._typed[kind] |= {n: form.text(v) for n, v in values.items() if n in self._typed[kind]}
        self._last = ""
        self._busy = False

    def compose(self) -> ComposeResult:
        """The choice of the command, its rows, and what is to be said of them."""
        yield Static(id="bar")
        with Rows(id="form"):
            yield from self._rows()
        with Vertical(id="verdict"):
            yield Static(id="help", markup=False)
            yield Static(id="error")
            yield Static(id="command", markup=False)
            with Horizontal(id="buttons"):
                yield Button("Start", id="start", variant="primary", compact=True)
                yield Button("Queue", id="enqueue", compact=True)
                yield Button("Copy command", id="copy", compact=True)
        yield Footer()

    def on_mount(self) -> None:
        """Judge what the form opens with. What was given by the run that it was opened on needs no second look."""
        self._check()
        self._focus_first()
        self.show(self.tq.snapshot)

    def show(self, snapshot: Snapshot) -> None:
        """The form shows no run; only its bar counts them."""
        live = len(snapshot.live)
        right = Content.styled(f"{live} running " if live else "", "$muted")
        self.query_one("#bar", Static).update(spread(logo(f"new {self.command}"), right, self.size.width))
        self.query_one(Footer).check()

    def on_resize(self, event: Resize) -> None:
        """The bar's right end moves."""
        self.redraw()

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        """Explain the field that has the focus."""
        named = [w.id for w in event.widget.ancestors_with_self if w.id]
        field = next((f for f in FORMS[self.command].fields if f"field-{f.name}" in named), None)
        if field is not None:
            words = f"{field.label}: {field.help}"
        elif isinstance(event.widget, Fold):
            words = f"{event.widget.section}: enter shows these settings, or folds them away"
        else:
            words = _HELP.get(event.widget.id or "", "")
        self.query_one("#help", Static).update(words)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Judge as it is typed."""
        self._take(event.input, event.value)

    async def on_choice_changed(self, event: Choice.Changed) -> None:
        """Judge the choice; another command is another form."""
        if event.choice.id == "kind":
            self.command = event.value
            rows = self.query_one("#form", Rows)
            await rows.remove_children("#form > .row, Fold")
            await rows.mount_all(list(self._field_rows()))
            self._last = ""
            self._check()
            self.show(self.tq.snapshot)
        else:
            self._take(event.choice, {"on": "True", "off": "False"}.get(event.value, event.value))

    async def on_fold_turned(self, event: Fold.Turned) -> None:
        """Show or take away the section's rows."""
        names = [f.name for f in self._folded(event.fold.section)]
        if event.fold.open:
            rows = [self._row(f) for f in self._folded(event.fold.section)]
            await self.query_one("#form", Rows).mount_all(rows, after=event.fold)
            self._show_errors()
        else:
            await self.query(", ".join(f"#row-{name}" for name in names)).remove()

    def on_input_submitted(self) -> None:
        """Enter goes on to the next field."""
        self.focus_next()

    async def on_button_pressed(self, event: Button.Pressed) -> None:
        """As its key, so that what forbids the key forbids the button."""
        await self.press(next(key for key in self.KEYS if key.action == event.button.id))

    def action_back(self) -> None:
        """Leave without starting."""
        self.dismiss()

    def action_copy(self) -> None:
        """The command line, to the terminal's clipboard."""
        self.app.copy_to_clipboard(shlex.join(["tq", *self._words()]))
        self.notify("the command line was copied", markup=False)

    def action_start(self) -> None:
        """Launch the run, or the job."""
        if self._busy:
            return
        if self.command != "train":
            self.dismiss()
            typed = self._typed[self.command]["file"].strip()
            start_job(self.tq, self._words(), title=Path(typed).name, run=self._run_of(typed))
            return
        self._busy = True
        self.query_one("#error", Static).update(Content.styled("starting the trainer ...", "$primary"))
        self.run_worker(
            partial(self._launch, list(self.verdict.words), self._run_name()), thread=True, exit_on_error=False
        )

    def action_enqueue(self) -> None:
        """Put the run into the queue of its device; the form stays, for the next one."""
        self.run_worker(
            partial(self._enqueue, list(self.verdict.words), self._run_name(), self.verdict.config.device),
            thread=True,
            exit_on_error=False,
        )

    # --- in worker threads ---

    def _launch(self, argv: list[str], name: str) -> None:
        try:
            path = runs.launch(argv, root=self.tq.root, name=name)
        except (ValueError, OSError) as error:
            self.app.call_from_thread(self._failed, str(error))
        else:
            self.app.call_from_thread(self._launched, path)

    def _enqueue(self, argv: list[str], name: str, device: str) -> None:
        try:
            entry = queue.add(self.tq.root, argv, name=name, device=device, start=True)
            waiting = sum(e.waiting for e in queue.entries(self.tq.root, entry.device))
        except (ValueError, OSError) as error:
            self.app.call_from_thread(self._failed, str(error))
        else:
            said = f"{name} waits for {entry.device}, {waiting} in all; change something and queue another"
            self.app.call_from_thread(self.notify, said, markup=False)

    def _failed(self, sentence: str) -> None:
        self._busy = False
        if self.is_attached:
            self.query_one("#error", Static).update(_bad(sentence))

    def _launched(self, path: Path) -> None:
        self.dismiss()
        self.tq.poller.poke()
        self.tq.open_run(path)

    # --- rows ---

    def _rows(self) -> Iterator[Widget]:
        kind = Choice(tuple(FORMS), self.command, id="kind")
        yield Horizontal(Static("command", classes="label"), kind, classes="line")
        yield from self._field_rows()

    def _field_rows(self) -> Iterator[Widget]:
        """What most runs set, then a heading for each section that has more; one with a change in it is unfolded."""
        fields = FORMS[self.command].fields
        yield from (self._row(f) for f in fields if f.common)
        for section in dict.fromkeys(f.section for f in fields if not f.common):
            inside = self._folded(section)
            fold = Fold(section, [f.label for f in inside])
            fold.changed = sum(map(self._changed, inside))
            fold.set_reactive(Fold.open, fold.changed > 0)
            yield fold
            if fold.open:
                yield from map(self._row, inside)

    def _folded(self, section: str) -> list[FormField]:
        return [f for f in FORMS[self.command].fields if f.section == section and not f.common]

    def _changed(self, field: FormField) -> bool:
        return self._typed[self.command][field.name].strip() != field.default

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
        typed, id = self._typed[self.command][field.name], f"field-{field.name}"
        if field.is_bool:
            return Choice(("on", "off"), "on" if typed == "True" else "off", id=id)
        if field.choices:
            return Choice(field.choices, typed, id=id)
        known = self._files() if field.name == "file" else field.suggestions
        suggester = SuggestFromList(known, case_sensitive=False) if known else None
        placeholder = "needed" if field.name == "file" else "" if field.default else "default"
        return Input(typed, placeholder=placeholder, suggester=suggester, id=id, compact=True)

    def _focus_first(self) -> None:
        """The first field; where the file is known already, the button that starts it."""
        typed = self._typed[self.command]
        first = "start" if typed.get("file") else f"field-{FORMS[self.command].fields[0].name}"
        self.query_one(f"#{first}").focus()

    # --- judging ---

    def _take(self, widget: Widget, value: str) -> None:
        name = (widget.id or "").removeprefix("field-")
        # Every input reports its first value too.
        if self._typed[self.command].get(name) != value:
            self._typed[self.command][name] = value
            self._last = name
            self._check()

    def _check(self) -> None:
        """Parse everything; a sentence below each field that is wrong, or the command that the form stands for."""
        self.verdict = FORMS[self.command].judge(self._typed[self.command], last=self._last, exists=self._exists)
        self._show_errors()
        ready = not self.verdict.errors
        error, command = self.query_one("#error", Static), self.query_one("#command", Static)
        command.update("$ " + shlex.join(["tq", *self._words()]) if ready else "")
        if not ready:
            general = self.verdict.errors.get("")
            count = len(self.verdict.errors)
            error.update(_bad(general or f"{count} field{'s are' if count > 1 else ' is'} not right yet"))
        elif self.command == "bench" and (live := len(self.tq.snapshot.live)):
            words = f"▲ {live} run{'s are' if live > 1 else ' is'} at work: the times will suffer from it"
            error.update(Content.styled(words, "$warning"))
        else:
            error.update(Content.styled("✓ ready to start", "$success"))
        self.query_one(Footer).check()
        for button in self.query(Button):
            button.disabled = not ready or (button.id == "enqueue" and self.command != "train")

    def _show_errors(self) -> None:
        """Below the rows that are in sight; the others' headings count what was changed."""
        for field in FORMS[self.command].fields:
            for row in self.query(f"#row-{field.name}"):
                wrong = self.verdict.errors.get(field.name, "")
                row.set_class(bool(wrong), "bad").set_class(self._changed(field), "changed")
                row.query_one(".wrong", Static).update(words.clean(wrong))
        for fold in self.query(Fold):
            fold.changed = sum(map(self._changed, self._folded(fold.section)))

    def _words(self) -> list[str]:
        """The command line without tq; runs are looked up under the dashboard's own root."""
        elsewhere = self.command != "train" and self.tq.shown_root != "runs"
        return [*self.verdict.words, *(["--runs", self.tq.shown_root] if elsewhere else [])]

    def _run_name(self) -> str:
        config = self.verdict.config
        return f"{config.model.rpartition(':')[2]}-{config.scheme}"

    def _files(self) -> tuple[str, ...]:
        return ("last", *(run.path.name for run in self.tq.snapshot.runs if run.status.state == "done"))

    def _exists(self, text: str) -> str:
        """What is wrong with a file or run; "" if it can be used. Looks at the snapshot and at one file at most."""
        if not text:
            return "a file is needed: a model file, or a run such as last"
        path = Path(text)
        if path.is_file():
            return ""
        if path.suffix in MODEL_FILES:
            return f"{text} does not exist"
        found = [run for run in self.tq.snapshot.runs if text in (run.path.name, "last") or path.absolute() == run.path]
        found = found or [run for run in self.tq.snapshot.runs if text in run.path.name]
        if text == "last":
            found = [run for run in found if run.status.state == "done"][:1]
        if len(found) != 1:
            some = f"{text} fits {len(found)} runs; give more of the id"
            return some if found else f"there is no file or run {text!r}"
        run = found[0]
        return "" if run.status.state == "done" else f"{run.path.name} has no file yet ({run.word})"

    def _run_of(self, text: str) -> str:
        """The id of the run whose file it is; "" for any other file."""
        path = Path(text).absolute()
        names = [run.path.name for run in self.tq.snapshot.runs if run.path in (path, path.parent)]
        return names[0] if names else ""


_HELP = {
    "kind": "command: what to do; each has a form of its own",
    "start": "starts it in the background",
    "enqueue": "puts it into the queue of its device, which works on one run at a time",
    "copy": "copies the command line, for a shell or a script",
}


def _bad(sentence: str) -> Content:
    return Content.styled(f"✗ {words.clean(sentence)}", "$error")
