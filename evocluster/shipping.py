"""What of a config travels to a cluster: the resolved config, the files it names, the user's code, evocluster itself.

    collect(config)        which files, under which names: a Shipment
    Shipment.packed()      one zip, the same bytes for the same files; refused over the cap, or with a secret in it
    own_code()             this evocluster as a zip, so that the same version runs there

Code is what the config names, and what lies beside it within the config's folder: hidden files, environments, run
folders and files that hold keys stay here. Of folders outside (python_path) only the Python files go. Of secrets only
the names of environment variables travel.
"""

from __future__ import annotations

import importlib.util
import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path

import evocluster
from evocluster import __version__
from evocluster import config as configs
from evocluster.complaints import SECRET, Keys
from evocluster.config import SHIPPED, Config
from evocluster.errors import ConfigError
from evocluster.tasks.code import extend_path, is_spec

CONFIG = "evocluster.submitted.yaml"
CACHE = "~/.cache/evocluster/completions"
"""Where completions are kept there, when the config names a folder of this machine."""
RUN_FILES = ("run.json", "front.json", "config.yaml")
"""What a warm start reads of an earlier run."""
KEYS = ("*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "id_rsa*", "id_ed25519*", "credentials*", "*.tfstate")
CODE = (".py", ".yaml", ".yml", ".json", ".toml", ".ini", ".cfg", ".md", ".txt")
"""Files of a code folder that are looked through for keys."""
MOST_FILES = 5000
SHOWN = 5
SHORTEST_SECRET = 8
"""Characters; a shorter value stands in too many files by chance."""
TOKENS = ("RAY_AUTH_TOKEN",)


@dataclass(frozen=True)
class Shipment:
    """What travels, and what to know of it."""

    name: str
    """Of the run."""
    config: str
    """Place of the config in the package."""
    text: str
    """The config itself."""
    files: Mapping[str, Path]
    """Place in the package -> file here."""
    code: frozenset[str]
    """Those of them that came along with code."""
    home: Path
    """The folder here that stands for the folder SHIPPED in the package."""
    needs: tuple[str, ...]
    """Environment variables that must be set on the cluster."""
    notes: tuple[str, ...]
    """What the user should know: what stays here, what must be there."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files.values()) + len(self.text)

    def packed(self, most_bytes: int) -> bytes:
        """The package. Raises: errors.ConfigError over the cap, or where a secret would travel."""
        self._refuse_secrets()
        contents = {self.config: self.text.encode(), **{place: self.files[place].read_bytes() for place in self.files}}
        made = zipped(contents)
        if len(made) > most_bytes:
            largest = sorted(self.files, key=lambda place: -self.files[place].stat().st_size)[:SHOWN]
            said = ", ".join(
                f"{self.files[place]} ({megabytes(self.files[place].stat().st_size)})" for place in largest
            )
            raise ConfigError(
                f"the package has {megabytes(len(made))}; allowed: {megabytes(most_bytes)}. The largest files: {said}. "
                "Put the config and its code into a folder of their own, without what they do not need, or keep large "
                "data on storage that the cluster mounts and name it by its absolute path there"
            )
        return made

    def _refuse_secrets(self) -> None:
        values = {name: os.environ.get(name, "").strip() for name in (*self.needs, *TOKENS)}
        known = {name: value.encode() for name, value in values.items() if len(value) >= SHORTEST_SECRET}
        for place, content in (
            (self.config, self.text.encode()),
            *((p, f.read_bytes()) for p, f in self.files.items()),
        ):
            where = str(self.files.get(place, "the config"))
            for name, value in known.items():
                if value in content:
                    raise ConfigError(
                        f"{where}: holds the value of the environment variable {name!r}, and secrets do not travel; "
                        f"take it out and read os.environ[{name!r}] there, or move the file out of the config's folder"
                    )
            if place in self.code and Path(place).suffix in CODE:
                text = content.decode("utf-8", "replace")
                if found := SECRET.search(text):
                    line = text[: found.start()].count("\n") + 1
                    raise ConfigError(
                        f"{where}:{line}: looks like a secret, and secrets do not travel; name an environment variable "
                        "that holds it (key_env: of a model), or move the file out of the config's folder"
                    )


def collect(config: Config) -> Shipment:
    """What a checked config needs on a cluster. Raises: errors.ConfigError."""
    home = _normal(str(config.root))
    named = configs.paths(config)
    data = dict.fromkeys(file for keys, text in named for file in _data(keys, text))
    sources, installed = _sources(config, named)
    left: list[str] = []
    bases = _bases(config, sources).items()
    code = dict.fromkeys(file for base, whole in bases for file in _tree(base, whole, left))
    files = list(dict.fromkeys([*data, *code]))
    common = Path(os.path.commonpath([home, *(file.parent for file in files)]))
    places = {f"{SHIPPED}/{file.relative_to(common).as_posix()}": file for file in files}

    def place(keys: Keys, text: str) -> str:
        return _place(keys, text, home)

    return Shipment(
        name=config.name,
        config=(Path(SHIPPED) / home.relative_to(common) / CONFIG).as_posix(),
        text=configs.shipped(config, place),
        files=dict(sorted(places.items())),
        code=frozenset(where for where, file in places.items() if file in code and file not in data),
        home=common,
        needs=needs(config),
        notes=tuple(_notes(config, installed, left)),
    )


def needs(config: Config) -> tuple[str, ...]:
    """Names of the environment variables that hold the models' keys."""
    models = config.resolved_models().values()
    return tuple(sorted({name for model in models if (name := getattr(model, "key_env", None))}))


def zipped(contents: Mapping[str, bytes]) -> bytes:
    """A zip that depends on nothing but its contents."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as package:
        for place in sorted(contents):
            entry = zipfile.ZipInfo(place, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            package.writestr(entry, contents[place])
    return made.getvalue()


def own_code() -> bytes:
    """This evocluster, with what it says of itself and needs, as a zip of importable modules."""
    package = Path(evocluster.__file__).parent
    contents = {
        f"evocluster/{file.relative_to(package).as_posix()}": file.read_bytes()
        for file in sorted(package.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    said = ["Metadata-Version: 2.1", "Name: evocluster", f"Version: {__version__}"]
    said += [f"Requires-Dist: {each}" for each in _required() if "extra ==" not in each]
    contents[f"evocluster-{__version__}.dist-info/METADATA"] = ("\n".join(said) + "\n").encode()
    return zipped(contents)


def _required() -> list[str]:
    """What this evocluster says it needs; nothing where it is not installed but only on the path."""
    try:
        return metadata.requires("evocluster") or []
    except metadata.PackageNotFoundError:
        return []


def megabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _data(keys: Keys, text: str) -> Iterator[Path]:
    """The files that a setting names, code left out."""
    if keys in (("python_path", "*"), ("cache", "path")) or is_spec(text):
        return
    path = _normal(text)
    if keys == ("warm_start",):
        yield from (path / name for name in RUN_FILES if (path / name).is_file())
    elif path.is_dir():
        yield from _tree(path, True, [])
    elif path.is_file():
        yield path


def _sources(config: Config, named: Iterable[tuple[Keys, str]]) -> tuple[list[Path], list[str]]:
    """The files of the user's code that the config names, and the modules it names that are installed."""
    folders = [_normal(folder) for folder in config.python_path]
    extend_path(folders)
    sources: list[Path] = []
    installed: list[str] = []
    for _, text in named:
        if not is_spec(text):
            continue
        where = text.rsplit(":", 1)[0]
        if where.endswith(".py"):
            sources.append(_normal(where))
            continue
        found = importlib.util.find_spec(where)
        origin = Path(found.origin) if found and found.origin else None
        around = [folder for folder in folders if origin and origin.is_relative_to(folder.resolve())]
        if origin is not None and around:
            sources.append(around[0] / origin.relative_to(around[0].resolve()))
        else:
            installed.append(where.split(".")[0])
    return sources, sorted(set(installed) - {"evocluster"})


def _bases(config: Config, sources: Sequence[Path]) -> dict[Path, bool]:
    """Folder of code -> whether everything in it goes, or its Python files only; empty where no code is named."""
    folders = [_normal(folder) for folder in config.python_path]
    bases: dict[Path, bool] = {}
    for source in sources:
        around = [folder for folder in folders if source.is_relative_to(folder)]
        base = max(around, key=lambda folder: len(folder.parts)) if around else source.parent
        bases[base] = base.is_relative_to(_normal(str(config.root)))
    if sources:
        bases |= {folder: False for folder in folders if folder not in bases and folder.is_dir()}
    return bases


def _tree(base: Path, whole: bool, left: list[str]) -> Iterator[Path]:
    """The files below a folder that may travel, in order; `left` gets what looks like keys."""
    count = 0
    for folder, below, names in os.walk(base):
        here = Path(folder)
        below[:] = sorted(name for name in below if _goes(here / name))
        for name in sorted(names):
            file = here / name
            if name.startswith(".env") or any(fnmatch(name.lower(), pattern) for pattern in KEYS):
                left.append(str(file))
            elif not name.startswith(".") and not file.is_symlink() and (whole or name.endswith(".py")):
                count += 1
                if count > MOST_FILES:
                    raise ConfigError(
                        f"{base} holds more than {MOST_FILES} files; put the config and its code into a folder "
                        "of their own"
                    )
                yield file


def _goes(folder: Path) -> bool:
    """A folder that may travel: none that is hidden, an environment, a cache or a run."""
    if folder.name.startswith(".") or folder.name in ("__pycache__", "node_modules") or folder.is_symlink():
        return False
    run = (folder / "config.yaml").exists() and (folder / "trials").exists()
    return not run and not (folder / "pyvenv.cfg").exists()


def _normal(text: str) -> Path:
    return Path(os.path.normpath(Path(text).expanduser()))


def _place(keys: Keys, text: str, home: Path) -> str:
    """A path of the config as it is written in the package, seen from its config."""
    if keys == ("cache", "path"):
        return CACHE if not text.startswith("~") and _normal(text).is_relative_to(home) else text
    if is_spec(text):
        where, name = text.rsplit(":", 1)
        return f"{os.path.relpath(_normal(where), home)}:{name}" if where.endswith(".py") else text
    return os.path.relpath(_normal(text), home)


def _notes(config: Config, installed: Sequence[str], left: Sequence[str]) -> Iterator[str]:
    if installed:
        yield f"must be installed on the cluster: {', '.join(installed)}"
    if left:
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        yield f"stays here, as it looks like keys: {', '.join(left[:SHOWN])}{more}"
    path = config.cache.path
    if path is not None and _place(("cache", "path"), path, config.root) != path:
        yield f"completions are cached there in {CACHE}, not in {path}"
    for name, model in config.resolved_models().items():
        if model.kind == "remote" and model.key_env is None and not model.no_key:
            yield f"model {name!r}: the key of its provider must be in the environment of the cluster"
