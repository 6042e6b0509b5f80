"""From a request to what the engine is to do for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from src.datamodules.turns import parse_messages
from src.errors import ParleyError
from src.inference.decoding import preset_names, with_preset
from src.models.generation import GenerationOptions
from src.serving.errors import BadRequestError
from src.serving.hosted import Hosted, TooLongError
from src.serving.rows import Penalties, Row
from src.serving.schemas import ChatRequest, CompletionRequest, Decoding


@dataclass(frozen=True)
class Plan:
    """The answers that a request asks for.

    Attributes:
        rows: To be written, in the order of the request's choices.
        beams: Whether they are searched for by beams.
        prompt_tokens: Of all prompts together, each once.
        echoes: For each answer the text that is put before it.
    """

    rows: list[Row]
    beams: bool
    prompt_tokens: int
    echoes: list[str]


def plan(hosted: Hosted, request: ChatRequest | CompletionRequest) -> Plan:
    """Encode a request's prompts and settle how they are answered.

    Raises:
        BadRequestError: It asks for what the model cannot do.
    """
    try:
        return _plan(hosted, request)
    except TooLongError as error:
        raise BadRequestError(str(error), code="context_length_exceeded") from error
    except ParleyError as error:
        raise BadRequestError(str(error)) from error


def _plan(hosted: Hosted, request: ChatRequest | CompletionRequest) -> Plan:
    request.refuse_unsupported()
    prompts, echoes = _prompts(hosted, request)
    count = request.n or 1
    if len(prompts) * count > hosted.limits.answers:
        raise BadRequestError(
            f"the request asks for {len(prompts) * count} answers, and {hosted.limits.answers} are the most; "
            "send several requests.",
            "n",
        )
    penalties = Penalties(request.presence_penalty or 0.0, request.frequency_penalty or 0.0, request.biases())
    hosted.check_ids([id for id, _ in penalties.bias])
    rows: list[Row] = []
    beams = False
    for number, prompt in enumerate(prompts):
        options = decoding_of(hosted, request, hosted.room(prompt, request.asked_tokens), bool(penalties))
        beams = options.num_beams > 1
        if count > options.num_beams and not options.do_sample:
            raise BadRequestError(
                f"n is {count}, and without sampling there are as many answers as beams ({options.num_beams}); lower "
                "it, or give a temperature above 0.",
                "n",
            )
        if beams:
            options.num_return_sequences = count
        rows += hosted.rows(
            prompt,
            options,
            penalties,
            number=number,
            count=count,
            top_logprobs=request.top_tokens,
            as_continuation=isinstance(request, CompletionRequest),
        )
    return Plan(rows, beams, sum(map(len, prompts)), [echo for echo in echoes for _ in range(count)])


def _prompts(hosted: Hosted, request: ChatRequest | CompletionRequest) -> tuple[list[list[int]], list[str]]:
    """Each prompt's token ids, and the text that is to be put before its answers."""
    if isinstance(request, ChatRequest):
        return [hosted.talk(parse_messages(request.talk(), "messages"))], [""]
    if request.echo and hosted.finished.is_encoder_decoder:
        raise BadRequestError("echo is for decoder-only models: this one does not go on where the prompt ends.", "echo")
    ids, echoes = [], []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            ids.append(hosted.text(prompt))
        else:
            hosted.check_ids(prompt)
            ids.append(prompt)
        echoes.append("" if not request.echo else prompt if isinstance(prompt, str) else hosted.decoded(prompt))
    return ids, echoes


def decoding_of(hosted: Hosted, request: Decoding, max_new_tokens: int, is_penalised: bool) -> GenerationOptions:
    """A request's decoding options over the server's.

    Args:
        hosted: The model.
        request: The request.
        max_new_tokens: Tokens of an answer at most.
        is_penalised: Whether it has penalties or biases.

    Raises:
        ParleyError: They contradict themselves.
    """
    own = hosted.options if request.preset is None else _preset(hosted.options, request.preset)
    values: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min(own.min_new_tokens, max_new_tokens),
        "num_return_sequences": 1,
        "stop_strings": [*own.stop_strings, *request.stops],
    }
    if request.temperature == 0:
        values |= {"do_sample": False}
    elif request.temperature is not None or request.top_p is not None or request.top_k is not None:
        limits = {"top_k": own.top_k, "top_p": own.top_p, "temperature": own.temperature}
        values |= {"do_sample": True} | (limits if own.do_sample else {"top_k": 0, "top_p": 1.0, "temperature": 1.0})
    given = {
        "temperature": request.temperature or None,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "repetition_penalty": request.repetition_penalty,
        "min_new_tokens": request.min_tokens,
        "seed": request.seed,
    }
    values |= {name: value for name, value in given.items() if value is not None}
    takes_tokens = (
        values.get("do_sample", own.do_sample) or request.temperature is not None or request.top_tokens is not None
    )
    if takes_tokens or is_penalised:
        values["num_beams"] = 1
    return replace(own, **values)


def _preset(own: GenerationOptions, name: str) -> GenerationOptions:
    """A named preset in place of the server's options; a client names no file."""
    known = preset_names()
    if name not in known:
        raise BadRequestError(f"there is no preset {name!r}; there are: {', '.join(known)}.", "preset")
    return with_preset(own, name)
