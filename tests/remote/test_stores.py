"""What is written to a store: the bytes that a file would have, all or nothing."""

from __future__ import annotations

import errno
import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.child_process import python
from tests.convert.test_run import NeighbourProcess
from tests.remote.s3_store import Request, Store, serving_s3
from tests.sampling import some
from torchzip.files import obstore_objects
from torchzip.files.remote_sink import RemoteSink

pytest.importorskip("obstore")
pytest.importorskip("moto.server")
pytest.importorskip("boto3")

# Of boto3 and moto; ours are told by tests elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

_PART = 5 << 20  # the least that S3 takes


@pytest.fixture(scope="module")
def _server() -> Iterator[Store]:
    with serving_s3() as store:
        yield store


@pytest.fixture
def store(_server: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Return an empty store that takes uploads in small parts."""
    monkeypatch.setattr(obstore_objects, "_PART_NBYTES", _PART)
    yield _server
    _server.clear()


def _tensors(seed: int, count: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {
        f"layers.{i}.weight": rng.standard_normal((1100, 1000)).astype("f4") for i in range(count)
    }
    made |= {f"layers.{i}.norm": rng.standard_normal(100).astype("f4") for i in range(count)}
    return made


def _save(store: Store, key: str, seed: int) -> None:
    tz.save(_tensors(seed), store.url(key), storage_options=store.options)


def _save_early(store: Store, key: str, seed: int) -> None:
    with tz.incremental_save(store.url(key), storage_options=store.options) as out:
        tensors = _tensors(seed)
        out.save({name: out.store_early(array) for name, array in tensors.items()})


def _convert(store: Store, key: str, seed: int) -> None:
    source = f"source-{seed}.pt"
    if source not in store.keys():  # noqa: SIM118
        _save(store, source, seed)
        store.requests.clear()
    tz.convert(store.url(source), store.url(key), overwrite=True, storage_options=store.options)


_WRITERS = {"save": _save, "incremental_save": _save_early, "convert": _convert}
each_writer = pytest.mark.parametrize("write", _WRITERS.values(), ids=_WRITERS)


# -- the bytes -----------------------------------------------------------------------------------


def test_save(store: Store, path: Path) -> None:
    """The object has the bytes of a file, whether it is written at once or early."""
    for count in (0, 1, 5):
        tz.save(_tensors(0, count), path)
        tz.save(_tensors(0, count), store.url("a/m.pt"), storage_options=store.options)
        assert store["a/m.pt"] == path.read_bytes()
        loaded = tz.load(store.url("a/m.pt"), storage_options=store.options)
        assert all(np.array_equal(loaded[key], each) for key, each in _tensors(0, count).items())
    _save_early(store, "a/m.pt", 1)
    loaded = tz.load(store.url("a/m.pt"), storage_options=store.options)
    assert all(np.array_equal(loaded[key], each) for key, each in _tensors(1).items())


@pytest.mark.parametrize("target", ["o.pt", "o.safetensors", "o.gguf", "o.npz", "o/"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("is_local", [True, False])
def test_convert(
    store: Store, tmp_path: Path, target: str, dtype: str | None, is_local: bool
) -> None:
    """From a file or from a store, to a store: the same files with the same bytes."""
    size = "5MB" if target.endswith("/") else None
    dtype = "float16" if dtype is not None and target == "o.npz" else dtype
    tz.save(_tensors(0), tmp_path / "m.pt")
    store["in/m.pt"] = (tmp_path / "m.pt").read_bytes()
    tz.convert(tmp_path / "m.pt", f"{tmp_path}/{target}", dtype=dtype, max_shard_size=size)
    made = tz.convert(
        tmp_path / "m.pt" if is_local else store.url("in/m.pt"), store.url(f"out/{target}"),
        dtype=dtype, max_shard_size=size, storage_options=store.options,
    )  # fmt: skip
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob("o*/*")] or [Path(target)]
    assert sorted(made.files) == sorted(store.url(f"out/{name}") for name in names)
    for name in names:
        assert store[f"out/{name}"] == (tmp_path / name).read_bytes()
    with tz.lazy_load(store.url(f"out/{target}"), storage_options=store.options) as ckpt:
        assert len(ckpt) == 10
    written = [each for each in store.requests if each.method == "PUT" and each.query == ""]
    if size is not None:
        assert written[-1].path.endswith("model.safetensors.index.json")


def test_computed(store: Store, tmp_path: Path) -> None:
    """The file of a disk. What cannot be sent keeps its whole shard in this process."""
    tz.save(_tensors(0), tmp_path / "m.pt")
    store["m.pt"] = (tmp_path / "m.pt").read_bytes()
    options: dict[str, Any] = {"storage_options": store.options, "overwrite": True}
    with tz.lazy_load(store.url("m.pt"), storage_options=store.options) as ckpt:
        w0, w1, norm = (ckpt[f"layers.{name}"] for name in ("0.weight", "1.weight", "0.norm"))
        made = {"a": w0 + w1, "b": tz.lazy.compute(lambda block: block * 2, w0), "c": -norm}
        tz.convert(made, tmp_path / "o.safetensors")
        for executor in (None, NeighbourProcess()):
            report = tz.convert(made, store.url("o.safetensors"), executor=executor, **options)
            assert store["o.safetensors"] == (tmp_path / "o.safetensors").read_bytes()
            assert sorted(report.here) == (["a", "b", "c"] if executor else [])
        report = tz.convert(
            made, store.url("o/"), executor=executor, max_shard_size="5MB", **options
        )
        assert report.here == ("b", "c")  # which are in one shard


def test_no_local_disk(store: Store) -> None:
    """A conversion from store to store opens no file for writing."""
    _save(store, "m.pt", 0)
    code = (
        "import json, os, sys, torchzip\n"
        "written = []\n"
        "def hook(event, arguments):\n"
        "    if event == 'open' and isinstance(arguments[2], int) and arguments[2] & "
        "(os.O_WRONLY | os.O_RDWR | os.O_CREAT):\n"
        "        written.append(str(arguments[0]))\n"
        "source, target, options = json.loads(sys.argv[1])\n"
        "sys.dont_write_bytecode = True\n"
        "sys.addaudithook(hook)\n"
        "torchzip.convert(source, target, dtype='bfloat16', max_shard_size='6MB', "
        "storage_options=options)\n"
        "print(written)\n"
    )
    arguments = json.dumps([store.url("m.pt"), store.url("o/"), store.options])
    assert python("-c", code, arguments).strip() == "[]"
    assert len(store.keys("o/")) > 2


def test_over_the_object_that_is_read(store: Store) -> None:
    """A conversion in place: the source is read until the upload ends."""
    _save(store, "m.pt", 0)
    made = tz.convert(
        store.url("m.pt"), store.url("m.pt"), dtype="float16", overwrite=True,
        storage_options=store.options,
    )  # fmt: skip
    assert made.tensors == 10
    loaded = tz.load(store.url("m.pt"), storage_options=store.options)
    assert loaded["layers.0.norm"].dtype == np.float16


def test_readers_of_a_replaced_object(store: Store) -> None:
    """Whoever has it open gets an error, not other numbers."""
    _save(store, "m.pt", 0)
    with tz.lazy_load(store.url("m.pt"), storage_options=store.options) as ckpt:
        _save(store, "m.pt", 1)
        with pytest.raises(tz.FormatError, match="replaced or changed"):
            ckpt["layers.3.weight"].numpy()


# -- all or nothing ------------------------------------------------------------------------------


def _is_old_or_new(store: Store, key: str, old: bytes, new: bytes) -> bool:
    """Return whether the object is the new one; raise unless it is that or the old one."""
    found = store[key]
    assert found in (old, new)
    assert not store.open_uploads()
    return found == new


@pytest.mark.few
@each_writer
def test_each_request_fails_once(store: Store, write: Callable[..., None]) -> None:
    """Whichever request of an upload is refused: the old object is there, and no upload is left."""
    write(store, "m.pt", 1)
    new = store["m.pt"]
    write(store, "m.pt", 0)
    old = store["m.pt"]
    store.requests.clear()
    write(store, "m.pt", 0)
    writing = [each for each in store.requests if each.method in ("PUT", "POST")]
    assert len(writing) >= 6  # to begin, the parts, to complete
    for number in range(len(writing)):
        left = [number]

        def fails(_: int, request: Request, left: list[int] = left) -> bool:
            if request.method not in ("PUT", "POST"):
                return False
            left[0] -= 1
            return left[0] == -1

        store.fails = fails
        with pytest.raises(OSError, match="status 400"):
            write(store, "m.pt", 1)
        assert not _is_old_or_new(store, "m.pt", old, new)
    store.fails = lambda number, request: False
    write(store, "m.pt", 1)
    assert _is_old_or_new(store, "m.pt", old, new)


@pytest.mark.few
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@each_writer
def test_each_block_fails_once(
    store: Store, write: Callable[..., None], error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever ends the writing, wherever: nothing of it is to be seen."""
    write(store, "m.pt", 1)
    new = store["m.pt"]
    write(store, "m.pt", 0)
    old = store["m.pt"]
    plain = RemoteSink._send
    count = [0]

    def counted(sink: RemoteSink) -> None:
        count[0] += 1
        plain(sink)

    monkeypatch.setattr(RemoteSink, "_send", counted)
    write(store, "m.pt", 0)
    for number in some(np.linspace(1, count[0], 14).astype(int).tolist()):
        sent = [0]

        def failing(sink: RemoteSink, number: int = number, sent: list[int] = sent) -> None:
            sent[0] += 1
            if sent[0] == number:
                raise error
            plain(sink)

        monkeypatch.setattr(RemoteSink, "_send", failing)
        with pytest.raises(error):
            write(store, "m.pt", 1)
        assert not _is_old_or_new(store, "m.pt", old, new)


def test_what_cannot_be_saved(store: Store) -> None:
    """An object with no way to be saved begins no upload."""
    store["m.pt"] = b"old"
    with pytest.raises(TypeError):
        tz.save({"x": np.array([object()])}, store.url("m.pt"), storage_options=store.options)

    def fail() -> None:
        with tz.incremental_save(store.url("m.pt"), storage_options=store.options) as out:
            out.store_early(np.zeros(10))
            out.save({"x": 1 / 0})

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.warns(UserWarning, match="nothing was written"):
        tz.incremental_save(store.url("m.pt"), storage_options=store.options).__enter__().__exit__(
            None, None, None
        )
    assert store["m.pt"] == b"old"
    assert not store.open_uploads()


def test_shards_are_taken_back(store: Store) -> None:
    """A conversion into shards that fails leaves nothing, and no index before its shards."""
    _save(store, "m.pt", 0)
    store.fails = lambda number, request: "00003-of" in request.path and request.method == "PUT"
    with pytest.raises(OSError, match="status 400"):
        tz.convert(
            store.url("m.pt"), store.url("o/"), max_shard_size="10MB",
            storage_options=store.options,
        )  # fmt: skip
    assert not store.keys("o/")
    assert not store.open_uploads()


def test_callbacks_that_raise(store: Store) -> None:
    """A progress callback ends a conversion at any time, before the object appears."""
    _save(store, "m.pt", 0)
    for limit in (0.3, 1.0):

        def progress(done: int, total: int, limit: float = limit) -> None:
            if done >= limit * total:
                raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            tz.convert(
                store.url("m.pt"), store.url("o.pt"), progress=progress,
                storage_options=store.options,
            )  # fmt: skip
        assert store.keys() == ["m.pt"]
        assert not store.open_uploads()


# -- what is there already -----------------------------------------------------------------------


def test_no_overwriting(store: Store) -> None:
    """Without ``overwrite``, neither what is there before nor what comes meanwhile is replaced."""
    _save(store, "m.pt", 0)
    for target in ("o.pt", "o.safetensors", "o/"):
        key = "o/model.safetensors" if target == "o/" else target
        store[key] = b"old"
        with pytest.raises(FileExistsError) as caught:
            tz.convert(store.url("m.pt"), store.url(target), storage_options=store.options)
        assert caught.value.filename == store.url(key)
        assert store[key] == b"old"
    for count in (1, 5):  # in one part, and in several
        tz.save(_tensors(0, count), store.url("n.pt"), storage_options=store.options)

        def other(done: int, total: int) -> None:
            store["new.pt"] = b"other"

        with pytest.raises(FileExistsError):
            tz.convert(
                store.url("n.pt"), store.url("new.pt"), progress=other,
                storage_options=store.options,
            )  # fmt: skip
        assert store["new.pt"] == b"other"
        assert not store.open_uploads()
        store.client.delete_object(Bucket="models", Key="new.pt")


def test_older_shards(store: Store) -> None:
    """As in a directory: a whole file does not go beside an older index, and shards replace one."""
    _save(store, "m.pt", 0)
    options: Any = {"storage_options": store.options}
    tz.convert(store.url("m.pt"), store.url("o/"), max_shard_size="10MB", **options)
    with pytest.raises(OSError, match="older shards would hide") as caught:
        tz.convert(store.url("m.pt"), store.url("o/"), overwrite=True, **options)
    assert caught.value.errno == errno.ENOTEMPTY
    tz.convert(store.url("m.pt"), store.url("p/"), **options)
    tz.convert(store.url("m.pt"), store.url("p/"), max_shard_size="10MB", overwrite=True, **options)
    assert "p/model.safetensors" not in store.keys()  # noqa: SIM118


# -- errors and commands -------------------------------------------------------------------------


def test_errors(store: Store) -> None:
    """They name the URL, say what to do, and hold no secret."""
    options = store.options
    with pytest.raises(FileNotFoundError, match="No such object") as caught:
        tz.load(store.url("no.pt"), storage_options=options)
    assert caught.value.filename == store.url("no.pt")
    with pytest.raises(OSError, match="cannot be reached") as unreachable:
        tz.load(
            store.url("m.pt"),
            storage_options=options
            | {"endpoint": "http://127.0.0.1:9", "retry_config": {"max_retries": 0}},
        )
    assert unreachable.value.errno == errno.EIO
    with pytest.raises(ValueError, match="'nonsense' is not valid"):
        tz.load(store.url("m.pt"), storage_options=options | {"nonsense": "x"})
    with pytest.raises(tz.FormatError, match="nothing in it"):
        tz.load(store.url("empty/"), storage_options=options)
    store.fails = lambda number, request: True
    with pytest.raises(OSError, match="status 400") as refused:
        tz.load(store.url("m.pt"), storage_options=options)
    for error in (caught, unreachable, refused):
        assert "SECRET" not in "".join(traceback.format_exception(error.value))


def test_folders(store: Store, tmp_path: Path) -> None:
    """A folder is what has an index, or one whole file, as on a disk."""
    tz.save(_tensors(0, 1), tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", f"{tmp_path}/", overwrite=True)
    store["model/model.safetensors"] = (tmp_path / "model.safetensors").read_bytes()
    store["model/deeper/pytorch_model.bin"] = (tmp_path / "m.pt").read_bytes()
    with tz.lazy_load(store.url("model/"), storage_options=store.options) as ckpt:
        assert ckpt.format == "safetensors"
    store["model/pytorch_model.bin"] = (tmp_path / "m.pt").read_bytes()
    with pytest.raises(tz.FormatError, match="several checkpoints"):
        tz.lazy_load(store.url("model/"), storage_options=store.options)


def test_commands(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command takes URLs, and options for them."""
    from torchzip.cli.main import main

    _save(store, "m.pt", 0)
    options = []
    for key, value in store.options.items():
        text = value if isinstance(value, str) else json.dumps(value)
        options += ["--storage-option", f"{key}={text}"]
    url = store.url("m.pt")
    for words in (
        ["ls", url], ["cat", url, "layers.0.norm"], ["globals", url], ["verify", url],
        ["dis", url], ["why-big", url], ["scan", url], ["diff", url, url],
        ["convert", url, store.url("c.safetensors")],
        ["average", url, url, "-o", store.url("mean.pt")],
        ["combine", "2*a - b", f"a={url}", f"b={url}", "-o", store.url("mixed.pt")],
        ["report", url, "--no-data", "-o", store.url("page.html")],
        ["repair", url, str(tmp_path / "repaired.pt")],
    ):  # fmt: skip
        assert main([*words, *options]) == 0, words
    for name in ("mean.pt", "mixed.pt"):
        loaded = tz.load(store.url(name), storage_options=store.options)
        assert all(np.array_equal(loaded[key], each) for key, each in _tensors(0).items())
    store["bad.pkl"] = b"cos\nsystem\n(S'ls'\ntR."
    capsys.readouterr()
    assert main(["scan", store.url("bad.pkl"), store.url("nothing.pt"), *options]) == 1
    out = capsys.readouterr().out
    assert "os.system" in out
    assert "2 files: 1 foreign, 1 unreadable" in out
    assert store["page.html"].startswith(b"<!doctype html>")
    assert (tmp_path / "repaired.pt").stat().st_size
    assert main(["convert", url, store.url("c.safetensors"), *options]) == 2
    assert "--force overwrites it" in capsys.readouterr().err
    assert main(["edit", url, "--drop", "x", *options]) == 2
    assert "convert writes a changed copy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ls", url, "--storage-option", "region"])
    assert "KEY=VALUE was expected" in capsys.readouterr().err


def test_a_folder_is_scanned(store: Store) -> None:
    """All objects below it, and none beside it."""
    scan = tz.tools.scan
    _save(store, "models/sub/m.pt", 0)
    store["models/b ad.pkl"] = b"cos\nsystem\n(S'ls'\ntR."
    store["models/notes/readme.md"] = b"# notes"
    store["elsewhere.pkl"] = store["models/b ad.pkl"]
    found = scan(store.url("models/"), storage_options=store.options)
    assert [(file.path.rpartition("models/")[2], file.verdict) for file in found.files] == [
        ("b%20ad.pkl", "foreign"), ("notes/readme.md", "no pickle"), ("sub/m.pt", "safe"),
    ]  # fmt: skip


def test_web_servers_are_read_only(store: Store) -> None:
    """Nothing is written to http, and that is said before anything is read."""
    for write in (
        lambda: tz.save({}, "http://127.0.0.1:9/m.pt"),
        lambda: tz.incremental_save("https://127.0.0.1:9/m.pt"),
        lambda: tz.save({}, "hf://nobody/nothing/m.pt"),
        lambda: tz.convert(store.url("m.pt"), "http://127.0.0.1:9/m.pt"),
    ):
        with pytest.raises(OSError, match="only be read") as caught:
            write()
        assert caught.value.errno == errno.EROFS


def test_companions(store: Store, tmp_path: Path) -> None:
    """From a folder of a store to another, and from a disk; after a failure they are gone again."""
    tz.save(_tensors(0), tmp_path / "m.pt")
    store["hf/pytorch_model.bin"] = (tmp_path / "m.pt").read_bytes()
    store["hf/config.json"] = b'{"a": 1}'
    report = tz.convert(store.url("hf/"), store.url("out/"), storage_options=store.options)
    assert report.copied == (store.url("out/config.json"),)
    assert store["out/config.json"] == b'{"a": 1}'
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "vocab.txt").write_bytes(b"a\n")
    data = bytearray((tmp_path / "m.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(tz.TorchZipError, match="CRC"):
        tz.convert(folder, store.url("bad/"), dtype="float16", storage_options=store.options)
    assert not any(key.startswith("bad/") for key in store.keys())  # noqa: SIM118
