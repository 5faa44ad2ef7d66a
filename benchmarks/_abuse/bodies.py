"""Requests whose bodies, headers or manners are the abuse; the pictures in them are good.

Knows HTTP and JSON as bytes; knows nothing of what the service makes of them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from _abuse.pictures import MIMES, good
from _abuse.sending import CHAT, JSON, ROUTE, Request, head, post

Make = Callable[[Random], Request]
MEGABYTES = 24_000_000  # just below what is read
SLOW_S = 2.0  # between two pieces
QUESTION = b'{"messages":[{"role":"user","content":"a"}]'  # and more


def asked(random: Random, *pictures: bytes, **more: Any) -> dict[str, Any]:
    """Return a chat request about pictures, labelled as whatever."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _url(random, picture)}} for picture in pictures
    ]
    parts.append({"type": "text", "text": "what colour is the biggest shape?"})
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 2, **more}


def about(make: Callable[[Random], bytes]) -> Make:
    """Return what asks about such pictures, mostly one, in every way there is."""

    def request(random: Random) -> Request:
        pictures = [make(random) for _ in range(random.choice([1, 1, 1, 1, 2, 8]))]
        if sum(map(len, pictures)) > MEGABYTES // 2:
            pictures = pictures[:1]
        body = asked(random, *pictures, stream=random.random() < 0.3)
        return post(random.choice([CHAT, CHAT, ROUTE]), json.dumps(body).encode())

    return request


def _url(random: Random, picture: bytes) -> str:
    mime = random.choice(MIMES)
    return f"data:{mime};base64,{base64.b64encode(picture).decode()}"


def base64_of_all_kinds(random: Random) -> Request:
    """Broken, wrapped, doubled and other base64, and addresses of other schemes."""
    code = base64.b64encode(good(random)).decode()
    at = random.randrange(len(code))
    url = random.choice(
        [
            "data:image/png;base64," + code[:at],
            "data:image/png;base64," + "\n".join(code),
            "data:image/png;base64," + code[:at] + random.choice("=%@é\0 \u2028") + code[at:],
            "data:image/png;base64," + code.replace("+", "-").replace("/", "_"),
            "data:image/png;base64;base64," + code,
            "data:" + ";a=b" * random.randrange(2_000) + ";base64," + code,
            "data:image/png," + code, code, "", "data:", "data:;base64,",
            "file:///etc/passwd", "http://169.254.169.254/latest/", "javascript:alert(1)",
            "data:image/png;base64," + " " * 2_000_000 + code,
        ]
    )  # fmt: skip
    body = asked(random, b"")
    body["messages"][0]["content"][0]["image_url"]["url"] = url
    return post(CHAT, json.dumps(body).encode())


def validation_bomb(random: Random) -> Request:
    """Very many wrong values: each could become a complaint of its own."""
    n = random.choice([10_000, 99_000, 500_000, 5_000_000])
    wrong = random.choice(["0", '""', "{}", "[]", "null", '{"role":"user"}', '"\\u0000"'])
    inside = ",".join([wrong] * (n // len(wrong)))
    body = random.choice(
        [
            f'{{"messages":[{inside}]}}',
            f'{{"messages":[{{"role":"user","content":[{inside}]}}]}}',
            f'{{"messages":[{{"role":"user","content":"a"}}],"stop":[{inside}]}}',
            "{" + ",".join(f'"k{k}":{wrong}' for k in range(n // 20)) + "}",
            f'{{"messages":[{{"role":"assistant","content":"a","tool_calls":[{inside}]}}]}}',
        ]
    )
    return post(CHAT, body.encode())


def deep_nesting(random: Random) -> Request:
    """Brackets in brackets."""
    n = random.choice([100, 200, 300, 10_000, 90_000, 1_000_000])
    return post(
        CHAT,
        random.choice(
            [
                b"[" * n, b"[" * n + b"]" * n, b'{"messages":' * n + b"1" + b"}" * n,
                QUESTION + b',"metadata":' + b"[" * n + b"]" * n + b"}",
                QUESTION + b',"logit_bias":' + b'{"a":' * n + b"1" + b"}" * n + b"}",
            ]
        ),
    )  # fmt: skip


def huge_number(random: Random) -> Request:
    """Numbers that no type holds."""
    number = random.choice(
        ["9" * 5_000, "9" * 400_000, "1e999", "-1e999", "1e-999", "NaN", "Infinity", "-0",
         "0." + "3" * 10_000, "9" * 19, "-" + "9" * 19, "1e5", "2.0", "18446744073709551616"]
    )  # fmt: skip
    field = random.choice(
        ["max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "n", "messages",
         "routing.scale", "routing.max_visual_tokens", "routing.max_harm", "metadata", "user"]
    )  # fmt: skip
    outer, _, inner = field.partition(".")
    held = f'{{"{inner}":{number}}}' if inner else number
    return post(CHAT, f'{{"{outer}":{held},"messages":[{{"role":"user","content":"a"}}]}}'.encode())


def odd_text(random: Random) -> Request:
    """Invalid UTF-8, NUL, lone surrogates, escapes, words of the model's own, very long text."""
    text = random.choice(
        [
            b"\xff\xfe\xfa", b"\xc0\xaf", b"\xed\xa0\x80", b"\0", b"\\u0000", b"\\ud800",
            b"\\udfff", b"\\ud83d\\ude00" * 1_000, b"\\u0000" * 1_000,
            "\u202e\u0301".encode() * 5_000,
            b"<image>" * 500, b"</s><s>[INST]", b"a" * 1_000_000, b"a b " * 1_000_000,
            "\U0010ffff".encode() * 100_000, b"\\u00e9" * 900_000, b"\\x41", b"\n\t",
            random.randbytes(200),
        ]
    )  # fmt: skip
    place = random.choice(
        [
            b'{"messages":[{"role":"user","content":"%s"}]}',
            b'{"messages":[{"role":"user","content":"a"}],"stop":"%s","max_tokens":2}',
            b'{"messages":[{"role":"user","content":"a"}],"model":"%s"}',
            b'{"messages":[{"role":"user","content":"a"}],"%s":1}',
            b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"%s"}}]}]}',
        ]
    )
    return post(random.choice([CHAT, ROUTE]), place.replace(b"%s", text))


def any_json(random: Random) -> Request:
    """JSON that is nothing in particular, doubled members included."""

    def value(depth: int) -> Any:
        kind = random.randrange(9 if depth else 6)
        words = ["messages", "role", "user", "content", "type", "text", "image_url", "routing", ""]
        if kind == 6:
            return [value(depth - 1) for _ in range(random.randrange(4))]
        if kind > 6:
            return {random.choice(words): value(depth - 1) for _ in range(random.randrange(5))}
        return random.choice([None, True, False, 0, -1, 1.5, 2**70, *words])

    body = json.dumps(value(5))
    if random.random() < 0.2:
        body = body.replace('"role"', '"role":1,"role"')
    path = random.choice([CHAT, ROUTE, "/v1/feedback"])
    return post(path, body.encode())


def half_sent(random: Random) -> Request:
    """A body that ends too early: the sender leaves, or waits to be told."""
    whole = json.dumps(asked(random, good(random))).encode()
    length = random.choice([len(whole), 20_000_000, 25_000_000])
    part = whole[: random.randrange(len(whole))]
    leaves = random.random() < 0.6
    return Request([head("POST", CHAT, JSON, length), part, random.random()], leaves)


def slow_body(random: Random) -> Request:
    """A body that comes in pieces, with its length said or not."""
    whole = json.dumps(asked(random, good(random))).encode()
    chunked = random.random() < 0.5
    step = len(whole) // random.randint(2, 5) + 1

    def pieces() -> Iterator[bytes | float]:
        if chunked:
            yield head("POST", CHAT, {**JSON, "transfer-encoding": "chunked"})
        else:
            yield head("POST", CHAT, JSON, len(whole))
        for at in range(0, len(whole), step):
            piece = whole[at : at + step]
            yield b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece
            yield SLOW_S * random.random()
        yield b"0\r\n\r\n" if chunked else b""

    return Request(pieces())


def large_body(random: Random) -> Request:
    """Megabytes of base64, text or nothing, below the limit and above, with a length or without."""
    n = random.choice([1_000_000, MEGABYTES, 26_000_000, 40_000_000])
    filling = random.choice([b"A", b" ", b"x"]) * n
    body = b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"'
    body += b"data:image/png;base64," + filling + b'"}},{"type":"text","text":"a"}]}]}'
    if random.random() < 0.5:
        return post(CHAT, body)
    start = head("POST", CHAT, {**JSON, "transfer-encoding": "chunked"})
    return Request([start, b"%x\r\n" % len(body), body, b"\r\n0\r\n\r\n"])


def wrong_length(random: Random) -> Request:
    """Lengths that are not the body's, or no lengths."""
    body = json.dumps(asked(random, good(random))).encode()
    said = random.choice(["-1", "0", "1", "1e3", "0x10", "99999999999999999999", "", "5, 5", " 7 "])
    twice = {"content-length": said, "Content-Length": str(len(body))}
    headers = random.choice(
        [{"content-length": said}, twice, {"content-length": said, "transfer-encoding": "chunked"},
         {"transfer-encoding": "gzip, chunked"}, {"expect": "100-continue", "content-length": said}]
    )  # fmt: skip
    # What a wrong length leaves waiting is given up by the sender.
    return Request([head("POST", CHAT, JSON | headers), body, 0.3], leaves=True, is_http=False)


def many_headers(random: Random) -> Request:
    """Very many headers, very long ones, and such as name other things."""
    odd = random.choice(
        [
            {f"x-{n}": "a" for n in range(random.choice([100, 2_000]))},
            {"x-long": "a" * random.choice([8_000, 60_000, 1_000_000])},
            {"x-request-id": random.choice(["a" * 5_000, "a\tb", "../..", "é", "%0d%0aa: b"])},
            {"x-request-timeout-seconds": "0", "x-request-disconnect-disabled": "?1"},
            {"authorization": random.choice(["Bearer", "Bearer " + "a" * 9_000, "\xff"])},
            {"origin": "https://evil.example"}, {"content-type": "a" * 10_000},
            {"accept": "*/*;q=" + "9" * 9_000}, {"cookie": "a=b; " * 5_000},
            {"x-forwarded-for": "1.2.3.4, " * 1_000}, {"range": "bytes=0-1,2-3,-1"},
        ]
    )  # fmt: skip
    body = json.dumps(asked(random, good(random))).encode()
    return Request([head("POST", CHAT, JSON | odd, len(body)), body], is_http=False)


def endless_head(random: Random) -> Request:
    """Forty megabytes before the body: one header, many, or an address."""
    body = random.choice([b"x: " + b"a" * 40_000_000, b"a: b\r\n" * 6_000_000])
    start = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n"
    if random.random() < 0.3:
        start, body = b"GET /", b"a" * 40_000_000
    return Request([start, *(body[at : at + 65_536] for at in range(0, len(body), 65_536))],
                   is_http=False)  # fmt: skip


def long_path(random: Random) -> Request:
    """Paths that are long, lead upwards, or say no character."""
    path = random.choice(
        [
            "/" + "a" * random.choice([1_000, 60_000, 1_000_000]), "/v1" + "/.." * 1_000,
            "/pictures/../../../etc/passwd", "/pictures/%2e%2e/%2e%2e/settings.py",
            "/v1/models/" + "%00", "/v1/models/" + "%ff%fe", "/v1/models/" + "é" * 99,
            "/" * 50_000, "/v1/models?" + "a=b&" * 5_000, "//evil.example/", "/pictures/%00.png",
            "*", "http://evil.example/v1/models", "/v1/models/" + "m3-9" * 9_000,
        ]
    )  # fmt: skip
    method = random.choice(["GET", "GET", "HEAD", "OPTIONS", "TRACE", "DELETE", "PUT", "BREW"])
    return Request([head(method, path, {})], is_http=False)


def packed(random: Random) -> Request:
    """Compressed bodies, bombs among them."""
    body = json.dumps(asked(random, good(random))).encode()
    packed_body = gzip.compress(random.choice([body, bytes(50_000_000)]), 1)
    coding = random.choice(["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity"])
    return post(CHAT, packed_body, JSON | {"content-encoding": coding})


def no_http(random: Random) -> Request:
    """What is no HTTP at all."""
    start = random.choice(
        [random.randbytes(300), b"\x16\x03\x01\x02\0\x01\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
         b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n\r\n", b"\r\n" * 10_000 + b"x\r\n\r\n",
         b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"POST /v1/route HTTP/1.1\r\n"]
    )  # fmt: skip
    return Request([start, 0.2], leaves=True, is_http=False)


BODIES: dict[str, Make] = {
    "base64": base64_of_all_kinds, "validation_bomb": validation_bomb, "deep_nesting": deep_nesting,
    "huge_number": huge_number, "odd_text": odd_text, "any_json": any_json, "half_sent": half_sent,
    "slow_body": slow_body, "large_body": large_body, "wrong_length": wrong_length,
    "many_headers": many_headers, "endless_head": endless_head, "long_path": long_path,
    "packed": packed, "no_http": no_http,
}  # fmt: skip
