"""The forms for train, quantize and bench, made from their configs' fields: what the command takes can be typed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import DescendantFocus, Resize
from textual.widgets import Button, Input, Static

from tq import queue, runs
from tui import form, targets, words
from tui.choice import Choice
from tui.fold import Fold
from tui.footer import Footer
from tui.form import FORMS, Verdict
from tui.form_rows import FormRows
from tui.job_screen import start_job
from tui.keys import Key
from tui.screen import TqScreen, logo, spread
from tui.state import Snapshot

if TYPE_CHECKING:
    from tui.app import TqApp


def _wrong(screen: NewRunScreen) -> str:
    return "" if screen.verdict.config else "the form is not right yet: see the sentence in red"


def _not_queued(screen: NewRunScreen) -> str:
    return _wrong(screen) or ("" if screen.command == "train" else "only trainings wait in the queue; ^s starts it now")


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
        yield FormRows(self.command, self._typed[self.command], targets.known(self.tq.snapshot), id="form")
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
        """Explain the field that has the focus, not the event's: those of two fields may overtake each other."""
        widget = self.focused or event.widget
        named = [w.id for w in widget.ancestors_with_self if w.id]
        field = next((f for f in FORMS[self.command].fields if f"field-{f.name}" in named), None)
        if field is not None:
            text = f"{field.label}: {field.help}"
        elif isinstance(widget, Fold):
            text = f"{widget.section}: enter shows these settings, or folds them away"
        else:
            text = _HELP.get(widget.id or "", "")
        self.query_one("#help", Static).update(text)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Judge as it is typed."""
        self._take(event.input, event.value)

    async def on_choice_changed(self, event: Choice.Changed) -> None:
        """Judge the choice; another command is another form."""
        if event.choice.id == "kind":
            self.command = event.value
            await self.query_one(FormRows).change(
                self.command, self._typed[self.command], targets.known(self.tq.snapshot)
            )
            self._last = ""
            self._check()
            self.show(self.tq.snapshot)
        else:
            self._take(event.choice, {"on": "True", "off": "False"}.get(event.value, event.value))

    async def on_fold_turned(self, event: Fold.Turned) -> None:
        """Show or take away the section's rows."""
        await self.query_one(FormRows).turn(event.fold, self.verdict.errors)

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
            start_job(self.tq, self._words(), title=Path(typed).name, run=targets.run_of(typed, self.tq.snapshot))
            return
        self._busy = True
        self.query_one("#error", Static).update(Content.styled("starting the trainer ...", "$primary"))
        work = partial(self._launch, self.tq, list(self.verdict.words), self._run_name())
        self.tq.run_worker(work, thread=True, exit_on_error=False)

    def action_enqueue(self) -> None:
        """Put the run into the queue of its device; the form stays, for the next one."""
        work = partial(self._enqueue, self.tq, list(self.verdict.words), self._run_name(), self.verdict.config.device)
        self.tq.run_worker(work, thread=True, exit_on_error=False)

    # --- in worker threads of the app, which this screen, once left, knows no more ---

    def _launch(self, app: TqApp, argv: list[str], name: str) -> None:
        try:
            path = runs.launch(argv, root=app.root, name=name)
        except (ValueError, OSError) as error:
            app.call_from_thread(self._failed, str(error))
        else:
            app.call_from_thread(self._launched, path)

    def _enqueue(self, app: TqApp, argv: list[str], name: str, device: str) -> None:
        try:
            entry = queue.add(app.root, argv, name=name, device=device, start=True)
            waiting = sum(e.waiting for e in queue.entries(app.root, entry.device))
        except (ValueError, OSError) as error:
            app.call_from_thread(self._failed, str(error))
        else:
            said = f"{name} waits for {entry.device}, {waiting} in all; change something and queue another"
            app.call_from_thread(app.notify, said, markup=False)

    def _failed(self, sentence: str) -> None:
        self._busy = False
        if self.is_active:
            self.query_one("#error", Static).update(_bad(sentence))
        else:
            self.tq.notify(sentence, severity="error", markup=False)

    def _launched(self, path: Path) -> None:
        self.tq.poller.poke()
        if self.is_active:
            self.dismiss()
            self.tq.open_run(path)
        else:
            self.tq.notify(f"{path.name} has started", markup=False)

    def _focus_first(self) -> None:
        """The first field; where the file is known already, the button that starts it."""
        typed = self._typed[self.command]
        first = "start" if typed.get("file") else f"field-{FORMS[self.command].fields[0].name}"
        self.query_one(f"#{first}").focus()

    # --- judging ---

    def _take(self, widget: Input | Choice, value: str) -> None:
        name = (widget.id or "").removeprefix("field-")
        # Every input reports its first value too.
        if self._typed[self.command].get(name) != value:
            self._typed[self.command][name] = value
            self._last = name
            self._check()

    def _check(self) -> None:
        """Parse everything; a sentence below each field that is wrong, or the command that the form stands for."""
        self.verdict = FORMS[self.command].judge(self._typed[self.command], last=self._last, exists=self._exists)
        self.query_one(FormRows).judge(self.verdict.errors)
        ready = not self.verdict.errors
        error, command = self.query_one("#error", Static), self.query_one("#command", Static)
        command.update("$ " + shlex.join(["tq", *self._words()]) if ready else "")
        if not ready:
            general = self.verdict.errors.get("")
            count = len(self.verdict.errors)
            error.update(_bad(general or f"{count} field{'s are' if count > 1 else ' is'} not right yet"))
        elif self.command == "bench" and (live := len(self.tq.snapshot.live)):
            said = f"▲ {live} run{'s are' if live > 1 else ' is'} at work: the times will suffer from it"
            error.update(Content.styled(said, "$warning"))
        else:
            error.update(Content.styled("✓ ready to start", "$success"))
        self.query_one(Footer).check()
        for button in self.query(Button):
            button.disabled = not ready or (button.id == "enqueue" and self.command != "train")

    def _words(self) -> list[str]:
        """The command line without tq; runs are looked up under the dashboard's own root."""
        elsewhere = self.command != "train" and self.tq.shown_root != "runs"
        return [*self.verdict.words, *(["--runs", self.tq.shown_root] if elsewhere else [])]

    def _run_name(self) -> str:
        config = self.verdict.config
        return f"{config.model.rpartition(':')[2]}-{config.scheme}"

    def _exists(self, text: str) -> str:
        return targets.why_not(text, self.tq.snapshot)


_HELP = {
    "kind": "command: what to do; each has a form of its own",
    "start": "starts it in the background",
    "enqueue": "puts it into the queue of its device, which works on one run at a time",
    "copy": "copies the command line, for a shell or a script",
}


def _bad(sentence: str) -> Content:
    return Content.styled(f"✗ {words.clean(sentence)}", "$error")
