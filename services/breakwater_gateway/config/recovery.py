"""What a model does when its own deployments cannot answer: read, checked against each other, and shown.

A named model is one that the file has, chains of them end, and a rung that could never answer is refused.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, cast

from msgspec import Struct

from breakwater_gateway.config import table as keys
from breakwater_gateway.config.amounts import format_duration, parse_duration_ms
from breakwater_gateway.config.kinds import FileName, Named
from breakwater_gateway.config.model import (
    Config,
    Hedge,
    Model,
    OnContentFilter,
    OnContextLength,
    Rung,
    RungKind,
    StaticAnswer,
    StaticAnswers,
)
from breakwater_gateway.config.problems import Path, Report, shown
from breakwater_gateway.config.sections import Block
from breakwater_gateway.config.yaml_tree import parse

ReadFile = Callable[[str], bytes]
"""A file's name as it was written -> its bytes; raises `OSError` or `ValueError`."""

_SAME: Final = 3
"""Mistakes of an answers' file that are repeated in the configuration's."""


# --- of one model -------------------------------------------------------------------------------


def read_on_context_length(block: Block, path: Path, report: Report) -> OnContextLength:
    text = block.get(keys.ON_CONTEXT_LENGTH)
    if text is None:
        return OnContextLength()
    do, _, model = text.partition(":")
    if do == "summarize" and not model:
        model = next((r.model for r in _rungs(block) if r.kind == "simple_model"), "")
        if not model:
            message = (
                "summarize needs a model that writes the summary: summarize:<model>, or a"
                " simple_model in the ladder"
            )
            report.add((*path, "on_context_length"), *block.mark(keys.ON_CONTEXT_LENGTH), message)
    return OnContextLength(cast('Literal["truncate", "summarize", "model", "fail"]', do), model)


def read_on_content_filter(block: Block) -> OnContentFilter:
    text = block.get(keys.ON_CONTENT_FILTER)
    if text is None:
        return OnContentFilter()
    do, _, model = text.partition(":")
    return OnContentFilter(cast('Literal["next", "model", "fail"]', do), model)


def read_hedge(block: Block) -> Hedge | None:
    hedge = block.get(keys.HEDGE)
    if hedge is None:
        return None
    ms = parse_duration_ms(hedge.get(keys.HEDGE_AFTER) or "p95")
    return Hedge(None if ms is None else ms / 1000, hedge.get(keys.HEDGE_MAX) or 1)


def read_ladder(block: Block, path: Path, attempts: int, report: Report) -> tuple[Rung, ...]:
    """The rungs below `primary`. `attempts`: of the whole request, which its simple models draw on too."""
    written = block.get(keys.LADDER) or ()
    at, here = block.mark(keys.LADDER), (*path, "ladder")
    seen: set[str] = set()
    for index, text in enumerate(written):
        if text is None:
            continue
        if text in seen:
            report.add((*here, index), *at, f"{text} stands here twice")
        elif text == "primary" and index:
            report.add((*here, index), *at, "primary is always first; leave it out")
        elif text == "error" and index < len(written) - 1:
            report.add((*here, index), *at, "nothing comes after error")
        elif text == "cache" and "stale" in seen:
            report.add((*here, index), *at, "stale comes after cache, not before it")
        seen.add(text)
    rungs = _rungs(block)
    simple = sum(rung.kind == "simple_model" for rung in rungs)
    if simple >= attempts:
        message = (
            f"retry.attempts is {attempts}, all of which the model's own deployments need:"
            f" give it {simple + 1} at least, so that simple_model is asked"
        )
        report.add(here, *at, message)
    return rungs


def _rungs(block: Block) -> tuple[Rung, ...]:
    found: list[Rung] = []
    for text in block.get(keys.LADDER) or ():
        if text is not None and text != "primary":
            kind, _, model = text.partition(":")
            found.append(Rung(cast("RungKind", kind), model))
    return tuple(found)


# --- of all models together ---------------------------------------------------------------------


class _Edge(Struct, frozen=True):
    """One model hands requests on to another."""

    target: str
    """The key under `models` that the named model is found by."""
    path: Path
    at: tuple[int, int]


def check_recovery(config: Config, entries: Mapping[str, Named[Block]], report: Report) -> None:
    """Named models exist, no chain of them is a loop, and what is to be tried has attempts left for it."""
    graph: dict[str, list[_Edge]] = {}
    for name, model in config.models.items():
        block = entries[name].value
        graph[name] = list(_edges(config, model, block, report))
        _check_attempts(model, block, report)
        says = config.static_answers.entries or config.static_answers.default
        if not says and any(rung.kind == "static" for rung in model.ladder):
            message = "the rung static has nothing to say: give static_answers or static_default"
            report.add(("models", name, "ladder"), *block.mark(keys.LADDER), message)
    for loop, edge in _loops(graph):
        message = f"{' -> '.join(map(shown, loop))} is a loop: a request would never leave it"
        report.add(edge.path, *edge.at, message)


def _edges(config: Config, model: Model, block: Block, report: Report) -> Iterator[_Edge]:
    path: Path = ("models", model.name)
    named: list[tuple[str, Path, tuple[int, int]]] = [
        (
            model.on_context_length.model,
            (*path, "on_context_length"),
            block.mark(keys.ON_CONTEXT_LENGTH),
        ),
        (
            model.on_content_filter.model,
            (*path, "on_content_filter"),
            block.mark(keys.ON_CONTENT_FILTER),
        ),
    ]
    if model.on_context_length.do == "summarize" and not _names_its_own(block):
        named = named[1:]  # the ladder's simple model, which is looked at below
    named += [
        (rung.model, (*path, "ladder"), block.mark(keys.LADDER))
        for rung in model.ladder
        if rung.kind == "simple_model"
    ]
    for name, where, at in named:
        if not name:
            continue
        found = config.model(name)
        if found is not None:
            yield _Edge(found.name, where, at)
            continue
        close = report.nearest(name, config.models)
        mend = f'did you mean "{close}"?' if close else "describe it under models"
        report.add(where, *at, f"there is no model {shown(name)} here; {mend}")


def _names_its_own(block: Block) -> bool:
    return ":" in (block.get(keys.ON_CONTEXT_LENGTH) or "")


def _check_attempts(model: Model, block: Block, report: Report) -> None:
    needed = {"truncate": 2, "model": 2, "summarize": 3}
    for key, do in (
        (keys.ON_CONTEXT_LENGTH, model.on_context_length.do),
        (keys.ON_CONTENT_FILTER, model.on_content_filter.do),
    ):
        least = needed.get(do, 1)
        if model.retry.attempts < least:
            message = f"{do} takes {least} calls, and retry.attempts is {model.retry.attempts}"
            report.add(("models", model.name, key.name), *block.mark(key), message)


def _loops(graph: Mapping[str, list[_Edge]]) -> Iterator[tuple[list[str], _Edge]]:
    """Each loop once, at the edge that closes it. Walks without recursion: chains may be long."""
    done: set[str] = set()
    for start in graph:
        trail: list[str] = []
        stack: list[tuple[str, Iterator[_Edge]]] = []
        if start not in done:
            trail, stack = [start], [(start, iter(graph[start]))]
        while stack:
            name, edges = stack[-1]
            edge = next(edges, None)
            if edge is None:
                stack.pop()
                trail.pop()
                done.add(name)
            elif edge.target in trail:
                yield [*trail[trail.index(edge.target) :], edge.target], edge
            elif edge.target not in done:
                trail.append(edge.target)
                stack.append((edge.target, iter(graph[edge.target])))


# --- static answers -----------------------------------------------------------------------------


def read_static_answers(root: Block, read_file: ReadFile | None, report: Report) -> StaticAnswers:
    usual = StaticAnswers()
    written = root.get(keys.STATIC_ANSWERS)
    if isinstance(written, FileName):
        written = _from_file(written, read_file, report)
    entries = [
        StaticAnswer(tuple(q for q in block.get(keys.QUESTIONS) or () if q), answer)
        for block in written or ()
        if block is not None and (answer := block.get(keys.ANSWER))
    ]
    threshold, similarity = root.get(keys.STATIC_THRESHOLD), root.get(keys.STATIC_SIMILARITY)
    return StaticAnswers(
        tuple(entries),
        threshold=usual.threshold if threshold is None else threshold,
        similarity=usual.similarity if similarity is None else similarity,
        default=root.get(keys.STATIC_DEFAULT) or "",
    )


def _from_file(
    file: FileName, read_file: ReadFile | None, report: Report
) -> tuple[Block | None, ...] | None:
    path: Path = ("static_answers",)
    if read_file is None:
        message = f"{shown(file.name)} is not at hand here; write the answers into this file"
        report.add(path, file.line, file.column, message)
        return None
    try:
        text = read_file(file.name)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        report.add(path, file.line, file.column, f"cannot read {shown(file.name)}: {reason}")
        return None
    inner = Report(file.name)
    tree = parse(text, inner)
    answers = None if tree is None else keys.ANSWERS.read(tree, (), inner)
    for problem in inner.problems[:_SAME]:
        where = f"{problem.path}: " if problem.path else ""
        message = f"{file.name}:{problem.line}: {where}{problem.message}"
        report.add(path, file.line, file.column, message)
    more = len(inner.problems) + inner.omitted - _SAME
    if more > 0:
        report.add(path, file.line, file.column, f"{file.name}: and {more} more mistakes")
    return answers


# --- shown again --------------------------------------------------------------------------------

Plain = dict[str, object]


def show_recovery(model: Model) -> Plain:
    found: Plain = {
        "on_context_length": _with_model(model.on_context_length.do, model.on_context_length.model),
        "on_content_filter": _with_model(model.on_content_filter.do, model.on_content_filter.model),
        "on_cut": model.on_cut,
    }
    if model.hedge is not None:
        after = model.hedge.after_s
        found["hedge"] = {
            "after": "p95" if after is None else format_duration(after),
            "max": model.hedge.max,
        }
    if model.ladder:
        found["ladder"] = [_with_model(rung.kind, rung.model) for rung in model.ladder]
    return found


def _with_model(word: str, model: str) -> str:
    return f"{word}:{model}" if model else word


def show_static_answers(answers: StaticAnswers) -> Plain:
    found: Plain = {}
    if answers.entries:
        found["static_answers"] = [
            {"questions": list(each.questions), "answer": each.answer} for each in answers.entries
        ]
    if answers.threshold != StaticAnswers().threshold:
        found["static_threshold"] = answers.threshold
    if answers.similarity != StaticAnswers().similarity:
        found["static_similarity"] = answers.similarity
    if answers.default:
        found["static_default"] = answers.default
    return found
