"""The command line: data on stdout, words on stderr, 0 done, 1 bad file, 2 wrong usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.child_process import python
from tests.cli.running import Capture, run, usage
from tests.saved import flipped
from tests.systems import needs
from torchzip.cli.main import main
from torchzip.cli.progress import progress_line
from torchzip.types import Parameter


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    tz.save(
        {
            "layer": {"weight": Parameter(weight), "norm": np.ones(4, np.float32)},
            "tied": weight.T,
            "half": np.ones(2, ml_dtypes.bfloat16),
            "step": np.array(5),
            "lr": 0.5,
        },
        path,
    )
    return path


# -- ls --------------------------------------------------------------------------------------------


def test_ls(capsys: Capture, model: Path) -> None:
    """Names, dtypes, shapes and sizes, and their sums."""
    out = run.done(capsys, "ls", model)
    lines = out.splitlines()
    assert lines[0].split() == ["name", "dtype", "shape", "size", "tied", "or", "view"]
    assert lines[1].split() == ["layer.weight", "float32", "param", "[3,", "4]", "48", "B"]
    assert lines[3].split() == [
        "tied", "float32", "[4,", "3]", "48", "B", "view", "of", "layer.weight",
    ]  # fmt: skip
    assert lines[5].split() == ["step", "int64", "[]", "8", "B"]
    assert lines[6:9] == ["", "lr  0.5", ""]
    assert "5 tensors" in lines[9]
    assert "3 float32 112 B" in lines[9]
    assert "76 B stored" in lines[9]
    assert len(lines) == 10
    assert all(line == line.rstrip() for line in lines)


def test_ls_long(capsys: Capture, model: Path) -> None:
    """Strides, offsets, devices, gradients, and whose storage it is."""
    out = run.done(capsys, "ls", "-l", model)
    lines = out.splitlines()
    assert lines[0].split()[4:7] == ["stride", "offset", "device"]
    assert lines[1].split()[-6:] == ["[4,", "1]", "0", "cpu", "yes", "data/0"]
    assert lines[3].split()[-7:] == ["0", "cpu", "no", "data/0", "view", "of", "layer.weight"]


def test_ls_json(capsys: Capture, model: Path) -> None:
    """Everything, as JSON and nothing else."""
    out = run.done(capsys, "ls", "--json", model)
    listing = json.loads(out)
    assert listing["format"] == "zip"
    assert listing["file"] == str(model)
    assert listing["stored_nbytes"] == 76
    assert listing["by_dtype"]["float32"] == {"tensors": 3, "nbytes": 112}
    assert [row["name"] for row in listing["tensors"]] == [
        "layer.weight", "layer.norm", "tied", "half", "step",
    ]  # fmt: skip
    assert listing["tensors"][0] == {
        "name": "layer.weight", "kind": "dense", "dtype": "float32", "subclass": None,
        "shape": [3, 4], "stride": [4, 1], "storage_offset": 0, "numel": 12, "nbytes": 48,
        "requires_grad": True, "is_parameter": True, "location": "cpu",
        "shares_storage_with": None, "tied_to": None, "is_view": False,
        "span": [0, 48], "storages": [0],
    }  # fmt: skip
    assert listing["tensors"][2]["shares_storage_with"] == "layer.weight"


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"no checkpoint at all", b"PK\3\4" + bytes(100), b.stream(b"N")]
)
@pytest.mark.parametrize("command", [["ls"], ["ls", "--json"], ["convert"]])
def test_bad_file(capsys: Capture, tmp_path: Path, command: list[str], data: bytes) -> None:
    """Status 1, one line on stderr with the file in it, nothing on stdout, no output file."""
    path = tmp_path / "m.pt"
    path.write_bytes(data)
    arguments = [*command, path] + ([tmp_path / "out.pt"] if command == ["convert"] else [])
    err = run.says(1, capsys, *arguments)
    assert err.startswith(f"torchzip: {path}: ")
    assert err.count("\n") == 1
    assert os.listdir(tmp_path) == ["m.pt"]


def test_missing_file_and_directory(capsys: Capture, tmp_path: Path) -> None:
    """What the system says, with the path."""
    err = run.says(1, capsys, "ls", tmp_path / "no.pt")
    assert err == f"torchzip: {tmp_path / 'no.pt'}: No such file or directory\n"
    err = run.says(1, capsys, "ls", tmp_path)
    assert str(tmp_path) in err


def test_error_with_control_characters(capsys: Capture, path: Path) -> None:
    """A message shows what a hostile name would do, and does not do it."""
    path.write_bytes(b.checkpoint(b.stream(b.tensor(b.persistent("\x1b[2J\u202e")))))
    err = run.says(1, capsys, "ls", path)
    assert all(line.isprintable() for line in err.split("\n"))
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["ls"], ["ls", "--no"], ["convert", "a"],
     ["convert", "a", "b", "c"], ["convert", "a", "b", "--dtype"],
     ["diff"], ["diff", "a.pt"], ["diff", "a.pt", "b.pt", "c.pt"], ["cat", "m.pt", "w", "0", "no"]],
)  # fmt: skip
def test_wrong_usage(capsys: Capture, arguments: list[str]) -> None:
    """Status 2, and the usage on stderr."""
    assert "usage: torchzip" in usage(capsys, *arguments)


def test_help_and_version(capsys: Capture) -> None:
    """Both go to stdout with status 0; examples stand below the options."""
    for arguments, shown in (
        (["--help"], "Exit status"),
        (["ls", "--help"], "  torchzip ls"),
        (["convert", "--help"], "  torchzip convert model.pt"),
        (["cat", "--help"], "torchzip cat model.ckpt epoch"),
        (["diff", "--help"], "Exit status: 0 equal, 1 different"),
        (["diff", "--help"], "torchzip diff before.pt after.pt"),
        (["--version"], f"torchzip {tz.__version__}"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        captured = capsys.readouterr()
        assert shown in captured.out
        assert captured.err == ""


# -- convert ---------------------------------------------------------------------------------------


def test_convert(capsys: Capture, model: Path) -> None:
    """To safetensors: the tensors arrive, what cannot is said on stderr."""
    target = model.with_suffix(".safetensors")
    err = run.says(0, capsys, "convert", model, target)
    assert "layer.weight, tied: views of one storage" in err
    assert f"{target}: 5 tensors" in err
    made = tz.load(target)
    assert made["layer.weight"].tolist() == np.arange(12.0).reshape(3, 4).tolist()
    assert made["tied"].tolist() == np.arange(12.0).reshape(3, 4).T.tolist()
    assert made["step"].tolist() == 5


def test_convert_to_pt(capsys: Capture, model: Path) -> None:
    """A .pt keeps ties, values and parameters."""
    target = model.with_name("out.bin")
    run.says(0, capsys, "convert", model, target)
    made = tz.load(target)
    assert made["lr"] == 0.5
    assert np.shares_memory(made["layer"]["weight"], made["tied"])


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["bfloat16"], ["bfloat16"] * 4 + ["int64"]),
        (["torch.half"], ["float16"] * 4 + ["int64"]),
        (["*norm=float64"], ["float32", "float64", "float32", "bfloat16", "int64"]),
        (["*norm=float64", "float16"], ["float16", "float64", "float16", "float16", "int64"]),
        (["float16", "*norm=float64"], ["float16"] * 4 + ["int64"]),
        (["half=float8_e5m2"], ["float32", "float32", "float32", "float8_e5m2", "int64"]),
        (["layer.*=float16"], ["float16", "float16", "float32", "bfloat16", "int64"]),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_dtype_rules(
    capsys: Capture, model: Path, rules: list[str], expected: list[str], suffix: str
) -> None:
    """The first rule that matches wins; integers stay as they are."""
    target = model.with_name("out" + suffix)
    options = [part for rule in rules for part in ("--dtype", rule)]
    run.says(0, capsys, "convert", model, target, *options)
    names = ["layer.weight", "layer.norm", "tied", "half", "step"]
    with tz.lazy_load(target) as checkpoint:
        assert [checkpoint[name].torch_dtype for name in names] == expected
        weight = checkpoint["layer.weight"].numpy().astype(float)
        assert weight.tolist() == np.arange(12.0).reshape(3, 4).tolist()


@pytest.mark.parametrize("rule", ["float3", "", "*=float3", "int8", "*=bool", "norm="])
def test_wrong_dtype(capsys: Capture, model: Path, rule: str) -> None:
    """A dtype that torch has not, or that nothing is cast to: wrong usage."""
    target = model.with_name("out.pt")
    err = run.says(2, capsys, "convert", model, target, "--dtype", rule)
    assert err.startswith("torchzip: ")
    assert not target.exists()


@pytest.mark.parametrize("name", ["out", "out.txt", "out.onnx", "out.index.json"])
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_wrong_suffix(capsys: Capture, model: Path, name: str, options: list[str]) -> None:
    """The suffix says what to write; another one is wrong usage."""
    err = run.says(2, capsys, "convert", model, model.with_name(name), *options)
    assert "suffix" in err
    assert os.listdir(model.parent) == ["model.pt"]


def test_overwriting_must_be_asked_for(capsys: Capture, model: Path) -> None:
    """An existing file stays, unless --force says otherwise."""
    target = model.with_name("out.pt")
    target.write_bytes(b"old")
    err = run.says(2, capsys, "convert", model, target)
    assert err == f"torchzip: {target} exists; --force overwrites it\n"
    assert target.read_bytes() == b"old"
    err = run.says(0, capsys, "convert", model, target, "--force")
    assert tz.load(target)["lr"] == 0.5


def test_overwriting_through_a_dangling_link(capsys: Capture, model: Path) -> None:
    """A link that leads nowhere is something, too."""
    target = model.with_name("out.pt")
    target.symlink_to(model.with_name("nowhere.pt"))
    run.says(2, capsys, "convert", model, target)
    assert not model.with_name("nowhere.pt").exists()


def test_convert_onto_itself(capsys: Capture, model: Path) -> None:
    """The source may be the target."""
    run.says(0, capsys, "convert", model, model, "--force", "--dtype", "float64")
    made = tz.load(model)
    assert made["layer"]["weight"].dtype == np.float64
    assert made["tied"].tolist() == np.arange(12.0).reshape(3, 4).T.tolist()
    assert os.listdir(model.parent) == ["model.pt"]


def test_dry_run(capsys: Capture, model: Path) -> None:
    """It shows what would be written, on stdout, and writes nothing."""
    target = model.with_name("out.safetensors")
    options = ("--dry-run", "--dtype", "float16")
    status, out, err = run(capsys, "convert", model, target, *options)
    assert status == 0
    assert "float32 -> float16" in out
    assert "bfloat16 -> float16" in out
    assert "5 tensors" in out
    assert "layer.weight, tied: views of one storage" in err
    assert os.listdir(model.parent) == ["model.pt"]
    status, out, _ = run(capsys, "convert", model, target, *options, "--json")
    plan = json.loads(out)
    assert plan["format"] == "safetensors"
    assert [row["to_dtype"] for row in plan["tensors"]] == ["float16"] * 4 + ["int64"]
    assert plan["lost"]


def test_dry_run_says_what_the_run_writes(capsys: Capture, model: Path) -> None:
    """The tensors of the plan are those of the output."""
    for suffix in (".pt", ".safetensors"):
        target = model.with_name("out" + suffix)
        _, out, _ = run(capsys, "convert", model, target, "--dry-run", "--json")
        plan = json.loads(out)
        run(capsys, "convert", model, target)
        with tz.lazy_load(target) as checkpoint:
            for row in plan["tensors"]:
                if row["alias_of"] is None or suffix == ".pt":
                    tensor = checkpoint[row["name"]]
                    assert tensor.torch_dtype == row["to_dtype"]
                    assert list(tensor.shape) == row["shape"]


def test_dry_run_tells_ties_from_views(capsys: Capture, tmp_path: Path, path: Path) -> None:
    """Views of one storage are not equal; only what has the elements of another is an alias."""
    base = np.arange(8, dtype=np.float32)
    tz.save({"a": base[:4], "b": base[4:], "tied": base[:4], "none": base[:0]}, path)
    _, out, _ = run(capsys, "convert", path, tmp_path / "o.pt", "--dry-run", "--json")
    rows = {row["name"]: (row["alias_of"], row["nbytes"]) for row in json.loads(out)["tensors"]}
    assert rows == {"a": (None, 16), "b": (None, 16), "tied": ("a", 0), "none": (None, 0)}
    _, out, _ = run(capsys, "convert", path, tmp_path / "o.pt", "--dry-run")
    assert [line.split()[-2:] for line in out.splitlines()[1:5]] == [
        ["16", "B"], ["16", "B"], ["=", "a"], ["0", "B"],
    ]  # fmt: skip


def test_dry_run_of_names_that_are_none(capsys: Capture, tmp_path: Path, path: Path) -> None:
    """A bare tensor is called what ls calls it; an error names the file and a way out."""
    tz.save(np.ones(3), path)
    _, out, _ = run(capsys, "convert", path, tmp_path / "o.pt", "--dry-run")
    assert out.splitlines()[1].startswith("(the object itself)  float64")
    tz.save({"__metadata__": np.ones(3)}, path)
    err = run.says(1, capsys, "convert", path, tmp_path / "o.safetensors", "--dry-run")
    assert err == (
        f"torchzip: {path}: safetensors cannot hold a tensor called __metadata__; rename or "
        "exclude it, or write a .pt\n"
    )


def test_convert_json(capsys: Capture, model: Path) -> None:
    """The report as JSON on stdout, the words still on stderr."""
    target = model.with_name("out.pt")
    status, out, err = run(capsys, "convert", model, target, "--json")
    assert status == 0
    report = json.loads(out)
    assert report["tensors"] == 5
    assert report["target"] == str(target)
    assert "5 tensors" in err


def test_convert_what_torch_refuses(capsys: Capture, tmp_path: Path, path: Path) -> None:
    """That the output needs weights_only=False is said, with the names."""
    made = b.list_of(b.call("m.C"), b.tensor())
    path.write_bytes(b.checkpoint(b.stream(made)))
    err = run.says(0, capsys, "convert", path, tmp_path / "out.pt")
    assert "weights_only=False" in err
    assert "m.C" in err


def _damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(flipped(data, data.index(np.arange(12, dtype=np.float32).tobytes()) + 5))


@pytest.mark.parametrize(
    ("name", "options"),
    [("out.safetensors", []), ("out.safetensors", ["--dtype", "float16"]),
     ("out.pt", ["--dtype", "float16"])],
)  # fmt: skip
def test_convert_damaged(capsys: Capture, model: Path, name: str, options: list[str]) -> None:
    """Where the CRC of the source is not carried along, damage ends the conversion."""
    _damage(model)
    target = model.with_name(name)
    err = run.says(1, capsys, "convert", model, target, *options)
    assert "damaged" in err
    assert not target.exists()


def test_copied_damage_still_shows(capsys: Capture, model: Path) -> None:
    """A plain copy is refused, or keeps the CRC that gives the damage away."""
    _damage(model)
    target = model.with_name("out.pt")
    if run(capsys, "convert", model, target)[0] == 0:
        with pytest.raises(tz.FormatError, match="damaged"):
            tz.load(target)


def test_missing_target_folder(capsys: Capture, model: Path) -> None:
    """An error of the system is status 1, with its path."""
    err = run.says(1, capsys, "convert", model, model.parent / "no" / "out.pt")
    assert err.endswith("no/out.pt: The directory to put it in does not exist; make it first\n")
    err = run.says(1, capsys, "convert", model, f"{model.parent}/no/out/")
    assert err.endswith("no/out: The directory around it does not exist; make it first\n")
    if Path("/proc/self").exists():
        err = run.says(1, capsys, "convert", model, "/proc/out.pt")
        assert err.endswith("/proc/out.pt: The directory takes no new files; choose another one\n")


def test_force_is_not_advised_where_it_was_given(capsys: Capture, model: Path) -> None:
    """Two shards that links lead to one place are no matter of overwriting."""
    for number in (1, 2):
        model.with_name(f"m-0000{number}-of-00002.bin").symlink_to(model.with_name("blob"))
    options = ("--max-shard-size", "50B", "--include", "[lh]*", "--force")
    err = run.says(1, capsys, "convert", model, model.with_name("m.bin"), *options)
    assert "m-00002-of-00002.bin: It leads to the same file as" in err
    assert "--force" not in err


# -- as a program ----------------------------------------------------------------------------------


def test_as_a_module(model: Path) -> None:
    """``python -m torchzip`` gives its status and keeps stdout for data."""
    shown = python("-W", "error", "-m", "torchzip", "ls", "--json", model)
    assert len(json.loads(shown)["tensors"]) == 5
    bad = subprocess.run(
        [sys.executable, "-m", "torchzip", "ls", str(model.parent / "no.pt")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (bad.returncode, bad.stdout) == (1, "")
    assert "Traceback" not in bad.stderr


def test_a_verdict_that_nobody_reads(model: Path) -> None:
    """The exit status is that of the file, also if the reader of stdout, or of both, has gone."""
    folder = model.parent
    data = model.read_bytes()
    (folder / "bad.pt").write_bytes(flipped(data, data.index(b"data/0") + 200))
    (folder / "foreign.pkl").write_bytes(b"cos\nsystem\n(S'ls'\ntR.")
    tz.save({"w": np.ones(3)}, folder / "other.pt")
    for command in (
        "verify bad.pt", f"verify {model.name} bad.pt", "scan foreign.pkl", "scan .",
        f"diff {model.name} other.pt", "convert other.pt -", f"edit {model.name} --drop no",
    ):  # fmt: skip
        for both in ("", "2>&1"):
            script = (
                f"{sys.executable} -m torchzip {command} {both} | true; exit ${{PIPESTATUS[0]}}"
            )
            made = subprocess.run(["bash", "-c", script], cwd=folder, stderr=-1, check=False)
            assert made.returncode == 1, (command, made.stderr)
            assert b"Traceback" not in made.stderr


def test_closed_stdin(tmp_path: Path) -> None:
    """It is empty."""
    script = f"{sys.executable} -m torchzip ls - <&-"
    made = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stdout) == (1, "")
    assert made.stderr.startswith("torchzip: <stdin>: not a checkpoint: the file is empty")


def test_a_missing_file_among_others(model: Path, capsys: Capture) -> None:
    """It is said as of one file that is alone."""
    gone = model.parent / "gone.pt"
    alone = run.says(1, capsys, "verify", gone)
    assert alone == f"torchzip: {gone}: No such file or directory\n"
    assert run(capsys, "verify", gone, model)[::2] == (1, alone)


def test_an_empty_destination(model: Path, capsys: Capture) -> None:
    """An unset variable in a script must not end in advice to write to the root directory."""
    err = run.says(2, capsys, "convert", model, "")
    assert err.startswith("torchzip: the destination is an empty string; ")


def test_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    """It does not name what can be left out."""
    with pytest.raises(SystemExit):
        main(["ls"])
    assert capsys.readouterr().err.endswith("the following arguments are required: FILE\n")


def test_reader_that_goes_away(model: Path) -> None:
    """``torchzip ls | head -1`` is no error."""
    script = f'{sys.executable} -m torchzip ls --json "{model}" | true; echo ${{PIPESTATUS[0]}}'
    made = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert made.stdout.strip() == "0"
    assert made.stderr == ""


def test_narrow_encoding(path: Path) -> None:
    """A terminal that has no such characters is no reason to fail."""
    tz.save({"größe": np.ones(2)}, path)
    made = subprocess.run(
        [sys.executable, "-m", "torchzip", "ls", str(path)],
        capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert made.returncode == 0
    assert b"Traceback" not in made.stderr


@pytest.mark.parametrize(
    "made",
    [
        b.call("torch._utils._rebuild_parameter", "x", True, b.HOOKS),
        b.list_of(b"]" * 5000 + b"a" * 4999, b.tensor()),
    ],
    ids=["a parameter of text", "a list that is too deep to be written"],
)
def test_convert_what_can_be_read_only(capsys: Capture, tmp_path: Path, made: bytes) -> None:
    """What a file holds and nobody can write is the file's fault: status 1, no traceback."""
    path = tmp_path / "m.pt"
    path.write_bytes(b.checkpoint(b.stream(made)))
    err = run.says(1, capsys, "convert", path, tmp_path / "out.pt")
    assert err.startswith(f"torchzip: {path}")
    assert os.listdir(tmp_path) == ["m.pt"]


# -- convert: rules, shards, workers --------------------------------------------------------------


def test_rules(capsys: Capture, model: Path) -> None:
    """Each option does what the argument of its name does; --rename has an arrow in it."""
    target = model.with_name("o.pt")
    options = ("--include", "layer.*", "--exclude", "*.norm", "--rename", "^layer=>block")
    err = run.says(0, capsys, "convert", model, target, *options)
    with tz.lazy_load(target) as ckpt:
        assert list(ckpt) == ["block.weight"]
    assert "not in the output: lr\n" in err
    assert "1 tensor, " in err


def test_shards(capsys: Capture, model: Path) -> None:
    """A directory that ends with a slash is made; the index is named at the end."""
    folder = f"{model.parent}/new/"
    err = run.says(0, capsys, "convert", model, folder, "--max-shard-size", "40B")
    index = f"{folder}model.safetensors.index.json"
    assert f"torchzip: {index}: 5 tensors in 4 shards, " in err
    out = run.done(capsys, "ls", index)
    assert "sharded, 5 tensors" in out


def test_dry_run_of_shards(capsys: Capture, model: Path) -> None:
    """It shows which file gets what, under which name, to the byte."""
    target = model.with_name("w.bin")
    options = ("--max-shard-size", "60", "--rename", "half=>whole")
    out = run.done(capsys, "convert", model, target, "--dry-run", *options)
    assert "half -> whole" in out
    assert "w-00002-of-00002.bin" in out
    _, out, _ = run(capsys, "convert", model, target, "--dry-run", "--json", *options)
    planned = json.loads(out)
    run(capsys, "convert", model, target, *options)
    for file, nbytes in planned["files"].items():
        assert Path(file).stat().st_size == nbytes
    assert planned["nbytes"] == sum(planned["files"].values())
    assert {row["source"]: row["name"] for row in planned["tensors"]}["half"] == "whole"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rename", "a"], "REGEX=>REPL was expected"),
        (["--rename", "(=>b"], "rename '('"),
        (["--rename", ".+=>x"], "would both be called 'x'"),
        (["--max-shard-size", "5XB"], "not a size"),
        (["--jobs", "0"], "1 or more"),
    ],
)
def test_wrong_options(capsys: Capture, model: Path, options: list[str], said: str) -> None:
    """Exit status 2, one line, nothing written."""
    err = run.says(2, capsys, "convert", model, model.with_name("o.pt"), *options)
    assert said in err
    assert err.count("\n") == 1
    assert [path.name for path in model.parent.iterdir()] == [model.name]


def test_a_rule_without_use_is_a_warning(capsys: Capture, model: Path) -> None:
    """On stderr, in a conversion and in a dry run."""
    options = ("--exclude", "nothing", "--dtype", "no.*=float16")
    for more in ((), ("--dry-run",)):
        status, _, err = run(
            capsys, "convert", model, model.with_name("o.pt"), "--force", *options, *more
        )
        assert status == 0
        assert "torchzip: warning: the exclude rule 'nothing' matches no tensor\n" in err
        assert "torchzip: warning: the dtype rule 'no.*' matches no floating tensor\n" in err


@pytest.mark.few
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(model: Path, closed: str) -> None:
    """A daemon may have none: then what is said goes nowhere, and all else is as ever."""
    target = model.with_name("o.pt")
    command = f'"{sys.executable}" -m torchzip'
    for words, status in (("ls m.pt", 1), ("ls model.pt", 0), ("convert model.pt o.pt", 0)):
        done = subprocess.run(
            f"{command} {words} {closed}", shell=True, cwd=model.parent, capture_output=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == status
        assert b"Traceback" not in done.stderr
        assert b"No such file" not in done.stdout
    assert tz.load(target)["lr"] == 0.5


@needs("pty")
def test_progress_keeps_to_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that wraps on a narrow terminal could not be written over."""
    import fcntl
    import pty
    import struct
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    with os.fdopen(child, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setitem(sys.modules, "tqdm", None)
        with progress_line() as progress:
            assert progress is not None
            progress(123_456_789, 123_456_789)
    shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert shown.startswith("\r100%  123.5 MB of")
    assert max(map(len, shown.split("\r"))) <= 19


@needs("pty")
def test_progress_on_a_terminal(model: Path) -> None:
    """A terminal sees a line with rate and time, which goes away; a pipe sees the end only."""
    import pty

    target = model.with_name("o.pt")
    tz.save({"w": np.zeros(6 << 20, np.float32)}, model)
    parent, child = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['tqdm'] = None; "
         "from torchzip.cli.main import main; sys.exit(main(sys.argv[1:]))",
         "convert", model, target],
        stderr=child, check=False,
    )  # fmt: skip
    os.close(child)
    shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert done.returncode == 0
    assert "100%" in shown
    assert "MB/s" in shown or "GB/s" in shown
    assert shown.rstrip().endswith("o.pt: 1 tensor, 25.2 MB")
