-- The application's own tables. Safe to run again.

create table if not exists signups (
    run_id uuid primary key,
    name text not null,
    email text not null,
    token text not null unique,
    created_at timestamptz not null default now()
);
comment on table signups is 'What the form was sent with, written by the web process together with the start of the run.';
comment on column signups.token is 'The secret part of the confirmation link: only the mail has it.';

create table if not exists users (
    id bigint generated always as identity primary key,
    run_id uuid not null unique,
    name text not null,
    email text not null,
    state text not null default 'invited' check (state in ('invited', 'active', 'expired', 'undeliverable')),
    created_at timestamptz not null default now(),
    confirmed_at timestamptz
);
create unique index if not exists users_one_per_address on users (lower(email)) where state in ('invited', 'active');
comment on table users is 'The users, written by the workflow.';
comment on column users.run_id is 'The run that made the user: a step that is called again finds its row by it.';
