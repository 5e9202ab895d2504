"""Files that only their owner may read, because they may hold secrets. Buckets have their own permissions."""

from __future__ import annotations

import os
from uuid import uuid4

from sv_pipeline.storage import kv
from sv_pipeline.storage.file_guard import local_path

__all__ = ["write_private"]


def write_private(url: str, key: str, data: bytes) -> None:
    """Set a key of a folder durably; on disk, the file gets mode 0600 in a folder of mode 0700, whatever the umask."""
    folder = local_path(kv.as_url(url))
    if folder is None:
        kv.write_bytes(url, key, data)
        return
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)
    draft = folder / f".{key}.{uuid4().hex}.__lock"  # listings do not show names with this suffix
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(folder / key)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
