"""The page in a real browser: it renders whole, asks for nothing, fits a phone, reads in light, dark and print."""

import itertools

import pytest

from mha2gqa.verbs.verify.page import verify_page
from tests.pages.conftest import Browser
from tests.pages.sample import hostile, verification

VIEWS = [*itertools.product((1180, 390), ("light", "dark"))]
TEXT_COLOURS = ("--ink", "--muted", "--original", "--converted", "--bad", "--good")
COLOUR = """
const probe = document.createElement('i'); document.body.append(probe);
const numbers = text => text.match(/[\\d.]+/g).map(Number);
const colour = name => { probe.style.color = `var(${name})`; return numbers(getComputedStyle(probe).color); };
"""


@pytest.fixture(scope="module")
def page() -> str:
    return verify_page(verification())


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_it_renders_without_errors_and_without_requests(browser: Browser, page: str, width: int, scheme: str) -> None:
    browser.open(page, width=width, scheme=scheme)
    assert browser.run("return document.querySelector('h1').innerText").endswith("Different")
    plots = "return [...document.querySelectorAll('svg.plot')].map(svg => svg.getBoundingClientRect().height)"
    heights = browser.run(plots)
    assert len(heights) == 8
    assert min(heights) > 80
    assert browser.messages() == []
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert len(asked) == 1
    assert asked[0].endswith("/report.html")


@pytest.mark.parametrize("width", [320, 390, 768, 1180])
@pytest.mark.parametrize("content", [verification, hostile])
def test_it_never_scrolls_sideways(browser: Browser, width: int, content: object) -> None:
    assert callable(content)
    browser.open(verify_page(content()), width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [390, 1180])
def test_no_label_of_a_plot_is_cut_off(browser: Browser, page: str, width: int) -> None:
    browser.open(page, width=width)
    cut = """
    return [...document.querySelectorAll('svg.plot')].flatMap(svg => {
      const outer = svg.getBoundingClientRect();
      return [...svg.querySelectorAll('text')].filter(text => {
        const inner = text.getBoundingClientRect();
        return inner.left < outer.left - 1 || inner.right > outer.right + 1
            || inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1;
      }).map(text => text.textContent);
    })"""
    assert browser.run(cut) == []


def test_wide_tables_scroll_inside_themselves(browser: Browser, page: str) -> None:
    browser.open(page, width=320)
    wide = "return [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    assert browser.run(wide) > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_colour_has_the_contrast_of_wcag_aa(browser: Browser, page: str, scheme: str) -> None:
    browser.open(page, scheme=scheme)
    for background in ("--paper", "--raised", "--wash"):
        behind = _luminance(browser.run(f"{COLOUR} return colour('{background}')"))
        assert (behind < 0.1) == (scheme == "dark")
        for name in TEXT_COLOURS:
            before = _luminance(browser.run(f"{COLOUR} return colour('{name}')"))
            ratio = (max(before, behind) + 0.05) / (min(before, behind) + 0.05)
            assert ratio >= 4.5, (name, background, ratio)


def test_plots_take_their_colours_from_the_page(browser: Browser, page: str) -> None:
    seen = set()
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        drawn, said = browser.run(
            f"{COLOUR} const line = document.querySelector('svg.plot [style*=\"--original\"]');"
            "return [numbers(getComputedStyle(line).stroke), colour('--original')]"
        )
        assert drawn == said
        seen.add(tuple(drawn))
    assert len(seen) == 2


def test_print_is_dark_on_white_and_cuts_no_figure(browser: Browser, page: str) -> None:
    browser.open(page, scheme="dark", media="print", width=680)
    assert browser.run(f"{COLOUR} return colour('--paper')") == [255, 255, 255]
    breaks = "return [...document.querySelectorAll('figure, .pair')].map(one => getComputedStyle(one).breakInside)"
    assert set(browser.run(breaks)) == {"avoid"}
    hidden = "return [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    assert browser.run(hidden) == 0


def test_text_from_outside_stays_text(browser: Browser) -> None:
    browser.open(verify_page(hostile()))
    assert browser.run("return document.querySelectorAll('script, img, iframe, object, form').length") == 0
    assert browser.run("return document.title") != "owned"
    assert "<script>document.title='owned'</script>" in browser.run("return document.body.innerText")
    assert browser.messages() == []
    assert all(url.startswith(("file:", "data:")) for url in browser.requests())


def test_nothing_runs_or_loads_even_if_it_got_onto_the_page(browser: Browser, page: str) -> None:
    browser.open(page.replace("</footer>", "<script>document.title = 'owned'</script><img src='http://127.0.0.1:9/'>"))
    assert browser.run("return document.title") != "owned"
    assert sum("Content Security Policy" in message for message in browser.messages()) == 2


def test_it_can_be_read_by_a_screen_reader(browser: Browser, page: str) -> None:
    browser.open(page)
    assert browser.run("return document.documentElement.lang") == "en"
    assert browser.run("return document.querySelectorAll('h1').length") == 1
    named = ("svg:not([role=img][aria-label])", "table th:not([scope])", ".scroll:not([aria-label])")
    unnamed = f"return document.querySelectorAll('{', '.join(named)}').length"
    assert browser.run(unnamed) == 0
    ids = browser.run("return [...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))


def _luminance(colour: list[float]) -> float:
    """Relative luminance by WCAG 2."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
