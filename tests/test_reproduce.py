"""Recipes, and tables made of them: what is started, what is found again, what goes on, what the figures are."""

from __future__ import annotations

import json
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tq import cli, queue, recipe, report, runs
from tq.config import TrainConfig, from_dict, to_argv, to_dict
from tq.reproduce import Reproduction, Standing

# Stands in for `tq`, in a tenth of a second. The accuracy of a run is 90 + seed + lr, one less at w1a2; a run of
# lr 7 fails; while the file `hold` is beside the script a run waits, and SIGTERM stops it.
FAKE = """
import signal, sys, time
from dataclasses import fields
from pathlib import Path
from tq import queue, runs
from tq.config import TrainConfig, to_dict
argv = sys.argv[1:]
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
here = [sys.executable, __file__]
if argv[0] == "queue":
    at = {flag: argv[argv.index(flag) + 1] for flag in ("--runs", "--device")}
    queue.work(at["--runs"], at["--device"], command=here, should_stop=lambda: bool(stop), poll_s=0.02)
    sys.exit()
if "--resume" in argv:
    run = runs.reopen(Path(argv[argv.index("--resume") + 1]))
else:
    argv.remove("--no-compile")
    given = dict(zip(argv[1::2], argv[2::2]))  # these recipes have neither lists nor more than one switch
    path, kinds = Path(given.pop("--run-dir")), {f.name: f.type for f in fields(TrainConfig)}
    del given["--show"]
    numbers = {"int": int, "float": float, "float | None": float}
    settings = {(name := k[2:].replace("-", "_")): numbers.get(kinds[name], str)(v) for k, v in given.items()}
    config = TrainConfig(compile=False, **settings)
    about = {"seed": config.seed, "versions": {"torch": "9"}, "device": config.device}
    run = runs.create(path.parent, name="x", argv=argv, config=to_dict(config), path=path, **about)
config = run.manifest["config"]
run.log.emit("phase", name="data")
run.log.emit("start", epochs=2, device="a machine")
run.log.emit("phase", name="train")
while not stop and Path(__file__).with_name("hold").exists():
    time.sleep(0.01)
if stop:
    run.log.emit("end", status="stopped")
elif config["lr"] == 7:
    run.log.emit("end", status="error", error="too fast")
else:
    last = 90 + config["seed"] + config["lr"] - (config["scheme"] == "w1a2")
    run.path.joinpath("model.safetensors").write_text("x")
    start = 95.0 if config["init"] else None
    best = {"best_accuracy": last + 0.5, "best_epoch": 1 + config["seed"]}
    summary = {"trained_accuracy": last, **best, "bytes": 10, "float_bytes": 40, "float_accuracy": start}
    run.log.emit("end", status="ok", summary=summary)
run.close()
"""
RECIPE: dict[str, Any] = {
    "title": "a table",
    "datasets": ["digits", "imagefolder"],
    "reference": "float",
    "settings": {"model": "lenet", "compile": False, "batch_size": 32},
    "quick": {"seeds": [0, 1], "settings": {"epochs": 2}, "epoch_minutes": 0.5, "timed_on": "a test"},
    "full": {"settings": {"epochs": 9, "lr": [0.5, 0.25]}},
    "rows": [
        {"label": "float", "settings": {"scheme": "float"}, "quick": {"lr": 0.5}, "full": {"lr": 0.1}},
        {"label": "w1a2", "from": "float", "settings": {"scheme": "w1a2"}, "quick": {"lr": 0.25}, "published": 88.5},
        {"label": "alone", "settings": {"scheme": "w4a4"}, "quick": {"lr": 1}, "against": "w1a2", "note": "so so"},
    ],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def fake(fake_tq: Callable[[str], list[str]]) -> list[str]:
    return fake_tq(FAKE)


def table(*, quick: bool = True, **changes: Any) -> recipe.Table:
    return recipe.parse({**RECIPE, **changes}, name="t", quick=quick)


def finish(work: Reproduction, *, seconds: float = 30.0) -> list[Standing]:
    deadline = time.monotonic() + seconds
    while not work.over(standings := work.step()):
        assert time.monotonic() < deadline, [(s.job.label, s.state) for s in standings]
        time.sleep(0.02)
    return standings


def until(true: Any, *, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def states(standings: list[Standing]) -> dict[str, str]:
    return {s.job.label: s.state for s in standings}


# --- recipes ---


@pytest.mark.parametrize("name", recipe.names())
@pytest.mark.parametrize("quick", [True, False])
def test_every_row_of_every_recipe_is_a_training(name: str, quick: bool) -> None:
    found = recipe.load(name, quick=quick)
    raw = json.loads((Path(recipe.__file__).parent / "recipes" / f"{name}.json").read_text())
    in_version = [row["label"] for row in raw["rows"] if row.get(found.version, {}) is not None]
    assert [row.label for row in found.rows] == in_version
    for row in found.rows:
        for rate in row.rates or (None,):
            config = row.config(rate=rate, init="f.safetensors" if row.start else None, dataset=found.datasets[0])
            assert from_dict(TrainConfig, to_dict(config)) == config
        flags = cli.parse(["train", *to_argv(config)])
        assert isinstance(flags, cli.Train)
        assert flags.settings(TrainConfig) == config, "the queue's command line says the same"
    assert any(row.label == found.reference for row in found.rows)


def test_the_tables_that_the_issue_names() -> None:
    assert set(recipe.names()) >= {"one-bit", "resolution", "inq", "qat", "mnist", "digits"}
    qat = recipe.load("qat", quick=False)
    assert {row.label for row in qat.rows} == {"float", "w8a8", "w4a4", "w2a2", "w1a16", "w1a2"}
    one_bit = {row.label: row for row in recipe.load("one-bit", quick=False).rows}
    assert (one_bit["float"].published, one_bit["one-step-clip"].published) == (91.78, 87.37)
    config = one_bit["one-step-clip"].config()
    assert (config.epochs, config.lr, config.batch_size, config.schedule) == (200, 0.1, 128, "step")
    assert config.milestones == (60 / 200, 120 / 200, 180 / 200)
    assert (config.optimizer, config.hysteresis_mode, config.hysteresis) == ("hysteresis-sgd", "one-step", 0.1)
    search = {row.label: row for row in recipe.load("resolution", quick=False).rows}
    assert search["qtadamw"].rates == tuple(2.0**-n for n in range(2, 11))
    assert search["qtadamw"].against == "adamw"


def test_settings_the_later_wins_and_a_version_may_leave_a_row_out() -> None:
    full = table(quick=False)
    assert [(row.label, row.rates, row.config().lr) for row in full.rows[:2]] == [
        ("float", (), 0.1),
        ("w1a2", (0.5, 0.25), 0.5),
    ]
    rows = [*RECIPE["rows"][:2], {**RECIPE["rows"][2], "full": None}]
    assert [row.label for row in table(quick=False, rows=rows).rows] == ["float", "w1a2"]
    assert len(table(rows=rows).rows) == 3
    per_version = [RECIPE["rows"][0], {**RECIPE["rows"][1], "from": {"quick": "float"}}]
    assert [table(quick=q, rows=per_version).rows[1].start for q in (True, False)] == ["float", None]


def test_epochs_and_time() -> None:
    rows = [
        RECIPE["rows"][0],
        {**RECIPE["rows"][1], "quick": {"lr": 0.1, "progressive": ["w4a4:3", "w2a2:4"], "epochs": 5}},
    ]
    assert [row.epochs for row in table(rows=rows).rows] == [2, 12]
    assert table(rows=rows).minutes == 7.0
    assert table(quick=False).minutes is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"row": []}, "unknown key 'row'; did you mean 'rows'"),
        ({"rows": []}, r"rows must be a list of JSON objects that is not empty, got \[\]"),
        ({"rows": [3]}, r"rows must be a list of JSON objects that is not empty, got \[3\]"),
        ({"rows": [{"settings": {}}]}, "row 1: label must be a one-line text that is not empty, got None"),
        ({"rows": [{"label": "a\nb"}]}, r"row 1: label must be a one-line text that is not empty, got 'a\\nb'"),
        ({"rows": [{"label": "a", "published": "91"}]}, "row 1: published must be a number, got '91'"),
        ({"rows": [{"label": "a", "published": 10**400}]}, "row 1: published must be a number, got 1000"),
        ({"rows": [{"label": "a", "from": ["b"]}]}, r"from must be a one-line text or a JSON object, got \['b'\]"),
        ({"rows": [{"label": "a", "from": {"quick": 3}}]}, "row a, from: quick must be a one-line text, got 3"),
        ({"rows": [{"label": "a", "from": {"fast": "b"}}]}, "row a, from: unknown key 'fast'"),
        ({"rows": [{"label": "a", "quick": None}], "reference": None}, "has no row in its quick version"),
        ({"rows": [{"label": "a", "settings": {"lr": []}}]}, r"t, row a: lr must be float or null, got \[\]"),
        ({"rows": [{"label": "a", "settings": {"lr": [0.1, False]}}]}, "lr must be float or null, got False"),
        ({"notes": 3}, "notes must be a list of one-line texts, got 3"),
        ({"quick": None}, "has no quick version"),
        ({"quick": {"epoch_minutes": float("nan")}}, "quick: epoch_minutes must be a number, got nan"),
        ({"quick": {"seeds": [True]}}, r"quick: seeds must be a list of whole numbers, got \[True\]"),
        ({"quick": {"seeds": []}}, "seeds must be whole numbers"),
        ({"rows": [{"label": "a", "settings": {"sheme": "w1a2"}}]}, "unknown key 'sheme'; did you mean 'scheme'"),
        ({"rows": [{"label": "a", "settings": {"scheme": "w3a3"}}]}, "t, row a: weight bits must be one of"),
        ({"rows": [{"label": "a", "settings": {"epochs": "many"}}]}, "t, row a: epochs must be int, got 'many'"),
        ({"rows": [{"label": "a", "settings": {"seed": 1}}]}, "seed is given on the command line"),
        ({"rows": [{"label": "a", "from": "b"}, {"label": "b", "from": "a"}]}, "row a: from must name a row above it"),
        ({"rows": [{"label": "a", "from": "a"}]}, "row a: from must name a row above it"),
        ({"rows": [{"label": "a", "against": "a"}]}, "row a: against must name a row above it"),
        ({"rows": [RECIPE["rows"][0], RECIPE["rows"][0]]}, "a label of its own"),
        ({"reference": "w9"}, "the reference must be a row, got 'w9'"),
        ({"datasets": ["cifar"]}, "unknown data set 'cifar'"),
        ({"quick": {"seeds": [-1]}}, "seeds must be whole numbers"),
    ],
)
def test_a_bad_recipe_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        recipe.parse({**RECIPE, **changes}, name="t", quick=True)
    assert str(error.value).startswith("recipe t")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [3, 1.5, "", "91", True, None, [], [None], [["b"]], [{}], {}, {"quick": []}])
def test_a_value_of_any_kind_makes_a_table_or_is_refused(value: Any, root: Path) -> None:
    version, row = RECIPE["quick"], RECIPE["rows"][2]
    recipes = [
        *({**RECIPE, key: value} for key in (*RECIPE, "notes")),
        *({**RECIPE, "quick": {**version, key: value}} for key in version),
        *({**RECIPE, "rows": [*RECIPE["rows"][:2], {**row, k: value}]} for k in (*row, "from", "published", "source")),
        *({**RECIPE, "settings": {**RECIPE["settings"], key: value}} for key in ("lr", "epochs", "milestones", "init")),
    ]
    for raw in recipes:
        try:
            work = Reproduction(recipe.parse(raw, name="t", quick=True), root)
        except ValueError:
            continue
        assert report.markdown(report.build(work, work.look()))


def test_unknown_tables_rows_and_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown table 'digit'.*did you mean 'digits'"):
        recipe.load("digit", quick=True)
    with pytest.raises(ValueError, match="cannot be read"):
        recipe.load(str(tmp_path / "none.json"), quick=True)
    for text in ("{", "[" * 100_000, "3" * 5000):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match="is not valid JSON"):
            recipe.load(str(tmp_path / "bad.json"), quick=True)
    (tmp_path / "mine.json").write_text(json.dumps(RECIPE))
    mine = recipe.load(str(tmp_path / "mine.json"), quick=True)
    assert mine.name == "mine.json"
    with pytest.raises(ValueError, match=r"no row 'w1a1': expected float, w1a2, alone; did you mean 'w1a2'"):
        mine.only(("w1a1",))
    assert [row.label for row in mine.only(("w1a2",)).rows] == ["float", "w1a2"], "with what it starts from"
    with pytest.raises(ValueError, match=r"has no full version; give --quick"):
        recipe.parse({k: v for k, v in RECIPE.items() if k != "full"}, name="t", quick=False)


# --- runs ---


def test_a_table_from_nothing_and_its_figures(root: Path, fake: list[str]) -> None:
    work = Reproduction(table(), root, command=fake)
    assert set(states(work.look()).values()) == {"missing", "blocked"}
    standings = finish(work)
    assert set(states(standings).values()) == {"done"}
    by_label = {s.job.label: s for s in standings}
    for seed in (0, 1):
        start = runs.manifest(by_label[f"w1a2-seed{seed}"].run or root)["config"]["init"]
        assert start == str(by_label[f"float-seed{seed}"].run) + "/model.safetensors", "of the same seed"
    result = report.build(work, standings)
    rows = {row["row"]: row for row in result["rows"]}
    assert (rows["float"]["last"], rows["float"]["drop"]) == (91.0, None)
    assert rows["w1a2"]["last"] == 89.75
    assert rows["w1a2"]["last_std"] == pytest.approx(statistics.stdev([89.25, 90.25]))
    assert (rows["w1a2"]["best"], rows["w1a2"]["drop"], rows["w1a2"]["drop_std"]) == (90.25, 1.25, 0.0)
    assert (rows["alone"]["drop"], rows["alone"]["against"]) == (-1.75, "w1a2")
    assert (result["devices"], result["versions"]["torch"], result["runs_done"]) == (["a machine"], "9", 6)
    text = report.markdown(result)
    assert "| best % (epoch) |" in text
    assert "| w1a2 | 89.75 ± 0.71 | 90.25 ± 0.71 (1,2) | +1.25 ± 0.00 (float) | 88.50 |" in text
    assert "- alone: so so" in text
    assert by_label["w1a2-seed1"].run and by_label["w1a2-seed1"].run.name in text
    until(lambda: not queue.entries(root))


def test_what_is_finished_is_not_run_again_and_other_settings_are(root: Path, fake: list[str]) -> None:
    first = finish(Reproduction(table().only(("float",)), root, seeds=[0], command=fake))
    assert len(runs.list_runs(root)) == 1
    again = finish(Reproduction(table(), root, seeds=[0], command=fake))
    assert again[0].run == first[0].run
    assert len(runs.list_runs(root)) == 3
    rows = [{**RECIPE["rows"][0], "quick": {"lr": 0.125}}]
    finish(Reproduction(table(rows=rows), root, seeds=[0], command=fake))
    assert len(runs.list_runs(root)) == 4


def test_a_moved_directory_and_another_device_still_count(root: Path, fake: list[str], tmp_path: Path) -> None:
    finish(Reproduction(table(), root, seeds=[0], device="cpu", command=fake))
    moved = tmp_path / "elsewhere"
    root.rename(moved)
    assert set(states(Reproduction(table(), moved, seeds=[0]).look()).values()) == {"done"}
    other = Reproduction(table(), moved, seeds=[0], device="cuda")
    assert states(other.look())["float-seed0"] == "missing"


def test_a_run_that_was_stopped_goes_on_as_the_same_run(root: Path, fake: list[str], tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    work = Reproduction(table(), root, command=fake)
    work.step()
    until(lambda: states(work.look())["float-seed0"] == "live")
    assert states(work.step())["float-seed1"] == "queued"
    stopped = next(s.run for s in work.look() if s.state == "live")
    assert stopped is not None
    work.leave(poll_s=0.02)
    assert runs.status(stopped).state == "stopped"
    until(lambda: queue.entries(root) == [])
    (tmp_path / "hold").unlink()
    standings = finish(Reproduction(table(), root, command=fake))
    assert standings[0].run == stopped
    assert len(runs.list_runs(root)) == 6


def test_what_an_earlier_process_queued_is_taken_over(root: Path, fake: list[str], tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    Reproduction(table(), root, command=fake).step()
    second = Reproduction(table(), root, command=fake)
    second.step()
    second.step()
    ours = [e for e in queue.entries(root) if "float" in e.name]
    assert len(ours) == 2, "one for each seed and none twice"
    (tmp_path / "hold").unlink()
    finish(second)
    assert len(runs.list_runs(root)) == 6


def test_a_failure_leaves_the_others_and_blocks_what_starts_from_it(root: Path, fake: list[str]) -> None:
    rows = [{**RECIPE["rows"][0], "quick": {"lr": 7}}, *RECIPE["rows"][1:]]
    work = Reproduction(table(rows=rows), root, seeds=[0], command=fake)
    standings = finish(work)
    assert states(standings) == {"float-seed0": "failed", "w1a2-seed0": "blocked", "alone-seed0": "done"}
    assert len(runs.list_runs(root)) == 2, "not tried again in this process"
    result = report.build(work, standings)
    assert [row["last"] for row in result["rows"]] == [None, None, 91.0]
    assert (result["runs_done"], result["runs_wanted"]) == (1, 3)


def test_a_run_that_cannot_start_says_why(root: Path, fake: list[str], tmp_path: Path) -> None:
    script = tmp_path / "refuse.py"
    script.write_text(FAKE.replace('if "--resume" in argv:', 'sys.exit("error: out of luck")\nif "--resume" in argv:'))
    work = Reproduction(table().only(("float",)), root, seeds=[0], command=[sys.executable, str(script)])
    (standing,) = finish(work)
    assert (standing.state, standing.error) == ("failed", "the trainer did not start: error: out of luck")
    assert queue.entries(root) == []
    assert states(finish(Reproduction(table().only(("float",)), root, seeds=[0], command=fake))) == {
        "float-seed0": "done"
    }


def test_a_search_reports_the_rate_of_the_best_mean(root: Path, fake: list[str]) -> None:
    rows = [
        {"label": "a", "settings": {"scheme": "float", "lr": [0.125, 0.5, 0.25]}},
        {"label": "b", "settings": {"scheme": "float", "lr": [0.75, 7], "optimizer": "adamw"}},
    ]
    work = Reproduction(table(rows=rows, reference="a"), root, command=fake)
    result = report.build(work, finish(work))
    a, b = result["rows"]
    assert (a["lr"], a["last"], b["lr"], b["drop"]) == (0.5, 91.0, 0.75, -0.25)
    assert [(s["lr"], s["last"]) for s in b["searched"]] == [(0.75, 91.25), (7, None)]
    text = report.markdown(result)
    assert "| a (lr 0.5) | 91.00 ± 0.71 | 91.50 ± 0.71 (1,2) |" in text, "the epochs are those of the rate"
    assert "- a, last % by lr: 0.125: 90.62 ± 0.71; 0.5: 91.00 ± 0.71; 0.25: 90.75 ± 0.71" in text


def test_a_float_network_from_elsewhere_stands_in_for_the_reference(
    root: Path, fake: list[str], tmp_path: Path
) -> None:
    (tmp_path / "f.safetensors").touch()
    work = Reproduction(table(), root, seeds=[0], init=tmp_path / "f.safetensors", command=fake)
    result = report.build(work, finish(work))
    rows = {row["row"]: row for row in result["rows"]}
    assert (rows["float"]["last"], rows["float"]["runs"]) == (95.0, [])
    assert (rows["w1a2"]["drop"], rows["alone"]["drop"]) == (95 - 89.25, 89.25 - 91)
    assert "--init FILE" in result["command"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset": "mnist"}, "is of digits or imagefolder, got mnist"),
        ({"init": Path("none.safetensors")}, "none.safetensors does not exist"),
        ({"seeds": [-1]}, "seed must be at least 0"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
    ],
)
def test_bad_options(root: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Reproduction(table(), root, **options)


def test_minutes_leave_pauses_out(tmp_path: Path) -> None:
    times = [("phase", 0, "data"), ("start", 60, ""), ("end", 120, ""), ("phase", 9000, "data"), ("end", 9060, "")]
    lines = [json.dumps({"t": t, "k": k, "name": n}) for k, t, n in times]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    assert report.minutes(tmp_path) == 3.0


# --- the command, with the real trainer ---


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A recipe of two short trainings on the digits."""
    rows = [
        {"label": "float", "settings": {"scheme": "float", "epochs": 5, "lr": 0.05}},
        {"label": "w4a4", "from": "float", "settings": {"scheme": "w4a4", "epochs": 1, "lr": 0.01}},
        {"label": "w1a2", "from": "float", "settings": {"scheme": "w1a2", "epochs": 1, "lr": 0.01}},
    ]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**RECIPE, "rows": rows, "quick": {"seeds": [0]}}))
    return path


def command(root: Path, mine: Path, *more: str) -> list[str]:
    flags = ["--quick", "--runs", str(root), "--rows", "w4a4", "--device", "cpu"]
    return [sys.executable, "-m", "tq", "reproduce", str(mine), *flags, *more]


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(root: Path, mine: Path, tmp_path: Path) -> None:
    child = subprocess.Popen(command(root, mine), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        until(lambda: any(runs.status(p).word == "float" for p in runs.list_runs(root)), seconds=120)
        child.send_signal(signal.SIGINT)
        out, said = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 130, said
    assert "the same command goes on from here" in said
    assert "0 of 2 runs done" in out
    (stopped,) = runs.list_runs(root)
    assert (runs.status(stopped).state, (stopped / "checkpoint.pt").exists()) == ("stopped", True)
    assert "-mine-float-seed0-" in stopped.name, "without the end of the file's name"
    out = subprocess.run(
        command(root, mine, "--out", str(tmp_path / "t.md"), "--json"), capture_output=True, text=True, timeout=300
    )
    assert out.returncode == 0, out.stderr
    result = json.loads(out.stdout)
    assert [row["row"] for row in result["rows"]] == ["float", "w4a4"]
    assert result["rows"][0]["runs"][0]["run"] == stopped.name
    assert (result["runs_done"], result["runs_wanted"], len(runs.list_runs(root))) == (2, 2, 2)
    assert result["rows"][1]["drop"] == result["rows"][0]["last"] - result["rows"][1]["last"]
    assert result["rows"][0]["last"] > 50, "it has learned"
    assert json.loads((tmp_path / "t.json").read_text())["rows"] == result["rows"]
    assert "| w4a4 |" in (tmp_path / "t.md").read_text()


def test_the_command_in_the_report_makes_it_again(
    root: Path, mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def table_of(*argv: str) -> dict[str, Any]:
        assert cli.main([*argv, "--only-report", "--json", "--runs", str(root)]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    given = ["--quick", "--rows", "w4a4", "w1a2", "--seeds", "3", "1", "--device", "cpu"]
    first = table_of("reproduce", str(mine), *given)
    assert first["command"] == f"tq reproduce mine.json {' '.join(given)}"
    monkeypatch.chdir(mine.parent)
    assert table_of(*shlex.split(first["command"])[1:]) == first
    odd = mine.rename(mine.with_name("my own.json"))
    assert table_of("reproduce", str(odd), "--quick")["command"] == "tq reproduce 'my own.json' --quick"


def test_a_recipe_named_as_a_table_has_a_report_of_its_own(
    root: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = mine.rename(mine.with_name("digits.json"))
    for name in (str(own), "digits"):
        assert cli.main(["reproduce", name, "--quick", "--only-report", "--runs", str(root)]) == 0
    titles = {path.name: path.read_text().splitlines()[0] for path in (root / "tables").glob("*.md")}
    assert titles.keys() == {"digits-quick.md", "digits.json-quick.md"}
    assert titles["digits.json-quick.md"] == "## a table" != titles["digits-quick.md"]
    before = own.read_text()
    capsys.readouterr()
    for out in (own, own.with_suffix(".md")):
        assert cli.main(["reproduce", str(own), "--quick", "--only-report", "--out", str(out)]) == 2
        assert f"--out {out} would write over the recipe {own}" in capsys.readouterr().err
    assert own.read_text() == before


@pytest.mark.parametrize(("key", "value"), [("notes", 3), ("quick", 3), ("rows", [{"label": "a", "from": ["b"]}])])
def test_a_bad_recipe_file_is_one_sentence(
    key: str, value: Any, root: Path, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.write_text(json.dumps({**RECIPE, key: value}))
    assert cli.main(["reproduce", str(mine), "--quick", "--only-report", "--runs", str(root)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tq: recipe mine.json")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["digit"], "did you mean 'digits'"),
        (["digits", "--rows", "w1a3"], "did you mean 'w1a2'"),
        (["qat", "--quick"], "needs cifar10: say where it is with --data DIR"),
        (["qat", "--data", "/nowhere"], "--data /nowhere is not a directory"),
        (["qat", "--dataset", "mnist", "--data", "/"], "is of cifar10 or imagefolder, got mnist"),
    ],
)
def test_bad_input_is_one_sentence(argv: list[str], said: str, capsys: pytest.CaptureFixture[str], root: Path) -> None:
    assert cli.main(["reproduce", *argv, "--runs", str(root)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_list_and_a_report_of_nothing(
    capsys: pytest.CaptureFixture[str], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["reproduce", "--list", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert {(t["table"], t["version"]) for t in tables} >= {("qat", "quick"), ("qat", "full")}
    assert cli.main(["reproduce", "mnist", "--quick", "--only-report", "--runs", str(root)]) == 0
    assert "0 of 15 runs done" in capsys.readouterr().out
    assert (root / "tables" / "mnist-quick.md").exists()
    assert runs.list_runs(root) == []


def test_these_modules_load_nothing_heavy() -> None:
    heavy = "[m for m in ('torch', 'textual', 'numpy', 'rich', 'tyro') if m in sys.modules]"
    ask = f"import sys, tq.recipe, tq.reproduce, tq.report; print({heavy})"
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"
