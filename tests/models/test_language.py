"""Text encoders and the two towers."""

import sys

import pytest
import torch

from polyspace.models.language import (
    DummyTextEncoder,
    HubTextEncoder,
    TwoTowers,
    build_text_encoder,
    check_text_encoder,
    packaged_minilm,
)
from polyspace.utils.errors import UserError


def test_the_dummy_reads_words_and_their_order():
    encoder = DummyTextEncoder(dim=32).eval()
    a = encoder(["a red disc above a blue ring", "A red disc, above a BLUE ring!", "a blue disc above a red ring"])
    assert torch.allclose(a[0], a[1]) and not torch.allclose(a[0], a[2], atol=1e-3)


def test_longer_neighbours_change_nothing():
    encoder = DummyTextEncoder(dim=32).eval()
    alone, beside = encoder(["red disc"]), encoder(["red disc", "a very long sentence about many other things"])
    assert torch.allclose(alone[0], beside[0], atol=1e-6)


@pytest.mark.parametrize("text", ["", "  ", "?!"])
def test_a_caption_without_a_word_is_an_error(text):
    with pytest.raises(UserError, match="without a word"):
        DummyTextEncoder(dim=32)([text])


def test_unknown_encoders_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(UserError, match="did you mean 'minilm'"):
        check_text_encoder("minilmm")
    with pytest.raises(UserError, match="takes no source"):
        check_text_encoder("dummy=here")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"polyspace\[text\]"):
        check_text_encoder("minilm")


def test_local_clip_and_bert_folders_serve_offline(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "a", "red", "blue", "disc", "ring"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=7, **shape))
    text = {"vocab_size": 7, "projection_dim": 12, "eos_token_id": 6, "bos_token_id": 2, "pad_token_id": 0, **shape}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=shape, projection_dim=12))
    for name, model, dim in (("bert", bert, 16), ("clip", clip, 12)):
        model.save_pretrained(tmp_path / name)
        fast.save_pretrained(tmp_path / name)
        encoder = build_text_encoder(f"{name}={tmp_path / name}")
        assert isinstance(encoder, HubTextEncoder) and encoder.dim == dim and not encoder.trained
        out = encoder(["a red disc", "a blue ring ring ring"])
        assert out.shape == (2, dim) and torch.allclose(out[0], encoder(["a red disc"])[0], atol=1e-5)
    with pytest.raises(UserError, match="can't be loaded"):
        build_text_encoder(f"bert={tmp_path / 'nowhere'}")


def test_the_packaged_sentence_encoder_knows_what_sentences_mean():
    pytest.importorskip("transformers")
    try:
        packaged_minilm()
    except UserError as error:
        pytest.skip(str(error))
    x = build_text_encoder("minilm")(["a dog runs on grass", "a puppy is running over a lawn", "the tax form is late"])
    x = torch.nn.functional.normalize(x, dim=-1)
    assert x.shape == (3, 384) and x[0] @ x[1] > x[0] @ x[2] + 0.3
    assert "sentence_transformers" not in sys.modules  # the weights alone are used


def test_the_temperature_is_clamped_and_still_learns():
    towers = TwoTowers(8, 8, 4, heads=2)
    with torch.no_grad():
        towers.log_temperature.fill_(-20.0)
    assert towers.temperature.item() == pytest.approx(0.01)
    towers.temperature.backward()
    assert towers.log_temperature.grad is not None and towers.log_temperature.grad != 0


def test_embeddings_are_unit_vectors_of_one_width():
    towers = TwoTowers(8, 6, 5, heads=2)
    video, text = towers.embed_video(torch.randn(3, 4, 8), None), towers.embed_text(torch.randn(2, 6))
    assert video.shape == (3, 5) and text.shape == (2, 5)
    assert torch.allclose(video.norm(dim=1), torch.ones(3)) and torch.allclose(text.norm(dim=1), torch.ones(2))
