-- Give the roles in the table `roles` what they need and nothing more; once there is one, nobody else gets anything. May be
-- run again and again, by the owner of the schema, and is after every migration. Locks no rows; the first time, the tables.
do $function$
declare
    -- What clients call in plain words, and what these call, runs with the caller's rights: some of it takes values of any
    -- type, whose casts are the caller's own functions.
    client_words constant text[] := array[
        'start_workflow', 'trigger_event', 'pause_workflow', 'resume_workflow', 'cancel_workflow', 'retry_workflow',
        'check_name', 'check_json', 'check_times', 'priority_number', 'unwrap'
    ];
    worker_words constant text[] := array[
        'fast_forward_workflow', 'pause_schedule', 'resume_schedule', 'trigger_schedule', 'unwrap_schedule', 'channel',
        'worker_lock_key'
    ];
    -- These read and write tables, with the rights of their owner.
    client_acts constant text[] := array[
        'start_at_once', 'try_start_workflow', 'try_start_workflows', 'try_trigger_event', 'try_pause_workflow',
        'try_resume_workflow', 'try_cancel_workflow', 'try_retry_workflow'
    ];
    worker_acts constant text[] := array[
        'try_fast_forward_workflow', 'try_pause_schedule', 'try_resume_schedule', 'try_trigger_schedule',
        'register_worker', 'declare_workflows', 'serve_workflows', 'beat', 'declare_dead', 'sleep', 'claim', 'flush',
        'flush_results', 'take_over', 'release_unheld', 'unregister_worker', 'due_schedules', 'fire_schedule', 'prune_runs'
    ];
    home constant oid := (select n.oid from pg_catalog.pg_namespace as n where n.nspname = 'pgworkflows');
    holder constant oid := (select c.relowner from pg_catalog.pg_class as c where c.oid = 'pgworkflows.runs'::regclass);
    granted record;
    act record;
begin
    if not exists (select from pgworkflows.roles) then
        return;
    end if;
    for act in
        select p.oid::regprocedure as signature, p.proowner, p.prosecdef
        from pg_catalog.pg_proc as p
        where p.pronamespace = home and p.proname = any (client_acts || worker_acts)
    loop
        if act.proowner <> holder then
            raise exception 'function % belongs to %, and the table runs to %',
                act.signature, act.proowner::regrole, holder::regrole
                using errcode = 'insufficient_privilege',
                hint = 'One role must own the whole schema: alter function ... owner to that of the table';
        elsif not act.prosecdef then
            execute format('alter function %s security definer', act.signature);
        end if;
    end loop;
    -- Whoever may read a table reads all of it, but clients: their policies bear their names.
    for act in
        select c.oid::regclass as name
        from pg_catalog.pg_class as c
        where c.relnamespace = home and c.relname in ('runs', 'steps') and not c.relrowsecurity
    loop
        execute format('alter table %s enable row level security', act.name);
        execute format('create policy whoever_was_granted on %s using (true)', act.name);
    end loop;
    execute format('revoke all on schema %I from public', 'pgworkflows');
    execute format('revoke all on all tables in schema %I from public', 'pgworkflows');
    execute format('revoke all on all sequences in schema %I from public', 'pgworkflows');
    execute format('revoke all on all functions in schema %I from public', 'pgworkflows');
    for granted in
        select r.role, r.kind from pgworkflows.roles as r join pg_catalog.pg_roles as p on p.rolname = r.role
    loop
        execute format('revoke all on all tables in schema %I from %I', 'pgworkflows', granted.role);
        execute format('revoke all on all sequences in schema %I from %I', 'pgworkflows', granted.role);
        execute format('revoke all on all functions in schema %I from %I', 'pgworkflows', granted.role);
        if granted.kind = 'revoked' then
            execute format('revoke all on schema %I from %I', 'pgworkflows', granted.role);
        else
            execute format('grant usage on schema %I to %I', 'pgworkflows', granted.role);
        end if;
        if granted.kind = 'client' then
            execute format('grant select on %I.runs, %I.steps to %I', 'pgworkflows', 'pgworkflows', granted.role);
            execute format('grant select (id, step_ids) on %I.workflows to %I', 'pgworkflows', granted.role);
            execute format('grant select (workflows, queues) on %I.workers to %I', 'pgworkflows', granted.role);
        elsif granted.kind in ('worker', 'reader') then
            execute format('grant select on all tables in schema %I to %I', 'pgworkflows', granted.role);
        end if;
        -- A policy is made or dropped under a lock of its table that everybody waits for: only where it has to be.
        if (granted.kind = 'client') is distinct from exists (
            select from pg_catalog.pg_policies as p
            where p.schemaname = 'pgworkflows' and p.tablename = 'runs' and p.policyname = granted.role
        ) then
            if granted.kind = 'client' then
                execute format(
                    'create policy %I on %I.runs as restrictive for select to %I using (started_by = current_user::text)',
                    granted.role, 'pgworkflows', granted.role
                );
                execute format(
                    'create policy %I on %I.steps as restrictive for select to %I using (exists ('
                    'select from %I.runs as r where r.id = run_id and r.started_by = current_user::text))',
                    granted.role, 'pgworkflows', granted.role, 'pgworkflows'
                );
            else
                execute format('drop policy %I on %I.runs', granted.role, 'pgworkflows');
                execute format('drop policy %I on %I.steps', granted.role, 'pgworkflows');
            end if;
        end if;
        if granted.kind = 'worker' then
            -- What tells it from a client: who may claim runs may act on all of them.
            execute format('grant usage on sequence %I.claims to %I', 'pgworkflows', granted.role);
        end if;
        for act in
            select p.oid::regprocedure as signature
            from pg_catalog.pg_proc as p
            where p.pronamespace = home and (
                (granted.kind in ('client', 'worker') and p.proname = any (client_words || client_acts))
                or (granted.kind = 'worker' and p.proname = any (worker_words || worker_acts))
            )
        loop
            execute format('grant execute on function %s to %I', act.signature, granted.role);
        end loop;
    end loop;
    delete from pgworkflows.roles where kind = 'revoked';
end
$function$
