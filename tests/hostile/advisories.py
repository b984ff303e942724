"""Public proofs that scanners with a list of bad names were passed, each rebuilt in a line or two.

Facts are from the sources that the rows name: advisories of picklescan (GHSA, CVE) and issues of
picklescan, modelscan, saferpickle and sglang. What the payloads do is left out.
"""

from __future__ import annotations

from typing import NamedTuple

from tests import builders as b
from tests.hostile.parts import SYSTEM, and_record, by_stack, short_text, with_record


class Proof(NamedTuple):
    """A pickle that passed a scanner, and the names in it that are outside torch's list."""

    source: str
    pickle: bytes
    names: tuple[str, ...]


def _calls(source: str, *names: str) -> list[Proof]:
    return [Proof(source, b.stream(b.call(name, "x")), (name,)) for name in names]


def _chain(source: str, *names: str) -> Proof:
    """Return a pickle that hands what one call gives to the next, so that no bad name is in it."""
    code = b.text("os")
    for name in names:
        module, _, attribute = name.rpartition(".")
        code = by_stack(module, attribute) + code + b.text("system") + b"\x86R"
    return Proof(source, b.stream(code, protocol=4), names)


PROOFS = [
    *_calls("CVE-2025-1716", "pip.main"),
    *_calls("CVE-2025-10157", "asyncio.unix_events._UnixSubprocessTransport._start"),
    *_calls("CVE-2026-56304", "logging.FileHandler"),
    *_calls(
        "CVE-2026-56315", "uuid._get_command_stdout", "imaplib.IMAP4_stream",
        "_pyrepl.pager.pipe_pager", "_osx_support._read_output", "_aix_support._read_cmd_output",
    ),
    *_calls("GHSA-v7x6-rv5q-mhwc", "timeit.timeit"),
    *_calls("GHSA-xp4f-hrf8-rxw7", "ensurepip._run_pip"),
    *_calls("GHSA-vvpj-8cmc-gx39", "pkgutil.resolve_name"),
    _chain("picklescan 66", "importlib.import_module", "operator.attrgetter"),
    _chain("picklescan 66", "importlib.util.find_spec", "importlib.util.module_from_spec"),
    *_calls("modelscan 267", "pickle.loads"),
    Proof(  # the attributes of one name of numpy are changed so that it gives another
        "modelscan 330",
        b.stream(
            by_stack("numpy", "size"), b"\x94", by_stack("numpy", "__builtins__"), b"\x940h\0}}",
            short_text("shape"), b"h\1s\x86bh\0h\0", short_text("eval"), b"\x86R",
            short_text("1"), b"\x85R", protocol=4,
        ),
        ("numpy.size", "numpy.__builtins__"),
    ),
    _chain("modelscan 331", "importlib.import_module", "builtins.getattr"),
    *_calls(
        "modelscan 338", "torch.utils.collect_env.run", "multiprocessing.util.spawnv_passfds",
        "mlflow.projects.backend.local._run_entry_point", "pandas.io.parsers.readers.read_csv",
    ),
    *_calls("saferpickle 1", "shutil.copy"),
    _chain("GHSA-h74r-pwx2-6qr2", "builtins.__import__", "builtins.getattr"),
]  # fmt: skip

_CODE = b.call(SYSTEM, "x")

#: Archives from which torch took code that a scanner did not reach: (source, bytes).
ARCHIVES = [
    ("GHSA-w8jq-xcqf-f792", with_record(b"data.pkl", root=_CODE, flags=1)),
    ("GHSA-w8jq-xcqf-f792, locally", with_record(b"data.pkl", root=_CODE, local_flags=1)),
    ("GHSA-7q5r-7gvp-wc82", with_record(b"data.pkl", root=_CODE, local_name=b"archive/data.pk_")),
    ("CVE-2025-10156", with_record(b"data.pkl", root=_CODE, crc=1, local_crc=1)),
    ("GHSA-769v-p64c-89pr", and_record(b"config.p", b.stream(_CODE))),
    ("GHSA-769v-p64c-89pr, of text", and_record(b"config.p", b"cos\nsystem\n(S'x'\ntR.")),
    ("GHSA-769v-p64c-89pr, as a storage", and_record(b"data/config", b.stream(_CODE))),
]
