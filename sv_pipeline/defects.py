"""Unexpected errors: one sentence for the user, and a file with the details."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from sv_pipeline.errors import SvPipelineError
from sv_pipeline.redaction import redacted, scrub

__all__ = ["DefectError", "traceback_of"]

FOLDER_VARIABLE = "SV_PIPELINE_LOGS"
"""Variable that names the folder of the detail files; default: ``sv_pipeline-<user id>`` in the temporary folder."""


class DefectError(SvPipelineError):
    """An error that is a defect of sv_pipeline; the user should report it with the file that the message names.

    Parameters
    ----------
    error
        The exception. Its traceback, with secrets masked, goes to a file that only its owner can read.
    """

    kind = "defect"

    def __init__(self, error: BaseException) -> None:
        self.file = _write_down(error)
        said = " ".join(str(error).split())
        super().__init__(
            f"sv_pipeline met an unexpected error, {type(error).__name__}"
            f"{': ' + said[:200] if said else ''}. This is a defect of sv_pipeline.",
            remedy=f"Please report it with the details in {self.file}."
            if self.file
            else "Please run the command with --debug, and report the error with the details that it prints.",
        )


def traceback_of(error: BaseException) -> str:
    """Format the traceback of an error, with secrets masked."""
    scrub(error)
    return redacted("".join(traceback.format_exception(error)))


def _write_down(error: BaseException) -> Path | None:
    folder = Path(os.environ.get(FOLDER_VARIABLE) or Path(tempfile.gettempdir()) / f"sv_pipeline-{os.getuid()}")
    now = datetime.now(UTC)
    path = folder / f"defect_{now:%Y%m%dT%H%M%S}_{uuid4().hex[:8]}.txt"
    lines = [
        f"time     {now.isoformat()}",
        f"command  {redacted(' '.join(sys.argv))}",
        f"python   {platform.python_version()} on {platform.platform()}",
        "",
        traceback_of(error),
    ]
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines))
    except OSError:
        return None  # a full disk must not hide the original error
    return path
