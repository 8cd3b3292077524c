"""The signature of webhooks, and how long they wait."""

import base64

from app.webhooks.deliver import LONGEST_PAUSE_SECONDS, TIMEOUT_SECONDS, pause_seconds, signature
from app.webhooks.queue import GIVE_UP_DAYS, LEASE_SECONDS


def test_the_signature_is_that_of_the_specification() -> None:
    """The libraries of Standard Webhooks are tested with this example."""
    signed = signature(
        base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "1614265330",
        b'{"test": 2432232314}',
    )
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_pauses_grow_and_are_spread() -> None:
    for attempts in range(1, 12):
        several = {pause_seconds(attempts) for _ in range(20)}
        assert len(several) > 1
        assert max(several) < min(pause_seconds(attempts + 1) for _ in range(20)) * 1.25
    assert max(pause_seconds(attempts) for attempts in (50, 10_000)) <= 1.25 * LONGEST_PAUSE_SECONDS


def test_a_receiver_that_is_back_after_a_weekend_gets_what_it_missed() -> None:
    attempts, waited = 0, 0.0
    while waited < GIVE_UP_DAYS * 86_400:
        attempts += 1
        waited += min(5 * 2 ** (attempts - 1), LONGEST_PAUSE_SECONDS)
    assert 20 < attempts < 40


def test_a_lease_outlasts_a_round() -> None:
    assert LEASE_SECONDS > 3 * TIMEOUT_SECONDS
