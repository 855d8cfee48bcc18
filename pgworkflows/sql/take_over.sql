-- Return the runs of dead workers to the queue. Locks their queue rows, skipping those that others hold.
select pgworkflows.take_over()
