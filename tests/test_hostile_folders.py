"""Each hostile directory of `tests.hostile.folders`: the error of its row, through every door."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import torchzip as tz
from fuzz.doors import Send, put, room
from fuzz.seeds import Case
from tests.hostile.folders import FOLDERS, FolderAttack
from tests.test_cost import peak_below

_MOST_NBYTES = 64 << 20

each_attack = pytest.mark.parametrize("attack", FOLDERS, ids=[each.name for each in FOLDERS])


@pytest.fixture(scope="module")
def send() -> Iterator[Send]:
    """Return what sends files through every door, with a canary and under limits."""
    with room() as send:
        yield send


def _case(attack: FolderAttack) -> Case:
    return Case(attack.files, attack.opened)


@each_attack
def test_attack(attack: FolderAttack, tmp_path: Path) -> None:
    """`load` raises the error of the row, which names a file of the directory, in little memory."""
    path = put(_case(attack), tmp_path / "given")
    with peak_below(_MOST_NBYTES):
        if attack.error is None:
            with pytest.raises(OSError, match=r"\w"):
                tz.load(path)
            return
        with pytest.raises(attack.error) as caught:
            tz.load(path)
    assert str(caught.value.path).startswith(str(tmp_path))
    assert len(str(caught.value)) < 2000


@each_attack
def test_attack_through_every_door(attack: FolderAttack, send: Send) -> None:
    """Whatever a user does with the directory: errors of torchzip, and no code runs."""
    send(_case(attack))


def test_rows_have_names_of_their_own() -> None:
    """No attack is there twice."""
    assert len({attack.name for attack in FOLDERS}) == len(FOLDERS) >= 130
