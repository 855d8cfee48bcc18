"""The sign-up example: its demo as it is run from a shell, its checks, its end; its pages, called directly."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from flask.testing import FlaskClient
from waiting import until
from werkzeug.test import TestResponse
from working import rows, value

from examples.signup import release
from examples.signup.app import app, workflows
from examples.signup.database import pool
from examples.signup.demo.mailserver import MailServer
from examples.signup.demo.people import Person, load
from examples.signup.demo.show import clipped, padded, table, width
from examples.signup.workflow import sign_up
from pgworkflows import WorkflowEngine

ROOT = Path(__file__).parents[1]
DEMO = [sys.executable, "-m", "examples.signup", "--people", "6"]


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DEMO, *options], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)


def left_of(said: str) -> list[str]:
    """What still stands of the processes and directories that the demo has named."""
    pids = [pid for pid in re.findall(r"process (\d+)", said) if runs(int(pid))]
    return pids + [path for path in re.findall(r", in (/\S+)", said) if Path(path).exists()]


def runs(pid: int) -> bool:
    """Whether a process is there and not a zombie that nobody has buried yet."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(state.stdout.strip()) and not state.stdout.strip().startswith("Z")


def test_the_demo_ends_well_and_shows_what_happened() -> None:
    done = run_demo()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    said = done.stdout
    assert re.search(r"worker \d is killed \(SIGKILL\) .*, [1-9]\d* runs? in hand", said)
    assert "runs of dead workers go on elsewhere" in said
    assert said.count("451 4.7.1") == 2
    assert "550 5.1.1" in said
    assert re.search(r"s: 6 signed up \(.*\), \d+ mails", said)
    assert "join pgworkflows.steps" in said
    assert re.search(r"山田 花子 .*create-user", said)
    assert re.search(r"\| await-late-click +\| completed", said)
    assert "6 people: " in said
    assert "All is as it should be" in said
    assert "WRONG" not in said
    assert left_of(said) == []


@pytest.mark.chaos
def test_the_demo_fails_when_a_mail_is_lost() -> None:
    done = run_demo("--lose-a-mail")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"WRONG: the mail 'Please confirm your address' was due to .* and never arrived", done.stdout)
    assert "The demo FAILED" in done.stdout
    assert left_of(done.stdout) == []


@pytest.mark.parametrize(
    ("number", "exit_status"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGTERM, 128 + 15, marks=pytest.mark.chaos),
        pytest.param(signal.SIGINT, 128 + 2, marks=pytest.mark.chaos),
    ],
)
def test_a_demo_that_is_killed_leaves_nothing(number: signal.Signals, exit_status: int) -> None:
    demo = subprocess.Popen(DEMO, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with demo:
        assert demo.stdout is not None
        said = ""
        for line in demo.stdout:
            said += line
            if "signed up" in line:
                break
        assert len(left_of(said)) == 5, said  # the server and its directory, the web application, two workers
        demo.send_signal(number)
        said += demo.stdout.read()
        assert demo.wait(30) == exit_status
        until(lambda: not left_of(said), "the demo's processes end and its directory goes")


def test_the_web_process_has_none_of_the_workflows_code() -> None:
    program = (
        "import sys, examples.signup.app\n"
        "print([name for name in ('workflow', 'users', 'mail') if f'examples.signup.{name}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@dataclass
class Site:
    """The application on a database of the test's own, its mail server, and a worker that is started by hand."""

    url: str
    browser: FlaskClient
    mail: MailServer
    engine: WorkflowEngine

    def send(self, name: str, email: str, form_id: str | None = None) -> TestResponse:
        return self.browser.post("/", data={"name": name, "email": email, "form_id": form_id or str(uuid4())})

    def work(self) -> None:
        self.engine.worker().run_until_idle(timeout=60)

    def states(self) -> list[tuple[str, str]]:
        return [(email, state) for email, state in rows(self.url, "select email, state from users order by email, id")]

    def let_the_wait_end(self) -> None:
        """Days go by."""
        rows(self.url, "update pgworkflows.steps set wake_at = now() where status = 'waiting'")
        rows(self.url, "update pgworkflows.queue set wake_at = now() where status = 'waiting'")

    def link(self) -> str:
        """The path of the last mail's link."""
        link = self.mail.received[-1].link
        assert link is not None
        return link.removeprefix("http://localhost")


@pytest.fixture
def site(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    nobody = Person("Nobody", "nobody@example.com", "unknown", "never")
    with MailServer([nobody], lambda _email, _answer: None) as mail:
        monkeypatch.setenv("SMTP_URL", mail.url)
        release.main()
        with closing(pool()), WorkflowEngine(database_url, workflows=[sign_up]) as engine:
            yield Site(database_url, app.test_client(), mail, engine)
        workflows.cache_clear()
        pool.cache_clear()


def test_a_click_makes_a_user_active(site: Site) -> None:
    answer = site.send("Ada Lovelace", "ada@example.com")
    assert answer.status_code == 303
    site.work()
    assert site.states() == [("ada@example.com", "invited")]
    assert "Please follow the link" in site.browser.get(answer.location).text
    assert site.browser.get(site.link()).location == answer.location
    site.work()
    assert site.states() == [("ada@example.com", "active")]
    assert "100 % done, completed" in site.browser.get(answer.location).text
    assert "Ada Lovelace" in site.browser.get("/signups").text
    assert [mail.subject for mail in site.mail.received] == ["Please confirm your address", "Welcome!"]


def test_who_never_clicks_is_reminded_and_then_expires(site: Site) -> None:
    site.send("Ada Lovelace", "ada@example.com")
    for _ in range(2):
        site.work()
        site.let_the_wait_end()
    site.work()
    assert site.states() == [("ada@example.com", "expired")]
    assert [mail.subject for mail in site.mail.received][1:] == ["Your sign-up is still waiting"]
    late = site.browser.get(site.link(), follow_redirects=True)
    assert "it has expired" in late.text
    assert site.states() == [("ada@example.com", "expired")]


def test_an_address_that_mail_cannot_reach_is_given_up(site: Site) -> None:
    site.send("Nobody", "nobody@example.com")
    site.work()
    assert site.states() == [("nobody@example.com", "undeliverable")]


def test_a_form_sent_twice_starts_one_run_and_a_corrected_one_another(site: Site) -> None:
    form_id = str(uuid4())
    places = [site.send("Ada", email, form_id).location for email in ("ada@example.org", "ada@example.org")]
    assert len(set(places)) == 1
    site.send("Ada", "ada@example.com", form_id)
    site.work()
    assert site.states() == [("ada@example.com", "invited"), ("ada@example.org", "invited")]
    assert len(site.mail.received) == 2


def test_an_address_belongs_to_one_user_and_is_free_again_once_expired(site: Site) -> None:
    site.send("Ada", "ada@example.com")
    site.work()
    second = site.send("Eve", "ADA@example.com")
    site.work()
    assert site.states() == [("ada@example.com", "invited")]
    assert "has an account already" in site.browser.get(second.location).text
    rows(site.url, "update users set state = 'expired'")
    site.send("Ada", "ada@example.com")
    site.work()
    assert site.states() == [("ada@example.com", "expired"), ("ada@example.com", "invited")]


@pytest.mark.parametrize(
    ("name", "email", "problem"),
    [
        (" ", "ada@example.com", "tell us your name"),
        ("Ada\r\nBcc: eve@example.com", "ada@example.com", "tell us your name"),
        ("<b>Ada</b>", "ada@example", "such as ada@example.com"),
    ],
)
def test_a_wrong_form_is_explained_and_starts_nothing(site: Site, name: str, email: str, problem: str) -> None:
    answer = site.send(name, email)
    assert answer.status_code == 422
    assert problem in answer.text
    assert 'aria-invalid="true"' in answer.text
    assert "<b>" not in answer.text
    assert value(site.url, "select count(*) from pgworkflows.runs") == 0


def test_a_sign_up_that_cannot_be_written_starts_no_run(site: Site) -> None:
    rows(site.url, "alter table signups add check (name <> 'Mallory')")
    assert site.send("Mallory", "mallory@example.com").status_code == 500
    assert value(site.url, "select count(*) from pgworkflows.runs") == 0


def test_unknown_links_people_and_hosts_are_refused(site: Site) -> None:
    assert site.browser.get("/confirm/guessed").status_code == 404
    assert site.browser.get(f"/signups/{uuid4()}").status_code == 404
    assert site.browser.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_people_have_addresses_of_their_own_however_many_come() -> None:
    people = load(60, seed=3)
    assert len({person.email for person in people}) == 60
    assert people == load(60, seed=3)
    assert {person.email for person in load(6)} <= {person.email for person in load()}


def test_tables_are_aligned_for_all_scripts() -> None:
    printed = table(["name", "n"], [("山田 花子", 7), ("José", None), ("e\u0301", 12)]).splitlines()
    assert {width(line.split("|")[0]) for line in (printed[0], *printed[2:])} == {11}
    assert printed[2].endswith("|  7")
    assert padded("山田", 3) == "山 "
    assert clipped("abc", 2) == "ab"
