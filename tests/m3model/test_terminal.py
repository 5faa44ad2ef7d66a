"""How every command looks in a pipe, and how it fails: by type, in one line, with its status."""

import sys

import pytest

from m3model.terminal import _Speed, bar, commands, described, fail, run, stage, table


class Mendable(Exception):
    pass


class Worse(Mendable):
    pass


@pytest.fixture
def ended(monkeypatch, capsys):
    """Returns (status, stdout, stderr) of a program whose one command does what it is told."""

    def end(action, *words):
        app = commands("m3-x", "A program.")

        @app.command()
        def act(number: int = 0) -> None:
            """Act."""
            action()

        monkeypatch.setattr(sys, "argv", ["x", *words])
        with pytest.raises(SystemExit) as stopped:
            run(app, Mendable, OSError)
        seen = capsys.readouterr()
        return stopped.value.code, seen.out, seen.err

    return end


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize("error", [Mendable("a\n  b"), Worse("a b")])
def test_expected_errors_are_one_line_whatever_they_say(ended, error):
    assert ended(raising(error), "act") == (2, "", "error: a b\n")


def test_a_folder_that_cannot_be_used_is_named(ended, tmp_path):
    (tmp_path / "file").touch()
    _, _, said = ended((tmp_path / "file").mkdir, "act")
    assert said == f"error: {tmp_path}/file: File exists\n"


def test_other_errors_keep_their_traceback(ended):
    class Mendable(Exception):
        """Of the same name, and not expected."""

    with pytest.raises(Mendable):
        ended(raising(Mendable("a")), "act")


def test_ends(ended):
    assert ended(lambda: None, "act") == (0, "", "")
    assert ended(lambda: fail("no\nfile"), "act") == (2, "", "error: no file\n")
    assert ended(raising(KeyboardInterrupt()), "act")[0] == 130


def test_usage_errors_are_one_line(ended):
    for words, says in (
        (["act", "--numbre", "1"], "--number"),
        (["act", "--number", "x"], "'--number'"),
        (["akt"], "'act'"),
    ):
        status, out, err = ended(lambda: None, *words)
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert says in err


def test_without_arguments_there_is_help(ended):
    status, out, _ = ended(lambda: None)
    assert status == 0
    assert "Usage: m3-x [OPTIONS] COMMAND" in out


def test_facts_are_aligned_and_nested_ones_below():
    facts = {
        "status": "ok", "router_ok": True, "scales": [1, 9], "version": None,
        "engine": {"alive": False, "heartbeat_s": 0.123456, "pages": {"free": 3}}, "waiting": {},
    }  # fmt: skip
    assert list(described(facts)) == [
        "status     ok",
        "router_ok  yes",
        "scales     1, 9",
        "version    none",
        "engine",
        "  alive        no",
        "  heartbeat_s  0.1235",
        "  pages",
        "    free  3",
        "waiting    none",
    ]


def test_a_table_in_a_pipe_is_whole_and_takes_cells_literally(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    long = "what is written " * 20
    table("a [b] title", ["question", "tokens"], [[long, "9"], ["[red]?", "1,576"]])
    out = capsys.readouterr().out
    assert long in out
    assert "a [b] title" in out
    assert "[red]?" in out
    assert "│      9 │" in out  # numbers to the right
    assert "…" not in out


def test_a_bar_in_a_pipe_is_a_line_now_and_then(capsys):
    with bar("fitting", "steps", line_every_s=1e6) as move:
        for done in range(5):
            move(done, 4, "second look" if done == 4 else "")
        move(4, 4, "second look")
    first, last = capsys.readouterr().err.splitlines()
    assert first == "fitting: 0/4 steps"
    assert last.startswith("fitting: 4/4 steps, ")
    assert last.endswith("/s, second look")
    with bar("asking", "questions", line_every_s=0) as move:
        for done in (1, 2, 3):
            move(done, 3)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_each_part_of_a_work_has_its_own_speed(monkeypatch):
    times = iter((0.0, 100.0, 101.0, 103.0))
    monkeypatch.setattr("m3model.terminal.time.monotonic", lambda: next(times))
    speed = _Speed()
    assert [speed.after(done) for done in (0, 50, 0, 8)] == [None, 0.5, None, 4.0]


def test_only_the_first_of_several_processes_talks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with bar("training", "steps") as move:
        move(1, 1)
    assert capsys.readouterr().err == ""


def test_a_stage_in_a_pipe_says_what_is_done_when_it_begins(capsys):
    with stage("starting") as tell:
        assert capsys.readouterr().err == "starting\n"
        tell("loading")
        assert capsys.readouterr().err == "loading\n"
