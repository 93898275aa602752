"""What a row of a data set says, in TRL's formats: a prompt and what answers it, as text.

A column that holds a conversation, [{"role": …, "content": …}, …], is rendered by the tokenizer's chat template.

| kind | columns |
|---|---|
| prompts | prompt |
| completions | prompt + completion, or messages, or text |
| pairs | prompt + chosen + rejected, or chosen + rejected |

Where chosen and rejected stand alone, the prompt is what both begin with: whole messages of conversations, whole words
of strings. Of messages, every turn of the assistant is learned, given all that came before it: one text for each turn.
All other columns travel along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from proximo.errors import ConfigError, unknown
from proximo.sources.text.reading import Row, Table

Messages = Sequence[Mapping[str, Any]]
EMPTY = "what should be learned is empty: remove the row, or give it a text"


class Text(NamedTuple):
    """A prompt and what answers it: nothing, a completion, or a chosen and a rejected one."""

    prompt: str
    answers: tuple[str, ...]
    rendered: bool  # by a chat template, which writes special tokens itself
    columns: dict[str, Any]
    place: str  # in the data, for errors


def texts(table: Table, kind: str, tokenizer: Any) -> list[Text]:
    """All rows as texts of a kind: "prompts", "completions" or "pairs".

    Raises ConfigError that names the row for columns that are missing, empty or of another type than a string or
    messages, and for messages where the tokenizer has no chat template.
    """
    if kind not in FORMATS:
        raise unknown("kind of data", kind, FORMATS)
    forms = FORMATS[kind]
    found = list[Text]()
    for row, place in zip(table.rows, table.places, strict=True):
        form = _form(row, forms)
        if form is None:
            wanted = ", or ".join(" + ".join(form) for form in forms)
            raise ConfigError(f"{place} has the columns {', '.join(map(str, row)) or 'none'}; {kind} need {wanted}")
        columns = {name: value for name, value in row.items() if name not in form}
        try:
            for prompt, answers, rendered in forms[form](row, tokenizer):
                if any(not answer.strip() for answer in answers):
                    raise ConfigError(EMPTY)
                _must_be_unicode(prompt, *answers)
                found.append(Text(prompt, answers, rendered, columns, place))
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
    return found


def _form(row: Row, forms: Iterable[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The first columns, of several, that a row has."""
    present = {name for name, value in row.items() if value is not None}
    return next((form for form in forms if present.issuperset(form)), None)


def in_turns(row: Row, kind: str) -> bool:
    """Whether a row is messages, of which every turn of the assistant is a text."""
    return _form(row, FORMATS[kind]) == ("messages",)


def count(row: Row, kind: str) -> int:
    """How many texts `texts` makes of a row, where it raises nothing."""
    turns = row["messages"] if in_turns(row, kind) and not isinstance(row["messages"], str) else ()
    return max(1, sum(isinstance(turn, Mapping) and turn.get("role") == "assistant" for turn in turns))


Parts = Iterator[tuple[str, tuple[str, ...], bool]]  # prompt, answers, whether a template rendered them


def _prompt(row: Row, tokenizer: Any) -> Parts:
    prompt = row["prompt"]
    talk = _talk("prompt", prompt)
    yield rendered(tokenizer, prompt) if talk else prompt, (), talk


def _answered(*names: str) -> Callable[[Row, Any], Parts]:
    """A prompt and columns that answer it: all strings, or all messages."""

    def parts(row: Row, tokenizer: Any) -> Parts:
        kinds = {name: _talk(name, row[name]) for name in ("prompt", *names)}
        answers = tuple(row[name] for name in names)
        if len(set(kinds.values())) > 1:
            told = ", ".join(f"{name} is {'messages' if talk else 'a string'}" for name, talk in kinds.items())
            raise ConfigError(f"{told}: make them all the same")
        yield _both(tokenizer, row["prompt"], answers) if kinds["prompt"] else (row["prompt"], answers, False)

    return parts


def _messages(row: Row, tokenizer: Any) -> Parts:
    messages = row["messages"]
    if not _talk("messages", messages):
        raise ConfigError("messages is a string, not a list of messages")
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns or not turns[0]:
        raise ConfigError("messages hold no turn of the assistant that answers something")
    for i in turns:
        yield _both(tokenizer, messages[:i], (messages[i : i + 1],))


def _text(row: Row, tokenizer: Any) -> Parts:
    if _talk("text", row["text"]):
        raise ConfigError("text is messages: call the column messages")
    yield "", (row["text"],), False


def _implicit(row: Row, tokenizer: Any) -> Parts:
    chosen, rejected = row["chosen"], row["rejected"]
    talk = _talk("chosen", chosen)
    if talk is not _talk("rejected", rejected):
        raise ConfigError("of chosen and rejected one is a string and one messages: make them the same")
    same = _shared(chosen, rejected)
    if not talk:
        while same and not chosen[same - 1].isspace():
            same -= 1
        same -= chosen[:same].endswith(" ")  # tokens begin with the space before a word
        yield chosen[:same], (chosen[same:], rejected[same:]), False
        return
    same = min(same, len(chosen) - 1, len(rejected) - 1)
    if same == 0:
        raise ConfigError("chosen and rejected share no first message that could be the prompt")
    yield _both(tokenizer, chosen[:same], (chosen[same:], rejected[same:]))


FORMATS: dict[str, dict[tuple[str, ...], Callable[[Row, Any], Parts]]] = {
    "prompts": {("prompt",): _prompt},
    "completions": {("prompt", "completion"): _answered("completion"), ("messages",): _messages, ("text",): _text},
    "pairs": {("prompt", "chosen", "rejected"): _answered("chosen", "rejected"), ("chosen", "rejected"): _implicit},
}


def _talk(name: str, value: Any) -> bool:
    """Whether a column holds messages; ConfigError where it holds neither them nor a string."""
    if isinstance(value, str):
        return False
    listed = isinstance(value, Sequence) and bool(value)
    if not listed or not all(isinstance(each, Mapping) and {"role", "content"} <= each.keys() for each in value):
        wanted = 'a string or a list of messages, [{"role": "user", "content": "…"}, …]'
        raise ConfigError(f"{name} is {str(value)[:60]!r}, not {wanted}")
    return True


def _both(tokenizer: Any, prompt: Messages, answers: Sequence[Messages]) -> tuple[str, tuple[str, ...], bool]:
    """A conversation's prompt and answers, so that prompt + answer is what the template makes of both together.

    Some templates write the prompt of a conversation otherwise than that of one still to be answered; then the prompt
    ends where they part.
    """
    if not all(any(turn["content"] or turn.get("tool_calls") for turn in answer) for answer in answers):
        raise ConfigError(EMPTY)
    before = rendered(tokenizer, prompt)
    whole = [rendered(tokenizer, [*prompt, *answer], over=True) for answer in answers]
    same = min(_shared(before, text) for text in whole)
    return before[:same], tuple(text[same:] for text in whole), True


def rendered(tokenizer: Any, messages: Messages, over: bool = False) -> str:
    """Messages by the chat template; unless they are `over`, up to where the assistant begins or goes on."""
    if tokenizer.chat_template is None:
        words = "set tokenizer.chat_template, take a model that was made for chat, or give strings instead of messages"
        raise ConfigError(f"the tokenizer has no chat template for messages: {words}")
    begun = messages[-1]["role"] == "assistant"
    goes_on = {"continue_final_message": begun, "add_generation_prompt": not begun} if not over else {}
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **goes_on)
    except Exception as error:  # templates raise what they like, such as for two turns of the user in a row
        raise ConfigError(f"the chat template refuses the messages: {error}") from None


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _must_be_unicode(*parts: str) -> None:
    """ConfigError for half of a surrogate pair, which JSON can hold and no tokenizer takes."""
    try:
        for part in parts:
            part.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"a text holds {error.object[error.start]!r}, which is half a character: mend it") from None
