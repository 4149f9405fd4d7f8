"""The report that the documents link: of the recipe as it is, of this package, and of nobody's machine."""

import re
from html import unescape
from pathlib import Path

from seedtune import presets
from seedtune.report import page
from seedtune.report.settings import settings

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "quickstart-report.html").read_text(encoding="utf-8")
AGAIN = "run: python docs/make_quickstart_report.py"
ROW = re.compile(r'<th scope="row"><code>(\w+)\.<wbr>(\w+)</code>.*?<td class="words">(.*?)</td>', re.DOTALL)


def test_it_shows_the_recipe_of_the_first_run():
    shown = {(section, key): unescape(value) for section, key, value in ROW.findall(PAGE)}
    assert len(shown) > 50
    for setting in settings([presets.composed("quickstart", None)]):
        if not setting.is_default:
            assert shown.get((setting.section, setting.key)) == setting.values[0], AGAIN


def test_it_is_a_small_report_with_probes_and_no_paths():
    assert page.MARK in PAGE[:100] and len(PAGE) < 200_000
    assert "120 of 120 rounds" in PAGE and "seedtune run quickstart" in PAGE
    assert "effective-rank" in PAGE and "Errors in float32" in PAGE and 'id="probes"' in PAGE
    assert not re.findall(r"/(?:home|root|tmp|work|Users|mnt|var|opt)/", PAGE)


def test_the_documents_lead_to_it():
    assert "docs/quickstart-report.html" in (DOCS.parent / "README.md").read_text(encoding="utf-8")
    assert "quickstart-report.html" in (DOCS / "report.md").read_text(encoding="utf-8")
    assert (DOCS / "figures" / "report.png").stat().st_size < 150_000
