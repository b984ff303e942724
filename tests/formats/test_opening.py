"""What `opening` knows of formats whose modules it imports when a file has them."""

from __future__ import annotations

from torchzip.container.hub_names import INDEX_SUFFIX
from torchzip.formats import opening, pt2
from torchzip.formats.dcp import METADATA_NAME


def test_records_that_formats_are_told_by() -> None:
    """`opening` knows the names without the modules of the formats."""
    assert pt2.Pt2Container.needed_record == opening._PT2
    assert pt2.OldPt2Container.needed_record == opening._OLD_PT2
    assert INDEX_SUFFIX.endswith(opening._OF_DIRECTORIES)
    assert METADATA_NAME in opening._OF_DIRECTORIES
