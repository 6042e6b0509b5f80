"""Serves finished models by the OpenAI API over HTTP, answering simultaneous requests in one batch."""
