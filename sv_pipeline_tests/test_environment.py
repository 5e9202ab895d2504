"""Environment variables as people set them: read, or refused with their name."""

from __future__ import annotations

import pytest

from sv_pipeline.environment import is_switched_on, number_in, whole_number_in
from sv_pipeline.errors import ConfigError
from sv_pipeline.grid import Box
from sv_pipeline.memory import MEMORY_VARIABLE, memory_budget

NAME = "SV_PIPELINE_TRIED"


@pytest.mark.parametrize(("text", "value"), [("", 5.0), ("  ", 5.0), ("7", 7.0), (" 7.5 ", 7.5), ("1e3", 1000.0)])
def test_a_number_is_read(monkeypatch: pytest.MonkeyPatch, text: str, value: float) -> None:
    monkeypatch.setenv(NAME, text)
    assert number_in(NAME, 5.0, meaning="seconds") == value


@pytest.mark.parametrize("text", ["15m", "nan", "inf", "-1", "0", "1,5", "none"])
def test_what_is_no_number_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(NAME, text)
    with pytest.raises(ConfigError, match=f"{NAME} is '{text}'.*number of seconds, such as 5"):
        number_in(NAME, 5.0, meaning="seconds")


@pytest.mark.parametrize("text", ["0", "0.0", " 0 "])
def test_zero_is_a_number_where_it_may_be(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(NAME, text)
    assert number_in(NAME, 5.0, meaning="seconds", may_be_zero=True) == 0
    with pytest.raises(ConfigError, match="number of seconds"):
        number_in(NAME, 5.0, meaning="seconds")


def test_a_fraction_is_no_whole_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "2.0")
    assert whole_number_in(NAME, 5, meaning="chunks") == 2
    monkeypatch.setenv(NAME, "2.5")
    with pytest.raises(ConfigError, match="whole number of chunks"):
        whole_number_in(NAME, 5, meaning="chunks")


@pytest.mark.parametrize("text", ["off", "OFF", " Off ", "false", "False", "no", "0"])
def test_a_switch_is_off_however_that_is_written(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(NAME, text)
    assert not is_switched_on(NAME)


@pytest.mark.parametrize("text", ["", "on", "ON", "true", "yes", "1"])
def test_a_switch_is_on_by_default(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(NAME, text)
    assert is_switched_on(NAME)


@pytest.mark.parametrize("text", ["of", "disabled", "2"])
def test_what_is_neither_on_nor_off_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(NAME, text)
    with pytest.raises(ConfigError, match=f"{NAME}.*on or off"):
        is_switched_on(NAME)


def test_a_memory_budget_is_at_most_that_of_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, "99999999999999999999")
    with pytest.raises(ConfigError, match=f"{MEMORY_VARIABLE} is .* MiB, which no machine has"):
        memory_budget()
    monkeypatch.setenv(MEMORY_VARIABLE, "1000000000")
    volume = Box.of((0, 0, 0), (200_000, 130_000, 13_000))
    assert len(list(volume.slabs((64, 64, 64), memory_budget()))) == 1
