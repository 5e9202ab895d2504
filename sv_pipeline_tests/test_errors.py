"""Errors of ours: what they say, and that they say the same in another process."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from sv_pipeline.defects import DefectError
from sv_pipeline.errors import DamagedError, SvPipelineError
from sv_pipeline.operations.errors import FinishedError
from sv_pipeline.operations.refusal import EditRefused, Reason


def classes_below(of: type[SvPipelineError]) -> Iterator[type[SvPipelineError]]:
    yield of
    for one in of.__subclasses__():
        yield from classes_below(one)


def raised(kind: type[SvPipelineError]) -> SvPipelineError:
    advice: dict[str, Any] = {"remedy": "Mend it.", "repeat": "Then run again."}
    if issubclass(kind, DefectError):
        return kind(ValueError("no"))
    if issubclass(kind, DamagedError):
        return kind("it is broken", remedy="Mend it.")
    if issubclass(kind, FinishedError):
        return kind("it has ended", complete=True)
    if issubclass(kind, EditRefused):
        return kind(Reason.LOCKED, "it is locked", **advice)
    return kind("it is broken", **advice)


@pytest.mark.parametrize("kind", sorted(set(classes_below(SvPipelineError)), key=lambda kind: kind.__name__))
def test_an_error_of_another_process_is_as_it_was_raised(kind: type[SvPipelineError]) -> None:
    error = raised(kind)
    error.operation_id = 7
    error.add_note("a note")
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is kind
    assert str(found) == str(error)
    assert found.__dict__ == error.__dict__
    assert (found.kind, found.remedy, found.repeat) == (error.kind, error.remedy, error.repeat)


def test_new_advice_takes_the_place_of_the_old() -> None:
    error = raised(SvPipelineError)
    error.advise("Wait.")
    assert (str(error), error.remedy, error.repeat) == ("it is broken Wait.", "Wait.", None)
