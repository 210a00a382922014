"""The filter language of `tq runs --filter` and the dashboard, as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tq import query, runs
from tq.cli import main
from tq.history import RunState
from tq.liveness import Status

NOW = 1_000_000.0


def facts(**changed: Any) -> dict[str, Any]:
    """A finished w2a4 run, half an hour old, with what differs."""
    config = {
        "scheme": changed.pop("scheme", "w2a4"),
        "model": "resnet20",
        "dataset": "cifar10",
        "optimizer": "sgd",
        "weight_quantizer": "lsq",
        "act_quantizer": "pact",
    }
    status = changed.pop("status", Status("done"))
    state = RunState(**{"last_acc": 91.5, "best_acc": 92.0, "packed_bytes": 82_448, "epoch": 10, **changed})
    manifest = {"name": "my net", "config": config, "created": NOW - 1800}
    return query.facts(Path("runs/20260101-000000-resnet20-w2a4-3f2c"), manifest, state, status)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("", True),
        ("w<=4 acc>90", True),
        ("w<2", False),
        ("w=2 a=4", True),
        ("w:2 a!=4", False),
        ("ACC>=91.5", True),
        ("acc>91.5", False),
        ("best=92", True),
        ("epoch>=10", True),
        ("size<100kb", True),
        ("size<=82448", True),
        ("size>0.1MB", False),
        ("kb<82.5 mb<0.1", True),
        ("loss<1", False),
        ("age<1h age>20m", True),
        ("age>0.5d", False),
        ("name:NET", True),
        ("name:'my net'", True),
        ("name=my", False),
        ("name!=my", True),
        ("state:done", True),
        ("state:live,don", True),
        ("state=do", False),
        ("scheme:w2 model:resnet dataset:cifar optimizer:sgd", True),
        ("method:pact", True),
        ("model=resnet20,resnet32", True),
        ("optimizer:adam", False),
        ("net", True),
        ("my 3f2c", True),
        ("resnet20", True),
        ("resnet21", False),
        ("-resnet21", True),
        ("-state:done", False),
        ("-w>4", True),
        ("-loss<1", True),
        ("-", True),
    ],
)
def test_a_filter_fits_or_not(text: str, fits: bool) -> None:
    assert query.parse(text).match(facts(), NOW) is fits


@pytest.mark.parametrize(
    ("text", "state", "word", "fits"),
    [
        ("state:live", "live", "train", True),
        ("state:stalled", "live", "train", False),
        ("state:stalled", "live", "stalled", True),
        ("state:live", "live", "stalled", True),
        ("state=live", "live", "stalled", True),
        ("-state:live", "live", "stalled", False),
        ("state:crashed", "live", "stalled", False),
    ],
)
def test_a_stalled_run_is_live_too(text: str, state: Any, word: str, fits: bool) -> None:
    status = Status(state, "train", 100.0 if word == "stalled" else 0.0)
    assert query.parse(text).match(facts(status=status), NOW) is fits


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("wight<2", "unknown term 'wight<2': expected numbers w, a, acc,"),
        ("modle:x", "did you mean 'model'?"),
        ("acc>high", "term 'acc>high': expected a number after acc, got 'high'"),
        ("acc>nan", "expected a number after acc"),
        ("acc>", "expected a number after acc, got ''"),
        ("name>3", "name is text and has no order; expected name:PART"),
        ("name:", "expected a word after name:"),
        ("state:running", "unknown state 'running'; expected starting, live, done"),
        ("size<1XB", "term 'size<1XB': size '1XB' has the unknown unit 'XB'"),
        ("age<2", "expected an age with its unit, as age<90s"),
        ("name:'x", "a quote is not closed"),
    ],
)
def test_a_bad_term_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        query.parse(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "bits", "method"),
    [
        ("w1a2", (1, 2), "lsq pact"),
        ("float", (16, 16), "float"),
        ("w3a3", (None, None), "lsq pact"),
        ("", (None, None), "lsq pact"),
    ],
)
def test_facts_of_schemes(scheme: str, bits: tuple[int | None, int | None], method: str) -> None:
    found = facts(scheme=scheme)
    assert ((found["w"], found["a"]), found["method"]) == (bits, method)


def test_facts_of_a_run_that_says_nothing() -> None:
    found = query.facts(Path("odd"), {"config": 3, "created": "x"}, RunState(), Status("crashed"))
    assert (found["name"], found["accuracy"], found["bytes"], found["started"]) == ("odd", None, None, None)
    for text in ("acc>0", "acc<0", "age>0s", "w=1", "scheme:w"):
        assert not query.parse(text).match(found, NOW)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("acc", "bac"),
        ("-acc", "abc"),
        ("size", "abc"),
        ("-size", "cba"),
        ("name", "abc"),
        ("age", "cba"),
        ("-age", "abc"),
        ("loss", "abc"),
    ],
)
def test_sorting_puts_the_best_first_and_the_unknown_last(sort: str, order: str) -> None:
    rows = [
        {"name": "a", "accuracy": 70.0, "bytes": 1, "started": 1.0, "loss": None},
        {"name": "b", "accuracy": 90.0, "bytes": 2, "started": 2.0, "loss": None},
        {"name": "c", "accuracy": None, "bytes": 3, "started": 3.0, "loss": float("nan")},
    ]
    assert "".join(row["name"] for row in query.ordered(rows, sort, lambda row: row)) == order


def test_an_unknown_sort_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="cannot sort by 'accuracy': expected one of age, acc,"):
        query.ordered([], "accuracy", lambda row: row)


def test_every_sort_and_number_is_among_the_facts() -> None:
    known = facts()
    assert {key for key, _ in (*query.NUMBERS.values(), *query.SORTS.values())} <= set(known)
    assert set(query.TEXTS) <= set(known)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three runs: 50, 70 and 60 percent."""
    for tag, scheme, acc in (("aa01", "w1a2", 50.0), ("aa02", "w8a8", 70.0), ("aa03", "w4a4", 60.0)):
        with runs.create(
            tmp_path,
            name=f"cnn-{scheme}",
            argv=["tq"],
            config={"scheme": scheme},
            seed=0,
            versions={},
            device="cpu",
            path=tmp_path / f"20260101-00000{tag[-1]}-cnn-{scheme}-{tag}",
        ) as run:
            run.log.emit("eval", step=1, epoch=1, split="test", loss=1.0, acc=acc)
            run.log.emit("end", status="ok")
    return tmp_path


@pytest.mark.parametrize(
    ("flags", "tags"),
    [
        ([], ["aa03", "aa02", "aa01"]),
        (["--filter", "w<=4 acc>40"], ["aa03", "aa01"]),
        (["--filter", "acc>55", "--sort", "acc"], ["aa02", "aa03"]),
        (["--sort=-acc"], ["aa01", "aa03", "aa02"]),
        (["--filter", "state:live"], []),
    ],
)
def test_tq_runs_filters_and_sorts(
    root: Path, capsys: pytest.CaptureFixture[str], flags: list[str], tags: list[str]
) -> None:
    assert main(["runs", "--runs", str(root), "--json", *flags]) == 0
    assert [row["run"][-4:] for row in json.loads(capsys.readouterr().out)["runs"]] == tags


def test_tq_runs_says_that_nothing_fits_and_what_is_wrong(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--runs", str(root), "--filter", "[w1]"]) == 0
    assert "fits the filter '[w1]'" in " ".join(capsys.readouterr().out.split())
    for flags, sentence in (
        (["--filter", "w<x"], "tq: term 'w<x': expected a number after w, got 'x'"),
        (["--sort", "weight"], "tq: cannot sort by 'weight': expected one of age,"),
        (["show", "last", "--filter", "w<2"], "tq: --filter and --sort are for the list"),
    ):
        assert main(["runs", "--runs", str(root), *flags]) == 2
        assert capsys.readouterr().err.startswith(sentence)
