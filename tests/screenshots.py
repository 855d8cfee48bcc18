"""Draw the pictures of docs/dashboard.md: `make docs-screenshots`. A shop with an hour behind it, in Chromium."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from browsing import Chromium, find_chromium, running, served
from exhibits import checkout, import_prices, nightly_report, restock, shelve
from working import rows, working

from pgworkflows import EmbeddedPostgres, Workflow, WorkflowEngine
from pgworkflows.testing.server import SETTINGS
from pgworkflows.ui import Dashboard

IMAGES = Path(__file__).parents[1] / "docs" / "images"
MAX_BYTES = 200_000
SHOP: list[Workflow[Any, Any]] = [checkout, import_prices, nightly_report, restock, shelve]
ORDER = {"customer": "Ada", "lines": [{"article": "tea", "count": 2}], "gift": True}

PAST = """
with made as (
    insert into pgworkflows.runs (
        id, workflow_id, status, input, output, error, resource_id, created_at, started_at, updated_at, completed_at,
        current_step_id
    )
    select uuidv7(at - now()), workflow_id, status, json_build_object('customer', 'c' || n),
        case when status = 'completed' then json '{"payment": {"cents": 4200}}' end,
        case when status = 'failed' then json '{"type": "ConnectionError", "message": "the bank does not answer",
            "traceback": null}' end,
        'customer ' || n %% 40, at, at + took * 0.05, at + took, at + took, null
    from (
        select n, now() - (3600 - n * 3600 / 900) * interval '1 second' - interval '1 minute' * random() as at,
            (array['checkout', 'checkout', 'shelve', 'import-prices'])[1 + n %% 4] as workflow_id,
            case when n %% 37 = 5 or n between 500 and 540 and n %% 3 = 0 then 'failed' else 'completed' end as status,
            (0.2 + random() * random() * 4) * interval '1 second' as took
        from generate_series(1, 900) as n
        where n not between 610 and 640 or n %% 4 = 0
    ) as past
    returning id, status, error, created_at, completed_at, workflow_id
)
insert into pgworkflows.steps (
    run_id, position, step_id, kind, status, output, error, attempts, started_at, completed_at
)
select id, place, step_id, 'run', case when place = 1 then status else 'completed' end,
    case when place = 0 or status = 'completed' then json '{"cents": 4200}' end, case when place = 1 then error end, 1,
    created_at + (completed_at - created_at) * place / 2, created_at + (completed_at - created_at) * (place + 1) / 2
from made
join (
    values ('checkout', 0, 'charge'), ('checkout', 1, 'send-receipt'), ('import-prices', 0, 'fetch'),
        ('import-prices', 1, 'read-feed'), ('shelve', 0, 'weigh'), ('shelve', 1, 'put')
) as step (name, place, step_id) on name = workflow_id
"""


def main() -> int:
    path = find_chromium()
    if path is None:
        print("no Chromium: install Debian's package chromium, or name one in PGWORKFLOWS_CHROMIUM", file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    with EmbeddedPostgres(settings=SETTINGS) as server, WorkflowEngine(server.url, workflows=SHOP) as engine:
        engine.start(worker=False)
        rows(server.url, PAST)
        with working(engine), served(Dashboard(engine, actions=True)) as site, running(path) as chromium:
            draw(chromium, site, engine)
    large = [each.name for each in IMAGES.glob("*.png") if each.stat().st_size > MAX_BYTES]
    print(*(f"{each.name}: {each.stat().st_size:,} bytes" for each in sorted(IMAGES.glob("*.png"))), sep="\n")
    return 1 if large else 0


def draw(chromium: Chromium, site: str, engine: WorkflowEngine) -> None:
    for each in (restock, nightly_report, import_prices, shelve):
        engine.start_workflow(each, {"article": "tea"} if each is shelve else None)
    order = engine.start_workflow(checkout, ORDER, resource_id="customer 7").id
    engine.worker().run_until_idle("20s")
    for name, path, height in (("overview", "/", 1110), ("runs", "/runs", 460), ("run-dark", f"/runs/{order}", 640)):
        with chromium.visit(site, dark=name.endswith("-dark")) as visitor:
            visitor.page.set_viewport_size({"width": 1100, "height": height})
            page = visitor.go(path)
            if name == "overview":
                page.locator("figure canvas").first.wait_for()
            page.screenshot(path=IMAGES / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
