-- The migrations the database has: number, oldest code that can work with it.
select number, oldest_code from pgworkflows.migrations
