"""Workflows, references and the registry: what is refused when they are defined, and what their inputs become."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from pgworkflows.commands import Command, Step, Steps
from pgworkflows.definition import Workflow, WorkflowRef, workflow, workflow_ref
from pgworkflows.errors import (
    ConfigurationError,
    DuplicateStepError,
    InvalidInputError,
    SerializationError,
    WorkflowNotFoundError,
)
from pgworkflows.registry import WorkflowRegistry
from pgworkflows.serialization import PLAIN

if TYPE_CHECKING:
    from somewhere import Unseen  # type: ignore[import-not-found]  # is there for type checkers only


class SignUp(BaseModel):
    email: str
    age: int = Field(default=18, ge=0)


class Receipt(BaseModel):
    number: int
    issued: date


def do() -> Any: ...


@workflow("send-welcome", retries=3, timeout="1h", priority="high", queue="mail")
def send_welcome(step: Step, input: SignUp) -> Steps[Receipt]:
    yield step.run("create-user", do)
    yield step.delay("wait", "1h")
    return Receipt(number=1, issued=date(2030, 1, 1))


@workflow("tick")
def tick(step: Step) -> Steps[None]:
    yield step.run("tick", do)


def handler_of(input_annotation: Any, **options: Any) -> Workflow[Any, Any]:
    """A workflow whose input is annotated so."""

    def handler(step: Any, input: Any) -> Any:
        yield step.run("a", do)

    handler.__annotations__ = {"input": input_annotation} if input_annotation is not None else {}
    defined: Workflow[Any, Any] = workflow("annotated", **options)(handler)
    return defined


# --- what @workflow takes and makes


def test_a_workflow_has_the_options_it_was_given() -> None:
    assert isinstance(send_welcome, Workflow)
    assert isinstance(send_welcome, WorkflowRef)
    assert send_welcome.id == "send-welcome"
    assert (send_welcome.retries, send_welcome.timeout) == (3, timedelta(hours=1))
    assert (send_welcome.priority, send_welcome.queue) == (100, "mail")
    assert [step.id for step in send_welcome.steps] == ["create-user", "wait"]
    assert (tick.retries, tick.timeout, tick.priority, tick.queue) == (0, None, 0, "default")
    assert repr(tick) == "<Workflow 'tick'>"


def test_a_workflow_is_called_like_its_handler() -> None:
    step: Any = object.__new__(Step)
    assert isinstance(tick(step), Generator)
    assert isinstance(send_welcome(step, SignUp(email="a")), Generator)
    assert next(tick(step)).id == "tick"
    assert next(tick.begin(step, None)).id == "tick"
    assert next(send_welcome.begin(step, SignUp(email="a"))).id == "create-user"


def no_generator(step: Any) -> Any:
    return step


def no_parameters() -> Any:
    yield


def three_parameters(step: Any, input: Any, more: Any = None) -> Any:
    yield


def many_parameters(step: Any, *inputs: Any) -> Any:
    yield


def any_keywords(step: Any, **inputs: Any) -> Any:
    yield


def needs_keyword(step: Any, *, input: Any) -> Any:
    yield


async def coroutine(step: Any) -> Any: ...


async def asynchronous_generator(step: Any) -> Any:
    yield


class Service:
    def handle(self, step: Step, input: SignUp) -> Steps[int]:
        yield step.run("a", do)
        return 1

    def without_input(self, step: Step) -> Steps[int]:
        yield step.run("a", do)
        return 1


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (no_generator, "must be a generator function"),
        (lambda step: None, "must be a generator function"),
        (print, "must be a generator function"),
        (Service, "must be a generator function"),
        (None, "must be a generator function"),
        ("handler", "must be a generator function"),
        (coroutine, "must not be async"),
        (asynchronous_generator, "must not be async"),
        (functools.partial(asynchronous_generator), "must not be async"),
        (no_parameters, r"must take \(step\) or \(step, input\)"),
        (three_parameters, r"must take \(step\) or \(step, input\)"),
        (many_parameters, r"must take \(step\) or \(step, input\)"),
        (any_keywords, r"must take \(step\) or \(step, input\)"),
        (needs_keyword, r"must take \(step\) or \(step, input\)"),
        (Service.handle, r"must take \(step\) or \(step, input\)"),
        (Service.without_input, "a method without its object"),
    ],
)
def test_what_is_no_handler_is_a_type_error(handler: Any, reason: str) -> None:
    with pytest.raises(TypeError, match=f"the handler of workflow 'a' .*{reason}"):
        workflow("a")(handler)
    with pytest.raises(TypeError, match=reason):
        workflow_ref("a").handler()(handler)


def test_a_bare_decorator_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r'write @workflow\("some-id"\)'):
        workflow(no_parameters)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"id": ""}, ValueError),
        ({"id": "a" * 257}, ValueError),
        ({"id": "a\0"}, ValueError),
        ({"id": 5}, TypeError),
        ({"retries": -1}, ValueError),
        ({"retries": "3"}, TypeError),
        ({"retries": True}, TypeError),
        ({"timeout": 0}, ValueError),
        ({"timeout": "1 month"}, ValueError),
        ({"timeout": []}, TypeError),
        ({"priority": "urgent"}, ValueError),
        ({"priority": 1001}, ValueError),
        ({"priority": 1.5}, TypeError),
        ({"queue": ""}, ValueError),
        ({"queue": None}, TypeError),
    ],
    ids=str,
)
def test_bad_options_are_refused_at_definition(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        workflow(**{"id": "a", **options})
    if "id" not in options:
        with pytest.raises(error):
            workflow_ref("a").handler(**options)
    else:
        with pytest.raises(error):
            workflow_ref(**options)


def test_bound_methods_partials_and_decorated_functions_are_handlers() -> None:
    def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def wrapper(*args: Any) -> Any:
            return fn(*args)

        return wrapper

    def with_option(step: Any, input: SignUp, *, verbose: bool = False) -> Any:
        yield step.run("a", do)

    for handler in (Service().handle, logged(Service().handle), with_option, logged(with_option)):
        defined: Workflow[Any, Any] = workflow("a")(handler)
        assert [step.id for step in defined.steps] == ["a"]
        assert defined.takes_input
        assert defined.validate_input({"email": "a"})[1] == SignUp(email="a")
    assert not workflow("a")(Service().without_input).takes_input
    bound: Callable[..., Any] = functools.partial(Service().handle, input=SignUp(email="a"))
    assert not workflow("a")(bound).takes_input


# --- inputs


def test_valid_inputs_and_json_are_taken() -> None:
    expected = ('{"email":"a","age":18}', SignUp(email="a"))
    assert send_welcome.validate_input(SignUp(email="a")) == expected
    assert send_welcome.validate_input({"email": "a"}) == expected
    assert send_welcome.load_input('{"email": "a"}') == SignUp(email="a")


@pytest.mark.parametrize("value", [None, {}, {"email": 5}, "a", [], {"email": "a", "age": -1}, object()])
def test_an_input_that_does_not_fit_is_refused_with_pydantics_issues(value: Any) -> None:
    with pytest.raises(
        InvalidInputError, match="the input of workflow 'send-welcome' does not fit SignUp: "
    ) as refusal:
        send_welcome.validate_input(value)
    assert refusal.value.workflow_id == "send-welcome"
    assert refusal.value.issues
    assert all(set(issue) == {"type", "loc", "msg"} for issue in refusal.value.issues)


def test_a_refusal_shows_no_values() -> None:
    class Login(BaseModel):
        pin: int
        day: date

    secret = {"pin": "s3cret", "day": "s3cret"}
    with pytest.raises(InvalidInputError) as refusal:
        handler_of(Login).validate_input(secret)
    assert "s3cret" not in str(refusal.value) + repr(refusal.value.issues)
    assert [issue["loc"] for issue in refusal.value.issues] == [("pin",), ("day",)]
    assert refusal.value.__suppress_context__


@pytest.mark.parametrize("text", ["null", "{}", '{"email":5}', "[]", "nonsense"])
def test_a_stored_input_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="the input of workflow 'send-welcome' does not fit SignUp"):
        send_welcome.load_input(text)


def test_an_input_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(SerializationError, match="the input of workflow 'send-welcome' cannot be stored"):
        send_welcome.validate_input(SignUp(email="\0"))
    with pytest.raises(SerializationError):
        handler_of(None).validate_input({"a": float("nan")})

    class Login(BaseModel):
        password: SecretStr

    with pytest.raises(SerializationError, match="a secret"):
        handler_of(Login).validate_input({"password": "s3cret"})


def test_a_handler_without_input_takes_none_only() -> None:
    assert not tick.takes_input
    assert tick.validate_input(None) == ("null", None)
    assert tick.load_input(" null") is None
    for action in (lambda: tick.validate_input({}), lambda: tick.load_input("{}")):
        with pytest.raises(InvalidInputError, match="workflow 'tick' takes no input") as refusal:
            action()
        assert refusal.value.workflow_id == "tick"


def test_without_annotation_any_json_passes_as_it_is() -> None:
    untyped = handler_of(None)
    for value in (None, 5, "a", [1, {"b": None}]):
        text, seen = untyped.validate_input(value)
        assert seen == value
        assert untyped.load_input(text) == value
    assert untyped.validate_input({"at": datetime(2030, 1, 1, tzinfo=UTC)})[1] == {"at": "2030-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("annotation", "value", "seen"),
    [
        (dict, {"a": 1}, {"a": 1}),
        (dict[str, Any], {"a": 1}, {"a": 1}),
        (list[date], ["2030-01-01"], [date(2030, 1, 1)]),
        (int, 5, 5),
        (SignUp | None, None, None),
        (SignUp | None, {"email": "a"}, SignUp(email="a")),
        (tuple[int, str], [1, "a"], (1, "a")),
        (None, {"a": [1]}, {"a": [1]}),
    ],
    ids=str,
)
def test_whatever_a_type_adapter_takes_is_a_schema(annotation: Any, value: Any, seen: Any) -> None:
    for defined in (handler_of(annotation), handler_of(None, input_schema=annotation)):
        text, first = defined.validate_input(value)
        assert first == seen
        assert defined.load_input(text) == seen


def test_strict_models_take_json_values_too() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        day: date
        pair: tuple[int, int]

    expected = Strict(day=date(2030, 1, 1), pair=(1, 2))
    assert handler_of(Strict).validate_input({"day": "2030-01-01", "pair": [1, 2]})[1] == expected
    assert handler_of(Strict).validate_input(expected)[1] == expected
    with pytest.raises(InvalidInputError):
        handler_of(Strict).validate_input({"day": 5, "pair": [1, 2]})


def test_errors_of_the_users_own_validators_are_refusals() -> None:
    class Picky(BaseModel):
        a: int

        @field_validator("a")
        @classmethod
        def check(cls, value: int) -> int:
            raise LookupError(f"no such thing: {type(value)}")

    with pytest.raises(InvalidInputError, match="LookupError: no such thing"):
        handler_of(Picky).validate_input({"a": 1})
    with pytest.raises(InvalidInputError, match="LookupError: no such thing"):
        handler_of(Picky).load_input('{"a": 1}')


def test_a_default_applies_when_a_run_is_started_with_none() -> None:
    @workflow("defaults")
    def with_model(step: Step, input: SignUp = SignUp(email="nobody")) -> Steps[None]:  # noqa: B008
        yield step.run("a", do)

    @workflow("defaults")
    def with_none(step: Step, input: SignUp = None) -> Steps[None]:  # type: ignore[assignment]  # people do
        yield step.run("a", do)

    @workflow("defaults")
    def with_dict(step: Any, input: Any = {"a": []}) -> Any:  # noqa: B006
        yield step.run("a", do)

    assert with_model.validate_input(None) == ('{"email":"nobody","age":18}', SignUp(email="nobody"))
    assert with_model.load_input("null") == SignUp(email="nobody")
    assert with_model.validate_input({"email": "a"})[1] == SignUp(email="a")
    assert with_none.validate_input(None) == ("null", None)
    assert with_none.load_input("null") is None
    with pytest.raises(InvalidInputError):
        with_none.validate_input({})
    first = with_dict.validate_input(None)[1]
    first["a"].append(1)
    assert with_dict.validate_input(None) == ('{"a":[]}', {"a": []})
    assert with_dict.load_input("null") == {"a": []}


def test_an_input_schema_overrides_the_annotation() -> None:
    @workflow("override", input_schema=SignUp)
    def override(step: Any, input: dict[str, Any]) -> Any:
        yield step.run("a", do)

    assert override.validate_input({"email": "a"})[1] == SignUp(email="a")
    with pytest.raises(TypeError, match="takes no input"):
        workflow("override", input_schema=SignUp)(Service().without_input)


def test_annotations_may_name_local_classes_and_classes_defined_later() -> None:
    class Local(BaseModel):
        a: int

    @workflow("local")
    def local(step: Step, input: Local) -> Steps[Local]:
        yield step.run("a", do)
        return input

    assert local.validate_input({"a": 1})[1] == Local(a=1)
    assert local.output_codec.annotation is Local
    assert later.validate_input({"a": 1})[1] == Later(a=1)
    assert later.output_codec.annotation is Later


@workflow("later")
def later(step: Step, input: Later) -> Steps[Later]:
    yield step.run("a", do)
    return input


@dataclass
class Later:
    a: int


def test_an_annotation_that_cannot_be_used_is_a_configuration_error() -> None:
    class Widget:
        pass

    @workflow("unseen")
    def unseen(step: Step, input: Unseen) -> Steps[None]:
        yield step.run("a", do)

    for defined, reason in (
        (unseen, "'Unseen' of the input of workflow 'unseen' cannot be resolved"),
        (handler_of(Widget), "Widget, is none that pydantic takes"),
        (handler_of(None, input_schema=Widget), "Widget, is none that pydantic takes"),
    ):
        for action in (
            defined.check_registrable,
            functools.partial(defined.validate_input, {}),
            functools.partial(defined.load_input, "{}"),
        ):
            with pytest.raises(ConfigurationError, match=reason) as refusal:
                action()
            assert refusal.value.workflow_id == defined.id


# --- outputs


def test_the_output_is_what_steps_says() -> None:
    text, output = send_welcome.output_codec.roundtrip(Receipt(number=1, issued=date(2030, 1, 1)), "the output")
    assert text == '{"number":1,"issued":"2030-01-01"}'
    assert output == Receipt(number=1, issued=date(2030, 1, 1))
    assert tick.output_codec.roundtrip(None, "the output") == ("null", None)


def test_without_annotation_the_output_is_plain_json() -> None:
    def plain(step: Any) -> Any:
        yield step.run("a", do)

    def bare(step: Any) -> Steps:  # type: ignore[type-arg]  # what is tested
        yield step.run("a", do)

    def generator(step: Any) -> Generator[Command[Any], Any, Any]:
        yield step.run("a", do)

    for handler in (plain, bare, generator):
        defined: Workflow[Any, Any] = workflow("a")(handler)
        assert defined.output_codec is PLAIN
    assert workflow("a")(Service().handle).output_codec.roundtrip(1, "the output") == ("1", 1)


# --- references


def test_a_reference_checks_inputs_without_the_code() -> None:
    ref = workflow_ref("send-welcome", input_schema=SignUp, output_schema=Receipt)
    assert ref.validate_input({"email": "a"}) == ('{"email":"a","age":18}', SignUp(email="a"))
    with pytest.raises(InvalidInputError):
        ref.validate_input(None)
    assert ref.output_codec.annotation is Receipt
    free = workflow_ref("other")
    assert free.validate_input({"a": 1}) == ('{"a":1}', {"a": 1})
    assert free.validate_input(None) == ("null", None)
    assert free.output_codec is PLAIN
    assert repr(free) == "<WorkflowRef 'other'>"


def test_a_reference_becomes_a_workflow_with_its_handler() -> None:
    ref = workflow_ref("send-welcome", input_schema=SignUp, output_schema=Receipt)

    @ref.handler(retries=2, timeout=60, priority=-5, queue="q")
    def handler(step: Any, input: Any) -> Any:
        yield step.run("a", do)

    assert isinstance(handler, Workflow)
    assert (handler.id, handler.retries, handler.timeout) == ("send-welcome", 2, timedelta(minutes=1))
    assert (handler.priority, handler.queue) == (-5, "q")
    assert handler.validate_input({"email": "a"})[1] == SignUp(email="a")
    assert handler.output_codec.annotation is Receipt
    with pytest.raises(TypeError, match="takes no input"):
        ref.handler()(Service().without_input)  # type: ignore[arg-type]  # what is tested


def test_a_reference_without_schemas_leaves_them_to_the_handler() -> None:
    @workflow_ref("a").handler()
    def handler(step: Step, input: SignUp) -> Steps[Receipt]:
        yield step.run("a", do)
        return Receipt(number=1, issued=date(2030, 1, 1))

    assert handler.validate_input({"email": "a"})[1] == SignUp(email="a")
    assert handler.output_codec.annotation is Receipt


def test_a_schema_that_is_none_is_a_configuration_error() -> None:
    class Widget:
        pass

    ref = workflow_ref("a", input_schema=Widget, output_schema=Widget)
    with pytest.raises(ConfigurationError, match="the input of workflow 'a'"):
        ref.validate_input({})
    with pytest.raises(ConfigurationError, match="the output schema of workflow 'a'"):
        _ = ref.output_codec


# --- registration


@workflow("twice")
def twice(step: Any, input: Any) -> Any:
    if input:
        yield step.run("same", do)
    else:
        yield step.run("same", do)


@workflow("bare")
def bare_statement(step: Any) -> Any:
    step.run("lost", do)
    yield step.run("kept", do)


def test_a_registry_refuses_what_cannot_work() -> None:
    registry = WorkflowRegistry()
    with pytest.raises(DuplicateStepError, match="'twice' uses the step id 'same' twice"):
        registry.register(twice)
    line = bare_statement.function.__code__.co_firstlineno + 2
    with pytest.raises(ConfigurationError, match=rf"test_definition\.py:{line}: step 'lost' .*is never run"):
        registry.register(bare_statement)
    assert registry.snapshot() == {}


def test_a_registry_knows_each_id_once() -> None:
    registry = WorkflowRegistry()
    registry.register(tick)
    registry.register(send_welcome)
    with pytest.raises(ConfigurationError, match="workflow 'tick' is registered already"):
        registry.register(tick)
    before = registry.snapshot()
    assert before == {"tick": tick, "send-welcome": send_welcome}
    assert registry.get("tick") is tick
    assert registry.get("other") is None
    assert registry.unregister("tick") is tick
    assert registry.get("tick") is None
    assert before["tick"] is tick
    with pytest.raises(WorkflowNotFoundError, match="no workflow 'tick' is registered"):
        registry.unregister("tick")
    registry.clear()
    assert registry.snapshot() == {}
    registry.register(tick)


def test_of_many_threads_one_registers_an_id() -> None:
    registry = WorkflowRegistry()
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def register() -> None:
        barrier.wait(10)
        try:
            registry.register(tick)
        except ConfigurationError:
            outcomes.append("refused")
        else:
            outcomes.append("registered")

    threads = [threading.Thread(target=register) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 7 + ["registered"]


def test_a_handler_whose_source_cannot_be_read_still_works() -> None:
    names: dict[str, Any] = {"workflow": workflow}
    exec("@workflow('made')\ndef made(step, input: dict):\n    yield step.run('a', print)\n", names)
    made: Workflow[Any, Any] = names["made"]
    assert made.steps == ()
    WorkflowRegistry().register(made)
    assert made.validate_input({})[1] == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            workflow_ref("elsewhere"),
            "<WorkflowRef 'elsewhere'> has no handler: make a workflow of it with @ref.handler()",
        ),
        (len, "a workflow is made with @workflow(…), which <built-in function len> is not"),
        ("tick", "a workflow is made with @workflow(…), which 'tick' is not"),
        (None, "which None is not"),
    ],
    ids=["a ref", "a function", "an id", "nothing"],
)
def test_only_workflows_can_be_registered(given: Any, said: str) -> None:
    with pytest.raises(TypeError) as e:
        WorkflowRegistry().register(given)
    assert said in str(e.value)
