-- Record a migration in its own transaction.
insert into pgworkflows.migrations (number, name, oldest_code) values (%s, %s, %s) returning number
