"""Makes the screenshots of `torchzip report` in this folder: ``python -m docs.screenshots``.

``python -m docs.screenshots --site BUILT --folder OUT`` makes those of the documentation site that
is built in a folder, to look at; they are not committed. Needs Chromium and playwright (the extra
``browser``).
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import torchzip
from tests.browser import DESKTOP, PHONE, chromium
from torchzip.tools import report
from torchzip.types import ForeignObject

_HERE = Path(__file__).parent
_WIDTH, _LAYERS = 192, 8


def training_checkpoint() -> dict[str, Any]:
    """Return what a training script saves: a small transformer, its optimizer, its arguments."""
    rng = np.random.default_rng(7)

    def weight(*shape: int) -> Any:
        return (rng.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)

    model: dict[str, Any] = {"embed.tokens.weight": weight(4096, _WIDTH)}
    for layer in range(_LAYERS):
        at = f"layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            model[f"{at}attention.{name}.weight"] = weight(_WIDTH, _WIDTH)
        model[at + "mlp.gate_proj.weight"] = weight(3 * _WIDTH, _WIDTH)
        model[at + "mlp.up_proj.weight"] = weight(3 * _WIDTH, _WIDTH)
        model[at + "mlp.down_proj.weight"] = weight(_WIDTH, 3 * _WIDTH)
        for name in ("input_norm", "output_norm"):
            model[f"{at}{name}.weight"] = (1 + weight(_WIDTH)).astype(ml_dtypes.bfloat16)
    model["norm.weight"] = (1 + weight(_WIDTH)).astype(ml_dtypes.bfloat16)
    model["head.weight"] = model["embed.tokens.weight"]  # tied
    state: dict[int, Any] = {}
    for number, array in enumerate(model.values()):
        if number < len(model) - 1:
            noise = rng.standard_normal(array.shape, np.float32)
            moments = {"exp_avg": noise * 1e-4, "exp_avg_sq": noise**2 * 1e-6}
            state[number] = {"step": np.array(12_000, np.float32), **moments}
    broken = state[3]["exp_avg"]
    broken[0, :5] = np.nan
    return {
        "model": model,
        "optimizer": {"state": state, "param_groups": [{"lr": 3e-4, "betas": (0.9, 0.95)}]},
        "step": 12_000,
        "args": ForeignObject("argparse", "Namespace", (), state={"seed": 7, "data": "books.txt"}),
        "git_commit": "5f3c1e0",
    }


def picture(browser: Any, page: Path, folder: Path, name: str) -> None:
    """Write four pictures of a page: on a desktop and a phone, light and dark."""
    for size, viewport in (("desktop", DESKTOP), ("phone", PHONE)):
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={**viewport, "height": 1100}, color_scheme=scheme
            )
            tab = context.new_page()
            tab.goto(page.as_uri())
            tab.screenshot(path=folder / f"{name}-{size}-{scheme}.png")
            context.close()


def main() -> None:
    """Write the pictures of a report, or those of the site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=_HERE)
    parser.add_argument("--site", type=Path, help="a folder with the built site")
    arguments = parser.parse_args()
    folder = arguments.folder
    if arguments.site is not None:
        with chromium() as browser:
            for page in sorted(arguments.site.resolve().rglob("*.html")):
                name = "-".join(page.relative_to(arguments.site.resolve()).with_suffix("").parts)
                picture(browser, page, folder, name)
        return
    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch.load refuses the arguments
        path = Path(made) / "step_12000.ckpt"
        torchzip.save(training_checkpoint(), path)
        page = Path(made) / "report.html"
        report(path, page)
        with chromium() as browser:
            picture(browser, page, folder, "report")


if __name__ == "__main__":
    main()
