"""A checkpoint's repr, and what a notebook shows of it."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.saved import saved
from tests.tools.test_report import Page
from torchzip.types import MetaTensor, Parameter, SparseTensor


def opened(obj: Any, limits: tz.Limits | None = None) -> tz.Checkpoint:
    return tz.lazy_load(io.BytesIO(saved(obj)), limits=limits)


# -- repr ------------------------------------------------------------------------------------------


def test_repr(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: the file, its format, tensors, dtypes and bytes, ties once."""
    monkeypatch.chdir(tmp_path)
    weight = np.zeros((2, 3), np.float32)
    tz.save({"w": Parameter(weight), "t": weight, "n": np.array(3)}, "m.pt")
    with tz.lazy_load("m.pt") as checkpoint:
        text = "<Checkpoint 'm.pt', zip, 3 tensors (2 float32, 1 int64), 32 B stored>"
        assert repr(checkpoint) == text
    assert repr(checkpoint) == text  # closed


def test_repr_of_odd_ones() -> None:
    """Nothing in it, a bare tensor, tensors that are not dense."""
    assert repr(opened([1])).endswith("zip, 0 tensors, 0 B stored>")
    assert repr(opened(np.ones(2))).endswith("1 tensor (1 float64), 16 B stored>")
    sparse = SparseTensor("sparse_coo", np.array([[0]]), np.array([1.0]), (4,), True)
    text = repr(opened([sparse, MetaTensor("float16", (9,))]))
    assert text.endswith("2 tensors (1 float16, 1 float64), 16 B stored>")


def test_repr_does_not_raise() -> None:
    """Where a name is that of two tensors, or there are too many, it is still one line."""
    two = opened({"a.b": np.ones(1), "a": {"b": np.ones(2)}})
    with pytest.raises(tz.FormatError):
        two["a.b"]
    assert "zip, 1 tensor" in repr(two)
    value: Any = [np.ones(1)]
    for _ in range(10):
        value = [value, value]
    bomb = opened(value, tz.Limits(shared_names=100))
    with pytest.raises(tz.LimitError):
        len(bomb)
    assert "without names: shared_names would be" in repr(bomb)
    assert "\n" not in repr(bomb)


def test_repr_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A debugger that asks again and again gets what was made."""
    checkpoint = opened({"w": np.ones(2)})
    first = repr(checkpoint)
    monkeypatch.setattr(tz.Checkpoint, "_names", None)
    assert repr(checkpoint) == first


# -- notebooks -------------------------------------------------------------------------------------


def page(checkpoint: tz.Checkpoint) -> Page:
    return Page(checkpoint._repr_html_())


def tags_of(made: Page) -> list[str]:
    return [tag for tag, _ in made.tags]


def test_html() -> None:
    """Tensors, ties, sums and other values."""
    weight = np.zeros((2, 3), np.float32)
    made = page(opened({"m": {"w": Parameter(weight), "v": weight[:1]}, "t": weight, "lr": 0.5}))
    texts = [text.strip() for text in made.texts]
    for text in ("m", "w", "float32 param", "[2, 3]", "24 B", "= m.w", "view of m.w", "lr", "0.5"):
        assert text in texts
    assert "2 tensors, 36 B" in texts
    assert "3 tensors (3 float32 60 B), 24 B stored" in made.text
    assert set(tags_of(made)) <= {"div", "details", "summary", "b", "span", "table", "tr", "td"}
    assert {name for _, attributes in made.tags for name in attributes} <= {"style", "open"}


def test_html_runs_and_colours_nothing() -> None:
    """Names from the file are text, and the notebook's own colours are kept."""
    evil = "<script>alert(1)</script>&amp;\"'"
    checkpoint = opened(
        {evil: np.ones(1), "a": {evil: np.ones(1), "\x1b[2J\u3164": np.ones(1)}, "v": evil}
    )
    text = checkpoint._repr_html_()
    made = Page(text)
    assert "script" not in tags_of(made)
    assert evil in made.text
    assert "\\x1b[2J\\u3164" in made.text
    assert not re.search(r"color|#[0-9a-f]{3}|rgb|src=|href|<style", text)


def test_html_is_short() -> None:
    """Some hundreds of rows at most; what is left out is counted."""
    state = {f"block{i}.{name}": np.zeros(i + 1) for i in range(400) for name in "abc"}
    made = page(opened(state))
    assert tags_of(made).count("tr") + tags_of(made).count("summary") <= 310
    shown = tags_of(made).count("tr")
    left_out = [int(n.replace(",", "")) for n in re.findall(r"and ([\d,]+) more tensor", made.text)]
    assert shown + sum(left_out) == 1200
    made = page(opened({f"v{i}": i for i in range(400)}))
    assert tags_of(made).count("tr") == 50
    assert "and 350 more values" in made.text


def test_html_of_blocks_alike() -> None:
    """A thousand blocks alike are two pieces."""
    made = page(opened([{"w": np.zeros(2), "b": np.zeros(1)} for _ in range(1000)]))
    assert "1 … 999" in made.text
    assert "999 like 0, 1,998 tensors, 24.0 kB" in made.text
    assert tags_of(made).count("tr") == 2


def test_html_without_an_outline() -> None:
    """The reason is shown instead."""
    made = page(opened({"a.b": np.ones(1), "a": {"b": np.ones(2)}}))
    assert "two tensors are called" in made.text


@pytest.mark.parametrize("path", sorted(b.GOLDEN.glob("*.pt")), ids=lambda path: path.name)
def test_golden_files(path: Any) -> None:
    """Every file that opens has both."""
    with tz.lazy_load(path) as checkpoint:
        made = page(checkpoint)
        assert f"{len(checkpoint)} tensor" in made.text
        assert f"{len(checkpoint)} tensor" in repr(checkpoint)
        assert "\n" not in repr(checkpoint)
