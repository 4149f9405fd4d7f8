"""Makes docs/quickstart-report.html and its picture anew: `python docs/make_quickstart_report.py [FOLDER]`.

It runs the recipe in a temporary folder, or takes the run that FOLDER/runs/quickstart holds, probes its last weights
and writes its report; docs/figures/report.png is the top of it. Needs scipy, Playwright, Pillow, and a Chromium on the
path or in SEEDTUNE_BROWSER. Takes a few minutes on two cores.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent
PAGE, PICTURE = DOCS / "quickstart-report.html", DOCS / "figures" / "report.png"
RUN = Path("runs") / "quickstart"
COMMANDS = ("run quickstart", f"probe effective-rank {RUN}", f"probe perturbation-scale {RUN}")
WIDTH, HEIGHT = 1100, 1990


def make(folder: Path) -> None:
    for command in COMMANDS[(folder / RUN).exists() :]:
        subprocess.run(["seedtune", *command.split()], cwd=folder, check=True)
    show(folder)


def show(folder: Path) -> None:
    """The page and its picture."""
    subprocess.run(["seedtune", "report", str(RUN), "--out", str(PAGE.resolve())], cwd=folder, check=True)
    Image.open(BytesIO(picture())).convert("RGB").quantize(256).save(PICTURE, optimize=True)
    print(f"{PAGE}: {PAGE.stat().st_size / 1000:.0f} kB; {PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


def picture() -> bytes:
    """The top of the page as a PNG."""
    program = os.environ.get("SEEDTUNE_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.goto(PAGE.resolve().as_uri())
        found = tab.screenshot()
        browser.close()
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            make(Path(temporary))
