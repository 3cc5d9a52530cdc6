"""The 18 model families of the format's design, each packed, read back, compared.

Small random configurations: what matters is the graph, not the weights. `write` has
compared each with its original at two batch sizes before it returns; the tests read
the directory once more, as a stranger would, and compare at a third. LSTM and GRU are
the two that torch cannot run under `vmap`.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from loader.across import across
from loader.graph import Graph, read_graph
from loader.manifest import ModelSpec, read_manifest
from loader.pack import Packed, pack
from loader.weights import unpack

transformers = pytest.importorskip("transformers")

Family = tuple[nn.Module, dict[str, torch.Tensor], Packed]

BATCH = 4
"""Exported with 2 rows, tried by `write` with 1 and 5."""

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


class Part(nn.Module):
    """One tensor out of what a transformers model gives."""

    def __init__(self, model: nn.Module, field: str = "last_hidden_state") -> None:
        super().__init__()
        self.model = model
        self.field = field

    def forward(self, first: torch.Tensor, mask: torch.Tensor | None = None):
        given = (first,) if mask is None else (first, mask)
        return getattr(self.model(*given), self.field)


class Recurrent(nn.Module):
    """The last step of an LSTM or a GRU."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.steps = kind(6, 8, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        states, _ = self.steps(steps)
        return states[:, -1]


def _text(rows: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(rows)
    mask = torch.ones(rows, 9, dtype=torch.int64)
    mask[0, 6:] = 0
    return {
        "input_ids": torch.randint(3, 99, (rows, 9), generator=draw),
        "attention_mask": mask,
    }


def _image(rows: int, side: int = 32) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(rows)
    return {"pixel_values": torch.randn(rows, 3, side, side, generator=draw)}


def _sound(rows: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(rows)
    return {"input_values": torch.randn(rows, 800, generator=draw)}


def _mel(rows: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(rows)
    return {"input_features": torch.randn(rows, 8, 20, generator=draw)}


def _steps(rows: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(rows)
    return {"steps": torch.randn(rows, 7, 6, generator=draw)}


def _model(name: str, config: str, field: str = "", **settings: object) -> nn.Module:
    made = getattr(transformers, name)(getattr(transformers, config)(**settings))
    return Part(made.eval(), field) if field else Part(made.eval())


WORDS = {**SMALL, "vocab_size": 99, "max_position_embeddings": 64}

FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[..., dict]]] = {
    "bert": (
        lambda: _model(
            "BertForSequenceClassification", "BertConfig", "logits", **WORDS
        ),
        _text,
    ),
    "distilbert": (
        lambda: _model(
            "DistilBertModel",
            "DistilBertConfig",
            vocab_size=99,
            dim=32,
            n_layers=2,
            n_heads=2,
            hidden_dim=48,
            max_position_embeddings=64,
        ),
        _text,
    ),
    "roberta": (lambda: _model("RobertaModel", "RobertaConfig", **WORDS), _text),
    "deberta-v2": (
        lambda: _model(
            "DebertaV2Model",
            "DebertaV2Config",
            relative_attention=True,
            position_buckets=8,
            pos_att_type=["p2c", "c2p"],
            **WORDS,
        ),
        _text,
    ),
    "electra": (
        lambda: _model("ElectraModel", "ElectraConfig", embedding_size=16, **WORDS),
        _text,
    ),
    "mpnet": (lambda: _model("MPNetModel", "MPNetConfig", **WORDS), _text),
    "vit": (
        lambda: _model("ViTModel", "ViTConfig", image_size=32, patch_size=8, **SMALL),
        _image,
    ),
    "resnet": (
        lambda: _model(
            "ResNetForImageClassification",
            "ResNetConfig",
            "logits",
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
        ),
        _image,
    ),
    "mobilenet-v2": (
        lambda: _model(
            "MobileNetV2Model",
            "MobileNetV2Config",
            image_size=32,
            depth_multiplier=0.25,
        ),
        _image,
    ),
    "convnext": (
        lambda: _model(
            "ConvNextModel",
            "ConvNextConfig",
            hidden_sizes=[8, 16],
            depths=[1, 1],
            num_stages=2,
        ),
        _image,
    ),
    "swin": (
        lambda: _model(
            "SwinModel",
            "SwinConfig",
            image_size=32,
            patch_size=2,
            embed_dim=8,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=4,
        ),
        _image,
    ),
    "clip-text": (
        lambda: _model("CLIPTextModel", "CLIPTextConfig", eos_token_id=2, **WORDS),
        _text,
    ),
    "t5-encoder": (
        lambda: _model(
            "T5EncoderModel",
            "T5Config",
            vocab_size=99,
            d_model=32,
            d_kv=16,
            d_ff=48,
            num_layers=2,
            num_heads=2,
        ),
        _text,
    ),
    "wav2vec2": (
        lambda: _model(
            "Wav2Vec2ForCTC",
            "Wav2Vec2Config",
            "logits",
            vocab_size=20,
            conv_dim=(8, 8),
            conv_kernel=(10, 3),
            conv_stride=(5, 2),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            **SMALL,
        ),
        _sound,
    ),
    "whisper-encoder": (
        lambda: Part(
            transformers.WhisperModel(
                transformers.WhisperConfig(
                    vocab_size=99,
                    num_mel_bins=8,
                    encoder_layers=2,
                    encoder_attention_heads=2,
                    decoder_layers=1,
                    decoder_attention_heads=2,
                    d_model=32,
                    encoder_ffn_dim=48,
                    decoder_ffn_dim=48,
                    max_source_positions=10,
                    pad_token_id=0,
                    bos_token_id=1,
                    eos_token_id=2,
                    decoder_start_token_id=1,
                )
            )
            .eval()
            .encoder
        ),
        _mel,
    ),
    "segformer": (
        lambda: _model(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            "logits",
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
        ),
        _image,
    ),
    "lstm": (lambda: Recurrent(nn.LSTM).eval(), _steps),
    "gru": (lambda: Recurrent(nn.GRU).eval(), _steps),
}


def _read(directory: Path) -> tuple[ModelSpec, Graph, tuple[torch.Tensor, ...]]:
    spec = read_manifest((directory / "model.json").read_bytes(), "model", "1")
    graph = read_graph((directory / spec.graph.name).read_bytes(), torch.device("cpu"))
    data = (directory / spec.weights.name).read_bytes()
    return spec, graph, unpack(data, graph.weights)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """A family, packed when it is first asked for."""
    store = tmp_path_factory.mktemp("families")

    @cache
    def made(name: str) -> Family:
        make, examples = FAMILIES[name]
        torch.manual_seed(7)
        module = make()
        found = pack(module, examples(2), store / name / "1", max_batch_size=8)
        return module, examples(BATCH), found

    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_what_it_gave(
    name: str, packed: Callable[[str], Family]
) -> None:
    module, inputs, found = packed(name)
    spec, graph, weights = _read(found.directory)
    assert list(inputs) == [tensor.name for tensor in spec.inputs]
    with torch.no_grad():
        (ours,) = graph(*weights, *inputs.values())
        theirs = module(*inputs.values())
    assert found.difference <= 1e-6
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"lstm", "gru"}))
def test_models_of_one_graph_can_share_a_call(
    name: str, packed: Callable[[str], Family]
) -> None:
    _, inputs, found = packed(name)
    _, graph, weights = _read(found.directory)
    others = tuple(
        tensor * 0.9 if tensor.is_floating_point() else tensor for tensor in weights
    )
    stacked = [torch.stack(pair) for pair in zip(weights, others, strict=True)]
    twice = [torch.stack([tensor, tensor]) for tensor in inputs.values()]
    with torch.no_grad():
        forward = across(graph, [tensor.dim() for tensor in inputs.values()])
        (both,) = forward(*stacked, *twice)
        for row, alone in zip(both, (weights, others), strict=True):
            (expected,) = graph(*alone, *inputs.values())
            torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
