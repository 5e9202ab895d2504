"""A secret is masked wherever it stands, and what is none is left as it is."""

from __future__ import annotations

import json
import logging
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline import redaction
from sv_pipeline.errors import ConfigError, DamagedError, SvPipelineError
from sv_pipeline.redaction import redacted, redacted_value, remember, scrub

PLACES = (
    "https://me:{}@host.org/seg",
    "https://{}@host.org/seg",
    "https://host.org/seg/?token={}",
    "https://host.org/seg?x=1&access_token={}&y=2",
    "https://storage.googleapis.com/b/o?X-Goog-Credential=a%40b&X-Goog-Signature={}",
    "https://b.s3.amazonaws.com/k?X-Amz-Signature={}&X-Amz-Expires=9",
    "https://host.org/seg?key={}",
    '{{"driver":"http","base_url":"https://h","headers":["Authorization: Bearer {}"]}}',
    '{{"driver":"http","base_url":"https://h","headers":["Cookie: sid={}; theme=dark"]}}',
    '{{"driver":"http","base_url":"https://h","headers":["X-Api-Key: {}"]}}',
    '{{"driver":"s3","aws_credentials":{{"secret_access_key":"{}"}}}}',
)
"""Where a secret may stand in a field of a configuration."""
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~"
secrets = st.text(LETTERS, min_size=10, max_size=40).map(lambda text: "Zq7" + text + "x9")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())


@pytest.mark.parametrize("place", PLACES)
@given(secret=secrets)
def test_a_secret_is_masked_in_every_form_in_which_a_place_is_quoted(place: str, secret: str) -> None:
    redaction._known.clear()
    text = place.format(secret)
    for quoted in (
        text,
        json.dumps({"kvstore": text}),
        f"[tensorstore_spec='{json.dumps(text)}']",
        f"cannot open {text}: no",
    ):
        assert secret not in redacted(quoted)
    remember({"source": {"segmentation": text}})
    for quoted in (text, quote(text, safe=""), quote(text), f"only {secret} of it", secret):
        assert secret not in redacted(quoted)
    assert secret not in json.dumps(redacted_value({"a": [text, {"b": text}]}))


@pytest.mark.parametrize("place", PLACES)
def test_errors_their_causes_and_log_records_do_not_show_it(place: str, caplog: pytest.LogCaptureFixture) -> None:
    secret = "Zq7-a-secret-x9"
    text = place.format(secret)
    for kind in (SvPipelineError, ConfigError, DamagedError):
        error = kind(f"cannot read {text}.", remedy=f"Look at {text}.")
        error.advise(error.remedy, repeat=f"Then read {text} again.")
        assert secret not in f"{error} {error!r} {error.message} {error.remedy}"
    raised = RuntimeError(text)
    raised.__cause__ = ValueError(f"UNAVAILABLE: {text}")
    logging.getLogger("sv_pipeline.somewhere").error("reading %s", text, exc_info=raised)
    scrub(raised)
    assert secret not in f"{raised} {raised.__cause__}"
    assert "reading" in caplog.text
    assert secret not in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "gs://bucket/a@b/c",
        "file:///a/b@c.npz#segmentation",
        "http://127.0.0.1:8080/x@v1/seg",
        "/a/b.npz#key",
        '{"key": "16_16_40", "author": "me", "encoding": "raw"}',
        "operation 7 of graph small: 3 tokens of 5",
        "https://host/seg?x=1&y=2",
        "file:///x/|ocdbt:@v3/seg/",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    remember(text)
    assert redacted(text) == text
    assert not redaction._known
