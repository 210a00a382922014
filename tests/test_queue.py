"""tq.queue: entries as tables, and runners with real processes that are killed, doubled and paused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tq import cli, events, queue, queue_runner, runs

# Stands in for `tq`: `train HOW ... --run-dir P | --resume P`, and `queue work --runs R --device D`. HOW: ok ends at
# once, error fails, refuse never begins, wait ends when it is told to stop or resumed.
FAKE = """
import os, signal, sys, time
from pathlib import Path
from tq import queue, runs
argv = sys.argv[1:]
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
if argv[0] == "queue":
    at = {flag: argv[argv.index(flag) + 1] for flag in ("--runs", "--device")}
    command = [sys.executable, __file__]
    queue.work(at["--runs"], at["--device"], command=command, should_stop=lambda: bool(stop), poll_s=0.02)
    sys.exit()
how = argv[1]
if how == "refuse":
    sys.exit("error: no such scheme")
if how == "--resume":
    run, how = runs.reopen(Path(argv[2])), "ok"
else:
    path = Path(argv[argv.index("--run-dir") + 1])
    about = {"config": {"how": how}, "seed": 0, "versions": {}, "device": "cpu"}
    run = runs.create(path.parent, name=how, argv=argv, path=path, **about)
    run.log.emit("note", cwd=os.getcwd())
run.log.emit("start", epochs=1)
run.log.emit("phase", name="train")
while how == "wait" and not stop:
    time.sleep(0.01)
run.log.emit("end", status={"ok": "ok", "error": "error", "wait": "stopped"}[how])
run.close()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def tq(fake_tq: Callable[[str], list[str]]) -> list[str]:
    """The command that stands in for `tq`."""
    return fake_tq(FAKE)


def until(true: Callable[[], object], *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def working(root: Path) -> bool:
    return queue.runner_status(root, "cpu").working


def live_run(root: Path) -> Path | None:
    """The run that trains at this moment, if one does."""
    return next((p for p in runs.list_runs(root) if runs.status(p).word == "train"), None)


def add(root: Path, how: str, **options: object) -> queue.Entry:
    return queue.add(root, ["train", how], name=how, device="cpu", **options)  # type: ignore[arg-type]


def ended(root: Path) -> list[tuple[str, str]]:
    """Name and state of every run, in the order of their making."""
    paths = sorted(runs.list_runs(root), key=lambda p: runs.manifest(p)["created"])
    return [(runs.manifest(p)["name"], runs.status(p).state) for p in paths]


def names(root: Path) -> list[str]:
    return [e.name for e in queue.entries(root)]


# --- entries ---


def test_entries_wait_in_order_and_survive_the_process(root: Path) -> None:
    assert queue.entries(root) == []
    ask = f"from pathlib import Path; from tq import queue; queue.add(Path({str(root)!r}), ['train'], name='first')"
    subprocess.run([sys.executable, "-c", ask], check=True)
    second = queue.add(root, ["train", "--lr", "1"], name="second", device="cuda:1", cwd="/")
    assert sorted(names(root)) == ["first", "second"]
    found = queue.find(root, second.id)
    assert (found.argv, found.cwd, found.device, found.state, found.run) == (
        ("train", "--lr", "1"),
        "/",
        "cuda:1",
        "queued",
        None,
    )
    assert abs(found.added - time.time()) < 60
    assert runs.list_runs(root) == [], "the queue's directory is no run"


@pytest.mark.parametrize(
    ("who", "position", "order"),
    [("c", 0, "cabd"), ("a", 1, "bacd"), ("a", 99, "bcda"), ("d", 2, "abdc"), ("b", 1, "abcd"), ("d", -3, "dabc")],
)
def test_move(root: Path, who: str, position: int, order: str) -> None:
    ids = {name: add(root, name).id for name in "abcd"}
    queue.add(root, ["train"], name="z", device="cuda")
    assert queue.move(root, ids[who], position).name == who
    assert "".join(names(root)) == order + "z"


def test_cancel_takes_out_and_a_second_time_says_what_is_there(root: Path) -> None:
    one, other = add(root, "a"), add(root, "b")
    assert queue.cancel(root, one.id).id == one.id
    with pytest.raises(ValueError, match=f"not in the queue; there are: {other.id}"):
        queue.cancel(root, one.id)
    queue.cancel(root, other.id)
    with pytest.raises(ValueError, match="is empty"):
        queue.cancel(root, other.id)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "only a training can be queued"),
        (["bench", "x"], "only a training can be queued"),
        (["train", "--run-dir", "x"], "--run-dir does not go with the queue"),
        (["train", "--detach"], "--detach does not go with the queue"),
        (["train", "--resume"], "no runs in"),
        (["train", "--resume", "x"], "no runs in"),
    ],
)
def test_what_cannot_be_queued(root: Path, argv: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        queue.add(root, argv)
    assert queue.entries(root) == []


@pytest.mark.parametrize(("given", "name"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:3", "cuda:3")])
def test_device_name(given: str, name: str) -> None:
    assert queue.device_name(given) == name
    assert queue.device_name("auto") in ("cpu", "cuda:0")


def test_an_unknown_device(root: Path) -> None:
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        queue.add(root, ["train"], device="gpu")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        "null",
        '{"version": 1}',
        "\xff",
        json.dumps(
            {"name": "a", "argv": "rm", "cwd": "/", "added": 1, "order": 1, "run": None, "started": None, "error": ""}
        ),
        json.dumps(
            {"name": "a", "argv": [], "cwd": "/", "added": 1, "order": 1, "run": "../x", "started": 1, "error": ""}
        ),
    ],
)
def test_a_damaged_entry_is_named_skipped_and_can_be_taken_out(root: Path, tq: list[str], content: str) -> None:
    good = add(root, "ok")
    (root / "queue" / "cpu" / "bad.json").write_bytes(content.encode("latin-1"))
    bad = queue.find(root, "bad")
    assert bad.state == "failed"
    assert "is damaged; take it out" in bad.error
    queue.work(root, "cpu", command=tq, poll_s=0.02)
    assert [e.id for e in queue.entries(root)] == ["bad"]
    assert [runs.manifest(p)["name"] for p in runs.list_runs(root)] == [good.name]
    queue.cancel(root, "bad")
    assert queue.entries(root) == []


def test_two_entries_of_one_second_never_share_a_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = iter(["aaaa", "aaaa", "bbbb", "aaaa", "bbbb", "cccc"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(digits))
    monkeypatch.setattr("time.strftime", lambda *_: "20270115-080000")
    for device in ("cpu", "cpu", "cuda:0"):
        queue.add(root, ["train", "x"], device=device)
    assert [e.id[-4:] for e in queue.entries(root)] == ["aaaa", "bbbb", "cccc"]


def test_many_writers_lose_nothing(root: Path) -> None:
    script = f"""
from pathlib import Path
from tq import queue
for _ in range(10):
    queue.add(Path({str(root)!r}), ["train"], name="x", device="cpu")
"""
    children = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    threads = [threading.Thread(target=lambda: [add(root, "y") for _ in range(10)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait(60) for child in children] == [0, 0]
    found = queue.entries(root)
    assert len(found) == 40
    assert sorted(e.order for e in found) == list(range(1, 41)), "no two got the same place"


# --- runners ---


def test_a_failing_run_and_a_refused_one_do_not_stop_the_queue(root: Path, tq: list[str], tmp_path: Path) -> None:
    for how in ("ok", "error", "refuse", "ok"):
        add(root, how, cwd=str(tmp_path))
    queue.add(root, ["train", "ok"], name="nowhere", device="cpu", cwd=str(tmp_path / "gone"))
    queue.work(root, "cpu", command=tq, poll_s=0.02)
    assert ended(root) == [("ok", "done"), ("error", "failed"), ("ok", "done")]
    left = queue.entries(root)
    assert [(e.name, e.state, e.run) for e in left] == [("refuse", "failed", None), ("nowhere", "failed", None)]
    assert left[0].error == "the trainer did not start: error: no such scheme"
    assert "does not exist any more" in left[1].error
    notes = [e for e in events.tail(runs.list_runs(root)[0] / "events.jsonl")[0] if e["k"] == "note"]
    assert notes[0]["cwd"] == str(tmp_path), "relative paths mean what they meant where it was added"
    assert not working(root)


def test_add_with_start_works_the_queue_off_and_the_runner_ends(root: Path, tq: list[str]) -> None:
    add(root, "wait", start=True, command=tq)
    until(lambda: live_run(root))
    status = queue.runner_status(root, "cpu")
    assert (status.working, status.waiting, status.current and status.current.state) == (True, 0, "live")
    add(root, "ok", start=True, command=tq)
    assert queue.runner_status(root, "cpu").pid == status.pid, "one runner is enough"
    assert [e.state for e in queue.entries(root)] == ["live", "queued"]
    first = queue.entries(root)[0]
    with pytest.raises(ValueError, match=f"is at work as run {first.run}; stop it with: tq runs stop"):
        queue.cancel(root, first.id)
    with pytest.raises(ValueError, match="does not wait any more"):
        queue.move(root, first.id, 1)
    time.sleep(0.1)
    assert len(runs.list_runs(root)) == 1, "one at a time"
    runs.stop(root / (first.run or ""))
    until(lambda: not working(root))
    assert queue.entries(root) == []
    assert ended(root) == [("wait", "stopped"), ("ok", "done")]


def test_two_devices_work_at_once(root: Path, tq: list[str]) -> None:
    for device in ("cpu", "cuda:1"):
        queue.add(root, ["train", "wait"], name="wait", device=device, start=True, command=tq)
    until(lambda: [e.state for e in queue.entries(root)] == ["live", "live"])
    assert queue.runner_status(root, "cpu").pid != queue.runner_status(root, "cuda:1").pid


def test_only_one_of_many_runners_gets_the_queue(root: Path, tq: list[str]) -> None:
    add(root, "wait")
    argv = [*tq, "queue", "work", "--runs", str(root), "--device", "cpu"]
    children = [subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    until(lambda: sum(child.poll() is not None for child in children) == 2)
    until(lambda: live_run(root))
    (winner,) = (child for child in children if child.poll() is None)
    assert queue.runner_status(root, "cpu").pid == winner.pid
    for child in children:
        if child is not winner:
            assert "a runner works on cpu already" in child.communicate()[1]
    with pytest.raises(ValueError, match=rf"a runner works on cpu already \(pid {winner.pid}\)"):
        queue.work(root, "cpu", command=tq)
    runs.stop(live_run(root) or root)
    assert winner.wait(20) == 0
    winner.communicate()
    assert len(runs.list_runs(root)) == 1


def test_a_killed_runner_leaves_its_run_and_the_next_one_waits_for_it(root: Path, tq: list[str]) -> None:
    add(root, "wait", start=True, command=tq)
    until(lambda: live_run(root))
    path = live_run(root)
    assert path is not None
    os.kill(queue.runner_status(root, "cpu").pid or 0, signal.SIGKILL)
    until(lambda: not working(root))
    assert runs.status(path).state == "live"
    add(root, "ok", start=True, command=tq)
    until(lambda: working(root))
    time.sleep(0.2)
    assert [e.state for e in queue.entries(root)] == ["live", "queued"]
    runs.stop(path)
    until(lambda: not working(root))
    assert ended(root) == [("wait", "stopped"), ("ok", "done")]


def test_a_run_cut_off_together_with_its_runner_is_resumed(root: Path, tq: list[str]) -> None:
    add(root, "wait", start=True, command=tq)
    until(lambda: live_run(root))
    path = live_run(root)
    assert path is not None
    os.kill(queue.runner_status(root, "cpu").pid or 0, signal.SIGKILL)
    until(lambda: not working(root))
    runs.kill(path)
    until(lambda: runs.status(path).state == "crashed")
    assert [e.state for e in queue.entries(root)] == ["crashed"]
    queue.start_runner(root, "cpu", command=tq)
    until(lambda: not working(root))
    assert queue.entries(root) == []
    assert runs.list_runs(root) == [path]
    assert runs.status(path).state == "done"


def test_a_run_that_is_killed_under_a_living_runner_is_left_and_the_queue_goes_on(root: Path, tq: list[str]) -> None:
    add(root, "wait", start=True, command=tq)
    add(root, "ok")
    until(lambda: live_run(root))
    killed = live_run(root)
    assert killed is not None
    runs.kill(killed)
    until(lambda: not working(root))
    assert ended(root) == [("wait", "crashed"), ("ok", "done")]
    assert queue.entries(root) == []


def test_a_paused_runner_stops_its_run_which_is_the_first_to_go_on(root: Path, tq: list[str]) -> None:
    with pytest.raises(ValueError, match="no runner of cpu is at work"):
        queue.stop_runner(root, "cpu")
    add(root, "wait", start=True, command=tq)
    add(root, "ok")
    until(lambda: live_run(root))
    path = live_run(root)
    assert path is not None
    queue.stop_runner(root, "cpu")
    until(lambda: not working(root))
    assert runs.status(path).state == "stopped"
    assert [(e.name, e.state, e.run) for e in queue.entries(root)] == [
        ("wait", "queued", path.name),
        ("ok", "queued", None),
    ]
    queue.start_runner(root, "cpu", command=tq)
    until(lambda: not working(root))
    assert ended(root) == [("wait", "done"), ("ok", "done")]
    kinds = [e["k"] for e in events.tail(path / "events.jsonl")[0]]
    assert kinds.count("start") == 2, "the same run went on"


def test_stopped_runs_are_resumed_through_the_queue(root: Path, tq: list[str]) -> None:
    path = runs.launch(["train", "error"], root=root, name="error", command=tq)
    until(lambda: runs.status(path).state == "failed")
    add(root, "ok")
    entry = queue.add(root, ["train", "--resume", path.name[-4:]], name="again", device="cpu")
    assert (entry.run, entry.state) == (path.name, "queued")
    with pytest.raises(ValueError, match=f"in the queue already, as {entry.id}"):
        queue.add(root, ["train", "--resume", str(path)], device="cpu")
    queue.move(root, path.name, 0)
    queue.work(root, "cpu", command=tq, poll_s=0.02)
    assert len(runs.list_runs(root)) == 2
    assert runs.status(path).state == "done"
    with pytest.raises(ValueError, match="cannot be resumed: it is done"):
        queue.add(root, ["train", "--resume", str(path)], device="cpu")


def test_an_entry_that_is_cancelled_just_before_its_start_leaves_no_directory(root: Path, tq: list[str]) -> None:
    entry = add(root, "ok")
    queue.cancel(root, entry.id)
    assert queue_runner._begin(root, entry, tq) is None
    assert runs.list_runs(root) == []
    assert [p.name for p in root.iterdir()] == ["queue"]


def test_a_runner_that_cannot_start_says_why(root: Path) -> None:
    add(root, "ok")
    with pytest.raises(ValueError, match="runner did not start: no python here"):
        queue.start_runner(root, "cpu", command=[sys.executable, "-c", "import sys; sys.exit('no python here')"])


def test_an_empty_queue_needs_no_runner(root: Path, tq: list[str]) -> None:
    queue.work(root, "cpu", command=tq)
    queue.start_runner(root, "cpu", command=tq)
    until(lambda: not working(root))
    assert runs.list_runs(root) == []


# --- the command ---


def test_the_command_adds_lists_moves_and_cancels(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []
    monkeypatch.setattr(queue, "start_runner", lambda root, device, **_: started.append(device))

    def tq(*argv: str) -> str:
        assert cli.main([*argv, "--runs", str(root)]) == 0
        return capsys.readouterr().out

    added = tq(
        "train", "--queue", "--scheme", "w4a4", "--no-augment", "--milestones", ".5", "--device", "cpu", "--json"
    )
    entry = queue.find(root, json.loads(added)["entry"])
    settings = ["--scheme", "w4a4", "--milestones", "0.5", "--no-augment", "--device", "cpu"]
    assert entry.argv == ("train", "--show", "progress", *settings)
    assert (entry.name, entry.cwd, started) == ("resnet20-w4a4", os.getcwd(), ["cpu"])
    assert "resnet20-w8a8 waits for cpu" in tq("train", "--queue", "--scheme", "w8a8", "--device", "cpu")
    with runs.create(root, name="old", argv=[], config={"device": "cpu"}, seed=0, versions={}, device="cpu") as stopped:
        stopped.log.emit("end", status="stopped")
    assert f"run {stopped.id} waits for cpu" in tq("queue", "add", stopped.id)
    assert "is number 1" in tq("queue", "move", stopped.id, "1")
    listed = json.loads(tq("queue", "--json"))
    assert [e["name"] for e in listed["entries"]] == ["old", "resnet20-w4a4", "resnet20-w8a8"]
    assert listed["runners"] == [{"device": "cpu", "working": False, "pid": None, "waiting": 3}]
    assert "nobody works on cpu" in tq("queue")
    tq("queue", "cancel", entry.id, stopped.id)
    assert names(root) == ["resnet20-w8a8"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["queue", "cancel"], "needs an entry"),
        (["queue", "add"], "needs a run"),
        (["queue", "add", "last"], "no runs in"),
        (["queue", "cancel", "x"], "the queue of .* is empty"),
        (["queue", "move", "x"], r"needs an entry and its new place"),
        (["queue", "move", "x", "0"], r"needs an entry and its new place"),
        (["queue", "work", "x"], "takes no entry, got 'x'"),
        (["queue", "stop", "--device", "cpu"], "no runner of cpu is at work"),
        (["queue", "start", "--device", "tpu"], "unknown device 'tpu'"),
        (["train", "--queue", "--detach"], "--queue starts the run later; drop --detach"),
        (["train", "--queue", "--scheme", "w3a3"], "weight bits must be one of"),
        (["train", "--queue", "--resume", "last"], "no runs in"),
    ],
)
def test_bad_input_is_one_sentence(root: Path, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*argv, "--runs", str(root)]) == 2
    error = capsys.readouterr().err
    assert re.search(said, error)
    assert error.count("\n") == 1
    assert queue.entries(root) == []


def test_resume_takes_no_other_settings_but_none_are_needed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(queue, "start_runner", lambda *_, **__: None)
    with runs.create(root, name="old", argv=[], config={}, seed=0, versions={}, device="cpu") as stopped:
        stopped.log.emit("end", status="stopped")
    assert cli.main(["train", "--resume", "last", "--queue", "--lr", "1", "--runs", str(root)]) == 2
    assert "drop --lr" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "last", "--queue", "--runs", str(root)]) == 0
    assert [e.run for e in queue.entries(root)] == [stopped.id]


def test_the_module_loads_nothing_heavy() -> None:
    ask = "import sys, tq.queue; print([m for m in ('torch', 'textual', 'numpy', 'rich', 'tyro') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
