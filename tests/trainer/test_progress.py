"""Lines to the character, on a pipe and on terminals of several widths."""

import contextlib
import io
import re

import pytest

from trainer import progress

GAN = {
    "train/discriminator/loss": 1.25,
    "train/discriminator/real": 0.75,
    "train/generator/loss": 0.6931,
    "perf/examples_per_second": 5120.0,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def frames(self):
        """What was drawn, frame after frame, without colours and movements."""
        return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue()))


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def terminal(monkeypatch):
    def of_width(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        return Terminal()

    return of_width


def showing(*arguments):
    return contextlib.closing(progress.Progress(*arguments))


def test_plain_lines(clock):
    stream = io.StringIO()
    with showing(3000, 0, stream, clock) as shown:
        clock.now += 20  # The first loop compiles.
        shown.update(10, 32.0)
        clock.now += 9
        shown.update(100, 640.0)
        shown.report(100, {"train/loss": 1.23454}, 5120.4, 12.3)
        clock.now += 90
        shown.update(1000, 640.0)
        shown.report(1000, {"train/loss": 123.5, "eval/loss": float("nan")}, 123456.0, 7300)
        clock.now += 200
        shown.report(3000, {"train/loss": -0.5}, 640.0, 8000)
    assert stream.getvalue().splitlines() == [
        "step  100/3000 (  3 %)  loss   1.2345    5,120 examples/s    12 s  ETA  290 s",
        "step 1000/3000 ( 33 %)  loss 123.5000  123,456 examples/s   2.0 h  ETA  200 s"
        "  eval/loss      nan",
        "step 3000/3000 (100 %)  loss  -0.5000      640 examples/s   2.2 h  ETA    0 s",
    ]


def test_time_left_counts_from_the_step_of_the_resume(clock):
    stream = io.StringIO()
    with showing(200, 100, stream, clock) as shown:
        shown.report(100, {}, 0.0, 0.0)
        clock.now += 30
        # Nothing but the first loop to judge by: 20 steps in 30 s, 80 to go.
        shown.update(120, 64.0)
        shown.report(120, {}, 64.0, 30)
        clock.now += 10
        # 20 steps in 10 s since that loop, 60 to go.
        shown.update(140, 64.0)
        shown.report(140, {}, 64.0, 40)
    assert [line.split("ETA")[1].strip() for line in stream.getvalue().splitlines()] == [
        "-",
        "120 s",
        "30 s",
    ]


def test_a_run_without_steps(clock):
    stream = io.StringIO()
    with showing(0, 0, stream, clock) as shown:
        shown.report(0, {}, 0.0, 0.0)
    assert stream.getvalue() == "step 0/0 (100 %)        0 examples/s     0 s  ETA      -\n"


def test_no_control_characters_even_if_colours_are_asked_for(clock, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with showing(3000, 0, stream, clock) as shown:
        shown.update(10, 1.0)
        shown.report(10, GAN, 1.0, 1.0)
    assert all(character.isprintable() or character == "\n" for character in stream.getvalue())


def test_a_dumb_terminal_gets_plain_lines(clock, terminal, monkeypatch):
    stream = terminal(80)
    monkeypatch.setenv("TERM", "dumb")
    with showing(3000, 0, stream, clock) as shown:
        shown.report(3000, {}, 1.0, 1.0)
    said = "step 3000/3000 (100 %)        1 examples/s     1 s  ETA    0 s\n"
    assert stream.getvalue() == said


def test_a_stream_that_is_gone_ends_no_training(clock):
    attempts = []

    class Gone(io.StringIO):
        def write(self, text):
            attempts.append(text)
            raise BrokenPipeError

    with showing(3000, 0, Gone(), clock) as shown:
        shown.update(10, 1.0)
        shown.report(10, GAN, 1.0, 1.0)
    assert attempts


@pytest.mark.parametrize(
    ("columns", "bar", "right"),
    [
        (40, 9, "33 %  ETA 200 s"),
        (60, 11, "33 %  ETA 200 s  5,120 examples/s"),
        (80, 5, "33 %  ETA 200 s  5,120 examples/s  disc 1.2500  gene 0.6931"),
        (
            120,
            31,
            "33 %  ETA 200 s  5,120 examples/s  discriminator 1.2500  generator 0.6931",
        ),
        (
            200,
            40,
            "33 %  ETA 200 s  5,120 examples/s  discriminator 1.2500  generator 0.6931",
        ),
    ],
)
def test_the_bar_fits_the_terminal(clock, terminal, columns, bar, right):
    stream = terminal(columns)
    with showing(3000, 0, stream, clock) as shown:
        shown.update(10, 100.0)
        clock.now += 99
        shown.update(1000, 5120.4)
        shown.report(1000, GAN, 5120.4, 100.0)
        last = stream.frames()[-1]
        # The bar's end may be half a character.
        assert re.sub("[╸╺]", "━", last) == f"step 1000/3000 {'━' * bar} {right}"
    assert all(len(frame) <= columns for frame in stream.frames())


def test_an_evaluation_stays_above_the_bar(clock, terminal):
    stream = terminal(80)
    with showing(3000, 0, stream, clock) as shown:
        shown.report(500, {"train/loss": 1.5, "eval/negative_elbo": 23.78}, 64.0, 30)
        shown.report(600, {"train/loss": 1.25}, 64.0, 36)
        assert "step 500/3000  eval/negative_elbo 23.7800" in stream.getvalue()
        assert "loss 1.2500" in stream.frames()[-1] and "eval" not in stream.frames()[-1]


def test_the_bar_is_not_drawn_more_often_than_can_be_seen(clock, terminal):
    stream = terminal(80)
    with showing(3000, 0, stream, clock) as shown:
        before = len(stream.frames())
        for step in range(1, 3000):
            clock.now += 0.001
            shown.update(step, 100.0)
        # 3 s of 0.1 s each, the first at once.
        assert 29 <= len(stream.frames()) - before <= 31
        shown.update(3000, 100.0)
        assert "step 3000/3000" in stream.frames()[-1]


def test_an_evaluation_is_shown_as_it_is(clock, terminal):
    """Neither markup nor cut to lines."""
    stream = terminal(40)
    name = "eval/[bold]a name that is longer than the terminal is wide"
    with showing(3000, 0, stream, clock) as shown:
        shown.report(500, {name: 1.0}, 64.0, 30)
    assert f"step 500/3000  {name} 1.0000" in stream.frames()


def test_latest_losses():
    assert progress.latest_losses(GAN) == [("discriminator", 1.25), ("generator", 0.6931)]
    one = {"train/loss": 1.0, "train/kl": 2.0, "eval/loss": 3.0, "perf/x": 4.0}
    assert progress.latest_losses(one) == [("loss", 1.0), ("eval/loss", 3.0)]
    assert progress.latest_losses({"train/elbo": 1.0, "train/kl": 2.0}) == [
        ("elbo", 1.0),
        ("kl", 2.0),
    ]
    many = {f"eval/{name}": 0.0 for name in "abcdef"}
    assert len(progress.latest_losses(many)) == progress.MOST_LOSSES


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (1.23456, "1.2346"),
        (-999.99, "-999.9900"),
        (0.00012345, "1.23e-04"),
        (1234.56, "1234.6"),
        (-1e30, "-1.00e+30"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_number(value, text):
    assert progress.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.4, "0 s"),
        (599, "599 s"),
        (600, "10 min"),
        (7199, "120 min"),
        (7200, "2.0 h"),
        (47.5 * 3600, "47.5 h"),
        (48 * 3600, "2.0 d"),
    ],
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text
