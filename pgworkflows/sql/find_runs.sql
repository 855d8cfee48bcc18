-- Planned anew each time: which index leads there depends on the filters. Runs in the order of their ids, from the newest on
-- or, with `newer`, from the oldest: id, 1 for a run that is looked for and else 0, its row as JSON if it is, and whether it is
-- the last to be looked at. Without `rows` their number, in one row. Looks at `scan` rows of one index at most; the last of so
-- many is told of, too, whatever it is. `source` names the index; each other filter is off when null. Locks nothing.
with found as materialized (
    select seen.id, coalesce(seen.fits, false) as fits, seen.n = %(scan)s::bigint as last
    from (
        select looked.id, looked.n,
            (%(workflow_id)s::text is null or looked.workflow_id = %(workflow_id)s::text)
            and (%(queue)s::text is null or looked.queue = %(queue)s::text)
            and (%(resource_id)s::text is null or looked.resource_id = %(resource_id)s::text)
            and (%(parent_run_id)s::uuid is null or looked.parent_run_id = %(parent_run_id)s::uuid)
            and (%(statuses)s::text[] is null or looked.status = any (%(statuses)s::text[]))
            and (
                %(words)s::text[] is null
                or not exists (
                    select from unnest(%(words)s::text[]) as word
                    where strpos(lower(concat_ws(' ', looked.error ->> 'type', looked.error ->> 'message')), lower(word)) = 0
                )
            ) as fits
        from (
            -- One branch is on; its order is the order of the numbers. Of workflows and resources there are lists of one, by
            -- which to order, so that no other index will do: on the way along the ids one might have to pass all there are.
            select branch.*, row_number() over () as n
            from (
                (
                    select r.id, r.workflow_id, r.status::text, r.queue, r.resource_id, r.parent_run_id, r.error
                    from pgworkflows.runs as r
                    where not %(newer)s::boolean
                        and r.id >= %(first)s::uuid and r.id <= %(last)s::uuid
                        and (
                            %(source)s::text not in ('workflow', 'workflow failed')
                            or r.workflow_id = any (array[%(workflow_id)s::text])
                        )
                        and (
                            %(source)s::text <> 'resource'
                            or r.resource_id = any (array[%(resource_id)s::text])
                        )
                        and (%(source)s::text <> 'parent' or r.parent_run_id = %(parent_run_id)s::uuid)
                        and (%(source)s::text <> 'failed' or r.error is not null)
                        and (%(source)s::text <> 'workflow failed' or (r.error is null) is false)
                    order by
                        case
                            when %(source)s::text in ('workflow', 'workflow failed') then r.workflow_id::text
                            when %(source)s::text = 'resource' then r.resource_id::text
                        end desc,
                        r.id desc
                    limit %(scan)s::bigint
                )
                union all
                (
                    select r.id, r.workflow_id, r.status::text, r.queue, r.resource_id, r.parent_run_id, r.error
                    from pgworkflows.runs as r
                    where %(newer)s::boolean
                        and r.id >= %(first)s::uuid and r.id <= %(last)s::uuid
                        and (
                            %(source)s::text not in ('workflow', 'workflow failed')
                            or r.workflow_id = any (array[%(workflow_id)s::text])
                        )
                        and (
                            %(source)s::text <> 'resource'
                            or r.resource_id = any (array[%(resource_id)s::text])
                        )
                        and (%(source)s::text <> 'parent' or r.parent_run_id = %(parent_run_id)s::uuid)
                        and (%(source)s::text <> 'failed' or r.error is not null)
                        and (%(source)s::text <> 'workflow failed' or (r.error is null) is false)
                    order by
                        case
                            when %(source)s::text in ('workflow', 'workflow failed') then r.workflow_id::text
                            when %(source)s::text = 'resource' then r.resource_id::text
                        end,
                        r.id
                    limit %(scan)s::bigint
                )
            ) as branch
        ) as looked
    ) as seen
    -- No order is asked for here: it is that of the numbers, and what is not needed is not looked at.
    where seen.fits or seen.n = %(scan)s::bigint
    limit %(limit)s::bigint
)
-- The runs; or in one row how many they are, and which was the last to be looked at.
select f.id::text, f.fits::integer as runs,
    case when f.fits then (select row_to_json(r)::text from pgworkflows.runs as r where r.id = f.id) end, f.last
from found as f
where %(rows)s::boolean
union all
select max(f.id::text) filter (where f.last), count(*) filter (where f.fits), null, coalesce(bool_or(f.last), false)
from found as f
having not %(rows)s::boolean
