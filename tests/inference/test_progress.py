"""Long work shows its progress on a terminal, and nowhere else."""

import io

import pytest
from rich.console import Console

from unbraid.inference import progress as module
from unbraid.inference.progress import progress_bar


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=screen, force_terminal=True, width=100))
    return screen


@pytest.mark.parametrize(("total", "shown"), [(2000, "1,500 of 2,000"), (None, "1,500")])
def test_what_is_done_is_shown_on_a_terminal(total, shown, screen, capsys):
    with progress_bar(total) as advance:
        advance(1499.25)
        advance(0.75)
        print("an answer")
    assert shown in screen.getvalue()
    assert (" of " in screen.getvalue()) == (total is not None)
    assert capsys.readouterr() == ("an answer\n", "")


def test_short_work_shows_nothing(screen, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 60.0)
    with progress_bar(2) as advance:
        advance(2)
    assert screen.getvalue() == ""


def test_nothing_is_shown_but_on_a_terminal(screen, monkeypatch):
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=screen, force_terminal=False))
    with progress_bar(2) as advance:
        advance(1)
    assert screen.getvalue() == ""


def test_the_bar_goes_when_the_work_fails(screen):

    def work():
        with progress_bar(2) as advance:
            advance(1)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert screen.getvalue().endswith("\x1b[2K")  # the line is wiped
