-- Notes beside the engine's tables, in a schema of their own: who was alive when, who claimed what when, what was stored.
create schema chaos;

create table chaos.workers (worker_id uuid primary key, pid integer, began_at timestamptz, gone_at timestamptz);
create table chaos.claims (n bigint generated always as identity, run_id uuid, worker_id uuid, at timestamptz);
create table chaos.taken_over (run_id uuid, at timestamptz);
create table chaos.outcomes (
    n bigint generated always as identity, run_id uuid, step_id text, status text, attempts integer,
    output json, error json, at timestamptz
);
create table chaos.endings (n bigint generated always as identity, run_id uuid, status text, output json, at timestamptz);

create function chaos.note_worker() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        insert into chaos.workers values (new.id, new.pid, clock_timestamp(), null);
    else
        update chaos.workers set gone_at = clock_timestamp() where worker_id = old.id;
    end if;
    return null;
end $$;
create trigger note_worker after insert or delete on pgworkflows.workers
for each row execute function chaos.note_worker();

create function chaos.note_claim() returns trigger language plpgsql as $$
begin
    insert into chaos.claims (run_id, worker_id, at) values (new.run_id, new.worker_id, clock_timestamp());
    return null;
end $$;
create trigger note_claim after update on pgworkflows.queue
for each row when (new.claim_id is not null and new.claim_id is distinct from old.claim_id)
execute function chaos.note_claim();

create function chaos.note_take_over() returns trigger language plpgsql as $$
begin
    insert into chaos.taken_over values (new.run_id, clock_timestamp());
    return null;
end $$;
create trigger note_take_over after update on pgworkflows.queue
for each row when (new.interruptions > old.interruptions) execute function chaos.note_take_over();

create function chaos.note_outcome() returns trigger language plpgsql as $$
begin
    insert into chaos.outcomes (run_id, step_id, status, attempts, output, error, at)
    values (new.run_id, new.step_id, new.status, new.attempts, new.output, new.error, clock_timestamp());
    return null;
end $$;
create trigger note_outcome after insert or update on pgworkflows.steps
for each row execute function chaos.note_outcome();

create function chaos.note_ending() returns trigger language plpgsql as $$
begin
    insert into chaos.endings (run_id, status, output, at) values (new.id, new.status, new.output, clock_timestamp());
    return null;
end $$;
create trigger note_ending after update on pgworkflows.runs
for each row when (
    new.completed_at is not null
    and (old.status, old.output::text, old.completed_at)
        is distinct from (new.status, new.output::text, new.completed_at)
) execute function chaos.note_ending();
