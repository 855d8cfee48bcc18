-- Start the runs of ticks, unless another worker was first. Locks the schedule, then the new rows.
select pgworkflows.fire_schedule(
    workflow => %s,
    expression => %s,
    timezone => %s,
    since => %s::timestamptz,
    ticks => %s::timestamptz[],
    dealt_with => %s::timestamptz,
    next_at => %s::timestamptz
)
