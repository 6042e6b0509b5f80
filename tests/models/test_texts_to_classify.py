"""What a reward model is trained on is what `ClassifierReward` scores: the same ids, whatever the architecture."""

import pytest
import torch
from tokenizers import processors
from transformers import AutoTokenizer

from src.errors import ParleyError
from src.models.loading import load_model
from src.models.saving import save_model
from src.models.texts_to_classify import load_classifier_tokenizer, load_reader, reader_of, texts_to_score
from src.rewards import ClassifierReward

ARCHITECTURES = ["t5", "bart", "gpt2", "llama", "bert"]
PROMPTS = ["have a nice day", "you </s> are", "", "very very bad"]
ANSWERS = ["good", "a fool <pad>", "", "so " * 90]


@pytest.fixture
def base(tiny_base, make_classifier):
    def make(architecture):
        return make_classifier(["a", "b"], roberta=False) if architecture == "bert" else str(tiny_base(architecture))

    return make


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_and_reward_read_the_same_ids(base, tmp_path, architecture):
    name = base(architecture)
    reader = load_reader(name)
    model = load_model(name, outputs=1)
    save_model(model, load_classifier_tokenizer(name, model.config), tmp_path / "reward")
    reward = ClassifierReward(str(tmp_path / "reward"), label=None)
    texts = texts_to_score(PROMPTS, ANSWERS, "prompt_and_response")
    ids = reader.ids(texts)
    scoring = reward._classifier().reader
    assert ids == scoring.ids(texts)
    assert reader.max_length == scoring.max_length
    eos = model.config.eos_token_id
    if model.config.is_encoder_decoder:  # which takes its answer from there
        assert [row.count(eos) for row in ids] == [1] * 4
        assert all(row[-1] == eos for row in ids)
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([row])).logits[0, 0] for row in ids]
    torch.testing.assert_close(reward(PROMPTS, ANSWERS), torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_a_tokenizer_that_does_not_end_texts_is_made_to(tiny_base, tmp_path):
    """As KoBART's does not; stock transformers then reads the same from what is saved."""
    model = load_model(tiny_base("bart"), outputs=1)
    bare = AutoTokenizer.from_pretrained(tiny_base("bart"))
    bare.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", special_tokens=[])
    bare.save_pretrained(tmp_path / "bare")
    tokenizer = load_classifier_tokenizer(str(tmp_path / "bare"), model.config)
    ids = reader_of(model, tokenizer).ids(["good day", ""])
    assert [row[-1] for row in ids] == [model.config.eos_token_id] * 2
    save_model(model, tokenizer, tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(["good day", ""])["input_ids"] == ids


def test_a_fresh_head_depends_on_the_seed_alone(tiny_base):
    heads = []
    for drawn, seed in ((0, 1), (7, 1), (0, 2)):
        torch.manual_seed(seed)
        torch.rand(drawn)
        before = torch.get_rng_state()
        heads.append(load_model(tiny_base("gpt2"), outputs=1).score.weight)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_what_has_no_classifier_and_what_is_one_are_told_in_a_line(tiny_base, make_classifier, tmp_path):
    with pytest.raises(ParleyError, match="is a classifier"):
        load_model(make_classifier(["a"]))
    from transformers import MarianConfig

    MarianConfig().save_pretrained(tmp_path)
    with pytest.raises(ParleyError, match="no sequence classifier"):
        load_model(tmp_path, outputs=1)
