"""Which of several names for one tensor has the data: the one that readers look for."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import run
from torchzip.container.safetensors import parse_ties
from torchzip.convert.tied_names import preferred

Capture = pytest.CaptureFixture[str]

#: Names and the one that they are made from, by ``_tied_weights_keys`` of transformers 5.24.
MODELS = {
    "T5, MT5, UMT5, LongT5": ("shared.weight",
     "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    "BERT": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "BERT's bias": ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    "RoBERTa": ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    "RoBERTa's bias": ("lm_head.bias", "lm_head.decoder.bias"),
    "GPT-2": ("transformer.wte.weight", "lm_head.weight"),
    "BART, Marian": ("model.shared.weight",
     "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"),
    "OPT, BART's decoder": ("model.decoder.embed_tokens.weight", "lm_head.weight"),
    "LED": ("led.shared.weight", "led.encoder.embed_tokens.weight", "lm_head.weight"),
    "LLaMA, Qwen, Gemma": ("model.embed_tokens.weight", "lm_head.weight"),
    "LLaVA": ("model.language_model.embed_tokens.weight", "lm_head.weight"),
    "Meta's LLaMA": ("tok_embeddings.weight", "output.weight"),
    "ALBERT": ("albert.embeddings.word_embeddings.weight", "predictions.decoder.weight"),
    "ALBERT's bias": ("predictions.bias", "predictions.decoder.bias"),
    "DistilBERT": ("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
    "ELECTRA": ("electra.embeddings.word_embeddings.weight", "generator_lm_head.weight"),
    "XLNet": ("transformer.word_embedding.weight", "lm_loss.weight"),
    "XLM": ("transformer.embeddings.weight", "pred_layer.proj.weight"),
    "CTRL": ("transformer.w.weight", "lm_head.weight"),
    "BLOOM, Falcon": ("transformer.word_embeddings.weight", "lm_head.weight"),
    "GPT-NeoX": ("gpt_neox.embed_in.weight", "embed_out.weight"),
    "Mamba": ("backbone.embeddings.weight", "lm_head.weight"),
    "RWKV": ("rwkv.embeddings.weight", "head.weight"),
    "ModernBERT": ("model.embeddings.tok_embeddings.weight", "decoder.weight"),
    "Whisper": ("model.decoder.embed_tokens.weight", "proj_out.weight"),
    "TrOCR": ("model.decoder.embed_tokens.weight", "output_projection.weight"),
    "GIT": ("git.embeddings.word_embeddings.weight", "output.weight"),
    "LUKE": ("luke.entity_embeddings.entity_embeddings.weight",
     "entity_predictions.decoder.weight"),
    "ProphetNet": ("prophetnet.word_embeddings.weight", "prophetnet.encoder.word_embeddings.weight",
     "prophetnet.decoder.word_embeddings.weight", "lm_head.weight"),
    "UDOP": ("patch_embed.proj.weight", "encoder.embed_patches.proj.weight"),
    "SAM": ("shared_image_embedding.positional_embedding",
     "prompt_encoder.shared_embedding.positional_embedding"),
    "SpeechT5": ("speecht5.decoder.prenet.embed_tokens.weight",
     "text_decoder_postnet.lm_head.weight"),
    "Qwen3-Omni": ("model.codec_embedding.weight", "codec_head"),
    "RWKV's own": ("emb.weight", "head.weight"),
    "minGPT": ("tok_emb.weight", "head.weight"),
    "Idefics": ("model.embed_tokens.additional_embedding.weight", "lm_head.additional_fc.weight"),
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_the_name_that_readers_look_for(model: str) -> None:
    """It is found among all, whatever their order.

    Not so where transformers' own lists disagree: the box and class heads of DETR and its kin,
    biases of FLAVA, the embeddings of FSMT and T5Gemma2, GPT-1 and BLT. These are made from
    whichever name is there, and before version 5 they were one module or one Parameter.
    """
    names = MODELS[model]
    for order in itertools.permutations(names):
        assert preferred(order) == names[0]


def test_unknown_names_in_order() -> None:
    """The first, if nothing speaks for another."""
    assert preferred(["b.weight", "a.weight"]) == "b.weight"
    assert preferred(["model.b", "a"]) == "model.b"
    assert preferred(["head", "layers.1.weight", "tail"]) == "head"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dst", ["o.safetensors", "o.safetensors.index.json"])
def test_files_have_that_name(tmp_path: Path, model: str, dst: str) -> None:
    """In one file and in shards; the report has the others, and all come back tied."""
    names = MODELS[model]
    for number, order in enumerate((names, names[::-1], names[1:] + names[:1])):
        weight = np.arange(6.0)
        source = {"first": np.zeros(2), **dict.fromkeys(order, weight), "last": np.ones(2)}
        folder = tmp_path / str(number)
        folder.mkdir()
        tz.save(source, folder / "m.pt")
        report = tz.convert(folder / "m.pt", folder / dst)
        assert report.tied == dict.fromkeys(names[1:], names[0])
        with tz.lazy_load(folder / dst) as ckpt:
            assert set(ckpt) == {"first", names[0], "last"}
        tz.convert(folder / dst, folder / "back.pt")
        back = tz.load(folder / "back.pt")
        assert list(back) == list(source)
        assert all(back[name] is back[names[0]] for name in names)


def test_told_before_and_afterwards(capsys: Capture, tmp_path: Path) -> None:
    """By ``--dry-run``, by the report of a conversion and by its JSON."""
    weight = np.ones((3, 2), np.float32)
    source = tmp_path / "m.pt"
    tz.save({"lm_head.weight": weight, "model.embed_tokens.weight": weight}, source)
    line = "torchzip: tied: lm_head.weight has its data under model.embed_tokens.weight\n"
    for options in (["--dry-run"], [], ["--force", "--json"]):
        status, out, err = run(capsys, "convert", source, tmp_path / "o.safetensors", *options)
        assert (status, line in err) == (0, True)
    assert json.loads(out)["tied"] == {"lm_head.weight": "model.embed_tokens.weight"}
    status, _, err = run(capsys, "convert", source, tmp_path / "o.pt")
    assert (status, "tied" in err) == (0, False)  # there each name has it


def test_ties_that_the_package_recorded(tmp_path: Path) -> None:
    """`safetensors.torch.save_model` puts ``{name: name with the data}`` into the metadata."""
    package = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "m.safetensors"
    arrays = {"a": np.arange(3.0), "lm_head.weight": np.ones((2, 2))}
    metadata = {"b": "a", "model.embed_tokens.weight": "lm_head.weight", "title": "of a model",
                "format": "pt", "a": "lm_head.weight"}  # fmt: skip
    package.save_file(arrays, path, metadata=metadata)
    report = tz.convert(path, tmp_path / "m.pt")
    back = tz.load(tmp_path / "m.pt")
    assert set(back) == {"a", "b", "lm_head.weight", "model.embed_tokens.weight"}
    assert back["a"] is back["b"]
    assert back["lm_head.weight"] is back["model.embed_tokens.weight"]
    assert sorted(report.lost) == [f"{key!r} in the metadata of the file" for key in ("a", "title")]
    # What is no tie any more is not said any more: here the other name has the data.
    report = tz.convert(path, tmp_path / "o.safetensors")
    assert report.tied == {"b": "a", "lm_head.weight": "model.embed_tokens.weight"}
    with tz.lazy_load(tmp_path / "o.safetensors") as ckpt:
        assert set(ckpt) == {"a", "model.embed_tokens.weight"}
        texts = {key for key in ckpt.metadata if not key.startswith("torchzip.")}
        assert texts == {"a", "title", "format"}


@pytest.mark.torch
def test_a_model_of_the_package(torch: Any, tmp_path: Path) -> None:
    """What it writes itself comes back with all names, and tied in torch."""
    safetensors = pytest.importorskip("safetensors.torch")
    model = torch.nn.ModuleDict(
        {"head": torch.nn.Linear(4, 4, bias=False), "embed": torch.nn.Embedding(4, 4)}
    )
    model["head"].weight = model["embed"].weight
    safetensors.save_model(model, str(tmp_path / "m.safetensors"))
    tz.convert(tmp_path / "m.safetensors", tmp_path / "m.pt")
    state = torch.load(tmp_path / "m.pt")
    assert state.keys() == model.state_dict().keys()
    assert state["head.weight"].data_ptr() == state["embed.weight"].data_ptr()
    assert torch.equal(state["head.weight"], model["embed"].weight)


def test_ties_of_metadata() -> None:
    """Ours go before the package's; what names no tensor of the file is none."""
    ours = {"torchzip.aliases": '{"x": "a", "y": "gone", "z": 1}'}
    assert parse_ties(ours | {"x": "b", "format": "a", "b": "a"}, {"a": 1, "b": 2}) == {"x": "a"}
    assert parse_ties({"torchzip.object": "a", "c": "a"}, {"a": 1}) == {"c": "a"}
    assert parse_ties({"torchzip.aliases": "?"}, {"a": 1}) == {}
