"""Where whole objects are put and listed: a folder, or object storage through pyarrow's filesystems.

    s3://bucket/prefix/run?endpoint_override=host:port&scheme=http&region=...   as pyarrow's FileSystem.from_uri has it

Credentials come from the environment alone (the standard AWS variables) and are never written. An object is whole or
absent. pyarrow has no conditional put, so object storage cannot say who was first: `exclusive` is False there.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from evocluster.errors import ConfigError, StoreError
from evocluster.store.files import unwritable, write_atomic, write_whole

_URI = re.compile(r"[a-z][a-z0-9+.-]+://")
SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "file")


class Place(Protocol):
    """A folder of objects. All methods raise errors.StoreError when it cannot be reached."""

    exclusive: bool
    """Whether `create` of two at once succeeds for one."""

    def names(self, prefix: str) -> dict[str, float]:
        """Object name -> when it was last modified, by the place's own clock (seconds), below a folder of the place."""
        ...

    def read(self, name: str) -> bytes | None:
        """The object; None where there is none."""
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write or replace an object; it is there for everybody when this returns."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless it is there; where the place is not `exclusive`, two at once may both succeed."""
        ...

    def delete(self, name: str) -> None:
        """Take an object away, if it is there."""
        ...


class Directory:
    """A local or shared folder."""

    exclusive = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self, prefix: str) -> dict[str, float]:
        """See Place.names."""
        try:
            found = [path for path in (self._path / prefix).iterdir() if not path.name.endswith(".tmp")]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise unwritable(self._path / prefix, error) from error
        try:
            modified: dict[str, float] = {}
            for path in found:
                with suppress(FileNotFoundError):  # deleted since it was listed
                    modified[f"{prefix}/{path.name}"] = path.stat().st_mtime
            return modified
        except OSError as error:
            raise unwritable(self._path / prefix, error) from error

    def read(self, name: str) -> bytes | None:
        """See Place.read."""
        try:
            return (self._path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unwritable(self._path / name, error) from error

    def put(self, name: str, content: bytes) -> None:
        """See Place.put."""
        self._make(name)
        write_atomic(self._path / name, content.decode())

    def create(self, name: str, content: bytes) -> bool:
        """See Place.create: O_EXCL, which is atomic over NFS too."""
        self._make(name)
        try:
            handle = os.open(self._path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                write_whole(handle, content, 0)
                os.fsync(handle)
            except OSError:
                (self._path / name).unlink(missing_ok=True)
                raise
            finally:
                os.close(handle)
        except FileExistsError:
            return False
        except OSError as error:
            raise unwritable(self._path / name, error) from error
        return True

    def delete(self, name: str) -> None:
        """See Place.delete."""
        try:
            (self._path / name).unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self._path / name, error) from error

    def _make(self, name: str) -> None:
        try:
            (self._path / name).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self._path / name, error) from error


class Bucket:
    """A prefix on object storage. One thread or several may use it."""

    exclusive = False

    def __init__(self, uri: str) -> None:
        """Raises: errors.ConfigError when the URI is not one."""
        import pyarrow as pa
        from pyarrow import fs

        self.uri = uri
        try:
            self._fs, path = fs.FileSystem.from_uri(uri)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ConfigError(
                f"{uri!r} names no object storage: {error}; allowed: {', '.join(f'{name}://' for name in SCHEMES)}, "
                "e.g. s3://bucket/prefix/run?region=eu-central-1"
            ) from error
        self._path = path.strip("/") if not uri.startswith("file:") else path.rstrip("/")

    def names(self, prefix: str) -> dict[str, float]:
        """See Place.names; also of folders below."""
        from pyarrow import fs

        root = f"{self._path}/{prefix}" if prefix else self._path
        try:
            found = self._fs.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True))
        except OSError as error:
            raise self._failed("list", prefix, error) from error
        return {
            one.path.removeprefix(f"{self._path}/"): one.mtime_ns / 1e9
            for one in found
            if one.type == fs.FileType.File and one.mtime_ns is not None
        }

    def read(self, name: str) -> bytes | None:
        """See Place.read."""
        try:
            with self._fs.open_input_stream(f"{self._path}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("read", name, error) from error

    def put(self, name: str, content: bytes) -> None:
        """See Place.put."""
        try:
            with self._fs.open_output_stream(f"{self._path}/{name}") as stream:
                stream.write(content)
        except OSError as error:
            raise self._failed("write", name, error) from error

    def create(self, name: str, content: bytes) -> bool:
        """See Place.create."""
        if self.read(name) is not None:
            return False
        self.put(name, content)
        return True

    def delete(self, name: str) -> None:
        """See Place.delete."""
        try:
            self._fs.delete_file(f"{self._path}/{name}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed("delete", name, error) from error

    def _failed(self, what: str, name: str, error: Any) -> StoreError:
        return StoreError(
            f"cannot {what} {name!r} of {shown(self.uri)!r}: {error}; what was saved before is intact: check the "
            "bucket, the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) and the network, then resume"
        )


def is_uri(place: object) -> bool:
    """Whether this names object storage, not a folder."""
    return isinstance(place, str) and bool(_URI.match(place))


def below(uri: str, name: str) -> str:
    """The URI of something in this place."""
    path, mark, query = uri.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def shown(uri: str) -> str:
    """The URI without credentials that somebody may have written into it."""
    return re.sub(r"//[^/@]*@", "//", uri)
