import httpx


async def test_it_serves(client: httpx.AsyncClient, engine: str) -> None:
    answer = await client.get("/health/ready")
    assert answer.json()["engine"] == engine
    assert answer.headers["x-request-id"]
