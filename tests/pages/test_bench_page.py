"""The page of `bench`, with made-up numbers: in a browser, and with text from outside."""

import dataclasses

import pytest

from mha2gqa.errors import visible
from mha2gqa.verbs.bench.outcome import BenchReport, Decode, Fit, Prefill, Ratio, Setting, Side, Times
from mha2gqa.verbs.bench.page import bench_page
from tests.pages.conftest import Browser
from tests.pages.sample import HOSTILE


def times(median: float, spread: float = 0.1) -> Times:
    return Times(median=median, low=median * (1 - spread / 2), high=median * (1 + spread / 2), count=20)


def decode(batch: int, context: int, cache: str, measured: float) -> Decode:
    held = batch * context << 18
    return Decode(
        batch=batch,
        context=context,
        cache=cache,
        original=times(batch * context / 1e3),
        converted=times(batch * context / 1e3 / measured, 0.2 if batch == 8 else 0.1),
        ratio=Ratio(median=measured, low=measured * 0.8, high=measured * 1.3),
        step_bytes=(5 * 10**9 + held, 4 * 10**9 + held // 8),
        cache_bytes=(held, held // 8),
        cache_measured=(held, held // 8 + 1024 * (batch == 8)),
        reason="the cache is 5% of the bytes of a step" if batch == 1 else "",
    )


def report(name: str = "olmo-1b") -> BenchReport:
    side = Side(
        name=name, kv_heads=16, parameters=10**9, weights=4 * 10**9, cache_per_token=1 << 18, cross_cache_per_token=0
    )
    prefill = Prefill(
        batch=8, tokens=64, original=times(2.0), converted=times(1.0), ratio=Ratio(median=2, low=1, high=3)
    )
    return BenchReport(
        model_type=name,
        random_weights=True,
        target_context=None,
        original=side,
        converted=dataclasses.replace(side, kv_heads=2, cache_per_token=1 << 15),
        setting=Setting(
            engine="transformers",
            device=name,
            dtype="float32",
            attention="sdpa",
            compiled=False,
            threads=1,
            machine={"processor": name},
            versions={"torch": name},
            memory=20 << 30,
        ),
        decode=tuple(decode(b, c, k, 1.3) for c in (1024, 4096) for b in (1, 8) for k in ("dynamic", "static")),
        prefill=(prefill,),
        fits=(Fit(context=4096, original=14, converted=121, tried=(13, 120)),),
        seconds=100.0,
    )


def test_what_was_measured_is_on_the_page() -> None:
    page = bench_page(report())
    parts = ("256.0 KiB -&gt; 32.0 KiB a token (12%)", "1.30 (1.04-1.69)", "2.00 (1.00-3.00)", "as in 4 of the rows")
    for part in parts:
        assert part in page, part
    assert page.count("disturbed</td>") == page.count("(measured ") == 4
    assert page.count("the cache is 5% of the bytes of a step") == 4
    row = page[page.index('<td class="number">14</td>') :].split("</tr>")[0]
    assert [part.split("<")[0] for part in row.split('">')[1:]] == ["14", "121", "13", "120"]


@pytest.mark.parametrize("width", [320, 1180])
@pytest.mark.parametrize("name", ["olmo-1b", HOSTILE])
def test_it_fits_and_asks_for_nothing(browser: Browser, width: int, name: str) -> None:
    browser.open(bench_page(report(name)), width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    assert browser.run("return document.querySelectorAll('script, img').length") == 0
    assert browser.messages() == []
    assert len([url for url in browser.requests() if not url.startswith("data:")]) == 1
    cut = """
    return [...document.querySelectorAll('svg.plot')].flatMap(svg => {
      const outer = svg.getBoundingClientRect();
      return [...svg.querySelectorAll('text')].filter(text => {
        const inner = text.getBoundingClientRect();
        return inner.left < outer.left - 1 || inner.right > outer.right + 1;
      }).map(text => text.textContent);
    })"""
    assert browser.run("return document.querySelectorAll('svg.plot').length") == 2
    assert browser.run(cut) == []


def test_text_from_outside_is_shown_as_it_is(browser: Browser) -> None:
    browser.open(bench_page(report(HOSTILE)))
    assert browser.run("return document.title") != "owned"
    assert visible(HOSTILE) in browser.run("return document.body.textContent")
