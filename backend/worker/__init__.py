"""Celery: a doorbell that carries run ids; the truth is in Postgres."""
