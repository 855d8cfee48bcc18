-- For tests only: let the schema's time be moved. Its functions and defaults ask a clock that stands beside the real one.
-- Safe to run again.
create schema if not exists pgworkflows_test_clock;

-- Ahead of the real clock by "forward"; or, while a test travels, standing at a moment: then each look is a microsecond
-- later than the one before, so that what happens one after the other is told apart, and real time passes unseen.
create table if not exists pgworkflows_test_clock.moved (forward interval not null, standing_at timestamptz);
insert into pgworkflows_test_clock.moved (forward)
select '0' where not exists (select from pgworkflows_test_clock.moved);
create sequence if not exists pgworkflows_test_clock.looks;

create or replace function pgworkflows_test_clock.clock_timestamp() returns timestamptz
language sql volatile
set search_path = pg_catalog, pg_temp
as $function$
    select case
        when m.standing_at is null then pg_catalog.clock_timestamp() + m.forward
        else m.standing_at + nextval('pgworkflows_test_clock.looks') * interval '1 us'
    end
    from pgworkflows_test_clock.moved as m
$function$;

-- Not the transaction's beginning: a test may be one long transaction, in which time has to go on from statement to
-- statement, as it does where each statement is a transaction.
create or replace function pgworkflows_test_clock.now() returns timestamptz
language sql stable
set search_path = pg_catalog, pg_temp
as $function$
    select case
        when m.standing_at is null then pg_catalog.statement_timestamp() + m.forward
        else m.standing_at + l.last_value * interval '1 us'
    end
    from pgworkflows_test_clock.moved as m, pgworkflows_test_clock.looks as l
$function$;

grant usage on schema pgworkflows_test_clock to public;
grant select on pgworkflows_test_clock.moved to public;
grant select, usage on pgworkflows_test_clock.looks to public;

do $function$
declare
    place constant oid := (select n.oid from pg_namespace as n where n.nspname = 'pgworkflows');
    each record;
begin
    for each in
        select p.oid::regprocedure as name from pg_proc as p
        where p.pronamespace = place and 'search_path=pg_catalog, pg_temp' = any (p.proconfig)
    loop
        execute format('alter function %s set search_path = pgworkflows_test_clock, pg_catalog, pg_temp', each.name);
    end loop;
    for each in
        select d.adrelid::regclass as name, a.attname as attribute
        from pg_attrdef as d
        join pg_class as c on c.oid = d.adrelid
        join pg_attribute as a on a.attrelid = d.adrelid and a.attnum = d.adnum
        where c.relnamespace = place and pg_get_expr(d.adbin, d.adrelid) = 'clock_timestamp()'
    loop
        execute format(
            'alter table %s alter column %I set default pgworkflows_test_clock.clock_timestamp()', each.name, each.attribute
        );
    end loop;
end
$function$;
