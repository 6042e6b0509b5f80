"""Prompt formats of decoder-only models: plain text, turns in `<s>` and `</s>`, or a chat template.

A prompt is a text, or a conversation that ends with the user's turn; a text is a conversation of one turn.
An encoder-decoder needs no format, since it reads the prompt and writes the answer separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from src.contracts import Turn
from src.errors import ParleyError
from src.models.endings import TURN_END, TURN_START, close_answer, ending_ids
from src.models.sources import first_line
from src.models.texts import disguise, rendered_pieces, text_ids

Format = Literal["auto", "plain", "published", "chat"]
Prompt = str | Sequence[Turn]


@dataclass(frozen=True)
class TalkIds:
    """A prompt's token ids.

    Attributes:
        ids: Everything before the first token of the answer.
        answers: The spans (start, stop) of the assistant's earlier turns, each including its end token.
    """

    ids: list[int]
    answers: list[tuple[int, int]]


def resolve_format(
    format: Format, tokenizer: PreTrainedTokenizerBase, *, is_encoder_decoder: bool, turns: bool
) -> Format:
    """Choose the format for a model if it is `auto`, and refuse unsupported formats.

    Args:
        format: The configured format.
        tokenizer: The model's tokenizer.
        is_encoder_decoder: Whether the model has an encoder: then only `plain` is allowed.
        turns: Whether `auto` may choose `published`, as for question and answer.

    Returns:
        `plain`, `published` or `chat`.

    Raises:
        ParleyError: The model does not support the format.
    """
    if is_encoder_decoder:
        if format not in ("auto", "plain"):
            raise ParleyError(
                f"format is {format!r}, which joins prompt and answer, but the model is an encoder-decoder; "
                "leave format out."
            )
        return "plain"
    has_template = bool(tokenizer.chat_template)
    has_turns = tokenizer.get_vocab().keys() >= {TURN_START, TURN_END}
    if format == "auto":
        return "chat" if has_template else "published" if turns and has_turns else "plain"
    if format == "chat" and not has_template:
        raise ParleyError("format is 'chat', but the model's tokenizer has no chat template; use plain or published.")
    if format == "published" and not has_turns:
        raise ParleyError(
            f"format is 'published', but the model's tokenizer has no {TURN_START} and {TURN_END}; use plain or chat."
        )
    return format


class _RewrittenError(ParleyError):
    """A chat template renders earlier turns differently once later ones follow."""


def prompt_ids(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, format: Format) -> list[list[int]]:
    """The ids of prompts whose earlier answers are not learned, so that a chat template may rewrite earlier turns.

    Args:
        prompts: As for `talk_ids`.
        tokenizer: The model's tokenizer.
        format: The format; resolved, not `auto`.

    Raises:
        ParleyError: The chat template fails.
    """
    if format != "chat":
        return [talk.ids for talk in talk_ids(prompts, tokenizer, format)]
    return [list(chain.from_iterable(_prompt_pieces(_turns(prompt), tokenizer))) for prompt in prompts]


def talk_ids(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, format: Format) -> list[TalkIds]:
    """Everything before the first token of the answer, as a decoder-only model reads it in training and generation.

    - `plain`: the tokenizer's initial special tokens and the prompt, with a newline at its end unless it ends in white
      space. In a conversation each assistant turn follows in the same way and ends in EOS, and the system prompt is in
      lines before the user's.
    - `published`: `<s>` prompt `</s>` `<s>`; in a conversation every turn is enclosed in this way.
    - `chat`: the chat template's turns and its generation prompt.

    A conversation's ids begin with the ids of its first turns, so that the ids before an answer do not depend on what
    follows.

    Args:
        prompts: The prompts; conversations end with the user's turn.
        tokenizer: The model's tokenizer.
        format: The format; resolved, not `auto`.

    Raises:
        ParleyError: The chat template fails, or renders earlier turns differently once later ones follow.
    """
    talks = [_turns(prompt) for prompt in prompts]
    if format == "chat":
        endings = ending_ids(tokenizer)
        return [_by_template(talk, tokenizer, endings) for talk in talks]
    if format == "published":
        return _in_marks(talks, tokenizer)
    return _as_plain_text(talks, tokenizer)


def answer_ids(
    prompts: Sequence[Prompt], answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, format: Format
) -> list[list[int]]:
    """The ids of answers as they follow `prompt_ids`, including the end token.

    Args:
        prompts: The prompts, which some chat templates need.
        answers: One per prompt.
        tokenizer: The model's tokenizer.
        format: The format; resolved, not `auto`.

    Raises:
        ParleyError: The chat template does not put the answer after its own generation prompt.
    """
    if format == "published":
        end = tokenizer.get_vocab()[TURN_END]
        return [[*ids, end] for ids in text_ids(answers, tokenizer)]
    endings = ending_ids(tokenizer)
    if format == "plain":
        return [[*ids, *endings[:1]] for ids in text_ids(answers, tokenizer)]
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        talk = _disguised([*_turns(prompt), Turn("assistant", answer)], tokenizer)
        before = _render(tokenizer, talk[:-1], add_generation_prompt=True)
        ids = rendered_pieces([before, _answer_after(before, talk, tokenizer)], tokenizer)[-1]
        found.append(close_answer(ids, tokenizer, endings))
    return found


def _turns(prompt: Prompt) -> Sequence[Turn]:
    return [Turn("user", prompt)] if isinstance(prompt, str) else prompt


def _as_plain_text(talks: Sequence[Sequence[Turn]], tokenizer: PreTrainedTokenizerBase) -> list[TalkIds]:
    pieces = [_lines_and_answers(talk) for talk in talks]
    eos, end = tokenizer.eos_token_id, ending_ids(tokenizer)[:1]
    first = text_ids([first for first, *_ in pieces], tokenizer, special=True)
    opened = [ids[:-1] if ids and ids[-1] == eos else ids for ids in first]
    others = iter(text_ids(list(chain.from_iterable(rest for _, *rest in pieces)), tokenizer))
    found = []
    for ids, texts in zip(opened, pieces, strict=True):
        answers = []
        for number, _ in enumerate(texts[1:]):
            start, ids = len(ids), [*ids, *next(others)]
            if number % 2 == 0:
                ids = [*ids, *end]
                answers.append((start, len(ids)))
        found.append(TalkIds(ids, answers))
    return found


def _lines_and_answers(talk: Sequence[Turn]) -> list[str]:
    """The texts of a conversation, alternately those before an answer and the answer, up to the last question."""
    pieces, lines = [], ""
    for turn in talk:
        if turn.role == "assistant":
            pieces += [lines, turn.content]
            lines = ""
        else:
            lines += turn.content if turn.content[-1:].isspace() else f"{turn.content}\n"
    return [*pieces, lines]


def _in_marks(talks: Sequence[Sequence[Turn]], tokenizer: PreTrainedTokenizerBase) -> list[TalkIds]:
    start, end = tokenizer.get_vocab()[TURN_START], tokenizer.get_vocab()[TURN_END]
    contents = iter(text_ids([turn.content for talk in talks for turn in talk], tokenizer))
    found = []
    for talk in talks:
        ids, answers = [start], []
        for turn in talk:
            first, ids = len(ids), [*ids, *next(contents), end]
            if turn.role == "assistant":
                answers.append((first, len(ids)))
            ids.append(start)
        found.append(TalkIds(ids, answers))
    return found


def _by_template(talk: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, endings: Sequence[int]) -> TalkIds:
    texts = tokenizer.convert_ids_to_tokens(list(endings))
    pieces = rendered_pieces(_pieces(_disguised(talk, tokenizer), tokenizer, texts), tokenizer)
    ids: list[int] = []
    answers = []
    for number, piece in enumerate(pieces):
        if number % 2:
            closed = close_answer(piece, tokenizer, endings)
            answers.append((len(ids), len(ids) + min(len(closed), len(piece))))
        ids += piece
    return TalkIds(ids, answers)


def _disguised(talk: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> list[Turn]:
    hide = disguise(tokenizer)
    return [replace(turn, content=hide(turn.content)) for turn in talk]


def _prompt_pieces(talk: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of a prompt's rendered pieces; if the template rewrites earlier turns, the prompt is one piece."""
    talk = _disguised(talk, tokenizer)
    try:
        pieces = _pieces(talk, tokenizer, tokenizer.convert_ids_to_tokens(ending_ids(tokenizer)))
    except _RewrittenError:
        pieces = [_render(tokenizer, talk, add_generation_prompt=True)]
    return rendered_pieces(pieces, tokenizer)


def _pieces(talk: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, endings: Sequence[str]) -> list[str]:
    """Render a disguised conversation in pieces, alternately the text before an answer and the answer.

    The last piece is the text before the next answer. The newline that templates put after the end of a turn is not
    generated, and so belongs to the piece after the answer.

    Raises:
        ParleyError: The template fails, does not put an answer after its generation prompt, or renders earlier turns
            differently once later ones follow.
    """
    pieces: list[str] = []
    done = ""
    answers = [number for number, turn in enumerate(talk) if turn.role == "assistant"]
    for number in [*answers, len(talk)]:
        before = _render(tokenizer, talk[:number], add_generation_prompt=True)
        if pieces:
            pieces[-1] = _as_it_goes_on(pieces[-1], before[len(done) :], endings)
            done += pieces[-1]
        pieces.append(before[len(done) :])
        done = before
        if number < len(talk):
            pieces.append(_answer_after(before, talk[: number + 1], tokenizer))
    return pieces


def _as_it_goes_on(answer: str, rest: str, endings: Sequence[str]) -> str:
    """An answer as the template renders it when more turns follow.

    Phi-3's template, for one, puts EOS after the whole conversation, behind the turn's end token.

    Args:
        answer: The answer as rendered as the last turn.
        rest: The text after the answer's prompt in a conversation with more turns.
        endings: The tokens that end an answer, as text.

    Raises:
        ParleyError: The answer is rendered differently when more turns follow.
    """
    while not rest.startswith(answer):
        ending = next((ending for ending in endings if answer.endswith(ending)), "")
        if not ending:
            raise _RewrittenError(
                "the model's chat template shows earlier turns otherwise once more is said, as those of reasoning "
                "models do, so that what is learned is not what is asked; use format plain, or another template."
            )
        answer = answer.removesuffix(ending).rstrip()
    return answer


def _answer_after(before: str, talk: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> str:
    """The rendered last turn of a conversation, the assistant's, without the text before it."""
    whole = _render(tokenizer, talk).rstrip()
    if not whole.startswith(before):
        raise _RewrittenError(
            "the model's chat template does not put an answer right after its generation prompt; use format plain."
        )
    return whole[len(before) :]


def _render(tokenizer: PreTrainedTokenizerBase, talk: Sequence[Turn], **options: Any) -> str:
    """Render a disguised conversation by the template, for `rendered_pieces`."""
    messages = [{"role": turn.role, "content": turn.content} for turn in talk]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # templates are programs and may raise any exception
        raise ParleyError(
            f"the model's chat template fails ({first_line(error)}); use format plain, or another tokenizer."
        ) from error
