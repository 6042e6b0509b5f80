"""Scores by a sequence classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from src.errors import ParleyError
from src.ranges import COUNT, Range
from src.rewards.base import Reward, full_precision

Text = Literal["prompt_and_response", "response"]


class ClassifierReward(Reward):
    """The score that a sequence classifier gives to one of its labels.

    The defaults are the published recipe's: the `nothate` logit on prompt and response. The classifier is loaded at the
    first call. A text longer than it can read loses its beginning, never the response at its end.

    Args:
        model_name_or_path: A classifier's directory or hub name.
        label: Whose score is the reward, by the classifier's own name for it; null for a classifier with one output.
        output: The raw logit, or its probability: softmax over the labels, a sigmoid where the classifier has one
            output or allows several labels at once. Logits go on growing where probabilities saturate.
        text: What is classified: prompt, a space and the response, or the response alone.
        batch_size: Texts in a forward pass.
        max_length: Tokens of a text at most; as many as the classifier can read when left out.
        trust_remote_code: Run the code that the classifier's directory brings.
    """

    def __init__(
        self,
        model_name_or_path: str = "facebook/roberta-hate-speech-dynabench-r4-target",
        label: str | None = "nothate",
        output: Literal["logit", "probability"] = "logit",
        text: Text = "prompt_and_response",
        batch_size: int = 16,
        max_length: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        COUNT.refuse("batch_size", batch_size)
        Range(1, note="null for all it can read").refuse("max_length", max_length)
        if output not in ("logit", "probability"):
            raise ParleyError(f"there is no output {output!r}; choose logit or probability.")
        check_text(text)
        self.model_name_or_path = model_name_or_path
        self.label = label
        self.output = output
        self.text = text
        self.batch_size = batch_size
        self.max_length = max_length
        self.trust_remote_code = trust_remote_code
        self._device = torch.device("cpu")
        self._loaded: _Classifier | None = None

    def to(self, device: torch.device | str) -> ClassifierReward:
        """Run the classifier on this device from now on."""
        self._device = torch.device(device)
        if self._loaded is not None:
            self._loaded.model.to(self._device)
        return self

    def __call__(self, prompts: list[str], responses: list[str]) -> Tensor:
        """Score each response, shape (batch,), float32, on the classifier's device."""
        return self.score_texts(texts_to_score(prompts, responses, self.text))

    @torch.no_grad()
    @full_precision()
    def score_texts(self, texts: Sequence[str]) -> Tensor:
        """Score texts as they are: the name of a special token in one, such as `</s>`, is text like any other.

        Args:
            texts: What to classify; may be empty strings.

        Returns:
            Shape (texts,), float32, on the classifier's device.

        Raises:
            ParleyError: The classifier cannot be loaded, or lacks the label.
        """
        classifier = self._classifier()
        scores = torch.zeros(len(texts), device=self._device)
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(texts), self.batch_size):
            chosen = by_length[start : start + self.batch_size]
            logits = classifier.logits([texts[index] for index in chosen])
            outputs = logits if self.output == "logit" else classifier.probabilities(logits)
            scores[torch.tensor(chosen, device=self._device)] = outputs[:, classifier.index]
        return scores

    def _classifier(self) -> _Classifier:
        if self._loaded is None:
            self._loaded = _Classifier(self.model_name_or_path, self.label, self.max_length, self.trust_remote_code)
            self._loaded.model.to(self._device)
        return self._loaded


class _Classifier:
    """A loaded classifier: its model and tokenizer, the place of the label and how much it can read."""

    def __init__(self, name: str, label: str | None, max_length: int | None, trusted: bool) -> None:
        from transformers import AutoModelForSequenceClassification

        from src.models.texts import tell_names_from_tokens
        from src.models.tokenizer import read_tokenizer

        try:
            self.model = AutoModelForSequenceClassification.from_pretrained(
                name, dtype=torch.float32, trust_remote_code=trusted
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ParleyError(
                f"the classifier {name!r} cannot be loaded ({reason}); name a directory that holds one, "
                "or a hub model that can be reached from here."
            ) from error
        self.model.eval().requires_grad_(False)
        self.tokenizer = read_tokenizer(name, trust_remote_code=trusted)
        self.tokenizer.truncation_side = "left"
        self.tokenizer.padding_side = "right"  # where a model that takes its answer from the last token finds it
        self._settle_padding(name)
        tell_names_from_tokens(self.tokenizer)
        self.index = _label_index(self.model.config, label, name)
        self.max_length = min(
            max_length or _readable(self.model, self.tokenizer), _readable(self.model, self.tokenizer)
        )

    def _settle_padding(self, name: str) -> None:
        """Let model and tokenizer agree on a padding token: the one's, the other's or, as for GPT-2, EOS."""
        config, tokenizer = self.model.config.get_text_config(), self.tokenizer
        if tokenizer.pad_token is None and config.pad_token_id is not None:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
        elif tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise ParleyError(f"the tokenizer of the classifier {name!r} has no padding token; set its pad_token.")
        config.pad_token_id = tokenizer.pad_token_id

    def logits(self, texts: Sequence[str]) -> Tensor:
        """What the classifier says of a batch of texts, shape (batch, labels)."""
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            padding=True,
            split_special_tokens=True,
            return_tensors="pt",
        ).to(self.model.device)
        if not encoded["input_ids"].shape[1]:
            padding = torch.full((len(texts), 1), self.tokenizer.pad_token_id, device=self.model.device)
            encoded = {"input_ids": padding, "attention_mask": torch.ones_like(padding)}
        encoded["attention_mask"][:, 0] = 1  # a text without tokens is one token of padding, alone as in a batch
        return self.model(**encoded).logits.float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of the labels, shape (batch, labels)."""
        several = self.model.config.problem_type == "multi_label_classification"
        return logits.sigmoid() if several or logits.shape[1] == 1 else logits.softmax(-1)


def check_text(text: str) -> None:
    """Complain about a `text` argument that `texts_to_score` does not know."""
    if text not in get_args(Text):
        raise ParleyError(f"there is no text {text!r}; choose {' or '.join(get_args(Text))}.")


def texts_to_score(prompts: Sequence[str], responses: Sequence[str], text: Text) -> list[str]:
    """What a reward reads of each pair: prompt, a space and the response, or the response alone."""
    if text == "response":
        return list(responses)
    return [f"{prompt} {response}" for prompt, response in zip(prompts, responses, strict=True)]


def _label_index(config: Any, label: str | None, name: str) -> int:
    labels = {str(known): int(index) for index, known in config.id2label.items()}
    if label is None:
        if len(labels) == 1:
            return 0
        raise ParleyError(f"the classifier {name!r} has several labels; set `label` to one of: {', '.join(labels)}.")
    if label in labels:
        return labels[label]
    if len(labels) == 1:
        raise ParleyError(f"the classifier {name!r} has one output and no label {label!r}; set `label` to null.")
    raise ParleyError(f"the classifier {name!r} has no label {label!r}; choose one of: {', '.join(labels)}.")


def _readable(model: Any, tokenizer: Any) -> int:
    """How many tokens the classifier can read; a tokenizer that does not know says 10³⁰."""
    limits = [tokenizer.model_max_length]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits += [positions] if positions is not None else []
    for module_name, module in model.named_modules():
        if module_name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from behind its padding index, which costs that many places.
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - taken)
    readable = min(limits)
    return readable if readable < 1_000_000 else 512
