import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    set_seed,
)

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "good", "bad", "day", "you", "are", "a", "have", "nice", "fool", "so", "very"]


@pytest.fixture(scope="session")
def make_classifier(tmp_path_factory):
    """Make a small classifier's directory: `make_classifier(["nothate", "hate"], roberta=True)`."""

    def make(labels, roberta=True, positions=32, knows_length=False, **config):
        path = tmp_path_factory.mktemp("classifier")
        words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
        length = {"model_max_length": positions} if knows_length else {}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **length
        )
        tokenizer.save_pretrained(path)
        sizes = {
            "vocab_size": len(WORDS),
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": positions,
            "pad_token_id": 1,
            "id2label": dict(enumerate(labels)),
            "label2id": {label: place for place, label in enumerate(labels)},
            "num_labels": len(labels),
            "initializer_range": 0.5,
        }
        set_seed(0)
        if roberta:
            model = RobertaForSequenceClassification(RobertaConfig(**(sizes | config)))
        else:
            model = BertForSequenceClassification(BertConfig(**(sizes | config)))
        model.save_pretrained(path)
        return str(path)

    return make
