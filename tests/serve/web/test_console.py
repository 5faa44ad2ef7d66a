"""The console in a real browser: what it tells and draws, and whom it lets in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve.client.wire import chat_body, parse_answer, parse_route
from serve.client.words import cost_in_words, grid_in_words
from serve.in_process import Service
from serve.settings import API_KEYS_VARIABLE
from serve.web.api import create_api

PICTURES = Path(__file__).resolve().parents[3] / "serve" / "pictures"
SAMPLES = json.loads((PICTURES / "questions.json").read_text("utf-8"))
SCALES = (1, 9, 36, 144, 576)
pytestmark = pytest.mark.slow


def asked(url: str, picture: str, question: str) -> Any:
    """Return the answer that the client gets to the console's own request."""
    body = chat_body(PICTURES / picture, question, {"explain": True})
    reply = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    return parse_answer(reply.json(), reply.headers, 0.0)


def test_it_opens_with_an_answered_example(open_page: Any, url: str) -> None:
    page = open_page(url).settled()
    first = SAMPLES[0]
    answer = asked(url, first["picture"], first["question"])
    assert page.text("asked") == first["question"]
    assert page.text("answer") == answer.text
    assert page.text("cost") == cost_in_words(answer)
    assert " % saved" in page.text("cost")
    assert page.text("saving").endswith(
        f"{answer.visual_tokens} of 576 visual tokens, "
        f"{round(100 * (1 - answer.visual_tokens / 576))} % saved"
    )
    assert page.text("sentence") == answer.explain.sentence
    chips = page.js("[...document.querySelectorAll('#chips button')].map((c) => c.textContent)")
    assert chips == [s["question"] for s in SAMPLES if s["picture"] == first["picture"]]
    assert page.errors == []


def test_the_picture_shows_the_patches_that_the_words_point_to(open_page: Any, url: str) -> None:
    page = open_page(url).settled()
    answer = asked(url, SAMPLES[0]["picture"], SAMPLES[0]["question"])
    (relevance,) = answer.explain.relevance
    values = relevance.values
    most, least = values.index(max(values)), values.index(min(values))
    page.click("#grid")
    veiled = [page.pixel(most), page.pixel(least)]
    assert f"point to {sum(v >= max(values) / 2 for v in values)} of its 576 patches" in str(
        page.js("document.querySelector('#drop canvas').getAttribute('aria-label')")
    )
    page.click("#words")
    plain = [page.pixel(most), page.pixel(least)]
    assert veiled[0] == plain[0]
    assert sum(veiled[1]) < 0.85 * sum(plain[1])
    page.click("#grid")
    grid = page.js(
        "(() => { const c = document.querySelector('#drop canvas'); return c.toDataURL() })()"
    )
    page.click("#words")
    assert page.js("document.querySelector('#drop canvas').toDataURL()") != grid


def test_a_second_look_is_told_with_its_sum(open_page: Any, unsure_url: str) -> None:
    page = open_page(unsure_url, width=390).settled()
    answer = asked(unsure_url, SAMPLES[0]["picture"], SAMPLES[0]["question"])
    sure = f"{100 * answer.second_look['confidence']:.0f} % sure"
    assert page.text("cost") == cost_in_words(answer) == (
        f"first look: 1 visual token, {sure}; second look: 576 visual tokens; "
        "together 577, 1 more than always reading 576"
    )  # fmt: skip
    said = page.text("sentence")
    assert said.startswith("The router first chose 1 at the price 1e+06; ")
    assert said.endswith(f"The answer given there was {sure}, and a second look read 576.")
    second = [s["question"] for s in SAMPLES if s["picture"] == SAMPLES[0]["picture"]][1]
    page.ask(second)
    # Always-576 is counted once for each question.
    assert page.text("saving").endswith("1154 visual tokens, 2 more than always reading 576")
    assert page.text("history").count("1 + 576") == 2
    everything = page.js("document.body.innerText")
    assert "-" not in page.text("cost") + page.text("saving")
    assert "−" not in page.text("cost") + page.text("saving")
    assert " saved" not in everything
    assert page.errors == []


COARSE_FINE = {"coarse": 36, "fine": 576, "cells": list(range(5, 27)), "visual_tokens": 124}
COARSER = {"coarse": 9, "fine": 144, "cells": [14, 15], "visual_tokens": 17}


def routings() -> Iterator[dict[str, Any]]:
    """Decisions of every kind, as a reply tells them."""
    predicted = {str(scale): 0.5 for scale in SCALES} | {"36+576@250x48": 0.75}
    for reason, first, second in (
        ("predicted", 36, 0), ("predicted", 1, 0), ("predicted", 576, 0), ("budget_cap", 144, 0),
        ("pinned", 9, 0), ("no_image", 0, 0), ("predicted", 36, 576), ("predicted", 1, 144),
    ):  # fmt: skip
        routing: dict[str, Any] = {
            "scale": second or first, "visual_tokens": first + second, "reason": reason,
            "p_suffices": None if reason in ("pinned", "no_image") else predicted,
        }  # fmt: skip
        if second:
            routing["second_look"] = {
                "from": first, "confidence": 0.4149,
                "first_visual_tokens": first, "second_visual_tokens": second,
            }  # fmt: skip
        if reason == "budget_cap":
            routing |= {"visual_tokens": 153, "scales": [144, 9]}
        yield routing
    focused = {"scale": 36, "scales": [36], "reason": "predicted", "p_suffices": predicted}
    yield focused | {"visual_tokens": 124, "focus": COARSE_FINE}
    yield focused | {"visual_tokens": 124, "focus": COARSE_FINE, "p_suffices": None}
    yield focused | {"visual_tokens": 36, "focus": COARSE_FINE | {"cells": [], "visual_tokens": 36}}
    looked = {"from": 9, "confidence": 0.25, "first_visual_tokens": 17, "focus": COARSER}
    both = looked | {"second_visual_tokens": 124}
    yield focused | {"visual_tokens": 141, "focus": COARSE_FINE, "second_look": both}
    both = looked | {"second_visual_tokens": 576}
    yield focused | {"scale": 576, "scales": [576], "visual_tokens": 593, "second_look": both}


def test_page_and_client_use_the_same_words(open_page: Any, url: str) -> None:
    page = open_page(url).settled()
    for routing in routings():
        route = parse_route({"routing": routing})
        assert page.js(f"costInWords({json.dumps(routing)})") == cost_in_words(route)
        assert page.js(f"gridInWords({json.dumps(routing)})") == grid_in_words(route)


def test_it_says_what_is_out_of_the_ordinary_with_the_router(open_page: Any, url: str) -> None:
    page = open_page(url).settled()
    assert page.js("document.getElementById('state').hidden") is True
    plain = {"restricted": None, "encoder": {"trial": "", "drift": ""}}
    moved = {"trial": "canary abc on 0.1 of the sessions", "drift": "2 of 70 features have moved"}
    for health, wanted in (
        (plain, ""),
        ({"restricted": None, "encoder": None}, ""),
        (plain | {"restricted": "price 0.5: it lost answers"},
         "the router is held to price 0.5: it lost answers"),
        (plain | {"encoder": moved},
         "on trial: canary abc on 0.1 of the sessions; 2 of 70 features have moved"),
    ):  # fmt: skip
        assert page.js(f"stateInWords({json.dumps(health)})") == wanted


def test_the_cells_that_were_read_finely_are_tinted(open_page: Any, url: str) -> None:
    """Level 576 has 12 x 12 cells of 2 x 2 patches; the first cell of the second row is read."""
    page = open_page(url).settled()
    page.click("#words")
    focus = {"coarse": 36, "fine": 576, "cells": [12, 143], "visual_tokens": 44}
    inside, outside = (48, 49, 72, 73, 23 * 24 + 23), (0, 50, 96, 23 * 24 + 21)
    page.show(scale=36)
    plain = {patch: page.pixel(patch) for patch in inside + outside}
    assert page.text("legend") == "36 tokens everywhere"
    page.show(scale=36, focus=focus, visual_tokens=44)
    assert page.text("legend") == (
        "36 coarse tokens everywhere, 4 x 2 fine tokens where the question looks"
    )
    assert all(page.pixel(patch) != plain[patch] for patch in inside)
    assert all(page.pixel(patch) == plain[patch] for patch in outside)
    assert "read as 36 coarse tokens everywhere, 4 x 2 fine" in str(
        page.js("document.querySelector('#drop canvas').getAttribute('aria-label')")
    )
    page.click("#grid")
    assert page.text("legend") == ""
    assert page.errors == []


def test_both_looks_are_drawn_and_told(open_page: Any, url: str) -> None:
    page = open_page(url).settled()
    page.click("#words")
    first = {"from": 9, "confidence": 0.5, "first_visual_tokens": 17, "second_visual_tokens": 576}
    page.show(scale=576, scales=[576], visual_tokens=593, second_look=first)
    plain = [page.pixel(patch) for patch in (0, 3 * 24 + 3)]
    cells = {"coarse": 9, "fine": 144, "cells": [0], "visual_tokens": 13}  # patches 0..3 each way
    page.show(
        scale=576, scales=[576], visual_tokens=593, second_look=first | {"focus": cells}
    )  # fmt: skip
    assert page.js("[...document.querySelectorAll('#legend span')].map((s) => s.textContent)") == [
        "first look: 9 coarse tokens everywhere, 4 x 1 fine tokens where the question looks",
        "second look: 576 tokens everywhere",
    ]
    tinted = [page.pixel(patch) for patch in (0, 3 * 24 + 3)]
    assert all(a != b for a, b in zip(plain, tinted, strict=True))
    assert page.errors == []


def test_a_focus_is_told_drawn_and_compared_with_the_scales(open_page: Any, focus_url: str) -> None:
    page = open_page(focus_url).settled()
    answer = asked(focus_url, SAMPLES[0]["picture"], SAMPLES[0]["question"])
    assert answer.focus.cells
    assert page.text("cost") == cost_in_words(answer)
    assert page.text("cost").startswith(f"36 coarse + {4 * len(answer.focus.cells)} fine = ")
    assert [page.text("legend")] == grid_in_words(answer)
    page.click("#compare")
    rows = "[...document.querySelectorAll('#compared tbody tr')]"
    page.until(f"{rows}.length === 6")
    page.until("!document.getElementById('ask').disabled")
    read = page.js(f"{rows}.map((row) => Number(row.children[2].textContent))")
    assert read == sorted({*SCALES, answer.visual_tokens})
    chosen = page.js(f"{rows}.filter((row) => row.className).map((row) => row.textContent)")
    assert len(chosen) == 1
    assert chosen[0].startswith(f"36 + {4 * len(answer.focus.cells)}")
    assert page.errors == []


def test_a_wide_picture_has_its_grid_on_the_padded_square(open_page: Any, url: str) -> None:
    """24 x 12 patches of a picture, six rows of padding above and below it."""
    page = open_page(url).settled()
    page.js(
        "(async () => { const c = document.createElement('canvas'); c.width = 400; c.height = 200;"
        " const pen = c.getContext('2d'); pen.fillStyle = '#fff'; pen.fillRect(0, 0, 400, 200);"
        " await setPicture(await new Promise((done) => c.toBlob(done))); })()"
    )
    focus = {"coarse": 1, "fine": 576, "cells": [0, 36], "visual_tokens": 9}
    page.show(scale=1, scales=[1], focus=focus, visual_tokens=9)
    padding, white = [122, 116, 104], [255, 255, 255]
    assert page.pixel(4) == padding
    assert page.pixel(5 * 24 + 4) == padding
    assert page.pixel(6 * 24 + 4) == white
    for patch, plain in ((0, padding), (6 * 24, white), (7 * 24 + 1, white)):
        assert page.pixel(patch) != plain


def test_foci_stand_among_the_scales_by_what_they_cost(open_page: Any, url: str) -> None:
    page = open_page(url).settled()
    name = "36+576@250x48"
    why = asked(url, SAMPLES[0]["picture"], SAMPLES[0]["question"])
    p = {str(key): value for key, value in why.p_suffices.items() if isinstance(key, int)}
    sent = httpx2.post(
        f"{url}/v1/route",
        json=chat_body(PICTURES / SAMPLES[0]["picture"], "q", {"explain": True}), timeout=60,
    ).json()["routing"]["explain"]  # fmt: skip
    for numbers in ("values", "costs", "base"):
        of_scales = {key: told for key, told in sent[numbers].items() if key.isdecimal()}
        sent[numbers] = of_scales | {name: 0.13 if numbers == "costs" else 0.5}  # as 75 tokens
    sent |= {"scale": name, "contributions": sent["contributions"] | {name: {"question": 0.5}}}
    sent |= {"coarser": None, "finer": None}
    page.show(scale=36, focus=COARSE_FINE, action=name, p_suffices=p | {name: 0.5}, explain=sent)
    for bars in ("#bars", "#values"):
        names = page.js(
            f"[...document.querySelectorAll('{bars} span')].map((s) => s.textContent)"
            ".filter((t) => / tokens?$/.test(t) || t.includes('+576'))"
        )
        assert [each.split()[0] for each in names] == ["1", "9", "36", name, "144", "576"]
        chosen = page.js(f"document.querySelector('{bars} span.chosen').textContent")
        assert chosen == name
    assert page.errors == []


def test_both_looks_are_marked_among_what_was_predicted(open_page: Any, url: str) -> None:
    page = open_page(url).settled()
    coarser, finer = "9+144@500x12", "36+576@250x48"
    p = {"1": 0.1, "9": 0.2, coarser: 0.3, "36": 0.4, finer: 0.5, "576": 0.6}
    costs = dict(zip(p, (0.0, 0.01, 0.02, 0.06, 0.2, 1.0), strict=True))
    told = {"from": 9, "confidence": 0.5, "first_visual_tokens": 17, "second_visual_tokens": 124}
    marked = """['chosen', 'second'].map((kind) =>
        [...document.querySelectorAll(`#bars span:first-of-type ~ span.${kind}`)]
        .map((s) => s.textContent).filter((t) => !t.endsWith('%')))"""
    for first, action, more in (
        (coarser, finer, {"scale": 36, "focus": COARSE_FINE}),
        ("9", finer, {"scale": 36, "focus": COARSE_FINE}),
        (coarser, "576", {"scale": 576, "scales": [576]}),
    ):
        why = page.js("state.routing.explain") | {"scale": first, "costs": costs, "values": p}
        why |= {"contributions": {first: {}}, "coarser": None, "finer": None}
        page.show(action=action, p_suffices=p, second_look=told, explain=why, **more)
        names = [f"{key} tokens" if key.isdecimal() else key for key in (first, action)]
        assert page.js(marked) == [[name] for name in names]
    page.show(action=finer, p_suffices=p, scale=36, focus=COARSE_FINE)
    assert page.js(marked) == [[finer], []]
    assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_needs_no_sideways_scrolling(
    open_page: Any, unsure_url: str, scheme: str
) -> None:
    page = open_page(unsure_url, width=390, scheme=scheme).settled()
    page.click("summary")
    page.ask("what is the label of the " + "averyveryverylongword" * 6 + "?")
    page.click("#compare")
    page.until("document.querySelectorAll('#compared tbody tr').length === 5")
    assert page.js("document.scrollingElement.scrollWidth") <= 390
    assert page.js("innerWidth") == 390
    light = page.js("getComputedStyle(document.body).backgroundColor") == "rgb(246, 246, 243)"
    assert light is (scheme == "light")


def test_everything_that_can_be_used_has_a_name(open_page: Any, url: str) -> None:
    page = open_page(url).settled()
    page.call("Accessibility.enable")
    used = {"button", "textbox", "checkbox", "img", "image", "DisclosureTriangle"}
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    names = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in used
    ]
    assert len(names) > 12
    assert all(name for _, name in names), names


def test_a_service_with_keys_asks_for_one_and_then_answers(
    open_page: Any, service: Service, listening: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEYS_VARIABLE, "sesame")
    with listening(create_api(service.gateway)) as address:
        page = open_page(address)
        page.until("document.getElementById('status').textContent === 'locked'")
        assert page.js("document.activeElement.id") == "key"
        assert page.js("document.getElementById('error').hidden")
        for key in ("abracadabra", "sesame"):
            page.js(f"document.getElementById('key').value = {key!r}")
            page.click("#locked button")
            if key != "sesame":
                page.until("document.getElementById('error').textContent.includes('wrong')")
        page.settled()
        assert page.js("document.getElementById('error').hidden")
        assert page.js("document.getElementById('locked').hidden")
        assert page.text("answer")
