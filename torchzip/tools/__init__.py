"""What is done with checkpoints beside reading and converting them; each returns plain data::

    from torchzip.tools import diff

Each function is imported when it is asked for, as those of `torchzip` are.
"""

from typing import TYPE_CHECKING, Any

__all__ = [
    "Diff",
    "Edited",
    "LoraMerged",
    "Merged",
    "Repaired",
    "Report",
    "Scanned",
    "Statistics",
    "Verified",
    "WhyBig",
    "average",
    "combine",
    "diff",
    "edit",
    "merge_lora",
    "repair",
    "report",
    "scan",
    "statistics",
    "verify",
    "why_big",
]

if TYPE_CHECKING:
    from torchzip.tools.differences import Diff, diff
    from torchzip.tools.editing import Edited, edit
    from torchzip.tools.element_statistics import Statistics, statistics
    from torchzip.tools.file_size.findings import WhyBig, why_big
    from torchzip.tools.lora.merging import LoraMerged, merge_lora
    from torchzip.tools.merging import Merged, average, combine
    from torchzip.tools.repairing.repair import Repaired, repair
    from torchzip.tools.report_page.reporting import Report, report
    from torchzip.tools.scanning.scan import Scanned, scan
    from torchzip.tools.torch_verdict.verification import Verified, verify
else:

    def __getattr__(name: str) -> Any:
        if name in ("Diff", "diff"):
            from torchzip.tools import differences as home
        elif name in ("Edited", "edit"):
            from torchzip.tools import editing as home
        elif name in ("Merged", "average", "combine"):
            from torchzip.tools import merging as home
        elif name in ("LoraMerged", "merge_lora"):
            from torchzip.tools.lora import merging as home
        elif name in ("Statistics", "statistics"):
            from torchzip.tools import element_statistics as home
        elif name in ("WhyBig", "why_big"):
            from torchzip.tools.file_size import findings as home
        elif name in ("Repaired", "repair"):
            from torchzip.tools.repairing import repair as home
        elif name in ("Scanned", "scan"):
            from torchzip.tools.scanning import scan as home
        elif name in ("Report", "report"):
            from torchzip.tools.report_page import reporting as home
        elif name in ("Verified", "verify"):
            from torchzip.tools.torch_verdict import verification as home
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = vars(home)[name]
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
