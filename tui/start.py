"""What `tq tui` opens: the dashboard, one frame of it, or a replay."""

from __future__ import annotations

from pathlib import Path

from tui.app import TqApp, go_on


def main(
    root: Path,
    run: Path | None = None,
    *,
    once: bool = False,
    demo: bool = False,
    readonly: bool = False,
    ascii: bool = False,
) -> None:
    """Open the dashboard on the list of runs in `root`, or on one run; `once` prints its first frame instead.

    demo: on a replay of recorded runs, in a directory that is gone afterwards.
    """
    if demo:
        _demo(once=once, ascii=ascii)
        return
    reason = "the dashboard was opened with --readonly: nothing can be started or stopped" if readonly else ""
    app = TqApp(root, run, readonly=reason, note="READ-ONLY" if readonly else "", ascii=ascii)
    _show(app, once=once)
    if not once and (live := app.snapshot.live):
        print(f"{go_on(len(live))}: {', '.join(view.path.name for view in live)}")


def _demo(*, once: bool, ascii: bool) -> None:
    from tempfile import TemporaryDirectory

    from tui.demo import READ_ONLY, Replay

    with TemporaryDirectory(prefix="tq-demo-") as root:
        replay = Replay(Path(root))
        app = TqApp(Path(root), readonly=READ_ONLY, note="REPLAY", ascii=ascii, beat=replay.advance)
        app.shown_root = "a replay of recorded runs"
        _show(app, once=once)
        replay.close()


def _show(app: TqApp, *, once: bool) -> None:
    if once:
        from tui.frame import print_once

        print_once(app)
    else:
        app.run()
