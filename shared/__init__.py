"""Plumbing that all five services need: web process, worker, database, outbox, problems."""
