"""The drawn traffic of the policy benchmark is what it says, and the same each time."""

import pytest

<<<<<<< HEAD
from loader.graph import Graph, read_graph
from loader.manifest import ModelSpec, read_manifest
from loader.pack import Packed, pack
from loader.weights import unpack
=======
from bench.families import DISK, FAMILIES, RAM, SERVEGEN, Fleet
from bench.policies import plain_lru
from eviction.lru import Lru
from eviction.simulate.replay import replay
from eviction.simulate.trace import Trace
>>>>>>> main

DRAWN = sorted(set(FAMILIES) - {"servegen"})


@pytest.mark.parametrize("name", DRAWN)
def test_a_family_is_drawn_by_its_seed(name: str) -> None:
    one, same, other = (FAMILIES[name](seed) for seed in (1, 1, 2))
    assert one == same
    assert list(one.ids) != list(other.ids)
    assert list(one.times) == sorted(one.times)
    assert 55_000 <= len(one) <= 130_000
    assert min(one.nbytes) >= 1_000_000
    assert max(one.nbytes) <= 2_000_000_000


def test_servegen_keeps_its_arrivals_and_draws_its_fleet() -> None:
    if not SERVEGEN.exists():
        pytest.skip("shared/traces is absent")
    one, other = FAMILIES["servegen"](0), FAMILIES["servegen"](1)
    assert len(one) == 388_245
    assert list(one.ids) == list(other.ids)
    assert list(one.nbytes) != list(other.nbytes)


def test_a_nearer_tier_is_faster() -> None:
    fleet = Fleet(200, 3)
    both = zip(fleet.reload_s(RAM), fleet.reload_s(DISK), strict=True)
    assert all(near < far for near, far in both)


<<<<<<< HEAD
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
=======
def test_plain_lru_differs_from_ours_only_by_the_spared() -> None:
    equal = Trace(
        "t",
        [0.0] * 60,
        [i * 7 % 11 for i in range(60)],
        list("abcdefghijk"),
        [5] * 11,
        [1.0] * 11,
>>>>>>> main
    )
    assert plain_lru(equal, 30) == replay(equal, Lru(), 30).missed_cost
