"""The world around the sign-up application, to see it work: people, a mail server, processes, accidents, a judge."""
