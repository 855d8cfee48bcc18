"""Sign-up by mail: a web form, a confirmation link, a reminder, an expiry, in one durable workflow."""
