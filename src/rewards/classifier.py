"""A reward by a sequence classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from src.errors import ParleyError
from src.models.sources import quietly
from src.models.texts_to_classify import Text, check_text, load_classifier_tokenizer, reader_of, texts_to_score
from src.ranges import COUNT, Range
from src.rewards.base import Reward, full_precision


class ClassifierReward(Reward):
    """The score that a sequence classifier gives to one of its labels.

    The defaults are the published recipe's: the `nothate` logit on prompt and response. The classifier is loaded at the
    first call. A text that is too long is truncated at its beginning, so that the response at its end is kept.

    Args:
        model_name_or_path: A classifier's directory or hub name.
        label: The label whose score is the reward, as the classifier names it; null for a classifier with one output.
        output: The logit, or the probability: softmax over the labels, or sigmoid if the classifier has one output or
            is multi-label. Logits keep growing where probabilities saturate.
        text: What is classified: prompt, a space and the response, or the response alone.
        batch_size: Texts in a forward pass.
        max_length: The most tokens of a text; the classifier's own limit when left out.
        trust_remote_code: Allow code from the classifier's directory to run.
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
        """Move the classifier to a device, also if it is loaded later."""
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
        """Score texts; names of special tokens in them, such as `</s>`, are treated as plain text.

        Args:
            texts: What to classify; may be empty strings.

        Returns:
            Shape (texts,), float32, on the classifier's device.

        Raises:
            ParleyError: The classifier cannot be loaded, or lacks the label.
        """
        classifier = self._classifier()
        index = _label_index(classifier.model.config, self.label, self.model_name_or_path)
        logits = self._logits(texts)
        return (logits if self.output == "logit" else classifier.probabilities(logits))[:, index]

    @torch.no_grad()
    @full_precision()
    def labels(self, prompts: Sequence[str], responses: Sequence[str]) -> list[dict[str, tuple[float, float]]]:
        """Every label's logit and probability.

        Args:
            prompts: What the model was given.
            responses: What it answered, one for each prompt.

        Returns:
            For each response the pairs (logit, probability) by label name.

        Raises:
            ParleyError: The classifier cannot be loaded.
        """
        classifier = self._classifier()
        logits = self._logits(texts_to_score(prompts, responses, self.text))
        names = [str(classifier.model.config.id2label[index]) for index in range(logits.shape[1])]
        pairs = zip(logits.tolist(), classifier.probabilities(logits).tolist(), strict=True)
        return [dict(zip(names, zip(*pair, strict=True), strict=True)) for pair in pairs]

    def _logits(self, texts: Sequence[str]) -> Tensor:
        """The logits of all labels, shape (texts, labels), computed in batches of similar length."""
        classifier = self._classifier()
        logits = torch.zeros(len(texts), classifier.model.config.num_labels, device=self._device)
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(texts), self.batch_size):
            chosen = by_length[start : start + self.batch_size]
            logits[torch.tensor(chosen, device=self._device)] = classifier.logits([texts[index] for index in chosen])
        return logits

    def _classifier(self) -> _Classifier:
        if self._loaded is None:
            self._loaded = _Classifier(self.model_name_or_path, self.max_length, self.trust_remote_code)
            self._loaded.model.to(self._device)
        return self._loaded


class _Classifier:
    """A loaded classifier and its text encoder."""

    def __init__(self, name: str, max_length: int | None, trusted: bool) -> None:
        try:
            self.model: Any = _load(name, trusted)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ParleyError(
                f"the classifier {name!r} cannot be loaded ({reason}); name a directory that holds one, "
                "or a hub model that can be reached from here."
            ) from error
        self.model.eval().requires_grad_(False)
        tokenizer = load_classifier_tokenizer(name, self.model.config, trust_remote_code=trusted)
        self.reader = reader_of(self.model, tokenizer, max_length)

    def logits(self, texts: Sequence[str]) -> Tensor:
        """The logits of a batch of texts, shape (batch, labels), float32."""
        encoded = self.reader.tokenizer.pad({"input_ids": self.reader.ids(texts)}, return_tensors="pt")
        return self.model(**encoded.to(self.model.device)).logits.float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of the labels, shape (batch, labels)."""
        several = self.model.config.problem_type == "multi_label_classification"
        return logits.sigmoid() if several or logits.shape[1] == 1 else logits.softmax(-1)


def _load(name: str, trusted: bool) -> Any:
    """Load a classifier, or an adapter of one that Parley wrote."""
    from transformers import AutoModelForSequenceClassification

    from src.models.adapters import classifier_outputs
    from src.models.loading import load_model

    if (outputs := classifier_outputs(name)) is not None:
        return load_model(name, outputs=outputs, trust_remote_code=trusted)
    with quietly():
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, trust_remote_code=trusted, output_loading_info=True
        )
    if missing := sorted(report["missing_keys"]):  # which transformers fills with random numbers
        raise ParleyError(
            f"{name!r} is no classifier, or not a whole one: it has no {missing[0]}; name a classifier, or train one "
            "(RewardModule)."
        )
    return model


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
