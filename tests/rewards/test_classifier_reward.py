import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForSequenceClassification,
)

from src.errors import ParleyError
from src.rewards import ClassifierReward, WeightedSum, score_responses

PROMPTS = ["have a nice day", "you are", "so", "very very bad"]
RESPONSES = ["good", "a fool", "", "have a very very very very nice day you fool"]


def one_by_one(path, texts):
    """Logits without batching, sorting or padding."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])


@pytest.fixture(scope="module")
def hate(make_classifier):
    return make_classifier(["nothate", "hate"])


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_published_reward_is_the_nothate_logit_of_prompt_and_response(hate, batch_size):
    scores = score_responses(ClassifierReward(hate, batch_size=batch_size), PROMPTS, RESPONSES)
    texts = [f"{prompt} {response}" for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    torch.testing.assert_close(scores, one_by_one(hate, texts)[:, 0], rtol=1e-4, atol=1e-5)


def test_defaults_are_the_published_recipe():
    reward = ClassifierReward()
    assert reward.model_name_or_path == "facebook/roberta-hate-speech-dynabench-r4-target"
    assert (reward.label, reward.output, reward.text) == ("nothate", "logit", "prompt_and_response")
    assert reward.batch_size == 16


def test_probability_label_and_response_alone(hate):
    reward = ClassifierReward(hate, label="hate", output="probability", text="response")
    expected = one_by_one(hate, RESPONSES).softmax(-1)[:, 1]
    torch.testing.assert_close(reward(PROMPTS, RESPONSES), expected, rtol=1e-4, atol=1e-5)


def test_a_regression_head(make_classifier):
    path = make_classifier(["quality"], roberta=False)
    expected = one_by_one(path, RESPONSES)[:, 0]
    logit = ClassifierReward(path, label=None, text="response")
    torch.testing.assert_close(logit(PROMPTS, RESPONSES), expected, rtol=1e-4, atol=1e-5)
    probability = ClassifierReward(path, label="quality", text="response", output="probability")
    torch.testing.assert_close(probability(PROMPTS, RESPONSES), expected.sigmoid(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ParleyError, match="has one output and no label 'nothate'; set `label` to null"):
        ClassifierReward(path)(PROMPTS, RESPONSES)


def test_several_labels_at_once_have_a_sigmoid_each(make_classifier):
    path = make_classifier(["toxic", "insult", "threat"], problem_type="multi_label_classification")
    reward = ClassifierReward(path, label="insult", output="probability", text="response")
    expected = one_by_one(path, RESPONSES).sigmoid()[:, 1]
    torch.testing.assert_close(reward(PROMPTS, RESPONSES), expected, rtol=1e-4, atol=1e-5)


def test_a_label_the_classifier_lacks_names_those_it_has(hate):
    with pytest.raises(ParleyError, match=r"has no label 'toxic'; choose one of: nothate, hate\.$"):
        ClassifierReward(hate, label="toxic")(PROMPTS, RESPONSES)
    with pytest.raises(ParleyError, match=r"several labels; set `label` to one of: nothate, hate\.$"):
        ClassifierReward(hate, label=None)(PROMPTS, RESPONSES)


@pytest.mark.parametrize("roberta", [True, False])
@pytest.mark.parametrize("knows_length", [True, False])
def test_a_text_too_long_loses_its_beginning_and_keeps_the_response(make_classifier, roberta, knows_length):
    """The tokenizer may not know the limit, and RoBERTa's tables hold 2 places fewer than they say."""
    path = make_classifier(["nothate", "hate"], roberta=roberta, positions=20, knows_length=knows_length)
    reward = ClassifierReward(path)
    long = " ".join(["very"] * 100)
    scores = reward([long, long], ["you are good", "you are bad"])
    assert torch.isfinite(scores).all()
    assert scores[0] != scores[1]
    readable = 20 - 2 * roberta
    kept = " ".join(["very"] * (readable - 5) + ["you are good"])  # and two special tokens
    assert scores[0].item() == pytest.approx(one_by_one(path, [kept])[0, 0].item(), abs=1e-4)


def rewrite(path, kind, positions=32):
    """Put another architecture's classifier into a made one's directory; decoder-only ones without special tokens."""
    from transformers import (
        BartConfig,
        BartForSequenceClassification,
        GPT2Config,
        GPT2ForSequenceClassification,
        LlamaConfig,
        LlamaForSequenceClassification,
    )

    ids = {"bos_token_id": 0, "eos_token_id": 2, "vocab_size": 15}
    small = {"max_position_embeddings": positions, "initializer_range": 0.5, "init_std": 0.5}
    torch.manual_seed(1)
    if kind == "bart":
        heads = {f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        widths = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
        BartForSequenceClassification(BartConfig(**ids, **heads, **widths, **small, pad_token_id=1)).save_pretrained(
            path
        )
        return path
    if kind == "gpt2":
        config = GPT2Config(**ids, n_positions=positions, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5)
        GPT2ForSequenceClassification(config).save_pretrained(path)
    else:
        widths = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        LlamaForSequenceClassification(LlamaConfig(**ids, **widths, **small)).save_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = None
    tokenizer.padding_side = "left"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A", special_tokens=[])
    tokenizer.save_pretrained(path)
    assert AutoTokenizer.from_pretrained(path).pad_token is None
    return path


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_only_classifier_without_a_padding_token(make_classifier, kind):
    path = rewrite(make_classifier(["bad", "good"]), kind)
    reward = ClassifierReward(path, label="LABEL_1", text="response")
    scores = reward(PROMPTS, RESPONSES)
    expected = one_by_one(path, RESPONSES[:2] + RESPONSES[3:])[:, 1]
    torch.testing.assert_close(scores[[0, 1, 3]], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["roberta", "bart", "gpt2", "llama"])
def test_an_empty_response_has_the_same_score_alone_and_among_others(make_classifier, kind):
    path = make_classifier(["LABEL_0", "LABEL_1"])
    path = path if kind == "roberta" else rewrite(path, kind)
    reward = ClassifierReward(path, label="LABEL_1", text="response")
    empty = reward(["so"] * 3, ["", "", ""])
    assert torch.isfinite(empty).all()
    torch.testing.assert_close(empty, reward(PROMPTS, RESPONSES)[[2, 2, 2]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["roberta", "bart", "gpt2", "llama"])
def test_the_name_of_a_special_token_in_a_response_is_text(make_classifier, kind):
    """BART takes its answer from EOS, of which each text must have as many; others from the last real token."""
    path = make_classifier(["LABEL_0", "LABEL_1"])
    path = path if kind == "roberta" else rewrite(path, kind)
    responses = ["good </s> bad", "you", "good </s>", "<pad> <pad>"]
    scores = ClassifierReward(path, label="LABEL_1", text="response")([""] * 4, responses)
    spelled = ["good </ s > bad", "you", "good </ s >", "< pad > < pad >"]  # what it has no word for is <unk>
    torch.testing.assert_close(scores, one_by_one(path, spelled)[:, 1], rtol=1e-4, atol=1e-5)


def test_the_name_of_a_special_token_is_text_to_a_tokenizer_of_unigrams(tmp_path):
    """T5's, XLM-RoBERTa's and DeBERTa's have the special tokens among their words; T5 wants one EOS in each text."""
    words = [(word, 0.0) for word in ("<pad>", "</s>", "<unk>")] + [(letter, -3.0) for letter in "▁abcs</>"]
    backend = Tokenizer(models.Unigram(words, unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(tmp_path)
    sizes = {"vocab_size": len(words), "d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1}
    model = T5ForSequenceClassification(T5Config(**sizes, decoder_start_token_id=0)).eval()
    model.save_pretrained(tmp_path)
    scores = ClassifierReward(str(tmp_path), label="LABEL_1", text="response")(["", ""], ["a </s> b", "c"])
    letters = [["▁", "a", "▁", "<", "/", "s", ">", "▁", "b", "</s>"], ["▁", "c", "</s>"]]
    places = [[[word for word, _ in words].index(letter) for letter in text] for text in letters]
    with torch.no_grad():
        expected = torch.cat([model(input_ids=torch.tensor([ids])).logits[:, 1] for ids in places])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_file_is_read_as_it_is_whatever_class_is_named(make_classifier):
    """Of class BartTokenizer as KoBART's, it would be rebuilt byte-level, and Korean come out as nothing."""
    path = make_classifier(["nothate", "hate"])
    before = AutoTokenizer.from_pretrained(path)("you are good")["input_ids"]
    settings = Path(path, "tokenizer_config.json")
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "BartTokenizer"}))
    assert AutoTokenizer.from_pretrained(path)("you are good")["input_ids"] != before, "else there is nothing to mend"
    scores = ClassifierReward(path, text="response")([""] * 4, RESPONSES)
    expected = one_by_one(make_classifier(["nothate", "hate"]), RESPONSES)[:, 0]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bart", "gpt2", "llama"])
def test_a_classifier_with_few_positions_reads_the_end_of_the_text(make_classifier, kind):
    path = rewrite(make_classifier(["LABEL_0", "LABEL_1"]), kind, positions=12)
    long = " ".join(["very"] * 100)
    scores = ClassifierReward(path, label="LABEL_1")([long, long], ["you are good", "you are bad"])
    kept = " ".join(["very"] * (12 - 3 - 2 * (kind == "bart")))
    expected = one_by_one(path, [f"{kept} you are good", f"{kept} you are bad"])[:, 1]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
def test_scores_are_float32_whatever_precision_is_around(make_classifier, default):
    """`bf16-mixed` is autocast, `bf16-true` a default dtype; the file may be in half precision too."""
    path = make_classifier(["nothate", "hate"])
    AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.bfloat16).save_pretrained(path)
    expected = ClassifierReward(path)(PROMPTS, RESPONSES)
    assert not torch.equal(expected, expected.bfloat16().float())
    torch.set_default_dtype(default)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for scores in (
                ClassifierReward(path)(PROMPTS, RESPONSES),
                score_responses(ClassifierReward(path), PROMPTS, RESPONSES),
                score_responses(WeightedSum([ClassifierReward(path)]), PROMPTS, RESPONSES),
            ):
                assert torch.equal(scores, expected)
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(torch.float32)


def test_max_length_shortens_further(hate):
    reward = ClassifierReward(hate, max_length=5)
    kept = one_by_one(hate, ["you are bad"])[0, 0].item()
    assert reward(["so very very good day"], ["you are bad"]).item() == pytest.approx(kept, abs=1e-4)


def test_it_loads_at_the_first_call_and_once(hate, monkeypatch):
    loads = []
    original = AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(
        AutoModelForSequenceClassification,
        "from_pretrained",
        lambda *args, **kwargs: loads.append(args) or original(*args, **kwargs),
    )
    reward = ClassifierReward(hate).to("cpu")
    assert not loads
    reward(PROMPTS, RESPONSES)
    reward.to("cpu")(PROMPTS, RESPONSES)
    assert len(loads) == 1


def test_no_responses_give_no_scores(hate):
    assert ClassifierReward(hate)([], []).shape == (0,)


def test_a_directory_without_a_classifier_is_one_line(tmp_path):
    with pytest.raises(ParleyError, match=r"^the classifier '.*' cannot be loaded \([^\n]*$"):
        ClassifierReward(str(tmp_path))(PROMPTS, RESPONSES)


@pytest.mark.parametrize("architecture", ["t5", "gpt2", "llama"])
def test_a_language_model_gets_no_random_head(tiny_base, architecture):
    with pytest.raises(ParleyError, match=r"is no classifier, or not a whole one: it has no \S+; name a classifier"):
        ClassifierReward(str(tiny_base(architecture)), label=None)(PROMPTS, RESPONSES)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"output": "odds"}, "no output 'odds'"),
        ({"text": "prompt"}, "no text 'prompt'"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_arguments_that_make_no_sense(arguments, complaint):
    with pytest.raises(ParleyError, match=complaint):
        ClassifierReward("somewhere", **arguments)
