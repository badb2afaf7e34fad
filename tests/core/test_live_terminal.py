"""The moving line, on a pseudo-terminal: what the screen shows at the end, and which codes were written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
from support.pseudo_terminal import ROOT, record

from pharmclf.core.live_terminal import format_activity
from pharmclf.core.terminal import Activity, Progress, Terminal

BEGIN = """
import os, sys, time, logging
from pharmclf.core.console import *
from pharmclf.core.terminal import Progress
make_output_robust()
logging.basicConfig()
configure_terminal()
def train(steps=8, pause=0.1):
    with show_activity() as activity:
        for step in range(steps):
            state = Progress(step / steps, f"{step}/{steps}", ["loss 0.123", "acc 0.987", "1,234 img/s"], 83.0)
            activity.progress("phase 1 epoch 1/3", state)
            yield step
            time.sleep(pause)
"""
MOVING = "phase 1 epoch 1/3"


def test_the_line_moves_below_what_is_printed_and_is_gone_at_the_end():
    """Lines of `print`, of the log and of incomplete writes stay whole, in their order."""
    recording = record(f"""{BEGIN}
for step in train():
    print_line(f"epoch {{step}}")
    if step == 2: print("printed ", end=""); print("in parts")
    if step == 4: logging.getLogger("other").warning("from the log")
    if step == 6: sys.stderr.write("an error\\n")
print_result("the end")
close_terminal()
print("after")
""")
    epochs = [f"epoch {step}" for step in range(8)]
    expected = [
        *epochs[:3], "printed in parts", *epochs[3:5], "WARNING:other:from the log", *epochs[5:7], "an error",
        epochs[7], "the end", "after", "",
    ]  # fmt: skip
    assert recording.screen() == expected
    assert recording.text.count(MOVING) > 8
    assert recording.exit_code == 0


def test_native_output_is_readable_and_the_line_moves_on():
    """What a library writes to the file itself begins a line of its own."""
    message = "native: a message that is longer than the moving line, as those of libraries are"
    recording = record(f"""{BEGIN}
for step in train(12):
    if step == 6: os.write(2, b"{message}\\n")
close_terminal()
""")
    shown = "".join(recording.screen())
    assert message in shown
    assert MOVING not in shown


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_the_line_is_never_broken_into_two(columns: int):
    """Whatever the width, nothing is left of it, and the last column stays free."""
    recording = record(f"{BEGIN}\nfor step in train(): pass\nclose_terminal()\nprint('after')", columns)
    assert recording.screen() == ["after", ""]


def test_prose_is_broken_between_words_and_neither_commands_nor_locations_are():
    """What is copied from the screen stays one line for the terminal, which breaks it itself."""
    words, path = "word " * 20, "/" + "p" * 90
    recording = record(f"{BEGIN}\nprint_line({words!r} + {path!r})\nprint_line('  ' + {words!r})\nclose_terminal()")
    lines = recording.text.split("\r\n")
    assert lines[0].split() == ["word"] * 16
    assert lines[1].split() == ["word"] * 4
    assert lines[2].strip() == path
    assert lines[3].split() == ["word"] * 20


def test_80_columns_have_room_for_all_figures_of_a_training():
    """Phase, epoch, step, loss, accuracy, speed and ETA, of 3 digits each."""
    activity = Activity(Terminal(), lambda: 0.0)
    figures = ["loss 1.2345", "acc 0.987", "1,234 img/s"]
    activity.text, activity.state = "phase 2 epoch 12/30", Progress(0.5, "57/100", figures, 83.0)
    for width, has_bar in ((79, False), (110, True)):
        line = format_activity(activity, "*", "━", width)
        assert line.cell_len <= width
        assert ("━" in line.plain) is has_bar
        assert all(part in line.plain for part in ("epoch 12/30", "57/100", *figures, "ETA 1:23"))


def test_a_wait_shows_how_long_it_lasts_and_usually_does():
    now = [0.0]
    activity = Activity(Terminal(), lambda: now[0])
    activity.begin("starting Ray", 12.0)
    now[0] = 3.4
    assert format_activity(activity, "*", "-", 79).plain == "* starting Ray  3 s, usually 12 s"


def test_no_color_gives_no_colour():
    """The line still moves; only bold and dim are left."""
    program = f"{BEGIN}\nprint_line('warning: hot')\nfor step in train(): pass\nclose_terminal()"
    coloured, plain = record(program), record(program, NO_COLOR="1")
    colour = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-7]|9[0-7]|38;)")
    assert colour.search(coloured.text)
    assert not colour.search(plain.text)
    assert MOVING in plain.text


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"CI": "true"}])
def test_where_nobody_watches_there_are_no_codes(variables: dict[str, str]):
    recording = record(f"{BEGIN}\nprint_line('first')\nfor step in train(): pass\nclose_terminal()", **variables)
    assert recording.text == "first\r\n"


def test_a_pipe_gets_plain_lines():
    code = f"{BEGIN}\nprint_line('first')\nwith show_activity('waiting', 9): pass\nfor step in train(): pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.stdout, done.stderr) == ("first\nwaiting (usually 9 s)\n", "")


def test_a_quiet_terminal_does_not_move():
    code = BEGIN.replace("configure_terminal()", "configure_terminal(quiet=True)")
    recording = record(f"{code}\nprint_line('first')\nfor step in train(): pass\nprint_result('the result')")
    assert recording.text == "the result\r\n"


def test_another_encoding_gets_other_characters():
    program = f"{BEGIN}\nfor step in train(): pass\nclose_terminal()"
    assert record(program, PYTHONIOENCODING="ascii").text.isascii()


def interrupt_once(process: subprocess.Popen[bytes], text: str) -> None:
    if MOVING in text and not getattr(process, "interrupted", False):
        process.interrupted = True  # type: ignore[attr-defined]
        os.kill(process.pid, signal.SIGINT)


def test_ctrl_c_leaves_the_cursor_and_no_moving_line():
    """Also where nothing handles the interrupt; the cursor is never hidden, so that SIGKILL would leave it too."""
    recording = record(f"{BEGIN}\nfor step in train(100): pass", act=interrupt_once)
    assert recording.exit_code != 0
    assert "\x1b[?25l" not in recording.text
    assert not any(MOVING in line for line in recording.screen())
    assert recording.screen()[-2] == "KeyboardInterrupt"


def test_a_second_signal_ends_at_once_and_leaves_no_moving_line():
    """As `GracefulShutdown` does."""
    recording = record(f"""{BEGIN}
import signal
from pharmclf.core.signals import GracefulShutdown
with GracefulShutdown():
    for step in train(100):
        if step in (3, 6): os.kill(os.getpid(), signal.SIGINT)
""")
    assert recording.exit_code == 130
    assert not any(MOVING in line for line in recording.screen())
    assert any("a checkpoint is written first" in line for line in recording.screen())


def test_native_errors_that_are_dropped_stay_dropped():
    """Also those that Python code writes while native output is dropped, as without a terminal."""
    recording = record(f"""{BEGIN}
from pharmclf.core.stderr_filter import suppress_native_stderr
for step in train(3):
    with suppress_native_stderr():
        os.write(2, b"native\\n")
        sys.stderr.write("python\\n")
sys.stderr.write("later\\n")
close_terminal()
""")
    assert recording.screen() == ["later", ""]


def test_the_line_is_drawn_at_most_four_times_a_second_and_costs_less_than_a_percent():
    """However often progress is reported. What it costs is the time of the process beyond that of the same work."""
    recording = record(f"""{BEGIN}
def cost():
    began = time.process_time()
    for step in train(400, 0.01): pass
    return time.process_time() - began
time.sleep(0.3)
began = time.monotonic()
live = cost()
seconds = time.monotonic() - began
close_terminal()
print(f"share {{(live - cost()) / seconds:.4f}}")
""")
    assert recording.text.count(MOVING) <= 5 * (recording.writes[-1][0] + 1)
    (share,) = re.findall(r"share (-?[0-9.]+)", recording.text)
    assert float(share) < 0.01
