"""The page in a real browser: it draws, its switches work by mouse and keyboard, nothing is said on the console.

Needs Playwright and a Chromium of the system: the program that SEEDTUNE_BROWSER names, or one on the path. Without
them, or where it does not start, these tests are skipped.
"""

import os
import shutil
from types import SimpleNamespace

import pytest
import run_folders

from seedtune.report import page

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: see requirements-dev.lock")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LOOKS = [(1280, "light"), (390, "dark")]
AXES = {"rounds": "rounds", "forwards": "forwards", "flops": "FLOPs", "bytes": "bytes sent", "seconds": "seconds"}


@pytest.fixture(scope="module")
def browser():
    program = os.environ.get("SEEDTUNE_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no browser: install chromium, or set SEEDTUNE_BROWSER to one")
    with sync_api.sync_playwright() as playwright:
        # A sandbox within a container needs rights that tests do not have; the page is ours and asks no network.
        try:
            found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        except sync_api.Error as error:
            pytest.skip(f"{program} does not start: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the report of some run folders; at the end nothing may have been said, asked or popped up."""
    heard, contexts = [], []

    def open_(*folders, width=1280, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: heard.append(message.text))
        tab.on("pageerror", lambda error: heard.append(str(error)))
        tab.on("request", lambda request: heard.append(request.url) if not request.url.startswith("file:") else None)
        tab.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
        tab.goto(page.write(folders, tmp_path / "report.html").as_uri())
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert heard == []


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders of all kinds."""
    home = tmp_path_factory.mktemp("runs")
    policy, backpropagation = {"policy": "random"}, {"backprop_loss": 1.1, "backprop_accuracy": 0.7}
    return SimpleNamespace(
        ended=run_folders.save(home / "ended", ended=backpropagation, personalise=policy),
        probed=run_folders.keep(run_folders.save(home / "probed", ended={}), run_folders.findings()),
        eventful=run_folders.save(home / "eventful", 12, lines=run_folders.eventful(), ended={"stopped_by": "surge"}),
        answered=run_folders.save(home / "answered", **run_folders.of_two_classes()),
        going_on=run_folders.save(home / "going-on"),
        no_round=run_folders.save(home / "no-round", lines=[]),
    )  # fmt: skip


def shapes(tab, selector):
    return tab.locator(f"#charts {selector}").count()


@pytest.mark.parametrize("width, scheme", LOOKS)
def test_it_fits_and_can_be_read(opened, runs, width, scheme):
    for folders in ([runs.ended], [runs.ended, runs.eventful, runs.going_on]):
        tab = opened(*folders, width=width, scheme=scheme)
        assert tab.locator("html[data-drawn=yes]").count() == 1
        assert tab.locator("#charts svg").count() == 5 and tab.locator("#map canvas").first.is_visible()
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        for selector in ("h1", ".note", ".status", "#events td, #events p", "summary", ".tiles dt, thead th"):
            assert contrast(tab, selector) >= 4.5, selector
        assert (luminance(tab, "body", "backgroundColor") < 0.5) == (scheme == "dark")


def contrast(tab, selector):
    """Of the text of the first such element against the page (WCAG 2)."""
    pair = luminance(tab, selector, "color"), luminance(tab, "body", "backgroundColor")
    return (max(pair) + 0.05) / (min(pair) + 0.05)


def luminance(tab, selector, colour):
    read = f"(node) => getComputedStyle(node).{colour}.match(/[\\d.]+/g).slice(0, 3).map(Number)"
    parts = [value / 255 for value in tab.locator(selector).first.evaluate(read)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_curves_go_against_any_axis(opened, runs):
    tab = opened(runs.ended)
    for name, text in AXES.items():
        tab.locator(f"input[name=x-axis][value={name}]").check()
        assert tab.locator("#charts svg").first.get_by_text(text, exact=True).count() == 1


def test_the_switch_is_worked_by_arrow_keys(opened, runs):
    tab = opened(runs.ended)
    tab.locator("input[name=x-axis]:checked").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("input[name=x-axis]:checked").input_value() == "forwards"
    assert tab.locator("#charts svg").first.get_by_text("forwards", exact=True).count() == 1


def test_an_axis_that_was_not_counted_cannot_be_chosen(opened, tmp_path):
    lines = run_folders.rows(3, 4)
    del lines[2]["flops"]
    tab = opened(run_folders.save(tmp_path / "run", 3, lines=lines))
    assert tab.locator("input[name=x-axis][value=flops]").is_disabled()
    assert "Not counted in FLOPs: run." in tab.locator("#curve-notes").text_content()


def test_a_chart_is_read_out_by_arrow_keys_and_by_the_pointer(opened, runs):
    tab = opened(runs.ended)
    chart, tip = tab.locator("#charts svg").first, tab.locator("#charts .tip").first
    chart.focus()
    tab.keyboard.press("ArrowRight")
    assert tip.text_content() == "0 roundstest: 3training: 3.028 (at 1)"
    tab.keyboard.press("End")
    assert tip.text_content().startswith("6 roundstest: 1.286")
    tab.keyboard.press("Escape")
    assert tip.is_hidden()
    chart.hover(position={"x": 300, "y": 80})
    assert tip.is_visible() and " rounds" in tip.text_content()


def test_runs_and_training_losses_are_switched_on_and_off(opened, runs):
    tab = opened(runs.ended, runs.eventful)
    both = shapes(tab, ".line:not(.level)")
    tab.get_by_label("training loss", exact=True).first.check()
    assert shapes(tab, ".line:not(.level)") == both + 2 and shapes(tab, ".line.minor") == 2
    tab.locator("#legend input").nth(1).uncheck()
    assert shapes(tab, ".line.c1") == 0 and shapes(tab, ".line.c0") > 0 and shapes(tab, ".surge-line") == 0


def test_many_runs_are_folded_and_switched_all_at_once(opened, tmp_path):
    tab = opened(*(run_folders.save(tmp_path / f"run-{i}", 2, ended={}) for i in range(22)))
    assert tab.locator("header .lead").first.is_hidden() and shapes(tab, ".line") > 22
    tab.get_by_label("all runs", exact=True).uncheck()
    assert shapes(tab, ".line") == 0
    tab.locator("#legend input").nth(22).check()
    assert shapes(tab, ".line.c0") == shapes(tab, ".line") > 0
    assert "Looks repeat after 21 runs" in tab.locator("#curve-notes").text_content()


def test_surges_and_backpropagation_are_marked(opened, runs):
    tab = opened(runs.ended, runs.eventful)
    assert shapes(tab, ".surge-line") == 1 and shapes(tab, ".line.level") == 2
    assert tab.locator("#legend").get_by_text("backpropagation, at its end").is_visible()


def test_losses_are_logarithmic_on_demand(opened, runs):
    tab = opened(runs.ended)
    test_loss = tab.locator("#charts svg").first.locator(".line:not(.level)")
    before = test_loss.first.get_attribute("d")
    tab.get_by_label("logarithmic losses").check()
    assert test_loss.first.get_attribute("d") != before
    assert opened(runs.eventful).get_by_label("logarithmic losses").is_checked()  # its losses span a factor of ten


def test_the_map_is_switched_and_read_out(opened, runs):
    tab = opened(runs.eventful, runs.ended)
    tab.locator("#map-run").select_option("1")
    tab.locator("input[name=map][value=rates]").check()
    assert tab.locator("#map figcaption").text_content() == "ended: learning rate"
    tab.locator("#map canvas").first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        tab.keyboard.press(key)
    assert tab.locator("#map .tip").text_content().startswith("client 1, round 2learning rate: ")
    tab.locator("#map-run").select_option("0")
    assert tab.locator("#map .empty").text_content() == "eventful: no learning rate of clients to show."
    assert "Every client has the round's learning rate" in tab.locator("#map-notes").text_content()


def test_cells_of_the_map_have_colours(opened, runs):
    tab = opened(runs.ended)
    count = """(canvas) => {
      const { data } = canvas.getContext("2d").getImageData(60, 0, canvas.width - 60, canvas.height >> 1);
      return new Set(new Uint32Array(data.buffer)).size;
    }"""
    assert tab.locator("#map canvas").first.evaluate(count) >= 10


def test_folded_settings_open_by_keyboard(opened, runs):
    tab = opened(runs.ended)
    tab.locator("#settings summary").focus()
    tab.keyboard.press("Enter")
    assert tab.get_by_text("federation.upload", exact=True).is_visible()


@pytest.mark.parametrize("width, scheme", LOOKS)
def test_a_run_without_a_round_is_drawn_too(opened, runs, width, scheme):
    tab = opened(runs.no_round, width=width, scheme=scheme)
    assert tab.locator("#charts").text_content() == "No round is whole yet: nothing to draw."
    assert tab.locator("#map-figure").text_content() == "No client has answered yet: nothing to draw."
    assert opened(runs.no_round, runs.going_on, width=width, scheme=scheme).locator("#charts svg").count() == 5


def test_names_of_runs_are_text(opened, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    lines = run_folders.eventful()
    lines[3]["failed"] = {"2": f"</script><script>alert(2)</script>{evil}"}
    one = run_folders.save(tmp_path / evil, 12, lines=lines, run={"method": evil})
    tab = opened(one, run_folders.save(tmp_path / "other"))
    assert tab.locator("img").count() == 0 and evil in tab.locator("#legend").text_content()
    assert evil in tab.locator("#map-run").text_content() and evil in tab.locator("#events").text_content()


def test_long_and_wide_runs_are_thinned_and_say_so(opened, tmp_path):
    long = run_folders.save(tmp_path / "long", 10_000, 2, lines=run_folders.rows(10_000, 2, eval_every=100))
    wide = run_folders.save(tmp_path / "wide", 20, 1_000, lines=run_folders.rows(20, 1_000))
    tab = opened(long)
    assert tab.locator("#curve-notes").text_content().startswith("Not every round is drawn (long): ")
    assert tab.locator("#map-notes").text_content().startswith("A column is the mean of up to 25 rounds.")
    assert opened(wide).locator("#map-notes").text_content().startswith("100 of 1000 clients are shown")


@pytest.mark.parametrize("width, scheme", LOOKS)
def test_findings_of_probes_are_drawn(opened, runs, width, scheme):
    for folders in ([runs.probed], [runs.ended, runs.probed]):
        tab = opened(*folders, width=width, scheme=scheme)
        assert tab.locator("#probes .chart svg").count() == 8 and tab.locator("#probes .interval").count() == 2
        assert tab.locator("#probes .chart").first.locator("svg .mark").count() == 4
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        for selector in ("#probes .note", "#probes .status", "#probes td", "#probes td small", "#probes summary"):
            assert contrast(tab, selector) >= 4.5, selector
        bar = tab.locator("#probes .interval").first.bounding_box()
        assert bar["width"] == 150 and bar["height"] == 14
    whole = "(nodes) => nodes.every((node) => node.scrollWidth <= node.clientWidth)"
    assert opened(runs.probed, width=width).locator(".scroll:has(.values)").evaluate_all(whole)


def test_charts_of_probes_are_read_out_by_keys_and_tables_unfold(opened, runs):
    tab = opened(runs.probed)
    by_layer = tab.locator("#probes .chart").first
    by_layer.locator("svg").focus()
    tab.keyboard.press("ArrowRight")
    assert by_layer.locator(".tip").text_content() == "before the layerstrace: 2 (1 to 3.5)"
    errors = tab.locator("#probes .chart").nth(3)
    errors.locator("svg").focus()
    tab.keyboard.press("End")
    assert errors.locator(".tip").text_content() == "μ = 0.01error: 1.1e-4truncation: 1e-4rounding: 1e-5"
    errors.locator("svg").hover(position={"x": 60, "y": 80})
    assert errors.locator(".tip").text_content().startswith("μ = 1e-4error: ")
    assert tab.locator("#probes table").get_by_text("layer 1").is_hidden()
    tab.get_by_text("Tables of effective-rank").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#probes table").get_by_text("layer 1").is_visible()


def test_findings_of_several_runs_stand_beside_each_other(opened, runs, tmp_path):
    altered = run_folders.findings()
    altered["effective-rank"] |= {"values": {"trace": "<b>none</b>"}, "tables": {"by layer": "no table"}}
    other = run_folders.keep(run_folders.save(tmp_path / "other", ended={}), altered)
    tab = opened(runs.probed, other)
    assert tab.locator("#probes .chart svg").count() == 8
    assert tab.locator("#probes .chart").first.locator(".c1").count() == 0
    assert tab.locator("#probes .chart").nth(3).locator(".mark.c1").count() == 3
    assert tab.get_by_text("<b>none</b>").is_visible() and tab.locator("#probes thead .swatch svg").count() == 8


def test_without_scripts_all_but_the_drawings_is_there(opened, runs):
    tab = opened(runs.eventful, java_script_enabled=False)
    assert tab.get_by_text("Curves and the map of clients are drawn by the script").is_visible()
    assert tab.get_by_text(run_folders.SURGE).is_visible() and tab.locator("#again code").is_visible()


@pytest.mark.parametrize("width, scheme", LOOKS)
def test_answers_are_shown_and_can_be_read(opened, runs, width, scheme):
    tab = opened(runs.answered, width=width, scheme=scheme)
    matrix = tab.locator(".confusion").first
    assert matrix.locator("td.right").all_text_contents() == ["95", "85"] and matrix.locator("td.shade-9").count() == 1
    assert tab.locator(".samples .answer.right").count() == 2 and tab.locator(".samples .answer.wrong").count() == 2
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for selector in (".story", ".confusion td.right", ".samples td", ".answer.right", ".answer.wrong"):
        assert contrast(tab, selector) >= 4.5, selector


def test_guessing_is_a_level_of_the_accuracy(opened, runs):
    tab = opened(runs.answered)
    assert tab.locator("#charts .guide").count() == 1  # two classes alike: the more frequent one is no better
    assert tab.locator("#charts .guide-name").text_content() == "chance: 50 %"
    assert opened(runs.ended).locator("#charts .guide").count() == 0


def test_a_table_that_is_wider_than_a_phone_says_that_it_scrolls(opened, runs):
    tab = opened(runs.ended, runs.eventful, width=390)
    box, hint = tab.locator("#results .scroll"), tab.locator("#results .scroll-hint")
    assert hint.is_visible() and "hides-right" in box.get_attribute("class")
    assert "gradient" in box.evaluate("(node) => getComputedStyle(node).maskImage")
    box.evaluate("(node) => (node.scrollLeft = node.scrollWidth)")
    tab.wait_for_function("() => document.querySelector('#results .scroll.hides-left:not(.hides-right)')")
    assert opened(runs.answered, width=1280).locator("#answers .scroll-hint").first.is_hidden()
