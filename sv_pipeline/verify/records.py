"""Results of the parts of a verification, in memory or in a folder, so that a killed verification goes on.

In a folder, each part has two files: ``<part>.npz`` with what it hands to other parts, and then ``<part>.json`` with
its findings. Only the second one makes it count as verified.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from sv_pipeline import errors
from sv_pipeline.errors import CorruptionError, DamagedError, SvPipelineError
from sv_pipeline.storage import kv
from sv_pipeline.verify.boundary import Boundary
from sv_pipeline.verify.part_checks import PartResult
from sv_pipeline.verify.report import Finding, Outcome

__all__ = ["FolderRecords", "Records"]


class Records:
    """Results in the memory of this process."""

    def __init__(self) -> None:
        self._results: dict[str, PartResult] = {}

    def done(self) -> set[str]:
        """Return the names of the parts that have a result."""
        return set(self._results)

    def findings(self, part: str) -> PartResult:
        """Return the result of a part; its boundary may be missing."""
        return self._results[part]

    def is_doubtful(self, part: str) -> bool:
        """Whether a part found something, or its record cannot be read."""
        try:
            result = self.findings(part)
        except DamagedError:
            return True
        return result.has_errors or bool(result.strays)

    def boundary(self, part: str) -> Boundary:
        """Return what a part hands to others."""
        return self._results[part].boundary

    def put(self, part: str, result: PartResult) -> None:
        """Keep the result of a part; it replaces an earlier one."""
        self._results[part] = result

    def forget(self, parts: Iterable[str]) -> None:
        """Remove the results of some parts."""
        for part in parts:
            self._results.pop(part, None)

    def clear(self) -> None:
        """Forget all results."""
        self._results.clear()


class FolderRecords(Records):
    """Results in a folder that several processes may share.

    Parameters
    ----------
    url
        The folder. It may not exist yet.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def done(self) -> set[str]:
        """Return the names of the parts that have a result."""
        return {key.removesuffix(".json") for key in kv.list_keys(self.url) if key.endswith(".json")}

    def findings(self, part: str) -> PartResult:
        """Return the result of a part without its boundary."""
        try:
            return _result(json.loads(self._read(f"{part}.json")))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{part}.json", str(error)) from error

    def boundary(self, part: str) -> Boundary:
        """Return what a part hands to others."""
        try:
            return Boundary.from_bytes(self._read(f"{part}.npz"))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(f"{part}.npz", str(error)) from error

    def put(self, part: str, result: PartResult) -> None:
        """Keep the result of a part; it replaces an earlier one."""
        kv.write_bytes(self.url, f"{part}.npz", result.boundary.to_bytes())
        kv.write_bytes(self.url, f"{part}.json", json.dumps(_values(result)).encode())

    def forget(self, parts: Iterable[str]) -> None:
        """Remove the results of some parts."""
        kv.delete_keys(self.url, [f"{part}.json" for part in parts])

    def clear(self) -> None:
        """Remove the folder."""
        kv.delete_prefix(self.url)

    def _read(self, key: str) -> bytes:
        data = kv.read_bytes(self.url, key)
        if data is None:
            raise self._damaged(key, "it is missing")
        return data

    def _damaged(self, key: str, why: str) -> DamagedError:
        return DamagedError(
            f"the record {self.url}{key} of a verification cannot be read: {why}.", remedy=f"Remove {self.url}."
        )


def _values(result: PartResult) -> dict[str, Any]:
    """Values of a result, without its boundary, that can be written as JSON."""
    outcomes = {}
    for name, outcome in result.outcomes.items():
        values = asdict(replace(outcome, owns=None))
        del values["owns"]
        outcomes[name] = values
    failures = {of: [type(error).__name__, str(error)] for of, error in result.failures.items()}
    return {
        "outcomes": outcomes,
        "failures": failures,
        "is_broken": result.is_broken,
        "strays": result.strays,
        "suspects": result.suspects,
        "seconds": result.seconds,
    }


def _result(values: dict[str, Any]) -> PartResult:
    outcomes = {}
    for name, stored in values["outcomes"].items():
        findings = [Finding(**finding) for finding in stored.pop("findings")]
        orders = [tuple(order) for order in stored.pop("orders")]
        outcomes[name] = Outcome(**stored, findings=findings, orders=orders)
    failures = {of: _error(*stored) for of, stored in values["failures"].items()}
    result = PartResult(outcomes, failures, is_broken=values["is_broken"], seconds=values["seconds"])
    result.strays, result.suspects = values["strays"], values["suspects"]
    return result


def _error(kind: str, text: str) -> SvPipelineError:
    found = getattr(errors, kind, CorruptionError)
    return found(text) if isinstance(found, type) and issubclass(found, SvPipelineError) else CorruptionError(text)
