"""What `scan` says of files of all kinds, and how: verdicts, findings, policies, exit statuses."""

from __future__ import annotations

import argparse
import bz2
import errno
import gzip
import io
import json
import lzma
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.formats.counting import Counted
from torchzip.cli.main import main
from torchzip.cli.scanning import COMMAND
from torchzip.tools import scan
from torchzip.tools.scanning.policy import PRESETS, parse_policy
from torchzip.types import ForeignObject

_EVIL = b"cos\nsystem\n(S'ls'\ntR."


def checkpoint(tree: Any = None) -> bytes:
    file = io.BytesIO()
    tz.save({"w": np.ones(3)} if tree is None else tree, file)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred(**members: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def numpy_file(save: Callable[..., None], **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def namespace() -> Any:
    """Return what stands for a Namespace of argparse, which scan has to find by its name."""
    return pickle.dumps(argparse.Namespace(lr=0.1), 2)


_OBJECTS = np.array([os.getcwd], dtype=object)
_QUIET = {
    "a checkpoint": (checkpoint(), "safe"),
    "a safetensors file": (b.safetensors(b"{}", b""), "no pickle"),
    "arrays": (numpy_file(np.savez, w=np.ones(3)), "no pickle"),
    "an array": (numpy_file(lambda file, arr: np.save(file, arr), arr=np.ones(3)), "no pickle"),
    "JSON": (b'{"a": [1, 2]}', "no pickle"),
    "text that begins with opcodes": (b"class Foo\n    bar\nThis is text.\n", "no pickle"),
    "text of one word": (b"The quick brown fox jumps over the lazy dog, twice.\n" * 3, "no pickle"),
    "an empty file": (b"", "no pickle"),
    "a plain pickle": (pickle.dumps({"a": [1, 2.5, "x"]}), "plain"),
    "pickles in a row": (pickle.dumps(1) + pickle.dumps([2]), "plain"),
    "a zip around all of it": (zipped(a=checkpoint(), c=b'{"x":1}', d=b"Text."), "plain"),
}  # fmt: skip
_FOUND = {
    "a call": (_EVIL, None, "os.system"),
    "a call without an end": (_EVIL[:-1], None, "os.system"),
    "a second pickle": (pickle.dumps(1) + _EVIL, None, "os.system"),
    "objects of numpy": (numpy_file(lambda file, arr: np.save(file, arr), arr=_OBJECTS), None,
                         "posix.getcwd"),
    "objects in an archive": (numpy_file(np.savez, w=_OBJECTS), "w.npy", "posix.getcwd"),
    "in a zip": (zipped(x=b"1", model=_EVIL), "model", "os.system"),
    "in a tar": (tarred(x=b"1", model=_EVIL), "model", "os.system"),
    "in a tar in a zip": (zipped(inner=tarred(model=_EVIL)), "inner!model", "os.system"),
    "under gzip": (gzip.compress(_EVIL), None, "os.system"),
    "under bzip2": (bz2.compress(_EVIL), None, "os.system"),
    "under xz": (lzma.compress(_EVIL), None, "os.system"),
    "in a .tar.gz": (gzip.compress(tarred(m=_EVIL)), "m", "os.system"),
    "beside a checkpoint": (zipped(**{"m/data.pkl": b"\x80\2}.", "m/version": b"3\n",
                            "m/more.pkl": b"\x80\2" + _EVIL}), "more.pkl", "os.system"),
}  # fmt: skip


@pytest.mark.parametrize("name", _QUIET)
def test_nothing_to_find(tmp_path: Path, name: str) -> None:
    """No finding, and the verdict says why not."""
    data, verdict = _QUIET[name]
    (tmp_path / "f.bin").write_bytes(data)
    (file,) = scan(tmp_path / "f.bin").files
    assert (file.findings, file.verdict) == ((), verdict)


@pytest.mark.parametrize("name", _FOUND)
def test_something_to_find(tmp_path: Path, name: str) -> None:
    """The name, with the member and the byte where it is; whatever the file is called."""
    data, member, evil = _FOUND[name]
    (tmp_path / "notes.txt").write_bytes(data)
    (file,) = scan(tmp_path / "notes.txt").files
    found = [each for each in file.findings if each.name == evil]
    assert file.verdict == "foreign"
    assert [(each.rule, each.member) for each in found] == [("foreign-global", member)]
    assert found[0].offset is not None
    if evil == "os.system":
        assert found[0].calls == ("('ls', )",) or "ls" in found[0].calls[0]


@pytest.mark.parametrize(
    ("name", "data", "rule"),
    [
        ("a zip that is cut short", checkpoint()[:-30], "ambiguous-archive"),
        ("a tar in another", None, "unreadable"),
        ("a pickle that is cut short", pickle.dumps([1, 2, 3])[:-3], "unreadable"),
        ("gzip that is cut short", gzip.compress(bytes(5000))[:-9], "unreadable"),
        ("gzip with more behind it", gzip.compress(b"x") + gzip.compress(_EVIL), "unreadable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_judged(tmp_path: Path, name: str, data: bytes | None, rule: str) -> None:
    """It is a finding too, and never silence."""
    if data is None:
        data = _EVIL
        for _ in range(8):
            data = tarred(inner=data)
    (tmp_path / "f").write_bytes(data)
    findings = scan(tmp_path / "f").findings
    assert rule in [each.rule for each in findings], name


def test_nothing_is_loaded(tmp_path: Path) -> None:
    """Neither called nor imported."""
    canary = tmp_path / "canary"
    code = f"cposix\nsystem\n(S'touch {canary}'\ntR."
    (tmp_path / "f.pkl").write_bytes(code.encode())
    assert scan(tmp_path).findings
    assert not canary.exists()


def test_policies(tmp_path: Path) -> None:
    """Files, presets and lines allow names; what is allowed is known, and no finding."""
    (tmp_path / "m.pkl").write_bytes(namespace())
    (tmp_path / "policy").write_text("# settings\nargparse.Name*  # of any tool\n\n")
    for allow in ("lightning", tmp_path / "policy", ["argparse.Namespace"], ["preset:deepspeed"]):
        (file,) = scan(tmp_path / "m.pkl", allow=allow).files
        assert (file.verdict, file.findings) == ("known", ()), allow
    assert scan(tmp_path / "m.pkl", allow="torchao").findings
    with pytest.raises(
        FileNotFoundError, match="Neither a file nor a preset, which are lightning, "
    ) as caught:
        scan(tmp_path, allow="lightnin")
    assert caught.value.filename == "lightnin"
    with pytest.raises(ValueError, match="'x' is not a preset; the presets are lightning, "):
        parse_policy(["preset:x"])
    with pytest.raises(FileNotFoundError):
        scan(tmp_path, allow=tmp_path / "none")
    for preset in PRESETS:
        assert preset in COMMAND.description
        policy = parse_policy(preset)
        for name in ("os.system", "builtins.eval", "builtins.getattr", "subprocess.Popen"):
            assert not policy.allows(name)


def test_directories(tmp_path: Path) -> None:
    """All files in order; links that lead out are left, and others followed."""
    (tmp_path / "models" / "sub").mkdir(parents=True)
    outside = tmp_path / "outside.pkl"
    outside.write_bytes(_EVIL)
    (tmp_path / "models" / "b.pkl").write_bytes(namespace())
    (tmp_path / "models" / "sub" / "a.pt").write_bytes(checkpoint())
    (tmp_path / "models" / "link").symlink_to(outside)
    (tmp_path / "models" / "near").symlink_to("b.pkl")
    found = scan(tmp_path / "models")
    assert [os.path.basename(file.path) for file in found.files] == ["b.pkl", "near", "a.pt"]
    assert [file.verdict for file in found.files] == ["foreign", "foreign", "safe"]
    with pytest.raises(FileNotFoundError):
        scan([tmp_path / "models", tmp_path / "none"])


def test_a_directory_that_cannot_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not taken for an empty one, be it the one that was given or one below it."""
    closed = tmp_path / "models" / "closed"
    closed.mkdir(parents=True)
    tz.save({"w": np.ones(3)}, tmp_path / "models" / "m.pt")
    for name in ("scandir", "listdir"):
        listing = getattr(os, name)

        def refused(path: Any = ".", listing: Any = listing) -> Any:
            if os.path.realpath(path) == os.path.realpath(closed):
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return listing(path)

        monkeypatch.setattr(os, name, refused)
    for path in (closed, closed.parent):
        *others, found = scan(path).files
        assert (found.path, found.verdict) == (str(closed), "unreadable")
        assert [each.message for each in found.findings] == ["Permission denied"]
        assert main(["scan", str(path)]) == 3
        capsys.readouterr()
        assert main(["verify", str(path)]) == 1
        assert f"torchzip: {closed}: Permission denied" in capsys.readouterr().err
    assert [each.verdict for each in others] == ["safe"]


def test_a_distributed_checkpoint_that_is_not_one(tmp_path: Path) -> None:
    """Its files are judged all the same, and each name is found."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".metadata").write_bytes(_EVIL)
    (tmp_path / "run" / "__0_0.distcp").write_bytes(checkpoint() + checkpoint())
    (file,) = scan(tmp_path).files
    assert (os.path.basename(file.path), file.verdict) == ("run", "foreign")
    assert (".metadata", "os.system") in [(each.member, each.name) for each in file.findings]


def test_objects_of_a_checkpoint(tmp_path: Path) -> None:
    """Names of torch's own are none; one outside its list is, wherever it is."""
    odd = ForeignObject("mylib.settings", "Config", args=(1,))
    with pytest.warns(UserWarning, match="weights_only"):
        tz.save({"w": np.ones(2), "config": odd}, tmp_path / "m.pt")
    (finding,) = scan(tmp_path / "m.pt").findings
    assert (finding.name, finding.member) == ("mylib.settings.Config", "data.pkl")
    assert scan(tmp_path / "m.pt", allow=["mylib.*"]).files[0].verdict == "known"


def test_arrays_of_joblib(tmp_path: Path) -> None:
    """Bytes of an array stand in the pickle, which cannot be followed: the file is never safe."""
    head = (
        b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}(\x8c\x05dtypecnumpy\ndtype\n"
        b"\x8c\x02f8\x89\x88\x87R\x8c\x05shapeK\x03\x85ub"
    )
    path = tmp_path / "m.joblib"
    path.write_bytes(head + b"\4\xff\xff\xff\xff" + np.arange(3.0).tobytes() + _EVIL)
    (file,) = scan(path).files
    assert file.verdict == "foreign"
    assert file.findings[0].name == "joblib.numpy_pickle.NumpyArrayWrapper"
    (file,) = scan(path, allow=["joblib.*", "numpy.dtype"]).files
    assert (file.verdict, [each.rule for each in file.findings]) == ("unreadable", ["unreadable"])


def test_only_pickles_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tensors are: some reads for each file, of its structure alone."""
    small = {f"w{i}": np.ones(3) for i in range(4)}
    large = {f"w{i}": np.ones(200_000) for i in range(4)}
    many = {f"w{i}": np.ones(3) for i in range(2000)}
    reads: dict[str, list[int]] = {}
    for name, tree in (("small", small), ("large", large), ("many", many)):
        tz.save(tree, tmp_path / f"{name}.pt")
        for suffix in (".safetensors", ".gguf", ".npz"):
            tz.convert(tmp_path / f"{name}.pt", tmp_path / f"{name}{suffix}")
        for path in sorted(tmp_path.glob(f"{name}.*")):
            counted = Counted(monkeypatch)
            (file,) = scan(path).files
            assert file.findings == ()
            assert counted.nbytes < 300_000 or name == "many"  # of 6.4 MB where they are large
            reads.setdefault(path.suffix, []).append(counted.reads)
            monkeypatch.undo()
    for suffix, (of_small, of_large, of_many) in reads.items():
        assert of_small == of_large <= 40
        # A record of an archive has a header of its own.
        assert of_many <= of_large + (2 * 2000 if suffix in (".pt", ".npz") else 0)


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit statuses, and the three formats."""
    monkeypatch.chdir(tmp_path)
    Path("good.pt").write_bytes(checkpoint())
    Path("known.pkl").write_bytes(namespace())
    Path("bad.pkl").write_bytes(_EVIL)
    Path("cut.pkl").write_bytes(pickle.dumps([1, 2])[:-2])
    for words, status in (
        (["good.pt"], 0), (["bad.pkl"], 1), (["cut.pkl"], 3), (["."], 1), (["none"], 1),
        (["known.pkl"], 1), (["known.pkl", "--allow", "lightning"], 0),
        (["known.pkl", "--allow", "lightning", "--fail-on", "torch-refuses"], 1),
        (["cut.pkl", "--fail-on", "unreadable"], 1), (["bad.pkl", "--fail-on", "never"], 0),
    ):  # fmt: skip
        assert main(["scan", *words]) == status, words
    capsys.readouterr()
    main(["scan", ".", "--allow", "lightning"])
    out = capsys.readouterr().out
    assert "  foreign-global, byte 0: 'os.system', which torch.load does not accept" in out
    assert out.endswith("4 files: 1 foreign, 1 known, 1 safe, 1 unreadable\n")
    main(["scan", "bad.pkl", "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert found["files"][0]["findings"][0]["name"] == "os.system"
    main(["scan", "bad.pkl", "--json"])
    assert json.loads(capsys.readouterr().out) == found
    main(["scan", ".", "--format", "sarif"])
    sarif = json.loads(capsys.readouterr().out)
    (run,) = sarif["runs"]
    assert sarif["version"] == "2.1.0"
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert {result["ruleId"] for result in run["results"]} <= rules
    places = [each["locations"][0]["physicalLocation"] for each in run["results"]]
    assert places[0] == {
        "artifactLocation": {"uri": "./bad.pkl"}, "region": {"byteOffset": 0},
    }  # fmt: skip
