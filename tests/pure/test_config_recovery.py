"""What a model does when it cannot answer: what the file may say of it, and what is refused with its line."""

import pytest

from breakwater_gateway.cli.config_files import Beside
from breakwater_gateway.config.codec import Stored, decode_stored, encode_stored, load_stored
from breakwater_gateway.config.load import ConfigError, load_text
from breakwater_gateway.config.model import (
    Config,
    Hedge,
    OnContentFilter,
    OnContextLength,
    Rung,
    StaticAnswer,
)
from breakwater_gateway.config.show import to_yaml

D = "deployments: [{model: openai/x, api_key: []}]"
B = f"  b: {{{D}}}\n"


def load(text: str, files: dict[str, bytes] | None = None) -> Config:
    def read_file(name: str) -> bytes:
        if files is None or name not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[name]

    return load_text(text, source="f", environment={}, read_file=read_file)


def refused(text: str, files: dict[str, bytes] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, files)
    return str(caught.value).splitlines()


def model(**settings: str) -> str:
    lines = [f"    {key}: {value}\n" for key, value in settings.items()]
    return f"models:\n  a:\n    {D}\n{''.join(lines)}{B}"


def test_the_contract_s_example_is_read() -> None:
    text = model(
        on_context_length="truncate",
        on_content_filter="next",
        ladder="[cache, simple_model:b, static, error]",
        hedge="{after: 1s}",
        on_cut="continue",
    )
    config = load(text + "static_default: Later.\n")
    a = config.models["a"]
    assert a.on_context_length == OnContextLength("truncate")
    assert a.on_content_filter == OnContentFilter("next")
    assert a.ladder == (
        *(Rung("cache"), Rung("simple_model", "b")),
        *(Rung("static"), Rung("error")),
    )
    assert (a.hedge, a.on_cut) == (Hedge(1.0, 1), "continue")
    assert load(to_yaml(config)) == config


def test_a_summary_is_written_by_the_ladder_s_simple_model_unless_another_is_named() -> None:
    short = load(model(on_context_length="summarize", ladder="[simple_model:b]"))
    named = load(model(on_context_length="summarize:b"))
    assert short.models["a"].on_context_length == OnContextLength("summarize", "b")
    assert named.models["a"].on_context_length == OnContextLength("summarize", "b")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"ladder": "[simple_model:c]"},
            'f:4: models.a.ladder: there is no model "c" here; describe it under models',
        ),
        (
            {"ladder": "[simple_model]"},
            (
                "f:4: models.a.ladder[0]: expected a rung: primary, cache, stale, simple_model:<model>,"
                ' static or error, not "simple_model"'
            ),
        ),
        (
            {"ladder": "[cahce]"},
            (
                "f:4: models.a.ladder[0]: expected a rung: primary, cache, stale, simple_model:<model>,"
                ' static or error, not "cahce"; did you mean "cache"?'
            ),
        ),
        (
            {"on_content_filter": "modle:b"},
            (
                "f:4: models.a.on_content_filter: expected next, model:<model> or fail, not"
                ' "modle:b"; did you mean "model:b"?'
            ),
        ),
        (
            {"ladder": "[simple_model:a]"},
            'f:4: models.a.ladder: "a" -> "a" is a loop: a request would never leave it',
        ),
        (
            {"on_content_filter": "model:a"},
            'f:4: models.a.on_content_filter: "a" -> "a" is a loop: a request would never leave it',
        ),
        ({"ladder": "[error, cache]"}, "f:4: models.a.ladder[0]: nothing comes after error"),
        ({"ladder": "[cache, cache]"}, "f:4: models.a.ladder[1]: cache stands here twice"),
        (
            {"ladder": "[cache, primary]"},
            "f:4: models.a.ladder[1]: primary is always first; leave it out",
        ),
        (
            {"ladder": "[stale, cache]"},
            "f:4: models.a.ladder[1]: stale comes after cache, not before it",
        ),
        (
            {"ladder": "[static]"},
            (
                "f:4: models.a.ladder: the rung static has nothing to say: give static_answers or"
                " static_default"
            ),
        ),
        (
            {"ladder": "[simple_model:b]", "retry": "{attempts: 1}"},
            (
                "f:4: models.a.ladder: retry.attempts is 1, all of which the model's own deployments"
                " need: give it 2 at least, so that simple_model is asked"
            ),
        ),
        (
            {"on_context_length": "truncate", "retry": "{attempts: 1}"},
            "f:4: models.a.on_context_length: truncate takes 2 calls, and retry.attempts is 1",
        ),
        (
            {"on_context_length": "summarize"},
            (
                "f:4: models.a.on_context_length: summarize needs a model that writes the summary:"
                " summarize:<model>, or a simple_model in the ladder"
            ),
        ),
        (
            {"on_context_length": "shorten"},
            (
                "f:4: models.a.on_context_length: expected truncate, summarize, summarize:<model>,"
                ' model:<model> or fail, not "shorten"'
            ),
        ),
    ],
)
def test_what_contradicts_itself_is_refused_with_path_and_line(
    settings: dict[str, str], said: str
) -> None:
    assert refused(model(**settings)) == [said]


def test_a_loop_through_several_models_and_settings_is_named_once_with_its_path() -> None:
    text = (
        f"models:\n  a:\n    {D}\n    on_context_length: model:b\n"
        f"  b:\n    {D}\n    on_content_filter: model:c\n"
        f"  c:\n    {D}\n    ladder: [simple_model:a]\n"
    )
    assert refused(text) == [
        'f:10: models.c.ladder: "a" -> "b" -> "c" -> "a" is a loop: a request would never leave it'
    ]


def test_a_long_chain_that_ends_is_no_loop() -> None:
    count = 1500
    chain = [f"  m{i}: {{{D}, on_content_filter: 'model:m{i + 1}'}}" for i in range(count)]
    text = "\n".join(["models:", *chain, f"  m{count}: {{{D}}}"])
    assert len(load(text).models) == count + 1


FAQ = "- questions: [When are you open?, Opening hours]\n  answer: Every day, 9 to 17.\n"


def test_static_answers_come_from_a_file_of_their_own() -> None:
    config = load(
        model(ladder="[static]") + "static_answers: faq.yaml\n", {"faq.yaml": FAQ.encode()}
    )
    assert config.static_answers.entries == (
        StaticAnswer(("When are you open?", "Opening hours"), "Every day, 9 to 17."),
    )
    # Shown, they stand in place: whoever loads that needs no file.
    assert load(to_yaml(config)) == config


@pytest.mark.parametrize(
    ("faq", "said"),
    [
        (
            b"- questions: []\n  answer: x\n",
            (
                "f:5: static_answers: faq.yaml:1: [0].questions: expected a list of questions,"
                " 1 to 50 of them; these are 0"
            ),
        ),
        (
            b"- answer: x\n",
            'f:5: static_answers: faq.yaml:1: [0]: "questions" is missing: Ways to ask for it.',
        ),
        (
            b"- {questions: [a], anser: x}\n",
            'f:5: static_answers: faq.yaml:1: [0].anser: unknown key; did you mean "answer"?',
        ),
        (
            b"questions: [a]\n",
            "f:5: static_answers: faq.yaml:1: expected a list of questions and answers, not a mapping",
        ),
        (b"\xff", "f:5: static_answers: faq.yaml:1: not valid UTF-8; save the file as UTF-8"),
    ],
)
def test_a_mistake_in_the_answers_file_is_told_with_the_line_there(faq: bytes, said: str) -> None:
    text = f"models:\n  a:\n    {D}\n{B}static_answers: faq.yaml\n"
    assert refused(text, {"faq.yaml": faq}) == [said]


def test_many_mistakes_in_the_answers_file_are_counted() -> None:
    found = refused(model() + "static_answers: faq.yaml\n", {"faq.yaml": b"- {}\n" * 9})
    assert len(found) == 4
    assert found[-1].endswith("faq.yaml: and 15 more mistakes")


def test_an_answers_file_that_is_not_there_is_named() -> None:
    assert refused(model() + "static_answers: faq.yaml\n") == [
        'f:5: static_answers: cannot read "faq.yaml": No such file or directory'
    ]


def test_a_stored_revision_carries_the_answers_file(tmp_path: object) -> None:
    text = model(ladder="[static]") + "static_answers: faq.yaml\n"
    stored = decode_stored(encode_stored(Stored("f", text, files={"faq.yaml": FAQ})))
    assert len(load_stored(stored, {}).static_answers.entries) == 1
    with pytest.raises(ConfigError, match="the revision does not hold it"):
        load_stored(Stored("f", text), {})


def test_the_files_beside_a_configuration_are_remembered(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("config")
    (folder / "faq.yaml").write_text(FAQ)
    beside = Beside(str(folder / "breakwater.yaml"))
    assert beside("faq.yaml") == FAQ.encode()
    assert beside.read == {"faq.yaml": FAQ}
    with pytest.raises(OSError, match="No such file"):
        beside("other.yaml")
