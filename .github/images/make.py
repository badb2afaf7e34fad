"""Makes the images of README.md from the demo: python .github/images/make.py [STORAGE]. Needs tmux and Chromium.

The demo is trained below STORAGE, by default runs; one that is complete there is shown again.
"""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).parent
COLUMNS, ROWS = 80, 44
WIDTH, HEIGHT = 1280, 1150  # pixels of the report that are shown
SHOWN_WIDTH = 800
SHOWN_STORAGE = "/home/you/runs"


def record_terminal(storage: Path) -> str:
    """Train the demo in a terminal -> the last lines of its screen, with colours."""
    ended = storage / "ended"
    tmux = ["tmux", "-L", "pharmclf-images"]
    command = shlex.join([sys.executable, "-m", "pharmclf", "train", "--storage", str(storage)])
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    subprocess.run([*tmux, "new-session", "-d", *size, f"{command}; touch {ended}; sleep 60"], check=True)
    try:
        while not ended.exists():
            time.sleep(1)
        time.sleep(1)
        # -J joins the lines that are broken at the edge
        return subprocess.check_output([*tmux, "capture-pane", "-e", "-p", "-J"], text=True)
    finally:
        ended.unlink(missing_ok=True)
        subprocess.run([*tmux, "kill-server"], check=False)


def draw_terminal(screen: str, storage: Path, location: Path) -> None:
    """Write a screen as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(screen.replace(str(storage), SHOWN_STORAGE).rstrip()))
    svg = console.export_svg(title="pharmclf train")
    location.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


def draw_report(report: Path, storage: Path, location: Path) -> None:
    """Write the top of a report as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        shot, page = Path(folder, "shot.png"), Path(folder, "report.html")
        page.write_text(report.read_text(encoding="utf-8").replace(str(storage), SHOWN_STORAGE), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        subprocess.run(["chromium", *options, f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True)
        image = Image.open(shot).convert("RGB")
    image = image.resize((SHOWN_WIDTH, round(SHOWN_WIDTH * image.height / image.width)), Image.Resampling.LANCZOS)
    image.quantize(256).save(location, optimize=True)


def main() -> None:
    """Train, and draw both."""
    storage = Path(sys.argv[1] if len(sys.argv) > 1 else "runs").resolve()
    storage.mkdir(exist_ok=True)
    draw_terminal(record_terminal(storage), storage, HERE / "terminal.svg")
    draw_report(storage / "demo" / "report.html", storage, HERE / "report.png")


if __name__ == "__main__":
    main()
