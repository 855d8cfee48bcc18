-- Planned anew each time. The same as find_runs.sql, of runs in unfinished statuses: along the queue, which is small. Locks
-- nothing.
select
    found.id::text,
    found.fits,
    case
        when found.fits and %(rows)s::boolean
            then (select row_to_json(r)::text from pgworkflows.runs as r where r.id = found.id)
    end,
    found.n = %(scan)s::bigint
from (
    select looked.run_id as id, looked.n,
        (%(workflow_id)s::text is null or looked.workflow_id = %(workflow_id)s::text)
        and (%(queue)s::text is null or looked.queue = %(queue)s::text)
        -- What the queue says of a run that is asked to pause or to end is not yet, or no more, what its row says.
        and (looked.control is not null or looked.status = any (%(statuses)s::text[]))
        -- Not "exists": for that the planner may read the whole table of runs, once.
        and (select r.status from pgworkflows.runs as r where r.id = looked.run_id) = any (%(statuses)s::text[]) as fits
    from (
        -- One branch is on; its order is the order of the numbers.
        select branch.*, row_number() over () as n
        from (
            (
                select q.run_id, q.workflow_id, q.queue, q.status::text, q.control
                from pgworkflows.queue as q
                where not %(newer)s::boolean and q.run_id >= %(first)s::uuid and q.run_id <= %(last)s::uuid
                order by q.run_id desc
                limit %(scan)s::bigint
            )
            union all
            (
                select q.run_id, q.workflow_id, q.queue, q.status::text, q.control
                from pgworkflows.queue as q
                where %(newer)s::boolean and q.run_id >= %(first)s::uuid and q.run_id <= %(last)s::uuid
                order by q.run_id
                limit %(scan)s::bigint
            )
        ) as branch
    ) as looked
) as found
-- No order is asked for here: it is that of the numbers, and what is not needed is not looked at.
where found.fits or found.n = %(scan)s::bigint
limit %(limit)s::bigint
