-- Remember what a role is to be.
insert into pgworkflows.roles as r (role, kind) values (%s, %s)
on conflict (role) do update set kind = excluded.kind
