"""The files of the page, served and written: those of the package, and Pyodide's that it needs."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.web.test_page import stub_folder
from torchzip.web.__main__ import main
from torchzip.web.site import server, site_files

_NAMES = {
    "index.html", "worker.js", "torchzip.zip", "pyodide/pyodide.mjs", "pyodide/pyodide.asm.js",
    "pyodide/pyodide.asm.wasm", "pyodide/python_stdlib.zip", "pyodide/pyodide-lock.json",
    "pyodide/numpy.whl", "pyodide/ml-dtypes.whl",
}  # fmt: skip


@pytest.fixture
def pyodide(tmp_path: Path) -> Path:
    """Return a folder like that of Pyodide."""
    return stub_folder(tmp_path / "pyodide")


def test_files(pyodide: Path) -> None:
    """They are these, whatever else is in the folder; the same bytes each time."""
    (pyodide / "scipy.whl").write_bytes(b"")
    files = site_files(pyodide)
    assert set(files) == _NAMES
    assert site_files(pyodide) == files


def test_of_newer_versions(pyodide: Path) -> None:
    """Where the interpreter is a module."""
    (pyodide / "pyodide.asm.js").rename(pyodide / "pyodide.asm.mjs")
    assert "pyodide/pyodide.asm.mjs" in site_files(pyodide)


def test_what_packages_need(pyodide: Path) -> None:
    """The wheels that theirs depend on are files of the page too."""
    lock = pyodide / "pyodide-lock.json"
    found = json.loads(lock.read_text())
    found["packages"]["numpy"]["depends"] = ["libblas"]
    found["packages"]["libblas"] = {"file_name": "blas.zip", "depends": []}
    lock.write_text(json.dumps(found))
    (pyodide / "blas.zip").write_bytes(b"")
    assert "pyodide/blas.zip" in site_files(pyodide)


def test_archive_of_the_package(pyodide: Path, tmp_path: Path) -> None:
    """It has all that the page runs: another Python makes a report of it, from there alone."""
    archive = site_files(pyodide)["torchzip.zip"]
    assert isinstance(archive, bytes)
    zipfile.ZipFile(io.BytesIO(archive)).extractall(tmp_path / "there")
    code = (
        "import torchzip, json, numpy as np; from torchzip.web.looking import looked\n"
        "torchzip.save({'w': np.ones(3), 'n': 1}, 'm.pt')\n"
        "found = json.loads(looked('m.pt', True, lambda done, total: None))\n"
        "assert found['damage'] is None and '<h1>m.pt</h1>' in found['report'], found\n"
        "assert found['listing'].startswith('name  dtype    shape'), found['listing']\n"
        "assert json.loads(looked('no.pt', True, print))['error'] == 'No such file or directory'\n"
        "open('bad.pt', 'w').write('hello')\n"
        "assert json.loads(looked('bad.pt', True, print))['error'].startswith('bad.pt: not a')\n"
        "print(torchzip.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "there")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "there"))


def test_server(pyodide: Path) -> None:
    """It has these files, as what they are, and no others."""
    with server(site_files(pyodide), 0) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        assert serving.server_address[0] == "127.0.0.1"
        address = f"http://127.0.0.1:{serving.server_port}/"
        for name, kind in (
            ("", "text/html; charset=utf-8"), ("worker.js", "text/javascript; charset=utf-8"),
            ("pyodide/pyodide.asm.wasm", "application/wasm"), ("index.html?x", "text/html"),
        ):  # fmt: skip
            with urllib.request.urlopen(address + name) as answer:
                assert answer.headers["Content-Type"].startswith(kind)
        for name in ("pyodide/../site.py", "..%2fsite.py", "pyodide/", "__main__.py", "%00"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(address + name)
        serving.shutdown()


def test_serve(pyodide: Path) -> None:
    """The command prints the address, and ends with Ctrl+C."""
    command = [sys.executable, "-m", "torchzip.web", "--pyodide", str(pyodide)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[0].decode()
        with urllib.request.urlopen(address) as answer:
            assert answer.read() == site_files(pyodide)["index.html"]
        process.send_signal(signal.SIGINT)
        assert process.communicate() == (b"", b"")
        assert process.returncode == 0


def test_write(pyodide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page goes into a new folder, and not into one that is there."""
    out = tmp_path / "site"
    assert main(["--pyodide", str(pyodide), "--write", str(out)]) == 0
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.*")} == _NAMES
    assert str(out) in capsys.readouterr().out
    assert main(["--pyodide", str(pyodide), "--write", str(out)]) == 2
    assert capsys.readouterr().err == f"torchzip.web: {out}: File exists\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pyodide.mjs", None, "lacks pyodide.mjs"),
        ("pyodide.asm.js", None, "lacks pyodide.asm.js"),
        ("numpy.whl", None, "lacks numpy.whl"),
        ("pyodide-lock.json", None, "lacks pyodide-lock.json"),
        ("pyodide-lock.json", "{", "not a lock file of Pyodide"),
        ("pyodide-lock.json", "[]", "not a lock file of Pyodide"),
        ("pyodide-lock.json", '{"packages": {}}', "has the package 'numpy'"),
        ("pyodide-lock.json", '{"packages": 3}', "has the package 'numpy'"),
        (
            "pyodide-lock.json",
            '{"packages": {"numpy": {"file_name": "../numpy.whl", "depends": []}}}',
            "is not in its folder",
        ),
    ],
)
def test_not_pyodide(
    pyodide: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None, message: str
) -> None:
    """It is said what the folder lacks, and nothing is served."""
    (pyodide / name).unlink()
    if content is not None:
        (pyodide / name).write_text(content)
    assert main(["--pyodide", str(pyodide)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"torchzip.web: {pyodide}")
    assert message in said


def test_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That is the same error."""
    assert main(["--pyodide", str(tmp_path / "nowhere")]) == 2
    assert "lacks pyodide-lock.json, pyodide.mjs" in capsys.readouterr().err


def test_port_in_use(pyodide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is an error, not a traceback."""
    with server(site_files(pyodide), 0) as serving:
        assert main(["--pyodide", str(pyodide), "--port", str(serving.server_port)]) == 2
    assert "Address already in use" in capsys.readouterr().err
