import json

import pytest

from src.cli import main
from src.commands import init
from src.models.loading import load_model
from src.models.lora import count_parameters
from src.models.scratch import ARCHITECTURES
from src.models.tying import head_is_tied

SMALL = ["--hidden-size", "16", "--layers", "1", "--heads", "2", "--vocab-size", "300"]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("Anna: at 7:30?\nBen: yes, 좋아요.\n" * 3, encoding="utf-8")
    return str(path)


def test_it_offers_every_architecture():
    assert set(init.ARCHITECTURES) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", init.ARCHITECTURES)
def test_it_makes_a_model_and_says_what(architecture, corpus, tmp_path, capsys):
    output = str(tmp_path / "model")
    words = ["init", "--architecture", architecture, "--corpus", corpus, "--output", output, *SMALL, "--json"]
    assert main(words) == 0
    (row,) = json.loads(capsys.readouterr().out)
    model = load_model(output)
    assert row["architecture"] == architecture
    assert row["directory"] == output
    assert row["parameters"] == count_parameters(model).total
    assert row["vocabulary"] == model.config.vocab_size <= 300


def test_every_size_counts(corpus, tmp_path, capsys):
    words = ["init", "--architecture", "bart", "--corpus", corpus, "--output", str(tmp_path / "m")]
    assert main([*words, *SMALL, "--feed-forward-size", "24", "--max-positions", "50"]) == 0
    assert "bart" in capsys.readouterr().out
    config = load_model(tmp_path / "m").config
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (16, 1, 1)
    assert (config.encoder_attention_heads, config.decoder_ffn_dim, config.max_position_embeddings) == (2, 24, 50)


def test_untied_head(corpus, tmp_path):
    words = ["init", "--corpus", corpus, "--output", str(tmp_path / "m"), "--untied-head", *SMALL]
    assert main(words) == 0
    model = load_model(tmp_path / "m")
    assert not head_is_tied(model)
    assert model.config.feed_forward_proj == "gated-gelu"
    assert not model.config.scale_decoder_outputs


def test_bundled_sample_is_the_default_corpus(tmp_path, capsys):
    assert main(["init", "--output", str(tmp_path / "m"), *SMALL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["vocabulary"] == 300


def test_output_that_exists_is_refused_unless_overwritten(corpus, tmp_path, capsys):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").write_text("x")
    words = ["init", "--corpus", corpus, "--output", str(tmp_path / "m"), *SMALL]
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--heads", "3"], "not divisible by 3 heads"),
        (["--vocab-size", "10"], "it must be 259 or more"),
        (["--corpus", "nowhere.txt"], "there is no corpus file nowhere.txt"),
        (["--architecture", "rnn"], "invalid choice"),
        (["--layers", "many"], "it must be a whole number, 1 or more"),
    ],
)
def test_bad_input_is_one_line_and_status_two(words, said, corpus, tmp_path, capsys):
    base = ["init", "--corpus", corpus, "--output", str(tmp_path / "m"), *SMALL]
    assert main([*base, *words]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
