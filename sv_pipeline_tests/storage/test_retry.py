"""What is tried again, and what is not."""

from __future__ import annotations

import time

import pytest

from sv_pipeline.errors import ConfigError, DamagedError, UnavailableError
from sv_pipeline.patience import PATIENCE_VARIABLE
from sv_pipeline.storage.retry import retry_transport, status_code


class Flaky:
    """Fails some times, then answers."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "answer"


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL"])
def test_transport_errors_are_tried_again(code: str) -> None:
    flaky = Flaky(2, ValueError(f"{code}: something"))
    assert retry_transport(flaky, base_delay=0.001) == "answer"
    assert flaky.calls == 3


@pytest.mark.parametrize("error", [KeyError("UNAVAILABLE"), IndexError("OUT_OF_RANGE: outside"), ValueError("no")])
def test_errors_that_the_storage_did_not_raise_pass_at_once(error: Exception) -> None:
    flaky = Flaky(1, error)
    with pytest.raises(type(error)):
        retry_transport(flaky, base_delay=0.001)
    assert flaky.calls == 1


@pytest.mark.parametrize("code", ["NOT_FOUND", "FAILED_PRECONDITION", "DATA_LOSS", "OUT_OF_RANGE", "INVALID_ARGUMENT"])
def test_what_is_damaged_is_said_at_once(code: str) -> None:
    flaky = Flaky(1, ValueError(f'{code}: Error decoding local file "/a/b/manifest.ocdbt": too short'))
    with pytest.raises(DamagedError, match=r"reading x: /a/b/manifest.ocdbt is damaged or missing") as caught:
        retry_transport(flaky, base_delay=0.001, what="reading x")
    assert (caught.value.code, caught.value.place, status_code(caught.value)) == (code, "/a/b/manifest.ocdbt", code)
    assert flaky.calls == 1


def test_the_time_bounds_the_attempts_and_the_log_names_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "1")
    calls = []

    def hangs() -> None:
        calls.append(1)
        time.sleep(4.2)
        raise ValueError("UNAVAILABLE: connection refused")

    with pytest.raises(UnavailableError, match=f"connection refused.*{PATIENCE_VARIABLE}"):
        retry_transport(hangs, what="reading y")
    assert len(calls) == 1
    assert "s: reading y, no answer so far" in caplog.text


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("PERMISSION_DENIED: UNAVAILABLE: not for you", ConfigError),
        ("UNAUTHENTICATED: who are you", ConfigError),
        ("FAILED_PRECONDITION: x: Not a directory [os_error_code='20']", ConfigError),
        ("RESOURCE_EXHAUSTED: x: No space left on device [os_error_code='28']", UnavailableError),
    ],
)
def test_what_only_the_user_can_change_is_said_at_once(message: str, kind: type[Exception]) -> None:
    flaky = Flaky(1, ValueError(message))
    with pytest.raises(kind, match="reading x: "):
        retry_transport(flaky, base_delay=0.001, what="reading x")
    assert flaky.calls == 1


def test_after_the_last_attempt_the_error_says_what_was_tried_and_why_it_failed() -> None:
    flaky = Flaky(9, ValueError("UNAVAILABLE: connection refused"))
    with pytest.raises(UnavailableError, match=r"reading x: .* 3 attempts.*connection refused") as caught:
        retry_transport(flaky, attempts=3, base_delay=0.001, what="reading x")
    assert caught.value.__cause__ is flaky.error
    assert flaky.calls == 3


def test_status_codes_are_read_from_the_start_of_a_message_only() -> None:
    assert status_code(ValueError("NOT_FOUND: x")) == "NOT_FOUND"
    assert status_code(ValueError("this was INTERNAL: x")) is None
