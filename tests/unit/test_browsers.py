"""What keeps web pages out: which hosts, origins and content types are served, and the headers of every answer."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.fixtures.sending import problem

PORT = 8000
TELEMETRY = "/v1/telemetry"
JSON = {"Content-Type": "application/json"}
EVIL = "http://evil.example"
OURS = f"http://127.0.0.1:{PORT}"


async def clients(hosts: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client of a service that has no database, which these answers do not need."""
    app = create_app(Settings(database_url="postgresql://127.0.0.1:1/nowhere", hosts=hosts))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url=OURS) as client:
        yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async for client in clients():
        yield client


@pytest.mark.parametrize("form", ["{}", "{}:8000", "{}:443", "{}."])
@pytest.mark.parametrize("name", ["localhost", "LocalHost", "127.0.0.1", "10.1.2.3", "wattline", "Wattline.EXAMPLE"])
async def test_addresses_localhost_and_the_names_of_the_setting_are_served(name: str, form: str) -> None:
    async for client in clients("wattline, wattline.example."):
        answer = await client.get("/health/live", headers={"Host": form.format(name)})
        assert answer.status_code == httpx.codes.OK, answer.text


@pytest.mark.parametrize("host", ["[::1]", "[::1]:8000", "[2001:db8::1]:80", "[::ffff:127.0.0.1]"])
async def test_addresses_of_version_6_are_served(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/health/live", headers={"Host": host})).status_code == httpx.codes.OK


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "wattline", "localhost.evil.example", "127.0.0.1.evil.example"),
        *(
            "evil.localhost",
            "localhost:8000.evil.example",
            "user@localhost",
            "localhost:80:80",
            "::1",
            "[evil.example]",
        ),
        *("[::1].evil.example", "2130706433", "127.1", "localhost..", "a,localhost", "local host", "\u00e9", ":8000"),
    ],
)
async def test_any_other_host_is_refused_whatever_is_asked(client: httpx.AsyncClient, host: str) -> None:
    headers = [(b"Host", host.encode())]
    for method, path in (
        ("GET", "/"),
        ("GET", "/health/live"),
        ("HEAD", "/"),
        ("GET", "/nowhere"),
        ("OPTIONS", TELEMETRY),
    ):
        answer = await client.request(method, path, headers=headers)
        assert answer.status_code == httpx.codes.MISDIRECTED_REQUEST, (method, path)
        assert "access-control-allow-origin" not in answer.headers
    document = problem(await client.post(TELEMETRY, content=b"[]", headers=headers), 421, "misdirected_request")
    assert "WATTLINE_HOSTS" in document["detail"]


async def test_of_two_hosts_each_has_to_be_ours(client: httpx.AsyncClient) -> None:
    for hosts in ("localhost", "evil.example"), ("evil.example", "localhost"):
        answer = await client.get("/health/live", headers=[("Host", host) for host in hosts])
        problem(answer, 421, "misdirected_request")


# As browsers send them, and gateways, which send neither header.
OWN: list[dict[str, str]] = [
    {},
    {"Origin": OURS},
    {"Origin": OURS, "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Host": "LOCALHOST:8000", "Origin": "http://localhost:8000"},
    {"Host": "[::1]:8000", "Origin": "http://[::1]:8000"},
    # A proxy that speaks TLS.
    {"Host": "wattline.example", "Origin": "https://wattline.example", "Sec-Fetch-Site": "same-origin"},
]
FOREIGN: list[dict[str, str]] = [
    {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"},
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "anything"},
    # Other ports and names of the same machine are other origins.
    {"Origin": "http://127.0.0.1:9000", "Sec-Fetch-Site": "same-site"},
    {"Origin": "http://localhost:8000"},
    {"Origin": "http://127.0.0.1"},
    {"Host": "", "Origin": "null"},
]


async def test_a_page_of_another_origin_may_not_write() -> None:
    async for client in clients("wattline.example"):
        for given in OWN:
            problem(await client.post(TELEMETRY, content=b"{", headers=JSON | given), 400, "malformed_body")
        for given in FOREIGN:
            for path in TELEMETRY, "/v1/ingestion/mapping", "/nowhere":
                problem(await client.post(path, content=b"{", headers=JSON | given), 403, "cross_site")
            for method in "OPTIONS", "DELETE", "PUT", "PATCH":
                problem(await client.request(method, TELEMETRY, headers=given), 403, "cross_site")


async def test_what_a_foreign_page_reads_is_kept_from_it_by_the_browser(client: httpx.AsyncClient) -> None:
    # A link from a foreign page to the dashboard works; only a script that may not read the answer gets none.
    for path in "/", "/health/live":
        answer = await client.get(path, headers={"Origin": EVIL, "Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == httpx.codes.OK
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


async def test_no_call_takes_a_body_without_its_content_type(client: httpx.AsyncClient) -> None:
    # These are the types that a page may send without asking first, in the forms in which it may write them.
    unasked = (
        "",
        "text/plain",
        "text/plain;application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    )
    calls = [
        (method.upper(), path)
        for path, methods in (await client.get("/schema")).json()["paths"].items()
        for method in methods
        if method != "get"
    ]
    assert len(calls) >= 6
    for method, path in calls:
        for media_type in unasked:
            headers = {"Content-Type": media_type} if media_type else {}
            answer = await client.request(method, path, content=b'{"meterId": "M1"}', headers=headers)
            problem(answer, 415, "unsupported_media_type")


async def test_every_answer_is_protected_in_a_browser(client: httpx.AsyncClient) -> None:
    asked: list[tuple[int, str, str, dict[str, Any]]] = [
        (200, "GET", "/", {}),
        (200, "HEAD", "/", {}),
        (200, "GET", "/health/live", {}),
        (200, "GET", "/schema", {}),
        (204, "OPTIONS", TELEMETRY, {}),
        (400, "GET", "/v1/analytics/alerts", {"params": {"limit": 0}}),
        (403, "POST", TELEMETRY, {"headers": {"Origin": EVIL}}),
        (404, "GET", "/nowhere", {}),
        (405, "DELETE", TELEMETRY, {}),
        (415, "POST", TELEMETRY, {}),
        (421, "GET", "/", {"headers": {"Host": "evil.example"}}),
        (503, "GET", "/health/ready", {}),
    ]
    for status, method, path, more in asked:
        answer = await client.request(method, path, **more)
        assert answer.status_code == status
        # get_list: a header that stands twice would say two things.
        (policy,) = answer.headers.get_list("content-security-policy")
        assert policy.startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in policy
        assert [
            answer.headers.get_list(name)
            for name in (
                *("x-content-type-options", "referrer-policy"),
                *("cross-origin-resource-policy", "cross-origin-opener-policy"),
            )
        ] == [["nosniff"], ["no-referrer"], ["same-origin"], ["same-origin"]]
        assert answer.headers["x-request-id"]
